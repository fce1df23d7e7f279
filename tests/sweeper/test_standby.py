"""A torchrun made ahead: a run that begins by it is as any other, and it outlives nobody."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
import uuid
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import pytest

from sweeper import launch
from sweeper.judge import Outcome, judge
from sweeper.launch import LaunchRequest, RunningAttempt, standby_fit
from sweeper.layout import AttemptDir
from sweeper.reaping import TAG_NAME, Tag, reap_leftovers, tagged_processes
from sweeper.rows import AttemptState
from sweeper.standby import Fit, Standby
from tests.sweeper.conftest import FINISHES, ROOT, alive, wait_until, write_module
from tests.sweeper.ray_helpers import Place
from tests.sweeper.sweeps import attempt_dir, attempts, check_finished, open_gate

# What a rank can see of how it was started.
SAYS_ALL = """
facts = {
    "env": dict(os.environ), "cwd": os.getcwd(), "argv": sys.argv, "path": sys.path,
    "nice": os.nice(0), "blocked": [int(number) for number in signal.pthread_sigmask(0, [])],
    "ignored": [int(n) for n in signal.valid_signals() if signal.getsignal(n) == signal.SIG_IGN],
    "modules": sorted(sys.modules), "files": sorted(os.listdir("/proc/self/fd")),
    "stdin": os.readlink("/proc/self/fd/0"), "leads": os.getsid(0) == os.getpid(),
}
(RUN_DIR / f"facts{RANK}.json").write_text(json.dumps(facts))
print("said by", RANK)
"""
# Of each launch its own, whoever makes it.
OWN_NAMES = {"RUN_DIR", "MASTER_PORT", "TORCHELASTIC_RUN_ID", "SWEEPER_GUARD_PID", "PWD"}
OWN_NAMES |= {TAG_NAME, "TORCHELASTIC_ERROR_FILE"}
WAITS = """
(RUN_DIR / f"pid{RANK}").write_text(str(os.getpid()))
def stop(*_):
    event("stopped", reason="asked", step=3)
    sys.exit(75)
signal.signal(signal.SIGTERM, stop)
forever()
"""
# Stands for torchrun where all that matters is who is started and ended: it imports nothing.
STUB = """
import os, subprocess, sys
def main():
    rank = sys.argv[sys.argv.index("--no-python") + 1 :]
    sys.exit(subprocess.call(rank, env=os.environ | {"RANK": "0"}))
if __name__ == "__main__":
    main()
"""


@pytest.fixture
def tag() -> Tag:
    """A tag that no other test, and no sweep on this machine, has."""
    return Tag(sweep=uuid.uuid4().hex, session="session", launch=1)


class Bench:
    """Makes the requests of one test, and launches them with one standby."""

    def __init__(self, path: Path, tag: Tag) -> None:
        self.path = path
        self.tag = tag
        self.standby = Standby()
        self.started: list[RunningAttempt] = []

    def request(self, body: str, **changes: Any) -> LaunchRequest:
        number = len(self.started) + 1
        facts: dict[str, Any] = {
            "tag": replace(self.tag, launch=number),
            "directory": str(self.path / "an attempt ✓" / str(number)),
            "module": write_module(self.path, "trainer", body),
            "launch": "torchrun",
            "processes": 2,
            "cpus": 2,
            "grace_seconds": 60.0,
            "env": {"SEED": "42", "LR": "0.1"},
        }
        return LaunchRequest(**(facts | changes))

    def launch(self, request: LaunchRequest) -> AttemptDir:
        self.started.append(RunningAttempt(request, (), self.standby))
        return request.attempt

    def stub_torchrun(self) -> None:
        """Have something small in torchrun's place."""
        package = self.path / "torch" / "distributed"
        package.mkdir(parents=True)
        for path in (package.parent / "__init__.py", package / "__init__.py"):
            path.touch()
        (package / "run.py").write_text(STUB)

    def prepare(self, request: LaunchRequest) -> list[psutil.Process]:
        """Have a standby that is ready for such a request; its processes."""
        self.standby.prepare(standby_fit(request, ()))
        wait_until(self._hurry, "the standby to be ready")
        return self.waiting()

    def _hurry(self) -> bool:
        """Whether it is ready; till then it is hurried."""
        hurry(self.waiting())
        return self.standby.ready

    def waiting(self) -> list[psutil.Process]:
        """The processes that are of no run yet."""
        return self.tagged(0)

    def tagged(self, launch: int) -> list[psutil.Process]:
        wanted = replace(self.tag, launch=launch)
        return [process for process, tag in tagged_processes() if tag == wanted]


