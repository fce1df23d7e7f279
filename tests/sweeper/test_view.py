"""What an observer sees of a sweep, made of the ledger and of the events of its runs."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest

from sweeper.layout import SweepDir
from sweeper.ledger import Ledger
from sweeper.phases import PHASE_STARTS
from sweeper.rows import AttemptState, RunState
from sweeper.stages import Stage
from sweeper.view import Observer, RunView, SweepView
from tests.sweeper.conftest import result_facts

PENDING, RUNNING = RunState.PENDING, RunState.RUNNING
FINISHED, FAILED = RunState.FINISHED, RunState.FAILED


def launch(ledger: Ledger, sweep: SweepDir, number: int = 1) -> tuple[int, Path]:
    """The first run launched; its attempt's id and its events file."""
    run = ledger.runs()[0]
    directory = sweep.attempt(0, "low", run.seed, number)
    directory.path.mkdir(parents=True)
    path = str(directory.path.relative_to(sweep.path))
    return ledger.launched(run, number=number, path=path, host="box", gpus=""), directory.events


def append(events: Path, kind: str, **fields: Any) -> None:
    with events.open("a") as file:
        file.write(json.dumps({"t": 1.0, "kind": kind} | fields) + "\n")


def test_a_new_sweep_waits(sweep: SweepDir, ledger: Ledger) -> None:
    view = Observer(sweep, ledger).look()
    assert (view.name, len(view.runs), view.seconds_left) == ("sweep", 6, None)
    assert view.count(PENDING) == 6
    assert not view.over
    assert view.runs[1] == RunView(trial="high", seed=42, state=PENDING, attempts=0)


def test_an_observer_follows_a_run(sweep: SweepDir, ledger: Ledger) -> None:
    observer = Observer(sweep, ledger)
    attempt, events = launch(ledger, sweep)
    run = observer.look().runs[0]
    assert (run.state, run.attempts, run.host, run.phase) == (RUNNING, 1, "box", None)
    assert run.path == str(events.parent)
    assert run.fraction == 0.0

    append(events, "phase", phase="setup")
    append(events, "config", config={"iterations": 160})
    append(events, "phase", phase="train")
    run = observer.look().runs[0]
    assert (run.phase, run.iterations, run.step) == ("train", 160, None)
    assert run.fraction == PHASE_STARTS["train"]

    append(events, "step", step=80, train_loss=3.5, progress=0.5)
    run = observer.look().runs[0]
    assert (run.step, run.train_loss) == (80, 3.5)
    assert run.fraction == pytest.approx((PHASE_STARTS["train"] + PHASE_STARTS["hessians"]) / 2)

    ledger.ended(attempt, AttemptState.FINISHED, FINISHED, result=result_facts())
    run = observer.look().runs[0]
    assert (run.state, run.phase, run.fraction, run.val_bpb) == (FINISHED, "done", 1.0, 1.1)
    assert run.step == 6
    assert Observer(sweep, ledger).look().runs[0].val_bpb == 1.1


def test_a_run_never_goes_back(sweep: SweepDir, ledger: Ledger) -> None:
    observer = Observer(sweep, ledger)
    _, events = launch(ledger, sweep)
    fractions = []
    for phase in ("setup", "warmup", "train", "hessians", "eval", "quantise", "pack", "eval"):
        append(events, "phase", phase=phase)
        fractions.append(observer.look().runs[0].fraction)
    assert fractions == sorted(fractions)
    assert fractions[-1] < 1.0


def test_an_attempt_between_two_stages_waits_to_go_on(sweep: SweepDir, ledger: Ledger) -> None:
    observer = Observer(sweep, ledger)
    run = ledger.runs()[0]
    path = str(sweep.attempt(0, "low", run.seed, 1).path.relative_to(sweep.path))
    attempt = ledger.launched(*(run,), number=1, path=path, host="box", gpus="0", stage=Stage.TRAIN)
    (row,) = ledger.attempts()
    events = sweep.path / path / "events.jsonl"
    events.parent.mkdir(parents=True)

    def phase() -> str | None:
        return observer.look().runs[0].phase

    def go_on(stage: Stage) -> None:
        ledger.stage_launched(row, stage, host="box", gpus="", events_from=0)

    append(events, "phase", phase="hessians")
    assert phase() == "hessians"
    ledger.stage_ended(attempt, exit_code=0)
    assert phase() == "trained"
    go_on(Stage.PACK)
    append(events, "phase", phase="setup")
    assert phase() == "setup"
    before = observer.look().runs[0].fraction
    assert before == PHASE_STARTS["hessians"]
    # A stage that broke off has not been.
    ledger.stage_ended(attempt, exit_code=1, message="it broke")
    assert phase() == "trained"
    go_on(Stage.PACK)
    append(events, "phase", phase="quantise")
    ledger.stage_ended(attempt, exit_code=0)
    assert phase() == "packed"
    assert observer.look().runs[0].fraction > before
    # Where the sweep is stopped there, no time passes.
    ledger.pause()
    view = observer.look().runs[0]
    assert (view.state, view.phase) == (PENDING, "packed")
    assert view.seconds == observer.look().runs[0].seconds


