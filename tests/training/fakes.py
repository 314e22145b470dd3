"""A small contrastive method with BatchNorm and a queue, videos from memory, and a trainer of them.

As a program (`python -m tests.training.fakes OUTPUT [key=value ...]`) it is one process of a run under torchrun's
environment variables.
"""

import math
import os
import signal
import sys
import time
from dataclasses import dataclass

import torch
from torch import nn
from torch.nn.functional import cross_entropy, normalize
from torch.utils.data import DataLoader, Dataset

from dclr.config import OptimConfig, PretrainConfig, TrainConfig
from dclr.data import EpochSampler, VideoError
from dclr.data.clips import Sample, collate
from dclr.distributed import choose_device, gather_rows, process_group, rank, world
from dclr.methods import METHODS
from dclr.methods.base import Method, Output
from dclr.training import find_checkpoint, load_checkpoint
from dclr.training.trainer import Trainer

VIDEOS = 16


@dataclass
class FakeConfig:
    batch_norm: bool = True
    dropout: float = 0.0
    nan_at: int = -1
    """Forward that returns NaN, from 0."""
    signal_at: int = -1
    """Forward in which process `signal_rank` sends itself a SIGTERM."""
    signal_rank: int = 0
    kill_at: int = -1
    """Forward in which process `signal_rank` is killed, in its first life."""
    agent_signal: int = 0
    """What that process then sends to the agent of torchrun that started it: SIGKILL as if their machine went down."""
    hang_at: int = -1
    """Video after so many of which process `signal_rank` hangs for longer than the others wait."""

    crops = 1


class FakeEncoder(nn.Module):
    feature_dim = 6

    def __init__(self, config):
        super().__init__()
        self.conv = nn.Conv3d(3, 6, 3, stride=2)
        self.norm = nn.BatchNorm3d(6) if config.batch_norm else nn.Identity()
        self.drop = nn.Dropout(config.dropout)

    def forward(self, x):
        return self.drop(self.norm(self.conv(x)).relu())


class FakeMethod(Method):
    """InfoNCE of view 0 against view 1 of the global batch and a queue, with noise from the draw."""

    loss_weights = {"contrast": 1.0, "size": -0.1}  # noqa: RUF012

    def __init__(self, config):
        super().__init__()
        self.config, self.encoder, self.head = config, FakeEncoder(config), nn.Linear(6, 4)
        self.register_buffer("queue", normalize(torch.randn(10, 4), dim=1))
        self.register_buffer("pointer", torch.zeros((), dtype=torch.int64))
        self.forwards, self.pending, self.epochs = 0, [], []

    def chance(self, global_batch):
        return {"contrast": math.log(global_batch + len(self.queue))}

    def start_epoch(self, epoch, resumed=False):
        self.epochs.append((epoch, resumed))

    def forward(self, batch, draw):
        if self.forwards == self.config.signal_at and rank() == self.config.signal_rank:
            os.kill(os.getpid(), signal.SIGTERM)
        lives = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0"), os.environ.get("MACHINE_IS_BACK")
        first_life = lives == ("0", None)
        if self.forwards == self.config.kill_at and rank() == self.config.signal_rank and first_life:
            if self.config.agent_signal == signal.SIGTERM:
                be_terminated_by_agent()
            else:
                if self.config.agent_signal:
                    os.kill(os.getppid(), self.config.agent_signal)
                os.kill(os.getpid(), signal.SIGKILL)
        n = batch.clips.shape[1]
        clip = batch.clips.flatten(0, 1).permute(0, 4, 1, 2, 3).float() / 255
        noise = draw.uniform(2, n, 0.5, 1.5)
        pooled = self.encoder(clip * noise.view(-1, 1, 1, 1, 1)).mean((2, 3, 4))
        z = normalize(self.head(pooled), dim=1)
        keys = gather_rows(z[n:])
        logits = torch.cat([z[:n] @ keys.T, z[:n] @ self.queue.T], dim=1) / 0.2
        loss = cross_entropy(logits, torch.arange(n) + rank() * n)
        if self.forwards == self.config.nan_at:
            loss = loss * torch.nan
        self.forwards += 1
        self.pending.append(keys.detach())
        losses = {"contrast": loss, "size": z.abs().mean()}
        return Output(losses, {"positive": (z[:n] * z[n:]).sum(1).mean().detach()}, pooled.detach())

    def after_step(self):
        for keys in self.pending:
            rows = (self.pointer + torch.arange(len(keys))) % len(self.queue)
            self.queue[rows] = keys
            self.pointer.add_(len(keys)).remainder_(len(self.queue))
        self.pending.clear()


def be_terminated_by_agent():
    """Send the agent of torchrun a SIGTERM, and wait for its own to arrive: it can take longer than the steps left."""
    arrived, heed = [], signal.getsignal(signal.SIGTERM)

    def note(number, frame):
        arrived.append(number)
        heed(number, frame)

    signal.signal(signal.SIGTERM, note)
    os.kill(os.getppid(), signal.SIGTERM)
    while not arrived:
        time.sleep(0.01)
    signal.signal(signal.SIGTERM, heed)


class FakeClips(Dataset):
    """Noise; the videos in `unreadable` come as their neighbours."""

    def __init__(self, unreadable=(), hang_at=-1):
        self.unreadable, self.hang_at, self.given = unreadable, hang_at, 0

    def __len__(self):
        return VIDEOS

    def __getitem__(self, key):
        epoch, index, *_ = key
        if self.given == self.hang_at:
            time.sleep(30)
            os._exit(3)
        self.given += 1
        generator = torch.Generator().manual_seed(1000 * epoch + index)
        clips = torch.randint(256, (2, 4, 7, 7, 3), generator=generator, dtype=torch.uint8)
        failures = (VideoError(f"video{index}.avi", "broken"),) if index in self.unreadable else ()
        return Sample(clips, index, index % 2, failures)


def register():
    """Make the method known to configurations."""
    METHODS["fake"] = (FakeConfig, FakeMethod)


def fake_config(output, epochs=3, batch=4, accumulate=1, optim=None, **method):
    train = TrainConfig(epochs=epochs, batch=batch, accumulate=accumulate, log_every=1, device="cpu", tensorboard=False)
    optim = optim or OptimConfig(lr=0.5, milestones=(0.5,))
    return PretrainConfig(output=str(output), train=train, optim=optim, method=FakeConfig(**method))


def fake_trainer(config, unreadable=()):
    batch = config.train.batch // config.train.accumulate
    sampler = EpochSampler(VIDEOS, batch, seed=config.train.seed, rank=rank(), world=world())
    hang_at = config.method.hang_at if rank() == config.method.signal_rank else -1
    loader = DataLoader(FakeClips(unreadable, hang_at), batch_sampler=sampler, collate_fn=collate)
    torch.manual_seed(config.train.seed)
    return Trainer(config, FakeMethod(config.method), loader, torch.device("cpu"), "fakes")


def main(output, *settings):
    """One process of a run, which goes on from its checkpoint where there is one."""
    register()
    torch.set_num_threads(1)
    values = {key: int(value) for key, _, value in (setting.partition("=") for setting in settings)}
    with process_group(choose_device("cpu"), timeout=0.2 if "hang_at" in values else 30):
        trainer = fake_trainer(fake_config(output, **values))
        if find_checkpoint(output).exists():
            trainer.load(load_checkpoint(output))
        trainer.run()


if __name__ == "__main__":
    main(*sys.argv[1:])
