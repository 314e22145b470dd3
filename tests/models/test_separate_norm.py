"""Batch statistics of each part of a batch: against one norm for each part; classes, buffers, evaluation."""

import copy

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
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


def _per_channel(values):
    return values.view(1, -1, 1, 1, 1)


def _stats(x, eps):
    return x.mean((0, 2, 3, 4)), (x.var((0, 2, 3, 4), correction=0) + eps).rsqrt()


def _gather_stats(x, means, inverses, running_mean, running_var, momentum, eps, counts):
    share = (counts / counts.sum())[:, None]
    mean = (means * share).sum(0)
    var = ((inverses**-2 - eps + (means - mean) ** 2) * share).sum(0)
    if running_mean is not None:
        running_mean.lerp_(mean, momentum)
        running_var.lerp_(var * counts.sum() / (counts.sum() - 1), momentum)
    return mean, (var + eps).rsqrt()


def _normalize(x, weight, bias, mean, inverse, eps):
    return (x - _per_channel(mean)) * _per_channel(inverse * weight) + _per_channel(bias)


def _reduce(gradient, x, mean, inverse, weight, *wanted):
    total, by_x = (part.sum((0, 2, 3, 4)) for part in (gradient, gradient * (x - _per_channel(mean))))
    return total, by_x, by_x * inverse, total


def _input_gradient(gradient, x, mean, inverse, weight, total, by_x, counts):
    through_mean, through_var = _per_channel(total / counts.sum()), _per_channel(by_x * inverse**2 / counts.sum())
    return (gradient - through_mean - (x - _per_channel(mean)) * through_var) * _per_channel(inverse * weight)


# PyTorch has these for GPUs alone; what `nn.SyncBatchNorm` exchanges between the processes is its own.
OF_GPUS = {
    "batch_norm_stats": _stats,
    "batch_norm_gather_stats_with_counts": _gather_stats,
    "batch_norm_elemt": _normalize,
    "batch_norm_backward_reduce": _reduce,
    "batch_norm_backward_elemt": _input_gradient,
}
PARTS, SAMPLES, STEPS = 3, 4, 3


def _trained(rank=0, world=1):
    """Of some steps of gradient descent: the last outputs, their inputs' gradients and, over all ranks, the state.

    The outputs and gradients are (parts, samples, ...) of this rank's samples.
    """
    torch.default_generator.manual_seed(0)
    encoder = nn.Sequential(nn.Conv3d(2, 4, 3, padding=1), nn.BatchNorm3d(4), nn.ReLU(), nn.Conv3d(4, 3, 1)).double()
    encoder.append(nn.BatchNorm3d(3).double())
    if world > 1:
        encoder = nn.SyncBatchNorm.convert_sync_batchnorm(encoder)
    separate_statistics(encoder, PARTS)
    own = slice(rank * SAMPLES // world, (rank + 1) * SAMPLES // world)
    for _ in range(STEPS):
        scale = torch.arange(1, PARTS * SAMPLES + 1).view(PARTS, SAMPLES, 1, 1, 1, 1)
        whole = torch.randn(PARTS, SAMPLES, 2, 3, 4, 4, dtype=torch.float64) * scale
        weight = torch.randn(PARTS, SAMPLES, 3, 3, 4, 4, dtype=torch.float64)[:, own]
        x = whole[:, own].clone().requires_grad_()
        out = encoder(x.flatten(0, 1)).unflatten(0, (PARTS, -1))
        encoder.zero_grad()
        (out * weight).sum().backward()
        for parameter in encoder.parameters():
            if world > 1:
                dist.all_reduce(parameter.grad)
            parameter.data -= 1e-3 * parameter.grad
    return out.detach(), x.grad, encoder.state_dict()


def _process(rank, store, result):
    torch.set_num_threads(1)
    torch._C._get_privateuse1_backend_name = lambda: "cpu"  # a device that synchronised norms are allowed on
    for name, function in OF_GPUS.items():
        setattr(torch, name, function)
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=2)
    torch.save(_trained(rank, 2), f"{result}{rank}.pt")
    dist.destroy_process_group()


def test_two_processes_normalise_as_one(tmp_path):
    """Outputs, gradients, parameters, running statistics and counts of steps."""
    mp.start_processes(_process, (tmp_path / "store", tmp_path / "result"), nprocs=2, start_method="spawn")
    out, gradient, state = _trained()
    for rank in range(2):
        mine, my_gradient, my_state = torch.load(f"{tmp_path / 'result'}{rank}.pt")
        own = slice(rank * SAMPLES // 2, (rank + 1) * SAMPLES // 2)
        torch.testing.assert_close(mine, out[:, own])
        torch.testing.assert_close(my_gradient, gradient[:, own])
        torch.testing.assert_close(my_state, state)


def test_what_is_no_number_in_another_part_does_not_reach_the_running_statistics():
    norm = nn.SyncBatchNorm(3)
    separate_statistics(norm, 2)
    x = torch.randn(4, 3, 2, 2, 2)
    x[2] = torch.nan
    norm(x)
    assert norm.running_mean.isfinite().all() and norm.running_var.isfinite().all()
    assert norm.num_batches_tracked == 1 and norm.momentum == 0.1 and norm.track_running_stats
