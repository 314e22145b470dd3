"""Pretraining: the loop. It sums the named losses of a method, and knows nothing else of it."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator, Mapping
from datetime import timedelta
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader
from tqdm import tqdm

from dclr.augment import Draw
from dclr.config import ConfigError, PretrainConfig, save, to_dict
from dclr.data import Batch, to_device
from dclr.distributed import broadcast_from_first, is_first, largest_over_ranks, mean_over_ranks, note_step, rank, world
from dclr.errors import RunError
from dclr.methods import Method, Output
from dclr.models.weights import LAST_CHECKPOINT
from dclr.phases import phase
from dclr.training.checkpoint import CheckpointError, load_state, save_checkpoint
from dclr.training.failures import Failures
from dclr.training.faults import explained
from dclr.training.health import Watch, effective_rank, spread
from dclr.training.interrupts import Stopped, StopRequest
from dclr.training.lock import RunLock
from dclr.training.metrics import Meter, MetricsLog, device_name, environment, memory_mib
from dclr.training.progress import Pace, say
from dclr.training.schedule import learning_rate
from dclr.training.updater import Updater

# Later than any step.
NEVER = 2**62


class NonFiniteLoss(RunError):
    """The loss became NaN or infinite; the message says at which step."""


class Step(NamedTuple):
    """One update: output and weighted sum of losses, (), of its last batch; the gradient's norm, () or not measured."""

    output: Output
    loss: Tensor
    gradient_norm: Tensor | None

    def values(self) -> dict[str, Tensor]:
        """The numbers for the log, () each."""
        losses = {f"loss/{name}": value for name, value in self.output.losses.items()}
        values = {"loss": self.loss, **losses, **self.output.statistics}
        if self.gradient_norm is not None:
            values["gradient_norm"] = self.gradient_norm
        if self.output.features is not None:
            values["features/rank"] = effective_rank(self.output.features)
            values["features/std"] = spread(self.output.features)
        return values


