"""Progress of a long operation: a bar on a terminal, a line now and then elsewhere."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import (
    BarColumn,
    DownloadColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)

LINE_SECONDS = 15.0


class Meter:
    """Counts bytes of one task after the other; threads may advance it together."""

    def __init__(self, console: Console | None = None) -> None:
        self._console = console or Console(stderr=True)
        self._bar: Progress | None = None
        self._task: TaskID | None = None
        self._lock = threading.Lock()
        self._done = 0.0

    @contextmanager
    def task(self, what: str, total: float | None) -> Iterator[Meter]:
        """Show `what` for the time of a `with` block; `total` in bytes, None if not known."""
        self._what, self._total, self._done = what, total, 0.0
        self._next_line = time.monotonic() + LINE_SECONDS
        if not self._console.is_terminal:
            self.say(what)
            yield self
            return
        columns = (
            TextColumn("{task.description}"),
            BarColumn(),
            DownloadColumn(),
            TransferSpeedColumn(),
            TimeRemainingColumn(),
        )
        with Progress(*columns, console=self._console) as self._bar:
            self._task = self._bar.add_task(what, total=total)
            yield self
        self._bar = None

    def advance(self, amount: float) -> None:
        with self._lock:
            self._done += amount
            if self._bar is not None and self._task is not None:
                self._bar.advance(self._task, amount)
            elif time.monotonic() >= self._next_line:
                self._next_line = time.monotonic() + LINE_SECONDS
                of = f" of {self._total / 1e6:.1f}" if self._total else ""
                self.say(f"{self._what}: {self._done / 1e6:.1f}{of} MB")

    def say(self, text: str) -> None:
        """One line for people."""
        self._console.print(text, markup=False, highlight=False, soft_wrap=True)
