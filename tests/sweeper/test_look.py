"""Looking again and again: what it costs, what a sweep costs, and what its driver says."""

from __future__ import annotations

import dataclasses
import json
import os
import socket
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from sweeper import pulse
from sweeper.driver import hold
from sweeper.layout import SweepDir
from sweeper.ledger import Ledger
from sweeper.pulse import Pulse, Quarantined, SlotPulse, SlotState
from sweeper.rows import AttemptState, RunState
from sweeper.stages import Stage
from sweeper.view import SCHEMA, Observer, RunView, as_table
from tests.sweeper.conftest import make_spec, result_facts
from tests.sweeper.test_view import append

BUSY = SlotPulse(pool="runs", state=SlotState.BUSY, host="box", gpus="0,1", trial="low", seed=42)
SAID = Pulse(
    pid=os.getpid(),
    host=socket.gethostname(),
    started=1.0,
    t=2.0,
    paused="no room",
    slots=(BUSY, SlotPulse(pool="runs", state=SlotState.OPENING)),
    quarantined=(Quarantined(node="n", host="bad", why="it fails"),),
    waiting=5,
    backing_off=1,
)


@pytest.fixture
def priced(tmp_path: Path) -> Iterator[tuple[SweepDir, Ledger]]:
    """A sweep whose GPUs cost $3.60 an hour each."""
    sweep = SweepDir(tmp_path / "priced")
    sweep.path.mkdir()
    spec = make_spec(cost={"usd_per_gpu_hour": 3.6})
    with closing(Ledger.open_for_writing(sweep.ledger, spec)) as ledger:
        yield sweep, ledger


def launch(
    sweep: SweepDir, ledger: Ledger, index: int = 0, number: int = 1, gpus: str = "0,1"
) -> tuple[int, Path]:
    run = ledger.runs()[index]
    directory = sweep.attempt(run.trial, "t", run.seed, number)
    directory.path.mkdir(parents=True)
    path = str(directory.path.relative_to(sweep.path))
    return ledger.launched(run, number=number, path=path, host="box", gpus=gpus), directory.path


def finish(ledger: Ledger, attempt: int) -> None:
    ledger.ended(attempt, AttemptState.FINISHED, RunState.FINISHED, result=result_facts())


def test_what_has_ended_is_read_once(sweep: SweepDir, ledger: Ledger) -> None:
    observer, statements = Observer(sweep, ledger), list[str]()
    ledger._db.set_trace_callback(statements.append)

    def cost() -> int:
        statements.clear()
        observer.look()
        return len(statements)

    observer.look()
    nothing_begun = cost()
    attempt, directory = launch(sweep, ledger)
    append(directory / "events.jsonl", "step", step=7, train_loss=2.0)
    observer.look()
    assert cost() > nothing_begun
    ledger.ended(attempt, AttemptState.CRASHED, RunState.FAILED, message="it broke")
    assert observer.look().runs[0].step == 7
    for index in (1, 2, 3):
        finish(ledger, launch(sweep, ledger, index)[0])
    view = observer.look()
    assert cost() == nothing_begun
    (directory / "events.jsonl").unlink()
    again = observer.look()
    assert again == dataclasses.replace(view, driver=again.driver)
    assert (again.runs[0].step, again.runs[0].message) == (7, "it broke")
    assert all(now is before for now, before in zip(again.runs, view.runs, strict=True))


def test_a_run_that_ended_between_two_looks_is_seen_whole(sweep: SweepDir, ledger: Ledger) -> None:
    observer = Observer(sweep, ledger)
    observer.look()
    first, directory = launch(sweep, ledger)
    append(directory / "events.jsonl", "phase", phase="train")
    ledger.ended(first, AttemptState.CRASHED, RunState.PENDING, message="it broke")
    finish(ledger, launch(sweep, ledger, number=2)[0])
    run = observer.look().runs[0]
    assert (run.attempts, run.state, run.val_bpb, run.message) == (2, RunState.FINISHED, 1.1, None)
    assert run == Observer(sweep, ledger).look().runs[0]
    launch(sweep, ledger, index=1)
    assert observer.look().runs[1].state is RunState.RUNNING


def test_new_runs_of_an_extended_sweep_are_seen(sweep: SweepDir, ledger: Ledger) -> None:
    with closing(Ledger.open_for_reading(sweep.ledger)) as reading:
        observer = Observer(sweep, reading)
        finish(ledger, launch(sweep, ledger)[0])
        assert len(observer.look().runs) == 6
        more = make_spec(seeds=[42, 314, 999, 7])
        with closing(Ledger.open_for_writing(sweep.ledger, more, extend=True)):
            view = observer.look()
    assert [run.seed for run in view.runs][-2:] == [7, 7]
    assert view.runs[0].val_bpb == 1.1


def test_a_failed_run_that_is_tried_again_waits(sweep: SweepDir, ledger: Ledger) -> None:
    observer = Observer(sweep, ledger)
    attempt, _ = launch(sweep, ledger)
    ledger.ended(attempt, AttemptState.CRASHED, RunState.FAILED, message="it broke")
    assert observer.look().runs[0].state is RunState.FAILED
    ledger.reopen_failed()
    run = observer.look().runs[0]
    assert (run.state, run.message) == (RunState.PENDING, "it broke")


# ---- how fast, how long, how much


