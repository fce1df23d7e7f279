"""What becomes of an attempt when processes of it have ended, as the ledger has it."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

from sweeper.disk import remove_matching
from sweeper.judge import Outcome, ended_at, judge, next_stage
from sweeper.launch import Tag, reap_leftovers
from sweeper.layout import AttemptDir, SweepDir
from sweeper.ledger import Ledger
from sweeper.policy import COUNTED
from sweeper.rows import AttemptRow, AttemptState, RunState
from sweeper.stages import CHECKPOINT, Stage

DRIVER_ENDED = "the sweep's driver ended before the run did"


def record_stage(
    ledger: Ledger, attempt: int, directory: AttemptDir, outcome: Outcome, at: float | None = None
) -> None:
    """Write down that a stage has ended and that its attempt goes on."""
    if directory.stage is Stage.PACK and outcome.state is AttemptState.LAUNCHED:
        # Where it was packed on another disk, a copy of them is still here.
        directory.trained_tensors.unlink(missing_ok=True)
    ledger.stage_ended(attempt, exit_code=outcome.exit_code, message=outcome.message, at=at)


def record_end(
    ledger: Ledger,
    attempt: int,
    directory: AttemptDir,
    outcome: Outcome,
    run_state: RunState,
    at: float | None = None,
    remove: Collection[str] = (),
) -> None:
    """Write down that an attempt is over; what was only for its later stages goes.

    So do the files of the patterns `remove`, once the run has finished.
    """
    directory.trained_tensors.unlink(missing_ok=True)
    ledger.ended(
        attempt,
        outcome.state,
        run_state,
        exit_code=outcome.exit_code,
        message=outcome.message,
        traceback=outcome.traceback,
        result=outcome.result,
        at=at,
    )
    if run_state is RunState.FINISHED:
        # After the ledger knows: what is removed too early is lost if this process dies between.
        remove_matching(directory.path.parent, [f"*/{pattern}" for pattern in remove])


def can_go_on(directory: AttemptDir) -> bool:
    """Whether a stage that broke off may be repeated by itself, with what training has left."""
    repeatable = directory.stage in (Stage.PACK, Stage.SCORE)
    return repeatable and next_stage(directory) is not Stage.TRAIN


def checkpoint_of(sweep: SweepDir, attempts: Sequence[AttemptRow]) -> Path | None:
    """From where a new attempt at a run can go on, given those before; None: from the beginning.

    Not from where one before it went on and then failed by itself: the checkpoint may be why.
    """
    for attempt in reversed(attempts):
        path = sweep.path / attempt.path / CHECKPOINT
        if path.is_file():
            return path
        if attempt.state in COUNTED:
            return None
    return None


def recover(sweep: SweepDir, ledger: Ledger, session: str, remove: Collection[str] = ()) -> None:
    """Settle what an earlier driver left open: adopt what finished, end what still runs.

    Every run that is not over waits afterwards; its attempt is still open where only stages of it
    are left to do.
    """
    reap_leftovers(Tag(sweep=ledger.uid, session=session, launch=0))
    trials = ledger.trials()
    runs = {run.id: run for run in ledger.runs()}
    for attempt in ledger.attempts():
        if attempt.state is AttemptState.LAUNCHED:
            run = runs[attempt.run]
            overrides = trials[run.trial].env | {"SEED": str(run.seed)}
            _recover(sweep, ledger, attempt, overrides, remove)
    ledger.pause()


def _recover(
    sweep: SweepDir,
    ledger: Ledger,
    attempt: AttemptRow,
    overrides: Mapping[str, str],
    remove: Collection[str],
) -> None:
    """Settle an attempt whose stage may have been at work when its driver ended."""
    stages = ledger.stages(attempt.id)
    last = stages[-1]
    if last.ended is not None:
        return
    number = sum(row.stage is last.stage for row in stages)
    directory = AttemptDir(sweep.path / attempt.path).of(last.stage, number)
    outcome, at = judge(directory, overrides, last.events_from), ended_at(directory)
    if outcome.state is AttemptState.FINISHED:
        record_end(ledger, attempt.id, directory, outcome, RunState.FINISHED, at, remove)
        return
    if outcome.state is not AttemptState.LAUNCHED:
        outcome = Outcome(state=AttemptState.LOST, message=DRIVER_ENDED)
    if outcome.state is AttemptState.LAUNCHED or can_go_on(directory):
        record_stage(ledger, attempt.id, directory, outcome, at)
    else:
        record_end(ledger, attempt.id, directory, outcome, RunState.PENDING, at)
