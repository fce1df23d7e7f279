"""The shell of a rented pod and its idle guard: real processes, a real Ray with its token."""

from __future__ import annotations

import contextlib
import fcntl
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import psutil
import pytest

from jobs.cluster.idle_guard import Settings, guard, what_is_at_work
from sweeper.ledger import Ledger
from sweeper.rows import AttemptState
from tests.sweeper.conftest import ROOT, alive, wait_until
from tests.sweeper.ray_helpers import Place, a_place, free_port
from tests.sweeper.sweeps import attempt_states, check_finished, open_gate

POD = ROOT / "jobs" / "cluster" / "pod.sh"


# ---- the idle guard, by a clock of its own


@dataclass
class Clock:
    """Time that passes in the guard's sleep alone; at its moments something happens."""

    happens: dict[float, Callable[[], object]] = field(default_factory=dict)
    now: float = 0.0

    def read(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds
        for moment in [moment for moment in self.happens if moment <= self.now]:
            self.happens.pop(moment)()
        assert self.now < 10_000, "the guard never ends"


@dataclass
class Watched:
    """A root of sweeps, and what the guard's commands leave behind."""

    path: Path
    clock: Clock = field(default_factory=Clock)

    @property
    def stopped(self) -> bool:
        return (self.path / "stopped").exists()

    def settings(self, **changes: object) -> Settings:
        values: dict[str, object] = {
            "root": self.path / "runs",
            "idle_seconds": 100.0,
            "stop": f"touch '{self.path}/stopped'",
            "own": True,
        }
        return Settings(**(values | changes))  # type: ignore[arg-type]

    def guard(self, **changes: object) -> float:
        """When the guard has ended."""
        guard(self.settings(**changes), self.clock.read, self.clock.sleep)
        return self.clock.now

    @contextmanager
    def driver(self) -> Iterator[None]:
        """Hold a sweep's lock as its driver does."""
        lock = self.path / "runs" / "sweep" / "lock"
        lock.parent.mkdir(parents=True, exist_ok=True)
        with lock.open("a+") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield


@pytest.fixture
def watched(tmp_path: Path) -> Watched:
    return Watched(tmp_path)


def test_an_idle_pod_is_stopped_when_its_time_is_over(watched: Watched) -> None:
    assert watched.guard() == 100
    assert watched.stopped


def test_no_pod_is_stopped_while_a_driver_holds_a_sweep(watched: Watched) -> None:
    with contextlib.ExitStack() as stack:
        stack.enter_context(watched.driver())
        watched.clock.happens = {1_000: stack.close}
        # The last look at which there was a driver is that of 975.
        assert watched.guard() == 1_075
    assert watched.stopped


def test_time_counts_anew_after_each_driver(watched: Watched) -> None:
    stack = contextlib.ExitStack()
    watched.clock.happens = {
        75: lambda: stack.enter_context(watched.driver()),
        100: stack.close,
    }
    assert watched.guard() == 175


def test_no_pod_is_stopped_while_a_run_is_there(watched: Watched) -> None:
    with a_run(watched.path / "runs" / "sweep") as end:
        watched.clock.happens = {500: end}
        assert watched.guard() == 575


def test_runs_of_other_roots_count_unless_told_otherwise(watched: Watched) -> None:
    with a_run(watched.path / "elsewhere"):
        assert watched.guard() == 100
        everywhere = what_is_at_work(watched.settings(own=False))
        assert everywhere is not None
        assert everywhere.startswith("a run is at work, process ")


@contextmanager
def a_run(directory: Path) -> Iterator[Callable[[], object]]:
    """A process that looks like one of a run; and how it is ended."""
    command = [sys.executable, "-c", "import time; print(flush=True); time.sleep(600)"]
    env = os.environ | {"SWEEPER_TAG": "sweep:session:1", "RUN_DIR": str(directory)}
    with subprocess.Popen(command, env=env, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.readline()

        def end() -> None:
            process.kill()
            process.wait()

        yield end
        end()


def test_what_a_busy_command_says_counts(watched: Watched) -> None:
    flag = watched.path / "at work"
    flag.touch()
    watched.clock.happens = {300: flag.unlink}
    assert watched.guard(busy=["false", f"test -e '{flag}'"]) == 375


def test_nothing_is_stopped_until_the_results_are_safe(watched: Watched) -> None:
    flag, sync = watched.path / "reachable", watched.path / "synced"
    watched.clock.happens = {250: flag.touch}
    command = f"test -e '{flag}' && test ! -e '{watched.path}/stopped' && touch '{sync}'"
    assert watched.guard(sync=command) == 250
    assert sync.exists()
    assert watched.stopped


def test_a_driver_that_begins_during_the_sync_keeps_the_pod(watched: Watched) -> None:
    # The sync itself leaves a flag that a busy command sees, once.
    flag = watched.path / "begun"
    watched.clock.happens = {225: lambda: flag.rename(watched.path / "over")}
    sync = f"test -e '{watched.path}/over' || touch '{flag}'"
    assert watched.guard(sync=sync, busy=[f"test -e '{flag}'"]) == 300
    assert watched.stopped


def test_a_stop_that_fails_is_tried_again(watched: Watched) -> None:
    first = watched.path / "first"
    stop = f"test -e '{first}' || {{ touch '{first}'; exit 1; }}; touch '{watched.path}/stopped'"
    assert watched.guard(stop=stop) == 125
    assert watched.stopped


def test_a_dry_run_stops_nothing(watched: Watched, capsys: pytest.CaptureFixture[str]) -> None:
    watched.guard(dry_run=True, sync=f"touch '{watched.path}/synced'")
    assert not watched.stopped
    assert not (watched.path / "synced").exists()
    assert f"would do `touch '{watched.path}/stopped'`" in capsys.readouterr().out


# ---- the pod


@dataclass
class Pod:
    """A pod.sh with a root of its own, on ports of its own."""

    place: Place
    port: int

    @property
    def state(self) -> Path:
        return self.place.root.with_name(f"{self.place.root.name}.pod")

    @property
    def stopped(self) -> Path:
        """What the pod's stop command leaves behind."""
        return self.place.path / "stopped"

    def call(self, *arguments: str, **env: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            ["bash", str(POD), *arguments],
            cwd=self.place.path,
            env=self.place.env | {"SWEEPER_ROOT": str(self.place.root)} | env,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )

    def start(self, *arguments: str, **env: str) -> str:
        done = self.call("start", *arguments, **env)
        assert done.returncode == 0, done.stdout + done.stderr + self.said
        return done.stdout

    def settings(self) -> dict[str, str]:
        """What is given at the first start, and remembered."""
        options = [
            *("--num-cpus=2", "--num-gpus=8", "--include-dashboard=false"),
            f"--dashboard-agent-listen-port={free_port()}",
            f"--ray-client-server-port={free_port()}",
            *("--min-worker-port=0", "--max-worker-port=0", f"--object-store-memory={100 << 20}"),
            f"--temp-dir={self.place.path / 'ray'}",
        ]
        return {
            "VENV": str(Path(sys.executable).parents[1]),
            "SKIP_INSTALL": "1",
            "RAY_PORT": str(self.port),
            "RAY_OPTIONS": " ".join(options),
            "RAY_AUTH_TOKEN_PATH": str(self.state / "token"),
            "IDLE_MINUTES": "0.01",
            "STOP_COMMAND": f"touch '{self.stopped}'",
            "BUSY_COMMAND": "",
            "GUARD_OPTIONS": "--own",
            "RESTART_SECONDS": "1",
        }

    def process(self, name: str) -> psutil.Process | None:
        """One of the pod's processes, while it runs."""
        try:
            pid = int((self.state / f"{name}.pid").read_text().split()[0])
            return psutil.Process(pid) if alive(pid) else None
        except (OSError, psutil.NoSuchProcess):
            return None

    def kill(self, name: str) -> None:
        process = self.process(name)
        assert process is not None, f"{name} is not at work; {self.said}"
        process.kill()
        wait_until(lambda: not alive(process.pid), f"{name} to end")

    @property
    def said(self) -> str:
        logs = sorted(self.state.glob("*.log"))
        return "\n".join(f"{log.name}:\n{log.read_text()}" for log in logs)


@pytest.fixture
def pod() -> Iterator[Pod]:
    with a_place() as place:
        pod = Pod(place, free_port())
        try:
            yield pod
        finally:
            pod.call("stop", STOP_SECONDS="30")


@pytest.mark.slow
def test_a_pod_goes_on_whatever_dies_and_is_stopped_when_it_is_idle(pod: Pod) -> None:
    place = pod.place
    sweep, board = place.sweep("rented"), place.board("rented")
    spec = place.write_spec(
        "rented",
        seeds=(1, 2, 3),
        trials={"t": {}},
        env={"GATED": 1},
        resources={"gpus_per_run": 8},
    )
    open_gate(board, 1)
    assert "pod.sh attach" in pod.start(str(spec), **pod.settings())
    wait_until(lambda: board.arrivals() == 2, "the second run to arrive")
    assert (pod.state / "token").stat().st_mode & 0o077 == 0

    # The driver dies: its keeper starts another one, and what was finished is kept.
    pod.kill("driver")
    wait_until(lambda: board.arrivals() == 3, "the second run to arrive again")
    assert not pod.stopped.exists()

    # Ray's head dies: it comes back, and the driver, which has waited for it, goes on.
    ray = pod.process("ray")
    assert ray is not None
    server = next(one for one in ray.children(recursive=True) if one.name() == "gcs_server")
    keeper, driver = pod.process("keeper"), pod.process("driver")
    server.kill()
    wait_until(lambda: board.arrivals() == 4, "the second run to arrive under another head")
    assert (pod.process("keeper"), pod.process("driver")) == (keeper, driver)
    assert "Ray's head has died; it is started again" in pod.said
    assert not pod.stopped.exists()

    # The pod restarts: nothing of it is left but its disk, and `start` alone goes on.
    for name in ("guard", "keeper", "driver", "ray"):
        pod.kill(name)
    for process in place.processes():
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()
    wait_until(lambda: not place.processes(), "all of the pod to end")
    pod.start()
    wait_until(lambda: board.arrivals() == 5, "the second run to arrive once more")
    assert not pod.stopped.exists()
    assert "run already" in pod.start()  # a second start changes nothing
    other = place.write_spec("other", seeds=(1,), trials={"t": {}})
    refused = pod.call("start", str(other))
    assert refused.returncode == 2
    assert refused.stderr == f"error: {spec} is being run here; pod.sh stop, then start another\n"

    open_gate(board)
    wait_until(pod.stopped.exists, "the idle pod to be stopped")
    check_finished(sweep, runs=3)
    with closing(Ledger.open_for_reading(sweep.ledger)) as ledger:
        ended = max(row.ended or 0 for run in ledger.runs() for row in ledger.attempts(run.id))
    assert pod.stopped.stat().st_mtime > ended
    ends = attempt_states(sweep)
    assert ends["t", 1] == [AttemptState.FINISHED]
    assert ends["t", 2][-1] is AttemptState.FINISHED
    assert ends["t", 3] == [AttemptState.FINISHED]
    # The guard has done its work; Ray waits for whoever comes.
    wait_until(lambda: pod.process("guard") is None, "the guard to end")
    assert pod.process("keeper") is None
    assert pod.process("ray") is not None
    looked = pod.call("attach")  # not at a terminal, so it says how it stands, and ends
    assert looked.returncode == 0, looked.stderr
    assert "rented: 3/3 runs done" in looked.stdout

    # Another sweep, with a guard again, is stopped by word: nothing is lost, and nothing is left.
    board = place.board("halted")
    spec = place.write_spec("halted", seeds=(1,), trials={"t": {}}, env={"GATED": 1})
    pod.start(str(spec))
    wait_until(lambda: board.arrivals() == 1, "the run to arrive")
    assert "guard: process" in pod.call("status").stdout
    stopped = pod.call("stop")
    assert stopped.returncode == 0, stopped.stderr + pod.said
    assert stopped.stdout == "pod: stopped; pod.sh start goes on\n"
    assert attempt_states(place.sweep("halted")) == {("t", 1): [AttemptState.STOPPED]}
    wait_until(lambda: not place.processes(), "all of the pod to end")


def test_the_guard_knows_the_keeper_and_works_where_the_sweep_was_started(tmp_path: Path) -> None:
    """In the C locale, as at boot, with paths that are not ASCII; the keeper is any process."""
    root, spec, last = tmp_path / "läufe", tmp_path / "s.toml", tmp_path / "last"
    state = tmp_path / "läufe.pod"
    for directory in (root, state):
        directory.mkdir()
    spec.touch()
    (state / "sweep").write_text(f"{spec}\0{tmp_path}\0")
    settings = {
        "SWEEPER_ROOT": str(root),
        "VENV": str(Path(sys.executable).parents[1]),
        "LC_ALL": "C",
        "IDLE_MINUTES": "0.005",
        "GUARD_OPTIONS": "--own",
        "BUSY_COMMAND": "",
        "SYNC_COMMAND": 'cp -r läufe copied && test -d "$SWEEPER_ROOT"',
        "STOP_COMMAND": f"touch '{last}'",
    }
    log = state / "guard.log"
    with subprocess.Popen(["sleep", "600"]) as keeper:
        began = Path(f"/proc/{keeper.pid}/stat").read_text().rpartition(") ")[2].split()[19]
        (state / "keeper.pid").write_text(f"{keeper.pid} {began}\n")
        started = subprocess.run(
            ["bash", str(POD), "start"], cwd="/", env=os.environ | settings, check=False
        )
        assert started.returncode == 0
        guarding = int((state / "guard.pid").read_text().split()[0])
        try:
            wait_until(lambda: "idle guard: " in log.read_text(), "the guard's first look")
            assert "idle guard: busy, says" in log.read_text()
            keeper.kill()
            wait_until(last.exists, f"the stop; {log.read_text()}")
        finally:
            keeper.kill()
            if alive(guarding):
                os.kill(guarding, signal.SIGKILL)
    # What is kept of the pod itself, its token above all, is not among the results.
    assert (tmp_path / "copied").is_dir()
    assert not [path for path in root.rglob("*") if path.name in ("token", "settings")]


def test_wrong_use_is_said_in_a_line(tmp_path: Path) -> None:
    def call(*arguments: str) -> tuple[int, str]:
        done = subprocess.run(
            ["bash", str(POD), *arguments],
            env=os.environ | {"SWEEPER_ROOT": str(tmp_path / "läufe"), "SKIP_INSTALL": "1"},
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        return done.returncode, done.stderr

    code, said = call()
    assert code == 2
    assert said.startswith("error: pod.sh install | start")
    assert call("sing")[1].endswith("found sing\n")
    assert call("start") == (
        2,
        "error: nothing has been started here yet; give a spec: pod.sh start SPEC\n",
    )
    assert call("start", "no.toml") == (2, "error: no.toml: no such spec\n")
    assert call("attach")[0] == 2
