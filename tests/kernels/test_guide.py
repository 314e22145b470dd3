"""The kernel of docs/guides/add_kernel.md: its reference here, its Triton form under the interpreter."""

import pytest
import torch

from tests.docs.guides import blocks_of, module_of

from .helpers import LAYOUTS, SHAPES, assert_close, lay_out


@pytest.fixture(scope="module")
def kernel(tmp_path_factory):
    (code,) = blocks_of("add_kernel")
    return module_of(code, tmp_path_factory.mktemp("guide") / "motion_energy.py")


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("shape", [shape for shape in SHAPES if shape[2] > 1])
def test_against_float64(kernel, shape, layout, dtype):
    values = torch.randn(shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    clip = lay_out(values.to(dtype), layout)
    energy = kernel.motion_energy(clip)
    assert energy.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    exact = (clip.double()[:, :, 1:] - clip.double()[:, :, :-1]).square().mean((1, 2, 3, 4))
    assert_close(energy, exact, energy.dtype, clip[0].numel())


def test_the_op_and_its_gradient(kernel):
    clip = torch.randn(3, 2, 3, 2, 2, requires_grad=True)
    torch.library.opcheck(torch.ops.dclr.motion_energy.default, (clip,))
    torch.autograd.gradcheck(kernel.motion_energy, clip.detach().double().requires_grad_())


def test_edges(kernel):
    empty = torch.randn(0, 2, 3, 2, 2, requires_grad=True)
    energy = kernel.motion_energy(empty)
    energy.sum().backward()
    assert energy.shape == (0,) and empty.grad.shape == empty.shape
    clip = torch.randn(3, 2, 3, 4, 4)
    clip[1, 0, 1, 2, 2] = torch.nan
    assert kernel.motion_energy(clip).isnan().tolist() == [False, True, False]
    with pytest.raises(ValueError, match=r"clip: got .* expected at least 2 frames"):
        kernel.motion_energy(clip[:, :, :1])
    with pytest.raises(TypeError, match=r"clip: got torch\.uint8"):
        kernel.motion_energy(clip.byte())
