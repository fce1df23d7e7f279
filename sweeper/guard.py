"""The process guard: no process of a run outlives it, whatever dies.

    python -I -S guard.py supervise --exit FILE --grace S --alive FD [--nice N] -- COMMAND ...
    python -I -S guard.py standby --alive FD [--nice N]
    python -P guard.py torchrun --orders FD
    python -I -S guard.py rank -- COMMAND ...

`supervise` is the parent of torchrun. It holds the read end of a pipe whose write end only the
launching process has, so that end-of-file means "the launcher died"; it adopts processes that
lose their parent (PR_SET_CHILD_SUBREAPER); and when torchrun has ended, or is told to, it ends
everything below itself and then writes how it went. `rank` is a shim in front of every rank.
Should the guard itself be killed, torchrun and the ranks die of their parent-death signals.

`standby` is a guard made ahead, of a run that is not known yet: below it `torchrun` does its
imports and waits. Told of a run (sweeper/standby.py), both become of it what `supervise` and the
torchrun below that are; when the launching process dies before, both end.

Standard library only, torchrun apart, and no import of ours: it starts in 20 ms, twice per run.
"""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import errno
import importlib
import json
import os
import resource
import select
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence

TYPE_CHECKING = False  # as typing has it, which takes longer to import than all that is above
if TYPE_CHECKING:
    from socket import socket
    from types import ModuleType

PR_SET_PDEATHSIG = 1
PR_SET_CHILD_SUBREAPER = 36
GUARD_NAME = "SWEEPER_GUARD_PID"
TAG_NAME = "SWEEPER_TAG"
TORCHRUN = "torch.distributed.run"
# Why a run was stopped, as exit.json says it.
ASKED, LAUNCHER_DIED = "asked", "launcher died"
ORPHAN_GRACE_SECONDS = 2.0  # to a run whose launcher died: nobody waits for its result
POLL_SECONDS = 0.5
KILL_SECONDS = 10.0
AUTOGROUP = "/proc/self/autogroup"
READY = b"r"  # what a standby says once
ORDER_BYTES = 1 << 20  # of one order at most


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

    def __init__(
        self, start: Callable[[], subprocess.Popen[bytes]], *, alive: int, grace: float
    ) -> None:
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
        self.child = start()

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


def write_exit(path: str, supervisor: Supervisor, code: int, **more: bool) -> None:
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
        **more,
    }
    partial = f"{path}.partial"
    with open(partial, "w") as file:
        json.dump(facts, file)
        file.flush()
        os.fsync(file.fileno())
    os.replace(partial, path)


def begin(nice: int) -> None:
    """Undo what a launching process should not hand on.

    A Ray worker is nice 15 with SIGINT blocked, and training processes would inherit that.
    """
    signal.pthread_sigmask(signal.SIG_SETMASK, [])
    with contextlib.suppress(PermissionError):
        os.setpriority(os.PRIO_PROCESS, 0, nice)
    if nice > 0:
        set_session_nice(nice)


def session_nice() -> int:
    """The niceness of this process's session among all; 0 where the kernel has no such thing."""
    with contextlib.suppress(OSError), open(AUTOGROUP) as file:
        return int(file.read().rpartition(" ")[2])
    return 0


def set_session_nice(nice: int) -> None:
    """Set the niceness of this process's session, where the kernel has such a thing.

    It then shares its processors out among sessions first, each run's being one, and what a thread
    has of its own counts within its session alone (sched(7), autogroups).
    """
    while True:
        try:
            with open(AUTOGROUP, "w") as file:
                file.write(str(nice))
        except BlockingIOError:  # all ordinary users together may do this ten times a second
            time.sleep(0.1)
        except OSError:
            return
        else:
            return


def start_below(command: list[str], keep: Sequence[int] = ()) -> subprocess.Popen[bytes]:
    """Start a process that is killed when this one dies; it is given the files `keep`."""
    return subprocess.Popen(
        command,
        process_group=0,
        pass_fds=keep,
        env=os.environ | {GUARD_NAME: str(os.getpid())},
        preexec_fn=lambda: prctl(PR_SET_PDEATHSIG, signal.SIGKILL),
    )


def supervise(arguments: argparse.Namespace) -> int:
    begin(arguments.nice)
    supervisor = Supervisor(
        lambda: start_below(arguments.command), alive=arguments.alive, grace=arguments.grace
    )
    return see_through(supervisor, arguments.exit)


def see_through(supervisor: Supervisor, path: str, **facts: bool) -> int:
    """Wait for the end, and say how it was; the exit code for this process."""
    code = supervisor.wait()
    write_exit(path, supervisor, code, **facts)
    return code if code >= 0 else 128 - code


# ---- a guard and its torchrun, made ahead


