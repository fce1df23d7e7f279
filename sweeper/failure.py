"""What a run died of, where no event says it: by torchrun's summary and the ranks' own logs."""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from sweeper.layout import AttemptDir
from sweeper.logreader import Lines

TAIL_BYTES = 4_000
# torchrun's own words about the first rank that failed.
FAILED_RANK = re.compile(r"failed \(exitcode: (-?\d+)\) local_rank: (\d+)")
RANK_PREFIX = re.compile(r"^\[(?:rank|default)\d+\]:\s?")
BEGINNING = "Traceback (most recent call last):"
# The line after the last frame: an exception's name, and what it says.
EXCEPTION = re.compile(r"^(?:[A-Za-z_]\w*\.)*[A-Z]\w*(?::.*)?$")
NO_SPACE = re.compile(r"No space left on device|Disk quota exceeded|\[Errno 28\]")
# Memory shared between processes is a file system too, of a size of its own: /dev/shm.
SHARED_MEMORY = re.compile(r"/dev/shm|shared memory", re.IGNORECASE)
OUT_OF_MEMORY = re.compile(r"OutOfMemoryError|CUDA out of memory|CUDA error: out of memory")
NUMBERLESS = r"\b(?:nan|inf|non-?finite|not finite)\b"
NONFINITE = re.compile(rf"\bloss\b.{{0,40}}{NUMBERLESS}|{NUMBERLESS}.{{0,40}}\bloss\b", re.I)


@dataclass(frozen=True, kw_only=True)
class Failure:
    """What is known: `kind` is oom, nonfinite, space or crash; `text` what to show of the log.

    `rank` and `code` are of the first rank that failed, None where torchrun does not say.
    """

    kind: str = "crash"
    exception: str | None = None
    text: str | None = None
    rank: int | None = None
    code: int | None = None


def find_failure(attempt: AttemptDir) -> Failure:
    """The first traceback of the first rank that failed, else the end of what was said."""
    launcher = tail(attempt.stderr)
    failed = FAILED_RANK.search(launcher)
    if failed is None:
        return _of_logs([attempt.stderr, attempt.stdout], launcher)
    code, rank = int(failed[1]), int(failed[2])
    logs = [path for stream in ("stderr", "stdout") for path in attempt.rank_logs(rank, stream)]
    said = [text for path in logs if (text := tail(path))]
    return _of_logs(logs, said[0] if said else launcher, rank, code)


def _of_logs(
    logs: Iterable[Path], otherwise: str, rank: int | None = None, code: int | None = None
) -> Failure:
    for path in logs:
        lines = first_traceback(path)
        if lines:
            text = "\n".join(lines)
            exception = next((line for line in lines if EXCEPTION.match(line)), None)
            kind = classify(exception or "", text)
            return Failure(kind=kind, exception=exception, text=text, rank=rank, code=code)
    return Failure(kind=classify("", otherwise), text=otherwise or None, rank=rank, code=code)


def classify(exception: str, text: str) -> str:
    """What kind of failure an exception is, or the text around it where there is none."""
    if is_full_disk(exception or text):
        return "space"
    if OUT_OF_MEMORY.search(exception or text):
        return "oom"
    return "nonfinite" if NONFINITE.search(exception) else "crash"


def is_full_disk(text: str) -> bool:
    """Whether one of its lines says that a disk is full."""
    return any(
        NO_SPACE.search(line) and not SHARED_MEMORY.search(line) for line in text.splitlines()
    )


def first_traceback(path: Path) -> list[str]:
    """The first traceback in a log, with what follows it, at most so much; empty without one."""
    found: list[str] = []
    size = 0
    for line in Lines(path).read(whole=True):
        text = RANK_PREFIX.sub("", line)
        if not found and not text.startswith(BEGINNING):
            continue
        size += len(text) + 1
        if size > TAIL_BYTES:
            break
        found.append(text.rstrip())
    return found


def tail(path: Path) -> str:
    """The last few thousand bytes of a text file, from a line's start; empty when it is missing."""
    with contextlib.suppress(OSError), path.open("rb") as file:
        size = file.seek(0, os.SEEK_END)
        file.seek(max(0, size - TAIL_BYTES))
        text = file.read().decode(errors="replace")
        return text if size <= TAIL_BYTES else text.partition("\n")[2]
    return ""
