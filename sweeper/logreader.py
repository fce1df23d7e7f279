"""A log read as it grows: its lines, whatever is in them, as events or as facts."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from sweeper.adapters import LogFacts, LogParser, parse, parse_runs
from sweeper.contract import Event, EventReader
from sweeper.layout import AttemptDir

LINE_BYTES = 16 << 10  # what is longer is cut: no line of interest is
CHUNK_BYTES = 1 << 20


class Lines:
    """Splits a growing file into lines; holds a chunk and the start of one line at most."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._offset = 0
        self._begun = b""  # of a line whose end has not been written yet

    def read(self, *, whole: bool = False) -> Iterator[str]:
        """The lines since the last call; with `whole`, a last one without its end as well."""
        try:
            with self._path.open("rb") as file:
                file.seek(self._offset)
                while data := file.read(CHUNK_BYTES):
                    self._offset += len(data)
                    first, *rest = data.split(b"\n")
                    self._begun = (self._begun + first)[:LINE_BYTES]
                    for following in rest:
                        yield decode(self._begun)
                        self._begun = following[:LINE_BYTES]
        except OSError:
            return
        if whole and self._begun:
            yield decode(self._begun)
            self._begun = b""


def decode(line: bytes) -> str:
    """A line of a log as text. Rubbish in it stays rubbish, and raises nothing.

    Zero bytes go, so that text of two bytes a character is read as well; of a line that overwrites
    itself, as progress bars do, the last state counts.
    """
    line = line[:LINE_BYTES].replace(b"\0", b"").rstrip(b"\r")
    return line.rpartition(b"\r")[2].decode(errors="replace")


def read_log(path: Path) -> LogFacts:
    """What the log of one run says; nothing where there is no log."""
    return parse(Lines(path).read(whole=True))


def read_runs(path: Path) -> list[LogFacts]:
    """What a log says that may hold several runs, in their order."""
    return parse_runs(Lines(path).read(whole=True))


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
