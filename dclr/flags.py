"""Flags laid over a configuration, with one clear line for each that does not fit."""

from __future__ import annotations

import contextlib
import dataclasses
import io
import re
from collections.abc import Iterator, Sequence
from typing import Any, TypeVar

import tyro

from dclr.errors import UsageError
from dclr.suggest import did_you_mean

Config = TypeVar("Config")


def take(
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


def parse(kind: type[Config], argv: list[str], default: Config, prog: str, description: str) -> Config:
    """Flags laid over a configuration.

    Raises:
        UsageError: an unknown flag, with the nearest known one, or a value that does not fit.
    """
    shown = io.StringIO()
    try:
        with contextlib.redirect_stderr(shown):
            config, unknown = tyro.cli(
                kind,
                prog=prog,
                description=description,
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
        hint = did_you_mean(flag, known) if flag.startswith("-") else ""
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
    message = re.sub(r"invalid literal for int\(\) with base 10: (.*)", r"got \1, expected a whole number", message)
    message = re.sub(r"could not convert string to float: (.*)", r"got \1, expected a number", message)
    message = re.sub(r"^Missing from [^:]*: (--[\w.-]+).*", r"\1 is required", message)
    return re.sub(r"^Error parsing ([\w.-]+: (?=[\w.]+: got))?", "", message)
