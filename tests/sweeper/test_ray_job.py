"""A sweep as a Ray job, as on a cluster: sent, followed, stopped and brought home, with a token."""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from sweeper.layout import SweepDir
from sweeper.outbox import LEDGER, results
from sweeper.rows import AttemptState, RunState
from tests.sweeper.conftest import ROOT, wait_until
from tests.sweeper.ray_helpers import Head, Place, a_head, free_port
from tests.sweeper.sweeps import (
    attempt_states,
    check_finished,
    most_at_once,
    open_gate,
    run_states,
    stays,
)

EIGHT = {"gpus_per_run": 8}

pytestmark = pytest.mark.usefixtures("quiet")


@pytest.fixture(scope="module")
def workload(place: Place) -> Path:
    """Where the workload lies that is sent: the cluster itself has none."""
    directory = place.path / "mine"
    directory.mkdir()
    shutil.move(place.path / "modules" / "fake_train.py", directory)
    return directory


@pytest.fixture(scope="module")
def head(place: Place, workload: Path) -> Iterator[Head]:
    with a_head(place, cpus=2, gpus=8, dashboard=True) as head:
        yield head


def call(place: Place, head: Head, *arguments: str, **env: str) -> subprocess.CompletedProcess[str]:
    """A command of `sweeper` that goes to the dashboard, to its end."""
    # What is given counts, not what the environment says.
    env = {"RAY_ADDRESS": "http://127.0.0.1:9", "PYTHONPATH": str(place.path / "mine")} | env
    return place.call(*arguments, "--address", head.dashboard, env=env)


def submit(
    place: Place, head: Head, spec: Path, *options: str, **env: str
) -> subprocess.CompletedProcess[str]:
    there = ("--root", str(place.root), "--python", sys.executable)
    return call(place, head, "submit", str(spec), *there, *options, **env)


def said(done: subprocess.CompletedProcess[str]) -> str:
    return done.stdout + done.stderr


def test_a_sweep_is_sent_runs_and_comes_home_by_one_port(place: Place, head: Head) -> None:
    # All eight GPUs are the runs' own: an entrypoint that held one would leave too few.
    spec = place.write_spec("job", seeds=(1, 2, 3), trials={"t": {}}, resources=EIGHT)
    done = submit(place, head, spec, "--follow")
    assert done.returncode == 0, said(done)
    job, _, log = done.stdout.partition("\n")
    assert log.endswith("report.json\n")
    assert log.count("Running entrypoint") == 1
    assert f"job {job}: succeeded" in done.stderr
    sweep = place.sweep("job")
    check_finished(sweep, runs=3)
    found = stays(place.board("job"))
    assert [stay.gpus for stay in found] == [set("01234567")] * 3
    assert most_at_once(found) == 1
    # They ran what was sent, not what lies here.
    assert not any(str(place.path / "mine") in stay.facts["module"] for stay in found)

    listed = call(place, head, "jobs", "list")
    assert [line.split()[:3] for line in listed.stdout.splitlines()[1:]] == [
        [job, "job", "succeeded"]
    ]
    again = submit(place, head, spec)
    assert again.returncode == 2
    assert f"job {job} has done just this" in again.stderr

    out = place.path / "home"
    pulled = call(place, head, "jobs", "pull", "job", "--out", str(out))
    assert pulled.returncode == 0, said(pulled)
    home = out / "job"
    assert set(results(home)) == set(results(sweep.path))
    for name in results(home):
        assert (home / name).read_bytes() == (sweep.path / name).read_bytes(), name
    reports = [
        place.call("report", "job", "--format", "json", "--root", str(root)).stdout
        for root in (out, place.root)
    ]
    assert reports[0] == reports[1]
    assert "val_bpb" in reports[0]
    again = call(place, head, "jobs", "pull", job, "--out", str(out))
    assert "job: 0 files came" in again.stderr
    # Nothing of the errands is left on the cluster.
    logs = list((place.path / "ray" / "session_latest" / "logs").glob("job-driver-*outbox*"))
    assert len(logs) == 2
    assert not any(log.stat().st_size for log in logs)


