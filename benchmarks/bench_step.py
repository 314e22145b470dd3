"""A whole training step of DCLR: augmentation, encoder, heads, losses, backward pass, optimiser, queue.

Ours has every lever on; each `no ...` has one off. The others are what one writes first: the plain encoder uncompiled
in float32 (TF32 on a GPU), the same under `torch.compile` and bfloat16, and the work of the released recipe: the three
streams through the query encoder one by one, and nine more passes without gradient through the momentum encoder.

Floor: the multiplications of the plain step, so that `% floor` is the model FLOPs utilisation; of bytes, the clips and
six times the parameters (read twice, gradient, momentum and parameter written, momentum read).

Each compiled variant takes minutes to generate: `--variants eager,released` measures ours and those alone.
"""

from __future__ import annotations

import copy
import functools
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass
from importlib import import_module
from unittest import mock

import torch
from torch import Tensor
from torch.profiler import ProfilerActivity, profile
from torch.utils.flop_counter import FlopCounterMode

from dclr.augment import AugmentConfig, Draw
from dclr.config import OptimConfig, TrainConfig
from dclr.data import Batch
from dclr.methods import DCLRConfig, DCLRRelease, DCLRReleaseConfig, Method, build_method
from dclr.methods.search import SearchConfig
from dclr.models import build_encoder
from dclr.phases import phase_seconds
from dclr.training.updater import Updater

from .harness import GRAPH, OURS, Problem, Run

EAGER, STRAIGHT, RELEASE = "eager", "compiled bf16", "released recipe"
KERNELS = ("_common", "info_nce.launch")  # where the path is chosen
LAUNCHES = ("cudaLaunchKernel", "cudaLaunchKernelExC", "cuLaunchKernel", "cuLaunchKernelEx")
PHASES = ("forward", "backward", "optimizer", "after_step")
EPOCH = 10  # refinement and search are on
COUNTED = 8  # videos of the step whose multiplications are counted


@dataclass(frozen=True)
class Size:
    """`videos` of two clips; None: as many as fit the GPU."""

    encoder: str
    videos: int | None
    frames: int
    side: int

    def __str__(self) -> str:
        return f"{self.encoder}-{self.videos or 'most'}x2x{self.frames}x{self.side}x{self.side}"


SIZES = {
    "tiny": [Size("r2plus1d_tiny", 4, 4, 16)],
    "cpu": [Size("r2plus1d_tiny", 4, 8, 32)],
    "cuda": [Size("r2plus1d_vcop", videos, 16, 112) for videos in (8, 32, 64, None)],
}


def test_step(size, device, measuring, bench):
    if size.videos is None:
        size = Size(size.encoder, most_videos(size, device), size.frames, size.side)
    made = problem(size, device, measuring)
    rows = bench(made)
    for row in rows:
        if row.p50_us:
            row.note = describe(made.variants[row.variant], 2 * size.videos) + (row.note and f"; {row.note}")


