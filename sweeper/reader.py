"""What a ledger says: the reading half, for the process that writes it and for all who look on."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Self

from sweeper.errors import UserError
from sweeper.rows import AttemptRow, AttemptState, NoteRow, RunRow, RunState, StageRow, TrialRow
from sweeper.schema import SCHEMA_VERSION, VIEWS
from sweeper.spec import SweepSpec
from sweeper.stages import Stage

# What SQLite says when there is no room left: SQLITE_FULL, SQLITE_IOERR_WRITE and the like.
NO_ROOM = ("database or disk is full", "disk I/O error")


@contextmanager
def room_told(path: Path) -> Iterator[None]:
    """Say in a line that a ledger's disk is full, where the sweep is not there yet to wait."""
    try:
        yield
    except sqlite3.OperationalError as error:
        if not str(error).startswith(NO_ROOM):
            raise
        raise UserError(f"{path}: {error}; make room there, then go on") from error


class LedgerReader:
    """A sweep's ledger as it is now; each question is answered from one moment of it."""

    def __init__(self, connection: sqlite3.Connection) -> None:
        self._db = connection
        self._db.row_factory = sqlite3.Row

    @classmethod
    def open_for_reading(cls, path: Path) -> Self:
        """A view that can change nothing; UserError when there is no ledger.

        So it is where the disk is full and nobody has it open: SQLite needs a file beside it.
        """
        if not path.is_file():
            raise UserError(f"{path.parent}: no sweep there; see `sweeper run`, or give --root")
        with room_told(path):
            try:
                return cls._open_for_reading(path)
            except sqlite3.DatabaseError as error:
                if isinstance(error, sqlite3.OperationalError):
                    raise
                raise UserError(f"{path}: no ledger of a sweep ({error})") from error

    @classmethod
    def _open_for_reading(cls, path: Path) -> Self:
        ledger = cls(sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True))
        if ledger._schema_version() == 0:
            raise UserError(f"{path.parent}: no sweep there yet; it is being made just now")
        views = VIEWS.get(ledger._schema_version())
        if views is None:
            ledger._check_schema(path)
        for view in views or ():
            ledger._db.execute(view)
        return ledger

    def close(self) -> None:
        self._db.close()

    @property
    def db(self) -> sqlite3.Connection:
        """For what else is kept in the same file; written to within `write` alone."""
        return self._db

    # ---- what is known

    @property
    def uid(self) -> str:
        """Identity of the sweep, unique across machines; its processes carry it."""
        return str(self._db.execute("SELECT uid FROM sweep").fetchone()["uid"])

    @property
    def spec(self) -> SweepSpec:
        """The spec that the sweep was made from, resolved."""
        text = self._db.execute("SELECT spec FROM sweep").fetchone()["spec"]
        return SweepSpec.model_validate_json(text)

    def trials(self) -> list[TrialRow]:
        return [_trial(row) for row in self._db.execute("SELECT * FROM trials ORDER BY number")]

    def trial(self, number: int) -> TrialRow:
        return _trial(
            self._db.execute("SELECT * FROM trials WHERE number = ?", (number,)).fetchone()
        )

    def runs(self) -> list[RunRow]:
        """All runs in launch order: seed by seed, so that partial results compare."""
        rows = self._db.execute("SELECT * FROM runs ORDER BY id")
        return [RunRow(**(dict(row) | {"state": RunState(row["state"])})) for row in rows]

    def attempts(
        self, run: int | None = None, state: AttemptState | None = None
    ) -> list[AttemptRow]:
        """All attempts in order, or those of one run, or in one state."""
        rows = self._db.execute(
            "SELECT * FROM attempts WHERE run IS coalesce(?, run) AND state IS coalesce(?, state)"
            " ORDER BY id",
            (run, state),
        )
        return [_attempt(row) for row in rows]

    def attempt(self, identity: int) -> AttemptRow:
        """One attempt."""
        row = self._db.execute("SELECT * FROM attempts WHERE id = ?", (identity,)).fetchone()
        return _attempt(row)

    def attempt_numbers(self) -> dict[int, int]:
        """How many attempts have been made, by run; those without one are left out."""
        return dict(self._db.execute("SELECT run, max(number) FROM attempts GROUP BY run"))

    def stages(self, attempt: int | None = None) -> list[StageRow]:
        """All launches of stages in order, or those of one attempt."""
        where, values = ("", ()) if attempt is None else ("WHERE attempt = ?", (attempt,))
        rows = self._db.execute(f"SELECT * FROM stages {where} ORDER BY id", values)
        return [_stage(row) for row in rows]

    def notes(self, last: int = -1) -> list[NoteRow]:
        """What has happened beside the runs, in order; all of it, or so many of the last."""
        rows = self._db.execute("SELECT * FROM notes ORDER BY t DESC LIMIT ?", (last,))
        return [NoteRow(**dict(row)) for row in rows][::-1]

    # ---- what is new, for those who look again and again

    @contextmanager
    def snapshot(self) -> Iterator[None]:
        """Everything read in a `with` block is of one moment."""
        self._db.execute("BEGIN")
        try:
            yield
        finally:
            self._db.execute("COMMIT")

    def run_states(self) -> dict[int, RunState]:
        """Every run's state, in launch order."""
        states = {str(state): state for state in RunState}
        return {
            row[0]: states[row[1]]
            for row in self._db.execute("SELECT id, state FROM runs ORDER BY id")
        }

    def attempts_since(self, identity: int) -> list[AttemptRow]:
        """The attempts made after one, in order."""
        rows = self._db.execute("SELECT * FROM attempts WHERE id > ? ORDER BY id", (identity,))
        return [_attempt(row) for row in rows]

    def stages_since(self, attempt: int) -> list[StageRow]:
        """The launches of all attempts made after one, in order."""
        rows = self._db.execute("SELECT * FROM stages WHERE attempt > ? ORDER BY id", (attempt,))
        return [_stage(row) for row in rows]

    # ---- inside

    def _schema_version(self) -> int:
        return int(self._db.execute("PRAGMA user_version").fetchone()[0])

    def _check_schema(self, path: Path) -> None:
        found = self._schema_version()
        if found != SCHEMA_VERSION:
            raise UserError(f"{path}: ledger version {found}, this program reads {SCHEMA_VERSION}")


def _attempt(row: sqlite3.Row) -> AttemptRow:
    result = None if row["result"] is None else json.loads(row["result"])
    return AttemptRow(**(dict(row) | {"state": AttemptState(row["state"]), "result": result}))


def _stage(row: sqlite3.Row) -> StageRow:
    return StageRow(**(dict(row) | {"stage": Stage(row["stage"])}))


def _trial(row: sqlite3.Row) -> TrialRow:
    return TrialRow(**(dict(row) | {"env": json.loads(row["env"])}))