def test_a_long_evaluation_moves_on(sweep: SweepDir, ledger: Ledger) -> None:
    observer = Observer(sweep, ledger)
    _, events = launch(ledger, sweep)

    def after(kind: str, **fields: Any) -> float:
        append(events, kind, **fields)
        return observer.look().runs[0].fraction

    append(events, "phase", phase="train")
    append(events, "step", step=1, train_loss=3.5, progress=1.0)
    trained = PHASE_STARTS["hessians"]
    # Training may be evaluated on its way: that is no sign that it ends.
    assert after("eval", metric="plain", progress=1.0) == trained
    assert after("phase", phase="eval") == trained
    assert after("eval", metric="prequant", progress=0.5) == pytest.approx(
        (trained + PHASE_STARTS["quantise"]) / 2
    )
    assert after("phase", phase="quantise") == PHASE_STARTS["quantise"]
    assert after("phase", phase="eval") == PHASE_STARTS["eval"]
    moving = [
        after("eval", metric=metric, progress=done)
        for metric in ("quant-subset", "sliding-subset")
        for done in (0.25, 0.5, 0.75, 0.9)
    ]
    assert moving == sorted(set(moving))
    assert PHASE_STARTS["eval"] < moving[0]
    assert moving[-1] < 1.0
    for progress in (None, "half", math.nan, -9.0):
        assert after("eval", metric="sliding", progress=progress) == moving[-1]
    assert after("eval", metric="sliding", progress=10**400) == moving[-1]
    assert after("eval", metric="sliding", progress=7.0) == 1.0


def test_a_new_attempt_begins_anew(sweep: SweepDir, ledger: Ledger) -> None:
    observer = Observer(sweep, ledger)
    attempt, events = launch(ledger, sweep)
    append(events, "step", step=80, train_loss=3.5, progress=1.0)
    assert observer.look().runs[0].step == 80
    ledger.ended(attempt, AttemptState.CRASHED, PENDING, message="it broke")
    run = observer.look().runs[0]
    assert (run.state, run.attempts, run.message) == (PENDING, 1, "it broke")
    launch(ledger, sweep, number=2)
    run = observer.look().runs[0]
    assert (run.state, run.attempts, run.step, run.fraction) == (RUNNING, 2, None, 0.0)


@pytest.mark.parametrize(
    "fields",
    [
        {"kind": "config"},
        {"kind": "config", "config": None},
        {"kind": "config", "config": {"iterations": "many"}},
        {"kind": "step"},
        {"kind": "step", "step": math.nan, "train_loss": math.nan, "progress": math.nan},
        {"kind": "step", "step": math.inf, "train_loss": True, "progress": "half"},
        {"kind": "step", "step": 10**400, "train_loss": None, "progress": None},
        {"kind": "phase"},
        {"kind": "phase", "phase": ["train"]},
        {"kind": "something new", "x": 1},
    ],
)
def test_what_a_run_should_not_write_stops_no_observer(
    sweep: SweepDir, ledger: Ledger, fields: dict[str, Any]
) -> None:
    observer = Observer(sweep, ledger)
    _, events = launch(ledger, sweep)
    append(events, **fields)
    run = observer.look().runs[0]
    assert run.step is run.train_loss is run.iterations is None
    append(events, "step", step=3, train_loss=2.0, progress=0.1)
    run = observer.look().runs[0]
    assert (run.step, run.train_loss) == (3, 2.0)
    assert 0.0 < run.fraction < 1.0


def test_a_sweep_is_over_when_each_run_is() -> None:
    def view(*states: RunState) -> SweepView:
        runs = [RunView(trial="a", seed=i, state=s, attempts=1) for i, s in enumerate(states)]
        return SweepView(name="x", runs=runs, seconds_left=None)

    assert view(FINISHED, FAILED).over
    assert not view(FINISHED, PENDING).over
    assert not view(FINISHED, RUNNING).over
    assert view(FINISHED, FAILED, FINISHED).count(FINISHED) == 2
