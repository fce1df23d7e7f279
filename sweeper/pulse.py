"""What the driver says of itself while it works: its slots, what it waits for, that it lives.

It is kept in one small file beside the ledger, for those who look on. Nothing depends on it: a
sweep goes on by its ledger alone.
"""

from __future__ import annotations

import contextlib
import enum
import fcntl
import json
import socket
import time
from dataclasses import asdict, dataclass
from pathlib import Path

from pydantic import TypeAdapter, ValidationError

from sweeper.layout import SweepDir
from sweeper.stages import Stage

# A driver on another host, whose lock may not be seen from here, lives if it spoke so recently.
FRESH_SECONDS = 30.0


class SlotState(enum.StrEnum):
    OPENING = "opening"  # it waits for its place on the cluster
    IDLE = "idle"
    BUSY = "busy"


@dataclass(frozen=True, kw_only=True)
class SlotPulse:
    """One slot. Where it is is known once it is open, what it runs while it is busy.

    `pool` is `runs` or `packing`; `gpus` are separated by commas, as in the ledger.
    """

    pool: str
    state: SlotState
    node: str | None = None
    host: str | None = None
    gpus: str = ""
    trial: str | None = None
    seed: int | None = None
    stage: Stage | None = None


@dataclass(frozen=True, kw_only=True)
class Quarantined:
    """A node that takes no more runs."""

    node: str
    host: str
    why: str


@dataclass(frozen=True, kw_only=True)
class Pulse:
    """The driver at the time `t`; `started` is when it began. Unix seconds.

    `paused` is why nothing is launched at present; `waiting` counts what waits for a slot or for
    its next try, `backing_off` only the latter.
    """

    pid: int
    host: str
    started: float
    t: float
    paused: str | None = None
    slots: tuple[SlotPulse, ...] = ()
    quarantined: tuple[Quarantined, ...] = ()
    waiting: int = 0
    backing_off: int = 0


_PULSE = TypeAdapter(Pulse)


def write(path: Path, pulse: Pulse) -> None:
    """Put a pulse in place of the last one, by rename; left out where it cannot be written."""
    partial = path.with_name(path.name + ".partial")
    with contextlib.suppress(OSError):
        partial.write_text(json.dumps(asdict(pulse)))
        partial.replace(path)


def read(path: Path) -> Pulse | None:
    """The last pulse; None where there is none, or none of this version."""
    try:
        return _PULSE.validate_json(path.read_bytes())
    except (OSError, ValidationError):
        return None


def is_alive(sweep: SweepDir, pulse: Pulse | None = None) -> bool:
    """Whether a driver is at work: it holds the sweep's lock, or spoke just now on another host."""
    if _is_locked(sweep.lock):
        return True
    elsewhere = pulse is not None and pulse.host != socket.gethostname()
    return pulse is not None and elsewhere and abs(time.time() - pulse.t) < FRESH_SECONDS


def _is_locked(path: Path) -> bool:
    """Whether another process holds a lock file; one that is not there is held by nobody."""
    try:
        with path.open("rb") as file:
            # Shared, so that two who look do not take each other for a driver; released on close.
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        return False
    return False
