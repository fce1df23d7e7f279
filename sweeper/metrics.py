"""A sweep as numbers over time, on the Prometheus endpoints that Ray's nodes have.

Ray puts `ray_` before each name. A number is there as long as it is told again: those of a run
that has ended, and of a driver that is gone, are gone soon after.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from sweeper.pulse import SlotState
from sweeper.rows import RunState
from sweeper.view import SweepView

EVERY_SECONDS = 5.0
# Name -> what it says, and by what its numbers are told apart.
GAUGES = {
    "sweeper_runs": ("Runs of a sweep by their state.", ("sweep", "state")),
    "sweeper_slots": ("Slots of a sweep by what they do.", ("sweep", "state")),
    "sweeper_slot_utilisation": ("Share of a sweep's slots that are busy.", ("sweep",)),
    "sweeper_step_ms": (
        "Milliseconds per training step of a run at work, over all its steps.",
        ("sweep", "trial", "seed"),
    ),
    "sweeper_gpu_seconds": ("GPU-seconds that a sweep's runs have reserved.", ("sweep",)),
    "sweeper_cost_usd": ("What they cost, by the spec's price.", ("sweep",)),
}
SetGauge = Callable[[str, Mapping[str, str], float], None]


@dataclass
class Metrics:
    """Tells a sweep's numbers to `set_gauge` (name, tags, value), not too often."""

    sweep: str
    set_gauge: SetGauge
    every_seconds: float = EVERY_SECONDS
    _next: float = 0.0

    def update(self, view: SweepView) -> None:
        """Take in the sweep as it is, if it is time for that."""
        if time.monotonic() >= self._next:
            self._next = time.monotonic() + self.every_seconds
            self._tell(view)

    def _tell(self, view: SweepView) -> None:
        for state in RunState:
            self._set("sweeper_runs", view.count(state), state=state)
        states = Counter(slot.state for slot in view.slots)
        for slot_state in SlotState:
            self._set("sweeper_slots", states[slot_state], state=slot_state)
        busy = states[SlotState.BUSY] / max(1, states.total())
        self._set("sweeper_slot_utilisation", busy)
        for run in view.runs:
            if run.state is RunState.RUNNING and run.ms_per_step is not None:
                self._set("sweeper_step_ms", run.ms_per_step, trial=run.trial, seed=str(run.seed))
        self._set("sweeper_gpu_seconds", view.gpu_seconds)
        if view.cost_usd is not None:
            self._set("sweeper_cost_usd", view.cost_usd)

    def _set(self, name: str, value: float, **tags: str) -> None:
        self.set_gauge(name, {"sweep": self.sweep} | tags, value)
