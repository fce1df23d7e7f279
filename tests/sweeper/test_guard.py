"""The process guard with real processes: whatever dies, nothing of a run lives on."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pytest

from sweeper import guard
from tests.sweeper.conftest import alive, marked, wait_until

pytestmark = pytest.mark.usefixtures("nothing_left")

# Each process of a script writes its id, by a name, once it is where the test wants it.
HEAD = """
import os, signal, subprocess, sys, time

def here(name):
    with open(name + ".partial", "w") as file:
        file.write(str(os.getpid()))
    os.replace(name + ".partial", name + ".pid")

def forever():
    while True:
        time.sleep(1)

def daemonise(name):
    if os.fork() == 0:
        os.setsid()
        if os.fork() == 0:
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
            here(name)
            forever()
        os._exit(0)

def child(name):
    if os.fork() == 0:
        os.setsid()
        here(name)
        forever()
"""
TREE = "child('child')\ndaemonise('daemon')\nforever()\n"
FAMILY = ("command", "child", "daemon")


@dataclass
class Guarded:
    """A guard at work on a script, and the write end of the pipe that keeps it going."""

    process: subprocess.Popen[bytes]
    directory: Path
    alive: int

    def pid(self, name: str) -> int:
        """The id that a process of the script has written; waits for it."""
        path = self.directory / f"{name}.pid"
        wait_until(path.exists, f"{name} to begin")
        return int(path.read_text())

    def let_go(self) -> None:
        """Close the pipe, as the launcher's death would."""
        if self.alive >= 0:
            os.close(self.alive)
            self.alive = -1

    def wait(self) -> int:
        return self.process.wait(timeout=120)

    @property
    def exit_path(self) -> Path:
        return self.directory / "exit.json"

    @property
    def facts(self) -> dict[str, Any]:
        return dict(json.loads(self.exit_path.read_text()))


Start = Callable[..., Guarded]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    """Start a script under a guard; at the end of the test every guard is let go of."""
    directory = tmp_path / "größe und platz"
    directory.mkdir()
    started: list[Guarded] = []

    def run(script: str, *, grace: float = 60.0, **options: Any) -> Guarded:
        read_end, write_end = os.pipe()
        command = [sys.executable, "-I", "-S", guard.__file__, "supervise"]
        command += [f"--exit={directory / 'exit.json'}", f"--grace={grace}", f"--alive={read_end}"]
        command += [f"--nice={options.pop('nice', 0)}", "--"]
        command += [sys.executable, "-I", "-S", "-c", HEAD + script]
        process = subprocess.Popen(
            command, cwd=directory, pass_fds=[read_end], start_new_session=True, **options
        )
        os.close(read_end)
        started.append(Guarded(process, directory, write_end))
        return started[-1]

    yield run
    for guarded in started:
        guarded.let_go()
        guarded.wait()


def gone(*pids: int) -> bool:
    return not any(map(alive, pids))


# ---- how it ended


@pytest.mark.parametrize("code", [0, 1, 75])
def test_the_commands_own_end_is_told(start: Start, code: int) -> None:
    guarded = start(f"sum(range(10**6)); sys.exit({code})")
    assert guarded.wait() == code
    facts = guarded.facts
    assert (facts["exit_code"], facts["stop_reason"]) == (code, None)
    assert facts["started"] <= facts["ended"]
    assert facts["user_s"] >= 0
    assert facts["system_s"] >= 0
    assert facts["max_rss_kib"] > 1_000
    assert not list(guarded.directory.glob("*.partial"))


def test_a_command_that_was_killed_is_told_as_such(start: Start) -> None:
    guarded = start("os.kill(os.getpid(), signal.SIGKILL)")
    assert guarded.wait() == 128 + signal.SIGKILL
    assert (guarded.facts["exit_code"], guarded.facts["stop_reason"]) == (-signal.SIGKILL, None)


def test_a_command_that_cannot_be_started_leaves_no_word_of_success(
    start: Start, tmp_path: Path
) -> None:
    command = [sys.executable, "-I", "-S", guard.__file__, "supervise", "--grace=1", "--alive=0"]
    command += [f"--exit={tmp_path / 'exit.json'}", "--", "/no/such/program"]
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, check=False)
    assert done.returncode != 0
    assert b"No such file" in done.stderr
    assert not (tmp_path / "exit.json").exists()


# ---- what is ended


