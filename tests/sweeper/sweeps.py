"""What a sweep left behind: in its ledger, in its directories and on the board of its runs."""

from __future__ import annotations

import json
from contextlib import closing
from dataclasses import dataclass
from typing import Any

from sweeper.layout import AttemptDir, SweepDir
from sweeper.ledger import Ledger
from sweeper.rows import AttemptRow, AttemptState, RunState, StageRow
from tests.sweeper.fake_train import Board

Run = tuple[str, int]  # a trial's name and a seed


def run_states(sweep: SweepDir) -> dict[Run, RunState]:
    with closing(Ledger.open_for_reading(sweep.ledger)) as ledger:
        names = {trial.number: trial.name for trial in ledger.trials()}
        return {(names[run.trial], run.seed): run.state for run in ledger.runs()}


def attempts(sweep: SweepDir) -> dict[Run, list[AttemptRow]]:
    """Every run's attempts, in order; a run without one is there too."""
    with closing(Ledger.open_for_reading(sweep.ledger)) as ledger:
        names = {trial.number: trial.name for trial in ledger.trials()}
        return {(names[run.trial], run.seed): ledger.attempts(run.id) for run in ledger.runs()}


def stage_rows(sweep: SweepDir) -> dict[Run, list[StageRow]]:
    """Every run's launches of stages over all attempts, in order."""
    with closing(Ledger.open_for_reading(sweep.ledger)) as ledger:
        return {
            run: [row for attempt in rows for row in ledger.stages(attempt.id)]
            for run, rows in attempts(sweep).items()
        }


def attempt_states(sweep: SweepDir) -> dict[Run, list[AttemptState]]:
    return {run: [row.state for row in rows] for run, rows in attempts(sweep).items()}


def attempt_dir(sweep: SweepDir, row: AttemptRow) -> AttemptDir:
    return AttemptDir(sweep.path / row.path)


def check_finished(sweep: SweepDir, runs: int) -> None:
    """Every run finished, and none of them twice."""
    states = run_states(sweep)
    assert len(states) == runs
    assert set(states.values()) == {RunState.FINISHED}
    for run, ends in attempt_states(sweep).items():
        assert ends.count(AttemptState.FINISHED) == 1, (run, ends)
        assert ends[-1] is AttemptState.FINISHED, (run, ends)
        assert AttemptState.LAUNCHED not in ends, (run, ends)


@dataclass(frozen=True)
class Stay:
    """One run's time at work, as the run itself wrote it down."""

    facts: dict[str, Any]
    end: float

    @property
    def start(self) -> float:
        return float(self.facts["start"])

    @property
    def gpus(self) -> set[str]:
        return {gpu for gpu in str(self.facts["gpus"]).split(",") if gpu}

    def overlaps(self, other: Stay) -> bool:
        return self.start < other.end and other.start < self.end


def stays(board: Board) -> list[Stay]:
    """All runs that came to their end, in the order of their arrival."""
    found = []
    for number in range(1, board.arrivals() + 1):
        facts = json.loads((board.path / f"arrival-{number}.json").read_text())
        departure = json.loads((board.path / f"departure-{number}.json").read_text())
        found.append(Stay(facts, departure["end"]))
    return found


def most_at_once(found: list[Stay]) -> int:
    """How many runs were at work at the same time, at most."""
    return max(sum(other.start <= stay.start < other.end for other in found) for stay in found)


def let_pass(board: Board, number: int) -> None:
    """Let one arrival go on."""
    (board.path / f"pass-{number}").touch()


def arrival(board: Board, seed: int, stage: str) -> int:
    """The number of the latest arrival of a stage of a run; 0 before there is one."""
    for number in range(board.arrivals(), 0, -1):
        facts = json.loads((board.path / f"arrival-{number}.json").read_text())
        if (facts["seed"], facts["stage"]) == (seed, stage):
            return number
    return 0


def open_gate(board: Board, passable: int = 1_000_000) -> None:
    """Let the arrivals up to this number go on."""
    partial = board.path / ".gate"
    partial.write_text(str(passable))
    partial.replace(board.path / "gate")
