"""The command line: `dclr VERB`. Every verb is a Python function that takes one configuration.

Exit status: 0 success; 1 an error; 2 a wrong command line; 128 + n stopped by signal n with the run saved.
"""

from __future__ import annotations

import contextlib
import dataclasses
import io
import os
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import tyro

import dclr
from dclr.ablate import SIZES, AblateConfig, ablate
from dclr.bench import BenchConfig, bench
from dclr.config import ConfigError, PretrainConfig, load, nearest, update
from dclr.data.prepare import PrepareConfig, prepare
from dclr.data.synth import SynthConfig, synthesize
from dclr.demo import DemoConfig, demo
from dclr.evaluate import KnnConfig, LinearProbeConfig, RetrieveConfig, knn, linear, retrieve
from dclr.export import ExportConfig, ExtractConfig, export, extract
from dclr.finetune import RECIPES, FinetuneConfig, finetune, saved_settings
from dclr.presets import PRESETS
from dclr.profile import profile
from dclr.training import CheckpointError, NonFiniteLoss, Stopped, TooManyFailures, pretrain
from dclr.visualize import VisualizeConfig, visualize

Config = TypeVar("Config")


class UsageError(Exception):
    """A command line that cannot be used, in one line."""


@dataclass
class SynthCommand:
    """Write a labelled set of videos in which motion and scene are independent."""

    root: str
    """Folder to write to: videos/*.mp4 and labels.csv."""
    synth: SynthConfig = field(default_factory=SynthConfig)


def main(argv: Sequence[str] | None = None) -> None:
    """Run a command line (default: the process') and exit with its status."""
    argv = list(sys.argv[1:] if argv is None else argv)
    debug = "--debug" in argv
    try:
        run([argument for argument in argv if argument != "--debug"])
    except BaseException as error:
        if debug or isinstance(error, SystemExit):
            raise
        message, status = _explain(error)
        process = f"[process {os.environ['RANK']}] " if "RANK" in os.environ else ""
        print(f"{process}dclr: {message}", file=sys.stderr)
        sys.exit(status)


def run(argv: list[str]) -> None:
    """Run a command line; errors are raised."""
    if not argv or argv[0] in ("-h", "--help"):
        print(_overview())
    elif argv[0] == "--version":
        print(dclr.__version__)
    elif argv[0] in VERBS:
        VERBS[argv[0]](argv[1:])
    else:
        raise UsageError(f"unknown command {argv[0]!r}{nearest(argv[0], VERBS)}")