@pytest.fixture
def bench(
    tmp_path: Path, tag: Tag, monkeypatch: pytest.MonkeyPatch, nothing_left: str
) -> Iterator[Bench]:
    modules = tmp_path / "größe und platz"
    monkeypatch.setenv("PYTHONPATH", str(modules))
    bench = Bench(modules, tag)
    yield bench
    for attempt in bench.started:
        attempt.kill()
        attempt.wait()
    bench.standby.close()
    wait_until(lambda: not bench.waiting(), "the standby to end")


def by_standby(attempt: AttemptDir) -> bool:
    return bool(json.loads(attempt.exit.read_text()).get("standby", False))


def hurry(standby: list[psutil.Process]) -> None:
    """Let it be no less than others, where this user may say so.

    By itself it waits for as long as anybody else has work for the processors.
    """
    for process in standby:
        with contextlib.suppress(psutil.Error, OSError):
            Path(f"/proc/{process.pid}/autogroup").write_text("0")
            for thread in process.threads():
                os.setpriority(os.PRIO_PROCESS, thread.id, 0)


def gone(processes: list[psutil.Process]) -> bool:
    return not any(alive(process.pid) for process in processes)


# ---- a run that begins by it


def test_a_run_begins_as_it_does_without(bench: Bench) -> None:
    bodies = FINISHES + SAYS_ALL
    plain = bench.launch(bench.request(bodies))
    bench.started[0].wait()
    assert not by_standby(plain)
    request = bench.request(bodies, env={"SEED": "7", "LR": "ü 0.2"})
    bench.prepare(bench.request(bodies))
    ahead = bench.launch(request)
    bench.started[1].wait()
    assert by_standby(ahead)
    assert judge(ahead, request.env).state is AttemptState.FINISHED
    for rank in (0, 1):
        one, other = (
            json.loads((attempt.path / f"facts{rank}.json").read_text())
            for attempt in (plain, ahead)
        )
        env = other.pop("env")
        assert (env["SEED"], env["LR"]) == ("7", "ü 0.2")
        assert env["RUN_DIR"] == other.pop("cwd") == str(ahead.path)
        assert env[TAG_NAME] == str(request.tag)
        names = env.keys() - OWN_NAMES - {"SEED", "LR"}
        plain_env = one.pop("env")
        assert {name: env[name] for name in names} == {name: plain_env[name] for name in names}
        assert env.keys() == plain_env.keys()
        assert [facts["path"].pop(0) for facts in (one, other)] == [one.pop("cwd"), str(ahead.path)]
        assert other == one
        (log,) = ahead.rank_logs(rank, "stdout")
        assert log.read_text() == f"said by {rank}\n"
    commands = [json.loads(run.request.read_text())["command"] for run in (plain, ahead)]
    assert commands[0] == [part.replace(str(ahead.path), str(plain.path)) for part in commands[1]]


def test_all_of_it_carries_its_tag_and_ends_when_asked(bench: Bench) -> None:
    request = bench.request("config()\n" + WAITS)
    guard, torchrun = bench.prepare(request)
    assert torchrun.ppid() == guard.pid
    attempt = bench.launch(request)
    pids = [attempt.path / f"pid{rank}" for rank in (0, 1)]
    wait_until(lambda: all(pid.exists() and pid.read_text() for pid in pids), "the ranks")
    ours = bench.tagged(1)
    assert {process.pid for process in ours} == {
        *(guard.pid, torchrun.pid),
        *(int(pid.read_text()) for pid in pids),
    }
    assert not bench.waiting()
    assert {process.nice() for process in ours} == {os.nice(0)}
    bench.started[0].stop()
    bench.started[0].wait()
    assert gone(ours)
    assert by_standby(attempt)
    outcome = judge(attempt, request.env)
    assert (outcome.state, outcome.exit_code) == (AttemptState.STOPPED, 1)


@pytest.mark.parametrize(
    "victim",
    [
        "launcher",
        *(pytest.param(name, marks=pytest.mark.slow) for name in ("guard", "torchrun", "rank")),
    ],
)
def test_whatever_dies_of_it_nothing_is_left(bench: Bench, victim: str) -> None:
    request = bench.request("signal.signal(signal.SIGTERM, signal.SIG_IGN)\n" + WAITS)
    guard, torchrun = bench.prepare(request)
    attempt = bench.launch(replace(request, grace_seconds=0.2))
    pid = attempt.path / "pid1"
    wait_until(lambda: pid.exists() and pid.read_text(), "a rank to begin")
    ours = bench.tagged(1)
    if victim == "launcher":
        bench.started[0].kill()  # what its death does: the file is closed
    else:
        pids = {"guard": guard.pid, "torchrun": torchrun.pid, "rank": int(pid.read_text())}
        os.kill(pids[victim], signal.SIGKILL)
    bench.started[0].wait()
    assert gone(ours)
    states = {"guard": AttemptState.LOST, "launcher": AttemptState.LOST}
    assert judge(attempt, request.env).state is states.get(victim, AttemptState.CRASHED)


