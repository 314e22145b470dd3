"""Configuration of a pretraining run: nested dataclasses, from a preset, then a YAML file, then flags."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import types
import typing
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Generic, Literal, TypeVar

import tyro
import yaml

from dclr.augment import AugmentConfig
from dclr.files import write_or_explain
from dclr.methods import METHODS, DCLRConfig, MethodConfig, method_name
from dclr.methods.renamed import current_settings
from dclr.models import ENCODERS
from dclr.suggest import did_you_mean


class ConfigError(ValueError):
    """A configuration that cannot be used, in one line."""


def default_workers() -> int:
    """Loader processes for this process' share of the machine's cores: one for each, 1 to 4."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, min(4, cores // int(os.environ.get("LOCAL_WORLD_SIZE", 1))))


@dataclass
class DataConfig:
    """Videos and the clips that are cut from them."""

    dataset: str = "ucf101"
    """A dataset's name, or `folder` for any videos; `dclr check` lists them."""
    root: str = ""
    """Folder of the dataset."""
    annotations: str | None = None
    """Split file or folder of split files, where they are not beside the videos; for `folder` a csv or txt list."""
    label: str | None = None
    """Column of the list with the class."""
    where: str | None = None
    """Rows of the list to take, as COLUMN=VALUE."""
    split: int = 1
    """Number of the official split, where the dataset has several."""
    subset: Literal["train", "test"] = "train"
    """Part of the split."""
    frames: int = 16
    """Frames that the encoder sees; one more is decoded for the frame difference."""
    stride: int = 2
    """Raw frames from one frame of a clip to the next."""
    size: int = 112
    """Height and width of a clip, pixels."""
    scale: tuple[float, float] = (0.2, 1.0)
    """Range of the crop's share of the frame's area."""
    ratio: tuple[float, float] = (3 / 4, 4 / 3)
    """Range of the crop's aspect ratio."""
    workers: int = field(default_factory=default_workers)
    """Loader processes on each rank; by default as many as it has cores, at most 4."""
    holdout: float | None = None
    """Leave out this share of each class, which is for testing, where a `folder` says nothing of a split."""
    holdout_seed: int = 0
    """Chooses which videos those are."""
    cache: Literal["memory"] | None = None
    """Keep decoded videos in memory: for sets that fit, with `workers` 0."""
    allow_missing: bool = False
    """Go on without the videos that the split names but the folder lacks, and report their number."""
    max_failed_share: float = 0.01
    """Stop when more than this share of the videos could not be decoded, and more than 5; others stand in for them
    until then. 0 allows none."""

    def __post_init__(self) -> None:
        at_least("data", self, frames=1, stride=1, size=1, workers=0, max_failed_share=0)
        if not 0 < self.scale[0] <= self.scale[1] <= 1:
            raise ConfigError(f"data.scale: got {self.scale}, expected two shares of the frame, 0 < low <= high <= 1")
        if not 0 < self.ratio[0] <= self.ratio[1]:
            raise ConfigError(f"data.ratio: got {self.ratio}, expected two aspect ratios, 0 < low <= high")


@dataclass
class OptimConfig:
    """Optimiser and learning rate."""

    optimizer: Literal["sgd", "adamw"] = "sgd"
    """Stochastic gradient descent with momentum, or Adam with decoupled weight decay."""
    lr: float = 0.01
    """Learning rate."""
    scale_lr: bool = False
    """Take `lr` as that of a global batch of 64, and scale it linearly with the batch."""
    momentum: float = 0.9
    """Of SGD: share of the last update that the next one repeats."""
    weight_decay: float = 1e-4
    """Share of each weight, times the rate, that a step takes away."""
    schedule: Literal["step", "cosine", "constant"] = "step"
    """How the rate falls from epoch to epoch."""
    milestones: tuple[float, ...] = (0.6, 0.8)
    """Shares of the epochs after which the step schedule multiplies the rate by 0.1."""
    warmup: int = 0
    """Steps of linear warm-up."""
    clip: float | None = None
    """Norm that the gradient is scaled down to where it is longer."""

    def __post_init__(self) -> None:
        at_least("optim", self, momentum=0, weight_decay=0, warmup=0)
        if not all(0 <= share <= 1 for share in self.milestones):
            raise ConfigError(f"optim.milestones: got {self.milestones}, expected shares of the epochs, 0 to 1")
        if not self.lr > 0:
            raise ConfigError(f"optim.lr: got {self.lr}, expected a learning rate above 0")
        if self.clip is not None and not self.clip > 0:
            raise ConfigError(f"optim.clip: got {self.clip}, expected a norm above 0")


