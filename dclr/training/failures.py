"""Videos that could not be read: counted, named, and too many of them an error."""

from __future__ import annotations

from collections.abc import Iterable

from dclr.data import VideoError
from dclr.distributed import gather_objects
from dclr.errors import RunError


class TooManyFailures(RunError):
    """More videos than allowed could not be read; the message lists them."""


class Failures:
    """Unreadable videos of a run: `reasons` (path -> why) and how many samples were `replaced` for them.

    Args:
        videos: size of the dataset.
        max_share: share of it that may fail.
    """

    def __init__(self, videos: int, max_share: float) -> None:
        self.videos, self.max_share = videos, max_share
        self.reasons: dict[str, str] = {}
        self.replaced = 0

    def add(self, errors: Iterable[VideoError]) -> list[str]:
        """Note the failures of a batch; returns those of videos that had not failed before."""
        new = []
        for error in errors:
            self.replaced += 1
            if error.path not in self.reasons:
                new.append(str(error))
            self.reasons[error.path] = error.reason
        return new

    def merged(self) -> Failures:
        """The failures of all processes; every process must call it."""
        total = Failures(self.videos, self.max_share)
        for reasons, replaced in gather_objects((self.reasons, self.replaced)):
            total.reasons |= reasons
            total.replaced += replaced
        return total

    def check(self) -> None:
        """Raise `TooManyFailures` where the share is exceeded."""
        if len(self.reasons) > self.max_share * self.videos:
            raise TooManyFailures(
                f"{len(self.reasons)} of {self.videos} videos could not be read, more than "
                f"data.max_failed_share = {self.max_share:g} allows: {self.listing()}"
            )

    def listing(self) -> str:
        """Every failed video and why, on one line."""
        return "; ".join(f"{path}: {reason}" for path, reason in sorted(self.reasons.items()))

    def state_dict(self) -> dict:
        return {"reasons": self.reasons, "replaced": self.replaced}

    def load_state_dict(self, state: dict) -> None:
        self.reasons, self.replaced = dict(state["reasons"]), state["replaced"]
