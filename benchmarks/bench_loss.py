"""The contrastive loss of a DCLR step after the search has begun, forward and backward, float32.

L_VS and L_SD over 2n clips, Eq. 10 with K retrieved entries instead of L_VD:

    in-batch:   2 mean_i      -s[i, +] + log sum over its positive and other videos' keys of exp s        DCLR Eq. 6-8
    Eq. 10:     sum_k p_k / n [I(v_i; d~_k) + I(v~_k; d_i)], negatives of d~ from the queue, of d from the batch, of
                neither the own nor the retrieved video

Floor: 8 M P D FLOPs of M queries against P keys.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from dclr.methods.contrast import CrossTerm, Term
from dclr.methods.packing import packed_losses
from dclr.methods.search import non_negative_rows

from .harness import COMPILED, OURS, REFERENCE, Problem, compiled, with_gradients

TEMPERATURE = 0.07


@dataclass(frozen=True)
class Size:
    """Two views of `videos`, features, and entries retrieved for a clip."""

    videos: int
    dim: int = 128
    entries: int = 5

    def __str__(self) -> str:
        return f"2x{self.videos}x{self.dim}-{self.entries}"


SIZES = {
    "tiny": [Size(4, 8, 2)],
    "cpu": [Size(40)],
    "cuda": [Size(videos) for videos in (40, 256, 1024)],
}


def test_loss(size, device, measuring, bench):
    bench(problem(size, device, measuring))


def problem(size: Size, device: torch.device, measuring: bool) -> Problem:
    generator, n = torch.Generator().manual_seed(0), size.videos

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, size.dim, generator=generator).to(device)

    leaves = [normal(2 * n).requires_grad_() for _ in range(4)]
    rgb, mode, entries = normal(n, size.entries), normal(n, size.entries), normal(2 * n)
    weight = torch.rand(n, size.entries, generator=generator).to(device)
    # Of the retrieved videos every other one is in the batch.
    video = torch.randint(2 * n, (n, size.entries), generator=generator)
    exclude = non_negative_rows(video, torch.arange(n), 0).to(device)
    entry_exclude = torch.randint(2 * n, exclude.shape, generator=generator).to(device)

    def ours(vs: Tensor, vd: Tensor, s: Tensor, d: Tensor) -> Tensor:
        crossing = CrossTerm(vd, d, rgb, mode, weight, exclude, entries, entry_exclude)
        static, apart, difference = packed_losses(
            [Term(vs, s), Term(s, d, same_view=True)], TEMPERATURE, crossing=[crossing]
        ).unbind()
        return static - apart + difference

    def plain(vs: Tensor, vd: Tensor, s: Tensor, d: Tensor) -> Tensor:
        own = torch.arange(2 * n, device=vs.device)
        other, wide = own.roll(n), vd.dtype
        static, apart = in_batch(vs, s, other, own), in_batch(s, d, own, other)
        query, stored, positive = (F.normalize(x, dim=-1) for x in (vd[:n, None], rgb.to(wide), mode.to(wide)))
        key = F.normalize(d, dim=-1)
        entry = F.normalize(entries.to(wide), dim=-1)
        values = eq10(query, positive, entry, entry_exclude) + eq10(stored, key[:n, None], key, exclude)
        return static - apart + (weight.to(wide) * values).sum() / n

    queries = 2 * (2 * n) + 2 * n * size.entries
    return Problem(
        name=f"loss of a step {size} float32",
        dtype=torch.float32,
        device=device,
        expected=with_gradients(plain, *(leaf.detach().double().requires_grad_() for leaf in leaves)),
        variants={
            REFERENCE: with_gradients(plain, *leaves),
            COMPILED: with_gradients(compiled(plain, measuring), *leaves),
            OURS: with_gradients(ours, *leaves),
        },
        bytes=4 * (2 * sum(leaf.numel() for leaf in leaves) + rgb.numel() + mode.numel() + entries.numel()),
        flops=8 * queries * 2 * n * size.dim,
    )


def in_batch(anchor: Tensor, key: Tensor, positive: Tensor, exclude: Tensor) -> Tensor:
    logits = F.normalize(anchor, dim=1) @ F.normalize(key, dim=1).T / TEMPERATURE
    return 2 * F.cross_entropy(logits.scatter(1, exclude[:, None], -torch.inf), positive)


def eq10(query: Tensor, positive: Tensor, key: Tensor, exclude: Tensor) -> Tensor:
    """(n, K) losses of unit rows (n, 1 or K, D) with positives (n, 1 or K, D), negatives `key` but `exclude`."""
    own = (query * positive).sum(-1) / TEMPERATURE
    logits = (query @ key.T / TEMPERATURE).expand(*exclude.shape[:2], -1)
    left = torch.zeros(*logits.shape[:2], logits.shape[2] + 1, dtype=torch.bool, device=key.device)
    left = left.scatter(2, exclude % left.shape[2], True)[..., :-1]  # -1 falls on the column past the last
    return torch.cat([own[..., None], logits.masked_fill(left, -torch.inf)], 2).logsumexp(2) - own
