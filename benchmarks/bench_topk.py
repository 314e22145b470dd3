"""`topk_similarity`: the K most similar rows of a queue. All variants get rows of unit length; ours normalises again.

Floor: the queue read once; 2 M L D FLOPs.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from dclr.kernels import topk_similarity

from .harness import COMPILED, OURS, REFERENCE, Problem, compiled, missing


@dataclass(frozen=True)
class Size:
    """`rows` queries against `length` rows of the queue."""

    rows: int
    length: int
    dim: int = 128
    k: int = 5

    def __str__(self) -> str:
        return f"{self.rows}-of-{self.length}x{self.dim}-k{self.k}"


SIZES = {
    "tiny": [Size(3, 37, 16), Size(9, 64, 24, k=3)],
    "cpu": [Size(80, 2048), Size(80, 16384)],
    "cuda": [Size(rows, length) for rows in (80, 512) for length in (2048, 16384, 1 << 20)],
}


def test_topk(size, device, measuring, bench):
    bench(problem(size, device, measuring))


def problem(size: Size, device: torch.device, measuring: bool) -> Problem:
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    generator = torch.Generator(device).manual_seed(0)
    query, queue = (
        F.normalize(torch.randn(n, size.dim, generator=generator, device=device), dim=1).to(dtype)
        for n in (size.rows, size.length)
    )

    def plain(query: Tensor, queue: Tensor) -> tuple[Tensor, Tensor]:
        return (query @ queue.T).topk(size.k)

    def run(search):
        return lambda: tuple(search(query, queue))

    def compared(outputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        """The similarities of the rows named by the indices: equal for every right answer, whatever breaks a tie."""
        values, indices = outputs
        return values, torch.einsum("md,mkd->mk", query.float(), queue[indices.long()].float())

    def expected() -> tuple[Tensor, ...]:
        values = (query.float() @ queue.float().T).topk(size.k).values
        return values, values

    result = Problem(
        name=f"topk_similarity {size} {str(dtype).removeprefix('torch.')}",
        dtype=dtype,
        device=device,
        expected=expected,
        variants={
            REFERENCE: run(plain),
            COMPILED: run(compiled(plain, measuring)),
            OURS: run(lambda query, queue: topk_similarity(query, queue, size.k)),
        },
        bytes=(size.rows + size.length) * size.dim * dtype.itemsize + size.rows * size.k * 12,
        flops=2 * size.rows * size.length * size.dim,
        compared=compared,
    )
    add_peers(result, size, run)
    return result


def add_peers(problem: Problem, size: Size, run) -> None:
    if not missing(problem, "flashlib", "flashlib"):
        from flashlib import flash_knn

        def flashlib_search(query, queue):
            distances, indices = flash_knn(query, queue, size.k)  # squared, of unit vectors
            return 1 - distances / 2, indices

        problem.variants["flashlib"] = run(flashlib_search)
    if not missing(problem, "faiss", "faiss.contrib.torch_utils", needs_cuda=False):
        import faiss
        import faiss.contrib.torch_utils

        if problem.device.type == "cpu":
            search = faiss.knn
        elif hasattr(faiss, "StandardGpuResources"):
            resources = faiss.StandardGpuResources()
            search = lambda *args, **kwargs: faiss.knn_gpu(resources, *args, **kwargs)  # noqa: E731
        else:
            problem.left_out["faiss"] = "this build has no GPU part"
            return
        problem.variants["faiss"] = run(
            lambda query, queue: search(query, queue, size.k, metric=faiss.METRIC_INNER_PRODUCT)
        )
