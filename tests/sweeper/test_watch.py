"""`sweeper watch`, `status` and `logs`, and Ray's metrics, on a sweep that runs on a real head."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import pty
import re
import signal
import struct
import subprocess
import sys
import termios
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import pytest

from sweeper.ledger import Ledger
from sweeper.rows import AttemptState, RunState
from tests.sweeper.conftest import ROOT, make_spec, result_facts, wait_until
from tests.sweeper.ray_helpers import END_SECONDS, Place, free_port, start_node
from tests.sweeper.sweeps import open_gate

pytestmark = pytest.mark.usefixtures("quiet")

FAST = {"RAY_metrics_report_interval_ms": "1000"}
ESCAPE = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")


@dataclass(frozen=True)
class MeteredHead:
    address: str
    metrics: str


@pytest.fixture(scope="module")
def head(place: Place) -> Iterator[MeteredHead]:
    """A Ray head as a person would start it, with its Prometheus endpoint at a port we know."""
    port, metrics = free_port(), free_port()
    options = [
        *("--head", f"--port={port}", f"--temp-dir={place.path / 'ray'}"),
        *("--include-dashboard=False", f"--dashboard-port={free_port()}"),
        *(f"--ray-client-server-port={free_port()}", f"--metrics-export-port={metrics}"),
    ]
    process = start_node(place, "head", cpus=2, gpus=16, options=options, env=FAST)
    try:
        yield MeteredHead(f"127.0.0.1:{port}", f"http://127.0.0.1:{metrics}/metrics")
    finally:
        process.terminate()
        process.wait(END_SECONDS)


class Watching:
    """A command of `sweeper` at work, on a terminal of 100 columns and 30 lines or on a pipe."""

    def __init__(self, place: Place, *arguments: str, terminal: bool = False) -> None:
        self.path = place.path / f"watching-{'-'.join(arguments[:2])}-{terminal}"
        self._end: int | None = None
        with self.path.open("wb") as file:
            out: int = file.fileno()
            if terminal:
                self._end, out = pty.openpty()
                fcntl.ioctl(out, termios.TIOCSWINSZ, struct.pack("HHHH", 30, 100, 0, 0))
            unsized = {k: v for k, v in place.env.items() if k not in ("COLUMNS", "LINES")}
            self.process = subprocess.Popen(
                [sys.executable, "-m", "sweeper.cli", *arguments, "--root", str(place.root)],
                cwd=ROOT,
                env=unsized | {"TERM": "xterm"},
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=out,
            )
            if terminal:
                os.close(out)
        if self._end is not None:
            os.set_blocking(self._end, False)
        self._seen = b""

    def __enter__(self) -> Watching:
        return self

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.wait()
        if self._end is not None:
            os.close(self._end)

    @property
    def said(self) -> str:
        """All that it has written so far, without what moves the cursor."""
        if self._end is None:
            return self.path.read_text()
        try:
            while data := os.read(self._end, 65536):
                self._seen += data
        except OSError:  # nothing at present, or nobody at the other end any more
            pass
        return ESCAPE.sub("", self._seen.decode(errors="replace"))

    def wait_for(self, *words: str) -> None:
        def shown() -> bool:
            return all(word in self.said for word in words) or self.process.poll() is not None

        with contextlib.suppress(AssertionError):  # below it is told what was shown
            wait_until(shown, "words to be shown", 15)
        assert all(word in self.said for word in words), (words, self.said[:2500])

    def end(self) -> int:
        wait_until(lambda: self.said is not None and self.process.poll() is not None, "its end")
        return self.process.wait()


def scrape(url: str) -> str:
    try:
        with urllib.request.urlopen(url, timeout=10) as answer:
            return str(answer.read().decode())
    except OSError:
        return ""


def numbers(url: str, name: str, *tags: str) -> list[float]:
    """The values of a metric on Ray's endpoint whose tags hold all of these texts."""
    lines = [line for line in scrape(url).splitlines() if line.startswith(f"ray_{name}{{")]
    return [float(line.split()[-1]) for line in lines if all(tag in line for tag in tags)]


def test_a_sweep_is_seen_from_outside_while_it_runs(place: Place, head: MeteredHead) -> None:
    resources = {"gpus_per_run": 8}
    spec = place.write_spec(
        "seen", seeds=(1, 2, 3), trials={"low": {}}, resources=resources, env={"GATED": 1}
    )
    spec.write_text(f"{spec.read_text()}[cost]\nusd_per_gpu_hour = 3600.0\n")
    driver = place.drive(spec, "--address", head.address, env=FAST)
    driver.wait_for_arrivals(2)
    with (
        Watching(place, "watch", "seen", "--interval", "0.1", terminal=True) as terminal,
        Watching(place, "watch", "seen", "--interval", "0.1") as pipe,
        Watching(place, "logs", "seen", "low/3", "--follow") as log,
        Watching(place, "watch", "seen", terminal=True) as interrupted,
    ):
        terminal.wait_for("seen: 0/3 runs done, 2 running", "slots: 2 busy", " 0-7 low/", "$")
        terminal.wait_for("1 waiting", "driver: process ")
        pipe.wait_for("low, seed 1: running on ", "low, seed 2: running on ")
        interrupted.wait_for("2 running")
        interrupted.process.send_signal(signal.SIGINT)
        assert interrupted.end() == 130
        assert "Traceback" not in interrupted.said
        check_status(place)
        check_metrics(head.metrics)
        open_gate(place.board("seen"))
        assert driver.wait() == 0, driver.said
        assert (terminal.end(), pipe.end(), log.end()) == (0, 0, 0)
        assert "3/3 runs done" in terminal.said
        assert pipe.said.count("finished in") == 3
        assert log.said == "line 0 of seed 3: größer als ß\n"
    done = place.call("watch", "seen", "--root", str(place.root))
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("seen: 3/3 runs done, 0 running")


