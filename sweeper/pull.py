"""A sweep's results brought here from a cluster, by the port of its dashboard alone.

A small job on the cluster's head (sweeper/outbox.py) prints what is lacking here on its log, as
much at a time as is good for the server; it is asked until nothing is lacking. Files appear by
rename, and the ledger last, so that what it tells of is here.
"""

from __future__ import annotations

import contextlib
import json
import re
import secrets
import shlex
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

from sweeper.errors import UnreachableError, UserError
from sweeper.outbox import LEDGER, MARK, Piece, Request, digest, results
from sweeper.spec import DIRECTORY_NAME
from sweeper.submit import OVER, JobRow, last_line

# Of the server's log, at a time: it holds a few copies of that in memory.
CHUNK_BYTES = 24 << 20
MARKER = ".pulled.json"  # which ledgers came by a pull: no other one is overwritten
POLL_SECONDS = 0.2
ANSWER_SECONDS = 300.0
FORGET_SECONDS = 20.0
SETTLE_SECONDS = 2.0
HELPER = "outbox"  # what the metadata of the jobs on the head says
MAX_IN_VAIN = 3
PARTIAL = ".pulling"


@dataclass(frozen=True, kw_only=True)
class Pulled:
    """What has been brought here."""

    directory: Path
    files: int
    bytes: int


class _TornError(Exception):
    """An answer that did not arrive as it was sent."""


def pull(client: Any, job: JobRow, out: Path, show: Callable[[str], None]) -> Pulled:
    """Bring a job's sweep to `out`/<sweep>: what is there already is not sent again.

    Raises UserError when another sweep is there, when the cluster has none, or when its name would
    lead out of `out`: anybody who may submit a job there can give it any.
    """
    if not re.fullmatch(DIRECTORY_NAME, job.sweep):
        raise UserError(f"job {job.id} calls its sweep {job.sweep!r}, which is no name of one")
    target = Target(out / job.sweep)
    target.check()
    messenger = Messenger(client, job)
    try:
        files, total = _bring(messenger, target, show)
        target.finish()
    finally:
        messenger.forget()
    return Pulled(directory=target.path, files=files, bytes=total)


def _bring(messenger: Messenger, target: Target, show: Callable[[str], None]) -> tuple[int, int]:
    """Ask until nothing is lacking; how many files came, and how many bytes."""
    files: set[str] = set()
    total, in_vain, left = 0, 0, 1
    while left:
        try:
            pieces, left = messenger.ask(target.have())
            reason = "what is lacking changes as it is read"
        except (_TornError, UnreachableError) as error:
            pieces, reason = [], str(error)
            time.sleep(POLL_SECONDS)
        in_vain = 0 if pieces else in_vain + 1
        if left and in_vain == MAX_IN_VAIN:
            raise UserError(f"the results do not arrive whole: {reason}")
        for piece in pieces:
            target.take(piece)
        files.update(piece.path for piece in pieces)
        total += sum(piece.end - piece.start for piece in pieces)
        to_come = f", {left / 1e6:.1f} MB to come" if left else ""
        show(f"{target.path.name}: {len(files)} files came, {total / 1e6:.1f} MB{to_come}")
    return len(files), total


# ---- this end


@dataclass
class Target:
    """Where a sweep is brought to."""

    path: Path
    _digests: dict[Path, tuple[int, int, str]] = field(default_factory=dict)

    @property
    def ledger(self) -> Path:
        return self.path / LEDGER

    def check(self) -> None:
        """UserError when there is a ledger that did not come by a pull, or has been written to."""
        if not self.ledger.exists():
            return
        with contextlib.suppress(OSError, ValueError):
            marker = json.loads((self.path / MARKER).read_text())
            if digest(self.ledger) in marker["ledgers"]:
                return  # to open one for writing alone changes it: its journal becomes another
        raise UserError(
            f"{self.path}: there is a sweep that was not pulled, or went on here; give another "
            "--out"
        )

    def have(self) -> dict[str, tuple[int, str]]:
        """What is here, in whole or in part, by path."""
        found = {path: self._facts(self.path / path) for path in results(self.path)}
        for partial in self.path.rglob(f"*{PARTIAL}"):
            path = partial.relative_to(self.path).as_posix().removesuffix(PARTIAL)
            found[path] = self._facts(partial)
        if self.ledger.exists():
            found[LEDGER] = self._facts(self.ledger)
        return found

    def take(self, piece: Piece) -> None:
        """Put a piece in its place; the file appears once it is whole."""
        path = self.path / safe(piece.path)
        partial = path.with_name(path.name + PARTIAL)
        path.parent.mkdir(parents=True, exist_ok=True)
        content = piece.unpack()
        if piece.start and not partial.exists():
            shutil.copyfile(path, partial)
        with partial.open("r+b" if piece.start else "wb") as file:
            file.seek(piece.start)
            file.truncate()
            file.write(content)
        if piece.end == piece.size:
            if path == self.ledger:
                self._expect(partial)
            partial.replace(path)

    def finish(self) -> None:
        """Remove what has not become whole: its file has gone over there."""
        for partial in self.path.rglob(f"*{PARTIAL}"):
            partial.unlink()

    def _expect(self, ledger: Path) -> None:
        """Note that this ledger comes by a pull, so that the next one may replace it."""
        digests = [digest(file) for file in (self.ledger, ledger) if file.exists()]
        marker = self.path / MARKER
        partial = marker.with_suffix(".partial")
        partial.write_text(json.dumps({"ledgers": digests}))
        partial.replace(marker)

    def _facts(self, path: Path) -> tuple[int, str]:
        """Size and hash of a file, which is read again only when it has changed."""
        found = path.stat()
        known = self._digests.get(path)
        if known is None or known[:2] != (found.st_size, found.st_mtime_ns):
            known = (found.st_size, found.st_mtime_ns, str(digest(path)))
            self._digests[path] = known
        return known[0], known[2]


