"""The ledger: every trial, run and attempt of a sweep in one SQLite file; the source of truth.

One process writes (it holds the sweep's lock) from one thread; others may read at any time, since
the journal is a write-ahead log. Every write is one transaction, on disk when the call returns.
"""

from __future__ import annotations

import enum
import json
import sqlite3
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sweeper.errors import UserError
from sweeper.spec import SweepSpec

SCHEMA_VERSION = 1
SCHEMA = """
CREATE TABLE sweep (uid TEXT NOT NULL, name TEXT NOT NULL, created REAL NOT NULL,
                    spec TEXT NOT NULL);
CREATE TABLE trials (number INTEGER PRIMARY KEY, name TEXT NOT NULL UNIQUE,
                     config_hash TEXT NOT NULL UNIQUE, env TEXT NOT NULL);
CREATE TABLE runs (id INTEGER PRIMARY KEY, trial INTEGER NOT NULL REFERENCES trials(number),
                   seed INTEGER NOT NULL, state TEXT NOT NULL, UNIQUE (trial, seed));
CREATE TABLE attempts (id INTEGER PRIMARY KEY, run INTEGER NOT NULL REFERENCES runs(id),
                       number INTEGER NOT NULL, state TEXT NOT NULL, path TEXT NOT NULL,
                       host TEXT NOT NULL, gpus TEXT NOT NULL, code TEXT,
                       launched REAL NOT NULL, ended REAL,
                       exit_code INTEGER, message TEXT, traceback TEXT, result TEXT,
                       UNIQUE (run, number));
CREATE UNIQUE INDEX one_result ON attempts (run) WHERE state = 'finished';
"""


class RunState(enum.StrEnum):
    PENDING = "pending"
    RUNNING = "running"
    FINISHED = "finished"
    FAILED = "failed"

    @property
    def over(self) -> bool:
        """Whether nothing more will happen to the run."""
        return self in (RunState.FINISHED, RunState.FAILED)


class AttemptState(enum.StrEnum):
    LAUNCHED = "launched"
    FINISHED = "finished"
    USER_ERROR = "user_error"
    NONFINITE = "nonfinite"
    OUT_OF_MEMORY = "out_of_memory"
    BAD_RESULT = "bad_result"
    CRASHED = "crashed"
    TIMED_OUT = "timed_out"
    STOPPED = "stopped"
    LOST = "lost"


@dataclass(frozen=True, kw_only=True)
class TrialRow:
    """One set of hyperparameters."""

    number: int
    name: str
    config_hash: str
    env: dict[str, str]


@dataclass(frozen=True, kw_only=True)
class RunRow:
    """One seed of a trial."""

    id: int
    trial: int
    seed: int
    state: RunState


@dataclass(frozen=True, kw_only=True)
class AttemptRow:
    """One launch of a run; times in Unix seconds. `code` is the hash of what it executes."""

    id: int
    run: int
    number: int
    state: AttemptState
    path: str
    host: str
    gpus: str
    code: str | None
    launched: float
    ended: float | None
    exit_code: int | None
    message: str | None
    traceback: str | None
    result: dict[str, Any] | None


