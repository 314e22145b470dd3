"""Pretraining: the loop, its checkpoints and its log. It sums named losses and knows no method."""

from __future__ import annotations

import signal
import time
from pathlib import Path
from typing import Any

import nvtx
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from tqdm import tqdm

from dclr.augment import Draw
from dclr.config import ConfigError, PretrainConfig, save, to_dict
from dclr.data import DatasetError, PretrainClips, build_pretrain_loader, load_dataset
from dclr.data.clips import Batch
from dclr.distributed import is_first, process_group, rank, world
from dclr.methods import build_method
from dclr.models import build_encoder
from dclr.training import checkpoint
from dclr.training.metrics import MetricsLog, environment, memory_mib
from dclr.training.schedule import learning_rate


class TrainingError(Exception):
    """A run that cannot go on, in one line."""


class Stopped(SystemExit):
    """SIGTERM or Ctrl-C, after the checkpoint was saved; the exit status is 128 + the signal, as shells count."""


def pretrain(config: PretrainConfig, resume: bool = False) -> Path:
    """Run a configuration to its last epoch.

    Args:
        resume: go on from the run folder's last checkpoint, on the same trajectory; start where there is none.

    Returns:
        The run folder, with config.yaml, metrics.jsonl and checkpoints/.
    """
    device = _device(config.train.device)
    with process_group(device):
        return Trainer(config, device, resume).run()


def _device(name: str) -> torch.device:
    if name == "cpu" or (name == "auto" and not torch.cuda.is_available()):
        return torch.device("cpu")
    if not torch.cuda.is_available():
        raise ConfigError("train.device: got cuda, but no GPU is available; expected cpu or auto")
    local = rank() % torch.cuda.device_count()
    torch.cuda.set_device(local)
    return torch.device("cuda", local)


