"""When runs will have ended: of one at work, and of a whole sweep."""

from __future__ import annotations

import pytest

from sweeper.eta import Lengths, sweep_seconds_left
from sweeper.rows import RunState
from sweeper.view import RunView

PENDING, RUNNING = RunState.PENDING, RunState.RUNNING
FINISHED, FAILED = RunState.FINISHED, RunState.FAILED

Facts = tuple[RunState, float | None, float]


def left(facts: list[Facts], slots: int) -> float | None:
    """The time left of a sweep of one trial, given each run's state, age and share done."""
    lengths, runs = Lengths(), []
    for state, seconds, _ in facts:
        if state is FINISHED and seconds is not None:
            lengths.add("a", seconds)
    for seed, (state, seconds, fraction) in enumerate(facts):
        rest = None
        if state is RUNNING and seconds is not None:
            rest = lengths.seconds_left("a", seconds, fraction)
        runs.append(
            RunView(
                *(),
                trial="a",
                seed=seed,
                state=state,
                attempts=1,
                seconds=seconds,
                seconds_left=rest,
            )
        )
    return sweep_seconds_left(runs, lengths, slots)


WAITS: Facts = (PENDING, None, 0.0)


@pytest.mark.parametrize(
    ("facts", "slots", "seconds_left"),
    [
        pytest.param([], 1, None, id="no run"),
        pytest.param([WAITS, WAITS], 1, None, id="nothing has begun"),
        pytest.param([(RUNNING, 5.0, 0.1), WAITS], 1, None, id="too early to say"),
        pytest.param([(RUNNING, 30.0, 0.5)], 1, 30.0, id="half way"),
        pytest.param([(RUNNING, 30.0, 0.5), WAITS], 1, 90.0, id="half way, one more"),
        pytest.param([(FINISHED, 60.0, 1.0)], 1, 0.0, id="all over"),
        pytest.param([(FINISHED, 60.0, 1.0), WAITS], 1, 60.0, id="one waits"),
        pytest.param([(FINISHED, 60.0, 1.0), WAITS, WAITS], 1, 120.0, id="two wait"),
        pytest.param([(FINISHED, 60.0, 1.0), WAITS, WAITS], 2, 60.0, id="two wait, two slots"),
        pytest.param([(FINISHED, 60.0, 1.0), *[WAITS] * 3], 2, 120.0, id="three wait, two slots"),
        pytest.param(
            [(FINISHED, 60.0, 1.0), (RUNNING, 20.0, 0.1), WAITS], 1, 100.0, id="one after another"
        ),
        pytest.param(
            [(FINISHED, 60.0, 1.0), (RUNNING, 20.0, 0.1), (RUNNING, 50.0, 0.9), WAITS],
            *(2, 70.0),
            id="the slot that is free first takes the next",
        ),
        pytest.param(
            [(FINISHED, 60.0, 1.0), (RUNNING, 20.0, 0.1), (RUNNING, 50.0, 0.9), WAITS],
            *(1, 70.0),
            id="more at work than slots are known of",
        ),
        pytest.param(
            [(FINISHED, 60.0, 1.0), (RUNNING, 90.0, 0.9)], 1, 10.0, id="longer than the others"
        ),
        pytest.param(
            [(FINISHED, 60.0, 1.0), (RUNNING, 90.0, 0.1)], 1, 0.0, id="longer, and no clue"
        ),
        pytest.param(
            [(FINISHED, 10.0, 1.0), (FINISHED, 60.0, 1.0), (FINISHED, 70.0, 1.0), WAITS],
            *(1, 60.0),
            id="the median counts",
        ),
        pytest.param(
            [(FAILED, 1.0, 0.0), (FINISHED, 60.0, 1.0), WAITS], 1, 60.0, id="a failure is no guide"
        ),
        pytest.param([(FAILED, 1.0, 0.0), WAITS], 1, None, id="only a failure"),
    ],
)
def test_the_time_left_is_by_the_runs_that_have_ended(
    facts: list[Facts], slots: int, seconds_left: float | None
) -> None:
    assert left(facts, slots) == pytest.approx(seconds_left)


def test_a_trials_own_runs_say_most_of_its_length() -> None:
    lengths = Lengths()
    assert lengths.usual("long") is None
    for trial, seconds in (("short", 10.0), ("short", 12.0), ("long", 100.0)):
        lengths.add(trial, seconds)
    assert [lengths.usual(trial) for trial in ("short", "long", "new")] == [11.0, 100.0, 12.0]
    assert lengths.seconds_left("long", 30.0, 0.0) == 70.0
    waiting = [
        RunView(trial=trial, seed=1, state=PENDING, attempts=0) for trial in ("long", "short")
    ]
    assert sweep_seconds_left(waiting, lengths, 1) == 111.0
    assert sweep_seconds_left(waiting, lengths, 2) == 100.0