def test_what_the_command_leaves_behind_is_ended(start: Start) -> None:
    guarded = start(
        "child('child')\ndaemonise('daemon')\nsys.stdin.read()\n", stdin=subprocess.PIPE
    )
    pids = [guarded.pid(name) for name in ("child", "daemon")]
    assert not gone(*pids)
    assert guarded.process.stdin is not None
    guarded.process.stdin.close()
    assert guarded.wait() == 0
    assert gone(*pids)
    assert guarded.facts["stop_reason"] is None


def test_when_the_launcher_dies_everything_is_ended(start: Start) -> None:
    guarded = start(f"signal.signal(signal.SIGTERM, signal.SIG_IGN)\nhere('command')\n{TREE}")
    pids = [guarded.pid(name) for name in FAMILY]
    guarded.let_go()
    assert guarded.wait() == 128 + signal.SIGKILL
    assert gone(*pids)
    assert guarded.facts["stop_reason"] == guard.LAUNCHER_DIED


# Starts a guard as a launcher does, and holds the pipe.
LAUNCHER = """
import os, subprocess, sys, time
guard, script = sys.argv[1:]
read_end, write_end = os.pipe()
python = [sys.executable, "-I", "-S"]
supervise = [guard, "supervise", "--exit=exit.json", "--grace=60", f"--alive={read_end}", "--"]
subprocess.Popen(
    [*python, *supervise, *python, "-c", script], pass_fds=[read_end], start_new_session=True
)
os.close(read_end)
time.sleep(1000)
"""


def test_a_launchers_real_death_is_seen(tmp_path: Path) -> None:
    script = f"{HEAD}here('command')\n{TREE}"
    command = [sys.executable, "-I", "-S", "-c", LAUNCHER, guard.__file__, script]
    process = subprocess.Popen(command, cwd=tmp_path)
    paths = [tmp_path / f"{name}.pid" for name in FAMILY]
    try:
        wait_until(lambda: all(path.exists() for path in paths), "the tree to begin")
        pids = [int(path.read_text()) for path in paths]
        pids.append(psutil.Process(pids[0]).ppid())
        assert not gone(*pids)
    finally:
        process.kill()
        process.wait()
    wait_until(lambda: gone(*pids), "everything to end, the guard too")
    facts = json.loads((tmp_path / "exit.json").read_text())
    assert facts["stop_reason"] == guard.LAUNCHER_DIED


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_command_that_is_asked_may_tidy_up(start: Start, number: signal.Signals) -> None:
    guarded = start("""
def tidy(*_):
    time.sleep(0.3)
    here("tidied")
    sys.exit(75)
signal.signal(signal.SIGTERM, tidy)
daemonise("daemon")
here("command")
forever()
""")
    pids = [guarded.pid("command"), guarded.pid("daemon")]
    guarded.process.send_signal(number)
    assert guarded.wait() == 75
    assert guarded.pid("tidied") == pids[0]
    assert gone(*pids)
    assert (guarded.facts["exit_code"], guarded.facts["stop_reason"]) == (75, guard.ASKED)


@pytest.mark.parametrize("grace", [0.0, 0.3])
def test_a_command_that_does_not_listen_is_killed(start: Start, grace: float) -> None:
    script = f"signal.signal(signal.SIGTERM, signal.SIG_IGN)\nhere('command')\n{TREE}"
    guarded = start(script, grace=grace)
    pids = [guarded.pid(name) for name in FAMILY]
    guarded.process.terminate()
    assert guarded.wait() == 128 + signal.SIGKILL
    assert gone(*pids)
    assert guarded.facts["stop_reason"] == guard.ASKED
    assert guarded.facts["ended"] - guarded.facts["started"] >= grace


def test_a_stopped_process_is_ended_too(start: Start) -> None:
    guarded = start("here('command')\nforever()\n", grace=0.1)
    pid = guarded.pid("command")
    os.kill(pid, signal.SIGSTOP)
    stopped = psutil.STATUS_STOPPED
    wait_until(lambda: psutil.Process(pid).status() == stopped, "the process to stop")
    guarded.process.terminate()
    assert guarded.wait() == 128 + signal.SIGKILL
    assert gone(pid)


def test_the_launchers_death_cuts_a_long_grace_short(start: Start) -> None:
    guarded = start(
        "signal.signal(signal.SIGTERM, signal.SIG_IGN)\nhere('command')\nforever()\n", grace=100_000
    )
    pid = guarded.pid("command")
    guarded.process.terminate()
    guarded.let_go()
    # It ends at all: the grace alone would outlast the test by a day.
    guarded.wait()
    assert gone(pid)
    # The first reason is the true one.
    assert guarded.facts["stop_reason"] in (guard.ASKED, guard.LAUNCHER_DIED)


