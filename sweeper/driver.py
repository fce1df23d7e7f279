"""The one driver of a sweep: the lock that it holds, and the signals that stop it."""

from __future__ import annotations

import fcntl
import os
import signal
import socket
from collections.abc import Iterator
from contextlib import contextmanager

from sweeper.errors import UserError
from sweeper.layout import SweepDir


class Interrupts:
    """SIGINT and SIGTERM as a count: one asks the sweep to stop, two stop it at once."""

    def __init__(self) -> None:
        self.count = 0
        self.signal: int | None = None

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
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
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
