"""What the next driver makes of attempts that the last one left open, and what it does first."""

from __future__ import annotations

import json
import threading

import pytest

from sweeper.agenda import Agenda
from sweeper.layout import AttemptDir, SweepDir
from sweeper.ledger import Ledger
from sweeper.rows import AttemptState, RunState
from sweeper.settle import checkpoint_of, recover
from sweeper.stages import Stage
from tests.sweeper.conftest import result_facts

TRAIN, PACK, SCORE = Stage.TRAIN, Stage.PACK, Stage.SCORE


def left_in(ledger: Ledger, sweep: SweepDir, run: int, *stages: Stage) -> AttemptDir:
    """An attempt whose driver died while the last of these stages was at work."""
    row = ledger.runs()[run]
    directory = sweep.attempt(row.trial, "t", row.seed, 1)
    directory.path.mkdir(parents=True)
    config = {"seed": row.seed, **{name.lower(): x for name, x in ledger.trials()[0].env.items()}}
    config["lr"] = ledger.trials()[row.trial].env["LR"]
    event = {"t": 1.0, "kind": "config", "config": config}
    directory.events.write_text(json.dumps(event) + "\n")
    path = str(directory.path.relative_to(sweep.path))
    attempt = ledger.launched(row, number=1, path=path, host="box", gpus="0", stage=stages[0])
    if TRAIN in stages:
        directory.trained_tensors.write_bytes(b"tensors")
        directory.trained.write_text('{"schema": 1, "status": "trained"}')
    for stage in stages[1:]:
        ledger.stage_ended(attempt, exit_code=0, at=1.0)
        ledger.stage_launched(ledger.attempts(row.id)[0], stage, host="box", gpus="", events_from=0)
    return directory.of(stages[-1])


def end(directory: AttemptDir, code: int = 0) -> None:
    """What the guard says of the stage."""
    partial = directory.exit.with_suffix(".partial")
    partial.write_text(json.dumps({"exit_code": code, "stop_reason": None, "ended": 5.0}))
    partial.replace(directory.exit)


def pack(directory: AttemptDir) -> None:
    directory.artifact.write_bytes(b"x" * 100)
    directory.packed.write_text('{"schema": 1, "status": "packed"}')


def taken(agenda: Agenda) -> list[tuple[int, Stage, bool]]:
    """All jobs in the order in which a slot would take them."""
    jobs = []
    while any(agenda.waiting(in_slot) for in_slot in (True, False)):
        for in_slot in (False, True):
            while job := agenda.take(in_slot=in_slot, place=("n",), places=[("n",)], now=0.0):
                jobs.append(job)
    jobs.sort(key=lambda job: job.order)
    return [(job.run.id, job.stage, job.attempt is None) for job in jobs]


def test_every_stage_is_taken_up_where_it_was(sweep: SweepDir, ledger: Ledger) -> None:
    trained = left_in(ledger, sweep, 0, TRAIN)
    end(trained)
    unheard = left_in(ledger, sweep, 1, TRAIN)  # it wrote all, but did it end well?
    packing = left_in(ledger, sweep, 2, TRAIN, PACK)
    end(packing, code=1)
    packed = left_in(ledger, sweep, 3, TRAIN, PACK)
    end(packed)
    pack(packed)
    scored = left_in(ledger, sweep, 4, TRAIN, PACK, SCORE)
    pack(scored)
    end(scored)
    scored.result.write_text(json.dumps(result_facts()))
    emptied = left_in(ledger, sweep, 5, TRAIN, PACK)
    emptied.trained.unlink()

    recover(sweep, ledger, "session")
    launched, lost = AttemptState.LAUNCHED, AttemptState.LOST
    assert [attempt.state for attempt in ledger.attempts()] == [
        *(launched, lost, launched, launched, AttemptState.FINISHED, lost)
    ]
    finished = RunState.FINISHED
    states = [run.state for run in ledger.runs()]
    assert states == [*[RunState.PENDING] * 4, finished, RunState.PENDING]
    assert all(row.ended is not None for row in ledger.stages())
    assert ledger.stages(1)[0].ended == 5.0
    # Nothing large stays that nobody needs.
    kept = [path.trained_tensors.exists() for path in (trained, unheard, packing, packed)]
    assert kept == [True, False, True, False]
    assert not scored.trained_tensors.exists()
    assert not emptied.trained_tensors.exists()

    # What has begun goes first, each with its next stage.
    assert taken(Agenda.of(ledger, sweep, TRAIN)) == [
        *((1, PACK, False), (3, PACK, False), (4, SCORE, False)),
        *((2, TRAIN, True), (6, TRAIN, True)),
    ]
    # Once more changes nothing.
    before = (ledger.runs(), ledger.attempts(), ledger.stages())
    recover(sweep, ledger, "another")
    assert (ledger.runs(), ledger.attempts(), ledger.stages()) == before


def test_what_finishes_while_the_next_driver_begins_is_adopted(
    sweep: SweepDir, ledger: Ledger
) -> None:
    attempt = left_in(ledger, sweep, 0, Stage.ALL)
    attempt.request.write_text("{}")
    attempt.artifact.write_bytes(b"x" * 100)
    attempt.result.write_text(json.dumps(result_facts()))
    # In the directory it is for the guard to say that all has ended.
    ending = threading.Timer(0.2, end, [attempt])
    ending.start()
    recover(sweep, ledger, "session")
    ending.join()
    assert [row.state for row in ledger.attempts()] == [AttemptState.FINISHED]


@pytest.mark.parametrize(
    ("attempts", "expected"),
    [
        ("", None),
        ("lost", None),
        ("lost+", 1),
        ("stopped+ node_lost", 1),
        ("stopped+ crashed+", 2),
        # What it went on from may be why it crashed.
        ("node_lost+ crashed", None),
        ("node_lost+ crashed node_lost", None),
        ("node_lost+ crashed node_lost+ stopped", 3),
    ],
)
def test_a_new_attempt_goes_on_from_the_last_checkpoint_that_is_not_in_doubt(
    sweep: SweepDir, ledger: Ledger, attempts: str, expected: int | None
) -> None:
    run = ledger.runs()[0]
    for number, text in enumerate(attempts.split(), start=1):
        directory = sweep.path / str(number)
        directory.mkdir()
        if text.endswith("+"):
            (directory / "checkpoint.pt").write_bytes(b"state")
        row = ledger.launched(run, number=number, path=str(number), host="box", gpus="")
        ledger.ended(row, AttemptState(text.removesuffix("+")), RunState.PENDING)
    found = checkpoint_of(sweep, ledger.attempts(run.id))
    assert found == (None if expected is None else sweep.path / str(expected) / "checkpoint.pt")