class Ledger:
    """A sweep's ledger. `open_for_writing` makes or continues one, `open_for_reading` looks."""

    def __init__(self, connection: sqlite3.Connection) -> None:
        self._db = connection
        self._db.row_factory = sqlite3.Row

    @classmethod
    def open_for_writing(cls, path: Path, spec: SweepSpec) -> Ledger:
        """The sweep's ledger, made if there is none.

        The caller holds the sweep's lock. Raises UserError when the ledger is of another spec.
        """
        ledger = cls(sqlite3.connect(path, isolation_level=None))
        ledger._db.execute("PRAGMA journal_mode = WAL")
        ledger._db.execute("PRAGMA synchronous = FULL")
        ledger._db.execute("PRAGMA foreign_keys = ON")
        if ledger._schema_version() == 0:
            ledger._create(spec)
        ledger._check_schema(path)
        ledger._check_spec(spec)
        return ledger

    @classmethod
    def open_for_reading(cls, path: Path) -> Ledger:
        """A view that can change nothing; UserError when there is no ledger."""
        if not path.is_file():
            raise UserError(f"{path.parent}: no sweep there; see `sweeper run`, or give --root")
        ledger = cls(sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True))
        ledger._check_schema(path)
        return ledger

    def close(self) -> None:
        self._db.close()

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
        rows = self._db.execute("SELECT * FROM trials ORDER BY number")
        return [TrialRow(**(dict(row) | {"env": json.loads(row["env"])})) for row in rows]

    def runs(self) -> list[RunRow]:
        """All runs in launch order: seed by seed, so that partial results compare."""
        rows = self._db.execute("SELECT * FROM runs ORDER BY id")
        return [RunRow(**(dict(row) | {"state": RunState(row["state"])})) for row in rows]

    def attempts(self, run: int | None = None) -> list[AttemptRow]:
        """All attempts in order, or those of one run."""
        where, values = ("", ()) if run is None else ("WHERE run = ?", (run,))
        rows = self._db.execute(f"SELECT * FROM attempts {where} ORDER BY id", values)
        return [_attempt(row) for row in rows]

    # ---- what happens

    def launched(
        self,
        run: RunRow,
        *,
        number: int,
        path: str,
        host: str,
        gpus: str,
        code: str | None = None,
    ) -> int:
        """Record a launch, before it is made; returns the attempt's id."""
        with self._transaction():
            cursor = self._db.execute(
                "INSERT INTO attempts (run, number, state, path, host, gpus, code, launched)"
                " VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
                (run.id, number, AttemptState.LAUNCHED, path, host, gpus, code, time.time()),
            )
            self._set_run(run.id, RunState.RUNNING)
        assert cursor.lastrowid is not None
        return cursor.lastrowid

    def ended(
        self,
        attempt: int,
        state: AttemptState,
        run_state: RunState,
        *,
        exit_code: int | None = None,
        message: str | None = None,
        traceback: str | None = None,
        result: dict[str, Any] | None = None,
    ) -> None:
        """Record how an attempt ended and what becomes of its run, as one fact."""
        with self._transaction():
            self._db.execute(
                "UPDATE attempts SET state = ?, ended = ?, exit_code = ?, message = ?,"
                " traceback = ?, result = ? WHERE id = ?",
                (
                    *(state, time.time(), exit_code, message, traceback),
                    *(None if result is None else json.dumps(result), attempt),
                ),
            )
            (run,) = self._db.execute("SELECT run FROM attempts WHERE id = ?", (attempt,))
            self._set_run(run["run"], run_state)

    def reopen_failed(self) -> int:
        """Make failed runs pending again, for a sweep that is started once more; how many."""
        with self._transaction():
            cursor = self._db.execute(
                "UPDATE runs SET state = ? WHERE state = ?", (RunState.PENDING, RunState.FAILED)
            )
        return cursor.rowcount

    # ---- inside

    def _set_run(self, run: int, state: RunState) -> None:
        self._db.execute("UPDATE runs SET state = ? WHERE id = ?", (state, run))

    @contextmanager
    def _transaction(self) -> Iterator[None]:
        self._db.execute("BEGIN IMMEDIATE")
        try:
            yield
        except BaseException:
            self._db.execute("ROLLBACK")
            raise
        self._db.execute("COMMIT")

    def _schema_version(self) -> int:
        return int(self._db.execute("PRAGMA user_version").fetchone()[0])

    def _create(self, spec: SweepSpec) -> None:
        with self._transaction():
            for statement in SCHEMA.split(";"):
                self._db.execute(statement)
            self._db.execute(
                "INSERT INTO sweep VALUES (?, ?, ?, ?)",
                (uuid.uuid4().hex, spec.name, time.time(), spec.model_dump_json(by_alias=True)),
            )
            for number, trial in enumerate(spec.trials):
                env = json.dumps(spec.trial_env(trial))
                self._db.execute(
                    "INSERT INTO trials VALUES (?, ?, ?, ?)",
                    (number, trial.name, spec.config_hash(trial), env),
                )
            for seed in spec.seeds:
                for number in range(len(spec.trials)):
                    self._db.execute(
                        "INSERT INTO runs (trial, seed, state) VALUES (?, ?, ?)",
                        (number, seed, RunState.PENDING),
                    )
            self._db.execute(f"PRAGMA user_version = {SCHEMA_VERSION}")

    def _check_schema(self, path: Path) -> None:
        found = self._schema_version()
        if found != SCHEMA_VERSION:
            raise UserError(f"{path}: ledger version {found}, this program reads {SCHEMA_VERSION}")

    def _check_spec(self, spec: SweepSpec) -> None:
        """UserError when trials or seeds differ: old and new runs would not be one sweep."""
        recorded = {trial.name: trial.config_hash for trial in self.trials()}
        asked = {trial.name: spec.config_hash(trial) for trial in spec.trials}
        differing = sorted(recorded.items() ^ asked.items())
        old_seeds, new_seeds = self.spec.seeds, spec.seeds
        if differing or old_seeds != new_seeds:
            what = (
                f"trial {differing[0][0]!r}" if differing else f"seeds {old_seeds} -> {new_seeds}"
            )
            raise UserError(
                f"sweep {spec.name!r} exists with another spec ({what} changed); give the new one "
                "another name, or remove the old sweep's directory"
            )


def _attempt(row: sqlite3.Row) -> AttemptRow:
    result = None if row["result"] is None else json.loads(row["result"])
    return AttemptRow(**(dict(row) | {"state": AttemptState(row["state"]), "result": result}))
