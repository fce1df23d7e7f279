"""The ledger: trials, runs, attempts and stages of a sweep in one SQLite file; the source of truth.

One process writes (it holds the sweep's lock) from one thread; others may read at any time, since
the journal is a write-ahead log. Every write is one transaction, on disk when the call returns.
"""

from __future__ import annotations

import json
import sqlite3
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

from sweeper.errors import UserError
from sweeper.identity import differences, lacks
from sweeper.reader import NO_ROOM, LedgerReader
from sweeper.rows import AttemptRow, AttemptState, RunRow, RunState
from sweeper.schema import MIGRATIONS, SCHEMA, SCHEMA_VERSION
from sweeper.spec import SweepSpec, TrialSpec
from sweeper.stages import Stage

T = TypeVar("T")


class Ledger(LedgerReader):
    """A sweep's ledger. `open_for_writing` makes or continues one, `open_for_reading` looks."""

    def __init__(self, connection: sqlite3.Connection) -> None:
        super().__init__(connection)
        # What to do when the disk is full: return to try again, or raise.
        self.on_no_room: Callable[[sqlite3.OperationalError], None] | None = None

    @classmethod
    def open_for_writing(cls, path: Path, spec: SweepSpec, *, extend: bool = False) -> Ledger:
        """The sweep's ledger, made if there is none; with `extend`, new trials and seeds are added.

        The caller holds the sweep's lock. Raises UserError when the ledger is of another spec.
        """
        ledger = cls(sqlite3.connect(path, isolation_level=None))
        ledger._db.execute("PRAGMA journal_mode = WAL")
        ledger._db.execute("PRAGMA synchronous = FULL")
        ledger._db.execute("PRAGMA foreign_keys = ON")
        if ledger._schema_version() == 0:
            ledger._create(spec)
        ledger._migrate()
        ledger._check_schema(path)
        if extend:
            ledger._extend(spec)
        ledger._check_spec(spec)
        ledger._adopt(spec)
        return ledger

    # ---- what happens

    def note(self, kind: str, text: str) -> None:
        """Record what happened to the sweep beside its runs."""
        self.write(
            lambda: self._db.execute(
                "INSERT INTO notes VALUES (?, ?, ?)", (time.time(), kind, text)
            )
        )

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

        def write() -> int:
            attempt = self._insert(
                "INSERT INTO attempts (run, number, state, path, host, gpus, code, launched)"
                " VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
                (run.id, number, AttemptState.LAUNCHED, path, host, gpus, code, time.time()),
            )
            self._insert_stage(attempt, stage, host, gpus, 0)
            self._set_run(run.id, RunState.RUNNING)
            return attempt

        return self.write(write)

    def stage_launched(
        self, attempt: AttemptRow, stage: Stage, *, host: str, gpus: str, events_from: int
    ) -> None:
        """Record the launch of one more stage of an attempt, before it is made."""

        def write() -> None:
            self._insert_stage(attempt.id, stage, host, gpus, events_from)
            self._set_run(attempt.run, RunState.RUNNING)

        self.write(write)

    def stage_ended(
        self,
        attempt: int,
        *,
        exit_code: int | None = None,
        message: str | None = None,
        at: float | None = None,
    ) -> None:
        """Record the end of an attempt's stage at work, now or earlier; the attempt goes on."""
        self.write(lambda: self._end_stage(attempt, at or time.time(), exit_code, message))

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

        def write() -> None:
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

        self.write(write)

    def insert_trial(self, spec: SweepSpec, trial: TrialSpec) -> int:
        """Add a trial, within `write`, unless one with the same settings is there; its number."""
        config_hash = spec.config_hash(trial)
        (row,) = self._db.execute(
            "SELECT (SELECT number FROM trials WHERE config_hash = ?) AS same,"
            " (SELECT count(*) FROM trials) AS count",
            (config_hash,),
        )
        if row["same"] is not None:
            return int(row["same"])
        env = json.dumps(spec.trial_env(trial))
        return self._insert(
            "INSERT INTO trials VALUES (?, ?, ?, ?)",
            (row["count"], trial.name, config_hash, env),
        )

    def reopen_failed(self) -> int:
        """Make failed runs pending again, for a sweep that is started once more; how many."""
        return self.write(lambda: self._turn(RunState.FAILED, RunState.PENDING))

    def pause(self) -> None:
        """Make every run that is under way wait for the sweep to go on; its attempt stays open."""
        self.write(lambda: self._turn(RunState.RUNNING, RunState.PENDING))

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

    def _turn(self, old: RunState, new: RunState) -> int:
        """Bring all runs of one state to another; how many there were."""
        return self._db.execute("UPDATE runs SET state = ? WHERE state = ?", (new, old)).rowcount

    def write(self, write: Callable[[], T]) -> T:
        """Carry out one transaction; on a full disk as often as `on_no_room` returns."""
        while True:
            try:
                with self._transaction():
                    return write()
            except sqlite3.OperationalError as error:
                if self.on_no_room is None or not str(error).startswith(NO_ROOM):
                    raise
                self.on_no_room(error)

    @contextmanager
    def _transaction(self) -> Iterator[None]:
        self._db.execute("BEGIN IMMEDIATE")
        try:
            yield
            self._db.execute("COMMIT")
        except BaseException:
            if self._db.in_transaction:  # SQLite itself may have rolled back, on a full disk
                self._db.execute("ROLLBACK")
            raise

    def _create(self, spec: SweepSpec) -> None:
        with self._transaction():
            for statement in SCHEMA.split(";"):
                self._db.execute(statement)
            self._db.execute(
                "INSERT INTO sweep VALUES (?, ?, ?, ?)",
                (uuid.uuid4().hex, spec.name, time.time(), spec.model_dump_json(by_alias=True)),
            )
            self._insert_missing(spec)
            self._db.execute(f"PRAGMA user_version = {SCHEMA_VERSION}")

    def _insert_missing(self, spec: SweepSpec) -> None:
        """Add the trials and runs of a spec that are not there yet, in launch order."""
        if spec.search is not None:
            return  # which of them get which seeds is decided while it runs
        known = {trial.name: self.insert_trial(spec, trial) for trial in spec.trials}
        there = {(run.trial, run.seed) for run in self.runs()}
        for seed in spec.seeds:
            for trial in spec.trials:
                if (known[trial.name], seed) not in there:
                    self._db.execute(
                        "INSERT INTO runs (trial, seed, state) VALUES (?, ?, ?)",
                        (known[trial.name], seed, RunState.PENDING),
                    )

    def _migrate(self) -> None:
        """Bring a ledger of an earlier version to this one."""
        while (version := self._schema_version()) in MIGRATIONS:
            with self._transaction():
                for statement in MIGRATIONS[version]:
                    self._db.execute(statement)
                self._db.execute(f"PRAGMA user_version = {version + 1}")

    def _extend(self, spec: SweepSpec) -> None:
        """Add what a spec has more than the ledger; UserError when it has less, or differs."""
        if spec.search is not None:
            return  # nothing is laid down before it is decided
        recorded = {trial.name: trial.config_hash for trial in self.trials()}
        lacking = lacks(self.spec, spec, recorded)
        if lacking:
            raise UserError(
                f"sweep {spec.name!r} can only be given more: the spec lacks {', '.join(lacking)}"
            )
        with self._transaction():
            self._insert_missing(spec)
            self._set_spec(spec)

    def _check_spec(self, spec: SweepSpec) -> None:
        """UserError when old and new runs would not be of one sweep."""
        recorded = {trial.name: trial.config_hash for trial in self.trials()}
        changes = differences(self.spec, spec, recorded)
        if changes:
            raise UserError(
                f"sweep {spec.name!r} exists with another spec ({'; '.join(changes)} changed); "
                "give the new one another name, or add trials and seeds to this one with --extend"
            )

    def _adopt(self, spec: SweepSpec) -> None:
        """Take over what may change between two starts: limits, places, what is kept."""
        if self.spec != spec:
            with self._transaction():
                self._set_spec(spec)

    def _set_spec(self, spec: SweepSpec) -> None:
        self._db.execute("UPDATE sweep SET spec = ?", (spec.model_dump_json(by_alias=True),))