class Trainer:
    """One process of a run.

    Args:
        config: of the run; the folder `config.output` receives what it writes.
        method: freshly initialised, alike on every process.
        loader: of this process' part of each batch of `train.batch / train.accumulate` videos.
        device: where the method runs.
        dataset: digest of the videos, which a run keeps to.

    Raises:
        ValueError: the sizes cannot work with the method, or an epoch has no step.
    """

    def __init__(
        self, config: PretrainConfig, method: Method, loader: DataLoader, device: torch.device, dataset: str
    ) -> None:
        train = config.train
        self.config, self.device, self.loader, self.dataset = config, device, loader, dataset
        self.folder = Path(config.output).expanduser()
        self.checkpoint = self.folder / LAST_CHECKPOINT
        self.epoch = self.step_in_epoch = 0  # completed: epochs, and steps of the next one
        self.steps_per_epoch = len(loader) // train.accumulate
        if not self.steps_per_epoch:
            raise ConfigError(f"train.accumulate: got {train.accumulate}, but an epoch has {len(loader)} batches")
        method.check(train.batch, self.steps_per_epoch)
        self.updater = Updater(method, train, config.optim, device)
        self.method, self.optimizer = self.updater.method, self.updater.optimizer
        self.failures = Failures(len(loader.dataset), config.data.max_failed_share)
        self.known_failures = 0
        self.meter = Meter()
        self.bad_step = torch.tensor(NEVER, device=device)
        self.lock: RunLock | None = None
        #: Called on every process after each `train.eval_every`-th epoch and the last; its figures join the log.
        self.evaluate: Callable[[nn.Module], Mapping[str, float]] | None = None
        self.chance = method.chance(train.batch // train.accumulate)
        self.watch = Watch(self.chance, method.pushed_apart)

    @property
    def global_step(self) -> int:
        """Steps of the optimiser so far."""
        return self.epoch * self.steps_per_epoch + self.step_in_epoch

    def run(self) -> None:
        """Train to the last epoch, saving on the way; see `pretrain` for what it raises. The folder is free then."""
        try:
            with explained():
                self._run()
        finally:
            if self.lock is not None:
                self.lock.release()

    def _run(self) -> None:
        train = self.config.train
        if self.epoch >= train.epochs:
            print(f"{self.folder}: all {self.epoch} epochs are done")
            return
        self.log = None
        if is_first():
            self._note_start()
            settings = to_dict(self.config)
            self.log = MetricsLog(self.folder, self.global_step, train.tensorboard, train.trackers, settings)
        steps = train.epochs * self.steps_per_epoch
        self.pace = Pace(self.global_step, steps, self.device)
        self.bar = tqdm(
            desc=self.folder.name,
            total=steps,
            initial=self.global_step,
            unit="step",
            disable=not is_first(),
            mininterval=0.1 if sys.stderr.isatty() else 30,
        )
        try:
            with StopRequest() as self.request, self.bar:
                while self.epoch < train.epochs:
                    self._run_epoch()
                    self.epoch, self.step_in_epoch = self.epoch + 1, 0
                    self._evaluate_if_due()
                    self.save(keep=self.epoch % train.checkpoint_every == 0 or self.epoch == train.epochs)
                    self._stop_if_asked()
            self._report()
        finally:
            if self.log is not None:
                self.log.close()

    def _evaluate_if_due(self) -> None:
        """Log figures of the encoder as it is; nothing of the run depends on it."""
        every = self.config.train.eval_every
        if self.evaluate is None or not every or (self.epoch % every and self.epoch < self.config.train.epochs):
            return
        start = time.perf_counter()
        figures = self.evaluate(self.method.encoder)
        self.meter.leave_out(time.perf_counter() - start)
        if self.log is not None:
            self.log.write({"step": self.global_step, "epoch": self.epoch, **figures})

    def _note_start(self) -> None:
        """The configuration, and beside it that of every start, with the step that it goes on from."""
        starts = self.folder / "starts"
        number = len(list(starts.glob("*.yaml"))) + 1
        for path in (starts / f"{number:03d}_step_{self.global_step}.yaml", self.folder / "config.yaml"):
            save(self.config, path, **environment(self.device))

    def _run_epoch(self) -> None:
        """The steps of an epoch that are left, with a line of the log every now and then."""
        train = self.config.train
        batches = self._start_epoch()
        while self.step_in_epoch < self.steps_per_epoch:
            last = self.step_in_epoch + 1 == self.steps_per_epoch
            due_log = last or (self.global_step + 1) % train.log_every == 0
            step = self._train_step(batches, measured=due_log)
            self.step_in_epoch += 1
            self.bar.update()
            due_save = not last and self.global_step % train.save_every == 0
            # Reading a GPU's value waits for it; a line of the log and a checkpoint do that anyway.
            if due_log or due_save or self.device.type == "cpu":
                self._check_finite()
            self._check_failures()
            if due_log:
                self._log(step, last)
            pace = self.pace.after(self.global_step)
            if pace and is_first():
                say(pace)
            if due_save:
                self.save()
            if not last:
                self._stop_if_asked()

    def _start_epoch(self) -> Iterator[Batch]:
        """The batches that are left of the epoch."""
        broadcast_from_first(self.method.buffers())
        self.updater.start_epoch(self.epoch, resumed=self.step_in_epoch > 0)
        self.method.train()
        self.loader.batch_sampler.set_epoch(self.epoch, self.step_in_epoch * self.config.train.accumulate)
        return to_device(self.loader, self.device)

    def steps(self) -> Iterator[Tensor]:
        """The steps of the current epoch, one at each turn, without log or checkpoints; yields their losses."""
        batches = self._start_epoch()
        while self.step_in_epoch < self.steps_per_epoch:
            step = self._train_step(batches)
            self.step_in_epoch += 1
            yield step.loss

    def _train_step(self, batches: Iterator[Batch], measured: bool = False) -> Step:
        """One update of the parameters; `measured` where the gradient's norm is asked for."""
        train, optim = self.config.train, self.config.optim
        for part in range(train.accumulate):
            batch = self._next(batches)
            draw = self._draw(self.global_step * train.accumulate + part)
            output, loss = self.updater.add_gradients(batch, draw, last=part == train.accumulate - 1)
            # On the device, so that nothing waits for it.
            first_bad = self.bad_step.clamp(max=self.global_step + 1)
            self.bad_step = torch.where(loss.isfinite(), self.bad_step, first_bad)
        rate = learning_rate(optim, train.batch, train.epochs, self.epoch, self.step_in_epoch, self.steps_per_epoch)
        return Step(output, loss, self.updater.step(rate, measured))

    def _next(self, batches: Iterator[Batch]) -> Batch:
        """The next batch, on the device; what could not be decoded is reported."""
        start = time.perf_counter()
        with phase("load"):
            batch = next(batches)
        note_step(self.global_step + 1)
        views, videos = batch.clips.shape[:2]
        self.meter.add(views * videos * world(), time.perf_counter() - start)
        for failure in self.failures.add(batch.failures):
            say(f"replaced by another video: {failure}")
        return batch

    def _draw(self, number: int) -> Draw:
        """Random numbers of batch `number` of the run. They, and those of dropout, depend on nothing else."""
        seed = self.config.train.seed
        torch.manual_seed(_seed(seed, number, rank() + 1))
        return Draw(torch.Generator().manual_seed(_seed(seed, number, 0)), rank(), world())

    def _check_finite(self) -> None:
        """Stop at the first loss that was no number, before a checkpoint can take it in."""
        step = -largest_over_ranks(-int(self.bad_step))
        if step < NEVER:
            good = f"the last good checkpoint is {self.checkpoint}"
            saved = good if self.checkpoint.exists() else "there is no checkpoint yet"
            raise NonFiniteLoss(f"the loss is NaN or infinite at step {step}; {saved}")

    def _check_failures(self) -> None:
        known = len(self.failures.reasons)
        if largest_over_ranks(known - self.known_failures):
            self.failures.merged().check()
        self.known_failures = known

    def _stop_if_asked(self) -> None:
        """Save and raise `Stopped` on all processes where one got a signal, but not after the last step."""
        signal = largest_over_ranks(self.request.signal)
        if signal and self.epoch < self.config.train.epochs:
            self._check_finite()
            self.save()
            where = f"{self.bar.total} and saved in {self.checkpoint}; --resume goes on"
            raise Stopped(f"stopped at step {self.global_step} of {where}", signal)

    def _log(self, step: Step, last: bool) -> None:
        """Losses and statistics of the step, averaged over processes; rates since the last line; what looks wrong."""
        values = step.values()
        # One copy from the device, for all numbers.
        numbers = [torch.as_tensor(value).detach().to(self.device, torch.float32) for value in values.values()]
        means = dict(zip(values, mean_over_ranks(torch.stack(numbers)).tolist()))
        rates = self.meter.read()
        self.watch.add(self.global_step, means)
        warnings = self.watch.end_epoch() if last else []
        if self.log is not None:
            position = {"step": self.global_step, "epoch": self.epoch}
            chance = {f"chance/{name}": value for name, value in self.chance.items() if name in step.output.losses}
            rates["learning_rate"] = self.optimizer.param_groups[0]["lr"]
            warned = {"warnings": warnings} if warnings else {}
            memory = {"memory_mib": memory_mib(self.device)}
            self.log.write({**position, **means, **chance, **rates, **memory, **warned})
            for warning in warnings:
                say(f"warning, epoch {self.epoch}: {warning}")
        self.bar.set_postfix(
            {"loss": f"{means['loss']:.3f}", "clips/s": f"{rates['clips_per_second']:.1f}"}, refresh=False
        )

    def save(self, keep: bool = False) -> None:
        """Write checkpoints/last.pt, and a copy to `keep`. Every process must call it; the first writes."""
        failures = self.failures.merged().state_dict()
        if not is_first():
            return
        state = {
            "config": to_dict(self.config),
            "position": {"epoch": self.epoch, "step": self.step_in_epoch, "dataset": self.dataset},
            "method": self.method.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "failures": failures,
            "meter": self.meter.state_dict(),
            "environment": environment(self.device),
        }
        save_checkpoint(self.checkpoint, state)
        if keep:
            save_checkpoint(self.checkpoint.with_name(f"epoch_{self.epoch:04d}.pt"), state)

    def load(self, state: dict[str, Any]) -> None:
        """Go on from a checkpoint, whose settings are the run's (`check_resume`). Every process loads the same.

        Raises:
            CheckpointError: of another architecture, or altered.
        """
        position = state["position"]
        load_state(self.checkpoint, self.method, state["method"])
        try:
            self.optimizer.load_state_dict(state["optimizer"])
            self.epoch, self.step_in_epoch = position["epoch"], position["step"]
            if is_first():  # the counts of all processes
                self.failures.load_state_dict(state["failures"])
                self.known_failures = len(self.failures.reasons)
            self.meter.load_state_dict(state["meter"])
        except (KeyError, ValueError, TypeError, AttributeError) as error:
            raise CheckpointError(
                f"{self.checkpoint}: altered, or of another version ({type(error).__name__}: {error})"
            ) from error

    def _report(self) -> None:
        """What the run cost, and which videos it could not read."""
        failures = self.failures.merged()
        seconds, clips = self.meter.totals()
        if self.log is None:
            return
        cost = {
            "wall_seconds": seconds,
            "mean_clips_per_second": clips / seconds,
            "device_hours": world() * seconds / 3600,
            "device": f"{world()} x {device_name(self.device)}",
        }
        replaced = {"replaced_samples": failures.replaced, "unreadable_videos": failures.reasons}
        self.log.write({"step": self.global_step, "epoch": self.epoch, **cost, **replaced})
        print(
            f"{self.folder}: {self.global_step} steps in {timedelta(seconds=round(seconds))} on {cost['device']}, "
            f"{cost['mean_clips_per_second']:.1f} clips/s, {cost['device_hours']:.3g} device-hours"
        )
        if failures.reasons:
            print(f"{failures.replaced} samples replaced for unreadable videos: {failures.listing()}")


def _seed(*numbers: int) -> int:
    return int(np.random.SeedSequence(numbers).generate_state(1, np.uint64)[0])
