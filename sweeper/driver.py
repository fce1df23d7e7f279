"""The one driver of a sweep: the lock that it holds, and the signals that stop it."""

from __future__ import annotations

import contextlib
import fcntl
import math
import os
import signal
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TextIO

from sweeper.errors import UserError
from sweeper.layout import SweepDir

# Two of the same signal within so short a time are one.
SAME_SECONDS = 0.5
# Those who look at a sweep hold its lock for a moment, to see whether it has a driver.
LOCK_TRIES, LOCK_PAUSE_SECONDS = 4, 0.05


class Interrupts:
    """SIGINT and SIGTERM as a count: one asks the sweep to stop, two stop it at once."""

    def __init__(self) -> None:
        self.count = 0
        self.signal: int | None = None
        self._terminated = -math.inf

    @contextmanager
    def catch(self) -> Iterator[Interrupts]:
        """Handle the signals here for the time of a `with` block, in the main thread."""
        before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
        for number in before:
            signal.signal(number, self._receive)
        try:
            yield self
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _receive(self, number: int, _frame: object) -> None:
        now = time.monotonic()
        # A whole process group that is told to end hears it here, and from the keeper once more.
        if number == signal.SIGTERM and now - self._terminated < SAME_SECONDS:
            return
        if number == signal.SIGTERM:
            self._terminated = now
        self.count += 1
        self.signal = number


@contextmanager
def hold(sweep: SweepDir) -> Iterator[None]:
    """Be the one driver of a sweep, whose directory is made here.

    Raises UserError when there is another driver, or when nothing can be written there.
    """
    try:
        sweep.path.mkdir(parents=True, exist_ok=True)
        file = sweep.lock.open("a+")
    except OSError as error:
        raise UserError(f"{sweep.path}: cannot be written to: {error.strerror}") from error
    with file:
        try:
            _lock(file)
        except BlockingIOError:
            file.seek(0)
            raise UserError(
                f"sweep {sweep.name!r} is being run already, by {file.read().strip()}; "
                f"look at it with `sweeper status {sweep.name}`"
            ) from None
        file.truncate(0)
        file.write(f"process {os.getpid()} on {socket.gethostname()}")
        file.flush()
        yield


def _lock(file: TextIO) -> None:
    """Take the lock; BlockingIOError when another holds it, and not just to see whether it can."""
    for _ in range(LOCK_TRIES - 1):
        with contextlib.suppress(BlockingIOError):
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return
        time.sleep(LOCK_PAUSE_SECONDS)
    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
