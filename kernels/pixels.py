"""What the kernels over frames of RGB pixels share."""

from __future__ import annotations

from ._common import tl, triton

if triton is not None:

    @triton.jit
    def load_rgb(frame_ptr, stride_c, offset, mask, dtype: tl.constexpr):
        """Red, green and blue of the pixels at `offset`, in `dtype`, as they are stored."""
        stride_c = stride_c.to(tl.int64)
        r = tl.load(frame_ptr + offset, mask=mask, other=0).to(dtype)
        g = tl.load(frame_ptr + stride_c + offset, mask=mask, other=0).to(dtype)
        b = tl.load(frame_ptr + 2 * stride_c + offset, mask=mask, other=0).to(dtype)
        return r, g, b
