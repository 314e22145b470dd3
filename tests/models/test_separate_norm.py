"""Batch statistics of each part of a batch: against one norm for each part; classes, buffers, evaluation."""

import copy

import pytest
import torch
from torch import nn

from dclr.models.separate_norm import SeparateBatchNorm3d, SeparateSyncBatchNorm, separate_statistics


@pytest.mark.parametrize("parts", [1, 2, 3])
def test_each_part_has_its_own_statistics(parts):
    torch.manual_seed(0)
    norm = nn.BatchNorm3d(5).double()
    nn.init.normal_(norm.weight)
    alone = [copy.deepcopy(norm) for _ in range(parts)]
    separate_statistics(norm, parts)
    x = torch.randn(2 * parts, 5, 3, 4, 4, dtype=torch.float64) * torch.arange(1, 2 * parts + 1).view(-1, 1, 1, 1, 1)
    got, expected = x.clone().requires_grad_(), x.clone().requires_grad_()
    weight = torch.randn_like(x)
    (norm(got) * weight).sum().backward()
    outputs = torch.cat([one(part) for one, part in zip(alone, expected.chunk(parts))])
    (outputs * weight).sum().backward()
    torch.testing.assert_close(norm.train()(x), outputs)
    torch.testing.assert_close(got.grad, expected.grad)
    torch.testing.assert_close(norm.weight.grad, sum(one.weight.grad for one in alone))


def test_running_statistics_are_of_the_first_part():
    norm, alone = nn.BatchNorm3d(3), nn.BatchNorm3d(3)
    separate_statistics(norm, 2)
    x = torch.randn(4, 3, 2, 2, 2)
    norm(x), alone(x[:2])
    torch.testing.assert_close(dict(norm.named_buffers()), dict(alone.named_buffers()))
    torch.testing.assert_close(norm.eval()(x), alone.eval()(x))
    assert list(norm.state_dict()) == list(alone.state_dict())


def test_synchronised_norms_are_switched_too():
    """Also those that were separate before they were synchronised."""
    encoder = nn.Sequential(nn.Conv3d(3, 4, 1), nn.BatchNorm3d(4))
    separate_statistics(encoder, 3)
    assert type(encoder[1]) is SeparateBatchNorm3d
    encoder = nn.SyncBatchNorm.convert_sync_batchnorm(encoder)
    separate_statistics(encoder, 2)
    assert type(encoder[1]) is SeparateSyncBatchNorm and encoder[1].parts == 2
    assert encoder.eval()(torch.zeros(1, 3, 2, 2, 2)).shape == (1, 4, 2, 2, 2)
