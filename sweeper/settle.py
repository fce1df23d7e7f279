"""What becomes of an attempt when processes of it have ended, as the ledger has it."""

from __future__ import annotations

import socket
import time
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

from sweeper import guard
from sweeper.disk import remove_matching
from sweeper.judge import Outcome, ended_at, judge, next_stage
from sweeper.layout import AttemptDir, SweepDir
from sweeper.ledger import Ledger
from sweeper.policy import COUNTED
from sweeper.reaping import Tag, reap_leftovers, tagged_processes
from sweeper.rows import AttemptRow, AttemptState, RunState, StageRow
from sweeper.stages import CHECKPOINT, Stage

# After its launcher's death: what its guard gives a run, and takes to say how that used it.
ORPHAN_SECONDS = guard.ORPHAN_GRACE_SECONDS + 2.0
ORPHAN_POLL_SECONDS = 0.1
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

    What has lost its slot only just now is given the time to end that the loop gives it. Every run
    that is not over waits afterwards; its attempt is still open where only stages of it are left
    to do.
    """
    trials = ledger.trials()
    runs = {run.id: run for run in ledger.runs()}
    left = []
    for attempt in ledger.attempts(state=AttemptState.LAUNCHED):
        stages = ledger.stages(attempt.id)
        last = stages[-1]
        if last.ended is None:
            number = sum(row.stage is last.stage for row in stages)
            directory = AttemptDir(sweep.path / attempt.path).of(last.stage, number)
            left.append((attempt, last, directory))
    # Without a request it was never launched, or on another disk, from which nothing comes.
    launched = [(last, directory) for _, last, directory in left if directory.request.exists()]
    _wait_for_ends(ledger.uid, launched)
    reap_leftovers(Tag(sweep=ledger.uid, session=session, launch=0))
    for attempt, last, directory in left:
        run = runs[attempt.run]
        overrides = trials[run.trial].env | {"SEED": str(run.seed)}
        _recover(ledger, attempt, last, directory, overrides, remove)
    ledger.pause()


def _wait_for_ends(uid: str, launched: Sequence[tuple[StageRow, AttemptDir]]) -> None:
    """Return when these launches have ended, as far as can be seen, or have had the time to."""
    here, deadline = socket.gethostname(), time.monotonic() + ORPHAN_SECONDS
    while time.monotonic() < deadline:
        silent = {row.id: row for row, directory in launched if not directory.exit.exists()}
        # Its guard may have died with all the rest, where Ray itself has ended the slot.
        if all(row.host == here for row in silent.values()):
            tags = [tag for _, tag in tagged_processes() if tag.sweep == uid]
            if silent.keys().isdisjoint(tag.launch for tag in tags):
                return
        time.sleep(ORPHAN_POLL_SECONDS)


def _recover(
    ledger: Ledger,
    attempt: AttemptRow,
    last: StageRow,
    directory: AttemptDir,
    overrides: Mapping[str, str],
    remove: Collection[str],
) -> None:
    """Settle an attempt whose last stage may have been at work when its driver ended."""
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
