"""Whole sweeps by real drivers on real Ray nodes: what fails, what survives, what is said."""

from __future__ import annotations

import csv
import io
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import Future
from contextlib import closing
from pathlib import Path
from typing import cast

import psutil
import pytest
from rich.console import Console

from sweeper.cluster import Cluster
from sweeper.driver import Interrupts
from sweeper.errors import UserError
from sweeper.layout import SweepDir
from sweeper.ledger import Ledger
from sweeper.loop import Loop
from sweeper.progress import Progress
from sweeper.rows import AttemptState, RunState
from sweeper.slots import Remote, Slot
from sweeper.telling import Teller
from sweeper.view import Observer
from tests.sweeper.conftest import ROOT, alive, make_spec, wait_until
from tests.sweeper.ray_helpers import (
    Driver,
    Head,
    Place,
    a_head,
    free_port,
)
from tests.sweeper.sweeps import (
    attempt_dir,
    attempt_states,
    attempts,
    check_finished,
    open_gate,
    run_states,
)

SEEDS = (42, 314, 999)
TWO_TRIALS: dict[str, dict[str, object]] = {"few": {"ITERATIONS": 2}, "many": {"ITERATIONS": 3}}
SIX_RUNS = {(trial, seed) for trial in TWO_TRIALS for seed in SEEDS}


pytestmark = pytest.mark.usefixtures("quiet")


@pytest.fixture(scope="module")
def head(place: Place) -> Iterator[Head]:
    with a_head(place, cpus=2, gpus=8) as head:
        yield head


# ---- a sweep that goes well, and what can be read of it


@pytest.fixture(scope="module")
def done(place: Place) -> Driver:
    """A driver that has run two trials of three seeds, on a Ray of its own."""
    stored = {"url": str(place.path / "stored")}
    spec = place.write_spec("done", seeds=SEEDS, trials=TWO_TRIALS, storage=stored)
    driver = place.drive(spec, "--num-cpus", "2")
    assert driver.wait() == 0, driver.said
    return driver


def test_two_trials_of_three_seeds_are_six_finished_runs(place: Place, done: Driver) -> None:
    sweep = place.sweep("done")
    assert set(run_states(sweep)) == SIX_RUNS
    check_finished(sweep, runs=6)
    assert all(len(rows) == 1 for rows in attempts(sweep).values())
    assert place.board("done").arrivals() == 6
    # Nothing of the Ray that it had started is there any more.
    wait_until(lambda: not done.left(), "all processes of the driver to end")
    assert not sweep.nonce.exists()


def test_all_results_are_at_the_storage_too(place: Place, done: Driver) -> None:
    sweep, stored = place.sweep("done"), place.path / "stored" / "done"
    for pattern, count in {"attempts/*/*/*/result.json": 6, "report.csv": 1}.items():
        paths = list(sweep.path.glob(pattern))
        assert len(paths) == count
        for path in paths:
            copy = stored / path.relative_to(sweep.path)
            assert copy.read_bytes() == path.read_bytes()
    check_finished(SweepDir(stored), runs=6)


def test_the_table_stands_on_stdout_and_the_news_on_stderr(place: Place, done: Driver) -> None:
    table, news = done.stdout.read_text(), done.stderr.read_text()
    assert "few" in table
    assert "many" in table
    assert "3/3" in table
    assert "many, seed 999: finished in" in news
    assert news.startswith("done: 0/6 runs done, 0 running, ")
    for path in (place.sweep("done").report_csv, place.sweep("done").report_json):
        assert str(path) in table
        assert path.is_file()


def test_a_finished_sweep_runs_nothing_and_needs_no_ray(place: Place, done: Driver) -> None:
    before = attempts(place.sweep("done"))
    # No Ray answers there: the driver would fail if it asked.
    spec = place.path / "done.toml"
    again = place.drive(spec, "--address", f"127.0.0.1:{free_port()}")
    assert again.wait() == 0, again.said
    assert attempts(place.sweep("done")) == before
    assert again.stdout.read_text() == done.stdout.read_text()


