"""A sweep's results put elsewhere as well, as soon as they are there: `[storage] url`.

A path or any URL that fsspec knows. A thread of its own does it, so that the sweep never waits for
a slow or absent storage; what cannot be put is said, and tried again. It looks there as it does
here: <url>/<sweep>/attempts/…, with a consistent copy of the ledger.
"""

from __future__ import annotations

import contextlib
import queue
import secrets
import tempfile
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sweeper.errors import UserError
from sweeper.layout import SweepDir
from sweeper.outbox import LEDGER, copy_ledger, digest, is_result, results

# Where a file can be renamed, so that it appears whole; on S3 and the like a put is all or nothing.
RENAMES = {"file", "local", "memory", "sftp", "ssh", "smb", "hdfs", "webhdfs"}
EVERY_SECONDS = 60.0  # the ledger and the reports, while the sweep runs
FIRST_PAUSE_SECONDS, LONGEST_PAUSE_SECONDS = 5.0, 300.0  # before what failed is tried again
CHECK_SECONDS = 20.0
# What will not pass: an unknown kind of URL, a package that is lacking, no right to write there.
LASTING = (
    *(ImportError, ValueError, NotImplementedError),
    *(PermissionError, FileNotFoundError, NotADirectoryError, FileExistsError),
)


def check(url: str) -> None:
    """UserError when nothing can be put there, for a reason that will not pass.

    A storage that does not answer just now is no such reason: it is tried again and again.
    """
    errors: list[Exception] = []
    probe = threading.Thread(target=_probe, args=(url, errors), daemon=True)
    probe.start()
    probe.join(CHECK_SECONDS)
    if errors and isinstance(errors[0], LASTING):
        raise UserError(f"storage.url = {url!r}: {_said(errors[0])}") from errors[0]


def _probe(url: str, errors: list[Exception]) -> None:
    """Put a file there and remove it."""
    try:
        place = Place.of(url)
        with tempfile.TemporaryDirectory(prefix="sweeper-storage-") as scratch:
            probe = Path(scratch) / f".sweeper-probe-{secrets.token_hex(4)}"
            probe.touch()
            place.put(probe, probe.name)
            place.files.rm_file(f"{place.path}/{probe.name}")
    except Exception as error:  # of whatever kind a storage raises
        errors.append(error)


@dataclass(frozen=True)
class Place:
    """A directory of a file system that fsspec knows."""

    files: Any
    path: str

    @classmethod
    def of(cls, url: str) -> Place:
        """Raises ValueError for an unknown kind of URL, ImportError where a package is lacking."""
        import fsspec

        files, path = fsspec.core.url_to_fs(url)
        return cls(files, path.rstrip("/"))

    @property
    def renames(self) -> bool:
        kinds = self.files.protocol
        return not RENAMES.isdisjoint((kinds,) if isinstance(kinds, str) else kinds)

    def put(self, source: Path, name: str) -> None:
        """Put a file under a relative name; where that can be, it appears whole or not at all."""
        target = f"{self.path}/{name}"
        self.files.makedirs(target.rpartition("/")[0], exist_ok=True)
        if not self.renames:
            self.files.put_file(str(source), target)
            return
        partial = f"{target}.{secrets.token_hex(4)}.partial"
        try:
            self.files.put_file(str(source), partial)
            self.files.mv(partial, target)
        except BaseException:
            with contextlib.suppress(Exception):
                self.files.rm_file(partial)
            raise

    def sizes(self) -> dict[str, int]:
        """What lies there already, by relative name."""
        self.files.invalidate_cache()
        found = self.files.find(self.path, detail=True)
        return {
            name.removeprefix(self.path).lstrip("/"): int(facts["size"])
            for name, facts in found.items()
        }


