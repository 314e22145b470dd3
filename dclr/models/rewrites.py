"""Faster forms of (2+1)D convolutions, with the same result.

`dclr.models.fast.accelerate` gives modules these classes in place of their own.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.functional import conv2d, pad

# Tensor cores take 16-bit numbers in groups of 8 channels.
CHANNEL_MULTIPLE = 8

# module, its input, tensors to use in place of its own -> its output
Call = Callable[[nn.Module, Tensor, Mapping[str, Tensor]], Tensor]


class FoldedConv3d(nn.Conv3d):
    """A convolution over space alone or time alone, as a 2D one over views of the same memory.

    In memory with channels last, a clip (B, C, T, H, W) is also a batch of B T frames, and a batch of B images of
    T x (H W) pixels. A convolution over space is a 2D one of the former, one over time a 2D one of the latter, and
    nothing is copied. Inputs in other layouts are first brought to this one.
    """

    def _conv_forward(self, x_bcthw: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        x_bcthw = x_bcthw.contiguous(memory_format=torch.channels_last_3d)
        stride, padding, dilation = self.stride, self.padding, self.dilation
        if _is_spatial(self):
            frames_nchw = x_bcthw.transpose(1, 2).flatten(0, 1)
            out = conv2d(frames_nchw, weight.flatten(1, 2), bias, stride[1:], padding[1:], dilation[1:], self.groups)
            return out.unflatten(0, (x_bcthw.shape[0], x_bcthw.shape[2])).transpose(1, 2)
        stride, padding, dilation = (stride[0], 1), (padding[0], 0), (dilation[0], 1)
        out = conv2d(x_bcthw.flatten(3), weight.flatten(3), bias, stride, padding, dilation, self.groups)
        return out.unflatten(3, x_bcthw.shape[3:])


def _is_spatial(conv: nn.Conv3d) -> bool:
    return (conv.kernel_size[0], conv.stride[0], conv.padding[0]) == (1, 1, 0)


def folds(conv: nn.Conv3d) -> bool:
    """Whether `FoldedConv3d` can take its place."""
    if conv.padding_mode != "zeros" or isinstance(conv.padding, str):
        return False
    temporal = all(axes[1:] == (n, n) for axes, n in ((conv.kernel_size, 1), (conv.stride, 1), (conv.padding, 0)))
    return _is_spatial(conv) or temporal


class PaddedUnit(nn.Sequential):
    """(2+1)D unit whose mid-channels are filled up to a multiple of 8 with channels that are always zero.

    R(2+1)D has 83, 230, 460 and 921 mid-channels, among others, for which GPUs have slower kernels. The zeros are added
    to the weights anew in each forward pass, so that the parameters keep their shapes.
    """

    def forward(self, x_bcthw: Tensor, call: Call | None = None) -> Tensor:
        call = call or _call
        conv, norm, relu, project, *rest = self
        extra = -conv.out_channels % CHANNEL_MULTIPLE
        x = call(conv, x_bcthw, {"weight": _filled(conv.weight, 0, extra)})
        names = ("weight", "bias", "running_mean", "running_var")
        state = {name: _filled(getattr(norm, name), 0, extra) for name in names}
        x = call(norm, x, state)
        if norm.training:
            with torch.no_grad():
                for name in names[2:]:
                    getattr(norm, name).copy_(state[name][: norm.num_features])
        x = call(project, call(relu, x, {}), {"weight": _filled(project.weight, 1, extra)})
        for module in rest:
            x = call(module, x, {})
        return x


def _call(module: nn.Module, x: Tensor, state: Mapping[str, Tensor]) -> Tensor:
    return functional_call(module, state, x) if state else module(x)


def _filled(value: Tensor, axis: int, extra: int) -> Tensor:
    """`value` with `extra` zeros at the end of an axis."""
    return pad(value, [0, 0] * (value.dim() - 1 - axis) + [0, extra])


def has_odd_width(module: nn.Sequential) -> bool:
    """Whether it is conv - norm - ReLU - conv, whatever follows, with mid-channels that are no multiple of 8."""
    kinds = (nn.Conv3d, (nn.BatchNorm3d, nn.SyncBatchNorm), nn.ReLU, nn.Conv3d)
    if len(module) < 4 or not all(isinstance(child, kind) for child, kind in zip(module, kinds)):
        return False
    conv, norm, _, project = list(module)[:4]
    plain = conv.bias is None and conv.groups == project.groups == 1
    return plain and norm.affine and norm.track_running_stats and conv.out_channels % CHANNEL_MULTIPLE != 0
