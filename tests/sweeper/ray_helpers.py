"""Real Ray nodes, real drivers and a fake workload, all in one place that is checked at its end.

Everything a test starts carries the place's path, in its environment, its command line or the
files that it has open, so that what is left over can be found and told from anybody else's.
"""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import psutil

from sweeper.layout import SweepDir
from sweeper.reaping import tagged_processes
from tests.sweeper.conftest import ROOT, alive, wait_until
from tests.sweeper.fake_train import Board

END_SECONDS = 120.0
SLOT_TITLE = "ray::SlotActor"
# Ray's own agents of a node that was killed say so to its dead control service for 60 s, a fixed
# time; they hold nothing, and are gone when a place is checked at its end.
AGENT_TITLES = ("ray::DashboardAgent", "ray::RuntimeEnvAgent")
# What would steer the drivers and nodes of a test from outside.
FOREIGN_PREFIXES = ("RAY_", "SWEEPER_", "CUDA_", "PYTHON")

Env = Mapping[str, object]


@dataclass
class Place:
    """A directory with a workload, specs, sweeps and boards; and the processes that use it."""

    path: Path
    drivers: list[Driver] = field(default_factory=list)

    @property
    def root(self) -> Path:
        """Where sweeps are kept; its name is hostile on purpose."""
        return self.path / "läufe und platz"

    @property
    def scratch(self) -> Path:
        """Where temporary files go that are made on the node of a slot."""
        return self.path / "tmp"

    @property
    def env(self) -> dict[str, str]:
        """The environment of every process started here: Ray with a token, and quiet."""
        inherited = {
            name: text for name, text in os.environ.items() if not name.startswith(FOREIGN_PREFIXES)
        }
        return inherited | {
            "PYTHONPATH": str(self.path / "modules"),
            "TMPDIR": str(self.scratch),
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN_PATH": str(self.path / "token"),
            "RAY_USAGE_STATS_ENABLED": "0",
            "RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S": "0",
        }

    def sweep(self, name: str) -> SweepDir:
        return SweepDir(self.root / name)

    def board(self, name: str) -> Board:
        board = Board(self.path / "boards" / name)
        board.path.mkdir(parents=True, exist_ok=True)
        return board

    def write_spec(
        self,
        name: str,
        *,
        seeds: tuple[int, ...],
        trials: Mapping[str, Env],
        env: Env | None = None,
        resources: Env | None = None,
        limits: Env | None = None,
        packing: Env | None = None,
        disk: Env | None = None,
        storage: Env | None = None,
        launch: str = "exec",
    ) -> Path:
        """A spec of the fake workload, with a board of its own; without GPUs unless asked."""
        board = str(self.board(name).path)
        tables: dict[str, Env] = {
            "workload": {"module": "fake_train", "launch": launch},
            "resources": {"gpus_per_run": 0} | dict(resources or {}),
            "limits": {"grace_seconds": 20.0} | dict(limits or {}),
            "env": {"BOARD_DIR": board} | dict(env or {}),
        }
        optional = {"packing": packing, "disk": disk, "storage": storage}
        tables |= {name: table for name, table in optional.items() if table is not None}
        # A JSON text, number, boolean or list is TOML as well.
        lines = [f"name = {json.dumps(name)}", f"seeds = {json.dumps(seeds)}"]
        for heading, table in tables.items():
            lines += [f"[{heading}]", *_assignments(table)]
        for trial, settings in trials.items():
            lines += ["[[trial]]", f"name = {json.dumps(trial)}"]
            lines += ["[trial.env]", *_assignments(settings)]
        path = self.path / f"{name}.toml"
        path.write_text("\n".join(lines) + "\n")
        return path

    def drive(
        self, spec: Path, *options: str, env: Env | None = None, prefix: Sequence[str] = ()
    ) -> Driver:
        """Start `sweeper run` on a spec; it works on while the test does."""
        return self._start(spec.stem, ("run", str(spec), *options), env or {}, prefix)

    def resume(self, name: str, *options: str, env: Env | None = None) -> Driver:
        """Start `sweeper resume` on a sweep; it works on while the test does."""
        return self._start(name, ("resume", name, *options), env or {})

    def _start(
        self, name: str, arguments: Sequence[str], env: Env, prefix: Sequence[str] = ()
    ) -> Driver:
        driver = Driver(self, name, arguments, env, prefix)
        self.drivers.append(driver)
        return driver

    def call(
        self, *arguments: str, env: Env | None = None, timeout: float = 120.0
    ) -> subprocess.CompletedProcess[str]:
        """Run a command of `sweeper` to its end."""
        return subprocess.run(
            [sys.executable, "-m", "sweeper.cli", *arguments],
            cwd=ROOT,
            env=self.env | _texts(env or {}),
            capture_output=True,
            text=True,
            timeout=timeout,
            check=False,
        )

    def processes(self) -> list[psutil.Process]:
        """Every process that uses this place, this one left out."""
        return using(self.path)

    def runs(self) -> list[psutil.Process]:
        """The processes of runs of this place's sweeps."""
        found = []
        for process, _ in tagged_processes():
            with contextlib.suppress(psutil.Error):
                if str(self.path) in process.environ().get("RUN_DIR", "") and alive(process.pid):
                    found.append(process)
        return found

    def check_quiet(self) -> None:
        """Fail while a driver, a run or a slot of this place is still there, or stays."""
        working = [driver.process.pid for driver in self.drivers if driver.process.poll() is None]
        self.end_drivers()  # or they would be in the next test's way
        assert not working, f"drivers at work after the test: {working}"
        wait_until(lambda: not self.runs(), "runs of ended drivers to end", END_SECONDS)
        wait_until(lambda: not self.slots(), "slots of ended drivers to end", END_SECONDS)

    def slots(self) -> list[psutil.Process]:
        """The worker processes that are slots."""
        return [process for process in self.processes() if title(process).startswith(SLOT_TITLE)]

    def end_drivers(self) -> None:
        for driver in self.drivers:
            if driver.process.poll() is None:
                driver.process.kill()
            driver.process.wait()