def check_status(place: Place) -> None:
    done = place.call("status", "seen", "--json", "--root", str(place.root))
    table = json.loads(done.stdout)
    assert table["driver"]["alive"] is True
    assert [slot["state"] for slot in table["slots"]] == ["busy", "busy"]
    assert {slot["seed"] for slot in table["slots"]} == {1, 2}
    assert (table["counts"]["running"], table["waiting"]) == (2, 1)
    assert table["cost_usd"] > 0
    assert table["cost_usd"] == pytest.approx(table["gpu_seconds"])
    assert [run["gpus"] for run in table["runs"]][-1] == ""


def check_metrics(url: str) -> None:
    """The driver's numbers come out of the Prometheus endpoint of Ray's head."""

    def come(name: str, *tags: str, holds: Callable[[float], bool]) -> None:
        def found() -> bool:
            values = numbers(url, name, 'sweep="seen"', *tags)
            return len(values) == 1 and holds(values[0])

        wait_until(found, f"{name} on Ray's endpoint", 60)

    come("sweeper_runs", 'state="running"', holds=lambda value: value == 2)
    come("sweeper_runs", 'state="pending"', holds=lambda value: value == 1)
    come("sweeper_slots", 'state="busy"', holds=lambda value: value == 2)
    come("sweeper_slot_utilisation", holds=lambda value: value == 1)
    come("sweeper_cost_usd", holds=lambda value: value > 0)


# ---- a sweep that nobody drives


@pytest.fixture
def left(place: Place) -> Path:
    """A sweep whose driver has died in the middle of a run."""
    sweep = place.sweep("left")
    sweep.path.mkdir(parents=True, exist_ok=True)
    sweep.ledger.unlink(missing_ok=True)
    with closing(Ledger.open_for_writing(sweep.ledger, make_spec(seeds=[42]))) as ledger:
        low, high = ledger.runs()
        attempt = ledger.launched(low, number=1, path="attempts/low", host="box", gpus="")
        ledger.ended(
            attempt,
            AttemptState.CRASHED,
            RunState.FAILED,
            message="RuntimeError (rank 1): it broke",
            traceback="Traceback (most recent call last):\nRuntimeError: it broke",
        )
        ledger.note("stall", "low, seed 42: it hung")
        ledger.launched(high, number=1, path="attempts/high", host="box", gpus="0")
    return sweep.path


def test_who_watches_is_told_that_no_driver_is_there(place: Place, left: Path) -> None:
    with Watching(place, "watch", "left", "--interval", "0.1") as pipe:
        pipe.wait_for(
            "stall: low, seed 42: it hung",
            "no driver is running; `sweeper resume left` goes on",
            "left: 0/2 runs done, 1 failed, 1 running",
        )
        with closing(Ledger.open_for_writing(left / "ledger.sqlite", make_spec(seeds=[42]))) as it:
            it.note("pause", "a new thing")
            pipe.wait_for("pause: a new thing")
            it.ended(2, AttemptState.FINISHED, RunState.FINISHED, result=result_facts())
        assert pipe.end() == 1
        assert pipe.said.count("no driver is running") == 1
        assert "high, seed 42: finished in" in pipe.said


def test_status_tells_why_a_run_failed(place: Place, left: Path) -> None:
    done = place.call("status", "left", "--root", str(place.root))
    assert done.returncode == 0
    assert "low/42 failed (attempt 1): RuntimeError (rank 1): it broke" in done.stdout
    assert "no driver is running" in done.stdout
    assert "stall: low, seed 42: it hung" in done.stdout


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["logs", "left", "nobody"], "no run is called 'nobody'; there are: low/42, high/42"),
        (["logs", "left", "low", "--rank", "3"], "low/42: no log of rank 3"),
        (["logs", "nowhere", "low"], "no sweep there"),
        (["watch", "nowhere"], "no sweep there"),
        (["watch", "left", "--interval", "0"], "invalid seconds, from 0.05 to 3600 value: '0'"),
    ],
)
def test_wrong_use_is_told_in_a_line(
    place: Place, left: Path, arguments: list[str], message: str
) -> None:
    done = place.call(*arguments, "--root", str(place.root))
    assert (done.returncode, done.stdout) == (2, "")
    assert message in done.stderr.splitlines()[-1]
    assert "Traceback" not in done.stderr
