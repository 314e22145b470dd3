"""Bytes and FLOPs of the search: the queue is read once for each block of queries."""

import pytest
import torch

from benchmarks.traffic import count_traffic
from dclr.kernels import topk_similarity


@pytest.mark.parametrize("rows", [60, 128])
def test_queue_is_read_once(rows):
    query, queue = torch.randn(rows, 128).bfloat16(), torch.randn(8192, 128).bfloat16()
    with count_traffic() as traffic:
        topk_similarity(query, queue, 5)
    assert traffic.launches == traffic.device_ops == 2 and traffic.syncs == 0
    hold(traffic.bytes, query.nbytes + queue.nbytes, 1.1)


@pytest.mark.parametrize("dtype, features, tile", [(torch.bfloat16, 512, 64), (torch.float32, 64, 32)], ids=str)
def test_long_rows(dtype, features, tile):
    """A query that does not fit is read again with each tile of the queue, which is still read once."""
    query, queue = torch.randn(20, features).to(dtype), torch.randn(512, features).to(dtype)
    with count_traffic() as traffic:
        topk_similarity(query, queue, 5)
    hold(traffic.bytes, queue.nbytes + query.nbytes * (len(queue) // tile), 1.15)


def test_blocks_of_queries_read_it_each():
    query, queue = torch.randn(300, 64).bfloat16(), torch.randn(2048, 64).bfloat16()
    with count_traffic() as traffic:
        topk_similarity(query, queue, 5)
    hold(traffic.bytes, 3 * queue.nbytes + query.nbytes, 1.2)
    assert traffic.dot_flops == 2 * 384 * 2048 * 64


def hold(count, floor, factor):
    """At most `factor` floors, and no less than one: a kernel that did not run has no traffic."""
    assert floor <= count <= factor * floor, f"{count} is {count / floor:.4f} of the floor, {floor}"