@pytest.mark.slow
def test_a_job_that_is_stopped_leaves_nothing_and_goes_on_as_another(
    place: Place, head: Head
) -> None:
    sweep, board = place.sweep("halted"), place.board("halted")
    env = {"GATED": 1}
    spec = place.write_spec("halted", seeds=(1, 2, 3), trials={"t": {}}, env=env, resources=EIGHT)
    open_gate(board, 1)
    first = submit(place, head, spec).stdout.strip()
    wait_until(lambda: board.arrivals() == 2, "the second run to arrive")

    other = place.write_spec("halted", seeds=(1, 2), trials={"t": {}}, env=env, resources=EIGHT)
    for twice in (spec, other):
        refused = submit(place, head, twice)
        assert refused.returncode == 2
        assert f"job {first} is at work on sweep 'halted'" in refused.stderr
    # Results come home while it runs; the copy of the ledger is whole.
    out = place.path / "early"
    pulled = call(place, head, "jobs", "pull", "halted", "--out", str(out))
    assert pulled.returncode == 0, said(pulled)
    assert [state.value for state in run_states(SweepDir(out / "halted")).values()] == [
        *("finished", "running", "pending")
    ]

    stopped = call(place, head, "jobs", "stop", first)
    assert stopped.returncode == 0, said(stopped)
    assert f"job {first}: stopped" in stopped.stderr
    wait_until(lambda: not place.runs(), "the stopped job's runs to end")
    assert [state.value for state in run_states(sweep).values()] == [
        *("finished", "pending", "pending")
    ]
    assert attempt_states(sweep)["t", 2] == [AttemptState.STOPPED]
    assert "stopped; " in call(place, head, "jobs", "logs", first).stdout

    open_gate(board)
    spec = place.write_spec("halted", seeds=(1, 2, 3), trials={"t": {}}, env=env, resources=EIGHT)
    again = submit(place, head, spec, "--follow")
    assert again.returncode == 0, said(again)
    second = again.stdout.partition("\n")[0]
    assert second != first
    check_finished(sweep, runs=3)
    assert set(run_states(sweep).values()) == {RunState.FINISHED}
    pulled = call(place, head, "jobs", "pull", second, "--out", str(out))
    assert pulled.returncode == 0, said(pulled)
    assert (out / "halted" / LEDGER).is_file()
    assert set(results(out / "halted")) == set(results(sweep.path))


