"""The ledger: trials, runs, attempts and stages of a sweep in one SQLite file; the source of truth.

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
from sweeper.schema import SCHEMA, SCHEMA_VERSION, STAGES, STAGES_OF_VERSION_1
from sweeper.spec import SweepSpec
from sweeper.stages import Stage


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
    """How an attempt ended; LAUNCHED while it has not."""

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
    """One try at a run, all its stages; times in Unix seconds.

    `code` is the hash of what it executes, `host` and `gpus` are where it began.
    """

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


@dataclass(frozen=True, kw_only=True)
class StageRow:
    """One launch of a stage of an attempt; a whole run is one of stage `all`. Unix seconds.

    Its events are those from byte `events_from` of the attempt's on.
    """

    id: int
    attempt: int
    stage: Stage
    host: str
    gpus: str
    launched: float
    ended: float | None
    exit_code: int | None
    message: str | None
    events_from: int

    @property
    def seconds(self) -> float:
        """How long it was at work; 0 until it has ended."""
        return 0.0 if self.ended is None else max(0.0, self.ended - self.launched)

    @property
    def gpu_seconds(self) -> float:
        """What it has reserved."""
        return self.seconds * len([gpu for gpu in self.gpus.split(",") if gpu])


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
        if ledger._schema_version() == 1:
            ledger._migrate()
        ledger._check_schema(path)
        ledger._check_spec(spec)
        return ledger

    @classmethod
    def open_for_reading(cls, path: Path) -> Ledger:
        """A view that can change nothing; UserError when there is no ledger."""
        if not path.is_file():
            raise UserError(f"{path.parent}: no sweep there; see `sweeper run`, or give --root")
        ledger = cls(sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True))
        if ledger._schema_version() == 1:
            ledger._db.execute(f"CREATE TEMP VIEW stages AS {STAGES_OF_VERSION_1}")
        else:
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

    def stages(self, attempt: int | None = None) -> list[StageRow]:
        """All launches of stages in order, or those of one attempt."""
        where, values = ("", ()) if attempt is None else ("WHERE attempt = ?", (attempt,))
        rows = self._db.execute(f"SELECT * FROM stages {where} ORDER BY id", values)
        return [StageRow(**(dict(row) | {"stage": Stage(row["stage"])})) for row in rows]

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
        stage: Stage = Stage.ALL,
    ) -> int:
        """Record an attempt and the launch of its first stage, before it is made; its id."""
        with self._transaction():
            attempt = self._insert(
                "INSERT INTO attempts (run, number, state, path, host, gpus, code, launched)"
                " VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
                (run.id, number, AttemptState.LAUNCHED, path, host, gpus, code, time.time()),
            )
            self._insert_stage(attempt, stage, host, gpus, 0)
            self._set_run(run.id, RunState.RUNNING)
        return attempt

    def stage_launched(
        self, attempt: AttemptRow, stage: Stage, *, host: str, gpus: str, events_from: int
    ) -> None:
        """Record the launch of one more stage of an attempt, before it is made."""
        with self._transaction():
            self._insert_stage(attempt.id, stage, host, gpus, events_from)
            self._set_run(attempt.run, RunState.RUNNING)

    def stage_ended(
        self,
        attempt: int,
        *,
        exit_code: int | None = None,
        message: str | None = None,
        at: float | None = None,
    ) -> None:
        """Record the end of an attempt's stage at work, now or earlier; the attempt goes on."""
        with self._transaction():
            self._end_stage(attempt, at or time.time(), exit_code, message)

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
        at: float | None = None,
    ) -> None:
        """Record how an attempt ended, with its stage at work, and what becomes of its run."""
        now = time.time()
        with self._transaction():
            self._end_stage(attempt, at or now, exit_code, message)
            self._db.execute(
                "UPDATE attempts SET state = ?, ended = ?, exit_code = ?, message = ?,"
                " traceback = ?, result = ? WHERE id = ?",
                (
                    *(state, now, exit_code, message, traceback),
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

    def pause(self) -> None:
        """Make every run that is under way wait for the sweep to go on; its attempt stays open."""
        with self._transaction():
            self._db.execute(
                "UPDATE runs SET state = ? WHERE state = ?", (RunState.PENDING, RunState.RUNNING)
            )

    # ---- inside

    def _insert(self, statement: str, values: tuple[object, ...]) -> int:
        """Add a row; its id."""
        row = self._db.execute(statement, values).lastrowid
        assert row is not None
        return row

    def _insert_stage(
        self, attempt: int, stage: Stage, host: str, gpus: str, events_from: int
    ) -> None:
        self._insert(
            "INSERT INTO stages (attempt, stage, host, gpus, launched, events_from)"
            " VALUES (?, ?, ?, ?, ?, ?)",
            (attempt, stage, host, gpus, time.time(), events_from),
        )

    def _end_stage(
        self, attempt: int, at: float, exit_code: int | None, message: str | None
    ) -> None:
        self._db.execute(
            "UPDATE stages SET ended = ?, exit_code = ?, message = ?"
            " WHERE attempt = ? AND ended IS NULL",
            (at, exit_code, message, attempt),
        )

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

    def _migrate(self) -> None:
        """Bring a ledger of version 1 to this one."""
        with self._transaction():
            self._db.execute(STAGES)
            self._db.execute(f"INSERT INTO stages {STAGES_OF_VERSION_1}")
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
