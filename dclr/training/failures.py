"""Videos that could not be read: counted, named, and too many of them an error."""

from __future__ import annotations

from collections.abc import Iterable

from dclr.data import VideoError
from dclr.distributed import gather_objects
from dclr.errors import RunError


class TooManyFailures(RunError):
    """More videos than allowed could not be read; the message lists them."""


# A single broken file is more than a hundredth of a small dataset.
FLOOR = 5


class Failures:
    """Unreadable videos of a run: `reasons` (path -> why) and how many samples were `replaced` for them.

    Args:
        videos: size of the dataset.
        max_share: share of it that may fail. Unless it is 0, `FLOOR` videos may, but no more than half of all.

    Attributes:
        allowed: number of videos that may fail.
    """

    def __init__(self, videos: int, max_share: float) -> None:
        self.videos, self.max_share = videos, max_share
        self.allowed = max(int(max_share * videos), min(FLOOR, videos // 2) if max_share else 0)
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
        """Raise `TooManyFailures` where there are more than allowed."""
        if len(self.reasons) > self.allowed:
            raise TooManyFailures(
                f"{len(self.reasons)} of {self.videos} videos could not be read, more than the {self.allowed} that "
                f"data.max_failed_share = {self.max_share:g} allows: {self.listing()}"
            )

    def listing(self) -> str:
        """Every failed video and why, on one line."""
        return "; ".join(f"{path}: {reason}" for path, reason in sorted(self.reasons.items()))

    def state_dict(self) -> dict:
        return {"reasons": self.reasons, "replaced": self.replaced}

    def load_state_dict(self, state: dict) -> None:
        self.reasons, self.replaced = dict(state["reasons"]), state["replaced"]
