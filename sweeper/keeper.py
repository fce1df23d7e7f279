"""A driver that comes back: Ray ends every process that has lost its cluster's head, at once.

The driver works in a child of this process. Where the child ends without a last word, and the
cluster answers again, another takes up the sweep from its ledger.
"""

from __future__ import annotations

import os
import signal
import sys
import time
import traceback
from collections.abc import Callable
from functools import partial
from types import FrameType

from sweeper.address import why_silent
from sweeper.exits import GO_ON_LATER, INTERRUPTED, OUR_FAULT
from sweeper.guard import PR_SET_PDEATHSIG, prctl

# How long to wait for a head that is gone, and how often to look.
GONE_SECONDS = 900.0
LOOK_SECONDS = 2.0
# A driver that keeps falling soon after its start will not do better the next time.
SOON_SECONDS = 120.0
MAX_FALLS = 3


def keep(drive: Callable[[bool], int], address: str, say: Callable[[str], None], name: str) -> int:
    """Let a child `drive`, again after a loss of the cluster at `address`; its exit code.

    It is told whether it is not the first, and returns the code; it raises nothing. The code is
    GO_ON_LATER where the cluster stays away, INTERRUPTED where the user would not wait.
    To be called before any thread is started, and before Ray is imported.
    """
    falls, again = 0, False
    while True:
        started = time.monotonic()
        code, stopped = _Child(partial(drive, again)).wait()
        again = True
        if code is not None:
            return code
        falls = falls + 1 if time.monotonic() - started < SOON_SECONDS else 1
        lost = "the driver has ended without a word, as Ray's do that lose their cluster"
        if stopped:
            code = INTERRUPTED
        elif falls > MAX_FALLS:
            code = GO_ON_LATER
        else:
            code = _wait_for(address, say, lost)
        if code is not None:
            say(f"{lost}; nothing is lost: `sweeper resume {name}` goes on when there is one again")
            return code
        say(f"{address} answers; the sweep goes on")


def _wait_for(address: str, say: Callable[[str], None], lost: str) -> int | None:
    """Wait until a cluster answers again; the exit code where it does not."""
    deadline = time.monotonic() + GONE_SECONDS
    try:
        say(f"{lost}; waiting for {address} to answer (interrupt to give up)")
        while (silent := why_silent(address, LOOK_SECONDS)) and time.monotonic() < deadline:
            time.sleep(LOOK_SECONDS)
    except KeyboardInterrupt:
        return INTERRUPTED
    return None if silent is None else GO_ON_LATER


class _Child:
    """A fork of this process that drives; it dies with this one, and shares its terminal."""

    def __init__(self, drive: Callable[[], int]) -> None:
        self._word, word_end = os.pipe()
        parent = os.getpid()
        sys.stdout.flush()
        sys.stderr.flush()
        self._pid = os.fork()
        if self._pid == 0:
            os.close(self._word)
            _be_child(drive, parent, word_end)
        os.close(word_end)
        self._stopped = False

    def wait(self) -> tuple[int | None, bool]:
        """Its exit code, None where it ended without a last word; and whether it was to stop."""
        # ^C reaches the child as well; SIGTERM is for this process alone, so it is passed on.
        before = {
            signal.SIGINT: signal.signal(signal.SIGINT, self._note),
            signal.SIGTERM: signal.signal(signal.SIGTERM, self._pass_on),
        }
        try:
            _, status = os.waitpid(self._pid, 0)
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)
        with os.fdopen(self._word, "rb") as word:
            spoke = word.read(1) == b"!"
        return (os.waitstatus_to_exitcode(status) if spoke else None), self._stopped

    def _note(self, _number: int, _frame: FrameType | None) -> None:
        self._stopped = True

    def _pass_on(self, number: int, _frame: FrameType | None) -> None:
        self._stopped = True
        os.kill(self._pid, number)


def _be_child(drive: Callable[[], int], parent: int, word: int) -> None:
    """Drive, say the last word, and end as the process that it is; does not return."""
    code = OUR_FAULT
    try:
        prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != parent:
            os._exit(GO_ON_LATER)
        try:
            code = drive()
        except BaseException:
            traceback.print_exc()  # a fault of ours; trying again would only repeat it
        sys.stdout.flush()
        sys.stderr.flush()
        os.write(word, b"!")
    finally:
        os._exit(code)
