"""Where a search's configurations stand in each of its stages: what their finished runs say.

Read from the ledger alone, so that it is the same whether the search is under way or long over.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sweeper.book import Book
from sweeper.entries import Entry, EntryState, Evidence, Told, told
from sweeper.ledger import Ledger
from sweeper.racing import Candidate, Noise, Ranked, pooled_noise, rank
from sweeper.rows import AttemptState, RunRow, RunState
from sweeper.search import Direction, Rung, Search
from sweeper.stats import Summary, summarise
from sweeper.surrogate import Axis

Run = tuple[str, int]  # a trial's name and a seed


@dataclass(frozen=True, kw_only=True)
class Standing:
    """One configuration in one stage, its seeds in the stage's order.

    `runs` is how each seed is that was asked for. `evidence` is of those that finished with a
    score, `ended` is when they did (Unix seconds).
    """

    entry: Entry
    name: str
    runs: Mapping[int, RunState]
    evidence: Mapping[int, Evidence]
    ended: Mapping[int, float]

    @property
    def state(self) -> EntryState:
        return self.entry.state

    @property
    def bytes_max(self) -> int | None:
        """The largest artifact of its seeds; None where one of them does not say."""
        sizes = [each.bytes_total for each in self.evidence.values()]
        known = [size for size in sizes if size is not None]
        return max(known) if known and len(known) == len(sizes) else None

    def scores(self, objective: int = 0) -> dict[int, float]:
        """One objective by seed."""
        return {seed: each.values[objective] for seed, each in self.evidence.items()}

    def summary(self, objective: int = 0) -> Summary:
        return summarise(list(self.scores(objective).values()))


@dataclass(frozen=True, kw_only=True)
class Standings:
    """One stage of a search with all its configurations, by number."""

    rung: Rung
    seeds: tuple[int, ...]
    objectives: tuple[str, ...]
    senses: tuple[Direction, ...]
    max_bytes: int
    rows: tuple[Standing, ...]

    @property
    def signs(self) -> tuple[float, ...]:
        """What each objective is multiplied by so that lower is better."""
        return tuple(1.0 if sense == "minimize" else -1.0 for sense in self.senses)

    def feasible(self, row: Standing) -> bool | None:
        """Whether its artifacts fit, all of them; None where that is not known."""
        return None if row.bytes_max is None else row.bytes_max <= self.max_bytes

    def eligible(self, row: Standing) -> bool:
        """Whether it may win: fully replicated, and not known to be too large."""
        return row.state is EntryState.COMPLETE and self.feasible(row) is not False

    def told(self, row: Standing) -> Told:
        """What Optuna is told of it."""
        return told(
            row.entry,
            row.evidence,
            objectives=self.objectives,
            max_bytes=self.max_bytes,
        )

    def candidates(self) -> list[Candidate]:
        """The configurations as the race sees them, by number; lower is better."""
        sign = self.signs[0]
        return [
            Candidate(
                number=row.entry.number,
                params=row.entry.params,
                scores={seed: sign * score for seed, score in row.scores().items()},
                running=frozenset(seed for seed, state in row.runs.items() if not state.over),
                constraint=None if row.bytes_max is None else row.bytes_max - self.max_bytes,
                failed=row.state is EntryState.FAILED,
            )
            for row in self.rows
        ]


def noise_of(stage: Standings, search: Search) -> Noise:
    """The noise of a stage's runs, pooled over them with what was expected."""
    prior = Noise(sigma=search.racing.sigma, df=search.racing.sigma_df)
    return pooled_noise(stage.candidates(), prior)


def objectives_of(search: Search, rung: Rung) -> tuple[str, ...]:
    """What a stage judges by."""
    return search.objectives if rung.objective is None else (rung.objective,)


def senses_of(search: Search, rung: Rung) -> tuple[Direction, ...]:
    """The direction of each of a stage's objectives."""
    known = dict(zip(search.objectives, search.senses, strict=True))
    return tuple(known.get(name, "minimize") for name in objectives_of(search, rung))


