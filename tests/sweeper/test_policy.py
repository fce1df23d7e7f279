"""What becomes of a run: a table."""

from __future__ import annotations

import pytest

from sweeper.policy import (
    COUNTED,
    FREE,
    MAX_BACKOFF_SECONDS,
    MAX_FREE,
    Verdict,
    after_attempt,
    may_quarantine,
    seconds_left,
)
from sweeper.rows import AttemptState, RunState, StageRow
from sweeper.stages import Stage

LAUNCHED, FINISHED = AttemptState.LAUNCHED, AttemptState.FINISHED
CRASHED, LOST, STOPPED = AttemptState.CRASHED, AttemptState.LOST, AttemptState.STOPPED
STALLED, NODE_LOST = AttemptState.STALLED, AttemptState.NODE_LOST
OUT_OF_MEMORY, NO_SPACE = AttemptState.OUT_OF_MEMORY, AttemptState.NO_SPACE


@pytest.mark.parametrize(
    ("ends", "max_attempts", "expected"),
    [
        ([FINISHED], 1, RunState.FINISHED),
        ([CRASHED, FINISHED], 1, RunState.FINISHED),
        ([LOST, CRASHED, FINISHED], 3, RunState.FINISHED),
        ([CRASHED], 2, RunState.PENDING),
        ([LOST], 2, RunState.PENDING),
        ([STALLED], 2, RunState.PENDING),
        ([CRASHED], 1, RunState.FAILED),
        ([STALLED], 1, RunState.FAILED),
        ([CRASHED, LOST], 2, RunState.FAILED),
        ([CRASHED, LOST], 3, RunState.PENDING),
        ([STALLED, CRASHED, LOST], 3, RunState.FAILED),
        # A node that goes, or a disk that is full, is not the run's doing.
        ([NODE_LOST], 1, RunState.PENDING),
        ([NO_SPACE], 1, RunState.PENDING),
        ([NODE_LOST] * MAX_FREE, 1, RunState.PENDING),
        ([NODE_LOST, NO_SPACE, CRASHED], 2, RunState.PENDING),
        ([CRASHED, NODE_LOST], 2, RunState.PENDING),
        ([CRASHED, NODE_LOST, CRASHED], 2, RunState.FAILED),
        ([NODE_LOST] * MAX_FREE + [NO_SPACE], 1, RunState.FAILED),
        # Being stopped is nobody's failure, and does not count as one.
        ([STOPPED], 1, RunState.PENDING),
        ([STOPPED, STOPPED, STOPPED], 1, RunState.PENDING),
        ([CRASHED, STOPPED], 2, RunState.PENDING),
        ([STOPPED, STOPPED, CRASHED], 2, RunState.PENDING),
        ([CRASHED, STOPPED, CRASHED], 2, RunState.FAILED),
        # What failed by its own doing would only fail again, however many attempts are left.
        ([AttemptState.USER_ERROR], 9, RunState.FAILED),
        ([AttemptState.NONFINITE], 9, RunState.FAILED),
        ([OUT_OF_MEMORY], 9, RunState.FAILED),
        ([AttemptState.BAD_RESULT], 9, RunState.FAILED),
        ([AttemptState.TIMED_OUT], 9, RunState.FAILED),
        ([CRASHED, AttemptState.USER_ERROR], 9, RunState.FAILED),
    ],
)
def test_a_run_goes_on_as_the_table_says(
    ends: list[AttemptState], max_attempts: int, expected: RunState
) -> None:
    assert after_attempt(ends, max_attempts=max_attempts).state is expected


@pytest.mark.parametrize(
    ("ends", "wait", "elsewhere"),
    [
        ([CRASHED], 5.0, True),
        ([CRASHED, STALLED], 10.0, True),
        ([CRASHED, LOST, CRASHED], 20.0, True),
        ([CRASHED] * 12, MAX_BACKOFF_SECONDS, True),
        # Only what counts makes the next pause longer.
        ([NODE_LOST, NO_SPACE, STOPPED, CRASHED], 5.0, True),
        ([CRASHED, NODE_LOST], 0.0, False),
        ([NO_SPACE], 5.0, True),
        ([CRASHED, NO_SPACE, NO_SPACE], 10.0, True),
        ([STOPPED], 0.0, False),
    ],
)
def test_what_failed_waits_longer_each_time_and_goes_elsewhere(
    ends: list[AttemptState], wait: float, elsewhere: bool
) -> None:
    verdict = after_attempt(ends, max_attempts=99, backoff_seconds=5.0)
    assert verdict == Verdict(state=RunState.PENDING, wait_seconds=wait, elsewhere=elsewhere)


def test_every_end_alone_leads_somewhere() -> None:
    for end in set(AttemptState) - {LAUNCHED}:
        state = after_attempt([end], max_attempts=2).state
        assert state is not RunState.RUNNING
        assert (state is RunState.PENDING) == (end in COUNTED | FREE | {STOPPED})


@pytest.mark.parametrize("kinds", [COUNTED, FREE, COUNTED | FREE])
def test_no_sequence_of_failures_goes_on_for_ever(kinds: frozenset[AttemptState]) -> None:
    ends: list[AttemptState] = []
    order = sorted(kinds)
    while not ends or after_attempt(ends, max_attempts=5).state is RunState.PENDING:
        ends.append(order[len(ends) % len(order)])
        assert len(ends) <= 5 + MAX_FREE + 1


def test_the_last_node_is_never_given_up() -> None:
    assert may_quarantine("a", {"a", "b"}, {})
    assert not may_quarantine("a", {"a"}, {})
    assert not may_quarantine("a", {"a", "b"}, {"b": "host"})
    assert not may_quarantine("a", {"a", "b", "c"}, {"a": "host"})
    assert may_quarantine("a", {"a", "b", "c"}, {"b": "host"})


def worked(launched: float, ended: float | None) -> StageRow:
    return StageRow(
        id=1,
        attempt=1,
        stage=Stage.TRAIN,
        host="box",
        gpus="0,1",
        launched=launched,
        ended=ended,
        exit_code=0,
        message=None,
        events_from=0,
    )


@pytest.mark.parametrize(
    ("limit", "launches", "left"),
    [
        (None, [worked(0.0, 50.0)], None),
        (60.0, [], 60.0),
        (60.0, [worked(0.0, None)], 60.0),
        # Ten seconds of waiting lie between the two.
        (60.0, [worked(0.0, 20.0), worked(30.0, 35.0), worked(40.0, None)], 35.0),
        (20.0, [worked(0.0, 20.0), worked(30.0, 35.0)], -5.0),
        # A host's clock may have been set back meanwhile.
        (60.0, [worked(9.0, 3.0)], 60.0),
    ],
)
def test_stages_at_work_use_up_the_time_together(
    limit: float | None, launches: list[StageRow], left: float | None
) -> None:
    assert seconds_left(limit, launches) == left


def test_a_launch_reserves_every_gpu_while_it_works() -> None:
    assert worked(10.0, 15.0).gpu_seconds == 10.0
    assert worked(10.0, None).gpu_seconds == 0.0