class Trainer:
    """One process of a run.

    Args:
        config: everything of the run.
        device: where the model lives.
        resume: see `pretrain`.
    """

    def __init__(self, config: PretrainConfig, device: torch.device, resume: bool = False) -> None:
        self.config, self.device = config, device
        self.folder = Path(config.output)
        self._check_folder(resume)
        data, train = config.data, config.train
        self.dataset = load_dataset(
            data.dataset,
            data.root,
            split=data.split,
            subset=data.subset,
            allow_missing=data.allow_missing,
            annotations=data.annotations,
            label=data.label,
            where=data.where,
        )
        clips = PretrainClips(
            self.dataset,
            frames=data.frames,
            stride=data.stride,
            size=data.size,
            scale=data.scale,
            ratio=data.ratio,
            crops=getattr(config.method, "crops", 1),
            seed=train.seed,
            cache=data.cache,
        )
        micro_batch = train.batch // train.accumulate
        self.loader = build_pretrain_loader(clips, micro_batch, workers=data.workers, rank=rank(), world=world())
        self.steps = len(self.loader.batch_sampler) // train.accumulate
        if not self.steps:
            raise ConfigError(
                f"train.batch: got {train.batch}, expected at most the {len(clips)} videos of the dataset"
            )
        torch.manual_seed(train.seed)
        self.method = build_method(config.method, build_encoder(config.encoder), config.augment)
        self.method.check(train.batch, self.steps)
        self.method.to(device, memory_format=torch.channels_last_3d)
        if train.sync_bn and world() > 1 and device.type == "cuda":
            self.method = nn.SyncBatchNorm.convert_sync_batchnorm(self.method)
        if train.compile:
            self.method.encoder.compile()
        self.optimizer = self._build_optimizer()
        self.parallel = self._wrap()
        self.epoch = self.step = 0
        self.failures: list[str] = []
        self.signal = 0
        self.spent = 0.0  # seconds of earlier parts of a resumed run
        self._first_bad = torch.full((), torch.inf, device=device)
        if resume and (self.folder / "checkpoints" / checkpoint.LAST).exists():
            self._restore()

    @property
    def total_steps(self) -> int:
        """Optimiser steps completed."""
        return self.epoch * self.steps + self.step

    def run(self) -> Path:
        """Train to the last epoch."""
        if is_first():
            self.folder.mkdir(parents=True, exist_ok=True)
            save(self.config, self.folder / "config.yaml", **environment())
        log = MetricsLog(self.folder, self.total_steps, self.config.train.tensorboard) if is_first() else None
        epochs, began = self.config.train.epochs, time.perf_counter()
        self._began = began
        self.method.train()
        bar = tqdm(total=epochs * self.steps, initial=self.total_steps, unit="step", disable=not is_first())
        bar.set_description(self.folder.name)
        resumed = self.total_steps > 0
        with _signals(self._on_signal), bar:
            while self.epoch < epochs:
                self.method.start_epoch(self.epoch, resumed=resumed and self.step > 0)
                resumed = False
                self._run_epoch(log, bar)
                self.epoch, self.step = self.epoch + 1, 0
                self._check_losses()
                self._save(keep=self.epoch % self.config.train.checkpoint_every == 0 or self.epoch == epochs)
        if log is not None:
            cost = self._cost()
            log.write({"step": self.total_steps, **cost})
            log.close()
            print(self._summary(cost))
        return self.folder

    def _run_epoch(self, log: MetricsLog | None, bar: tqdm) -> None:
        accumulate = self.config.train.accumulate
        self.loader.batch_sampler.set_epoch(self.epoch, self.step * accumulate)
        batches = iter(self.loader)
        waited, since, steps = 0.0, time.perf_counter(), 0
        while self.step < self.steps:
            records = []
            for part in range(accumulate):
                with nvtx.annotate("load"):
                    start = time.perf_counter()
                    batch = self._to_device(next(batches))
                    waited += time.perf_counter() - start
                records.append(self._accumulate(batch, part))
            self._update()
            self.step, steps = self.step + 1, steps + 1
            bar.update()
            due = self.total_steps % self.config.train.log_every == 0 or self.step == self.steps
            if due or self.device.type == "cpu":
                self._check_losses()
            if due:
                elapsed = time.perf_counter() - since
                record = self._record(records, steps, elapsed, waited)
                if log is not None:
                    log.write(record)
                    bar.set_postfix({"loss": f"{record['loss']:.3f}", "clips/s": f"{record['clips_per_second']:.0f}"})
                waited, since, steps = 0.0, time.perf_counter(), 0
            if (due or world() == 1) and self._stop_wanted():
                self._save()
                raise Stopped(128 + self.signal)

    def _accumulate(self, batch: Batch, part: int) -> dict[str, Tensor]:
        """Forward and backward of one part of a step; returns what is to be logged, still on the device."""
        accumulate = self.config.train.accumulate
        number = self.total_steps * accumulate + part
        generator = torch.Generator().manual_seed(self.config.train.seed * 2**40 + number)
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self._bf16):
            output = self.parallel(batch, Draw(generator, rank(), world()))
        weights = self.method.loss_weights
        loss = sum(weights[name] * value for name, value in output.losses.items())
        self._first_bad = torch.where(loss.detach().isfinite(), self._first_bad, self._first_bad.clamp(max=number))
        last = part == accumulate - 1
        with nvtx.annotate("backward"):
            if last or self.parallel is self.method:
                (loss / accumulate).backward()
            else:
                with self.parallel.no_sync():
                    (loss / accumulate).backward()
        losses = {f"loss/{name}": value for name, value in output.losses.items()}
        return {key: value.detach() for key, value in {"loss": loss, **losses, **output.statistics}.items()}

    def _update(self) -> None:
        config = self.config
        rate = learning_rate(config.optim, config.train.batch, config.train.epochs, self.epoch, self.step, self.steps)
        with nvtx.annotate("optimizer"):
            for group in self.optimizer.param_groups:
                group["lr"] = rate
            self.optimizer.step()
            self.optimizer.zero_grad(set_to_none=True)
            self.method.after_step()

    @property
    def _bf16(self) -> bool:
        precision = self.config.train.precision
        return precision == "bf16" or (precision == "auto" and self.device.type == "cuda")

    def _build_optimizer(self) -> torch.optim.Optimizer:
        config = self.config.optim
        parameters = [p for p in self.method.parameters() if p.requires_grad]
        if config.optimizer == "adamw":
            return torch.optim.AdamW(parameters, lr=config.lr, weight_decay=config.weight_decay)
        fused = self.device.type == "cuda"
        return torch.optim.SGD(
            parameters, lr=config.lr, momentum=config.momentum, weight_decay=config.weight_decay, fused=fused
        )

    def _wrap(self) -> nn.Module:
        if world() == 1:
            return self.method
        ids = [self.device.index] if self.device.type == "cuda" else None
        # A term that starts late leaves its heads without gradient until then.
        unused = self.method.conditional
        return DistributedDataParallel(
            self.method, device_ids=ids, broadcast_buffers=False, find_unused_parameters=unused
        )

    def _to_device(self, batch: Batch) -> Batch:
        for failure in batch.failures:
            self.failures.append(str(failure))
            if len(self.failures) > self.config.data.max_failed_share * len(self.dataset):
                raise DatasetError(
                    f"{len(self.failures)} of {len(self.dataset)} videos cannot be read, more than "
                    f"data.max_failed_share = {self.config.data.max_failed_share}: " + "; ".join(self.failures)
                )
            tqdm.write(f"replaced: {failure}")
        tensors = (value.to(self.device, non_blocking=True) for value in batch[:3])
        return Batch(*tensors)

    def _check_losses(self) -> None:
        """Stop at the first loss that was no number, before a checkpoint can take it in."""
        first = self._first_bad.clone()
        if world() > 1:
            dist.all_reduce(first, dist.ReduceOp.MIN)
        if first.isfinite():
            step = int(first) // self.config.train.accumulate + 1
            raise TrainingError(
                f"the loss is NaN or infinite at step {step}; "
                f"the last good checkpoint is in {self.folder / 'checkpoints'}, if an epoch was completed"
            )

    def _record(self, records: list[dict[str, Tensor]], steps: int, elapsed: float, waited: float) -> dict[str, Any]:
        """One line of the log: means over the parts of the step and over ranks, and the rates since the last line."""
        names = list(records[0])
        values = torch.stack([torch.stack([r[name].to(self.device).float() for r in records]).mean() for name in names])
        if world() > 1:
            dist.all_reduce(values)
            values /= world()
        clips = 2 * self.config.train.batch * steps
        return {
            "step": self.total_steps,
            "epoch": self.epoch,
            **dict(zip(names, (round(value, 6) for value in values.tolist()))),
            "lr": self.optimizer.param_groups[0]["lr"],
            "clips_per_second": round(clips / elapsed, 2),
            "data_wait_share": round(waited / elapsed, 4),
            "memory_mib": round(memory_mib(self.device), 1),
        }

    def _cost(self) -> dict[str, Any]:
        seconds = self.spent + time.perf_counter() - self._began
        clips = 2 * self.config.train.batch * self.total_steps
        return {
            "wall_seconds": round(seconds, 1),
            "mean_clips_per_second": round(clips / seconds, 2),
            "device_hours": round(seconds * world() / 3600, 4),
            "replaced_videos": len(self.failures),
            "missing_videos": len(self.dataset.missing),
        }

    def _summary(self, cost: dict[str, Any]) -> str:
        kind = "GPU" if self.device.type == "cuda" else "CPU"
        lines = [
            f"{self.folder}: {self.total_steps} steps in {cost['wall_seconds']:.0f} s, "
            f"{cost['mean_clips_per_second']:.1f} clips/s, {cost['device_hours']:.3f} {kind}-process-hours"
        ]
        if self.dataset.missing:
            lines.append(f"{len(self.dataset.missing)} videos of the split were missing and left out")
        if self.failures:
            listing = "; ".join(self.failures)
            lines.append(f"{len(self.failures)} videos could not be read and were replaced: {listing}")
        return "\n".join(lines)

    def _check_folder(self, resume: bool) -> None:
        if not resume and (self.folder / "checkpoints" / checkpoint.LAST).exists():
            raise ConfigError(
                f"{self.folder} already holds a run; expected --resume to go on with it, or another --output"
            )

    def _save(self, keep: bool = False) -> None:
        if is_first():
            state = {
                "method": self.method.state_dict(),
                "optimizer": self.optimizer.state_dict(),
                "epoch": self.epoch,
                "step": self.step,
                "spent": self.spent + time.perf_counter() - self._began,
                "failures": self.failures,
                "rng": torch.get_rng_state(),
                "config": to_dict(self.config),
                "versions": environment(),
            }
            folder = self.folder / "checkpoints"
            checkpoint.save(folder / checkpoint.LAST, state)
            if keep:
                checkpoint.save(folder / f"epoch_{self.epoch:04d}.pt", state)

    def _restore(self) -> None:
        path = self.folder / "checkpoints" / checkpoint.LAST
        state = checkpoint.load(path)
        checkpoint.restore(self.method, state["method"], path)
        self.optimizer.load_state_dict(state["optimizer"])
        torch.set_rng_state(state["rng"])
        self.epoch, self.step = state["epoch"], state["step"]
        self.spent, self.failures = state["spent"], state["failures"]

    def _on_signal(self, number: int, frame: Any) -> None:
        if self.signal:  # a second one does not wait for the step
            raise Stopped(128 + number)
        self.signal = number
        tqdm.write(f"{signal.Signals(number).name}: saving a checkpoint after this step")

    def _stop_wanted(self) -> bool:
        """Whether any rank got a signal; all of them then save the same step."""
        if world() == 1:
            return bool(self.signal)
        wanted = torch.tensor(self.signal, device=self.device)
        dist.all_reduce(wanted, dist.ReduceOp.MAX)
        self.signal = int(wanted)
        return bool(self.signal)


class _signals:
    """Handle SIGTERM and Ctrl-C within the block; only the main thread of a process can."""

    def __init__(self, handler: Any) -> None:
        self.handler = handler

    def __enter__(self) -> None:
        numbers = (signal.SIGTERM, signal.SIGINT)
        self.previous = {number: signal.signal(number, self.handler) for number in numbers}

    def __exit__(self, *exception: object) -> None:
        for number, handler in self.previous.items():
            signal.signal(number, handler)
