"""Triton kernels of `augment_clip`, in two passes over the frames, and a third over those that are blurred.

1. `luma_kernel`: the sum of the luma of each frame, which the contrast turns about; nothing where it is not drawn.
2. `point_kernel`: a tile of pixels through time, all but the blurred results. It holds the frame before in registers,
   so that each frame is read once for its own place and for both differences.
3. `blur_kernel`: a tile of one frame, coloured again with its border, then blurred as two products with a banded matrix
   A, A[i, j] the weight of pixel j in the blurred pixel i, reflection at the border included: (A_h x) A_w^T.

Pixels are read from any strides and written with channels last. The static frame is frame number T of the luma and blur
kernels, with colours of its own.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from .._common import Config, cdiv, device_row, tl, triton
from ..clips import CLIP_STRIDES, ClipTile, dense, levels, pixel_grid
from .reference import COLORS

# Without `maxnreg`, the assembler for sm_100 would spill values for more programs.
CONFIGS = {"default": {"luma": ClipTile(4, 1024), "point": ClipTile(4, 256), "blur": Config(8)}}
CONFIGS["sm_100"] = CONFIGS["default"] | {"blur": Config(8, maxnreg=255)}

SIDE = 64  # of a blurred tile and its border, together
MAX_RADIUS = (SIDE - 2) // 2  # of a blur that leaves something of the tile

if triton is not None:
    from ..clips import load_rgb, pixel_offset, pixel_tile, store_rgb

    @triton.jit
    def _clamp(x):
        return tl.minimum(tl.maximum(x, 0.0), 1.0)

    @triton.jit
    def _luma(rgb):
        return 0.299 * rgb[0] + 0.587 * rgb[1] + 0.114 * rgb[2]

    @triton.jit
    def _brightened(rgb, row, SCALE: tl.constexpr):
        """Grayscale and brightness, the steps before the contrast, of stored values."""
        gray, brightness = tl.load(row) > 0, tl.load(row + 1)
        rgb = [x * SCALE for x in rgb]
        luma = _luma(rgb)
        return [_clamp(tl.where(gray, luma, x) * brightness) for x in rgb]

    @triton.jit
    def _of_hue(hue, offset: tl.constexpr, high, chroma):
        """One channel of the colour with this hue in sixths of the circle, its largest channel and its range."""
        sixth = hue + offset
        sixth -= 6 * tl.floor(sixth * (1 / 6))
        return high + chroma * (_clamp(tl.abs(sixth - 3) - 1) - 1)

    @triton.jit
    def _colored(rgb, row, center, SCALE: tl.constexpr):
        """All but the blur, of stored values; `center` is the luma that the contrast turns about."""
        contrast, saturation, shift = tl.load(row + 2), tl.load(row + 3), tl.load(row + 4)
        r, g, b = [_clamp(center + (x - center) * contrast) for x in _brightened(rgb, row, SCALE)]
        high = tl.maximum(r, tl.maximum(g, b))
        span = high - tl.minimum(r, tl.minimum(g, b))
        inverse = 1 / tl.maximum(span, 1e-12)
        of_green = tl.where(high == g, 2 + (b - r) * inverse, 4 + (r - g) * inverse)
        hue = tl.where(high == r, (g - b) * inverse, of_green) + 6 * shift
        chroma = tl.minimum(span * saturation, high)
        return [_of_hue(hue, offset, high, chroma) for offset in (0, 4, 2)]

    @triton.jit
    def _normalized(rgb, mean, factor):
        return [(rgb[i] - mean[i]) * factor[i] for i in (0, 1, 2)]

    @triton.jit
    def _center(luma_ptr, frames, size):
        """Mean of the luma of `frames` frames of `size` pixels."""
        total = 0.0
        for t in range(frames):
            total += tl.load(luma_ptr + t)
        return total / frames / size

    @triton.jit
    def _either(first, ptr, other_ptr):
        """`ptr` or `other_ptr`, chosen as integers: for AMD, Triton 3.6 cannot compile a choice of pointers."""
        return tl.where(first, ptr.to(tl.int64), other_ptr.to(tl.int64)).to(ptr.dtype)

    @triton.jit
    def _job(T, color_ptr, static_color_ptr, index_ptr, COLORS: tl.constexpr):
        """Of a program, how many jobs a sample has, its sample, its job, and that frame's colours and number.

        A job is a frame of the clip, or its static frame at job T.
        """
        jobs = T + 1 if index_ptr is not None else T
        b, job = (tl.program_id(0) // jobs).to(tl.int64), tl.program_id(0) % jobs
        row, t = color_ptr + b * COLORS, job.to(tl.int64)
        if index_ptr is not None:
            row = _either(job == T, static_color_ptr + b * COLORS, row)
            t = tl.where(job == T, tl.load(index_ptr + b).to(tl.int64), t)
        return jobs, b, job, row, t

    @triton.jit(do_not_specialize=[*CLIP_STRIDES, "T", "H", "W"])
    def luma_kernel(
        clip_ptr, stride_b, stride_c, stride_t, stride_h, stride_w, color_ptr, static_color_ptr, index_ptr, luma_ptr,
        T, H, W, SCALE: tl.constexpr, COLORS: tl.constexpr, P: tl.constexpr,
    ):  # fmt: skip
        """Sum of the luma of a frame before the contrast, 0 where the contrast is 1."""
        jobs, b, job, row, t = _job(T, color_ptr, static_color_ptr, index_ptr, COLORS)
        total = tl.zeros((P,), tl.float32)
        size = tl.where((tl.load(row + 2) != 1) & (t >= 0) & (t < T), H * W, 0)
        for start in range(0, size, P):
            p = start + tl.arange(0, P)
            offset = pixel_offset(p // W, p % W, W, False, stride_h, stride_w)
            rgb = load_rgb(clip_ptr + b * stride_b + t * stride_t, stride_c, offset, p < size, tl.float32)
            total += _luma(_brightened(rgb, row, SCALE))
        tl.store(luma_ptr + b * jobs + job, tl.sum(total))

    @triton.jit(do_not_specialize=[*CLIP_STRIDES, "T", "H", "W"])
    def point_kernel(
        clip_ptr, stride_b, stride_c, stride_t, stride_h, stride_w, color_ptr, static_color_ptr, index_ptr, luma_ptr,
        flip_ptr, rgb_ptr, static_ptr, difference_ptr, T, H, W,
        mean_r, mean_g, mean_b, factor_r, factor_g, factor_b,
        SCALE: tl.constexpr, BLUR: tl.constexpr, COLORS: tl.constexpr, P: tl.constexpr,
    ):  # fmt: skip
        STATIC: tl.constexpr = index_ptr is not None
        mean, factor = (mean_r, mean_g, mean_b), (factor_r, factor_g, factor_b)
        jobs = T + 1 if STATIC else T
        size = H * W
        b, p, mask = pixel_tile(size, P)
        mirrored = tl.load(flip_ptr + b) if flip_ptr is not None else False
        offset = pixel_offset(p // W, p % W, W, mirrored, stride_h, stride_w)
        clip_ptr += b * stride_b
        row = color_ptr + b * COLORS
        blurred = tl.load(row + 5) > 0 if BLUR else False
        center = _center(luma_ptr + b * jobs, T, size)
        # Without a difference, nothing of a clip that is to be blurred is read here.
        steps = T if STATIC else tl.where(blurred, 0, T)
        rgb = load_rgb(clip_ptr, stride_c, offset, p < tl.where(steps > 0, size, 0), tl.float32)
        for t in range(steps):
            after_ptr = clip_ptr + (t + 1) * stride_t.to(tl.int64)
            after = load_rgb(after_ptr, stride_c, offset, p < tl.where(t + 1 < jobs, size, 0), tl.float32)
            frame = (b * T + t) * size * 3
            if STATIC:  # scaled after the subtraction: equal frames differ by exactly 0
                difference = [(after[i] - rgb[i]) * (SCALE * factor[i]) for i in (0, 1, 2)]
                store_rgb(difference_ptr + frame, p, difference, mask)
            if not blurred:
                colored = _colored(rgb, row, center, SCALE)
                store_rgb(rgb_ptr + frame, p, _normalized(colored, mean, factor), mask)
            rgb = after
        if STATIC:
            row, t = static_color_ptr + b * COLORS, tl.load(index_ptr + b).to(tl.int64)
            blurred = tl.load(row + 5) > 0 if BLUR else False
            if not blurred:
                inside = p < tl.where((t >= 0) & (t < T), size, 0)
                rgb = load_rgb(clip_ptr + t * stride_t, stride_c, offset, inside, tl.float32)
                colored = _colored(rgb, row, _center(luma_ptr + b * jobs + T, 1, size), SCALE)
                store_rgb(static_ptr + b * size * 3, p, _normalized(colored, mean, factor), mask)

    @triton.jit
    def _gauss(k, sigma, radius):
        scaled = k.to(tl.float32) / sigma
        return tl.where(tl.abs(k) <= radius, tl.exp(-0.5 * scaled * scaled), 0.0)

    @triton.jit
    def _band(i, j, n, sigma, radius, SIDE: tl.constexpr):
        """Weights of the pixels j in the blurred pixels i of a row of n, which is reflected at its ends."""
        total = tl.sum(_gauss(tl.arange(0, SIDE) - SIDE // 2, sigma, radius))
        weight = _gauss(i - j, sigma, radius)
        weight += tl.where(j > 0, _gauss(i + j, sigma, radius), 0.0)
        weight += tl.where(j < n - 1, _gauss(2 * (n - 1) - i - j, sigma, radius), 0.0)
        return tl.where(j < n, weight / total, 0.0).to(tl.float16)

    @triton.jit
    def _blurred(x, down, across):
        return tl.dot(tl.dot(down, x).to(tl.float16), across)

    @triton.jit(do_not_specialize=[*CLIP_STRIDES, "T", "H", "W", "tile_h", "tile_w", "radius"])
    def blur_kernel(
        clip_ptr, stride_b, stride_c, stride_t, stride_h, stride_w, color_ptr, static_color_ptr, index_ptr, luma_ptr,
        flip_ptr, rgb_ptr, static_ptr, T, H, W, tile_h, tile_w, radius,
        mean_r, mean_g, mean_b, factor_r, factor_g, factor_b,
        SCALE: tl.constexpr, COLORS: tl.constexpr, SIDE: tl.constexpr,
    ):  # fmt: skip
        jobs, b, job, row, t = _job(T, color_ptr, static_color_ptr, index_ptr, COLORS)
        sigma = tl.load(row + 5)
        if sigma > 0:
            out_ptr = rgb_ptr + (b * T + job) * (H * W * 3)
            luma_ptr += b * jobs
            frames = T
            if index_ptr is not None:
                out_ptr = _either(job == T, static_ptr + b * (H * W * 3), out_ptr)
                if job == T:
                    luma_ptr, frames = luma_ptr + T, 1
            center = _center(luma_ptr, frames, H * W)
            across = tl.cdiv(W, tile_w)
            top, left = tl.program_id(1) // across * tile_h, tl.program_id(1) % across * tile_w
            line = tl.arange(0, SIDE)
            h, w = tl.maximum(top - radius, 0) + line, tl.maximum(left - radius, 0) + line
            known = tl.where((t >= 0) & (t < T), H, 0)
            inside_h = h < tl.minimum(top + tile_h + radius, known)
            inside_w = w < tl.minimum(left + tile_w + radius, W)
            mirrored = tl.load(flip_ptr + b) if flip_ptr is not None else False
            offset = pixel_offset(h[:, None], w[None, :], W, mirrored, stride_h, stride_w)
            frame_ptr = clip_ptr + b * stride_b + t * stride_t
            rgb = load_rgb(frame_ptr, stride_c, offset, inside_h[:, None] & inside_w[None, :], tl.float32)
            # float16 has 11 bits for values in [0, 1], as many as TF32: an error of a quarter of 1 / 255.
            rgb = [x.to(tl.float16) for x in _colored(rgb, row, center, SCALE)]
            i, j = top + line, left + line
            a_h = _band(i[:, None], h[None, :], H, sigma, radius, SIDE)
            a_w = _band(j[None, :], w[:, None], W, sigma, radius, SIDE)
            rgb = [_blurred(x, a_h, a_w) for x in rgb]
            rgb = _normalized(rgb, (mean_r, mean_g, mean_b), (factor_r, factor_g, factor_b))
            row_inside = (line < tile_h) & (i < H)
            mask = row_inside[:, None] & ((line < tile_w) & (j < W))[None, :]
            pixel = i[:, None] * W + j[None, :]
            N: tl.constexpr = SIDE * SIDE
            store_rgb(out_ptr, tl.reshape(pixel, (N,)), [tl.reshape(x, (N,)) for x in rgb], tl.reshape(mask, (N,)))


def tile_size(length: int, radius: int) -> int:
    """Blurred pixels of a tile along an axis of `length`: equal tiles, as few as fit with their border."""
    tiles = 1
    while -(-length // tiles) + radius * min(tiles - 1, 2) > SIDE:
        tiles += 1
    return -(-length // tiles)


def launch_augment(
    clip: Tensor, color: Tensor, index: Tensor | None, static_color: Tensor | None, flip: Tensor | None,
    mean: Sequence[float], std: Sequence[float], blur_size: int, dtype: torch.dtype,
    rgb: Tensor, static: Tensor | None = None, difference: Tensor | None = None,
) -> object:  # fmt: skip
    """Fill `rgb` and, with `index`, `static` and `difference`, all channels_last_3d; NotImplemented for a wide blur."""
    if blur_size // 2 > MAX_RADIUS:
        return NotImplemented
    batch, _, frames, height, width = rgb.shape
    jobs = frames + (index is not None)
    color, static_color, index, flip = dense(color, static_color, index, flip)
    luma = torch.empty(batch, jobs, dtype=torch.float32, device=clip.device)
    source = clip, *clip.stride(), color, static_color, index, luma
    constants = {"SCALE": 1 / levels(clip), "COLORS": COLORS}
    normal = *mean, *(1 / value for value in std)
    _, sizes = pixel_grid(CONFIGS, "luma", clip.device, batch, height * width)
    luma_kernel[(batch * jobs,)](*source, frames, height, width, **constants, **sizes)
    grid, sizes = pixel_grid(CONFIGS, "point", clip.device, batch, height * width)
    point_kernel[grid](
        *source, flip, rgb, static, difference, frames, height, width, *normal, BLUR=blur_size > 1,
        **constants, **sizes,
    )  # fmt: skip
    if blur_size > 1:
        radius = blur_size // 2
        tile = tile_size(height, radius), tile_size(width, radius)
        grid = batch * jobs, cdiv(height, tile[0]) * cdiv(width, tile[1])
        blur_kernel[grid](
            *source, flip, rgb, static, frames, height, width, *tile, radius, *normal, SIDE=SIDE,
            **constants, **device_row(CONFIGS, clip.device)["blur"].options(),
        )  # fmt: skip