def test_steps_and_scores_on_the_way(sweep: SweepDir, ledger: Ledger) -> None:
    observer = Observer(sweep, ledger)
    attempt, directory = launch(sweep, ledger)
    events = directory / "events.jsonl"
    append(events, "step", step=10, train_time_ms=500.0)
    assert observer.look().runs[0].ms_per_step == 50.0
    append(events, "step", step=20, train_time_ms=500.0, step_avg_ms=40.0, progress=0.5)
    append(events, "val", step=20, val_bpb=1.4, metric="plain")
    run = observer.look().runs[0]
    assert (run.ms_per_step, run.latest_val_bpb, run.val_bpb) == (40.0, 1.4, None)
    assert run.stage is Stage.ALL
    assert run.seconds_left is not None
    finish(ledger, attempt)
    run = observer.look().runs[0]
    assert (run.ms_per_step, run.val_bpb, run.seconds_left, run.stage) == (10.0, 1.1, None, None)


def test_a_script_is_followed_by_its_log(sweep: SweepDir, ledger: Ledger) -> None:
    observer = Observer(sweep, ledger)
    _, directory = launch(sweep, ledger)
    assert observer.look().runs[0].step is None
    log = directory / "logs" / "stdout.log"
    log.parent.mkdir()
    log.write_text("step:40/200 train_loss:3.5000 train_time:4000ms step_avg:100.00ms\n")
    run = observer.look().runs[0]
    assert (run.step, run.iterations, run.train_loss, run.ms_per_step) == (40, None, 3.5, 100.0)
    assert run.phase == "train"


def test_all_attempts_are_paid_for(priced: tuple[SweepDir, Ledger]) -> None:
    sweep, ledger = priced
    observer = Observer(sweep, ledger)
    with hold(sweep):
        first, _ = launch(sweep, ledger)
        now = time.time()
        ledger._db.execute("UPDATE stages SET launched = ?", (now - 100,))
        run = observer.look().runs[0]
        assert run.gpu_seconds == pytest.approx(200, abs=20)  # it is at work, on two GPUs
        ledger.ended(first, AttemptState.LOST, RunState.PENDING, message="lost", at=now)
        assert observer.look().runs[0].gpu_seconds == pytest.approx(200)
        second, _ = launch(sweep, ledger, number=2, gpus="0,1,2,3")
        ledger._db.execute("UPDATE stages SET launched = ? WHERE attempt = 2", (now - 50,))
        ledger.ended(second, AttemptState.FINISHED, RunState.FINISHED, result={}, at=now)
        view = observer.look()
    assert view.runs[0].gpu_seconds == pytest.approx(400)
    assert view.runs[0].cost_usd == pytest.approx(0.4)
    assert view.gpu_seconds == pytest.approx(400)
    assert view.cost_usd == pytest.approx(0.4)
    assert view.runs[1].cost_usd == 0.0
    assert Observer(sweep, ledger).look().cost_usd == view.cost_usd


def test_without_a_price_there_is_no_cost(sweep: SweepDir, ledger: Ledger) -> None:
    finish(ledger, launch(sweep, ledger)[0])
    view = Observer(sweep, ledger).look()
    assert view.cost_usd is view.runs[0].cost_usd is None


def test_no_time_passes_once_the_driver_is_dead(priced: tuple[SweepDir, Ledger]) -> None:
    sweep, ledger = priced
    launch(sweep, ledger)
    (row,) = ledger.stages()
    pulse.write(sweep.pulse, dataclasses.replace(SAID, t=row.launched + 10))
    observer = Observer(sweep, ledger)
    run = observer.look().runs[0]
    assert run.seconds == pytest.approx(10, abs=0.1)
    assert run.gpu_seconds == pytest.approx(20)
    assert observer.look().runs[0] == run


# ---- what the driver says


def test_what_the_driver_says_is_seen_while_it_lives(sweep: SweepDir, ledger: Ledger) -> None:
    observer = Observer(sweep, ledger)
    view = observer.look()
    assert (view.driver.alive, view.driver.pid) == (False, None)
    pulse.write(sweep.pulse, SAID)
    view = observer.look()
    assert (view.driver.alive, view.driver.pid, view.driver.t) == (False, SAID.pid, SAID.t)
    assert (view.slots, view.paused, view.quarantined, view.waiting) == ((), None, (), 0)
    with hold(sweep):
        view = observer.look()
    assert view.driver.alive
    assert (view.slots, view.paused) == (SAID.slots, "no room")
    assert (view.quarantined, view.waiting, view.backing_off) == (SAID.quarantined, 5, 1)


def test_a_view_for_programs(sweep: SweepDir, ledger: Ledger) -> None:
    ledger.note("stall", "it hung")
    pulse.write(sweep.pulse, SAID)
    with hold(sweep):
        table = json.loads(json.dumps(as_table(Observer(sweep, ledger).look())))
    assert (table["schema"], table["name"], table["over"]) == (SCHEMA, "sweep", False)
    waiting = {"pending": 6, "running": 0, "finished": 0, "failed": 0, "pruned": 0}
    assert table["counts"] == waiting
    assert table["notes"][0]["text"] == "it hung"
    assert table["slots"][0] | {"state": "busy", "stage": None} == table["slots"][0]
    assert table["quarantined"] == [{"node": "n", "host": "bad", "why": "it fails"}]
    assert table["driver"]["alive"] is True
    assert table["runs"][0].keys() == {field.name for field in dataclasses.fields(RunView)}