def evidence_of(result: Mapping[str, Any], objectives: tuple[str, ...]) -> Evidence | None:
    """What a finished run's result says of the objectives; None where it does not."""
    values = [result.get(name) for name in objectives]
    numbers = [float(value) for value in values if isinstance(value, int | float)]
    if len(numbers) < len(values) or not all(map(math.isfinite, numbers)):
        return None
    return Evidence(values=tuple(numbers), bytes_total=result.get("bytes_total"))


def axes_of(search: Search) -> list[Axis]:
    """The space as the surrogate has it: what is searched, in the space's order."""
    axes = []
    for name, param in search.space.items():
        if param.value is not None:
            continue
        when = None
        for parent, wanted in list(param.when.items())[-1:]:  # the condition closest to it
            when = (parent, tuple(wanted) if isinstance(wanted, list) else (wanted,))
        if param.choices is not None:
            axes.append(Axis(name=name, choices=param.choices, when=when))
            continue
        assert param.low is not None
        assert param.high is not None
        axes.append(
            Axis(
                name=name,
                low=float(param.low),
                high=float(param.high),
                log=param.log,
                step=None if param.step is None else float(param.step),
                whole=param.is_int,
                when=when,
            )
        )
    return axes


def read_standings(ledger: Ledger) -> list[Standings]:
    """All stages of a search, in order; those that have not begun have no rows."""
    spec = ledger.spec
    assert spec.search is not None
    book = Book(ledger)
    names = {trial.number: trial.name for trial in ledger.trials()}
    runs = {(run.trial, run.seed): run for run in ledger.runs()}
    results: dict[int, tuple[Mapping[str, Any], float]] = {}  # by run: its result, and its end
    for attempt in ledger.attempts():
        if attempt.state is AttemptState.FINISHED and attempt.result is not None:
            results[attempt.run] = (attempt.result, attempt.ended or attempt.launched)
    stages = []
    for rung in spec.rungs:
        objectives, seeds = objectives_of(spec.search, rung), rung.seeds_of(spec.seeds)
        rows = tuple(
            standing_of(entry, names[entry.trial], seeds, objectives, runs, results)
            for entry in book.entries(rung.name)
        )
        stages.append(
            Standings(
                rung=rung,
                seeds=seeds,
                objectives=objectives,
                senses=senses_of(spec.search, rung),
                max_bytes=spec.budget.max_bytes,
                rows=rows,
            )
        )
    return stages


def comparable(stages: Sequence[Standings], stage: Standings) -> list[Candidate]:
    """The candidates of the stages before one whose scores mean the same as its own."""
    found: list[Candidate] = []
    for earlier in stages:
        if earlier.rung.name == stage.rung.name:
            break
        if earlier.rung.env == stage.rung.env and earlier.objectives == stage.objectives:
            found += earlier.candidates()
    return found


def ranking(stages: Sequence[Standings], stage: Standings, search: Search) -> list[Ranked]:
    """What is believed of a stage's candidates by all scores that mean the same, best first."""
    return rank(
        stage.candidates(),
        axes_of(search),
        noise_of(stage, search),
        beside=comparable(stages, stage),
    )


def standing_of(
    entry: Entry,
    name: str,
    seeds: tuple[int, ...],
    objectives: tuple[str, ...],
    runs: Mapping[tuple[int, int], RunRow],
    results: Mapping[int, tuple[Mapping[str, Any], float]],
) -> Standing:
    """Where a configuration stands by these runs (by trial and seed) and results (by run)."""
    states, evidence, ended = {}, {}, {}
    for seed in seeds:
        run = runs.get((entry.trial, seed))
        if run is None:
            continue
        states[seed] = run.state
        if run.state is RunState.FINISHED and run.id in results:
            result, end = results[run.id]
            if (found := evidence_of(result, objectives)) is not None:
                evidence[seed], ended[seed] = found, end
    return Standing(entry=entry, name=name, runs=states, evidence=evidence, ended=ended)


def stages_of_runs(stages: Sequence[Standings]) -> dict[Run, str]:
    """Which stages each run is for: the one that asked for it, then those that it counts in too."""
    found: dict[Run, list[str]] = {}
    for stage in stages:
        for row in stage.rows:
            for seed in row.runs:
                found.setdefault((row.name, seed), []).append(stage.rung.name)
    return {run: ", ".join(dict.fromkeys(names)) for run, names in found.items()}
