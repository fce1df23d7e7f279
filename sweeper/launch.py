"""One run on this host: started under its guard, watched, ended, and judged by what it left."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import re
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
from sweeper.contract import EventReader, check_echo, first_error, read_result
from sweeper.errors import ContractError
from sweeper.layout import AttemptDir
from sweeper.ledger import AttemptState

TAG_NAME = "SWEEPER_TAG"
PROJECT = Path(__file__).resolve().parent.parent
TAIL_BYTES = 4_000
# What a run must not inherit from the process that launches it: torchrun of another run.
FOREIGN_NAMES = (
    *("RANK", "LOCAL_RANK", "GROUP_RANK", "ROLE_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE"),
    *("GROUP_WORLD_SIZE", "ROLE_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT", "TORCHELASTIC_RUN_ID"),
)
# On every machine; a setting of the same name is not meant by them.
SYSTEM_NAMES = frozenset(
    {"HOME", "HOSTNAME", "LANG", "LOGNAME", "MAIL", "PATH", "PWD", "SHELL", "TERM", "TMPDIR"}
    | {"USER"}
)
# torchrun's own words about the first rank that failed.
FAILED_RANK = re.compile(r"failed \(exitcode: (-?\d+)\) local_rank: (\d+)")
ERROR_STATES = {
    "user": AttemptState.USER_ERROR,
    "nonfinite": AttemptState.NONFINITE,
    "oom": AttemptState.OUT_OF_MEMORY,
}


@dataclass(frozen=True, kw_only=True)
class Tag:
    """Marks every process of an attempt, in its environment, so that a reaper can find it."""

    sweep: str
    session: str
    attempt: int

    def __str__(self) -> str:
        return f"{self.sweep}:{self.session}:{self.attempt}"

    @classmethod
    def parse(cls, text: str) -> Tag | None:
        sweep, _, rest = text.partition(":")
        session, _, attempt = rest.partition(":")
        return (
            cls(sweep=sweep, session=session, attempt=int(attempt)) if attempt.isdecimal() else None
        )


@dataclass(frozen=True, kw_only=True)
class LaunchRequest:
    """All that a host needs to know to launch one attempt.

    `env` holds the hyperparameters by their environment names; `dead` the attempts of this
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
    dead: frozenset[int] = frozenset()


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """How an attempt ended, with the result when it finished and the cause when it did not."""

    state: AttemptState
    exit_code: int | None = None
    message: str | None = None
    traceback: str | None = None
    result: dict[str, Any] | None = None


class RunningAttempt:
    """An attempt at work. Its processes end when this object's process does.

    `wait` may be called from one thread while `stop` and `kill` are called from others.
    """

    def __init__(self, request: LaunchRequest, gpus: Sequence[str]) -> None:
        """Reap what is left of earlier attempts, then launch this one."""
        self._tag = request.tag
        self._lock = threading.Lock()
        reap_leftovers(request.tag, request.dead)
        attempt = AttemptDir(Path(request.directory))
        attempt.logs.mkdir(parents=True, exist_ok=True)
        command, env = build_command(request), build_env(request, gpus)
        facts = dataclasses.asdict(request) | {"command": command, "gpus": list(gpus)}
        facts |= {"dead": sorted(request.dead), "inherited": inherited_names(request)}
        write_json(attempt.request, facts)
        read_end, self._alive = os.pipe()
        try:
            with attempt.stdout.open("ab") as stdout, attempt.stderr.open("ab") as stderr:
                self._guard = subprocess.Popen(
                    supervised(command, attempt, request.grace_seconds, read_end),
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
        *("--redirects=3", "--log-dir=logs/ranks", "--no-python", *shim),
    ]