class Cutter(threading.Thread):
    """Passes on what goes to a dashboard and back, and cuts each log stream once it has begun."""

    def __init__(self, target: int, cuts: int) -> None:
        super().__init__(daemon=True)
        self.port, self.cuts, self._target = free_port(), cuts, target
        self._server = socket.create_server(("127.0.0.1", self.port))

    def run(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                client, _ = self._server.accept()
                threading.Thread(target=self._serve, args=(client,), daemon=True).start()

    def close(self) -> None:
        self._server.close()

    def _serve(self, client: socket.socket) -> None:
        with contextlib.suppress(OSError), client:
            request = client.recv(1 << 16)
            with socket.create_connection(("127.0.0.1", self._target)) as server:
                server.sendall(request)
                up = threading.Thread(target=self._copy, args=(client, server), daemon=True)
                up.start()
                begun = False
                while block := server.recv(1 << 16):
                    client.sendall(block)
                    begun = begun or b"Running entrypoint" in block
                    if begun and b"/logs/tail" in request and self.cuts:
                        self.cuts -= 1
                        client.shutdown(socket.SHUT_RDWR)
                        return

    def _copy(self, source: socket.socket, target: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while block := source.recv(1 << 16):
                target.sendall(block)


@pytest.mark.slow
def test_a_log_whose_stream_breaks_off_is_followed_to_the_end(place: Place, head: Head) -> None:
    board = place.board("cut")
    spec = place.write_spec(
        "cut", seeds=(1,), trials={"t": {}}, env={"GATED": 1, "FAULT": "user error"}
    )
    cutter = Cutter(int(head.dashboard.rpartition(":")[2]), cuts=2)
    cutter.start()
    through = Head(head.address, f"http://127.0.0.1:{cutter.port}")

    def let_go() -> None:
        wait_until(lambda: board.arrivals() == 1 and not cutter.cuts, "two cuts")
        open_gate(board)

    opener = threading.Thread(target=let_go)
    opener.start()
    done = submit(place, through, spec, "--follow")
    opener.join()
    cutter.close()
    # The exit code is the sweep's own, which the job's status tells of.
    assert done.returncode == 1, said(done)
    assert "failed (exit code 1)" in done.stderr
    assert cutter.cuts == 0
    lines = [line for line in done.stdout.splitlines() if line.startswith("t, seed 1")]
    assert len(lines) == len(set(lines))
    assert "failed" in lines[-1]


@pytest.mark.slow
def test_what_is_sent_by_hand_runs_as_well(place: Place, head: Head) -> None:
    spec = place.write_spec("byhand", seeds=(1,), trials={"t": {}})
    project = place.path / "project"
    for part in ("sweeper", "jobs"):
        ignored = shutil.ignore_patterns("__pycache__")
        shutil.copytree(ROOT / part, project / part, ignore=ignored)
    shutil.copy(place.path / "mine" / "fake_train.py", project)
    shutil.copy(spec, project)
    done = subprocess.run(
        [
            *(str(Path(sys.executable).with_name("ray")), "job", "submit"),
            *("--working-dir", str(project), "--", sys.executable, "-m", "jobs.sweep"),
            *(spec.name, "--root", str(place.root)),
        ],
        env=place.env | {"RAY_ADDRESS": head.dashboard},
        capture_output=True,
        text=True,
        timeout=180,
        check=False,
    )
    assert done.returncode == 0, said(done)
    check_finished(place.sweep("byhand"), runs=1)


@pytest.mark.parametrize(
    ("env", "says"),
    [
        ({"RAY_AUTH_MODE": "disabled", "RAY_AUTH_TOKEN_PATH": os.devnull}, "asks for a token"),
        ({"RAY_AUTH_TOKEN": "0" * 64}, "refuses the token"),
        ({"RAY_AUTH_TOKEN_PATH": "/nowhere"}, "cannot be opened"),
    ],
)
def test_nothing_is_done_without_the_token(
    place: Place, head: Head, env: dict[str, str], says: str
) -> None:
    spec = place.write_spec("intruder", seeds=(1,), trials={"t": {}})
    done = submit(place, head, spec, **env)
    assert done.returncode == 2
    assert len(done.stderr.splitlines()) == 1, done.stderr
    assert says in done.stderr
    assert "RAY_AUTH_TOKEN" in done.stderr
    assert "intruder" not in call(place, head, "jobs", "list").stdout


@pytest.mark.parametrize("arguments", [("list",), ("logs", "x"), ("stop", "x"), ("pull", "x")])
def test_an_unknown_job_or_address_is_said_in_one_line(
    place: Place, head: Head, arguments: tuple[str, ...]
) -> None:
    nowhere = Head("", f"http://127.0.0.1:{free_port()}")
    for where in [nowhere] if arguments == ("list",) else [head]:
        done = call(place, where, "jobs", *arguments)
        assert done.returncode == 2
        assert len(done.stderr.splitlines()) == 1, done.stderr
        assert ("no job or sweep 'x'" if where is head else "refused") in done.stderr


FOLLOWS = """
import sys
from sweeper.cluster import job_client
from sweeper.errors import UserError
from sweeper.submit import follow

try:
    follow(job_client(sys.argv[1]), "sweep-of-old", print)
except UserError as error:
    print(error)
"""


def test_a_job_that_its_head_has_forgotten_is_not_followed_for_long(
    place: Place, head: Head
) -> None:
    """As one that was followed while the head was started again."""
    done = subprocess.run(
        [sys.executable, "-c", FOLLOWS, head.dashboard],
        cwd=ROOT,
        env=place.env,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    (line,) = done.stdout.splitlines()
    assert line.startswith(f"{head.dashboard}: ")
    assert "sweep-of-old" in line
    assert line.endswith("submit its sweep again, and it goes on")