@dataclass
class TrainConfig:
    """The run."""

    epochs: int = 200
    """Passes over the videos, with one batch entry of each."""
    batch: int = 64
    """Videos in the global batch."""
    accumulate: int = 1
    """Forward and backward passes whose gradients make one step; each sees batch / accumulate videos."""
    seed: int = 0
    """Of all random numbers; the same seed on the same machine gives the same run."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """auto: the GPU where there is one."""
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    """bf16 runs the encoder under autocast; auto is bf16 on GPUs."""
    sync_bn: bool = True
    """Batch statistics over all GPUs."""
    compile: Literal["default", "reduce-overhead", "max-autotune"] | None = None
    """`torch.compile` the step from clips to losses, in this mode; the last two replay CUDA graphs."""
    fold: bool = False
    """Compute (2+1)D convolutions as 2D ones; like the next two, equal in result."""
    pad: bool = False
    """Compute mid-channels that are no multiple of 8 as if there were more, of zeros."""
    static_once: bool = False
    """Encode the frame of DCLR's static clip once instead of T times; of residual encoders and mixed statistics."""
    deterministic: bool = False
    """Only algorithms that give the same result each time; slower on GPUs."""
    threads: int = 0
    """CPU threads of torch; 0 leaves it to torch."""
    checkpoint_every: int = 10
    """Epochs between checkpoints that are kept; the last one is saved after every epoch."""
    save_every: int = 500
    """Steps between saves of the last checkpoint within an epoch."""
    log_every: int = 10
    """Steps between lines of metrics.jsonl."""
    eval_every: int = 0
    """Epochs between evaluations of the encoder in between, by nearest neighbours of labelled videos; 0 is none."""
    eval_videos: int = 200
    """Training and test videos, so many of each, that they take."""
    trackers: tuple[Literal["wandb", "mlflow"], ...] = ()
    """Services that get the numbers of metrics.jsonl too; each is an extra: pip install dclr[wandb]."""
    tensorboard: bool = True
    """Also write the metrics as TensorBoard events."""
    timeout: float = 30.0
    """Minutes that processes wait for one that does not answer, before they stop and name it."""

    def __post_init__(self) -> None:
        least = {"epochs": 1, "batch": 1, "accumulate": 1, "seed": 0, "threads": 0}
        least |= {
            "checkpoint_every": 1,
            "save_every": 1,
            "log_every": 1,
            "eval_every": 0,
            "eval_videos": 2,
            "timeout": 0,
        }
        at_least("train", self, **least)
        if self.seed >= 2**64:
            raise ConfigError(f"train.seed: got {self.seed}, expected less than 2^64")
        if self.batch % self.accumulate:
            raise ConfigError(
                f"train.accumulate: got {self.accumulate}, expected a divisor of train.batch {self.batch}"
            )
        if self.accumulate > 1 and self.compile in ("reduce-overhead", "max-autotune"):
            raise ConfigError(
                f"train.accumulate: got {self.accumulate}, expected 1 with train.compile {self.compile}: "
                f"a CUDA graph overwrites the gradients of the part before"
            )


AnyMethodConfig = TypeVar("AnyMethodConfig", bound=MethodConfig)


@dataclass
class PretrainConfig(Generic[AnyMethodConfig]):
    """Everything of a pretraining run; saved resolved in its folder as config.yaml."""

    output: str = "runs/pretrain"
    """Run folder: configuration, metrics, checkpoints, TensorBoard events."""
    encoder: Annotated[str, tyro.conf.arg(metavar=f"{{{','.join(ENCODERS)}}}")] = "r2plus1d_vcop"
    """Name of the video encoder, as of `dclr.models.ENCODERS`."""
    data: DataConfig = field(default_factory=DataConfig)
    """Videos and clips."""
    augment: AugmentConfig = field(default_factory=AugmentConfig)
    """Random changes of the clips."""
    optim: OptimConfig = field(default_factory=OptimConfig)
    """Optimiser and learning rate."""
    train: TrainConfig = field(default_factory=TrainConfig)
    """The run."""
    method: AnyMethodConfig = field(default_factory=DCLRConfig)
    """What is learned; its class says which method."""
    encoder_weights: str | None = None
    """Weights to start from, not random ones: a run, a checkpoint, an export, or those of others (SOURCE:FILE)."""


def at_least(section: str, config: Any, **least: float) -> None:
    """Raises ConfigError where a setting of a section is below its least value."""
    for name, low in least.items():
        if not getattr(config, name) >= low:
            raise ConfigError(f"{section}.{name}: got {getattr(config, name)}, expected at least {low}")