@pytest.mark.slow
def test_the_rank_that_failed_is_named(bench: Bench) -> None:
    request = bench.request("if RANK == 1:\n    raise ValueError('the cause')\nforever()\n")
    bench.prepare(request)
    attempt = bench.launch(request)
    bench.started[0].wait()
    assert by_standby(attempt)
    outcome: Outcome = judge(attempt, request.env)
    assert outcome.message == "ValueError: the cause (rank 1 ended with exit code 1)"
    assert "ChildFailedError" in attempt.stderr.read_text()


# ---- none that fits, or none that lives


def is_plain(bench: Bench) -> bool:
    """Whether the launch that was made has a guard of its own."""
    (command,) = [process.cmdline() for process in bench.tagged(1) if is_guard(process)]
    return "supervise" in command


def is_guard(process: psutil.Process) -> bool:
    return bool({"supervise", "standby"} & set(process.cmdline()))


def test_a_run_that_differs_in_what_comes_early_begins_without(bench: Bench) -> None:
    bench.stub_torchrun()
    request = bench.request(WAITS)
    processes = bench.prepare(request)
    bench.launch(replace(request, env=dict(request.env) | {"LOGLEVEL": "ERROR"}))
    assert is_plain(bench)
    assert not bench.standby.ready
    wait_until(lambda: gone(processes), "the standby to end")