def safe(name: str) -> PurePosixPath:
    """A path from elsewhere as one below a directory; UserError when it leads out of it."""
    path = PurePosixPath(name)
    if path.is_absolute() or ".." in path.parts or not path.parts:
        raise UserError(f"the cluster sends a file called {name!r}; nothing is written there")
    return path


# ---- the other end


@dataclass
class Messenger:
    """Asks for results by jobs on the cluster's head."""

    client: Any
    job: JobRow
    _sent: set[str] = field(default_factory=set)

    def ask(self, have: dict[str, tuple[int, str]]) -> tuple[list[Piece], int]:
        """The next pieces of what is lacking, and how many bytes are lacking after them.

        Raises UserError where there is no answer to be had, _TornError where there may be another
        time.
        """
        request = Request(root=self.job.root, sweep=self.job.sweep, have=have, most=CHUNK_BYTES)
        helper = f"sweeper-outbox-{secrets.token_hex(8)}"
        with tempfile.TemporaryDirectory(prefix="sweeper-pull-") as scratch:
            package = Path(scratch) / "sweeper"
            package.mkdir()
            for name in ("__init__.py", "outbox.py"):
                shutil.copy(Path(__file__).with_name(name), package)
            (Path(scratch) / "request.json").write_text(json.dumps(asdict(request)))
            try:
                self.client.submit_job(
                    entrypoint=shlex.join(
                        [self.job.python, "-m", "sweeper.outbox", "request.json"]
                    ),
                    submission_id=helper,
                    runtime_env={"working_dir": scratch},
                    metadata={"sweeper": HELPER},
                    entrypoint_num_cpus=0,
                    entrypoint_num_gpus=0,
                )
            except RuntimeError as error:
                raise UserError(f"the cluster takes no job: {last_line(error)}") from error
        self._sent.add(helper)
        try:
            return _read(self._answer(helper))
        finally:
            # It takes what it has said off the server's disk, then.
            with contextlib.suppress(UserError, RuntimeError):
                self.client.stop_job(helper)

    def _answer(self, helper: str) -> list[dict[str, Any]]:
        """All that the helper says, once it has said it."""
        deadline = time.monotonic() + ANSWER_SECONDS
        while time.monotonic() < deadline:
            status = self.client.get_job_status(helper).value
            text = str(self.client.get_job_logs(helper))
            said = list(_said(text))
            if said and ("left" in said[-1] or "error" in said[-1]):
                return said
            if status == "FAILED":
                raise UserError(f"the cluster's head cannot send results: {_last_words(text)}")
            if status in OVER:
                raise _TornError("the job that sends them was ended")
            time.sleep(POLL_SECONDS)
        raise _TornError(f"no answer within {ANSWER_SECONDS:g} s")

    def forget(self) -> None:
        """Remove the helpers from the cluster's list of jobs, once they have ended.

        Ray looks at every job about once a second, and lists one anew that it did not see end.
        """
        seen: dict[str, float] = {}
        deadline = time.monotonic() + FORGET_SECONDS
        with contextlib.suppress(UserError, RuntimeError):
            while self._sent and time.monotonic() < deadline:
                now = time.monotonic()
                for helper in list(self._sent):
                    if self.client.get_job_status(helper).value in OVER:
                        seen.setdefault(helper, now)
                    if now - seen.get(helper, now) > SETTLE_SECONDS:
                        self.client.delete_job(helper)
                        self._sent.remove(helper)
                time.sleep(POLL_SECONDS)


def _said(text: str) -> Iterator[dict[str, Any]]:
    """The helper's whole lines on its log, between those of Ray."""
    for line in text.splitlines(keepends=True):
        if line.startswith(MARK) and line.endswith("\n"):
            try:
                yield json.loads(line.removeprefix(MARK))
            except ValueError as error:
                raise _TornError(str(error)) from error


def _read(said: list[dict[str, Any]]) -> tuple[list[Piece], int]:
    *pieces, last = said
    if "error" in last:
        raise UserError(str(last["error"]))
    try:
        found = [Piece(**facts) for facts in pieces]
        for piece in found:
            piece.unpack()
    except (TypeError, ValueError) as error:
        raise _TornError(str(error)) from error
    return found, int(last["left"])


def _last_words(text: str) -> str:
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[-1] if lines else "it has said nothing"
