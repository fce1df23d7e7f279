"""What becomes of a run: a table."""

from __future__ import annotations

import pytest

from sweeper.ledger import AttemptState, RunState, StageRow
from sweeper.policy import RETRIED, after_attempt, seconds_left
from sweeper.stages import Stage

LAUNCHED, FINISHED = AttemptState.LAUNCHED, AttemptState.FINISHED
CRASHED, LOST, STOPPED = AttemptState.CRASHED, AttemptState.LOST, AttemptState.STOPPED


@pytest.mark.parametrize(
    ("ends", "max_attempts", "expected"),
    [
        ([FINISHED], 1, RunState.FINISHED),
        ([CRASHED, FINISHED], 1, RunState.FINISHED),
        ([LOST, CRASHED, FINISHED], 3, RunState.FINISHED),
        ([CRASHED], 2, RunState.PENDING),
        ([LOST], 2, RunState.PENDING),
        ([CRASHED], 1, RunState.FAILED),
        ([CRASHED, LOST], 2, RunState.FAILED),
        ([CRASHED, LOST], 3, RunState.PENDING),
        # Being stopped is nobody's failure, and does not count as one.
        ([STOPPED], 1, RunState.PENDING),
        ([STOPPED, STOPPED, STOPPED], 1, RunState.PENDING),
        ([CRASHED, STOPPED], 2, RunState.PENDING),
        ([STOPPED, STOPPED, CRASHED], 2, RunState.PENDING),
        ([CRASHED, STOPPED, CRASHED], 2, RunState.FAILED),
        # What failed by its own doing would only fail again, however many attempts are left.
        ([AttemptState.USER_ERROR], 9, RunState.FAILED),
        ([AttemptState.NONFINITE], 9, RunState.FAILED),
        ([AttemptState.OUT_OF_MEMORY], 9, RunState.FAILED),
        ([AttemptState.BAD_RESULT], 9, RunState.FAILED),
        ([AttemptState.TIMED_OUT], 9, RunState.FAILED),
        ([CRASHED, AttemptState.USER_ERROR], 9, RunState.FAILED),
    ],
)
def test_a_run_goes_on_as_the_table_says(
    ends: list[AttemptState], max_attempts: int, expected: RunState
) -> None:
    assert after_attempt(ends, max_attempts=max_attempts) is expected


def test_every_end_alone_leads_somewhere() -> None:
    for end in set(AttemptState) - {LAUNCHED}:
        state = after_attempt([end], max_attempts=2)
        assert state is not RunState.RUNNING
        assert (state is RunState.PENDING) == (end in RETRIED | {STOPPED})


def test_no_sequence_of_failures_goes_on_for_ever() -> None:
    ends: list[AttemptState] = []
    while not ends or after_attempt(ends, max_attempts=5) is RunState.PENDING:
        ends.append(CRASHED if len(ends) % 2 else LOST)
        assert len(ends) <= 5
    assert len(ends) == 5


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
