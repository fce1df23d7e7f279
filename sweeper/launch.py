"""One stage of a run on this host: started under its guard, watched, and ended."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from sweeper import guard
from sweeper.layout import AttemptDir
from sweeper.stages import Stage

TAG_NAME = "SWEEPER_TAG"
PROJECT = Path(__file__).resolve().parent.parent
# What a run must not inherit from the process that launches it: torchrun or stage of another run.
FOREIGN_NAMES = (
    *("RANK", "LOCAL_RANK", "GROUP_RANK", "ROLE_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE"),
    *("GROUP_WORLD_SIZE", "ROLE_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT", "TORCHELASTIC_RUN_ID"),
    "STAGE",
)
# On every machine; a setting of the same name is not meant by them.
SYSTEM_NAMES = frozenset(
    {"HOME", "HOSTNAME", "LANG", "LOGNAME", "MAIL", "PATH", "PWD", "SHELL", "TERM", "TMPDIR"}
    | {"USER"}
)


@dataclass(frozen=True, kw_only=True)
class Tag:
    """Marks every process of a launch, in its environment, so that a reaper can find it.

    `launch` is the number of a stage in the sweep's ledger: an attempt is launched stage by stage,
    and one of them may be over while another is at work on the same host.
    """

    sweep: str
    session: str
    launch: int

    def __str__(self) -> str:
        return f"{self.sweep}:{self.session}:{self.launch}"

    @classmethod
    def parse(cls, text: str) -> Tag | None:
        sweep, _, rest = text.partition(":")
        session, _, launch = rest.partition(":")
        return cls(sweep=sweep, session=session, launch=int(launch)) if launch.isdecimal() else None


@dataclass(frozen=True, kw_only=True)
class LaunchRequest:
    """All that a host needs to know to launch one attempt, or the `number`-th time a stage of it.

    `env` holds the hyperparameters by their environment names; `dead` the launches of this
    session that are known to be over, whatever may still run of them on the host.
    """

    tag: Tag
    directory: str
    module: str
    launch: str
    processes: int
    cpus: int
    grace_seconds: float
    env: Mapping[str, str]
    stage: Stage = Stage.ALL
    number: int = 1
    nice: int = 0
    dead: frozenset[int] = frozenset()

    @property
    def attempt(self) -> AttemptDir:
        """Where it works."""
        return AttemptDir(Path(self.directory)).of(self.stage, self.number)


class RunningAttempt:
    """An attempt at work. Its processes end when this object's process does.

    `wait` may be called from one thread while `stop` and `kill` are called from others.
    """

    def __init__(self, request: LaunchRequest, gpus: Sequence[str]) -> None:
        """Reap what is left of earlier launches, then make this one."""
        self._tag = request.tag
        self._lock = threading.Lock()
        reap_leftovers(request.tag, request.dead)
        attempt = request.attempt
        attempt.logs.mkdir(parents=True, exist_ok=True)
        command, env = build_command(request), build_env(request, gpus)
        facts = dataclasses.asdict(request) | {"command": command, "gpus": list(gpus)}
        facts |= {"dead": sorted(request.dead), "inherited": inherited_names(request)}
        write_json(attempt.request, facts)
        read_end, self._alive = os.pipe()
        try:
            with attempt.stdout.open("ab") as stdout, attempt.stderr.open("ab") as stderr:
                self._guard = subprocess.Popen(
                    supervised(command, request, read_end),
                    cwd=attempt.path,
                    env=env,
                    stdin=subprocess.DEVNULL,
                    stdout=stdout,
                    stderr=stderr,
                    start_new_session=True,
                    pass_fds=[read_end],
                )
        except BaseException:
            os.close(self._alive)
            raise
        finally:
            os.close(read_end)

    def wait(self) -> None:
        """Return once nothing of the attempt runs any more; exit.json is there by then."""
        self._guard.wait()
        self.kill()
        # Nothing is found here unless the guard itself was killed.
        end_tagged(lambda tag: tag == self._tag)

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


def build_command(request: LaunchRequest) -> list[str]:
    """The argv that trains: torchrun with a guard before each rank, or the module alone."""
    python = sys.executable
    if request.launch == "exec":
        return [python, "-m", request.module]
    shim = [python, "-I", "-S", guard.__file__, "rank", "--", python, "-m", request.module]
    return [
        *(python, "-m", "torch.distributed.run"),
        *("--standalone", f"--nproc-per-node={request.processes}", "--max-restarts=0"),
        *("--redirects=3", f"--log-dir={request.attempt.logs / 'ranks'}", "--no-python", *shim),
    ]


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


def inherited_names(request: LaunchRequest) -> list[str]:
    """The names in a run's environment that the sweep does not set, the system's own apart."""
    set_here = _set_env(request, ()).keys() | set(FOREIGN_NAMES) | SYSTEM_NAMES
    return sorted(os.environ.keys() - set_here)


def _set_env(request: LaunchRequest, gpus: Sequence[str]) -> dict[str, str]:
    path = [str(PROJECT), *filter(None, [os.environ.get("PYTHONPATH")])]
    return {
        # Ray gives its workers one thread; training wants its share of the slot's.
        "OMP_NUM_THREADS": str(max(1, request.cpus // request.processes)),
        "PYTHONPATH": os.pathsep.join(path),
        "PYTHONUNBUFFERED": "1",
        # Empty where the slot holds no GPU: a run may not use what others reserve.
        "CUDA_VISIBLE_DEVICES": ",".join(gpus),
        **request.env,
        **({} if request.stage is Stage.ALL else {"STAGE": request.stage.value}),
        "RUN_DIR": request.directory,
        TAG_NAME: str(request.tag),
    }


def write_json(path: Path, facts: Mapping[str, Any]) -> None:
    """Write a JSON file by rename."""
    partial = path.with_name(path.name + ".partial")
    partial.write_text(json.dumps(facts, indent=1))
    partial.replace(path)


# ---- what is left behind


def reap_leftovers(tag: Tag, dead: Collection[int] = ()) -> int:
    """End processes of the same sweep that nobody owns any more; returns how many.

    Those are the ones of another session (only one driver at a time holds a sweep), and in this
    session the ones of launches that are known to be over.
    """
    return end_tagged(
        lambda found: (
            found.sweep == tag.sweep and (found.session != tag.session or found.launch in dead)
        )
    )


def end_tagged(wanted: Callable[[Tag], bool]) -> int:
    """SIGKILL every process of this host whose tag is wanted; returns how many were found."""
    found = [process for process, tag in tagged_processes() if wanted(tag)]
    for process in found:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()
    psutil.wait_procs(found, timeout=10)
    return len(found)


def tagged_processes() -> list[tuple[psutil.Process, Tag]]:
    """The processes of this host, this one's user, that carry a sweep's tag."""
    tagged = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error, OSError):
            tag = Tag.parse(process.environ().get(TAG_NAME, ""))
            if tag is not None and process.pid != os.getpid():
                tagged.append((process, tag))
    return tagged
