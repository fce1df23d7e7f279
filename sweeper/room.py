"""Whether there is room for another run on the sweep's disk, and what failed for want of it."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass, replace
from pathlib import Path

from sweeper import disk
from sweeper.failure import is_full_disk
from sweeper.judge import Outcome
from sweeper.rows import AttemptState

# What may have failed for want of room, when there is none.
FOR_WANT_OF_ROOM = frozenset({AttemptState.CRASHED, AttemptState.LOST, AttemptState.BAD_RESULT})


@dataclass(eq=False)
class Room:
    """What one driver has seen of the disk below `path`."""

    path: Path
    reserve_bytes: int
    run_bytes: int = 0  # what the largest attempt so far has written
    full_at: float = -math.inf  # when the disk was last seen full, in Unix seconds
    _refused: bool = False  # a write was, for want of room, and none has gone well since

    def note_size(self, directory: Path) -> None:
        """Take in what an attempt has written."""
        self.run_bytes = max(self.run_bytes, disk.size_of(directory))

    def shortage(self, at_work: int) -> str | None:
        """Why the next run must wait while so many are at work; None where it need not."""
        short = disk.shortage(
            self.path,
            run_bytes=self.run_bytes,
            at_work=at_work,
            reserve_bytes=self.reserve_bytes,
        )
        if self._refused and short is None:
            short = disk.refusal(self.path)
            self._refused = short is not None
        return short

    def explain(self, outcome: Outcome, launched: float) -> Outcome:
        """What did not end well, with the want of room as its reason where that is it.

        It was `launched` then, in Unix seconds: there may be room again by the time that its end
        is looked at.
        """
        if disk.refusal(self.path) is not None:
            self.full_at = time.time()
        if is_full_disk(outcome.message or "") and outcome.state in FOR_WANT_OF_ROOM:
            outcome = replace(outcome, state=AttemptState.NO_SPACE)
        # Free bytes are not all that there must be.
        self._refused |= outcome.state is AttemptState.NO_SPACE
        if launched <= self.full_at and outcome.state in FOR_WANT_OF_ROOM:
            message = f"no space left on the disk of {self.path} ({outcome.message})"
            outcome = replace(outcome, state=AttemptState.NO_SPACE, message=message)
        return outcome
