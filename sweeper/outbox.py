"""The results of a sweep: which files they are, and how a job on a cluster's head sends them.

`python -m sweeper.outbox REQUEST.json` runs there as a Ray job of its own and prints the files
that the asker lacks on its log, which the asker reads by the dashboard's port (sweeper/pull.py).
Standard library only: this module is sent there alone.
"""

from __future__ import annotations

import base64
import contextlib
import hashlib
import json
import os
import signal
import sqlite3
import stat
import sys
import tempfile
import zlib
from collections.abc import Iterator
from contextlib import closing
from dataclasses import asdict, dataclass
from fnmatch import fnmatch
from pathlib import Path
from typing import Any, BinaryIO

LEDGER = "ledger.sqlite"
# What is of use only where the sweep runs: its state, and what is large and can be had again.
LEFT_OUT = (
    *(LEDGER, f"{LEDGER}-*", "lock", "driver.json", ".*", "*.partial", "*.pulling"),
    *("checkpoint.pt", "trained.pt", "__pycache__"),
)
MARK = "outbox "
BLOCK = 4 << 20
# How long what was sent stays readable, for an asker that is slow or never comes back.
LINGER_SECONDS = 600.0


@dataclass(frozen=True, kw_only=True)
class Request:
    """What an asker wants: the sweep below `root`, but for what it has (path -> size, sha256).

    About `most` bytes of text are sent at once; what goes beyond is sent when it is asked again.
    """

    root: str
    sweep: str
    have: dict[str, tuple[int, str]]
    most: int


@dataclass(frozen=True, kw_only=True)
class Piece:
    """Bytes `start` to `end` of a file of `size` bytes; a file's last piece ends at its size."""

    path: str
    start: int
    end: int
    size: int
    sha256: str  # of the piece
    data: str  # compressed, base64

    @classmethod
    def pack(cls, path: str, content: bytes, *, start: int, size: int) -> Piece:
        return cls(
            path=path,
            start=start,
            end=start + len(content),
            size=size,
            sha256=hashlib.sha256(content).hexdigest(),
            data=base64.b64encode(zlib.compress(content, 3)).decode(),
        )

    def unpack(self) -> bytes:
        """The bytes; ValueError when they are not those that were packed."""
        try:
            content = zlib.decompress(base64.b64decode(self.data))
        except zlib.error as error:
            raise ValueError(f"{self.path}: {error}") from error
        if hashlib.sha256(content).hexdigest() != self.sha256:
            raise ValueError(f"{self.path}: arrived other than it was sent")
        return content


# ---- which files they are


def results(directory: Path) -> Iterator[str]:
    """The result files below a sweep's or an attempt's directory, as relative POSIX paths.

    Checkpoints, weights on their way to be packed, and the ledger itself are not among them.
    """
    for parent, directories, files in os.walk(directory):
        directories[:] = sorted(name for name in directories if is_result(name))
        for name in sorted(files):
            path = Path(parent, name)
            with contextlib.suppress(FileNotFoundError):
                if is_result(name) and stat.S_ISREG(path.lstat().st_mode):
                    yield path.relative_to(directory).as_posix()


def is_result(name: str) -> bool:
    """Whether a file or directory of that name belongs to the results."""
    return not any(fnmatch(name, pattern) for pattern in LEFT_OUT)


def copy_ledger(ledger: Path, target: Path) -> None:
    """Write a ledger's consistent copy, while its driver goes on; sqlite3.Error when it cannot."""
    uri = f"{ledger.absolute().as_uri()}?mode=ro"
    with closing(sqlite3.connect(uri, uri=True, timeout=30.0)) as source:
        source.execute("VACUUM INTO ?", (str(target),))


def digest(path: Path) -> str:
    """The sha256 of a file."""
    with path.open("rb") as file:
        return str(_digest(file, None))


def _digest(file: BinaryIO, size: int | None) -> str | None:
    """The sha256 of a file's first `size` bytes, or of all; None when there are not so many."""
    hasher, left = hashlib.sha256(), size
    while left is None or left > 0:
        block = file.read(BLOCK if left is None else min(BLOCK, left))
        if not block:
            return hasher.hexdigest() if left is None else None
        hasher.update(block)
        left = None if left is None else left - len(block)
    return hasher.hexdigest()


# ---- sending


def send(request: Request) -> Iterator[dict[str, Any]]:
    """Everything that is said on a request: the pieces, and how many bytes are left for the next.

    The ledger is copied before the files are looked at, and sent once nothing else is left: what
    the asker's ledger tells of is there.
    """
    directory = Path(request.root).expanduser() / request.sweep
    if not (directory / LEDGER).is_file():
        yield {"error": f"there is no sweep {request.sweep!r} below {directory.parent} there yet"}
        return
    with tempfile.TemporaryDirectory(prefix="sweeper-outbox-") as scratch:
        copy = Path(scratch) / LEDGER
        try:
            copy_ledger(directory / LEDGER, copy)
        except sqlite3.Error as error:
            yield {"error": f"{directory / LEDGER}: cannot be copied: {error}"}
            return
        room, left = request.most, 0
        for path in results(directory):
            with contextlib.suppress(FileNotFoundError), (directory / path).open("rb") as file:
                lacking = _Lacking.of(file, request.have.get(path))
                while lacking.count and room > 0:
                    piece = lacking.next_piece(path)
                    if piece is None:
                        break
                    room -= len(piece.data)
                    yield asdict(piece)
                left += lacking.count
        if not left and request.have.get(LEDGER, (0, ""))[1] != digest(copy):
            content = copy.read_bytes()
            yield asdict(Piece.pack(LEDGER, content, start=0, size=len(content)))
    yield {"left": left}


@dataclass
class _Lacking:
    """What an asker lacks of a file, which is open: all from `start` on."""

    file: BinaryIO
    start: int
    size: int
    known: bool  # whether he has a file of that name, be it an empty one

    @classmethod
    def of(cls, file: BinaryIO, have: tuple[int, str] | None) -> _Lacking:
        size = os.fstat(file.fileno()).st_size
        if have is None or have[0] > size or _digest(file, have[0]) != have[1]:
            return cls(file, 0, size, known=False)
        return cls(file, have[0], size, known=True)

    @property
    def count(self) -> int:
        """How much is lacking; an empty file that is not known counts as well."""
        return self.size - self.start or int(not self.known)

    def next_piece(self, path: str) -> Piece | None:
        """The next block of it, which is not lacking any more; None when it has shrunk."""
        self.file.seek(self.start)
        content = self.file.read(min(BLOCK, self.size - self.start))
        if not content and self.start < self.size:
            return None
        piece = Piece.pack(path, content, start=self.start, size=self.size)
        self.start, self.known = piece.end, True
        return piece


def main(arguments: list[str]) -> int:
    """Print the answer to a request and wait until it was read: then it is asked to end.

    What was sent is taken off the log again, which Ray would keep on the head's disk.
    """
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    request = Request(**json.loads(Path(arguments[0]).read_text()))
    lines = [MARK + json.dumps(said) for said in send(request)]
    print("\n".join(lines), flush=True)
    signal.sigtimedwait({signal.SIGTERM}, LINGER_SECONDS)
    with contextlib.suppress(OSError):  # a terminal or a pipe, where it is tried by hand
        os.ftruncate(sys.stdout.fileno(), 0)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
