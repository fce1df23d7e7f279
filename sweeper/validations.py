"""What a run's validations on the way say, as a search's pruner wants them."""

from __future__ import annotations

import math

from sweeper.layout import AttemptDir
from sweeper.logreader import RunReader
from sweeper.search import Pruner

# What is scored on the way, and not after the weights were averaged or quantised.
ON_THE_WAY = ("plain", None)


class Validations:
    """Reads them as they come. A place is a training step, or a share of the budget in percent."""

    def __init__(self, attempt: AttemptDir, pruner: Pruner, offset: int = 0) -> None:
        """Reads events from so many bytes on, as `EventReader` does."""
        self._reader = RunReader(attempt, offset)
        self._pruner = pruner
        self._fraction = 0.0

    def read(self) -> list[tuple[int, float]]:
        """Place and val_bpb of those since the last call; of several at one place the first."""
        found: dict[int, float] = {}
        for event in self._reader.read():
            if event["kind"] == "step" and isinstance(event.get("progress"), int | float):
                self._fraction = float(event["progress"])
            if event["kind"] != "val" or event.get("metric") not in ON_THE_WAY:
                continue
            place, value = self._place(event.get("step")), event.get("val_bpb")
            if place and isinstance(value, int | float) and math.isfinite(value):
                found.setdefault(place, float(value))
        return list(found.items())

    def _place(self, step: object) -> int:
        """Where a validation belongs; 0 where it is too early to count."""
        if self._pruner.by == "step":
            return step if isinstance(step, int) else 0
        return int(100 * self._fraction) // self._pruner.interval * self._pruner.interval
