"""The ends of runs' logs for a page: as much as tells what happened, and no more."""

from __future__ import annotations

import html
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from sweeper.layout import AttemptDir, SweepDir
from sweeper.ledger import Ledger
from sweeper.logreader import decode, find_logs
from sweeper.logs import Wish, launches
from sweeper.page.html import clean
from sweeper.rows import AttemptRow

# Of one log, and of all of a page; in bytes of the page.
MOST_LINES, MOST_BYTES, MOST_IN_ALL = 200, 20_000, 3_000_000
LEAST_BYTES = 1_500  # less of a log tells nothing


@dataclass(frozen=True, kw_only=True)
class Tail:
    """The end of a log; `whole` where that is all of it. `path` is relative to the sweep's."""

    path: Path
    text: str
    whole: bool


def read_tails(
    sweep: SweepDir,
    ledger: Ledger,
    wanted: Iterable[tuple[str, int]],
    last: Mapping[tuple[str, int], AttemptRow],
) -> dict[tuple[str, int], Tail]:
    """What rank 0 of each run's last attempt has printed last; the first wanted are the last to go.

    A run without a log is left out. One whose log does not fit any more has a path and no text.
    """
    runs = [run for run in wanted if run in last]
    share = min(MOST_BYTES, max(LEAST_BYTES, MOST_IN_ALL // max(1, len(runs))))
    left, tails = MOST_IN_ALL, {}
    for run in runs:
        path = _log_of(sweep, ledger, last[run])
        if path is None:
            continue
        tail = read_tail(path, share if left >= share else 0)
        left -= len(html.escape(tail.text).encode())
        tails[run] = Tail(path=_relative(path, sweep.path), text=tail.text, whole=tail.whole)
    return tails


def read_tail(path: Path, most_bytes: int) -> Tail:
    """The last lines of a file, so many bytes of a page at most."""
    try:
        with path.open("rb") as file:
            size = file.seek(0, 2)
            file.seek(max(0, size - most_bytes))
            data = file.read()
    except OSError:
        size, data = 0, b""
    lines = [clean(decode(line)) for line in data.split(b"\n")]
    if lines and not lines[-1]:
        lines.pop()
    kept: list[str] = []
    for line in reversed(lines[1:] if len(data) < size else lines):
        most_bytes -= len(html.escape(line).encode()) + 1
        if most_bytes < 0 or len(kept) == MOST_LINES:
            break
        kept.append(line)
    whole = len(data) == size and len(kept) == len(lines)
    return Tail(path=path, text="\n".join(reversed(kept)), whole=whole)


def _log_of(sweep: SweepDir, ledger: Ledger, attempt: AttemptRow) -> Path | None:
    """The log of the last stage that has one; else what the run has written for itself."""
    logs = [launch.log(Wish()) for launch in launches(sweep, ledger, attempt)]
    found = [path for path in logs if path is not None and path.stat().st_size > 0]
    return (
        found[-1] if found else next(iter(find_logs(AttemptDir(sweep.path / attempt.path))), None)
    )


def _relative(path: Path, base: Path) -> Path:
    return path.relative_to(base) if path.is_relative_to(base) else path
