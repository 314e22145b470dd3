"""Ctrl-C, SIGTERM and the loss of the terminal (SIGHUP) as requests to stop after the running step."""

from __future__ import annotations

import signal
import threading
from types import FrameType, TracebackType

from dclr.data.loader import STOP_SIGNALS
from dclr.errors import RunError


class Stopped(RunError):
    """A run that was asked to stop, and has saved itself. `signal` is the signal's number."""

    def __init__(self, message: str, signal: int) -> None:
        super().__init__(message)
        self.signal, self.status = signal, 128 + signal


class StopRequest:
    """Inside, the first of the signals is only noted, in `signal` (0: none); a second Ctrl-C interrupts at once.

    What the process ignores (SIGHUP under nohup) stays ignored. Threads other than the main one cannot take signals;
    there nothing changes.
    """

    def __enter__(self) -> StopRequest:
        self.signal = 0
        self._previous = {}
        if threading.current_thread() is threading.main_thread():
            heeded = [number for number in STOP_SIGNALS if signal.getsignal(number) is not signal.SIG_IGN]
            self._previous = {number: signal.signal(number, self._note) for number in heeded}
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self.signal and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.signal = number
