"""Files between the driver's disk and a slot's, where the one cannot see the other.

`Scratch` is the slot's end, `Shipment` the driver's; what lies between them is a function that
calls a method of the one for the other.
"""

from __future__ import annotations

import contextlib
import fcntl
import io
import os
import shutil
import tarfile
import tempfile
from collections.abc import Callable, Collection, Mapping
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from sweeper.layout import AttemptDir
from sweeper.stages import CHECKPOINT, PACKED, TRAINED

CHUNK_BYTES = 8 << 20
LIVE_FILES = ("events.jsonl",)
# What a script says that writes no events, where it is launched with torchrun or without.
LIVE_LOGS = ("logs/stdout.log", "logs/ranks/*/attempt_0/0/stdout.log")
CODE = ".code"
# Where a run finds the checkpoint of an earlier one, seen from its own directory.
RESUMED = f".resumed/{CHECKPOINT}"
LIVE_BYTES = 1 << 20
SCRATCH_PREFIX = "sweeper-run-"


class Scratch:
    """A directory of this host for one stage of a run at a time; it is locked while it is in use.

    What a slot leaves that was killed, the next one on the host removes.
    """

    def __init__(self) -> None:
        self._scratch: str | None = None
        self._lock = -1

    def make_scratch(self) -> str:
        """Make it anew; its path."""
        self.drop_scratch()
        drop_abandoned()
        while self._scratch is None:
            made = tempfile.mkdtemp(prefix=SCRATCH_PREFIX)
            with contextlib.suppress(OSError):  # another slot has just taken it for abandoned
                self._lock = lock(made)
                self._scratch = made if os.path.isdir(made) else None
        return self._scratch

    def list_files(self) -> list[str]:
        """The names of all files in it."""
        files = sorted(self._root.rglob("*"))
        return [
            str(path.relative_to(self._root))
            for path in files
            if path.is_file() and not path.is_symlink()
        ]

    def read(self, name: str, offset: int, limit: int) -> bytes:
        """Part of a file; empty when it is not there (yet)."""
        try:
            with (self._root / name).open("rb") as file:
                file.seek(offset)
                return file.read(limit)
        except FileNotFoundError:
            return b""

    def append(self, name: str, data: bytes) -> None:
        """Add to a file's end."""
        path = self._root / name
        path.parent.mkdir(exist_ok=True)
        with path.open("ab") as file:
            file.write(data)

    def unpack(self, name: str, data: bytes) -> str:
        """Lay out the files of an archive in a directory below it; that one's path."""
        directory = self._root / name
        with tarfile.open(fileobj=io.BytesIO(data)) as archive:
            # Before 3.11.4 Python had no filter; the archive is our own driver's.
            if hasattr(tarfile, "data_filter"):
                archive.extraction_filter = tarfile.data_filter
            archive.extractall(directory)
        return str(directory)

    def drop_scratch(self) -> None:
        """Remove it, once the driver has all of it."""
        if self._scratch is not None:
            shutil.rmtree(self._scratch, ignore_errors=True)
            os.close(self._lock)
            self._scratch = None

    @property
    def _root(self) -> Path:
        assert self._scratch is not None
        return Path(self._scratch)


def lock(directory: str | Path) -> int:
    """Lock a directory for as long as this process lives, or the file is open that is returned.

    Raises OSError where another process has it, or it is gone.
    """
    file = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(file)
        raise
    return file


def drop_abandoned() -> None:
    """Remove the scratch directories of this host whose slots are no more."""
    for directory in Path(tempfile.gettempdir()).glob(f"{SCRATCH_PREFIX}*"):
        with contextlib.suppress(OSError):  # another slot's, or another user's
            file = lock(directory)
            shutil.rmtree(directory, ignore_errors=True)
            os.close(file)


