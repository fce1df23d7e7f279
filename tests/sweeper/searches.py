"""Searches without a cluster: a real planner, ledger and study, and runs that end at once."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sweeper.entries import Entry
from sweeper.layout import SweepDir
from sweeper.ledger import Ledger
from sweeper.planner import Planner
from sweeper.rows import RunRow, RunState, TrialRow
from sweeper.spec import SweepSpec
from tests.sweeper.conftest import finish_run

Env = Mapping[str, str]
# What a run scores and how large it is, by its settings and seed; None: it fails.
Outcome = Callable[[Env, int], tuple[float, int] | None]

SPACE = {
    "WARMDOWN_SHAPE": {"choices": ["linear", "cosine"]},
    "WARMDOWN_FRAC": {"low": 0.3, "high": 0.9},
    "LR_FLOOR": {"low": 0.02, "high": 0.1, "when": {"WARMDOWN_SHAPE": "cosine"}},
    "RECUR_START_STEP": {"low": 1000, "high": 3000, "step": 500},
}
STAGES = [
    {"name": "screen", "seeds": 1, "trials": 8, "env": {"ITERATIONS": 100}},
    {"name": "race", "seeds": 3, "top": 3},
    {"name": "confirm", "seeds": [7, 8, 9], "top": 2},
]


def search_spec(**changes: Any) -> SweepSpec:
    """A search over the warmdown in three stages; `changes` are of its tables, by name."""
    table: dict[str, Any] = {
        "name": "found",
        "seeds": [42, 314, 999],
        "resources": {"gpus_per_run": 8},
        "search": {"space": SPACE, "sampler": "random", "seed": 1},
        "stage": STAGES,
    }
    search = table["search"] | changes.pop("search", {})
    return SweepSpec.model_validate(table | changes | {"search": search})


def bowl(env: Env, seed: int) -> tuple[float, int]:
    """A smooth surface with its least at 0.667 and 2000, and some noise that seeds share."""
    noise = random.Random(f"{seed} {sorted(env.items())}").gauss(0, 0.0003)
    score = 1.09 + 0.02 * (float(env["WARMDOWN_FRAC"]) - 0.667) ** 2 + noise
    score += 0.002 * (env["WARMDOWN_SHAPE"] == "cosine")
    score += 1e-9 * (int(env["RECUR_START_STEP"]) - 2000) ** 2
    return score, 15_900_000


@dataclass
class Play:
    """One driver's work on a search, as the loop does it but for the runs themselves."""

    spec: SweepSpec
    sweep: SweepDir
    ledger: Ledger
    planner: Planner
    outcome: Outcome
    notes: list[str] = field(default_factory=list)

    def go_on(self, runs: int | None = None, *, slots: int = 1) -> int:
        """Run until nothing is left, or until so many runs have ended; how many have."""
        trials: dict[int, TrialRow] = {}
        at_work = [run for run in self.ledger.runs() if not run.state.over]
        ended = 0
        while runs is None or ended < runs:
            while len(at_work) < slots and (run := self.planner.next_run()) is not None:
                at_work.append(run)
            if not at_work:
                break
            run = at_work.pop(0)
            if run.trial not in trials:
                trials = {trial.number: trial for trial in self.ledger.trials()}
            self.end(run, self.outcome(trials[run.trial].env, run.seed))
            ended += 1
        return ended

    def end(self, run: RunRow, outcome: tuple[float, int] | None) -> None:
        """Let one run have ended, in the ledger and for the planner."""
        number = self.ledger.attempt_numbers().get(run.id, 0) + 1
        state, result, message = finish_run(self.ledger, run, number, outcome)
        self.planner.over(run, state, result, message)

    def entries(self, rung: str) -> list[Entry]:
        return self.planner.book.entries(rung)


@contextmanager
def playing(spec: SweepSpec, root: Path, outcome: Outcome = bowl) -> Iterator[Play]:
    """A driver at work on a search from where the ledger says it is; gone after the block."""
    sweep = SweepDir(root / spec.name)
    sweep.path.mkdir(parents=True, exist_ok=True)
    assert spec.search is not None
    if spec.search.storage is None:  # a journal opens sooner than a database
        search = spec.search.model_copy(update={"storage": f"journal:{root / 'study.journal'}"})
        spec = spec.model_copy(update={"search": search})
    notes: list[str] = []
    with closing(Ledger.open_for_writing(sweep.ledger, spec)) as ledger:
        ledger.pause()
        planner = Planner(spec, sweep, ledger, notes.append)
        yield Play(spec, sweep, ledger, planner, outcome, notes)


def states(ledger: Ledger) -> list[RunState]:
    return [run.state for run in ledger.runs()]
