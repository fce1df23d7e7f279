"""A run that makes no progress: seen on the host where it works, with a look at its stacks.

Progress is an event, or growth of any file in its directory. How long to wait for it depends on
the phase: training says something every few seconds, compiling nothing for many minutes.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path

import psutil

from sweeper.layout import AttemptDir
from sweeper.logreader import RunReader

# Phase -> seconds without progress after which a run is taken for hung.
PHASE_SECONDS = {"train": 300.0, "hessians": 600.0, "eval": 600.0}
OTHER_SECONDS = 1200.0
DUMP_SECONDS = 10.0


@dataclass
class StallWatch:
    """Watches the directory of a stage; `override` holds for all phases, 0 for never."""

    attempt: AttemptDir
    override: float | None = None
    events_from: int = 0
    _phase: str = "setup"
    _seen: tuple[tuple[str, int, int], ...] = ()
    _since: float | None = None
    _events: RunReader = field(init=False)

    def __post_init__(self) -> None:
        self._events = RunReader(self.attempt, self.events_from)

    @property
    def limit(self) -> float:
        """How long the phase at hand may go on without progress; 0 for ever."""
        if self.override is not None:
            return self.override
        return PHASE_SECONDS.get(self._phase, OTHER_SECONDS)

    def check(self, now: float) -> str | None:
        """Why the run is taken for hung, as a sentence; None while it is not."""
        for event in self._events.read():
            if event["kind"] == "phase":
                self._phase = str(event.get("phase"))
        seen = _files(self.attempt.path)
        if self._since is None or seen != self._seen:
            self._seen, self._since = seen, now
        if not self.limit or now - self._since < self.limit:
            return None
        return f"no event and no growth of a log for {self.limit:g} s in phase {self._phase}"


def _files(directory: Path) -> tuple[tuple[str, int, int], ...]:
    """Every file below a directory with its size and the time of its last change."""
    found = []
    for root, _, names in os.walk(directory):
        for name in names:
            with contextlib.suppress(OSError):
                facts = os.stat(os.path.join(root, name))
                found.append((os.path.join(root, name), facts.st_size, facts.st_mtime_ns))
    return tuple(sorted(found))


def dump_stacks(root: int, directory: Path) -> list[Path]:
    """Write what every Python process below `root` is doing, each into a file of its own.

    By py-spy, where it is installed and may look; what it cannot see it says in the file.
    """
    beside = Path(sys.executable).with_name("py-spy")
    program = str(beside) if beside.exists() else shutil.which("py-spy")
    if program is None:
        return []
    written = []
    with contextlib.suppress(psutil.Error, OSError):
        directory.mkdir(parents=True, exist_ok=True)
        for process in psutil.Process(root).children(recursive=True):
            path = directory / f"{process.pid}.txt"
            with contextlib.suppress(psutil.Error, OSError, subprocess.TimeoutExpired):
                rank = process.environ().get("RANK")
                head = f"{'' if rank is None else f'rank {rank}: '}{' '.join(process.cmdline())}\n"
                # Not stopping the process first: one that is stopped already would never answer.
                done = subprocess.run(
                    [program, "dump", "--nonblocking", "--pid", str(process.pid)],
                    capture_output=True,
                    text=True,
                    timeout=DUMP_SECONDS,
                    check=False,
                )
                path.write_text(f"{head}{process.status()}\n{done.stdout}{done.stderr}")
                written.append(path)
    return written