class Order:
    """What a standby is told of its run: where it works, and what it is; see sweeper/standby.py.

    `arguments` are torchrun's, `tag` is as long as the one that the standby was started with.
    """

    def __init__(
        self,
        *,
        directory: str,
        tag: str,
        exit_path: str,
        grace: float,
        arguments: list[str],
        env: dict[str, str],
    ) -> None:
        self.directory = directory
        self.tag = tag
        self.exit_path = exit_path
        self.grace = grace
        self.arguments = arguments
        self.env = env

    def send(self, channel: socket, streams: Sequence[int]) -> None:
        """Tell it, with the files that are to be stdout and stderr. OSError where it cannot be."""
        from socket import send_fds

        text = json.dumps(vars(self)).encode()
        if len(text) > ORDER_BYTES:
            raise OSError(errno.EMSGSIZE, os.strerror(errno.EMSGSIZE))
        send_fds(channel, [text], streams)

    @classmethod
    def receive(cls, channel: socket) -> Order | None:
        """Wait for one, and put its files in place; None once the other end is closed."""
        from socket import recv_fds

        try:
            text, files, _, _ = recv_fds(channel, ORDER_BYTES, 2)
        except ConnectionResetError:  # closed with a word of ours unread
            return None
        for target, file in enumerate(files, 1):
            os.dup2(file, target)
            os.close(file)
        return cls(**json.loads(text)) if text else None

    def take_up(self) -> None:
        """Be of the run from now on: work in its directory, and carry its tag.

        The tag goes over the one that this process was started with, in the memory that /proc
        shows of it.
        """
        os.chdir(self.directory)
        libc = ctypes.CDLL(None)
        libc.getenv.restype = ctypes.c_void_p
        address, tag = libc.getenv(TAG_NAME.encode()), os.fsencode(self.tag)
        assert len(ctypes.string_at(address)) == len(tag)
        ctypes.memmove(address, tag, len(tag))


def stand_by(arguments: argparse.Namespace) -> int:
    """Have torchrun's imports done below, say so, and wait for a run to supervise."""
    import socket  # here and above: those without a standby do without it, and begin earlier

    begin(arguments.nice)
    orders = socket.socket(fileno=arguments.alive)
    below, its_end = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    command = [sys.executable, "-P", __file__, "torchrun", f"--orders={its_end.fileno()}"]
    child = start_below(command, [its_end.fileno()])
    its_end.close()
    while True:
        ready, _, _ = select.select([orders, below], [], [])
        if orders in ready:
            order = Order.receive(orders)
            break
        if not below.recv(len(READY)):
            order = None  # it cannot; a torchrun that is launched as always will say why
            break
        orders.send(READY)
    if order is None:
        child.kill()
        child.wait()
        return 0
    order.take_up()

    def start() -> subprocess.Popen[bytes]:
        order.send(below, (1, 2))
        return child

    supervisor = Supervisor(start, alive=arguments.alive, grace=order.grace)
    return see_through(supervisor, order.exit_path, standby=True)


def become_torchrun(channel: int) -> int:
    """Do torchrun's imports, say so, and be torchrun of the run that comes; its exit code."""
    import socket

    orders = socket.socket(fileno=channel)
    imported: list[ModuleType] = []
    importing = threading.Thread(target=lambda: imported.append(import_gently(TORCHRUN)))
    usual = session_nice()
    set_session_nice(19)
    importing.start()
    importing.join()
    set_session_nice(usual)
    if not imported:
        return 1
    orders.send(READY)
    order = Order.receive(orders)
    if order is None:
        return 0
    orders.close()
    order.take_up()
    env = order.env | {GUARD_NAME: os.environ[GUARD_NAME]}
    os.environ.clear()
    os.environ.update(env)
    sys.argv = [str(imported[0].__file__), *order.arguments]
    try:
        imported[0].main()
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else int(end.code is not None)
    except BaseException:
        sys.excepthook(*sys.exc_info())
        return 1
    return 0


def import_gently(name: str) -> ModuleType:
    """Import a module out of the way of the run at work, in a thread that is for this alone.

    Niceness is a thread's own, and not every user's process may take it back.
    """
    os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), 19)
    return importlib.import_module(name)


# ---- a rank


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
    mode = modes.add_parser("standby")
    mode.add_argument("--alive", type=int, required=True)
    mode.add_argument("--nice", type=int, default=0)
    modes.add_parser("torchrun").add_argument("--orders", type=int, required=True)
    modes.add_parser("rank").add_argument("command", nargs="+")
    arguments = parser.parse_args()
    if arguments.mode == "rank":
        run_rank(arguments.command)
    if arguments.mode == "torchrun":
        code = become_torchrun(arguments.orders)
        sys.stdout.flush()
        sys.stderr.flush()
        # All of it has ended; to take torch apart again would be half a second.
        os._exit(code)
    return stand_by(arguments) if arguments.mode == "standby" else supervise(arguments)


if __name__ == "__main__":
    sys.exit(main())