def problem(size: Size, device: torch.device, measuring: bool) -> Problem:
    # The variants are graphs of the same code, of which eight are allowed otherwise.
    torch.compiler.reset()
    torch._dynamo.config.recompile_limit = 64
    torch.backends.cudnn.benchmark = True  # as in training
    batch, method = inputs(size, device)
    on_gpu = device.type == "cuda"
    # A CPU has none of these, and generates code for minutes where it is to be measured.
    levers = {"fold": True, "pad": True, "static_once": True}
    levers |= {"compile": "default" if on_gpu or not measuring else None, "precision": "bf16" if on_gpu else "fp32"}
    run = functools.partial(variant, method, batch, device, measuring)
    variants = {OURS: run(levers)}
    if not measuring:  # one compiled variant of ours says enough
        levers["compile"] = None
    for name in ("fold", "pad", "static_once"):
        variants[f"no {name}"] = run(levers | {name: False})
    variants["no channels_last"] = run(levers | {"fold": False}, channels_last=False)
    plain = {"precision": "fp32"}
    variants[EAGER] = run(plain, channels_last=False, triton=False)
    variants[RELEASE] = run(plain, channels_last=False, triton=False, released=True)
    left_out = {}
    if on_gpu or not measuring:
        variants["no compile"] = run(levers | {"compile": None})
        straight = plain | {"compile": "default", "precision": levers["precision"]}
        variants[STRAIGHT] = run(straight, channels_last=False, triton=False)
    else:
        left_out |= dict.fromkeys(("compile", STRAIGHT), "generates code for many minutes on a CPU")
    if on_gpu:
        variants["no bf16"] = run(levers | {"precision": "fp32"})
        variants["no fused SGD"] = run(levers, fused=False)
        variants["no Triton kernels"] = run(levers, triton=False)
        if size.videos <= 8:
            variants[GRAPH] = run(levers | {"compile": "reduce-overhead"})
        else:
            left_out[GRAPH] = "would keep its memory from the others"
    else:
        left_out |= dict.fromkeys(("no bf16", "no fused SGD", "no Triton kernels", GRAPH), "needs a GPU")
    # What fits in bfloat16 alone is compared with itself: smaller batches have shown that it is right.
    reference = functools.partial(variant, method, batch, device, measuring)
    if size.videos > 64:
        expected = reference(levers | {"compile": None})
    else:
        precise = plain | {"precision": "fp32" if size.videos <= 32 else levers["precision"]}
        expected = reference(precise, channels_last=False, triton=False)
    parameters = sum(parameter.numel() for parameter in method.parameters() if parameter.requires_grad)
    return Problem(
        name=f"step {size} {'bfloat16' if on_gpu else 'float32'}",
        dtype=torch.bfloat16 if on_gpu else torch.float32,
        device=device,
        expected=expected,
        variants=variants,
        bytes=batch.clips.numel() + 6 * 4 * parameters,
        flops=count_flops(size, device),
        other_functions={RELEASE},
        left_out=left_out,
    )


def count_flops(size: Size, device: torch.device) -> int:
    """Of the plain step, from that of a few videos: nearly all is the encoder's, which is linear in them."""
    few = Size(size.encoder, min(size.videos, COUNTED), size.frames, size.side)
    batch, method = inputs(few, device)
    step = variant(method, batch, device, True, {"precision": "fp32"}, channels_last=False, triton=False)
    with FlopCounterMode(display=False) as counter:
        step()
    return counter.get_total_flops() * size.videos // few.videos


def inputs(size: Size, device: torch.device) -> tuple[Batch, Method]:
    """A batch of noise and a method whose queue is full."""
    torch.manual_seed(0)
    clips = torch.randint(256, (4, size.videos, size.frames + 1, size.side, size.side, 3), dtype=torch.uint8)
    video = torch.arange(size.videos)
    config = DCLRConfig(search=SearchConfig(queue=min(2048, 4 * size.videos)))
    method = build_method(config, build_encoder(size.encoder), AugmentConfig()).to(device)
    method.start_epoch(EPOCH)
    for queue in method.search.queues.values():
        rows = {
            name: torch.randn_like(getattr(queue, name))
            for name in ("descriptor", "rgb_projection", "modality_projection")
        }
        rows |= {"video_id": queue.video_id.clone() - torch.arange(queue.length, device=device)}
        state = queue.state_dict() | rows
        state["_extra_state"] = {"pointer": 0, "size": queue.length}
        queue.load_state_dict(state)
    return Batch(*(tensor.to(device) for tensor in (clips, video, video % 2))), method


class Variant:
    """One way to do a step. A call does one, with the random numbers of the first, and gives its weighted loss."""

    def __init__(self, updater: Updater, batch: Batch, context: Callable) -> None:
        self.updater, self.batch, self.context = updater, batch, context

    def __call__(self) -> tuple[Tensor, ...]:
        with self.context():
            _, loss = self.updater.add_gradients(self.batch, Draw(torch.Generator().manual_seed(0)))
            # A rate of 0 leaves the parameters, so that steps stay alike; the optimiser works the same.
            self.updater.step(0.0)
        return (loss.clone(),)