def test_a_report_has_the_same_numbers_in_every_format(place: Place, done: Driver) -> None:
    forms = {
        form: place.call("report", "done", "--root", str(place.root), "--format", form)
        for form in ("table", "markdown", "json", "csv")
    }
    assert [(form.returncode, form.stderr) for form in forms.values()] == [(0, "")] * 4
    trials = json.loads(forms["json"].stdout)["trials"]
    assert [(trial["trial"], trial["n"]) for trial in trials] == [("few", 3), ("many", 3)]
    rows = list(csv.DictReader(io.StringIO(forms["csv"].stdout)))
    means = [float(row["val_bpb_mean"]) for row in rows]
    assert means == [trial["val_bpb_mean"] for trial in trials]
    # Seeds 42, 314 and 999 end in 2, 4 and 9; see fake_train.
    assert means[0] == pytest.approx(1.1 + 0.005 + 0.02)
    for form in ("table", "markdown"):
        assert all(f"{mean:.5f}" in forms[form].stdout for mean in means)
    assert forms["markdown"].stdout.startswith("| configuration | n |")


def test_status_after_the_end_says_that_all_is_done(place: Place, done: Driver) -> None:
    status = place.call("status", "done", "--root", str(place.root))
    assert (status.returncode, status.stderr) == (0, "")
    assert status.stdout.startswith("done: 6/6 runs done, 0 running\n")
    view = json.loads(place.call("status", "done", "--root", str(place.root), "--json").stdout)
    assert [(run["state"], run["fraction"]) for run in view["runs"]] == [("finished", 1.0)] * 6


@pytest.mark.parametrize("command", ["report", "status"])
def test_a_reader_that_leaves_early_causes_no_traceback(
    place: Place, done: Driver, command: str
) -> None:
    process = subprocess.Popen(
        [sys.executable, "-m", "sweeper.cli", command, "done", "--root", str(place.root)],
        cwd=ROOT,
        env=place.env,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    # Gone before anything is written, as `| head -0` is.
    process.stdout.close()
    assert process.stderr is not None
    assert process.stderr.read() == ""
    process.stderr.close()
    assert process.wait(60) in (0, 1)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("report", "nothing"), "no sweep there"),
        (("status", "nothing"), "no sweep there"),
        (("run", "nothing.toml"), "nothing.toml: cannot be read"),
        (("report", "done", "--format", "pdf"), "invalid choice: 'pdf'"),
        (("run",), "the following arguments are required: SPEC"),
    ],
)
def test_what_a_user_did_wrong_is_said_in_one_line(
    place: Place, done: Driver, arguments: tuple[str, ...], says: str
) -> None:
    called = place.call(*arguments, env={"SWEEPER_ROOT": place.root})
    assert called.returncode == 2
    assert called.stdout == ""
    lines = [line for line in called.stderr.splitlines() if "error: " in line]
    assert len(lines) == 1
    assert says in lines[0]
    assert "Traceback" not in called.stderr


def test_a_root_that_is_no_directory_is_a_user_error(place: Place, done: Driver) -> None:
    spec = place.path / "done.toml"
    called = place.call("run", str(spec), "--root", str(spec))
    assert called.returncode == 2
    assert called.stderr.startswith(f"error: {spec}/done: ")
    assert called.stderr.count("\n") == 1


@pytest.mark.parametrize("command", [(), ("run",), ("status",), ("report",)])
def test_every_command_explains_itself(place: Place, command: tuple[str, ...]) -> None:
    called = place.call(*command, "--help")
    assert (called.returncode, called.stderr) == (0, "")
    assert called.stdout.startswith(" ".join(("usage: sweeper", *command)))


# ---- drivers that are stopped, and slots that die


def start_gated(place: Place, name: str, *options: str) -> Driver:
    """A driver whose sweep of six runs is in its middle: two are over, the next two wait."""
    spec = place.write_spec(name, seeds=SEEDS, trials=TWO_TRIALS, env={"GATED": 1})
    driver = place.drive(spec, *options)
    driver.wait_for_arrivals(2)
    open_gate(place.board(name), 2)
    driver.wait_for_arrivals(4)
    return driver


