"""The command line: `dclr VERB`. Words become a configuration, and the verb's function is called with it.

A verb is a file of `dclr.commands`, imported when it is asked for. Exit status: 0 success; 1 an error; 2 a wrong
command line; 128 + n stopped by signal n, with the run saved where there is one.
"""

from __future__ import annotations

import os
import shlex
import signal
import sys
import threading
from collections.abc import Callable, Sequence
from contextlib import suppress
from importlib import import_module
from pathlib import Path
from typing import Any, NamedTuple

import dclr
from dclr import help
from dclr.errors import RunError, UsageError
from dclr.suggest import did_you_mean


class Verb(NamedTuple):
    """A verb of the command line.

    Attributes:
        module: file of `dclr.commands`.
        summary: one line of help.
        config: name of its configuration in that file.
        help: what `--help` shows, where that is not the list of all flags, which is then `--help-all`.
        call: what is done with the arguments, where it is more than parsing a configuration and calling the verb.
    """

    module: str
    summary: str
    config: str = ""
    help: Callable[[], str] | None = None
    call: Callable[[list[str]], None] | None = None


def main(argv: Sequence[str] | None = None) -> None:
    """Run a command line (default: the process') and exit with its status."""
    _repair_streams()
    argv = list(sys.argv[1:] if argv is None else argv)
    debug = "--debug" in argv
    try:
        run([argument for argument in argv if argument != "--debug"])
        sys.stdout.flush()
    except BrokenPipeError:
        # Whoever reads the output has seen enough, as `head` has. Python flushes once more at its end.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(128 + signal.SIGPIPE)
    except BaseException as error:
        if debug or isinstance(error, SystemExit):
            raise
        message, status = _explain(error)
        process = f"[process {os.environ['RANK']}] " if "RANK" in os.environ else ""
        with suppress(OSError):  # of a lost terminal
            print(f"{process}dclr: {message}", file=sys.stderr)
        sys.exit(status)


def _repair_streams() -> None:
    """Closed standard streams lead nowhere, and file names that are no text are printed with escapes."""
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        try:
            os.fstat(number)
        except OSError:
            # Otherwise the next file opened, a checkpoint say, would get this number, and what libraries print.
            os.open(os.devnull, os.O_RDWR)
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, "r" if name == "stdin" else "w"))  # noqa: SIM115
    if hasattr(sys.stdout, "reconfigure"):
        sys.stdout.reconfigure(errors="backslashreplace")


def run(argv: list[str]) -> None:
    """Run a command line; errors are raised."""
    if not argv or argv[0] in ("-h", "--help"):
        print(_overview())
    elif argv[0] == "--version":
        print(dclr.__version__)
    elif argv[0] in VERBS:
        name, *rest = argv
        verb = VERBS[name]
        if verb.help and ("--help" in rest or "-h" in rest):
            print(verb.help(), end="")
            return
        with _Interruptible():
            _command(name)
        (verb.call or _call_of(name))(["--help" if argument == "--help-all" else argument for argument in rest])
    else:
        raise UsageError(f"unknown command {argv[0]!r}{did_you_mean(argv[0], VERBS)}")


class _Interruptible:
    """Inside, Ctrl-C ends the process at once; during an import Python could swallow it, or print a traceback."""

    def __enter__(self) -> None:
        self._previous = None
        if threading.current_thread() is threading.main_thread():
            self._previous = signal.getsignal(signal.SIGINT)
        if self._previous is signal.default_int_handler:
            signal.signal(signal.SIGINT, signal.SIG_DFL)

    def __exit__(self, *error: object) -> None:
        if self._previous is signal.default_int_handler:
            signal.signal(signal.SIGINT, self._previous)


