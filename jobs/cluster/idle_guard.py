"""Stops a rented pod that has nothing to do: no driver and no run for so many minutes.

    python3 idle_guard.py --root runs --minutes 20 --stop 'runpodctl stop pod $RUNPOD_POD_ID'

Commands are shell commands. Before the stop, `--sync` brings the results to safety; while that
fails, the pod goes on. A pod is never stopped while a driver holds the lock of a sweep below
`--root`, while a process of a run is there (of any sweep; with `--own`, of those below `--root`
alone), or while a `--busy` command says yes by its exit code 0. Standard library only, so that
any Python of the pod will do. Linux.
"""

from __future__ import annotations

import argparse
import contextlib
import fcntl
import os
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

# What every process of a run has in its environment, as sweeper/launch.py sets it.
TAG_NAME, DIRECTORY_NAME = b"SWEEPER_TAG", b"RUN_DIR"
MAX_POLL_SECONDS = 30.0


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What is watched, for how long it has to be idle, and what is done then."""

    root: Path
    idle_seconds: float
    stop: str
    sync: str | None = None
    busy: Sequence[str] = ()
    own: bool = False
    dry_run: bool = False

    @property
    def poll_seconds(self) -> float:
        return min(MAX_POLL_SECONDS, max(0.1, self.idle_seconds / 4))


def guard(
    settings: Settings,
    clock: Callable[[], float] = time.monotonic,
    sleep: Callable[[float], None] = time.sleep,
) -> None:
    """Return once the pod has been idle for long enough and its stop command has been given."""
    idle_since = clock()
    told: str | None = ""
    while True:
        work = what_is_at_work(settings)
        if work != told:
            say(work or f"idle; the pod stops in {settings.idle_seconds / 60:g} minutes")
            told = work
        now = clock()
        if work is not None:
            idle_since = now
        elif now - idle_since >= settings.idle_seconds and shut_down(settings):
            return
        sleep(settings.poll_seconds)


def what_is_at_work(settings: Settings) -> str | None:
    """The first thing found that needs the pod; None where it is idle."""
    for lock in sorted(settings.root.glob("*/lock")):
        if is_held(lock):
            return f"sweep {lock.parent.name} has a driver"
    process = find_run(settings.root if settings.own else None)
    if process is not None:
        return f"a run is at work, process {process}"
    for command in settings.busy:
        done = subprocess.run(command, shell=True, stdin=subprocess.DEVNULL, capture_output=True)
        if done.returncode == 0:
            return f"busy, says `{command}`"
    return None


def is_held(lock: Path) -> bool:
    """Whether a driver holds the lock of its sweep."""
    try:
        with lock.open() as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        return False  # a sweep that has been removed
    return False


def find_run(root: Path | None) -> int | None:
    """The id of some process of a run on this machine, that works below `root` where one is given.

    Only those of this user can be looked into; on a pod that is the one there is, root.
    """
    for entry in filter(str.isdigit, os.listdir("/proc")):
        with contextlib.suppress(OSError), open(f"/proc/{entry}/environ", "rb") as file:
            settings = dict(line.partition(b"=")[::2] for line in file.read().split(b"\0"))
            # Without a directory it is of no run yet: a torchrun that a slot has in waiting.
            if TAG_NAME in settings and DIRECTORY_NAME in settings:
                directory = Path(os.fsdecode(settings[DIRECTORY_NAME]))
                if root is None or directory.is_relative_to(root):
                    return int(entry)
    return None


def shut_down(settings: Settings) -> bool:
    """Bring the results to safety and stop the pod; False where the pod has to go on."""
    if settings.dry_run:
        for command in filter(None, [settings.sync, settings.stop]):
            say(f"dry run: would do `{command}`")
        return True
    if settings.sync is not None:
        if not succeeds(settings.sync):
            return False
        work = what_is_at_work(settings)
        if work is not None:
            say(f"not stopped: {work}, which began during the sync")
            return False
    return succeeds(settings.stop)


def succeeds(command: str) -> bool:
    """Whether a command does; that it did not is said."""
    say(f"does `{command}`")
    code = subprocess.run(command, shell=True, stdin=subprocess.DEVNULL, check=False).returncode
    if code != 0:
        say(f"`{command}` failed with exit code {code}; it is tried again")
    return code == 0


def say(text: str) -> None:
    print(f"{time.strftime('%Y-%m-%d %H:%M:%S')} idle guard: {text}", flush=True)


def main() -> int:
    parser = argparse.ArgumentParser(prog="idle_guard.py", description=__doc__.splitlines()[0])
    parser.add_argument("--root", type=Path, required=True, metavar="DIR", help="of the sweeps")
    parser.add_argument("--minutes", type=float, required=True, metavar="N", help="idle so long")
    parser.add_argument("--stop", required=True, metavar="COMMAND", help="stops the pod")
    parser.add_argument("--sync", metavar="COMMAND", help="before it; must succeed")
    parser.add_argument(
        "--busy", action="append", default=[], metavar="COMMAND", help="exit code 0: not idle"
    )
    parser.add_argument("--own", action="store_true", help="runs of other roots do not count")
    parser.add_argument("--dry-run", action="store_true", help="say what would be done, and end")
    arguments = parser.parse_args()
    if not arguments.minutes > 0:
        parser.error(f"--minutes: expected more than 0, found {arguments.minutes:g}")
    guard(
        Settings(
            root=arguments.root.absolute(),
            idle_seconds=60 * arguments.minutes,
            stop=arguments.stop,
            sync=arguments.sync,
            busy=arguments.busy,
            own=arguments.own,
            dry_run=arguments.dry_run,
        )
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
