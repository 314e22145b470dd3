"""Bytes and FLOPs of the search: the queue is read once for each block of queries, and K tiles of it for each query."""

import pytest
import torch

from benchmarks.traffic import count_traffic
from dclr.kernels import topk_similarity

K = 5


def chosen(rows, queue, tile):
    """Bytes of the K tiles that each query looks at closely."""
    return rows * K * tile * queue.shape[1] * queue.element_size()


def maxima(rows, queue, tile):
    """Bytes of the best cosine of each tile, and of each tile's part, written and read."""
    return 4 * 4 * rows * -(-len(queue) // tile)


@pytest.mark.parametrize("rows", [60, 128])
def test_queue_is_read_once(rows):
    query, queue = torch.randn(rows, 128).bfloat16(), torch.randn(8192, 128).bfloat16()
    with count_traffic() as traffic:
        topk_similarity(query, queue, K)
    assert traffic.launches == traffic.device_ops == 2 and traffic.syncs == 0
    least = query.nbytes + queue.nbytes
    assert least <= traffic.bytes <= 1.1 * least + chosen(rows, queue, 64) + maxima(rows, queue, 64)


@pytest.mark.parametrize("dtype, features, tile", [(torch.bfloat16, 512, 64), (torch.float32, 64, 32)], ids=str)
def test_long_rows(dtype, features, tile):
    """A query that does not fit is read again with each tile of the queue, which is still read once."""
    query, queue = torch.randn(20, features).to(dtype), torch.randn(512, features).to(dtype)
    with count_traffic() as traffic:
        topk_similarity(query, queue, K)
    least = queue.nbytes + query.nbytes * (len(queue) // tile)
    assert least <= traffic.bytes <= 1.15 * least + chosen(20, queue, tile) + maxima(20, queue, tile)


def test_blocks_of_queries_read_it_each():
    query, queue = torch.randn(300, 64).bfloat16(), torch.randn(2048, 64).bfloat16()
    with count_traffic() as traffic:
        topk_similarity(query, queue, K)
    least = 3 * queue.nbytes + query.nbytes
    assert least <= traffic.bytes <= 1.2 * least + chosen(300, queue, 64) + maxima(300, queue, 64)
    assert traffic.dot_flops == 2 * 384 * 2048 * 64