def test_what_matters_before_the_run_is_known(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    request = bench.request("")

    def fit(**changes: Any) -> Fit:
        return standby_fit(replace(request, **changes), ("3",))

    same = fit()
    assert same == fit(tag=replace(bench.tag, launch=77), directory="/elsewhere", number=2)
    assert same == fit(env={"SEED": "1", "WARMDOWN_FRAC": "0.5"})
    assert same.env["CUDA_VISIBLE_DEVICES"] == "3"
    assert Tag.parse(same.env[TAG_NAME]) == replace(bench.tag, launch=0)
    for changes in (
        {"env": {"TORCH_LOGS": "+dynamo"}},
        {"env": {"PYTHONHASHSEED": "0"}},
        {"process_env": {"HF_HOME": "/cache"}},
        {"code": "/code/of/today"},
        {"cpus": 8},
        {"nice": 3},
        {"tag": replace(bench.tag, session="another")},
    ):
        assert same != fit(**changes)
    monkeypatch.setenv("HF_HOME", "/cache")
    assert same != fit()


@pytest.mark.parametrize("whose", ["guard", "torchrun"])
def test_one_that_has_died_fails_no_run(bench: Bench, whose: str) -> None:
    bench.stub_torchrun()
    request = bench.request(WAITS)
    processes = bench.prepare(request)
    processes[["guard", "torchrun"].index(whose)].kill()
    wait_until(lambda: gone(processes), "both to end when one does")
    assert not bench.standby.ready
    bench.launch(request)
    assert is_plain(bench)


def test_one_that_is_not_ready_is_not_waited_for(bench: Bench) -> None:
    request = bench.request(WAITS)
    bench.standby.prepare(standby_fit(request, ()))
    processes = bench.waiting()
    bench.launch(request)
    assert is_plain(bench)
    wait_until(lambda: gone(processes), "the standby to end")


def test_what_cannot_be_told_is_no_failure(bench: Bench) -> None:
    bench.stub_torchrun()
    # More than an order may hold, though as an environment it is not too much.
    request = bench.request(WAITS, env={f"SETTING_{number}": "x" * 120_000 for number in range(9)})
    processes = bench.prepare(request)
    bench.launch(request)
    assert is_plain(bench)
    wait_until(lambda: gone(processes), "the standby to end")


# ---- when it is made, and whom it outlives


def test_one_is_made_while_a_run_is_at_work(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(launch, "STANDBY_SECONDS", 0.0)
    monkeypatch.setattr(launch, "STALL_POLL_SECONDS", 0.05)
    bench.stub_torchrun()
    # It works until the next one could begin by what was made.
    body = FINISHES + "while not (RUN_DIR / 'go').exists():\n    time.sleep(0.02)\n"
    request = bench.request(body)
    first = bench.launch(request)
    waiting = threading.Thread(target=bench.started[0].wait)
    waiting.start()
    wait_until(lambda: bench.standby.ready, "the next one's torchrun")
    (first.path / "go").touch()
    waiting.join()
    assert not by_standby(first)
    second = bench.launch(replace(bench.request(FINISHES), env={"SEED": "1", "LR": "3"}))
    bench.started[1].wait()
    assert by_standby(second)
    assert not bench.standby.ready


def test_a_run_without_torchrun_makes_none(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(launch, "STANDBY_SECONDS", 0.0)
    monkeypatch.setattr(launch, "STALL_POLL_SECONDS", 0.02)
    bench.launch(bench.request("time.sleep(0.3)", launch="exec", processes=1))
    bench.started[0].wait()
    assert bench.standby._made is None


PREPARES = """
import os, sys, time
from sweeper.standby import Fit, Standby
standby = Standby()
standby.prepare(Fit(env=dict(os.environ), nice=0))
while not standby.ready and sys.argv[1] == "ready":
    time.sleep(0.02)
print("prepared", flush=True)
time.sleep(1000)
"""


@pytest.mark.parametrize("when", ["ready", "importing"])
def test_it_ends_with_the_process_that_made_it(bench: Bench, when: str) -> None:
    if when == "ready":
        bench.stub_torchrun()
    env = os.environ | standby_fit(bench.request(""), ()).env
    command = [sys.executable, "-c", PREPARES, when]
    process = subprocess.Popen(
        command, cwd=ROOT, env=env | {"PYTHONPATH": f"{ROOT}:{bench.path}"}, stdout=subprocess.PIPE
    )
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == b"prepared\n"
        assert psutil.Process(process.pid).children()
    finally:
        process.kill()
        process.wait()
    wait_until(lambda: not bench.waiting(), "the standby to end")


def test_another_session_reaps_it(bench: Bench) -> None:
    bench.stub_torchrun()
    processes = bench.prepare(bench.request(""))
    assert reap_leftovers(bench.tag, dead={1, 2, 3}) == 0
    assert reap_leftovers(replace(bench.tag, session="later")) == len(processes) == 2
    assert not bench.standby.ready


# ---- in a sweep


Struck = Callable[[Place, psutil.Process], None]


def kill_slot(place: Place, guard: psutil.Process) -> None:
    slot = guard.parent()
    assert slot is not None
    slot.kill()


def has_imported(torchrun: psutil.Process) -> bool:
    """Whether the thread that imports has come, and gone again; till then it is hurried."""
    hurry([torchrun])
    has_torch = any("libtorch" in mapped.path for mapped in torchrun.memory_maps())
    return has_torch and torchrun.num_threads() == 1


def kill_driver(place: Place, guard: psutil.Process) -> None:
    place.drivers[-1].kill()


@pytest.mark.slow
@pytest.mark.usefixtures("quiet")
@pytest.mark.parametrize("strike", [None, kill_slot, kill_driver])
def test_a_sweep_leaves_none(place: Place, strike: Struck | None) -> None:
    name = "ahead" if strike is None else strike.__name__.replace("_", "-")
    spec = place.write_spec(
        name,
        seeds=(1, 2),
        trials={"t": {}},
        env={"GATED": 1},
        limits={"backoff_seconds": 0.1},
        launch="torchrun",
    )
    driver = place.drive(spec, "--num-cpus=1")
    driver.wait_for_arrivals(1)

    def standbys() -> list[psutil.Process]:
        return [
            process
            for process, tag in tagged_processes()
            if tag.launch == 0 and process.environ().get("TMPDIR") == str(place.scratch)
        ]

    wait_until(lambda: len(standbys()) == 2, "the next run's torchrun")
    found = guard, torchrun = sorted(standbys(), key=psutil.Process.create_time)
    if strike is None:
        wait_until(lambda: has_imported(torchrun), "the imports")
    else:
        strike(place, guard)
        wait_until(lambda: gone(found), "the standby to end")
    open_gate(place.board(name))
    if strike is kill_driver:
        driver = place.resume(name, "--num-cpus=1")
    assert driver.wait() == 0, driver.said
    check_finished(place.sweep(name), runs=2)
    assert not standbys()
    if strike is None:
        last = attempts(place.sweep(name))["t", 2][-1]
        assert by_standby(attempt_dir(place.sweep(name), last))
