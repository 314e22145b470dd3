"""Errors that are one clear line for whoever runs a command, and the exit status that each means."""

from __future__ import annotations


class RunError(Exception):
    """Something that stops a command; its text is all that is shown. `status` is the exit status."""

    status = 1


class UsageError(RunError):
    """A command line that cannot be used."""

    status = 2
