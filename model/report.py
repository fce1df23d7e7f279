"""events.jsonl and result.json: what a run tells the outside while it works and when it is done.

The writing half of the process contract (docs/ARCHITECTURE.md). Lines for people go to stdout
in the field's own log format, so that tools which read public logs read these too.
"""

from __future__ import annotations

import json
import os
import time
import traceback
from pathlib import Path
from typing import Any

EVENTS = "events.jsonl"
RESULT = "result.json"
ARTIFACT = "final_model.int6.ptz"
RESULT_SCHEMA = 1
FIRST_WORD_SECONDS = 1.0


class Report:
    """Writes a run's events; one per process. Only rank 0 speaks, except about errors."""

    def __init__(self, run_dir: Path, rank: int) -> None:
        run_dir.mkdir(parents=True, exist_ok=True)
        self.run_dir = run_dir
        self.rank = rank
        # O_APPEND and one write per line keep lines of several ranks whole.
        self._events = os.open(run_dir / EVENTS, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)

    def event(self, kind: str, **fields: Any) -> None:
        """Append one event; silent on ranks other than 0."""
        if self.rank == 0:
            self._append(kind, fields)

    def line(self, text: str) -> None:
        """Print one line for people; silent on ranks other than 0."""
        if self.rank == 0:
            print(text, flush=True)

    def phase(self, name: str) -> None:
        self.event("phase", phase=name)

    def warning(self, message: str) -> None:
        self.event("warning", message=message)
        self.line(f"warning: {message}")

    def error(self, error: BaseException, *, code: str, message: str, **fields: Any) -> None:
        """Append an error event, whatever the rank."""
        trace = "".join(traceback.format_exception(error))
        named = {"error": type(error).__name__, "message": message, "code": code}
        self._append("error", named | {"rank": self.rank, "traceback": trace} | fields)

    def said_by_another(self, message: str) -> bool:
        """Whether another rank has said the same of itself: what all ranks run into is said once.

        Rank 0 does not ask; the others leave it a moment to speak first.
        """
        if self.rank == 0:
            return False
        time.sleep(FIRST_WORD_SECONDS)
        said = f'"message": {json.dumps(message)}'
        return said in (self.run_dir / EVENTS).read_text()

    def result(self, fields: dict[str, Any]) -> None:
        """Write result.json by rename: it is there whole or not at all."""
        if self.rank == 0:
            body = {"schema": RESULT_SCHEMA, "status": "finished"} | fields
            write_json(self.run_dir / RESULT, body)

    def _append(self, kind: str, fields: dict[str, Any]) -> None:
        event = {"t": round(time.time(), 3), "kind": kind} | fields
        os.write(self._events, (json.dumps(event) + "\n").encode())


def write_json(path: Path, body: dict[str, Any]) -> None:
    """Write an object by rename; ValueError for a number that is not finite."""
    write_by_rename(path, json.dumps(body, indent=1, allow_nan=False).encode())


def write_by_rename(path: Path, data: bytes | memoryview) -> None:
    """Write a whole file under a temporary name, flush it to disk, then rename it.

    Leaves nothing behind where that fails, which it says with the file's name, nor where it is
    interrupted.
    """
    partial = path.with_name(path.name + ".partial")
    try:
        with partial.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(path)) from error
    finally:
        partial.unlink(missing_ok=True)


def code_bytes() -> int:
    """Bytes of the code that counts: of this program's one file, or of the package's export."""
    if __package__:
        from model.export import counted_bytes

        return counted_bytes()
    return Path(__file__).stat().st_size