def _explain(error: BaseException) -> tuple[str, int]:
    """One line for an error, and the exit status."""
    if isinstance(error, KeyboardInterrupt):
        return "interrupted", 130
    lines = [line for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
    # An error in a decoding process arrives with its traceback, of which the last line is the error.
    message = lines[-1].strip() if "Traceback" in str(error) else " ".join(line.strip() for line in lines)
    if isinstance(error, RunError):
        return message, error.status
    if not isinstance(error, (ValueError, OSError)):
        message = f"{type(error).__name__}: {message} (--debug shows where)"
    return message, 1


def _overview() -> str:
    """Help of `dclr` itself."""
    verbs = "\n".join(f"  {name:10} {verb.summary}" for name, verb in VERBS.items())
    return f"usage: dclr COMMAND [--flags] [--debug]\n\n{verbs}\n\n`dclr COMMAND --help` lists the flags."


def _command(name: str) -> Any:
    """The file of a verb."""
    return import_module(f"dclr.commands.{VERBS[name].module}")


def _parse(name: str, argv: list[str], default: Any, kind: Any = None) -> Any:
    """Flags laid over a configuration, under the verb's name and summary."""
    from dclr.flags import parse

    return parse(kind or type(default), argv, default, prog=f"dclr {name}", description=VERBS[name].summary)


def _call_of(name: str) -> Callable[[list[str]], None]:
    """Parse the verb's configuration, and call its function with it."""

    def call(argv: list[str]) -> None:
        import dataclasses

        import tyro

        command = _command(name)
        kind, none = getattr(command, VERBS[name].config), (dataclasses.MISSING, dataclasses.MISSING)
        required = [each.name for each in dataclasses.fields(kind) if (each.default, each.default_factory) == none]
        getattr(command, name)(_parse(name, argv, kind(**dict.fromkeys(required, tyro.MISSING))))

    return call


def _pretrain(argv: list[str]) -> None:
    from dclr.flags import take
    from dclr.presets import PRESETS

    switches = ("--list-presets", "--resume", "--resume-or-start", "--allow-changes")
    options, rest = take(argv, values=("--preset", "--config", "--method"), switches=switches)
    config = _pretrain_config(options, rest, "pretrain")
    if "--list-presets" in options:
        for name, preset in PRESETS.items():
            print(f"{name:20} {(preset.__doc__ or '').partition(chr(10))[0]}".rstrip())
        return
    resume = "or_start" if "--resume-or-start" in options else "--resume" in options
    folder = _command("pretrain").pretrain(config, resume, allow_changes="--allow-changes" in options)
    if os.environ.get("RANK", "0") == "0":  # of processes started together, the first
        _draw_curves(str(folder))
        run = shlex.quote(str(folder))
        print(
            "Next, what it learned:\n"
            f"  dclr visualize --checkpoint {run}  # adds pictures of the encoder to that page\n"
            f"  dclr extract --checkpoint {run}  # writes the features of the videos\n"
            f"  dclr knn --checkpoint {run}  # classifies videos by their neighbours, where they have classes"
        )


def _draw_curves(run: str) -> None:
    visualize = _command("visualize")
    visualize.visualize(visualize.VisualizeConfig(run, curves_only=True))


def _profile(argv: list[str]) -> None:
    from dclr.flags import take

    values = ("--preset", "--config", "--method", "--steps", "--trace")
    options, rest = take(argv, values=values, switches=("--nsight",))
    steps = options.get("--steps", "5")
    if not steps.isdecimal() or not int(steps):
        raise UsageError(f"--steps: got {steps!r}, expected a number of steps, at least 1")
    config = _pretrain_config(options, rest, "profile")
    trace = None if "--nsight" in options else Path(options.get("--trace", "trace.json"))
    _command("profile").profile(config, int(steps), trace)


def _pretrain_config(options: dict[str, str], rest: list[str], verb: str) -> Any:
    from dclr.config import PretrainConfig

    base = _base_config(options, rest)
    # The method's own class in place of the type variable gives its flags.
    return _parse(verb, rest, base, PretrainConfig[type(base.method)])


def _base_config(options: dict[str, str], rest: list[str]) -> Any:
    """The configuration that flags are laid over."""
    from dclr.config import ConfigError, PretrainConfig, load, update
    from dclr.flags import take
    from dclr.presets import PRESETS

    config = PretrainConfig()
    if "--preset" in options:
        name = options["--preset"]
        if name not in PRESETS:
            raise UsageError(f"unknown preset {name!r}{did_you_mean(name, PRESETS)}")
        config = PRESETS[name]()
        if config.output == PretrainConfig().output:
            config.output = f"runs/{name}"
    try:
        if "--config" in options:
            config = load(options["--config"], config)
        elif {"--resume", "--resume-or-start"} & options.keys() and "--preset" not in options:
            output = take(rest, values=("--output",))[0].get("--output", config.output)
            saved = Path(output).expanduser() / "config.yaml"
            config = load(saved, config) if saved.exists() else config
        if "--method" in options:
            config = update(config, {"method": {"name": options["--method"]}})
    except ConfigError as error:
        raise UsageError(str(error)) from error
    return config


def _finetune(argv: list[str]) -> None:
    import dataclasses

    import tyro

    from dclr.flags import take

    command = _command("finetune")
    options, rest = take(argv, values=("--recipe",))
    name = options.get("--recipe", "dclr")
    if name not in command.RECIPES:
        raise UsageError(f"unknown recipe {name!r}{did_you_mean(name, command.RECIPES)}")
    config = _parse("finetune", rest, dataclasses.replace(command.RECIPES[name](), checkpoint=tyro.MISSING))
    if config.resume and "--recipe" not in options:
        config = _parse("finetune", rest, command.saved_settings(config) or config)
    record = command.finetune(config)
    if record:  # of processes started together, the first
        _draw_curves(record["checkpoint"])


def _by_recipe(name: str) -> Callable[[list[str]], None]:
    """As `_call_of`, with --recipe for the configuration that flags are laid over."""

    def call(argv: list[str]) -> None:
        import tyro

        from dclr.config import ConfigError
        from dclr.flags import take

        command = _command(name)
        options, rest = take(argv, values=("--recipe",))
        try:
            default = command.recipe_config(name, options.get("--recipe"), tyro.MISSING)
        except ConfigError as error:
            raise UsageError(str(error)) from error
        getattr(command, name)(_parse(name, rest, default))

    return call


def _ablate(argv: list[str]) -> None:
    from dclr.flags import take

    command = _command("ablate")
    size = take(argv, values=("--size",))[0].get("--size", "cpu")
    # The videos' flags are laid over those of the size.
    command.ablate(_parse("ablate", argv, command.AblateConfig(size=size if size in command.SIZES else "cpu")))


VERBS: dict[str, Verb] = {
    "prepare": Verb(
        "prepare",
        "Transcode a dataset once, to a copy that is several times faster to sample; resumes.",
        "PrepareConfig",
    ),
    "check": Verb(
        "check",
        "Compare a dataset with its official lists; find missing, extra, unreadable and short videos.",
        "CheckConfig",
    ),
    "pretrain": Verb(
        "pretrain",
        "Pretrain an encoder; --preset NAME, then --config run.yaml, then flags; --resume, --list-presets.",
        help=help.pretrain_help,
        call=_pretrain,
    ),
    "profile": Verb(
        "profile",
        "Profile steps of a pretraining run: flags as of pretrain, --steps N, --trace FILE, or --nsight under Nsight.",
        call=_profile,
    ),
    "evaluate": Verb(
        "evaluate",
        "Linear probe, nearest neighbours and retrieval in one, each video encoded once; --recipe as below.",
        call=_by_recipe("evaluate"),
    ),
    "linear": Verb(
        "evaluate",
        "Linear probe of a checkpoint on a dataset; --recipe dclr, fame, videomoco.",
        call=_by_recipe("linear"),
    ),
    "finetune": Verb(
        "finetune",
        "Train a checkpoint's encoder with a classifier on a dataset, and test it; --recipe dclr, fame, dualvar_...",
        call=_finetune,
    ),
    "retrieve": Verb(
        "evaluate",
        "Nearest-neighbour retrieval with the features of a checkpoint; --recipe dclr, literal, fame, dualvar.",
        call=_by_recipe("retrieve"),
    ),
    "knn": Verb(
        "evaluate",
        "Classify the test videos by a vote of the nearest training videos.",
        call=_by_recipe("knn"),
    ),
    "extract": Verb(
        "extract",
        "Write the features of a dataset's videos to train.npz and test.npz.",
        "ExtractConfig",
    ),
    "visualize": Verb(
        "visualize",
        "Draw curves, activation maps and retrieved videos of a run, into one page; --curves-only needs no videos.",
        "VisualizeConfig",
    ),
    "export": Verb(
        "export",
        "Write the encoder of a checkpoint as weights, a program or an ONNX graph.",
        "ExportConfig",
    ),
    "synth": Verb("synth", "Write a labelled set of videos in which motion and scene are independent.", "SynthCommand"),
    "demo": Verb(
        "demo", "Generate videos, pretrain vanilla and DCLR on them, and compare what they learned.", "DemoConfig"
    ),
    "ablate": Verb(
        "ablate",
        "Pretrain rows of the papers' tables on generated videos over several seeds; a table and a plot of them.",
        call=_ablate,
    ),
    "bench": Verb(
        "bench",
        "Time the kernels against their peers; --plot draws results, --tune searches a config table on this GPU.",
        "BenchConfig",
    ),
    "doctor": Verb("doctor", "Check this installation: versions, devices, kernels, decoding, disk.", "DoctorConfig"),
}
