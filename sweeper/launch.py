"""One stage of a run on this host: started under its guard, watched, and ended."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import math
import os
import select
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

from sweeper import guard
from sweeper.layout import AttemptDir
from sweeper.reaping import TAG_NAME, Tag, end_tagged, reap_leftovers
from sweeper.stages import Stage
from sweeper.stall import StallWatch, dump_stacks
from sweeper.standby import Fit, Standby

STALL_POLL_SECONDS = 2.0
# Into a run, the next one's torchrun is made ready: a run that is over by then starts nothing.
STANDBY_SECONDS = 5.0
# Beyond its grace, what a guard may take to end a run: it tries for guard.KILL_SECONDS.
GUARD_MARGIN_SECONDS = 15.0
PROJECT = Path(__file__).resolve().parent.parent
# What a run must not inherit from the process that launches it: torchrun or stage of another run.
FOREIGN_NAMES = (
    *("RANK", "LOCAL_RANK", "GROUP_RANK", "ROLE_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE"),
    *("GROUP_WORLD_SIZE", "ROLE_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT", "TORCHELASTIC_RUN_ID"),
    "STAGE",
)
# How the names of settings begin that change how Python or torchrun itself begins. It computes
# nothing: what else libraries read as they are loaded, only the ranks' own matter.
EARLY_NAMES = ("PYTHON", "LD_", "TORCH", "PYTORCH", "LOGLEVEL", "LANG", "LC_", "MALLOC_", "GLIBC_")
# On every machine; a setting of the same name is not meant by them.
SYSTEM_NAMES = frozenset(
    {"HOME", "HOSTNAME", "LANG", "LOGNAME", "MAIL", "PATH", "PWD", "SHELL", "TERM", "TMPDIR"}
    | {"USER"}
)


@dataclass(frozen=True, kw_only=True)
class Rendezvous:
    """Where the nodes of one run meet, and which of them this is."""

    node: int
    nodes: int
    address: str
    port: int


@dataclass(frozen=True, kw_only=True)
class LaunchRequest:
    """All that a host needs to know to launch one attempt, or the `number`-th time a stage of it.

    `env` holds the hyperparameters by their environment names, `process_env` what else the
    processes are given; `dead` the launches of this session that are known to be over, whatever may
    still run of them on the host. `code` is a directory on the host with a snapshot of the code:
    of a `script` its `files` are copied into the run's directory, else it goes before all others on
    PYTHONPATH. With a `rendezvous` it is one node's share of a run on several.
    """

    tag: Tag
    directory: str
    module: str
    launch: str
    processes: int
    cpus: int
    grace_seconds: float
    env: Mapping[str, str]
    script: str | None = None
    arguments: tuple[str, ...] = ()
    code: str | None = None
    files: tuple[str, ...] = ()
    process_env: Mapping[str, str] = field(default_factory=dict)
    stage: Stage = Stage.ALL
    number: int = 1
    nice: int = 0
    stall_seconds: float | None = None
    events_from: int = 0
    dead: frozenset[int] = frozenset()
    rendezvous: Rendezvous | None = None

    @property
    def attempt(self) -> AttemptDir:
        """Where it works."""
        attempt = AttemptDir(Path(self.directory)).of(self.stage, self.number)
        return attempt if self.rendezvous is None else attempt.on(self.rendezvous.node)


class RunningAttempt:
    """An attempt at work. Its processes end when this object's process does.

    `wait` may be called from one thread while `stop` and `kill` are called from others.
    """

    def __init__(
        self, request: LaunchRequest, gpus: Sequence[str], standby: Standby | None = None
    ) -> None:
        """Reap what is left of earlier launches, then make this one, with the standby if it fits.

        While the run is at work, `wait` makes the next standby.
        """
        self._tag = request.tag
        self._attempt = request.attempt
        self._grace = request.grace_seconds
        self._patience_ends = math.inf  # by the monotonic clock: when the guard is killed
        self._stalls = StallWatch(request.attempt, request.stall_seconds, request.events_from)
        self._lock = threading.Lock()
        self._standby = standby if request.launch == "torchrun" else None
        self._fit = standby_fit(request, gpus)
        self._prepare_at = time.monotonic() + STANDBY_SECONDS
        reap_leftovers(request.tag, request.dead)
        attempt = request.attempt
        attempt.logs.mkdir(parents=True, exist_ok=True)
        if request.script is not None and request.code is not None:
            place_files(Path(request.code), request.files, attempt.path)
        command, env = build_command(request), build_env(request, gpus)
        facts = dataclasses.asdict(request) | {"command": command, "gpus": list(gpus)}
        facts |= {"dead": sorted(request.dead), "inherited": inherited_names(request)}
        write_json(attempt.request, facts)
        with attempt.stdout.open("ab") as stdout, attempt.stderr.open("ab") as stderr:
            begun = None
            if self._standby is not None:
                order = guard.Order(
                    directory=str(attempt.path),
                    tag=request.tag.padded,
                    exit_path=str(attempt.exit),
                    grace=request.grace_seconds,
                    arguments=command[command.index(guard.TORCHRUN) + 1 :],
                    env=env,
                )
                begun = self._standby.take(self._fit, order, stdout.fileno(), stderr.fileno())
            self._guard, self._alive = begun or start_guard(command, request, env, stdout, stderr)

    def wait(self) -> str | None:
        """Return once nothing of the attempt runs any more; exit.json is there by then.

        A run that hangs is ended, after a look at its stacks; then this says so, as a sentence.
        """
        hung = self._watch()
        self._guard.wait()
        self.kill()
        if not self._attempt.exit.exists():
            # The guard itself was killed, or has no room to write; else it has left nothing.
            end_tagged(lambda tag: tag == self._tag)
        return hung

    def _watch(self) -> str | None:
        """Return when the guard has ended; why the run was taken for hung and ended, if it was."""
        hung = None
        with contextlib.suppress(ProcessLookupError), _watched(self._guard.pid) as guard:
            while not guard.poll(STALL_POLL_SECONDS * 1000):
                now = time.monotonic()
                if now >= self._patience_ends:
                    # It hangs itself, and its ranks die of their parent-death signals.
                    self._guard.kill()
                if self._standby is not None and now >= self._prepare_at:
                    self._standby.prepare(self._fit)
                    self._prepare_at = math.inf
                if hung is None and (why := self._stalls.check(now)) is not None:
                    stacks = dump_stacks(self._guard.pid, self._attempt.logs / "stacks")
                    hung = why + (f"; its stacks are in {stacks[0].parent}" if stacks else "")
                    self.stop()
                    self._bear_with_guard(self._grace)
        return hung

    def _bear_with_guard(self, seconds: float) -> None:
        """Give the guard this time to end the run, and some to say so; then it is killed."""
        ends = time.monotonic() + seconds + GUARD_MARGIN_SECONDS
        self._patience_ends = min(self._patience_ends, ends)

    def stop(self) -> None:
        """Ask the run to end itself; what is left after its grace is killed."""
        if self._guard.poll() is None:
            self._guard.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        """Let go of the run: the guard ends it as if this process had died."""
        with self._lock:
            alive, self._alive = self._alive, -1
        if alive >= 0:
            os.close(alive)
            self._bear_with_guard(guard.ORPHAN_GRACE_SECONDS)


@contextlib.contextmanager
def _watched(pid: int) -> Iterator[select.poll]:
    """A child to wait for with a timeout in ms, without asking again and again.

    Raises ProcessLookupError when it has ended and somebody has taken note of it.
    """
    file = os.pidfd_open(pid)
    try:
        poll = select.poll()
        poll.register(file, select.POLLIN)
        yield poll
    finally:
        os.close(file)


def build_command(request: LaunchRequest) -> list[str]:
    """The argv that trains: torchrun with a guard before each rank, or the workload alone."""
    python = sys.executable
    work = [python, "-m", request.module]
    if request.script is not None:
        work = [python, str(request.attempt.path / request.script)]
    work += request.arguments
    if request.launch == "exec":
        return work
    shim = [python, "-I", "-S", guard.__file__, "rank", "--", *work]
    return [
        *(python, "-m", guard.TORCHRUN),
        *_meeting(request.rendezvous),
        *(f"--nproc-per-node={request.processes}", "--max-restarts=0"),
        *("--redirects=3", f"--log-dir={request.attempt.logs / 'ranks'}", "--no-python", *shim),
    ]


def _meeting(rendezvous: Rendezvous | None) -> list[str]:
    """How the launchers of a run find each other, as options of torchrun."""
    if rendezvous is None:
        return ["--standalone"]
    return [
        *(f"--nnodes={rendezvous.nodes}", f"--node-rank={rendezvous.node}"),
        *(f"--master-addr={rendezvous.address}", f"--master-port={rendezvous.port}"),
    ]


def start_guard(
    command: list[str],
    request: LaunchRequest,
    env: Mapping[str, str],
    stdout: IO[bytes],
    stderr: IO[bytes],
) -> tuple[subprocess.Popen[bytes], int]:
    """A command at work under its guard, and the file whose closing lets go of it."""
    read_end, alive = os.pipe()
    try:
        started = subprocess.Popen(
            supervised(command, request, read_end),
            cwd=request.attempt.path,
            env=env,
            stdin=subprocess.DEVNULL,
            stdout=stdout,
            stderr=stderr,
            start_new_session=True,
            pass_fds=[read_end],
        )
    except BaseException:
        os.close(alive)
        raise
    finally:
        os.close(read_end)
    return started, alive


def supervised(command: list[str], request: LaunchRequest, alive: int) -> list[str]:
    """The command under its process guard."""
    return [
        *(sys.executable, "-I", "-S", guard.__file__, "supervise"),
        *(f"--exit={request.attempt.exit}", f"--grace={request.grace_seconds}"),
        *(f"--alive={alive}", f"--nice={request.nice}", "--", *command),
    ]


def build_env(request: LaunchRequest, gpus: Sequence[str]) -> dict[str, str]:
    """The whole environment of a run: this process's own, then what the sweep sets."""
    inherited = {name: text for name, text in os.environ.items() if name not in FOREIGN_NAMES}
    return inherited | _set_env(request, gpus)


