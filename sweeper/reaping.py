"""The processes of a sweep on this host, found by the tag that each carries, and ended."""

from __future__ import annotations

import contextlib
import os
import re
import time
from collections.abc import Callable, Collection
from dataclasses import dataclass

import psutil

from sweeper import guard

TAG_NAME = guard.TAG_NAME
TAG_ENTRY = re.compile(rb"(?:^|\0)SWEEPER_TAG=([^\0]*)")
LAUNCH_DIGITS = 19  # of the largest number that a ledger gives
END_SECONDS = 10.0
# Of a process in its exit: its memory, and with it its environment, is already gone.
EXITING_FLAG, FLAGS_FIELD = 0x4, 6  # PF_EXITING, and where the flags follow a process's name
OVER_STATES = ("Z", "X")


@dataclass(frozen=True, kw_only=True)
class Tag:
    """Marks every process of a launch, in its environment, so that a reaper can find it.

    `launch` is the number of a stage in the sweep's ledger: an attempt is launched stage by stage,
    and one of them may be over while another is at work on the same host.
    """

    sweep: str
    session: str
    launch: int

    def __str__(self) -> str:
        return f"{self.sweep}:{self.session}:{self.launch}"

    @property
    def padded(self) -> str:
        """The same tag, as long as that of any other launch of the session."""
        return f"{self.sweep}:{self.session}:{self.launch:0{LAUNCH_DIGITS}}"

    @classmethod
    def parse(cls, text: str) -> Tag | None:
        sweep, _, rest = text.partition(":")
        session, _, launch = rest.partition(":")
        return cls(sweep=sweep, session=session, launch=int(launch)) if launch.isdecimal() else None


def reap_leftovers(tag: Tag, dead: Collection[int] = ()) -> int:
    """End processes of the same sweep that nobody owns any more; returns how many.

    Those are the ones of another session (only one driver at a time holds a sweep), and in this
    session the ones of launches that are known to be over.
    """
    return end_tagged(
        lambda found: (
            found.sweep == tag.sweep and (found.session != tag.session or found.launch in dead)
        )
    )


def end_tagged(wanted: Callable[[Tag], bool]) -> int:
    """SIGKILL every process of this host whose tag is wanted; returns how many were found.

    They run no more then, as a rule; one that the kernel does not let go of is waited for in vain.
    So are those that are just ending, since their tag cannot be read any more.
    """
    found = [process for process, tag in tagged_processes() if wanted(tag)]
    for process in found:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()
    leaving = [entry for entry in _entries() if _is_exiting(entry)]
    deadline = time.monotonic() + END_SECONDS
    while any(map(_runs, found)) or any(map(_is_exiting, leaving)):
        if time.monotonic() >= deadline:
            break
        time.sleep(0.01)
    return len(found)


def _entries() -> list[str]:
    return [entry for entry in os.listdir("/proc") if entry.isdigit()]


def _is_exiting(entry: str) -> bool:
    """Whether a process has begun to end and has not come to it."""
    with contextlib.suppress(OSError), open(f"/proc/{entry}/stat", "rb") as file:
        # The name may hold anything; what follows it does not.
        fields = file.read().rpartition(b")")[2].split()
        state, flags = fields[0].decode(), int(fields[FLAGS_FIELD])
        return bool(flags & EXITING_FLAG) and state not in OVER_STATES
    return False


def _runs(process: psutil.Process) -> bool:
    """Whether it has not ended; who adopted it may never take note of that."""
    with contextlib.suppress(psutil.NoSuchProcess):
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    return False


def tagged_processes() -> list[tuple[psutil.Process, Tag]]:
    """The processes of this host, this one's user, that carry a sweep's tag."""
    tagged = []
    for entry in _entries():
        if int(entry) == os.getpid():
            continue
        # Read as it lies there: this is done before each launch, on hosts with many processes.
        with (
            contextlib.suppress(psutil.Error, OSError),
            open(f"/proc/{entry}/environ", "rb") as file,
        ):
            found = TAG_ENTRY.search(file.read())
            tag = Tag.parse(found[1].decode(errors="replace")) if found else None
            if tag is not None:
                tagged.append((psutil.Process(int(entry)), tag))
    return tagged