@dataclass
class Store:
    """Puts a sweep's results to its storage, from a thread of its own.

    The calls return at once and may come from one thread at any time. Nothing raises: what goes
    wrong is among the `news`.
    """

    url: str
    sweep: SweepDir
    every: float = EVERY_SECONDS
    pause: float = FIRST_PAUSE_SECONDS
    _orders: queue.SimpleQueue[Path | None] = field(default_factory=queue.SimpleQueue)
    _news: queue.SimpleQueue[str] = field(default_factory=queue.SimpleQueue)
    _put: dict[str, tuple[int, int]] = field(default_factory=dict)
    _ledger: str = ""  # hash of the copy that was put last
    _place: Place | None = None
    _left: set[Path] = field(default_factory=set)
    _closing: threading.Event = field(default_factory=threading.Event)
    _complete: bool = False
    _told: str = ""

    def __post_init__(self) -> None:
        self._thread = threading.Thread(target=self._work, name="storage", daemon=True)
        self._thread.start()

    def put_attempt(self, directory: Path) -> None:
        """An attempt is over: put what it has left."""
        self._orders.put(directory)

    def put_sweep_files(self) -> None:
        """Put the ledger's copy and the reports now, not only once a minute."""
        self._orders.put(self.sweep.path)

    def news(self) -> list[str]:
        """What went wrong since the last call, for the ledger's notes."""
        found = []
        with contextlib.suppress(queue.Empty):
            while True:
                found.append(self._news.get_nowait())
        return found

    def close(self, timeout: float) -> bool:
        """Put all that is not there yet, within a time; whether everything is there.

        Also what an earlier start of the sweep has not managed to put.
        """
        self._closing.set()
        self._orders.put(None)
        self._thread.join(timeout)
        if not self._complete:
            self._news.put(f"not all results are at {self.url}; start the sweep again to put them")
        return self._complete

    # ---- in the thread

    def _work(self) -> None:
        pause, due = 0.0, 0.0
        while not self._closing.is_set():
            self._wait(pause or self.every)
            now = time.monotonic()
            orders = [*self._left, *([self.sweep.path] if now >= due else [])]
            self._left = {order for order in orders if not self._try(order)}
            due = now + self.every if now >= due else due
            pause = self._next_pause(pause)
        self._finish()

    def _wait(self, seconds: float) -> None:
        """Take the orders that come within some seconds, at the latest until there is one."""
        with contextlib.suppress(queue.Empty):
            order = self._orders.get(timeout=seconds)
            while order is not None:
                self._left.add(order)
                order = self._orders.get_nowait()

    def _next_pause(self, before: float) -> float:
        """How long to wait before what failed is tried again; 0 when nothing has."""
        if not self._left:
            return 0.0
        return min(max(self.pause, 2 * before), LONGEST_PAUSE_SECONDS)

    def _finish(self) -> None:
        """Put everything that is not there yet, twice if need be."""
        for _ in range(2):
            if self._try(None):
                self._complete = True
                return
            time.sleep(min(self.pause, 1.0))

    def _try(self, order: Path | None) -> bool:
        """Carry out an order, or put everything that lacks; whether it went well."""
        try:
            if self._place is None:
                place = Place.of(self.url)
                self._place = Place(place.files, f"{place.path}/{self.sweep.name}")
            if order is None:
                self._put_all(self._place)
            elif order == self.sweep.path:
                self._put_top(self._place)
            else:
                for name in results(order):
                    self._put_file(self._place, order / name)
        except Exception as error:  # of whatever kind a storage raises: the sweep goes on
            self._tell(f"results cannot be put to {self.url} just now: {_said(error)}")
            return False
        if self._told:
            self._tell("")
            self._news.put(f"results are put to {self.url} again")
        return True

    def _tell(self, text: str) -> None:
        """Say what is wrong, once."""
        if text and text != self._told:
            self._news.put(text)
        self._told = text

    def _put_all(self, place: Place) -> None:
        there = place.sizes()
        for name in results(self.sweep.path):
            path = self.sweep.path / name
            if there.get(name) != path.stat().st_size:
                self._put.pop(name, None)
            elif "/" in name and name not in self._put:
                continue  # from an earlier start
            self._put_file(place, path)
        self._put_top(place)

    def _put_top(self, place: Place) -> None:
        """The files of the sweep itself; the ledger after what it tells of."""
        for path in sorted(self.sweep.path.iterdir()):
            if is_result(path.name) and path.is_file():
                self._put_file(place, path)
        with tempfile.TemporaryDirectory(prefix="sweeper-storage-") as scratch:
            copy = Path(scratch) / LEDGER
            copy_ledger(self.sweep.ledger, copy)
            found = digest(copy)
            if found != self._ledger:
                place.put(copy, LEDGER)
                self._ledger = found

    def _put_file(self, place: Place, path: Path) -> None:
        """Put one file, unless it is there as it is now."""
        name = path.relative_to(self.sweep.path).as_posix()
        try:
            facts = path.stat()
            state = (facts.st_size, facts.st_mtime_ns)
            if self._put.get(name) != state:
                place.put(path, name)
                self._put[name] = state
        except FileNotFoundError:
            if path.exists():
                raise  # it is the other end that lacks something


def _said(error: Exception) -> str:
    """An error in a line."""
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__
