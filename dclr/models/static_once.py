"""Static clips encoded together with moving ones, but with their repeated frame computed once.

All T frames of a static clip are equal (DCLR Eq. 3), so that a convolution over space needs one of them. A convolution
over time pads with zeros, so that after it the frames at the ends differ from the others, and one frame more at each
end after each further layer; those between are still equal. A static clip can therefore be held as a few frames of
which one stands for many, up to the layer where the ends meet.

Shapes: m moving and s static clips. A static clip is held as n frames, of which number `place` stands for `times` equal
ones, so that T = n - 1 + times.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.functional import batch_norm

from dclr.distributed import gather_rows, world
from dclr.models.resnet3d import ResidualBlock, VideoResNet
from dclr.models.rewrites import PaddedUnit
from dclr.models.separate_norm import SEPARATE


class StaticClips(NamedTuple):
    """Static clips: `frames` (s, C, n, H, W), of which number `place` stands for `times` equal ones."""

    frames: Tensor
    place: int
    times: int

    def spread(self, before: int, after: int) -> StaticClips:
        """The same clips with the first `before` and the last `after` of the repeated frames written out."""
        if not before + after:
            return self
        right = self.frames.shape[2] - self.place - 1
        # Concatenated with the channels as the last axis, because torch.cat of expanded tensors forgets channels_last.
        left, middle, rest = self.frames.permute(0, 2, 3, 4, 1).split([self.place, 1, right], dim=1)
        frames = torch.cat([left, middle.expand(-1, before + 1 + after, -1, -1, -1), rest], dim=1)
        return StaticClips(frames.permute(0, 4, 1, 2, 3), self.place + before, self.times - before - after)

    def written_out(self) -> Tensor:
        """All T frames."""
        return self.spread(self.times - 1, 0).frames

    def counts(self, dtype: torch.dtype) -> Tensor:
        """(n,): how often each frame stands in the clip."""
        counts = torch.ones(self.frames.shape[2], device=self.frames.device, dtype=dtype)
        counts[self.place].fill_(self.times)  # unlike an assignment, this copies nothing to the device
        return counts


class MixedClips(NamedTuple):
    """One batch of `moving` clips (m, C, T, H, W) and `static` ones."""

    moving: Tensor
    static: StaticClips


class StaticOnceResNet(VideoResNet):
    """A `VideoResNet` that also takes static clips as one frame each; equal in result to giving it all clips whole."""

    def forward(self, clip_bcthw: Tensor, static_frame: Tensor | None = None) -> Tensor:
        """Features of the clips (m, 3, T, H, W), and after them those of the static frames (s, 3, 1, H, W)."""
        if static_frame is None:
            return super().forward(clip_bcthw)
        if static_frame.shape[2] != 1:
            raise ValueError(f"static_frame: got {static_frame.shape[2]} frames a clip, expected 1")
        x = MixedClips(clip_bcthw, StaticClips(static_frame, 0, clip_bcthw.shape[2]))
        for stage in (self.stem, self.layer1, self.layer2, self.layer3, self.layer4):
            x = _apply_mixed(stage, x)
        return torch.cat([x.moving, x.static.written_out()])


def _apply_mixed(module: nn.Module, x: MixedClips, state: Mapping[str, Tensor] | None = None) -> MixedClips:
    """Apply `module` to a mixed batch; `state` are tensors to use in place of its own."""
    if isinstance(module, PaddedUnit):
        return module(x, _apply_mixed)
    if isinstance(module, nn.Sequential):
        for child in module:
            x = _apply_mixed(child, x)
        return x
    if isinstance(module, ResidualBlock):
        residual = x if module.downsample is None else _apply_mixed(module.downsample, x)
        return _apply_mixed(module.relu, _add(_apply_mixed(module.conv2, _apply_mixed(module.conv1, x)), residual))
    if isinstance(module, nn.modules.batchnorm._BatchNorm) and module.training:
        normalize = _normalize_apart if type(module) in SEPARATE.values() else _normalize
        return normalize(module, x, state or {})

    def apply(clip: Tensor) -> Tensor:
        return functional_call(module, state, clip) if state else module(clip)

    kernel, stride, padding = (_temporal(module, name) for name in ("kernel_size", "stride", "padding"))
    static, place, times = _window(x.static, kernel, stride, padding)
    return MixedClips(apply(x.moving), StaticClips(apply(static), place, times))


def _temporal(module: nn.Module, name: str) -> int:
    """Kernel size, stride or padding in time; pointwise modules have kernel 1."""
    value = getattr(module, name, 0 if name == "padding" else 1)
    return value[0] if isinstance(value, tuple) else value


def _window(static: StaticClips, kernel: int, stride: int, padding: int) -> tuple[Tensor, int, int]:
    """Frames on which a convolution over time has every distinct result, and the place and times of its output.

    Enough of the repeated frames are written out for one window among them, and so many more that windows of this
    stride fall on the same frames after them as in the whole clip.
    """
    first = -(-(static.place + padding) // stride)  # first window that begins within the repeated frames
    needed = first * stride - padding + kernel - static.place
    needed += (static.times - needed) % stride
    if needed >= static.times:
        return static.written_out(), 0, 1
    frames = static._replace(times=needed).written_out()
    return frames, first, 1 + (static.times - needed) // stride


def _add(a: MixedClips, b: MixedClips) -> MixedClips:
    """Sum of two batches; frames that are repeated in one of them and differ in the other are written out first."""
    ends = [x.static.place + x.static.times for x in (a, b)]
    place, end = max(a.static.place, b.static.place), min(ends)
    if place >= end:
        frames = a.static.written_out() + b.static.written_out()
        return MixedClips(a.moving + b.moving, StaticClips(frames, 0, 1))
    left, right = (x.static.spread(place - x.static.place, e - end) for x, e in zip((a, b), ends))
    return MixedClips(a.moving + b.moving, left._replace(frames=left.frames + right.frames))


def _normalize(norm: nn.modules.batchnorm._BatchNorm, x: MixedClips, state: Mapping[str, Tensor]) -> MixedClips:
    """BatchNorm in training by the statistics of all clips, each frame counted as often as it stands in one."""
    weight, bias, running_mean, running_var = (
        state.get(name, getattr(norm, name)) for name in ("weight", "bias", "running_mean", "running_var")
    )
    over_ranks = isinstance(norm, nn.SyncBatchNorm)
    moving, frames, mean_c, var_c = _MixedBatchNorm.apply(x.moving, *x.static, weight, bias, norm.eps, over_ranks)
    with torch.no_grad():
        values = _value_count(x, over_ranks)
        norm.num_batches_tracked.add_(1)
        running_mean.lerp_(mean_c.to(running_mean.dtype), norm.momentum)
        running_var.lerp_((var_c * (values / (values - 1))).to(running_var.dtype), norm.momentum)
    return MixedClips(moving, x.static._replace(frames=frames))


def _normalize_apart(norm: nn.Module, x: MixedClips, state: Mapping[str, Tensor]) -> MixedClips:
    """BatchNorm in training by the statistics of each part of the moving clips, and of the static clips, alone."""
    moving = functional_call(norm, state, x.moving) if state else norm(x.moving)
    weight, bias = (state.get(name, getattr(norm, name)) for name in ("weight", "bias"))
    over_ranks = isinstance(norm, nn.SyncBatchNorm)
    frames = x.static.frames.to(torch.promote_types(x.static.frames.dtype, torch.float32))
    share = x.static.counts(frames.dtype)
    share = share / (share.sum() * frames[:, 0, 0].numel())

    def mean_c11(values: Tensor) -> Tensor:
        mean_c = values.sum((0, 3, 4)) @ share
        mean_c = gather_rows(mean_c[None]).mean(0) if over_ranks else mean_c
        return mean_c[:, None, None, None]

    mean = mean_c11(frames)
    # The variance has no slope in the mean. Said here, the gradient needs no tensor of this size in between.
    var = mean_c11((frames - mean.detach()).square())
    scale = weight[:, None, None, None] * (var + norm.eps).rsqrt()
    normalized = torch.addcmul(bias[:, None, None, None], frames - mean, scale).to(x.static.frames.dtype)
    return MixedClips(moving, x.static._replace(frames=normalized))


class _MixedBatchNorm(torch.autograd.Function):
    """moving (m, C, T, H, W) and frames (s, C, n, H, W), normalised together; frame `place` counts `times` over.

    The batch statistics are at least float32. PyTorch's own kernels do everything but the part of the gradient that
    goes through the statistics.
    """

    @staticmethod
    def forward(
        ctx: torch.autograd.function.FunctionCtx,
        moving: Tensor,
        frames: Tensor,
        place: int,
        times: int,
        weight: Tensor,
        bias: Tensor,
        eps: float,
        over_ranks: bool,
    ) -> tuple[Tensor, ...]:
        mean_c, var_c = _batch_statistics(MixedClips(moving, StaticClips(frames, place, times)), over_ranks)
        ctx.save_for_backward(moving, frames, weight, mean_c, var_c)
        ctx.place, ctx.times, ctx.eps, ctx.over_ranks = place, times, eps, over_ranks
        ctx.mark_non_differentiable(mean_c, var_c)
        normalized = (batch_norm(clip, mean_c, var_c, weight, bias, eps=eps) for clip in (moving, frames))
        return *normalized, mean_c, var_c

    @staticmethod
    def backward(ctx: torch.autograd.function.FunctionCtx, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        *clips, weight, mean_c, var_c = ctx.saved_tensors
        x = MixedClips(clips[0], StaticClips(clips[1], ctx.place, ctx.times))
        # The gradient as if the statistics were constants.
        direct, by_weight, by_bias = zip(
            *(
                torch.ops.aten.native_batch_norm_backward(
                    gradient, clip, weight, mean_c, var_c, None, None, False, ctx.eps, [True, True, True]
                )
                for gradient, clip in zip(gradients, clips)
            )
        )
        own = torch.stack([sum(by_weight), sum(by_bias)])
        by_weight, by_bias = gather_rows(own[None]).sum(0) if ctx.over_ranks else own
        # The gradient through the statistics, -scale / N (sum of g + x^ sum of g x^) with x^ the normalised x: a line
        # in x, with a slope and an offset for each channel.
        inverse = (var_c + ctx.eps).rsqrt()
        scale = weight * inverse / _value_count(x, ctx.over_ranks)
        slope = -scale * by_weight * inverse
        offset = -scale * by_bias - slope * mean_c
        slope, offset = slope[:, None, None, None], offset[:, None, None, None]
        count_t11 = x.static.counts(mean_c.dtype)[:, None, None]
        moving = torch.addcmul(offset, clips[0], slope).add_(direct[0])
        frames = torch.addcmul(offset, clips[1], slope).mul_(count_t11).add_(direct[1])
        moving, frames = moving.to(clips[0].dtype), frames.to(clips[1].dtype)
        return moving, frames, None, None, *own.to(weight.dtype), None, None


def _batch_statistics(x: MixedClips, over_ranks: bool) -> tuple[Tensor, Tensor]:
    """Mean (C,) and biased variance (C,), at least float32, of all values of each channel."""
    moving, frames = x.moving, x.static.frames
    moving_mean_c, moving_var_c = _moments(moving)
    dtype = moving_mean_c.dtype
    counts, number = x.static.counts(dtype), _value_count(x, False)
    share = moving[:, 0].numel() / number
    mean_c = share * moving_mean_c + frames.sum((0, 3, 4), dtype=dtype) @ counts / number
    static_c = (frames - mean_c[:, None, None, None]).square_().sum((0, 3, 4)) @ counts / number
    var_c = share * (moving_var_c + (moving_mean_c - mean_c).square()) + static_c
    if over_ranks:  # every rank has equally many values, so that means are averaged without weights
        mean_rc, var_rc = gather_rows(torch.stack([mean_c, var_c])[None]).unbind(1)
        mean_c = mean_rc.mean(0)
        var_c = (var_rc + (mean_rc - mean_c).square()).mean(0)
    return mean_c, var_c


def _moments(clip: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and biased variance (C,) of (b, C, T, H, W), at least float32."""
    clip = clip.to(torch.promote_types(clip.dtype, torch.float32))
    if clip.device.type == "cpu":  # there var_mean takes ten times as long as this
        return torch.ops.aten.batch_norm_update_stats(clip, None, None, 0.0)
    return torch.var_mean(clip, (0, 2, 3, 4), correction=0)[::-1]


def _value_count(x: MixedClips, over_ranks: bool) -> int:
    """Number of values of each channel."""
    times = x.static.frames.shape[2] - 1 + x.static.times
    own = x.moving[:, 0].numel() + x.static.frames[:, 0, 0].numel() * times
    return own * world() if over_ranks else own
