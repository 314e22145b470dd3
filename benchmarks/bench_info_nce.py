"""InfoNCE, forward and backward: NT-Xent over two views (key is query) and one direction of query against key.

NT-Xent over 2N rows:   mean_i  -s[i, +] + log sum_{j != i} exp s[i, j]         SimCLR Eq. 1
query against key:      mean_i  -s[i, i] + log sum_j exp s[i, j]                CPC Eq. 4

Floor: 2 M^2 D FLOPs forward; 6 M^2 D with backward where key is query, 8 M P D otherwise. The exponentials, one for
each pair and pass, are not counted.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor

from dclr.commands.bench import run_under
from dclr.kernels import info_nce
from dclr.kernels._common import device_class, device_row
from dclr.kernels.info_nce.launch import CONFIGS

from .harness import COMPILED, OURS, REFERENCE, Problem, Run, compiled, missing, with_gradients

TEMPERATURE = 0.1


@dataclass(frozen=True)
class Size:
    """`rows` x `dim` of query (and key); `shared` where the query is the key."""

    rows: int
    dim: int = 128
    shared: bool = True

    def __str__(self) -> str:
        return f"{'ntxent' if self.shared else 'cross'}-{self.rows}x{self.dim}"


SIZES = {
    "tiny": [Size(14, 16), Size(9, 16, shared=False)],
    "cpu": [Size(80), Size(512), Size(1024), Size(512, shared=False)],
    "cuda": [
        *(Size(rows, shared=shared) for shared in (True, False) for rows in (80, 512, 4096, 16384, 65536)),
        Size(16384, 512, shared=False),
    ],
}


def test_info_nce(size, device, measuring, bench):
    bench(problem(size, device, measuring))


def test_info_nce_forward(size, device, measuring, bench):
    bench(problem(size, device, measuring, backward=False))


def problem(size: Size, device: torch.device, measuring: bool, backward: bool = True) -> Problem:
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    generator = torch.Generator().manual_seed(0)
    leaves = [torch.randn(size.rows, size.dim, generator=generator) for _ in range(1 if size.shared else 2)]
    leaves = [leaf.to(device, dtype).requires_grad_(backward) for leaf in leaves]
    positive = torch.arange(size.rows, device=device)
    exclude = None
    if size.shared:
        exclude, positive = positive, positive.roll(size.rows // 2)

    def ours(query: Tensor, key: Tensor | None = None) -> Tensor:
        return info_nce(
            query, query if key is None else key, positive=positive, exclude=exclude, temperature=TEMPERATURE
        )

    def plain(query: Tensor, key: Tensor | None = None) -> Tensor:
        unit = F.normalize(query.float(), dim=1).to(query.dtype)
        other = unit if key is None else F.normalize(key.float(), dim=1).to(key.dtype)
        logits = (unit @ other.T).float() / TEMPERATURE
        if exclude is not None:
            logits = logits.scatter(1, exclude[:, None], -torch.inf)
        return F.cross_entropy(logits, positive)

    def run(function):
        return with_gradients(function, *leaves) if backward else lambda: (function(*leaves),)

    elements = size.rows * size.dim * len(leaves)
    matmuls = 1 if not backward else 3 if size.shared else 4
    result = Problem(
        name=f"info_nce {'forward and backward' if backward else 'forward'} {size} {str(dtype).removeprefix('torch.')}",
        dtype=dtype,
        device=device,
        expected=lambda: chunked(leaves, positive, exclude, backward),
        variants={REFERENCE: run(plain), COMPILED: run(compiled(plain, measuring)), OURS: run(ours)},
        bytes=elements * dtype.itemsize * (2 if backward else 1),
        flops=matmuls * 2 * size.rows**2 * size.dim,
    )
    if device.type == "cuda":
        result.variants["ours, descriptors"] = through_descriptors(result.variants[OURS], device)
    add_peers(result, size, run)
    return result


def through_descriptors(run: Run, device: torch.device) -> Run:
    """The same, with the rows that pass by through tensor descriptors, whatever the table of the card says."""
    row = dict(device_row(CONFIGS, device))
    for kind in row.keys() - {"finish"}:
        row[kind] = {size: replace(tile, descriptor=True) for size, tile in row[kind].items()}
    return lambda: run_under(CONFIGS, device_class(device), row, run)


def chunked(leaves: list[Tensor], positive: Tensor, exclude: Tensor | None, backward: bool) -> tuple[Tensor, ...]:
    """The loss and its gradients written out by hand, `step` rows of the similarity matrix at a time, in float32
    (float64 on a CPU)."""
    wide = torch.float32 if leaves[0].is_cuda else torch.float64
    inputs = [leaf.detach().to(wide).requires_grad_() for leaf in leaves]
    units = [F.normalize(x, dim=1) for x in inputs]
    query, key = units[0].detach(), units[-1].detach()
    grad_query, grad_key = torch.zeros_like(query), torch.zeros_like(key)
    losses, step = [], max(2**26 // len(key), 1)
    for start in range(0, len(query), step):
        rows = slice(start, start + step)
        logits = query[rows] @ key.T / TEMPERATURE
        if exclude is not None:
            logits.scatter_(1, exclude[rows, None], -torch.inf)
        losses.append(logits.logsumexp(1) - logits.gather(1, positive[rows, None]).squeeze(1))
        slope = logits.softmax(1)
        slope.scatter_add_(1, positive[rows, None], torch.full_like(losses[-1], -1)[:, None])
        slope /= TEMPERATURE * len(query)
        grad_query[rows] += slope @ key
        grad_key += slope.T @ query[rows]
    loss = torch.cat(losses).mean()
    if not backward:
        return (loss,)
    slopes = [grad_query + grad_key] if len(leaves) == 1 else [grad_query, grad_key]
    return (loss, *torch.autograd.grad(units, inputs, slopes))


def add_peers(problem: Problem, size: Size, run) -> None:
    """Each peer by its own interface; `run` makes it a variant of the same leaves."""
    half = size.rows // 2
    if not missing(problem, "memeff", "memeff"):
        from memeff import MemoryEfficientQwen3Loss

        # margin >= 2 switches its false-negative mask off; stable=True would rescale the gradient.
        loss = MemoryEfficientQwen3Loss(TEMPERATURE, margin=2.0, stable=False, use_qq_negatives=size.shared)

        def memeff(query, key=None):
            if key is not None:
                return loss(query, key)
            views = query[:half], query[half:]
            return 0.5 * (loss(*views) + loss(*reversed(views)))

        problem.variants["memeff"] = run(memeff)

    if size.shared:
        for peer in ("inf-cl", "siglip-kernel"):
            problem.left_out[peer] = "has no loss with the own row excluded"
        if not missing(problem, "lightly", "lightly.loss", needs_cuda=False):
            from lightly.loss import NTXentLoss

            ntxent = NTXentLoss(TEMPERATURE)
            problem.variants["lightly"] = run(lambda z: ntxent(z[:half], z[half:]))
        if size.rows > 512:
            problem.left_out["pytorch-metric-learning"] = "needs memory of M^3 numbers"
        elif not missing(problem, "pytorch-metric-learning", "pytorch_metric_learning.losses", needs_cuda=False):
            from pytorch_metric_learning.losses import NTXentLoss as PairedNTXentLoss

            paired, video = PairedNTXentLoss(TEMPERATURE), torch.arange(size.rows, device=problem.device) % half
            problem.variants["pytorch-metric-learning"] = run(lambda z: paired(z, video))
        return

    for peer in ("lightly", "pytorch-metric-learning"):
        problem.left_out[peer] = "has no loss of query against key in one direction"
    if not missing(problem, "inf-cl", "inf_cl"):
        from inf_cl import cal_flash_loss

        def inf_cl(query, key):
            unit, other = F.normalize(query, dim=1), F.normalize(key, dim=1)
            return cal_flash_loss(unit, other, scale=1 / TEMPERATURE, head_dim=128).mean()

        problem.variants["inf-cl"] = run(inf_cl)
    if not missing(problem, "siglip-kernel", "siglip_kernel"):
        from siglip_kernel import fused_siglip_loss

        log_scale, bias = torch.tensor(1 / TEMPERATURE).log().to(problem.device), torch.zeros((), device=problem.device)
        problem.variants["siglip-kernel"] = run(
            lambda query, key: fused_siglip_loss(F.normalize(query, dim=1), F.normalize(key, dim=1), log_scale, bias)
        )
        problem.other_functions.add("siglip-kernel")
