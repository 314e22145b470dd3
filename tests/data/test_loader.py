import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from dclr.data import (
    Batch,
    DatasetError,
    EpochSampler,
    EvaluationClips,
    PretrainClips,
    VideoDataset,
    build_evaluation_loader,
    build_pretrain_loader,
)
from dclr.data.loader import to_device

SIGNALLED = """
import signal, sys
from dclr.data import PretrainClips, VideoDataset, build_pretrain_loader

if __name__ == "__main__":
    videos = VideoDataset("test", 8 * (sys.argv[1],), tuple(range(8)), ())
    loader = build_pretrain_loader(PretrainClips(videos, frames=3, size=16), 1, workers=2)
    noted = []
    signal.signal(signal.SIGINT, lambda number, frame: noted.append(number))
    signal.signal(signal.SIGTERM, lambda number, frame: noted.append(number))
    signal.signal(signal.SIGHUP, lambda number, frame: noted.append(number))
    batches = iter(loader)
    next(batches)
    print("ready", flush=True)
    while len(noted) < int(sys.argv[2]):
        signal.pause()
    print(*noted, 1 + sum(1 for _ in batches))
"""


needs_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")


def dataset_of(*paths):
    return VideoDataset("test", tuple(map(str, paths)), tuple(range(len(paths))), ())


def pretrain_clips(files, **options):
    videos = dataset_of(files["h264"], files["avi"], files["text"], files["header"], files["variable rate"])
    return PretrainClips(videos, frames=3, size=16, **options)


def test_every_epoch_is_another_permutation():
    sampler = EpochSampler(20, 5, seed=3)
    epochs = []
    for epoch in range(3):
        sampler.set_epoch(epoch)
        batches = list(sampler)
        assert len(batches) == len(sampler) == 4
        assert all(at == epoch for batch in batches for at, *_ in batch)
        epochs.append([index for batch in batches for _, index, *_ in batch])
        assert sorted(epochs[-1]) == list(range(20))
    assert len({tuple(order) for order in epochs}) == 3
    assert [[key[:2] for key in batch] for batch in EpochSampler(20, 5, seed=3)] == [
        [(0, i) for i in row] for row in np.reshape(epochs[0], (4, 5))
    ]
    assert list(EpochSampler(20, 5, seed=4)) != list(EpochSampler(20, 5, seed=3))


@pytest.mark.parametrize("length, batch_size", [(60, 5), (13, 5), (10, 5), (8, 5), (6, 5), (5, 5)])
def test_stand_ins_are_of_other_batches(length, batch_size):
    for batch in EpochSampler(length, batch_size):
        own, stand_ins = {key[1] for key in batch}, [index for key in batch for index in key[2:]]
        assert not own & set(stand_ins)
        assert all(len(key) > 2 for key in batch) or length == batch_size
        if length >= 2 * batch_size:
            assert len(stand_ins) == len(set(stand_ins)) == min(length - batch_size, 9 * batch_size)


def test_ranks_share_out_each_global_batch():
    whole = list(EpochSampler(26, 8, seed=1))
    ranks = [list(EpochSampler(26, 8, seed=1, rank=rank, world=4)) for rank in range(4)]
    assert len(whole) == 3
    assert [[key for part in parts for key in part] for parts in zip(*ranks)] == whole


def test_resume_continues_the_epoch():
    sampler = EpochSampler(26, 8)
    sampler.set_epoch(5)
    whole = list(sampler)
    sampler.set_epoch(5, start_step=2)
    assert list(sampler) == whole[2:] and len(sampler) == 1


@pytest.mark.parametrize(
    "length, batch_size, world, message",
    [
        (9, 10, 1, "a batch of 10 does not fit a dataset of 9 videos"),
        (9, 0, 1, "a batch of 0"),
        (9, 6, 4, "a batch of 6 does not divide among 4 processes"),
    ],
)
def test_batches_that_cannot_be(length, batch_size, world, message):
    with pytest.raises(ValueError, match=message):
        EpochSampler(length, batch_size, world=world)


def test_a_clip_longer_than_every_video(files):
    with pytest.raises(DatasetError, match="the longest of the 1 videos has 30"):
        build_pretrain_loader(PretrainClips(dataset_of(files["h264"])), 1)


def test_batches_do_not_depend_on_workers_ranks_or_resuming(files, monkeypatch):
    """Two worker processes, two ranks and a resumed epoch give the batches of a plain run."""
    clips = pretrain_clips(files, seed=7)
    plain = build_pretrain_loader(clips, 2)
    parallel = build_pretrain_loader(pretrain_clips(files, seed=7), 2, workers=2)
    ranks = [build_pretrain_loader(clips, 2, rank=rank, world=2) for rank in range(2)]
    for epoch in range(2):
        for loader in (plain, parallel, *ranks):
            loader.batch_sampler.set_epoch(epoch)
        expected = list(plain)
        assert len(expected) == 2
        for batch, got, *parts in zip(expected, parallel, *ranks):
            assert batch.clips.shape == (2, 2, 4, 16, 16, 3)
            shared = torch.cat([part.clips for part in parts], dim=1)
            assert torch.equal(got.clips, batch.clips) and torch.equal(shared, batch.clips)
            assert torch.equal(got.video_id, batch.video_id) and torch.equal(got.label, batch.label)
            assert list(map(str, got.failures)) == list(map(str, batch.failures))
        parallel.batch_sampler.set_epoch(epoch, start_step=1)
        [resumed] = parallel
        assert torch.equal(resumed.clips, expected[1].clips)
    # What the workers counted is known here: five videos, one of them unreadable.
    monkeypatch.setattr(
        "dclr.data.index.learn", lambda path, held: pytest.fail(f"{path} is decoded as a whole once more")
    )
    paths = parallel.dataset.dataset.paths
    assert [parallel.dataset.videos.count(index) for index in range(5) if "text" not in paths[index]] == 4 * [30]