def standby_fit(request: LaunchRequest, gpus: Sequence[str]) -> Fit:
    """What a run's torchrun begins with, as far as it matters before it knows its run.

    That leaves the run's own settings out, but for the early ones.
    """
    own = {*request.env, "RUN_DIR", "STAGE"}
    env = {
        name: text
        for name, text in build_env(request, gpus).items()
        if name not in own or name.startswith(EARLY_NAMES)
    }
    nobody = dataclasses.replace(request.tag, launch=0)  # the ledger's numbers begin at 1
    return Fit(env=env | {TAG_NAME: nobody.padded}, nice=request.nice)


def inherited_names(request: LaunchRequest) -> list[str]:
    """The names in a run's environment that the sweep does not set, the system's own apart."""
    set_here = _set_env(request, ()).keys() | set(FOREIGN_NAMES) | SYSTEM_NAMES
    return sorted(os.environ.keys() - set_here)


def _set_env(request: LaunchRequest, gpus: Sequence[str]) -> dict[str, str]:
    given = request.process_env.get("PYTHONPATH") or os.environ.get("PYTHONPATH")
    # A script's own directory goes first by itself; it is given none of this project's modules.
    ours = [] if request.script is not None else [request.code, str(PROJECT)]
    return {
        # Ray gives its workers one thread; training wants its share of the slot's.
        "OMP_NUM_THREADS": str(max(1, request.cpus // request.processes)),
        "PYTHONUNBUFFERED": "1",
        **request.process_env,
        "PYTHONPATH": os.pathsep.join(filter(None, [*ours, given])),
        # Empty where the slot holds no GPU: a run may not use what others reserve.
        "CUDA_VISIBLE_DEVICES": ",".join(gpus),
        **request.env,
        **({} if request.stage is Stage.ALL else {"STAGE": request.stage.value}),
        "RUN_DIR": request.directory,
        TAG_NAME: str(request.tag),
    }


def place_files(code: Path, files: Collection[str], directory: Path) -> None:
    """Copy a script's files into the directory that it is to work in."""
    for name in files:
        source, target = code / name, directory / name
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source, target)
        # Executable where it was, and never read-only: a second launch copies it anew.
        target.chmod(0o644 | source.stat().st_mode & 0o111)


def write_json(path: Path, facts: Mapping[str, Any]) -> None:
    """Write a JSON file by rename."""
    partial = path.with_name(path.name + ".partial")
    partial.write_text(json.dumps(facts, indent=1))
    partial.replace(path)