@pytest.mark.slow
def test_a_sweep_survives_the_death_of_its_driver(place: Place) -> None:
    sweep, board = place.sweep("killed"), place.board("killed")
    driver = start_gated(place, "killed", "--num-cpus", "2")
    # Its Ray, its slots, their guards and the runs: all of them.
    tree = {process.pid for process in psutil.Process(driver.process.pid).children(recursive=True)}
    left = {process.pid for process in driver.left()}
    runs = {process.pid for process in place.runs()}
    assert len(runs) == 4
    assert len(place.slots()) == 2
    assert runs < left
    assert left <= tree | {driver.process.pid}
    driver.kill()
    wait_until(
        lambda: not any(map(alive, left)) and not driver.left(),
        "everything that the driver had started to end",
    )
    assert not place.runs()
    assert sorted(run_states(sweep).values()) == sorted(
        [RunState.FINISHED] * 2 + [RunState.RUNNING] * 2 + [RunState.PENDING] * 2
    )

    open_gate(board)
    again = place.drive(place.path / "killed.toml", "--num-cpus", "2")
    assert again.wait() == 0, again.said
    check_finished(sweep, runs=6)
    # What had finished was not run again, and what was lost was run once more.
    ends = sorted(attempt_states(sweep).values())
    assert ends == [["finished"]] * 4 + [["lost", "finished"]] * 2
    assert board.arrivals() == 8
    wait_until(lambda: not again.left(), "all processes of the driver to end")


def test_a_result_that_nobody_took_in_is_adopted(place: Place, head: Head) -> None:
    # The driver is frozen while its runs finish, then it dies: the ledger says launched.
    sweep, board = place.sweep("adopted"), place.board("adopted")
    driver = start_gated(place, "adopted", "--address", head.address)
    os.killpg(driver.process.pid, signal.SIGSTOP)  # what keeps it as well
    open_gate(board, 4)
    wait_until(
        lambda: len(list(sweep.path.glob("attempts/*/seed*/*/exit.json"))) == 4,
        "the runs to finish without their driver",
    )
    driver.kill()
    assert list(run_states(sweep).values()).count(RunState.RUNNING) == 2
    open_gate(board)
    again = place.drive(place.path / "adopted.toml", "--address", head.address)
    assert again.wait() == 0, again.said
    check_finished(sweep, runs=6)
    assert set(map(tuple, attempt_states(sweep).values())) == {("finished",)}
    assert board.arrivals() == 6


def test_while_a_sweep_runs_others_may_look_but_not_touch(place: Place, head: Head) -> None:
    sweep, root = place.sweep("stopped"), str(place.root)
    # A Ray of the driver's own, as at a terminal: ^C goes to it as well.
    driver = start_gated(place, "stopped", "--num-cpus", "2")

    view = json.loads(place.call("status", "stopped", "--root", root, "--json").stdout)
    assert [run["state"] for run in view["runs"]] == [
        *(["finished"] * 2 + ["running"] * 2 + ["pending"] * 2)
    ]
    running = view["runs"][2]
    assert (running["phase"], running["step"], running["iterations"]) == ("train", 1, 2)
    assert running["fraction"] == pytest.approx(0.41)  # half of the training
    status = place.call("status", "stopped", "--root", root)
    assert status.stdout.startswith("stopped: 2/6 runs done, 2 running, ")
    report = place.call("report", "stopped", "--root", root)
    assert "few: 1 of 3 seeds finished, 0 failed; not to be compared yet" in report.stdout

    second = place.call("run", str(place.path / "stopped.toml"), "--root", root)
    assert second.returncode == 2
    assert second.stderr.startswith(
        f"error: sweep 'stopped' is being run already, by process {driver.process.pid} on "
    )
    assert second.stderr.count("\n") == 1

    # ^C: the runs are asked to stop, and wait for the next time.
    driver.interrupt()
    assert driver.wait() == 130, driver.said
    assert driver.stderr.read_text().endswith("resume stopped` goes on where it was\n")
    assert not place.runs()
    assert list(run_states(sweep).values()) == [RunState.FINISHED] * 2 + [RunState.PENDING] * 4
    (row,) = attempts(sweep)["few", 314]
    assert (row.state, row.exit_code) == (AttemptState.STOPPED, 75)

    changed = place.write_spec(
        "stopped", seeds=SEEDS, trials={"few": {"ITERATIONS": 9}}, env={"GATED": 1}
    )
    other = place.call("run", str(changed), "--root", root)
    assert other.returncode == 2
    assert other.stderr.startswith("error: sweep 'stopped' exists with another spec (trial 'few'")

    open_gate(place.board("stopped"))
    same = place.write_spec("stopped", seeds=SEEDS, trials=TWO_TRIALS, env={"GATED": 1})
    again = place.drive(same, "--address", head.address)
    assert again.wait() == 0, again.said
    check_finished(sweep, runs=6)
    ends = sorted(attempt_states(sweep).values())
    assert ends == [["finished"]] * 4 + [["stopped", "finished"]] * 2