def supervised(command: list[str], attempt: AttemptDir, grace: float, alive: int) -> list[str]:
    """The command under its process guard."""
    return [
        *(sys.executable, "-I", "-S", guard.__file__, "supervise", f"--exit={attempt.exit}"),
        *(f"--grace={grace}", f"--alive={alive}", "--", *command),
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
    session the ones of attempts that are known to be over.
    """
    return end_tagged(
        lambda found: (
            found.sweep == tag.sweep and (found.session != tag.session or found.attempt in dead)
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


# ---- judging


def judge(attempt: AttemptDir, overrides: Mapping[str, str]) -> Outcome:
    """Decide, from its directory alone, how an attempt ended.

    It finished only if every process ended well and a valid result is there and the run confirms
    every override and the artifact is what the result says.
    """
    try:
        ended = json.loads(attempt.exit.read_bytes())
        code, asked = int(ended["exit_code"]), ended["stop_reason"]
    except (OSError, ValueError, KeyError, TypeError):
        return _judge_unended(attempt)
    events = EventReader(attempt.events).read()
    if code != 0:
        return _judge_failure(attempt, events, code, asked)
    try:
        result = read_result(attempt.result)
        _check_artifact(attempt, result)
    except ContractError as error:
        return Outcome(state=AttemptState.BAD_RESULT, exit_code=code, message=str(error))
    wrong = wrong_settings(attempt, overrides, events)
    if wrong is not None:
        return Outcome(state=AttemptState.USER_ERROR, exit_code=code, message=wrong)
    return Outcome(state=AttemptState.FINISHED, exit_code=code, result=result)


def wrong_settings(
    attempt: AttemptDir, overrides: Mapping[str, str], events: Collection[dict[str, Any]]
) -> str | None:
    """How a run's settings differ from those it was asked to take, by its echo; None if not."""
    try:
        inherited = json.loads(attempt.request.read_bytes())["inherited"]
    except (OSError, ValueError, KeyError):
        inherited = ()  # of another host, and not here yet
    try:
        check_echo(overrides, events, inherited)
    except ContractError as error:
        return str(error)
    return None


def _check_artifact(attempt: AttemptDir, result: Mapping[str, Any]) -> None:
    """ContractError unless the artifact on disk has the size that the result claims."""
    name = result.get("artifact")
    if not isinstance(name, str) or Path(name).name != name:
        raise ContractError(f"{attempt.result.name}: artifact is {name!r}, not a file name")
    try:
        found = (attempt.path / name).stat().st_size
    except OSError as error:
        raise ContractError(f"{name}: the artifact cannot be read ({error.strerror})") from error
    if found != result["bytes_model"]:
        raise ContractError(
            f"{name}: has {found} bytes on disk, the result says {result['bytes_model']}"
        )
    if result["bytes_total"] != found + result["bytes_code"]:
        raise ContractError(
            f"{attempt.result.name}: bytes_total is {result['bytes_total']}, not the artifact's "
            f"{found} + the code's {result['bytes_code']}"
        )


def _judge_unended(attempt: AttemptDir) -> Outcome:
    """An attempt whose guard left no word: killed with it, or with no room to write it."""
    error = first_error(EventReader(attempt.events).read())
    if error is not None and error.get("code") in ERROR_STATES:
        return _of_error(error, None)
    return Outcome(
        state=AttemptState.LOST, message="its processes were killed together with their guard"
    )


def _of_error(error: Mapping[str, Any], code: int | None) -> Outcome:
    """The outcome that a run's own error event tells."""
    state = ERROR_STATES.get(str(error.get("code")), AttemptState.CRASHED)
    rank = error.get("rank", 0)
    where = f" (rank {rank})" if rank else ""
    message = f"{error.get('error', 'error')}{where}: {error.get('message', '')}"
    trace = str(error.get("traceback", "")) or None
    return Outcome(state=state, exit_code=code, message=message, traceback=trace)


def _judge_failure(
    attempt: AttemptDir, events: list[dict[str, Any]], code: int, asked: str | None
) -> Outcome:
    error = first_error(events)
    if error is not None:
        return _of_error(error, code)
    # What the run says of having stopped is no evidence: torchrun stops the ranks of a dead one.
    if asked == guard.ASKED:
        return Outcome(state=AttemptState.STOPPED, exit_code=code, message="stopped on request")
    if asked == guard.LAUNCHER_DIED:
        message = "it was ended because the process that launched it died"
        return Outcome(state=AttemptState.LOST, exit_code=code, message=message)
    message, log = _failing_log(attempt, code)
    return Outcome(state=AttemptState.CRASHED, exit_code=code, message=message, traceback=log)


def _failing_log(attempt: AttemptDir, code: int) -> tuple[str, str | None]:
    """Which rank failed first, as far as torchrun knows, and the end of its log."""
    launcher = _tail(attempt.stderr)
    failed = FAILED_RANK.search(launcher)
    if failed is None:
        return f"ended with {_describe_code(code)}", launcher or None
    rank_code, rank = int(failed[1]), int(failed[2])
    logs = [text for path in attempt.rank_logs(rank, "stderr") if (text := _tail(path))]
    return f"rank {rank} ended with {_describe_code(rank_code)}", logs[-1] if logs else launcher


def _describe_code(code: int) -> str:
    if code >= 0:
        return f"exit code {code}"
    with contextlib.suppress(ValueError):
        return f"signal {signal.Signals(-code).name}"
    return f"signal {-code}"


def _tail(path: Path) -> str:
    """The last few thousand bytes of a text file, from a line's start; empty when it is missing."""
    with contextlib.suppress(OSError), path.open("rb") as file:
        size = file.seek(0, os.SEEK_END)
        file.seek(max(0, size - TAIL_BYTES))
        text = file.read().decode(errors="replace")
        return text if size <= TAIL_BYTES else text.partition("\n")[2]
    return ""