def _explain(error: BaseException) -> tuple[str, int]:
    """One line for an error, and the exit status."""
    if isinstance(error, KeyboardInterrupt):
        return "interrupted", 130
    if isinstance(error, Stopped):
        return str(error), 128 + error.signal
    lines = [line for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
    # An error in a decoding process arrives with its traceback, of which the last line is the error.
    message = lines[-1].strip() if "Traceback" in str(error) else " ".join(line.strip() for line in lines)
    if isinstance(error, UsageError):
        return message, 2
    if not isinstance(error, (ValueError, OSError, CheckpointError, NonFiniteLoss, TooManyFailures)):
        message = f"{type(error).__name__}: {message} (--debug shows where)"
    return message, 1


def _overview() -> str:
    """Help of `dclr` itself."""
    verbs = "\n".join(f"  {name:10} {(verb.__doc__ or '').splitlines()[0]}" for name, verb in VERBS.items())
    return f"usage: dclr COMMAND [--flags] [--debug]\n\n{verbs}\n\n`dclr COMMAND --help` lists the flags."


def _prepare(argv: list[str]) -> None:
    """Transcode a dataset once, to a copy that is several times faster to sample; resumes."""
    missing = PrepareConfig(dataset=tyro.MISSING, root=tyro.MISSING, out=tyro.MISSING)
    prepare(_parse(PrepareConfig, argv, "prepare", missing))


def _pretrain(argv: list[str]) -> None:
    """Pretrain an encoder; --preset NAME, then --config run.yaml, then flags; --resume, --list-presets."""
    options, rest = _take(argv, values=("--preset", "--config", "--method"), switches=("--resume", "--list-presets"))
    config = _pretrain_config(options, rest, "pretrain")
    if "--list-presets" in options:
        for name, preset in PRESETS.items():
            print(f"{name:20} {(preset.__doc__ or '').splitlines()[0]}")
        return
    folder = pretrain(config, resume="--resume" in options)
    if os.environ.get("RANK", "0") == "0":  # of processes started together, the first
        visualize(VisualizeConfig(str(folder), curves_only=True))


def _profile(argv: list[str]) -> None:
    """Profile steps of a pretraining run: flags as of pretrain, --steps N, --trace FILE, or --nsight under Nsight."""
    values = ("--preset", "--config", "--method", "--steps", "--trace")
    options, rest = _take(argv, values=values, switches=("--nsight",))
    steps = options.get("--steps", "5")
    if not steps.isdecimal() or not int(steps):
        raise UsageError(f"--steps: got {steps!r}, expected a number of steps, at least 1")
    config = _pretrain_config(options, rest, "profile")
    profile(config, int(steps), None if "--nsight" in options else Path(options.get("--trace", "trace.json")))


def _pretrain_config(options: dict[str, str], rest: list[str], verb: str) -> Any:
    base = _base_config(options, rest)
    # The method's own class in place of the type variable gives its flags.
    return _parse(PretrainConfig[type(base.method)], rest, verb, base)


def _base_config(options: dict[str, str], rest: list[str]) -> Any:
    """The configuration that flags are laid over."""
    config = PretrainConfig()
    if "--preset" in options:
        name = options["--preset"]
        if name not in PRESETS:
            raise UsageError(f"unknown preset {name!r}{nearest(name, PRESETS)}")
        config = PRESETS[name]()
        if config.output == PretrainConfig().output:
            config.output = f"runs/{name}"
    try:
        if "--config" in options:
            config = load(options["--config"], config)
        elif "--resume" in options and "--preset" not in options:
            output = _take(rest, values=("--output",))[0].get("--output", config.output)
            saved = Path(output).expanduser() / "config.yaml"
            config = load(saved, config) if saved.exists() else config
        if "--method" in options:
            config = update(config, {"method": {"name": options["--method"]}})
    except ConfigError as error:
        raise UsageError(str(error)) from error
    return config


def _linear(argv: list[str]) -> None:
    """Linear probe of a checkpoint on a dataset."""
    linear(_parse(LinearProbeConfig, argv, "linear", LinearProbeConfig(checkpoint=tyro.MISSING)))


def _retrieve(argv: list[str]) -> None:
    """Nearest-neighbour retrieval with the features of a checkpoint."""
    retrieve(_parse(RetrieveConfig, argv, "retrieve", RetrieveConfig(checkpoint=tyro.MISSING)))


def _knn(argv: list[str]) -> None:
    """Classify the test videos by a vote of the nearest training videos."""
    knn(_parse(KnnConfig, argv, "knn", KnnConfig(checkpoint=tyro.MISSING)))


def _extract(argv: list[str]) -> None:
    """Write the features of a dataset's videos to train.npz and test.npz."""
    extract(_parse(ExtractConfig, argv, "extract", ExtractConfig(checkpoint=tyro.MISSING)))


def _export(argv: list[str]) -> None:
    """Write the encoder of a checkpoint as a safetensors file."""
    export(_parse(ExportConfig, argv, "export", ExportConfig(checkpoint=tyro.MISSING)))


def _finetune(argv: list[str]) -> None:
    """Train a checkpoint's encoder with a classifier on a dataset, and test it; --recipe dclr, fame, dualvar_..."""
    options, rest = _take(argv, values=("--recipe",))
    name = options.get("--recipe", "dclr")
    if name not in RECIPES:
        raise UsageError(f"unknown recipe {name!r}{nearest(name, RECIPES)}")
    config = _parse(FinetuneConfig, rest, "finetune", dataclasses.replace(RECIPES[name](), checkpoint=tyro.MISSING))
    if config.resume and "--recipe" not in options:
        config = _parse(FinetuneConfig, rest, "finetune", saved_settings(config) or config)
    record = finetune(config)
    if record:  # of processes started together, the first
        visualize(VisualizeConfig(record["checkpoint"], curves_only=True))


def _visualize(argv: list[str]) -> None:
    """Draw curves, activation maps and retrieved videos of a run, into one page; --curves-only needs no videos."""
    visualize(_parse(VisualizeConfig, argv, "visualize", VisualizeConfig(checkpoint=tyro.MISSING)))


def _synth(argv: list[str]) -> None:
    """Write a labelled set of videos in which motion and scene are independent."""
    command = _parse(SynthCommand, argv, "synth", SynthCommand(tyro.MISSING))
    print(synthesize(Path(command.root).expanduser(), command.synth))


def _demo(argv: list[str]) -> None:
    """Generate videos, pretrain vanilla and DCLR on them, and compare what they learned."""
    demo(_parse(DemoConfig, argv, "demo", DemoConfig()))


def _ablate(argv: list[str]) -> None:
    """Pretrain rows of the papers' tables on generated videos over several seeds; a table and a plot of them."""
    size = _take(argv, values=("--size",))[0].get("--size", "cpu")
    # The videos' flags are laid over those of the size.
    ablate(_parse(AblateConfig, argv, "ablate", AblateConfig(size=size if size in SIZES else "cpu")))


def _bench(argv: list[str]) -> None:
    """Time the kernels against their peers; --plot draws results, --tune searches a config table on this GPU."""
    bench(_parse(BenchConfig, argv, "bench", BenchConfig()))


VERBS: dict[str, Callable[[list[str]], None]] = {
    "prepare": _prepare,
    "pretrain": _pretrain,
    "profile": _profile,
    "linear": _linear,
    "finetune": _finetune,
    "retrieve": _retrieve,
    "knn": _knn,
    "extract": _extract,
    "visualize": _visualize,
    "export": _export,
    "synth": _synth,
    "demo": _demo,
    "ablate": _ablate,
    "bench": _bench,
}


def _take(
    argv: Sequence[str], values: Sequence[str] = (), switches: Sequence[str] = ()
) -> tuple[dict[str, str], list[str]]:
    """The flags named, as a dict, and the rest of the command line."""
    taken: dict[str, str] = {}
    rest: list[str] = []
    arguments = iter(argv)
    for argument in arguments:
        flag, equals, value = argument.partition("=")
        if flag in values:
            value = value if equals else next(arguments, "")
            if not value or value.startswith("--"):
                raise UsageError(f"{flag}: expected a value")
            taken[flag] = value
        elif argument in switches:
            taken[argument] = ""
        else:
            rest.append(argument)
    return taken, rest


def _parse(kind: type[Config], argv: list[str], verb: str, default: Config) -> Config:
    """Flags laid over a configuration.

    Raises:
        UsageError: an unknown flag, with the nearest known one, or a value that does not fit.
    """
    shown = io.StringIO()
    try:
        with contextlib.redirect_stderr(shown):
            config, unknown = tyro.cli(
                kind,
                prog=f"dclr {verb}",
                description=VERBS[verb].__doc__,
                args=argv,
                default=default,
                return_unknown_args=True,
                config=(tyro.conf.AvoidSubcommands,),
            )
    except SystemExit as stop:
        if not stop.code:
            raise
        raise UsageError(_first_sentence(shown.getvalue())) from None
    if unknown:
        flag = unknown[0].partition("=")[0]
        known = list(_flags(default))
        hint = nearest(flag, known) if flag.startswith("-") else ""
        raise UsageError(f"unknown argument {flag!r}{hint if 'did you mean' in hint else ''}")
    return config


def _flags(config: Any, prefix: str = "--") -> Iterator[str]:
    for item in dataclasses.fields(config):
        name = prefix + item.name.rstrip("_").replace("_", "-")
        value = getattr(config, item.name)
        if dataclasses.is_dataclass(value):
            yield from _flags(value, f"{name}.")
        else:
            yield name


def _first_sentence(box: str) -> str:
    """The message in the box that tyro draws around it, without title, help and advice."""
    lines = [line.strip(" │╭╮╰╯") for line in re.sub(r"\x1b\[[0-9;]*m", "", box).splitlines()]
    message = " ".join(line for line in lines[1:] if line.strip("─-"))
    message = re.split(r"Argument helptext|For full helptext", message)[0].strip()
    message = re.sub(r"^Missing from [^:]*: (--[\w.-]+).*", r"\1 is required", message)
    return re.sub(r"^Error parsing ([\w.-]+: (?=[\w.]+: got))?", "", message)
