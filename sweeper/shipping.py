"""Files between the driver's disk and a slot's, where the one cannot see the other.

`Scratch` is the slot's end, `Shipment` the driver's; what lies between them is a function that
calls a method of the one for the other.
"""

from __future__ import annotations

import io
import shutil
import tarfile
import tempfile
from collections.abc import Callable, Collection
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from sweeper.layout import AttemptDir
from sweeper.stages import PACKED, TRAINED

CHUNK_BYTES = 8 << 20
LIVE_FILES = ("events.jsonl",)
# What a script says that writes no events, where it is launched with torchrun or without.
LIVE_LOGS = ("logs/stdout.log", "logs/ranks/*/attempt_0/0/stdout.log")
CODE = ".code"
LIVE_BYTES = 1 << 20


class Scratch:
    """A directory of this host for one stage of a run at a time."""

    def __init__(self) -> None:
        self._scratch: str | None = None

    def make_scratch(self) -> str:
        """Make it anew; its path."""
        self.drop_scratch()
        self._scratch = tempfile.mkdtemp(prefix="sweeper-")
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
        with (self._root / name).open("ab") as file:
            file.write(data)

    def unpack(self, name: str, data: bytes) -> str:
        """Lay out the files of an archive in a directory below it; that one's path."""
        directory = self._root / name
        with tarfile.open(fileobj=io.BytesIO(data)) as archive:
            archive.extractall(directory, filter="data")
        return str(directory)

    def drop_scratch(self) -> None:
        """Remove it, once the driver has all of it."""
        if self._scratch is not None:
            shutil.rmtree(self._scratch, ignore_errors=True)
            self._scratch = None

    @property
    def _root(self) -> Path:
        assert self._scratch is not None
        return Path(self._scratch)


class Shipment:
    """What goes to a slot before a stage of an attempt, and comes home from it.

    `call` calls a method of the slot's `Scratch`; what it raises comes through.
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
        self._pulled: dict[str, int] = {}  # bytes of each file
        self._pushed: Collection[str] = ()

    def begin(self) -> str:
        """A directory on the slot's host, with what the stage needs in it; its path."""
        directory = str(self._call("make_scratch"))
        self._pushed = self._attempt.stage.needs
        for name in self._pushed:
            self._push(name)
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
        """Bring all files home after the stage; the ones that say it is complete come last."""
        files = [name for name in self._call("list_files") if not name.startswith(f"{CODE}/")]
        names = [
            name
            for name in files
            if name not in self._pushed and any(fnmatch(name, pattern) for pattern in self._only)
        ]
        last = (TRAINED, PACKED, self._attempt.result.name, self._attempt.exit.name)
        for name in sorted(names, key=lambda name: last.index(name) if name in last else -1):
            self._pull(name)
        self._call("drop_scratch")

    def _is_followed(self, name: str) -> bool:
        return self._follow_logs and any(fnmatch(name, pattern) for pattern in LIVE_LOGS)

    def _push(self, name: str) -> None:
        with (self._attempt.path / name).open("rb") as file:
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
        offset = self._pulled.get(name, 0)
        with partial.open("ab" if growing or offset else "wb") as file:
            while data := self._call("read", name, offset, limit or CHUNK_BYTES):
                file.write(data)
                offset += len(data)
                if limit is not None:
                    break
        self._pulled[name] = offset
        if not growing:
            partial.replace(target)
