"""Room on the sweep's disk: what a run needs of it, what there is, and what can go."""

from __future__ import annotations

import errno
import os
import shutil
import tempfile
from collections.abc import Iterable
from pathlib import Path

# With less than this, whatever has just failed for no better reason failed for want of room.
FULL_BYTES = 1 << 20
NO_ROOM = (errno.ENOSPC, errno.EDQUOT)


def free_bytes(path: Path) -> int:
    """What an ordinary process may still write on the disk of `path`."""
    return shutil.disk_usage(path).free


def size_of(directory: Path) -> int:
    """What the files below a directory take."""
    sizes = (path.lstat().st_size for path in directory.rglob("*") if path.is_file())
    try:
        return sum(sizes)
    except OSError:
        return 0  # it is being removed just now


def shortage(path: Path, *, run_bytes: int, at_work: int, reserve_bytes: int) -> str | None:
    """Why another run must wait for room, as a sentence; None where there is enough.

    Every run at work may still write as much as the largest so far has, and so may the next.
    """
    needed = run_bytes * (at_work + 1) + reserve_bytes
    free = free_bytes(path)
    if free >= needed:
        return None
    return (
        f"{path} has {_mb(free)} free, the next run wants {_mb(needed)} (what the last have "
        f"written, and [disk] reserve_bytes = {reserve_bytes}); make room there"
    )


def refusal(path: Path) -> str | None:
    """Why nothing can be written on the disk of `path`, as a sentence; None where something can.

    It may have bytes free: where a quota or the number of files is what has run out.
    """
    try:
        with tempfile.TemporaryDirectory(prefix=".room-", dir=path) as directory:
            # Zeros would take no room where the disk compresses.
            Path(directory, "probe").write_bytes(os.urandom(FULL_BYTES))
    except OSError as error:
        if error.errno not in NO_ROOM:
            raise
        return f"{path}: {error.strerror}; make room there"
    return None


def remove_matching(directory: Path, patterns: Iterable[str]) -> int:
    """Remove a run's files of these patterns; how many bytes have gone."""
    gone = 0
    for pattern in patterns:
        for path in directory.glob(pattern):
            if path.is_file() and not path.is_symlink():
                gone += path.stat().st_size
                path.unlink()
    return gone


def _mb(size: int) -> str:
    return f"{size / 1e6:,.0f} MB"