def variant(
    method: Method,
    batch: Batch,
    device: torch.device,
    measuring: bool,
    train: dict,
    channels_last: bool = True,
    triton: bool = True,
    fused: bool = True,
    released: bool = False,
) -> Variant:
    """A step of a copy of `method`, or of the released recipe, by the settings `train` and what is no setting."""
    if released:
        config = DCLRReleaseConfig(queue=2048)
        method = Released(config, copy.deepcopy(method.encoder), AugmentConfig())
    else:
        method, batch = copy.deepcopy(method), batch._replace(clips=batch.clips[:2])
    backend = nullcontext() if measuring else quick_compiler()
    with backend:
        updater = Updater(method, TrainConfig(**train), OptimConfig(), device)
    updater.start_epoch(EPOCH, resumed=True)
    if not channels_last:
        updater.method.to(memory_format=torch.contiguous_format)
        updater.method.encode = lambda *clips: updater.method.encoder(*(clip.contiguous() for clip in clips))
    if not fused:
        for group in updater.optimizer.param_groups:
            group["fused"] = None  # one launch for many parameters, as PyTorch chooses
    return Variant(updater, batch, nullcontext if triton else without_triton)


class Released(DCLRRelease):
    """Each stream is a pass of its own, and the masks take passes apart from the keys."""

    def _maps(self, branch, streams, rows):
        passes = 2 if branch is self.key.module and rows.start else 1
        for _ in range(passes):
            maps = {name: branch.encoder(stream[rows].contiguous()) for name, stream in zip("vsd", streams)}
        return maps


@contextmanager
def quick_compiler() -> Iterator[None]:
    """The graphs without code generation, where only the result matters."""
    with mock.patch.object(torch, "compile", functools.partial(torch.compile, backend="aot_eager")):
        yield


@contextmanager
def without_triton() -> Iterator[None]:
    """The plain PyTorch references in the kernels' place."""
    modules = [import_module(f"dclr.kernels.{name}") for name in KERNELS] + [import_module("dclr.augment.streams")]
    with ExitStack() as stack:
        for module in modules:
            if hasattr(module, "runs_triton"):
                stack.enter_context(mock.patch.object(module, "runs_triton", lambda tensor: False))
        yield


def most_videos(size: Size, device: torch.device) -> int:
    """Multiple of 32 up to which our step fits, by trial; uncompiled, which takes no less memory and no minutes."""
    levers = {"fold": True, "pad": True, "static_once": True, "precision": "bf16"}
    videos = 64
    while True:
        try:
            trial = Size(size.encoder, videos * 3 // 2 // 32 * 32, size.frames, size.side)
            batch, method = inputs(trial, device)
            variant(method, batch, device, True, levers)()
        except torch.OutOfMemoryError:
            return videos
        finally:
            torch.compiler.reset()
            torch.cuda.empty_cache()
        videos = trial.videos


def describe(run: Run, clips: int) -> str:
    """Clips a second of steps one after the other, launches of a step, and the share of each phase in it."""
    device = run.updater.device
    on_gpu = device.type == "cuda"
    with phase_seconds(device) as seconds:
        took = seconds_a_step(run, device, steps=10 if on_gpu else 2)
    with profile(activities=[ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if on_gpu else [])]) as profiler:
        seconds_a_step(run, device, steps=1)
    launches = sum(event.count for event in profiler.key_averages() if event.key in LAUNCHES)
    total = sum(seconds[name] for name in PHASES)
    shares = ", ".join(f"{name} {100 * seconds[name] / total:.0f}%" for name in PHASES)
    counted = f", {launches} launches" if on_gpu else ""
    return f"{clips / took:.1f} clips/s{counted}; {shares}"


def seconds_a_step(run: Run, device: torch.device, steps: int) -> float:
    """Wall clock, the host's launches included."""

    def wait() -> None:
        if device.type == "cuda":
            torch.cuda.synchronize(device)

    wait()
    start = time.perf_counter()
    for _ in range(steps):
        run()
    wait()
    return (time.perf_counter() - start) / steps
