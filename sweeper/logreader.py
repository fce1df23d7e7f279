"""A log read as it grows: its lines, whatever is in them, as events or as facts."""

from __future__ import annotations

import errno
import stat
from collections.abc import Iterator
from pathlib import Path

from sweeper.adapters import LogFacts, LogParser, runs_of
from sweeper.contract import Event, EventReader
from sweeper.layout import AttemptDir

LINE_BYTES = 16 << 10  # what is longer is cut: no line of interest is
CHUNK_BYTES = 1 << 20
EMPTY = (b"", b"\r")


class Lines:
    """Splits a growing file into lines; holds a chunk and the start of one line at most.

    A file that cannot be read, or is none (a folder, a pipe), has no lines; with `strict` reading
    it raises OSError.
    """

    def __init__(self, path: Path, *, strict: bool = False) -> None:
        self._path = path
        self._strict = strict
        self._offset = 0
        self._number = 0  # of the last line that has ended
        self._begun = b""  # of a line whose end has not been written yet

    def read(self, *, whole: bool = False) -> Iterator[str]:
        """The lines since the last call; with `whole`, a last one without its end as well."""
        for chunk in self._chunks():
            for line in self._split(chunk):
                yield "" if line in EMPTY else decode(line)
        if whole and self._begun:
            yield decode(self._ended())

    def numbered(self, *, whole: bool = False) -> Iterator[tuple[int, str]]:
        """The same, each with its number from 1; of empty lines in a row only the first is given.

        So a log that is nothing but them is read fast.
        """
        empty = False
        for chunk in self._chunks():
            first = self._number + 1
            for number, line in enumerate(self._split(chunk), start=first):
                was_empty, empty = empty, line in EMPTY
                if not (empty and was_empty):
                    yield number, decode(line)
        if whole and self._begun:
            yield self._number + 1, decode(self._ended())

    def _chunks(self) -> Iterator[bytes]:
        try:
            # To open a pipe would be to wait for who writes into it.
            if not stat.S_ISREG(self._path.stat().st_mode):
                raise OSError(errno.EINVAL, "Not a regular file", str(self._path))
            with self._path.open("rb") as file:
                file.seek(self._offset)
                while data := file.read(CHUNK_BYTES):
                    self._offset += len(data)
                    yield data
        except OSError:
            if self._strict:
                raise

    def _split(self, chunk: bytes) -> list[bytes]:
        """The lines that end in a chunk; what it has begun of a further one is kept."""
        lines = chunk.split(b"\n")
        lines[0] = self._begun + lines[0]
        self._begun = _cut(lines.pop())
        self._number += len(lines)
        return lines

    def _ended(self) -> bytes:
        line, self._begun = self._begun, b""
        self._number += 1
        return line


def _cut(line: bytes) -> bytes:
    """What counts of a line that goes on: a long one that overwrites itself has its last state."""
    if len(line) <= LINE_BYTES:
        return line
    line = line.replace(b"\0", b"")
    end = b"\r" if line.endswith(b"\r") else b""  # what follows may overwrite it, or be its end
    return _last_state(line)[:LINE_BYTES] + end


def _last_state(line: bytes) -> bytes:
    return line.rstrip(b"\r").rpartition(b"\r")[2]


def decode(line: bytes) -> str:
    """A line of a log as text. Rubbish in it stays rubbish, and raises nothing.

    Zero bytes go, so that text of two bytes a character is read as well; of a line that overwrites
    itself, as progress bars do, the last state counts.
    """
    return _last_state(line.replace(b"\0", b""))[:LINE_BYTES].decode(errors="replace")


def read_log(path: Path) -> LogFacts:
    """What the log of one run says; nothing where there is no log."""
    parser = LogParser()
    for number, line in Lines(path).numbered(whole=True):
        parser.feed(line, number)
    return parser.facts()


def read_runs(path: Path, *, strict: bool = False) -> list[LogFacts]:
    """What a log says that may hold several runs, in their order.

    With `strict` a log that cannot be read, or is no regular file, raises OSError.
    """
    return runs_of(Lines(path, strict=strict).numbered(whole=True))


class LogReader:
    """Reads a log as the events that its run would have written, had it known the contract."""

    def __init__(self, path: Path) -> None:
        self._lines = Lines(path)
        self._parser = LogParser()

    def read(self) -> list[Event]:
        """The events since the last call; a torn last line waits for its rest."""
        return [event for line in self._lines.read() for event in self._parser.feed(line)]


class RunReader:
    """Reads a run's events: those it writes, or, where it writes none, those its log tells."""

    def __init__(self, attempt: AttemptDir, offset: int = 0) -> None:
        """Reads events from so many bytes on, as `EventReader` does."""
        self._attempt = attempt
        self._events = EventReader(attempt.events, offset)
        self._path: Path | None = None
        self._log: LogReader | None = None

    def read(self) -> list[Event]:
        """The events since the last call."""
        # An empty one is only the place for what a slot may bring home.
        if _size(self._attempt.events) > 0:
            return self._events.read()
        if self._path is None or self._path == self._attempt.stdout:
            # What torchrun says itself may be there before what its ranks say.
            path = next(iter(find_logs(self._attempt)), None)
            if path is not None and path != self._path:
                self._path, self._log = path, LogReader(path)
        return [] if self._log is None else self._log.read()


def find_logs(attempt: AttemptDir) -> list[Path]:
    """The logs of a run that hold something, the one that tells most first.

    That is what the first rank prints; then what the launched process does, which is the script
    itself where there is no torchrun; then files that the script has written for itself.
    """
    printed = [*reversed(attempt.rank_logs(0, "stdout")), attempt.stdout]
    own = sorted((attempt.path / "logs").glob("*.txt"), key=_modified, reverse=True)
    return [path for path in [*printed, *own] if _size(path) > 0]


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        return 0


def _modified(path: Path) -> float:
    try:
        return path.stat().st_mtime
    except OSError:
        return 0.0
