"""What a smoke run's processes hold of the machine, and their folder removed whatever is in it.

Only what nothing else limits is counted here: disk space, also of files without a name, and
threads. What cannot be seen any more, as its process has ended, counts as nothing.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import stat
import subprocess
from collections.abc import Iterator
from pathlib import Path

import psutil

from sweeper.evidence.smoke_lockdown import FILE_BYTES

MOST_ENTRIES = 10_000  # of a folder that are counted
MOST_THREADS = 1_000  # hundreds are an honest script's, on a machine with many cores
BLOCK = 512  # bytes, of st_blocks on every file system


def overused(pid: int, folder: Path, most_bytes: int) -> str | None:
    """What a process and those below it hold too much of; None where nothing."""
    written, threads = _in_folder(folder), 0
    with contextlib.suppress(psutil.Error):
        first = psutil.Process(pid)
        for process in [first, *first.children(recursive=True)]:
            with contextlib.suppress(psutil.Error):
                threads += process.num_threads()
            written += _unlinked(process.pid, folder)
    if written > most_bytes:
        return f"it wrote more than {most_bytes >> 20} MiB"
    if threads > MOST_THREADS:
        return f"it started more than {MOST_THREADS:,} threads"
    return None


def remove(scratch: Path) -> None:
    """A folder that a hostile script may have made unreadable, or deeper than Python can go."""
    for entry in _entries(scratch):
        if entry.is_dir(follow_symlinks=False):
            with contextlib.suppress(OSError):
                os.chmod(entry.path, 0o700)
    with contextlib.suppress(RecursionError):
        shutil.rmtree(scratch, ignore_errors=True)
    if scratch.exists():
        subprocess.run(["rm", "-rf", "--", str(scratch)], check=False, capture_output=True)


def _entries(folder: Path) -> Iterator[os.DirEntry[str]]:
    """All that is below a folder, as far as it can be seen; a folder before what is in it."""
    waiting = [str(folder)]
    with contextlib.suppress(OSError):
        os.chmod(folder, 0o700)
    while waiting:
        with contextlib.suppress(OSError), os.scandir(waiting.pop()) as found:
            for entry in found:
                yield entry
                if entry.is_dir(follow_symlinks=False):
                    waiting.append(entry.path)


def _in_folder(folder: Path) -> int:
    """Bytes in a folder; where it has more entries than are counted, more than any limit."""
    total = 0
    for number, entry in enumerate(_entries(folder)):
        if number > MOST_ENTRIES:
            return 1 << 62
        with contextlib.suppress(OSError):
            found = entry.stat(follow_symlinks=False)
            # Space can be had without a size, and a size without space.
            total += max(found.st_size, BLOCK * found.st_blocks)
    return total


def _unlinked(pid: int, folder: Path) -> int:
    """Bytes of files that a process holds open or mapped, and that are in no folder."""
    task, maps = _living_task(pid)
    sizes: dict[int, int] = {}
    with contextlib.suppress(OSError):
        for number in os.listdir(f"{task}/fd"):
            with contextlib.suppress(OSError):
                found = os.stat(f"{task}/fd/{number}")
                if stat.S_ISREG(found.st_mode) and found.st_nlink == 0:
                    sizes[found.st_ino] = BLOCK * found.st_blocks
    # A mapping does not say how large its file is: as large as a file may be.
    inside = f"{folder}{os.sep}"
    for line in maps.split("\n"):
        *_, inode, path = line.split(None, 5) if line.endswith(" (deleted)") else ("0", "")
        if path.startswith(inside):
            sizes.setdefault(int(inode), FILE_BYTES)
    return sum(sizes.values())


def _living_task(pid: int) -> tuple[str, str]:
    """A thread's folder and its mappings; the first thread may have ended before the others.

    All threads have the same files (smoke_lockdown.py).
    """
    tasks = f"/proc/{pid}/task"
    with contextlib.suppress(OSError):
        for number in os.listdir(tasks):
            with contextlib.suppress(OSError):
                maps = Path(tasks, number, "maps").read_text("utf-8", "surrogateescape")
                if maps:
                    return f"{tasks}/{number}", maps
    return tasks, ""