def flat_settings(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """The settings in nested plain values, each with its whole name: `data.root`."""
    for key, value in values.items():
        if isinstance(value, Mapping):
            yield from flat_settings(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def to_dict(config: Any) -> dict[str, Any]:
    """Nested plain values; the method also says its `name`. A trailing underscore, as of `lambda_`, is left out."""

    def plain(value: Any) -> Any:
        if dataclasses.is_dataclass(value):
            return {f.name.rstrip("_"): plain(getattr(value, f.name)) for f in dataclasses.fields(value)}
        return list(value) if isinstance(value, tuple) else value

    values = plain(config)
    if isinstance(config, PretrainConfig):
        values["method"] = {"name": method_name(config.method), **values["method"]}
    return values


def update(config: Any, values: dict[str, Any], where: str = "") -> Any:
    """A copy of `config` with the values of a nested dictionary, of which every key must be a field.

    Raises:
        ConfigError: an unknown key, with the nearest known one, or a value of the wrong kind.
    """
    if not isinstance(values, dict):
        raise ConfigError(f"{where or 'configuration'}: got {values!r}, expected keys and values")
    try:
        values = current_settings(values) if where == "method" else dict(values)
    except ValueError as error:
        raise ConfigError(str(error)) from error
    if where == "method":
        config = _named_method(config, values.pop("name", method_name(config)))
    fields = {f.name.rstrip("_"): f for f in dataclasses.fields(config)}
    hints = typing.get_type_hints(type(config), include_extras=False)
    changed = {}
    for key, value in values.items():
        # YAML 1.1 reads `on`, without quotes, as true.
        key = "on" if key is True else str(key)
        path = f"{where}.{key}" if where else key
        if key not in fields:
            raise ConfigError(f"unknown configuration key {path}{did_you_mean(key, fields)}")
        name = fields[key].name
        current = getattr(config, name)
        if dataclasses.is_dataclass(current):
            changed[name] = update(current, value, path)
        else:
            changed[name] = _converted(value, hints[name], path)
    return dataclasses.replace(config, **changed)


def _named_method(config: Any, name: str) -> Any:
    if name not in METHODS:
        raise ConfigError(f"unknown method {name}{did_you_mean(name, METHODS)}")
    kind = METHODS[name][0]
    return config if type(config) is kind else kind()


def _converted(value: Any, hint: Any, path: str) -> Any:
    """YAML's value as the field's type: lists become tuples, whole numbers floats."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin in (types.UnionType, typing.Union):
        if value is None and type(None) in arguments:
            return None
        return _converted(value, next(a for a in arguments if a is not type(None)), path)
    if origin is Literal:
        if value not in arguments:
            raise ConfigError(f"{path}: got {value!r}, expected one of {', '.join(map(str, arguments))}")
        return value
    if origin is tuple:
        kinds = [arguments[0]] * len(value) if arguments[-1] is Ellipsis else arguments
        if not isinstance(value, (list, tuple)) or len(kinds) != len(value):
            raise ConfigError(f"{path}: got {value!r}, expected {len(kinds)} values")
        return tuple(_converted(v, kind, path) for v, kind in zip(value, kinds))
    if hint is float and not isinstance(value, bool):
        # YAML 1.1 reads 1e-3, which has no point, as a string.
        with contextlib.suppress(TypeError, ValueError):
            return float(value)
    if not isinstance(hint, type) or not isinstance(value, hint) or (hint is int and isinstance(value, bool)):
        raise ConfigError(f"{path}: got {value!r}, expected {getattr(hint, '__name__', hint)}")
    return value


def save(config: Any, path: Path, **extra: Any) -> None:
    """Write the resolved configuration as YAML; `extra` (versions, commit) goes under `run`, which loading ignores."""
    write_or_explain(Path(path), yaml.safe_dump({**to_dict(config), "run": extra}, sort_keys=False).encode())


def load(path: str | Path, base: Any = None) -> Any:
    """Configuration of a YAML file over `base` (default: the defaults of `PretrainConfig`)."""
    values = read_values(Path(path).expanduser())
    if values.pop("run", None) is not None:
        values = of_saved_run(values)
    return update(base or PretrainConfig(), values)


def read_values(path: Path) -> dict[str, Any]:
    """The keys and values of a YAML file.

    Raises:
        ConfigError: it cannot be read, or holds something else.
    """
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8")) or {}
    except RecursionError:
        raise ConfigError(f"{path}: cannot be read as a configuration: it is nested too deeply") from None
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ConfigError(f"{path}: cannot be read as a configuration: {' '.join(str(error).split())}") from error
    if not isinstance(values, dict):
        raise ConfigError(f"{path}: got {type(values).__name__}, expected keys and values")
    return values


def of_saved_run(values: dict[str, Any]) -> dict[str, Any]:
    """Settings of a saved run; what had no key when it was saved gets the value that was then built in."""
    optim = values.get("optim")
    if not isinstance(optim, dict):
        return values
    optim = {"scale_lr": True, **optim}  # the rate grew with the batch, before there was a choice
    if optim.get("clip") is None:
        optim.pop("clip_start", None)  # was the first epoch of a clipping that is off
    return {**values, "optim": optim}
