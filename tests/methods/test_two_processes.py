"""Two gloo processes give the losses and gradients of one, with search on."""

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from dclr.augment import AugmentConfig, Draw, Streams
from dclr.data.clips import Batch
from dclr.distributed import gather_rows
from dclr.methods import DCLRConfig, SimCLRConfig, build_method
from dclr.methods.search import SearchConfig

from .test_dclr import TinyEncoder, batch_of

VIDEOS, STEPS = 4, 3
CONFIGS = {
    "dclr": DCLRConfig(hidden=8, dim=4, search=SearchConfig(on=("s", "d"), queue=8, start=0, refresh=1, k=3)),
    "joint": DCLRConfig(hidden=8, dim=4, denominator="joint", symmetric=True, search=SearchConfig(on=())),
    "batch": DCLRConfig(hidden=8, dim=4, sd_bound="batch", search=SearchConfig(on=())),
    "literal": DCLRConfig(hidden=8, dim=4, denominator="literal", same_view=True, search=SearchConfig(on=())),
    "simclr": SimCLRConfig(hidden=8, dim=4),
}


def train(name, rank=0, world=1):
    """Losses of every step and the gradients of the last, as DistributedDataParallel would average them.

    In float64: gradients to a bias are small differences of large sums.
    """
    torch.manual_seed(0)
    method = build_method(CONFIGS[name], TinyEncoder(), AugmentConfig()).double()
    rgb, streams = method.augment.rgb, method.augment.streams
    method.augment.rgb = lambda *args: rgb(*args).double()
    method.augment.streams = lambda *args: Streams(*(clip.double() for clip in streams(*args)))
    method.start_epoch(10)
    method.eval()  # BatchNorm by running statistics: without SyncBN ranks would differ by theirs
    losses, own = [], VIDEOS // world
    for step in range(STEPS):
        whole = batch_of(VIDEOS, seed=step, first_id=VIDEOS * step)
        rows = slice(rank * own, (rank + 1) * own)
        batch = Batch(whole.clips[:, rows], whole.video_id[rows], whole.label[rows])
        output = method(batch, Draw(torch.Generator().manual_seed(step), rank, world))
        method.zero_grad()
        sum(weight * output.losses[term] for term, weight in method.loss_weights.items()).backward()
        method.after_step()
        values = torch.stack([output.losses[term].detach() for term in sorted(output.losses)])
        losses.append(gather_rows(values[None]).mean(0))
    gradients = [p.grad for p in method.parameters() if p.grad is not None]
    if world > 1:
        for gradient in gradients:
            dist.all_reduce(gradient)
    search = getattr(method, "search", None)
    queue = [] if search is None else [buffer for q in search.queues.values() for buffer in q.buffers()]
    return torch.stack(losses), [gradient / world for gradient in gradients], queue


def _process(rank, name, store, result):
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=2)
    torch.save(train(name, rank, 2), f"{result}{rank}.pt")
    dist.destroy_process_group()


@pytest.mark.parametrize("name", CONFIGS)
def test_two_processes_equal_one(name, tmp_path):
    mp.start_processes(_process, (name, tmp_path / "store", tmp_path / "result"), nprocs=2, start_method="spawn")
    expected = train(name)
    for rank in range(2):
        losses, gradients, queue = torch.load(f"{tmp_path / 'result'}{rank}.pt")
        torch.testing.assert_close(losses, expected[0], atol=1e-5, rtol=1e-5)
        assert len(gradients) == len(expected[1]) > 0
        for got, wanted in zip(gradients, expected[1]):
            torch.testing.assert_close(got, wanted, atol=1e-5, rtol=1e-5)
        for got, wanted in zip(queue, expected[2]):
            torch.testing.assert_close(got, wanted, atol=1e-5, rtol=1e-5)