def _assignments(table: Env) -> list[str]:
    return [f"{name} = {json.dumps(value)}" for name, value in table.items()]


def _texts(env: Env) -> dict[str, str]:
    return {name: str(value) for name, value in env.items()}


@contextmanager
def a_place() -> Iterator[Place]:
    """A place for the time of a `with` block; fails when a process is left in it."""
    # Directly below /tmp: the path of a socket of Ray must stay below 108 characters.
    place = Place(Path(tempfile.mkdtemp(prefix="swp-", dir="/tmp")))
    for directory in (place.path / "modules", place.scratch):
        directory.mkdir()
    shutil.copy(Path(__file__).with_name("fake_train.py"), place.path / "modules")
    token = place.path / "token"
    token.touch(mode=0o600)
    token.write_text(secrets.token_hex(32))
    try:
        yield place
        wait_until(lambda: not place.processes(), "all processes of the place to end", END_SECONDS)
    finally:
        place.end_drivers()
        for process in place.processes():
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        shutil.rmtree(place.path, ignore_errors=True)


class Driver:
    """A `sweeper run` or `resume` at work in a process of its own, with its output in files."""

    def __init__(
        self,
        place: Place,
        name: str,
        arguments: Sequence[str],
        env: Env,
        prefix: Sequence[str],
    ) -> None:
        self.name = name
        self.place = place
        # Ray's own files, where the driver starts it: by them its processes are found.
        self.directory = place.path / f"d{len(place.drivers)}"
        self.directory.mkdir()
        command, *options = arguments
        with self.stdout.open("w") as stdout, self.stderr.open("w") as stderr:
            self.process = subprocess.Popen(
                [
                    *(*prefix, sys.executable, "-m", "sweeper.cli", command),
                    *("--root", str(place.root), *options),
                ],
                cwd=ROOT,
                env=place.env | {"RAY_TMPDIR": str(self.directory)} | _texts(env),
                stdin=subprocess.DEVNULL,
                stdout=stdout,
                stderr=stderr,
                start_new_session=True,
            )

    @property
    def stdout(self) -> Path:
        return self.directory / "stdout"

    @property
    def stderr(self) -> Path:
        return self.directory / "stderr"

    @property
    def said(self) -> str:
        """Both streams, for a message."""
        return f"{self.stdout.read_text()}\n{self.stderr.read_text()}"

    def wait(self, seconds: float = 120.0) -> int:
        """Its exit code, once it has ended by itself."""
        try:
            return self.process.wait(seconds)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"{self.name} does not end; it said:\n{self.said}") from None

    def wait_for_arrivals(self, count: int) -> None:
        """Return when so many runs have arrived on the sweep's board."""
        board = self.place.board(self.name)
        wait_until(
            lambda: board.arrivals() >= count or self.process.poll() is not None,
            f"{count} runs to arrive",
        )
        assert board.arrivals() >= count, f"{self.name} ended too early; it said:\n{self.said}"

    def interrupt(self) -> None:
        """What ^C in a terminal does: SIGINT to the driver and all it has started beside itself."""
        os.killpg(self.process.pid, signal.SIGINT)

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()

    def left(self) -> list[psutil.Process]:
        """What there is of the driver and of all that it has started, but for Ray's agents."""
        return [
            process
            for process in using(self.directory)
            if not title(process).startswith(AGENT_TITLES)
        ]