def test_when_the_guard_is_killed_the_command_and_its_ranks_die(start: Start) -> None:
    # The script stands for torchrun: its rank begins behind the guard's shim, in its own session.
    rank = HEAD + "here('rank')\nforever()\n"
    shim = [sys.executable, "-I", "-S", guard.__file__, "rank", "--"]
    command = [*shim, sys.executable, "-I", "-S", "-c", rank]
    guarded = start(
        f"here('command')\nsubprocess.Popen({command!r}, start_new_session=True)\nforever()\n"
    )
    pids = [guarded.pid("command"), guarded.pid("rank")]
    assert os.getsid(pids[1]) == pids[1]
    guarded.process.kill()
    guarded.wait()
    wait_until(lambda: gone(*pids), "the command and its rank to die with the guard")
    assert not guarded.exit_path.exists()


def test_a_rank_whose_torchrun_has_died_does_not_begin(tmp_path: Path) -> None:
    # An orphan's parent is the guard, which has adopted it: here this test.
    begun = tmp_path / "begun"
    command = [sys.executable, "-I", "-S", guard.__file__, "rank", "--", "touch", str(begun)]
    adopted = os.environ | {guard.GUARD_NAME: str(os.getpid())}
    done = subprocess.run(command, env=adopted, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "torchrun died before this rank had begun" in done.stderr
    assert not begun.exists()
    under_torchrun = os.environ | {guard.GUARD_NAME: "999999999"}
    subprocess.run(command, env=under_torchrun, check=True)
    assert begun.exists()


# ---- what a command begins with


def test_a_command_begins_with_its_signals_free(start: Start) -> None:
    # Ray's workers have SIGINT blocked.
    script = """
blocked = signal.pthread_sigmask(signal.SIG_BLOCK, [])
here("command" if not blocked else "blocked")
forever()
"""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT, signal.SIGTERM])
    try:
        guarded = start(script, grace=0.1)
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
    pid = guarded.pid("command")
    guarded.process.terminate()
    guarded.wait()
    assert gone(pid)
    assert guarded.facts["stop_reason"] == guard.ASKED


def test_a_command_runs_at_the_niceness_that_is_asked(start: Start) -> None:
    nice = os.getpriority(os.PRIO_PROCESS, 0) + 3
    guarded = start("here('command')\nforever()\n", nice=nice)
    pid = guarded.pid("command")
    assert psutil.Process(pid).nice() == nice
    # As a session among sessions as well, where the kernel has that.
    group = Path(f"/proc/{pid}/autogroup")
    assert not group.exists() or group.read_text().endswith(f" nice {nice}\n")


def test_the_guard_knows_its_own_by_the_environment(start: Start, nothing_left: str) -> None:
    guarded = start("here('command')\nforever()\n")
    command = psutil.Process(guarded.pid("command"))
    assert command.environ()[guard.GUARD_NAME] == str(guarded.process.pid)
    assert command.ppid() == guarded.process.pid
    # The mark by which these tests look for what is left does find what there is.
    assert {guarded.process.pid, command.pid} <= {process.pid for process in marked(nothing_left)}


# ---- its own eyes


def test_descendants_are_found_whatever_they_are_called() -> None:
    prctl_name = "import ctypes; ctypes.CDLL(None).prctl(15, b'a) S 1 (b')"
    script = f"""
import os, subprocess, sys, time
{prctl_name}
child = subprocess.Popen([sys.executable, "-I", "-S", "-c", "import time; time.sleep(1000)"])
print(child.pid, flush=True)
time.sleep(1000)
"""
    process = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE)
    assert process.stdout is not None
    try:
        child = int(process.stdout.readline())
        assert psutil.Process(process.pid).name() == "a) S 1 (b"
        assert {process.pid, child} <= set(guard.descendants(os.getpid()))
        assert guard.descendants(process.pid) == [child]
        assert guard.descendants(child) == []
        os.kill(child, signal.SIGKILL)
        # It stays a zombie: its parent never asks.
        wait_until(lambda: not alive(child), "the child's end")
        assert guard.descendants(process.pid) == []
    finally:
        for pid in (child, process.pid):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        process.wait()
        process.stdout.close()


def test_a_refused_prctl_is_an_error() -> None:
    with pytest.raises(OSError, match=r"prctl\(999999\) refused"):
        guard.prctl(999_999, 0)


def test_the_guard_needs_the_standard_library_alone() -> None:
    command = [sys.executable, "-I", "-S", "-X", "importtime", guard.__file__, "--help"]
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd="/")
    assert "supervise" in done.stdout
    assert "sweeper" not in done.stderr
