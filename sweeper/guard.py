"""The process guard: no process of a run outlives it, whatever dies.

    python -I -S guard.py supervise --exit FILE --grace S --alive FD [--nice N] -- COMMAND ...
    python -I -S guard.py rank -- COMMAND ...

`supervise` is the parent of torchrun. It holds the read end of a pipe whose write end only the
launching process has, so that end-of-file means "the launcher died"; it adopts processes that
lose their parent (PR_SET_CHILD_SUBREAPER); and when torchrun has ended, or is told to, it ends
everything below itself and then writes how it went. `rank` is a shim in front of every rank.
Should the guard itself be killed, torchrun and the ranks die of their parent-death signals.

Standard library only, and no import of ours: it starts in some 20 ms, twice per run.
"""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import json
import os
import resource
import select
import signal
import subprocess
import sys
import time

PR_SET_PDEATHSIG = 1
PR_SET_CHILD_SUBREAPER = 36
GUARD_NAME = "SWEEPER_GUARD_PID"
# Why a run was stopped, as exit.json says it.
ASKED, LAUNCHER_DIED = "asked", "launcher died"
ORPHAN_GRACE_SECONDS = 2.0  # to a run whose launcher died: nobody waits for its result
POLL_SECONDS = 0.5
KILL_SECONDS = 10.0


def prctl(option: int, value: int) -> None:
    """Linux prctl(2); OSError when the kernel refuses."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(option, value, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), f"prctl({option}) refused")


def descendants(root: int) -> list[int]:
    """Ids of all processes below `root`, zombies left out."""
    children: dict[int, list[int]] = {}
    for entry in os.listdir("/proc"):
        if entry.isdigit():
            with contextlib.suppress(OSError), open(f"/proc/{entry}/stat") as file:
                # The command's name, in parentheses, may hold spaces and parentheses itself.
                state, parent = file.read().rpartition(")")[2].split()[:2]
                if state not in "ZX":
                    children.setdefault(int(parent), []).append(int(entry))
    found, front = [], [root]
    while front:
        front = [child for parent in front for child in children.get(parent, [])]
        found += front
    return found


class Supervisor:
    """One command with everything below it, from its start to the last process's end."""

    def __init__(self, command: list[str], *, alive: int, grace: float) -> None:
        self.alive = alive
        self.grace = grace
        self.stop_reason: str | None = None
        self.kill_at: float | None = None
        self.started = time.time()
        self.wake, wake_end = os.pipe()
        os.set_blocking(wake_end, False)
        signal.set_wakeup_fd(wake_end)
        signal.signal(signal.SIGTERM, lambda *_: self.stop(ASKED, self.grace))
        signal.signal(signal.SIGINT, lambda *_: self.stop(ASKED, self.grace))
        signal.signal(signal.SIGCHLD, lambda *_: None)
        prctl(PR_SET_CHILD_SUBREAPER, 1)
        self.child = subprocess.Popen(
            command,
            process_group=0,
            env=os.environ | {GUARD_NAME: str(os.getpid())},
            preexec_fn=lambda: prctl(PR_SET_PDEATHSIG, signal.SIGKILL),
        )

    def stop(self, reason: str, grace: float) -> None:
        """Ask the command to end; it and all below it are killed after the grace."""
        deadline = time.monotonic() + grace
        if self.stop_reason is None:
            self.stop_reason = reason
            self.kill_at = deadline
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.child.pid, signal.SIGTERM)
        elif self.kill_at is not None:
            self.kill_at = min(self.kill_at, deadline)

    def wait(self) -> int:
        """Return the command's exit code once nothing is left below this process."""
        watched = [self.wake, self.alive]
        while self.child.poll() is None:
            ready, _, _ = select.select(watched, [], [], POLL_SECONDS)
            if self.wake in ready:
                os.read(self.wake, 4096)
            if self.alive in ready and not os.read(self.alive, 1):
                watched.remove(self.alive)
                # Whoever was asked already has had his time, or will not be waited for.
                grace = min(self.grace, ORPHAN_GRACE_SECONDS) if self.stop_reason is None else 0.0
                self.stop(LAUNCHER_DIED, grace)
            if self.kill_at is not None and time.monotonic() >= self.kill_at:
                self.kill_all()
            self.reap()
        self.kill_all()
        return self.child.returncode

    def kill_all(self) -> None:
        """SIGKILL everything below, again and again until a scan finds nothing."""
        deadline = time.monotonic() + KILL_SECONDS
        while (left := descendants(os.getpid())) and time.monotonic() < deadline:
            for pid in left:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            self.child.poll()
            self.reap()
            time.sleep(0.01)

    def reap(self) -> None:
        """Collect adopted processes that have ended; the command itself is left to `poll`."""
        for pid in _zombies(os.getpid()) - {self.child.pid}:
            with contextlib.suppress(ChildProcessError):
                os.waitpid(pid, os.WNOHANG)


def _zombies(parent: int) -> set[int]:
    """Ended, uncollected children of `parent`."""
    with open(f"/proc/{parent}/task/{parent}/children") as file:
        children = file.read().split()
    zombies = set()
    for pid in children:
        with contextlib.suppress(OSError), open(f"/proc/{pid}/stat") as file:
            if file.read().rpartition(")")[2].split()[0] == "Z":
                zombies.add(int(pid))
    return zombies


def write_exit(path: str, supervisor: Supervisor, code: int) -> None:
    """Say how it ended; under a temporary name, then renamed."""
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    facts = {
        "exit_code": code,
        "stop_reason": supervisor.stop_reason,
        "started": supervisor.started,
        "ended": time.time(),
        "user_s": usage.ru_utime,
        "system_s": usage.ru_stime,
        "max_rss_kib": usage.ru_maxrss,
    }
    partial = f"{path}.partial"
    with open(partial, "w") as file:
        json.dump(facts, file)
        file.flush()
        os.fsync(file.fileno())
    os.replace(partial, path)


def supervise(arguments: argparse.Namespace) -> int:
    # A Ray worker is nice 15 with SIGINT blocked, and training processes would inherit that.
    signal.pthread_sigmask(signal.SIG_SETMASK, [])
    with contextlib.suppress(PermissionError):
        os.setpriority(os.PRIO_PROCESS, 0, arguments.nice)
    supervisor = Supervisor(arguments.command, alive=arguments.alive, grace=arguments.grace)
    code = supervisor.wait()
    write_exit(arguments.exit, supervisor, code)
    return code if code >= 0 else 128 - code


def run_rank(command: list[str]) -> None:
    """Become `command`, to be killed when torchrun dies."""
    prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() in (1, int(os.environ.get(GUARD_NAME, "1"))):
        sys.exit("torchrun died before this rank had begun")
    os.execvp(command[0], command)


def main() -> int:
    parser = argparse.ArgumentParser(prog="guard")
    modes = parser.add_subparsers(dest="mode", required=True)
    mode = modes.add_parser("supervise")
    mode.add_argument("--exit", required=True)
    mode.add_argument("--grace", type=float, required=True)
    mode.add_argument("--alive", type=int, required=True)
    mode.add_argument("--nice", type=int, default=0)
    mode.add_argument("command", nargs="+")
    modes.add_parser("rank").add_argument("command", nargs="+")
    arguments = parser.parse_args()
    if arguments.mode == "rank":
        run_rank(arguments.command)
    return supervise(arguments)


if __name__ == "__main__":
    sys.exit(main())
