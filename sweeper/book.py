"""What a search has asked for and decided, in the ledger's own file; each act one transaction."""

from __future__ import annotations

import json
from collections.abc import Sequence

from sweeper.entries import Entry, EntryState
from sweeper.ledger import Ledger
from sweeper.rows import RunRow, RunState
from sweeper.space import Params
from sweeper.spec import SweepSpec, TrialSpec


class Book:
    """The entries of a search's stages; a second view of the ledger that it is made from."""

    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger
        self._db = ledger.db

    def entries(self, rung: str) -> list[Entry]:
        """Those of one stage, by number."""
        reports: dict[int, dict[int, float]] = {}
        for row in self._db.execute("SELECT * FROM reports WHERE rung = ? ORDER BY place", (rung,)):
            reports.setdefault(row["number"], {})[row["place"]] = row["value"]
        rows = self._db.execute("SELECT * FROM entries WHERE rung = ? ORDER BY number", (rung,))
        return [
            Entry(
                rung=rung,
                number=row["number"],
                trial=row["trial"],
                params=json.loads(row["params"]),
                state=EntryState(row["state"]),
                reason=row["reason"],
                seeds=tuple(json.loads(row["seeds"])),
                reports=reports.get(row["number"], {}),
            )
            for row in rows
        ]

    def counts(self) -> dict[str, tuple[int, int]]:
        """By stage that has begun: how many configurations it has, and how many are settled."""
        rows = self._db.execute(
            "SELECT rung, count(*) AS entered, sum(state != ?) AS settled FROM entries"
            " GROUP BY rung",
            (EntryState.OPEN,),
        )
        return {row["rung"]: (row["entered"], row["settled"]) for row in rows}

    def enter(
        self,
        rung: str,
        spec: SweepSpec,
        entered: Sequence[tuple[int, Params, TrialSpec]],
        seed: int | None = None,
    ) -> tuple[list[Entry], list[RunRow]]:
        """Enter configurations in a stage, all or none: Optuna's number, parameters, what is run.

        A trial that has the same settings as one before is that one. With a seed, those that have
        no run of it get one; these are the runs returned.
        """

        def write() -> tuple[list[Entry], list[RunRow]]:
            entries, runs = [], []
            for number, params, trial in entered:
                row = self._ledger.insert_trial(spec, trial)
                entry = Entry(rung=rung, number=number, trial=row, params=dict(params))
                self._db.execute(
                    "INSERT INTO entries (rung, number, trial, params, state, seeds)"
                    " VALUES (?, ?, ?, ?, ?, '[]')",
                    (rung, number, row, json.dumps(entry.params), entry.state),
                )
                entries.append(entry)
                if seed is not None and not self._has_run(row, seed):
                    runs.append(self._add_run(row, seed))
            return entries, runs

        return self._ledger.write(write)

    def want(self, trial: int, seed: int) -> RunRow:
        """A new run, waiting for its slot."""
        return self._ledger.write(lambda: self._add_run(trial, seed))

    def _has_run(self, trial: int, seed: int) -> bool:
        found = self._db.execute("SELECT 1 FROM runs WHERE trial = ? AND seed = ?", (trial, seed))
        return found.fetchone() is not None

    def _add_run(self, trial: int, seed: int) -> RunRow:
        cursor = self._db.execute(
            "INSERT INTO runs (trial, seed, state) VALUES (?, ?, ?)",
            (trial, seed, RunState.PENDING),
        )
        assert cursor.lastrowid is not None
        return RunRow(id=cursor.lastrowid, trial=trial, seed=seed, state=RunState.PENDING)

    def report(self, entry: Entry, place: int, value: float) -> None:
        """Keep what a validation on the way said."""
        self._ledger.write(
            lambda: self._db.execute(
                "INSERT OR IGNORE INTO reports VALUES (?, ?, ?, ?)",
                (entry.rung, entry.number, place, value),
            )
        )

    def settle(self, entry: Entry) -> None:
        """Keep how an entry ended, and which seeds counted.

        It does not wait for the disk: what follows from it stands behind it in the same file, and
        what is lost with the machine before that is judged again.
        """
        self._db.execute("PRAGMA synchronous = NORMAL")
        try:
            self._ledger.write(
                lambda: self._db.execute(
                    "UPDATE entries SET state = ?, reason = ?, seeds = ?"
                    " WHERE rung = ? AND number = ?",
                    (entry.state, entry.reason, json.dumps(entry.seeds), entry.rung, entry.number),
                )
            )
        finally:
            self._db.execute("PRAGMA synchronous = FULL")
