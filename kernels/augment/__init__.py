"""Mirror flip, colours and blur of uint8 clips, one draw per clip, and DCLR's three encoder inputs of them.

`reference.py` has the formulas, `kernel.py` the Triton kernels.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from .._common import FLOAT_DTYPES, check_channels, check_count, check_kind, check_tensors, expect, register_op
from ..clips import check_clip
from .kernel import launch_augment
from .reference import COLORS, augment_reference


class Augmented(NamedTuple):
    """`rgb` and `difference` (B, 3, T, H, W), `static` (B, 3, 1, H, W); the last two None without a static index."""

    rgb: Tensor
    static: Tensor | None
    difference: Tensor | None


# Op


def _empty_streams(clip: Tensor, color: Tensor, static_index: Tensor | None, *arguments) -> list[Tensor]:
    batch, channels, frames, height, width = clip.shape
    counts = (frames,) if static_index is None else (frames - 1, 1, frames - 1)
    layout = {"dtype": arguments[-1], "device": clip.device, "memory_format": torch.channels_last_3d}
    return [torch.empty((batch, channels, count, height, width), **layout) for count in counts]


register_op(
    "augment_clip(Tensor clip, Tensor color, Tensor? static_index, Tensor? static_color, Tensor? flip, float[] mean, "
    "float[] std, int blur_size, ScalarType dtype) -> Tensor[]",
    _empty_streams,
    augment_reference,
    launch_augment,
)


# Public function


def augment_clip(
    clip: Tensor,
    color: Tensor,
    *,
    static_index: Tensor | None = None,
    static_color: Tensor | None = None,
    flip: Tensor | None = None,
    mean: Sequence[float] = (0.0, 0.0, 0.0),
    std: Sequence[float] = (1.0, 1.0, 1.0),
    blur_size: int = 1,
    dtype: torch.dtype = torch.float32,
) -> Augmented:
    """Augment and normalise clips; with `static_index`, their static frame and frame difference too (DCLR Eq. 3-4).

    Args:
        clip: (B, 3, T, H, W) RGB, uint8 or floating in [0, 1], any strides; T+1 frames with `static_index`, the last
            one for the difference alone.
        color: (B, 6) float32, a row for each clip: grayscale (0 or 1), brightness, contrast and saturation (factors),
            hue (shift, a share of the circle), sigma of the blur (pixels, 0 for none). They act in this order;
            0, 1, 1, 1, 0, 0 leaves a clip alone. The contrast turns about the mean luma of all T frames.
        static_index: (B,) int64 or int32 in [0, T): the frame that stands still. Others are an error where the tensor
            is on the CPU; on a GPU they read as a black frame.
        static_color: (B, 6), the static frame's own rows; `color` where not given.
        flip: (B,) bool, the clips to mirror.
        mean, std: of each channel, for values in [0, 1].
        blur_size: taps of the Gaussian along each axis, odd; 1 is no blur.
        dtype: of the results.

    Returns:
        Augmented(rgb, static, difference) in channels_last_3d; the static frame once, not T times. Nothing here has a
        gradient. The blur works in float16, to within 1 / 255; float64 clips or results, and blurs of more than 63
        taps, run the reference.

    Raises:
        TypeError, ValueError: a wrong rank, size, dtype or device, named.
    """
    small = {"static_index": static_index, "static_color": static_color, "flip": flip}
    check_tensors(clip=clip, color=color, optional=small)
    still = static_index is not None
    static_color = color if still and static_color is None else static_color
    shape = "(B, 3, T+1, H, W), T >= 1" if still else "(B, 3, T, H, W), T >= 1"
    check_clip(clip, flip, static_index, shape, 1 + still)
    check_kind("color", color, torch.float32, (clip.shape[0], COLORS))
    check_kind("static_color", static_color, torch.float32, (clip.shape[0], COLORS))
    expect(still or static_color is None, "static_color", "a tensor", "None without static_index")
    check_count("blur_size", blur_size, 1)
    expect(blur_size % 2 == 1, "blur_size", blur_size, "an odd number of taps")
    fits = blur_size == 1 or min(clip.shape[3:]) > blur_size // 2
    expect(fits, "blur_size", blur_size, lambda: f"at most {2 * min(clip.shape[3:]) - 1}, for the frame's short side")
    expect(dtype in FLOAT_DTYPES, "dtype", dtype, "float32, bfloat16, float16 or float64", TypeError)
    for name, values in (("mean", mean), ("std", std)):
        check_channels(name, values, 3)
    arguments = color, static_index, static_color, flip, list(mean), list(std), blur_size, dtype
    results = torch.ops.dclr.augment_clip(clip, *arguments)
    return Augmented(*results) if still else Augmented(results[0], None, None)
