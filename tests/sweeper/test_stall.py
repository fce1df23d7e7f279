"""When a run is taken for hung, and what is seen of it then."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from sweeper.layout import AttemptDir
from sweeper.stall import OTHER_SECONDS, PHASE_SECONDS, StallWatch, dump_stacks


@pytest.fixture
def attempt(tmp_path: Path) -> AttemptDir:
    directory = AttemptDir(tmp_path / "1")
    directory.logs.mkdir(parents=True)
    return directory


def say(attempt: AttemptDir, kind: str, **fields: object) -> None:
    with attempt.events.open("a") as file:
        file.write(json.dumps({"t": 1.0, "kind": kind} | fields) + "\n")


def test_a_run_that_says_nothing_is_hung_after_its_time(attempt: AttemptDir) -> None:
    watch = StallWatch(attempt, 10.0)
    assert watch.check(100.0) is None
    assert watch.check(109.9) is None
    said = watch.check(110.0)
    assert said == "no event and no growth of a log for 10 s in phase setup"


def test_events_and_logs_of_any_rank_are_progress(attempt: AttemptDir) -> None:
    watch = StallWatch(attempt, 10.0)
    assert watch.check(0.0) is None
    say(attempt, "step", step=1)
    assert watch.check(9.0) is None
    log = attempt.logs / "ranks" / "x" / "attempt_0" / "7" / "stderr.log"
    log.parent.mkdir(parents=True)
    log.write_text("a warning\n")
    assert watch.check(18.0) is None
    with log.open("a") as file:
        file.write("another\n")
    assert watch.check(27.0) is None
    assert watch.check(36.9) is None
    assert watch.check(37.0) is not None


@pytest.mark.parametrize("phase", [*PHASE_SECONDS, "warmup"])
def test_how_long_is_too_long_depends_on_the_phase(attempt: AttemptDir, phase: str) -> None:
    watch = StallWatch(attempt)
    say(attempt, "phase", phase=phase)
    limit = PHASE_SECONDS.get(phase, OTHER_SECONDS)
    assert watch.check(0.0) is None
    assert watch.check(limit - 0.1) is None
    assert f"in phase {phase}" in str(watch.check(limit))


def test_only_the_phases_of_this_stage_count(attempt: AttemptDir) -> None:
    say(attempt, "phase", phase="train")
    watch = StallWatch(attempt, None, attempt.events.stat().st_size)
    watch.check(0.0)
    assert watch.limit == OTHER_SECONDS
    say(attempt, "phase", phase="eval")
    watch.check(1.0)
    assert watch.limit == PHASE_SECONDS["eval"]


def test_zero_seconds_wait_for_ever(attempt: AttemptDir) -> None:
    watch = StallWatch(attempt, 0.0)
    assert watch.check(0.0) is None
    assert watch.check(1e9) is None


NESTED = """
import subprocess, sys, time
def in_the_middle_of_it():
    print("there", flush=True)
    time.sleep(600)
if len(sys.argv) > 1:
    in_the_middle_of_it()
subprocess.run([sys.executable, __file__, "child"])
"""


def test_the_stacks_of_all_processes_are_written_even_of_stopped_ones(tmp_path: Path) -> None:
    script = tmp_path / "nested.py"
    script.write_text(NESTED)
    parent = subprocess.Popen([sys.executable, str(script)], stdout=subprocess.PIPE, text=True)
    try:
        assert parent.stdout is not None
        assert parent.stdout.readline() == "there\n"
        (child,) = psutil.Process(parent.pid).children()
        child.send_signal(signal.SIGSTOP)
        (path,) = dump_stacks(parent.pid, tmp_path / "stacks")
        assert path.name == f"{child.pid}.txt"
        text = path.read_text()
        assert str(script) in text.splitlines()[0]
        assert "in_the_middle_of_it" in text, text
        assert child.status() == psutil.STATUS_STOPPED
    finally:
        for process in psutil.Process(parent.pid).children():
            process.kill()
        parent.kill()
        parent.communicate()


def test_nothing_is_written_of_a_process_that_has_ended(tmp_path: Path) -> None:
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    assert dump_stacks(ended.pid, tmp_path / "stacks") == []