class Shipment:
    """What goes to a slot before a stage of an attempt, and comes home from it.

    `call` calls a method of the slot's `Scratch`; what it raises comes through. Used from one
    thread, which may wait at every step for as long as a call takes.
    """

    def __init__(
        self,
        attempt: AttemptDir,
        call: Callable[..., Any],
        *,
        follow_logs: bool = False,
        only: Collection[str] = ("*",),
    ) -> None:
        """`follow_logs` where the run may write no events, so that its logs are to be seen.

        `only` are patterns of the files that come home.
        """
        self._attempt = attempt
        self._follow_logs = follow_logs
        self._only = only
        self._call = call
        self._pulled: dict[str, int] = {}  # bytes of each file that are here
        self._begins: dict[str, int] = {}  # where they begin in it: after what was here before
        self._home: set[str] = set()  # files that are whole
        self._pushed: Collection[str] = ()

    def begin(self, more: Mapping[str, Path] | None = None) -> str:
        """A directory on the slot's host, with what the stage needs in it; its path.

        And with `more` files, by their names there.
        """
        directory = str(self._call("make_scratch"))
        sources = {name: self._attempt.path / name for name in self._attempt.stage.needs}
        sources |= more or {}
        self._pushed = sources.keys()
        for name, source in sources.items():
            self._push(name, source)
        return directory

    def send_code(self, code: str, files: Collection[str]) -> str:
        """Bring a snapshot of the code to the slot's host; its directory there."""
        buffer = io.BytesIO()
        with tarfile.open(fileobj=buffer, mode="w") as archive:
            for name in files:
                archive.add(Path(code) / name, name)
        return str(self._call("unpack", CODE, buffer.getvalue()))

    def follow(self) -> None:
        """Bring what the run has written since of the files that grow."""
        for name in LIVE_FILES:
            self._pull(name, limit=LIVE_BYTES)
        if self._follow_logs and not self._pulled["events.jsonl"]:
            for name in filter(self._is_followed, self._call("list_files")):
                self._pull(name, limit=LIVE_BYTES)

    def finish(self) -> None:
        """Bring all files home after the stage; the ones that say it is complete come last.

        May be called again after it has failed on the way.
        """
        files = [name for name in self._call("list_files") if not name.startswith(f"{CODE}/")]
        names = [
            name
            for name in files
            if name not in self._pushed and any(fnmatch(name, pattern) for pattern in self._only)
        ]
        last = (TRAINED, PACKED, self._attempt.result.name, self._attempt.exit.name)
        for name in sorted(names, key=lambda name: last.index(name) if name in last else -1):
            if name not in self._home:
                self._pull(name)
                self._home.add(name)
        self._call("drop_scratch")

    def _is_followed(self, name: str) -> bool:
        return self._follow_logs and any(fnmatch(name, pattern) for pattern in LIVE_LOGS)

    def _push(self, name: str, source: Path) -> None:
        with source.open("rb") as file:
            while data := file.read(CHUNK_BYTES):
                self._call("append", name, data)

    def _pull(self, name: str, limit: int | None = None) -> None:
        """Copy a file from where the last copy ended; a whole one arrives by rename.

        One that grows is added to what earlier stages have left of it.
        """
        target = self._attempt.path / name
        target.parent.mkdir(parents=True, exist_ok=True)
        growing = name in LIVE_FILES or self._is_followed(name)
        partial = target if growing else target.with_name(target.name + ".partial")
        partial.touch()
        begin = self._begins.setdefault(name, partial.stat().st_size if growing else 0)
        offset = self._pulled.setdefault(name, 0)
        with partial.open("r+b") as file:
            # A piece of what could not be written whole, on a full disk, is written again.
            file.seek(begin + offset)
            file.truncate()
            while data := self._call("read", name, offset, limit or CHUNK_BYTES):
                file.write(data)
                file.flush()
                self._pulled[name] = offset = offset + len(data)
                if limit is not None:
                    break
        if not growing:
            partial.replace(target)