def test_failures_reach_the_loop(files):
    loader = build_pretrain_loader(pretrain_clips(files), 5)
    [batch] = loader
    assert str(files["text"]) in [failure.path for failure in batch.failures]
    assert batch.video_id.shape == (5,) and 2 not in batch.video_id.tolist()


def test_a_stand_in_is_no_video_of_the_batch(files):
    """One file of ten cannot be read, and whichever batch it is in has other videos beside it."""
    videos = dataset_of(*9 * [files["h264"]], files["text"])
    for batch_size in (5, 8):
        loader = build_pretrain_loader(PretrainClips(videos, frames=3, size=16), batch_size)
        failures = 0
        for epoch in range(4):
            loader.batch_sampler.set_epoch(epoch)
            for batch in loader:
                assert len(set(batch.video_id.tolist())) == batch_size
                failures += len(batch.failures)
        assert failures


def test_videos_in_memory_with_workers(files, capsys):
    """Some were decoded here already, when the workers start."""
    kept = build_pretrain_loader(pretrain_clips(files, cache="memory"), 2, workers=1)
    said = "data.cache = memory: the videos will take about 0.00 GB in each of 1 workers"
    assert capsys.readouterr().err.splitlines() == [said]
    assert kept.dataset.videos.whole
    for batch, expected in zip(kept, build_pretrain_loader(pretrain_clips(files), 2), strict=True):
        assert torch.equal(batch.clips, expected.clips)


def test_evaluation_covers_every_video_once(files):
    clips = EvaluationClips(pretrain_clips(files).dataset, frames=3, size=16, clips=2)
    whole = list(build_evaluation_loader(clips, 3))
    assert [batch.video_id.tolist() for batch in whole] == [[0, 1], [3, 4]]
    assert [len(batch.failures) for batch in whole] == [1, 0]
    ranks = [list(build_evaluation_loader(clips, 3, rank=rank, world=2)) for rank in range(2)]
    assert [batch.video_id.tolist() for rank in ranks for batch in rank] == [[0, 4], [1, 3]]


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=needs_cuda)])
def test_batches_on_the_device(files, device):
    loader = build_pretrain_loader(pretrain_clips(files, seed=7), 2)
    expected, got = list(loader), list(to_device(loader, torch.device(device)))
    assert len(got) == len(expected) == 2
    for batch, moved in zip(expected, got):
        assert all(tensor.device.type == device for tensor in moved[:3])
        assert all(torch.equal(a.cpu(), b) for a, b in zip(moved[:3], batch[:3]))
        assert list(map(str, moved.failures)) == list(map(str, batch.failures))


def test_batches_are_copied_one_by_one():
    """Nothing is taken from the loader before it is asked for."""
    taken = []

    def batches():
        for number in range(3):
            taken.append(number)
            yield Batch(torch.zeros(2, 1), torch.tensor([number]), torch.tensor([number]))

    moved = to_device(batches(), torch.device("cpu"))
    assert not taken
    assert next(moved).video_id.item() == 0 and taken == [0]


@pytest.mark.parametrize("signals", [[signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGTERM], []])
def test_workers_leave_stopping_to_the_trainer(files, tmp_path, signals):
    """Signals to the whole process group stop no worker, and the process still ends by itself with a loader alive."""
    script = tmp_path / "script.py"
    script.write_text(SIGNALLED)
    command = [sys.executable, str(script), str(files["h264"]), str(len(signals))]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    with subprocess.Popen(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    ) as process:
        assert process.stdout.readline() == "ready\n", process.stderr.read()
        for number in signals:
            os.killpg(process.pid, number)
            time.sleep(0.2)
        output, errors = process.communicate(timeout=60)
    assert process.returncode == 0, errors
    assert output.split() == [*(str(int(number)) for number in signals), "8"]


def session(leader):
    """Processes of a session that still run."""
    stats = [path.read_text().rpartition(")")[2].split() for path in Path("/proc").glob("[0-9]*/stat") if path.exists()]
    return [fields for fields in stats if fields[3] == str(leader) and fields[0] != "Z"]


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="needs /proc")
def test_a_killed_trainer_leaves_no_process(files, tmp_path):
    script = tmp_path / "script.py"
    script.write_text(SIGNALLED)
    command = [sys.executable, str(script), str(files["h264"]), "1"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, start_new_session=True) as process:
        assert process.stdout.readline() == "ready\n"
        assert len(session(process.pid)) == 5, "the trainer, tracker, fork server and two workers"
        process.kill()
    deadline = time.monotonic() + 30
    while session(process.pid) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert session(process.pid) == []
