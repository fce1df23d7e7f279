"""What a search does next: which configuration gets which seed, and when it has had enough.

One stage (rung) after the other. All that is known is in the ledger, and every decision is written
there before it is acted upon, so that a search goes on after any crash as if nothing had happened;
Optuna's studies are shown the same afterwards.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from sweeper import racing
from sweeper.book import Book
from sweeper.entries import Entry, EntryState
from sweeper.layout import SweepDir
from sweeper.ledger import Ledger
from sweeper.pareto import front_of
from sweeper.proposal import propose
from sweeper.racing import Verdict
from sweeper.rows import AttemptState, RunRow, RunState
from sweeper.search import Rung
from sweeper.space import Params, complete, grid
from sweeper.spec import SweepSpec, TrialSpec
from sweeper.spending import may_run, runs_left
from sweeper.standings import (
    Standing,
    Standings,
    axes_of,
    comparable,
    noise_of,
    ranking,
    read_standings,
    standing_of,
)
from sweeper.study import Study, open_storage

# So often in a row a sampler may propose what has been tried; then it has nothing new.
MAX_REPEATS = 100
BUDGET_SPENT = "the search's budget was spent before it had all its seeds"
OUTRUN = "others were better, or as good and cheaper to be sure of"
WORSE = "surely worse than the best so far"


@dataclass(eq=False)
class Planner:
    """A search on its way; `note` is told what people want to know of it."""

    spec: SweepSpec
    sweep: SweepDir
    ledger: Ledger
    note: Callable[[str], None]
    done: bool = False  # nothing more will be asked for
    _place: int = 0  # of the stage at work
    _closed: bool = False  # it takes no more configurations from the sampler
    _waits: bool = False  # there is nothing to do before a run ends
    _studies: dict[str, Study] = field(default_factory=dict)
    _names: dict[int, str] = field(default_factory=dict)  # of trials
    _runs: dict[tuple[int, int], RunRow] = field(default_factory=dict)  # by trial and seed
    _results: dict[int, tuple[Mapping[str, Any], float]] = field(default_factory=dict)  # by run
    _why: dict[int, str] = field(default_factory=dict)  # what a run failed of, or was pruned for

    def __post_init__(self) -> None:
        """Take up the search where the ledger says it is."""
        assert self.spec.search is not None
        self.search = self.spec.search
        self.book = Book(self.ledger)
        self._axes = axes_of(self.search)
        self._storage = open_storage(self.search.storage or f"sqlite:///{self.sweep.study}")
        self._names = {trial.number: trial.name for trial in self.ledger.trials()}
        self._runs = {(run.trial, run.seed): run for run in self.ledger.runs()}
        for attempt in self.ledger.attempts():
            if attempt.state is AttemptState.FINISHED and attempt.result is not None:
                self._results[attempt.run] = (attempt.result, attempt.ended or attempt.launched)
            elif attempt.message is not None:
                self._why[attempt.run] = attempt.message
        self._stages = read_standings(self.ledger)
        for place, stage in enumerate(self._stages):
            if stage.rows:
                self._place = place
                self._study(stage)
        self._judge_all()
        self.done = self._is_last and not self._open() and not self._takes_more()

    @property
    def stage(self) -> Standings:
        """The stage at work, as it stands."""
        return self._stages[self._place]

    @property
    def _is_last(self) -> bool:
        return self._place + 1 == len(self._stages)

    # ---- what comes next

    def next_run(self) -> RunRow | None:
        """The run that a free slot is to have; None while there is nothing to do but wait."""
        while not self.done and not self._waits:
            if self._may_run():
                run = self._first() if self._place == 0 else self._later()
                if run is not None:
                    return run
            if any(open_seeds(row) for row in self._open()):
                self._waits = True
                return None
            self._close()
            self._advance()
        return None

    def over(self, run: RunRow, state: RunState, result: Any, message: str | None) -> None:
        """Take in that a run is over, and judge what depends on it."""
        self._waits = False
        if result is not None:
            self._results[run.id] = (result, time.time())
        if message is not None:
            self._why[run.id] = message
        self._take_in(replace(run, state=state))
        self._judge_all()

    def report(self, run: RunRow, place: int, value: float) -> str | None:
        """Take in a validation on the way; why the run is to be ended, where it is.

        Only of a configuration's first run in the first stage: the others are there because it has
        passed.
        """
        stage = self._stages[0]
        if self._place > 0 or self.search.pruner is None or len(stage.objectives) > 1:
            return None
        if run.seed != stage.seeds[0] or not math.isfinite(value):
            return None
        for row in self._open():
            entry = row.entry
            if entry.trial != run.trial or place in entry.reports:
                continue
            self.book.report(entry, place, value)
            entry = replace(entry, reports={**entry.reports, place: value})
            self._show(self._put(replace(row, entry=entry)))
            if self._study(stage).should_prune(entry.number):
                return f"pruned at {place}: {value:.4f} is worse than others were there"
        return None

    # ---- the first stage, and those after it

    def _takes_more(self) -> bool:
        """Whether the stage at work may yet have more configurations than it has."""
        if self._place > 0 or self._closed or not self._may_run():
            return False
        limits = (self.stage.rung.trials, self.search.budget.trials)
        return len(self.stage.rows) < min((n for n in limits if n is not None), default=math.inf)

    def _first(self) -> RunRow | None:
        """One more seed of a configuration that is to have it, else a new configuration."""
        for row in self._open():
            if not open_seeds(row) and (seed := self._next_seed(row)) is not None:
                return self._want(row, seed)
        for _ in range(MAX_REPEATS):
            if not self._takes_more():
                return None
            new = self._next_configuration()
            if new is None:
                break
            if (run := self._enter(*new)) is not None:
                return run
            # It has been tried before: what is known of it is known of this one too.
            self._judge_all()
        else:
            self.note(
                f"{self.stage.rung.name}: the sampler has proposed nothing new {MAX_REPEATS} times"
            )
        self._closed = True
        return None

    def _next_configuration(self) -> tuple[int, Params, str] | None:
        """Those listed come first, then the grid's or a sampler's: its number and name."""
        count = len(self.stage.rows)
        if count < len(self.spec.trials):
            listed = self.spec.trials[count]
            return count, complete(self.search.space, listed.env), listed.name
        if self.search.sampler == "grid":
            points = grid(self.search.space)
            place = count - len(self.spec.trials)
            return (count, points[place], f"t{count}") if place < len(points) else None
        if self.search.sampler == "surrogate":
            sigma = noise_of(self.stage, self.search).sigma
            seed, candidates = self.search.seed, self.stage.candidates()
            params = propose(self._axes, candidates, sigma, seed=seed)
            return count, complete(self.search.space, params), f"t{count}"
        asked = self._study(self.stage).ask()
        return asked.number, asked.params, f"t{asked.number}"

    def _enter(self, number: int, params: Params, name: str) -> RunRow | None:
        """Enter a configuration with its first run; None where that has been made before."""
        rung, trial = self.stage.rung, _trial(self.stage.rung, params, name)
        (entry,), runs = self.book.enter(
            rung.name, self.spec, [(number, params, trial)], seed=self.stage.seeds[0]
        )
        for run in runs:
            self._runs[run.trial, run.seed] = run
        self._meet(entry, trial.name)
        return runs[0] if runs else None

    def _meet(self, entry: Entry, name: str) -> None:
        """Take in a new configuration; the name is its trial's, unless that was there before."""
        self._names.setdefault(entry.trial, name)
        self._show(self._put(self._standing(self.stage, entry)))

    def _later(self) -> RunRow | None:
        """The next run of those that have been chosen."""
        stage = self.stage
        if stage.rung.fresh or len(stage.objectives) > 1:
            # Nothing is decided by them here: all have all, seed by seed.
            for seed in stage.seeds:
                for row in self._open():
                    if seed not in row.runs:
                        return self._want(row, seed)
            return None
        chosen = racing.next_run(
            stage.candidates(),
            stage.seeds,
            self._axes,
            noise_of(stage, self.search),
            margin=self.search.racing.margin,
            confidence=self.search.racing.confidence,
            left=runs_left(self.spec, self._runs, self._stages, self._place),
            beside=comparable(self._stages, stage),
        )
        return None if chosen is None else self._want(stage.rows[chosen.number], chosen.seed)

    def _want(self, row: Standing, seed: int) -> RunRow:
        run = self.book.want(row.entry.trial, seed)
        self._take_in(run)
        return run

    def _close(self) -> None:
        """Settle what the stage at work will not go on with."""
        self._judge_all()
        reason = OUTRUN if self._may_run() else BUDGET_SPENT
        for row in self._open():
            self._settle(row, EntryState.PRUNED, reason)

    def _advance(self) -> None:
        """Let the best of this stage go on to the next, or end the search."""
        if self._is_last:
            self.done = True
            return
        here, following = self.stage, self._stages[self._place + 1]
        best = self.best(here)[: following.rung.top]
        if not best:
            self.note(f"{here.rung.name}: no configuration has finished within the budget of bytes")
            self.done = True
            return
        entered = []
        for number, row in enumerate(best):
            name = row.name.removesuffix(f"-{here.rung.name}")
            entered.append(
                (number, row.entry.params, _trial(following.rung, row.entry.params, name))
            )
        self._place += 1
        entries, _ = self.book.enter(following.rung.name, self.spec, entered)
        for entry, (_, _, trial) in zip(entries, entered, strict=True):
            self._meet(entry, trial.name)
        names = ", ".join(row.name for row in best)
        self.note(f"{following.rung.name}: {names} of {len(here.rows)} go on")
        self._judge_all()

    def best(self, stage: Standings) -> list[Standing]:
        """The fully replicated configurations of a stage that fit, the best first."""
        if stage.rung.fresh:  # whose seeds choose nothing
            rows = list(stage.rows)
        else:
            rows = [stage.rows[each.number] for each in ranking(self._stages, stage, self.search)]
        ordered = [row for row in rows if stage.eligible(row)]
        if len(stage.objectives) == 1:
            return ordered
        fronts = front_of([_signed_means(stage, row) for row in ordered])
        return [row for _, row in sorted(zip(fronts, ordered, strict=True), key=lambda p: p[0])]

    # ---- judging

    def _judge_all(self) -> None:
        """Settle the configurations of the stage at work for which all is said."""
        for row in self._open():
            if open_seeds(row):
                self._show(row)
            else:
                self._judge(row)

    def _judge(self, row: Standing) -> None:
        """Settle a configuration, none of whose runs is under way, unless it is to have more."""
        for seed, state in row.runs.items():
            if state is RunState.FINISHED and seed not in row.evidence:
                why = f"seed {seed}: its result says no {', '.join(self.stage.objectives)}"
                return self._settle(row, EntryState.FAILED, why)
            if state in (RunState.FAILED, RunState.PRUNED):
                run = self._runs[row.entry.trial, seed]
                ended = EntryState.FAILED if state is RunState.FAILED else EntryState.PRUNED
                return self._settle(row, ended, f"seed {seed}: {self._why.get(run.id, state)}")
        if len(row.runs) == len(self.stage.seeds):
            return self._settle(row, EntryState.COMPLETE)
        if row.runs and self._verdict(row) is Verdict.STOP:
            return self._settle(row, EntryState.PRUNED, WORSE)
        return self._show(row)

    def _verdict(self, row: Standing) -> Verdict:
        """What the race says of a configuration that has not had all its seeds."""
        stage = self.stage
        if stage.rung.fresh or len(stage.objectives) > 1:
            return Verdict.MORE
        candidates, seeds = stage.candidates(), len(stage.seeds)
        return racing.after_seed(
            candidates[row.entry.number],
            racing.incumbent(candidates, seeds),
            seeds,
            noise_of(stage, self.search),
            margin=self.search.racing.margin,
            confidence=self.search.racing.confidence,
        )

    def _settle(self, row: Standing, state: EntryState, reason: str | None = None) -> None:
        entry = replace(row.entry, state=state, reason=reason, seeds=tuple(row.evidence))
        self.book.settle(entry)
        self._show(self._put(replace(row, entry=entry)))

    def _may_run(self) -> bool:
        return may_run(self.spec, self.ledger, self._runs, self._stages, self._place)

    # ---- what is known

    def _open(self) -> list[Standing]:
        return [row for row in self.stage.rows if row.state is EntryState.OPEN]

    def _next_seed(self, row: Standing) -> int | None:
        return next((seed for seed in self.stage.seeds if seed not in row.runs), None)

    def _take_in(self, run: RunRow) -> None:
        """Bring all that a run is for to how it is now."""
        self._runs[run.trial, run.seed] = run
        for place, stage in enumerate(self._stages):
            for row in stage.rows:
                if row.entry.trial == run.trial:
                    self._put(self._standing(stage, row.entry), place)

    def _standing(self, stage: Standings, entry: Entry) -> Standing:
        return standing_of(
            entry,
            self._names[entry.trial],
            stage.seeds,
            stage.objectives,
            self._runs,
            self._results,
        )

    def _put(self, row: Standing, place: int | None = None) -> Standing:
        """Have a row in a stage, else in the one at work; it is there by its number."""
        place = self._place if place is None else place
        stage, number = self._stages[place], row.entry.number
        rows = (*stage.rows[:number], row, *stage.rows[number + 1 :])
        self._stages[place] = replace(stage, rows=rows)
        return row

    # ---- Optuna

    def _study(self, stage: Standings) -> Study:
        """A stage's study, brought to what the ledger says when it is first needed."""
        rung = stage.rung
        study = self._studies.get(rung.name)
        if study is None:
            name = self.sweep.name if len(self._stages) == 1 else f"{self.sweep.name}/{rung.name}"
            study = Study(self._storage, name, self.search, stage.senses)
            self._studies[rung.name] = study
            if study.sync([stage.told(row) for row in stage.rows], self.ledger.uid):
                self.note(f"{name}: Optuna's study was not what the ledger says; it is made anew")
        return study

    def _show(self, row: Standing) -> None:
        self._study(self.stage).show(self.stage.told(row))


def open_seeds(row: Standing) -> list[int]:
    """The seeds of a configuration that are under way."""
    return [seed for seed, state in row.runs.items() if not state.over]


def _trial(rung: Rung, params: Params, name: str) -> TrialSpec:
    """A configuration at the settings of a stage, as a trial."""
    name = f"{name}-{rung.name}" if rung.env else name
    return TrialSpec(name=name[:80], env={**params, **rung.env})


def _signed_means(stage: Standings, row: Standing) -> list[float]:
    """Mean objectives, lower being better."""
    means = stage.told(row).values or ()
    return [sign * mean for sign, mean in zip(stage.signs, means, strict=True)]