def test_a_second_interrupt_ends_runs_that_do_not_listen(place: Place, head: Head) -> None:
    sweep, board = place.sweep("stubborn"), place.board("stubborn")
    spec = place.write_spec(
        "stubborn",
        seeds=(1, 2),
        trials={"t": {"FAULT": "ignore SIGTERM"}},
        limits={"grace_seconds": 600.0},
    )
    driver = place.drive(spec, "--address", head.address)
    driver.wait_for_arrivals(2)
    driver.interrupt()
    # Signals that come together count as one: the second waits until the first was heard.
    wait_until(lambda: "interrupt again" in driver.stderr.read_text(), "the driver to be stopping")
    driver.interrupt()
    assert driver.wait() == 130, driver.said
    assert not place.runs()
    assert set(run_states(sweep).values()) == {RunState.PENDING}
    (board.path / "mended").touch()
    again = place.drive(spec, "--address", head.address)
    assert again.wait() == 0, again.said
    check_finished(sweep, runs=2)
    assert {tuple(ends) for ends in attempt_states(sweep).values()} == {("stopped", "finished")}


def test_an_interrupt_hurries_what_is_being_ended_already(place: Place, head: Head) -> None:
    """It is over its time, and would have ten minutes more to end by itself."""
    spec = place.write_spec(
        "hurried",
        seeds=(1,),
        trials={"t": {"FAULT": "ignore SIGTERM"}},
        limits={"max_seconds": 0.5, "grace_seconds": 600.0},
    )
    driver = place.drive(spec, "--address", head.address, "--stop-seconds", "0.5")
    wait_until((place.board("hurried").path / "told to end").exists, "the run to be told to end")
    driver.interrupt()
    assert driver.wait() == 130, driver.said
    assert not place.runs()
    ((row,),) = attempts(place.sweep("hurried")).values()
    assert row.state is AttemptState.TIMED_OUT


def test_sigterm_stops_a_sweep_as_an_interrupt_does(place: Place, head: Head) -> None:
    sweep = place.sweep("terminated")
    driver = start_gated(place, "terminated", "--address", head.address)
    driver.process.terminate()
    assert driver.wait() == 130, driver.said
    assert not place.runs()
    assert list(run_states(sweep).values()) == [RunState.FINISHED] * 2 + [RunState.PENDING] * 4
    stopped = [rows[-1].exit_code for rows in attempts(sweep).values() if rows]
    assert stopped == [0, 0, 75, 75]


@pytest.mark.slow
def test_a_slot_that_dies_gives_its_run_another_try_and_its_gpus_back(
    place: Place, head: Head
) -> None:
    sweep, board = place.sweep("slotless"), place.board("slotless")
    spec = place.write_spec(
        "slotless",
        seeds=(1,),
        trials={"t": {}},
        env={"GATED": 1},
        resources={"gpus_per_run": 8, "processes_per_run": 1},
        launch="torchrun",
    )
    driver = place.drive(spec, "--address", head.address)
    driver.wait_for_arrivals(1)
    # torchrun puts its ranks in sessions of their own, where no signal to a group reaches them.
    first = place.runs()
    # Its guard is frozen, as by a debugger, so that it cannot end the run when the slot dies:
    # that is left to the one who launches on this host next.
    (guard,) = [process for process in first if "supervise" in process.cmdline()]
    guard.suspend()
    (slot,) = place.slots()
    slot.kill()
    driver.wait_for_arrivals(2)
    # The second has the first one's GPUs: nothing may be left of the first.
    assert not any(alive(process.pid) for process in first)
    open_gate(board)
    assert driver.wait() == 0, driver.said
    rows = attempts(sweep)["t", 1]
    assert [row.state for row in rows] == [AttemptState.LOST, AttemptState.FINISHED]
    assert str(rows[0].message).startswith("its slot was lost: ")
    assert [row.gpus for row in rows] == ["0,1,2,3,4,5,6,7"] * 2


class LostCluster:
    """A cluster that has lost its only node: a slot waits for a place that never comes."""

    def __init__(self) -> None:
        self.asked = 0
        self.most = 0
        self.slots = [Slot(cast(Remote, None), opening=Future())]
        self.pools = [self]
        self.runs = self.packing = self

    def capacity(self) -> int:
        self.asked += 1
        if self.asked > 1:
            raise UserError("the cluster has lost its nodes")
        return 1

    def open(self, count: int) -> None:
        assert min(count, self.most) == len(self.slots)

    def wait(self, seconds: float) -> list[Slot]:
        raise AssertionError("it waits for what cannot come")