@dataclass(frozen=True)
class Head:
    """A Ray node that was started as a person would start it."""

    address: str
    dashboard: str


@contextmanager
def a_head(place: Place, *, cpus: int, gpus: int, dashboard: bool = False) -> Iterator[Head]:
    """A head node with logical GPUs for the time of a `with` block."""
    port, web = free_port(), free_port()
    options = [
        *("--head", f"--port={port}", f"--temp-dir={place.path / 'ray'}"),
        *(f"--include-dashboard={dashboard}", f"--dashboard-port={web}"),
        f"--ray-client-server-port={free_port()}",
    ]
    process = start_node(place, "head", cpus=cpus, gpus=gpus, options=options)
    try:
        yield Head(f"127.0.0.1:{port}", f"http://127.0.0.1:{web}")
    finally:
        process.terminate()
        try:
            process.wait(END_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def start_node(
    place: Place,
    name: str,
    *,
    cpus: int,
    gpus: int,
    options: Sequence[str],
    env: Env | None = None,
    prefix: Sequence[str] = (),
) -> subprocess.Popen[bytes]:
    """`ray start` as a person would call it; returns once the node is up, and it stays up."""
    command = [
        *(*prefix, str(Path(sys.executable).with_name("ray")), "start", "--block", *options),
        *(f"--num-cpus={cpus}", f"--num-gpus={gpus}", f"--object-store-memory={100 << 20}"),
        # Nothing on a port that another node on this machine may have.
        f"--dashboard-agent-listen-port={free_port()}",
        *("--min-worker-port=0", "--max-worker-port=0"),
    ]
    log = place.path / f"{name}.log"
    with log.open("w") as file:
        process = subprocess.Popen(
            command,
            cwd=place.path,
            env=place.env | _texts(env or {}),
            stdout=file,
            stderr=file,
            start_new_session=True,
        )
    wait_until(
        lambda: "Ray runtime started" in log.read_text() or process.poll() is not None,
        f"the node {name} to be up",
    )
    assert process.poll() is None, log.read_text()
    return process


def free_port() -> int:
    """A port that nobody listens at, out of the range that outgoing connections are given."""
    while True:
        port = 21_000 + secrets.randbelow(11_000)
        with socket.socket() as server, contextlib.suppress(OSError):
            server.bind(("127.0.0.1", port))
            return port


def using(directory: Path) -> list[psutil.Process]:
    """The living processes, but this one, that carry a directory's path or have a file of it open.

    A worker of Ray overwrites its command line and environment with its title, but keeps its logs
    open.
    """
    text = str(directory)
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error, OSError):
            if process.pid == os.getpid() or not alive(process.pid):
                continue
            facts = [*process.cmdline(), *process.environ().values()]
            if any(text in fact for fact in facts) or any(
                file.path.startswith(text) for file in process.open_files()
            ):
                found.append(process)
    return found


def title(process: psutil.Process) -> str:
    with contextlib.suppress(psutil.Error):
        return " ".join(process.cmdline())
    return ""
