"""Which numbers of a sweep are told, and how often. That Ray passes them on: test_watch.py."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

from sweeper.metrics import GAUGES, Metrics
from sweeper.pulse import SlotPulse, SlotState
from sweeper.rows import RunState
from sweeper.view import RunView, SweepView

Told = dict[tuple[str, tuple[tuple[str, str], ...]], float]

AT_WORK = RunView(trial="low", seed=42, state=RunState.RUNNING, attempts=1, ms_per_step=30.5)
OVER = dataclasses.replace(AT_WORK, seed=314, state=RunState.FINISHED)
BEGINNING = dataclasses.replace(AT_WORK, seed=7, ms_per_step=None)
SLOTS = tuple(
    SlotPulse(pool="runs", state=state)
    for state in (SlotState.BUSY, SlotState.BUSY, SlotState.BUSY, SlotState.IDLE)
)
VIEW = SweepView(
    name="small",
    runs=[AT_WORK, OVER, BEGINNING],
    seconds_left=None,
    gpu_seconds=7200.0,
    slots=SLOTS,
)


def tell(*views: SweepView, every_seconds: float = 0.0) -> list[Told]:
    """What is told of each of several looks at a sweep."""
    told: list[Told] = []

    def set_gauge(name: str, tags: Mapping[str, str], value: float) -> None:
        assert set(tags) == set(GAUGES[name][1])
        assert tags["sweep"] == "small"
        rest = tuple((key, text) for key, text in tags.items() if key != "sweep")
        told[-1][name, rest] = value

    metrics = Metrics("small", set_gauge, every_seconds)
    for view in views:
        told.append({})
        metrics.update(view)
    return told


def test_a_sweeps_numbers_are_told() -> None:
    (told,) = tell(VIEW)
    assert told == {
        ("sweeper_runs", (("state", "pending"),)): 0,
        ("sweeper_runs", (("state", "running"),)): 2,
        ("sweeper_runs", (("state", "finished"),)): 1,
        ("sweeper_runs", (("state", "failed"),)): 0,
        ("sweeper_runs", (("state", "pruned"),)): 0,
        ("sweeper_slots", (("state", "opening"),)): 0,
        ("sweeper_slots", (("state", "idle"),)): 1,
        ("sweeper_slots", (("state", "busy"),)): 3,
        ("sweeper_slot_utilisation", ()): 0.75,
        ("sweeper_step_ms", (("trial", "low"), ("seed", "42"))): 30.5,
        ("sweeper_gpu_seconds", ()): 7200.0,
    }


def test_the_cost_is_told_where_there_is_a_price() -> None:
    (told,) = tell(dataclasses.replace(VIEW, cost_usd=5.5, slots=()))
    assert told["sweeper_cost_usd", ()] == 5.5
    assert told["sweeper_slot_utilisation", ()] == 0.0


def test_they_are_not_told_at_every_look() -> None:
    first, second = tell(VIEW, VIEW, every_seconds=3600.0)
    assert first
    assert not second
    assert all(tell(VIEW, VIEW))