def test_a_sweep_does_not_wait_for_ever_for_nodes_that_are_lost(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sweeper.loop.COUNT_SECONDS", 0.0)
    monkeypatch.setattr("sweeper.loop.LOST_NODES_SECONDS", 0.0)
    spec, sweep = make_spec(), SweepDir(tmp_path)
    progress = Progress(Console(file=io.StringIO()))
    with closing(Ledger.open_for_writing(sweep.ledger, spec)) as ledger:
        observer = Observer(sweep, ledger)
        cluster = cast(Cluster, LostCluster())
        teller = Teller(sweep, ledger, progress, observer)
        loop = Loop(spec, sweep, ledger, cluster, teller, Interrupts(), "session")
        with pytest.raises(UserError, match="lost its nodes"):
            loop.run()


# ---- runs that fail, each in its own way, in one sweep


FAULTS: dict[str, dict[str, object]] = {
    "good": {},
    "crash": {"FAULT": "crash"},
    "crash once": {"FAULT": "crash once"},
    "user error": {"FAULT": "user error"},
    "non-finite": {"FAULT": "non-finite"},
    "out of memory": {"FAULT": "out of memory"},
    "corrupt result": {"FAULT": "corrupt result"},
    "no result": {"FAULT": "no result"},
    "deaf": {"FAULT": "deaf to settings", "ITERATIONS": 5},
    "misspelt": {"ITERATION": 5},
    "lingering": {"FAULT": "leave a process behind"},
    "too large": {"FAULT": "too large"},
}
# A failure that would only repeat itself is not tried again.
ENDS = {
    "good": ["finished"],
    "crash": ["crashed"] * 3,
    "crash once": ["crashed", "finished"],
    "user error": ["user_error"],
    "non-finite": ["nonfinite"],
    "out of memory": ["out_of_memory"],
    "corrupt result": ["bad_result"],
    "no result": ["bad_result"],
    "deaf": ["user_error"],
    "misspelt": ["user_error"],
    "lingering": ["finished"],
    "too large": ["finished"],
}
FAILED = {trial for trial, ends in ENDS.items() if ends[-1] != "finished"}


@pytest.fixture(scope="module")
def faulty(place: Place, head: Head) -> Driver:
    """A driver that has run a sweep of every fault."""
    spec = place.write_spec("faulty", seeds=(1,), trials=FAULTS, limits={"max_attempts": 3})
    driver = place.drive(spec, "--address", head.address)
    driver.wait()
    return driver


def test_each_failure_is_judged_by_its_kind_and_the_others_go_on(
    place: Place, faulty: Driver
) -> None:
    assert faulty.process.returncode == 1, faulty.said
    sweep = place.sweep("faulty")
    assert {trial: ends for (trial, _), ends in attempt_states(sweep).items()} == ENDS
    states = {trial: state for (trial, _), state in run_states(sweep).items()}
    assert {trial for trial, state in states.items() if state is RunState.FAILED} == FAILED
    assert {states[trial] for trial in ENDS if trial not in FAILED} == {RunState.FINISHED}


@pytest.mark.parametrize(
    ("trial", "says"),
    [
        ("crash", "ended with exit code 1"),
        ("user error", "Fault: user error"),
        ("non-finite", "Fault: non-finite"),
        ("corrupt result", "result.json: corrupt"),
        ("no result", "result.json: missing"),
        ("deaf", "ITERATIONS: asked for '5', the run took -1"),
        ("misspelt", "ITERATION: the run does not know this setting; did you mean ITERATIONS?"),
    ],
)
def test_the_cause_of_a_failure_is_recorded_and_said(
    place: Place, faulty: Driver, trial: str, says: str
) -> None:
    rows = attempts(place.sweep("faulty"))[trial, 1]
    assert says in str(rows[-1].message)
    told = faulty.stderr.read_text()
    assert f"failed: {trial}, seed 1: {rows[-1].message}" in told
    # Where to look further.
    logs = attempt_dir(place.sweep("faulty"), rows[-1])
    assert f"logs: {logs.path}" in told
    assert logs.stderr.is_file()


def test_a_crash_keeps_its_traceback(place: Place, faulty: Driver) -> None:
    for row in attempts(place.sweep("faulty"))["crash", 1]:
        assert "RuntimeError: crashed as asked" in str(row.traceback)


def test_a_process_that_a_run_leaves_behind_does_not_outlive_it(
    place: Place, faulty: Driver
) -> None:
    # It has a session of its own, ignores SIGTERM and carries no tag.
    pid = int((place.board("faulty").path / "lingerer").read_text())
    assert not alive(pid)


def test_an_artifact_over_the_budget_is_a_result_and_is_marked(
    place: Place, faulty: Driver
) -> None:
    table = faulty.stdout.read_text().splitlines()
    (row,) = [line for line in table if "too large" in line]
    assert "16,001,000 over!" in row
    assert not any("over!" in line for line in table if "too large" not in line)


def test_a_start_after_an_accident_leaves_the_failed_ones(
    place: Place, head: Head, faulty: Driver
) -> None:
    before = attempt_states(place.sweep("faulty"))
    again = place.resume("faulty", "--address", head.address, "--leave-failed")
    assert again.wait() == 1, again.said
    assert attempt_states(place.sweep("faulty")) == before


def test_a_second_run_opens_the_failed_ones_again(place: Place, head: Head, faulty: Driver) -> None:
    sweep, board = place.sweep("faulty"), place.board("faulty")
    before = attempts(sweep)
    (board.path / "mended").touch()
    again = place.drive(place.path / "faulty.toml", "--address", head.address)
    assert again.wait() == 1, again.said
    states = {trial: state for (trial, _), state in run_states(sweep).items()}
    still_failed = {trial for trial, state in states.items() if state is RunState.FAILED}
    assert still_failed == FAILED - {"crash"}
    for (trial, seed), rows in attempts(sweep).items():
        new = rows[len(before[trial, seed]) :]
        assert rows[: len(before[trial, seed])] == before[trial, seed]
        assert len(new) == (1 if trial in FAILED else 0)
        assert [row.number for row in rows] == list(range(1, len(rows) + 1))


def test_a_run_over_its_time_is_ended_even_if_it_ignores_the_request(
    place: Place, head: Head
) -> None:
    sweep = place.sweep("slow")
    spec = place.write_spec(
        "slow",
        seeds=(1,),
        trials={"t": {"FAULT": "ignore SIGTERM"}},
        limits={"max_seconds": 5.0, "grace_seconds": 0.2, "max_attempts": 3},
    )
    driver = place.drive(spec, "--address", head.address)
    assert driver.wait() == 1, driver.said
    ((row,),) = attempts(sweep).values()
    assert row.state is AttemptState.TIMED_OUT
    assert row.exit_code == -signal.SIGKILL
    assert row.message == "took longer than limits.max_seconds = 5"
    assert not place.runs()


def test_a_run_that_took_other_settings_is_stopped_at_once(place: Place, head: Head) -> None:
    # The gate never opens: by themselves these runs would not end.
    spec = place.write_spec(
        "unheard", seeds=(1,), trials={"misspelt": {"GATED": 1, "ITERATION": 5}}
    )
    driver = place.drive(spec, "--address", head.address)
    assert driver.wait() == 1, driver.said
    ((row,),) = attempts(place.sweep("unheard")).values()
    assert row.state is AttemptState.USER_ERROR
    assert "did you mean ITERATIONS?" in str(row.message)
    assert not place.runs()


@pytest.mark.slow
def test_a_setting_of_the_shell_does_not_pass_for_one_of_the_spec(place: Place) -> None:
    spec = place.write_spec("leaky", seeds=(1,), trials={"t": {"GATED": 1}})
    driver = place.drive(spec, "--num-cpus", "1", env={"ITERATIONS": "7"})
    assert driver.wait() == 1, driver.said
    ((row,),) = attempts(place.sweep("leaky")).values()
    assert row.state is AttemptState.USER_ERROR
    assert "ITERATIONS: the run takes it from the environment" in str(row.message)


def test_settings_for_all_trials_come_from_the_command_line_too(place: Place, head: Head) -> None:
    spec = place.write_spec("told", seeds=(1,), trials={"t": {}})
    driver = place.drive(spec, "--address", head.address, "--env", "ITERATIONS=9")
    assert driver.wait() == 0, driver.said
    ((row,),) = attempts(place.sweep("told")).values()
    assert row.result is not None
    assert row.result["steps"] == 9
    refused = place.call("run", str(spec), "--env", "ITERATIONS")
    assert refused.returncode == 2
    assert "NAME=VALUE" in refused.stderr
