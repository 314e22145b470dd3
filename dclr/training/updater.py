"""One update of a method's parameters: from a batch on the device to a step of the optimiser."""

from __future__ import annotations

from contextlib import nullcontext

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from dclr.augment import Draw
from dclr.config import OptimConfig, TrainConfig
from dclr.data import Batch
from dclr.distributed import world
from dclr.methods import Method, Output
from dclr.models import accelerate
from dclr.phases import phase
from dclr.training.replay import Replay, Request, recorded_requests
from dclr.training.schedule import build_optimizer


class Updater:
    """Updates of a method's parameters, by one batch or by the sum of several.

    With `train.compile` everything from decoded clips to losses is one compiled graph, whatever the method. Of several
    processes each compiles its encoder alone, since what they exchange is no part of a graph; DDP then splits the
    backward pass where it sends gradients.

    Args:
        method: alike on every process. It is moved to `device`, and computes as `train` says.

    Attributes:
        method: the same, or with its BatchNorm synchronised.
        optimizer: of all parameters that are trained.
    """

    def __init__(self, method: Method, train: TrainConfig, optim: OptimConfig, device: torch.device) -> None:
        self.accumulate = train.accumulate
        self.device = device
        self.method = method.to(device, memory_format=torch.channels_last_3d)
        if train.sync_bn and world() > 1 and device.type == "cuda":
            self.method = nn.SyncBatchNorm.convert_sync_batchnorm(self.method)
        accelerate(self.method, fold=train.fold, pad=train.pad, static_once=train.static_once)
        self.compiled = train.compile is not None
        if self.compiled:
            whole = world() == 1
            part = self.method if whole else self.method.encoder
            part.compile(mode=train.compile, fullgraph=whole, dynamic=False)
        self.model = self._parallel()
        self.optimizer = build_optimizer(optim, self.method)
        self.optim = optim
        on_gpu = device.type == "cuda" and torch.cuda.is_bf16_supported()
        bf16 = train.precision == "bf16" or (train.precision == "auto" and on_gpu)
        self.autocast = torch.autocast(device.type, torch.bfloat16, enabled=bf16)
        self._requests: list[Request] | None = None

    def _parallel(self) -> nn.Module:
        """The method as the processes call it together."""
        if world() == 1:
            return self.method
        # Queues are alike on all processes by construction; BatchNorm's averages are made so once an epoch.
        return DistributedDataParallel(self.method, broadcast_buffers=False)

    def start_epoch(self, epoch: int, resumed: bool = False) -> None:
        """As `Method.start_epoch`, after which the method may ask for other random numbers."""
        self.method.start_epoch(epoch, resumed)
        self._requests = None

    def add_gradients(self, batch: Batch, draw: Draw, last: bool = True) -> tuple[Output, Tensor]:
        """Forward and backward pass of one of `train.accumulate` batches; the result has no graph.

        Args:
            last: whether `step` comes next. Gradients are exchanged between processes only then.

        Returns:
            The method's output and the weighted sum of its losses, ().
        """
        if self.compiled and world() == 1:
            draw = self._replayed(batch, draw)
            # What an earlier step returned may be overwritten.
            torch.compiler.cudagraph_mark_step_begin()
        with nullcontext() if last or world() == 1 else self.model.no_sync():
            with phase("forward"), self.autocast:
                output = self.model(batch._replace(failures=()), draw)
            with phase("backward"):
                loss = output.backward(self.method.loss_weights, 1 / self.accumulate)
        return output._replace(losses={name: value.detach() for name, value in output.losses.items()}), loss

    def step(self, rate: float, measured: bool = False) -> Tensor | None:
        """Step the optimiser at this learning rate, and let the method follow.

        Returns:
            () norm of the gradient over all parameters, before it is clipped; None where it is neither `measured` nor
            clipped.
        """
        norm = None
        with phase("optimizer"):
            for group in self.optimizer.param_groups:
                group["lr"] = rate
            if self.optim.clip is not None:
                norm = nn.utils.clip_grad_norm_(self.method.parameters(), self.optim.clip)
            elif measured:
                gradients = (parameter.grad for parameter in self.method.parameters())
                norm = nn.utils.get_total_norm([gradient for gradient in gradients if gradient is not None])
            self.optimizer.step()
            self.optimizer.zero_grad(set_to_none=True)
        with phase("after_step"):
            self.method.after_step()
        return norm

    def _replayed(self, batch: Batch, draw: Draw) -> Replay:
        if self._requests is None:
            with self.autocast:
                self._requests = recorded_requests(self.method, batch)
        return Replay(self._requests, draw, self.device)
