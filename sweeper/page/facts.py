"""All that a page says of a sweep, read once; what may be compared, and which is the best."""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any

from sweeper.aggregate import ON_FRESH, runs_frame, trials_frame
from sweeper.curves import last_attempts
from sweeper.layout import SweepDir
from sweeper.ledger import Ledger
from sweeper.logs import describe_failure
from sweeper.page.finite import FiniteLedger
from sweeper.page.hiding import secrets_of, told
from sweeper.page.html import cut
from sweeper.page.logs import Tail, read_tails
from sweeper.page.traces import Trace, read_traces
from sweeper.pulse import is_alive
from sweeper.pulse import read as read_pulse
from sweeper.rows import AttemptRow, NoteRow, RunState, StageRow
from sweeper.spec import SweepSpec
from sweeper.stats import Comparison, Summary, summarise, welch
from sweeper.tables import AND, SUBSET, records
from sweeper.words import first_line

if TYPE_CHECKING:
    from sweeper.findings import Findings

ALPHA = 0.01  # as the field asks for
MOST_TRACED = 4  # configurations whose curves are drawn
MOST_FAILURES, FAILURE_LETTERS = 200, 4_000  # that are told in full, and how much of each
Row = dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class Group:
    """A configuration: its row of the trials' table, and its runs.

    A search has two of a configuration that was run on fresh seeds as well. `settings` are those
    in which it differs from others.
    """

    name: str
    row: Row
    runs: tuple[Row, ...]
    settings: Mapping[str, str]

    @property
    def trial(self) -> str:
        return str(self.row["trial"])

    @property
    def mean(self) -> float | None:
        mean: float | None = self.row["val_bpb_mean"]
        return mean

    @property
    def summary(self) -> Summary:
        """Its scores; nothing where they are of several kinds, which have no mean."""
        return summarise([] if self.mean is None else self.values("val_bpb"))

    @property
    def scored(self) -> tuple[Row, ...]:
        """The runs that have finished."""
        return tuple(run for run in self.runs if run["state"] == RunState.FINISHED)

    def values(self, measure: str) -> list[float]:
        """A measure of the runs that have finished, as far as they say it."""
        return [float(run[measure]) for run in self.scored if run[measure] is not None]

    def doubt(self, metric: str | None = None) -> str | None:
        """Why it cannot be held against others that are scored by a metric; None: it can."""
        row = self.row
        if not row["n"]:
            return "no seed has finished"
        if len(self.values("val_bpb")) < row["n"]:
            return "not every run of its has a score that is a finite number"
        if self.mean is None:
            return f"its runs are scored by {row['metric']}, which have no mean"
        if row["n"] < row["seeds"]:
            return f"{row['n']} of {row['seeds']} seeds have finished"
        if row["within_budget"] is False:
            return f"{row['bytes_total_max']:,} bytes are over the budget"
        if row["codes"] > 1:
            return f"its runs are of {row['codes']} versions of the code"
        if metric is not None and row["metric"] != metric:
            return f"scored by {row['metric']}, the others by {metric}"
        return None


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """The best configuration beside the next: Welch's test of no difference, two-sided.

    `p` is times the number of all `pairs` (Bonferroni), for these two were picked by the very
    scores that are tested. `comparison` is None where `reason` says why there is no test.
    """

    best: Group
    second: Group
    pairs: int
    comparison: Comparison | None = None
    p: float | None = None
    reason: str | None = None

    @property
    def apart(self) -> bool:
        return self.p is not None and self.p < ALPHA


@dataclass(frozen=True, kw_only=True)
class Facts:
    """A sweep at the time `now` (Unix seconds), as its ledger and its files say."""

    sweep: SweepDir
    spec: SweepSpec
    now: float
    at_work: bool  # whether a driver is
    groups: tuple[Group, ...]
    # The best first: those that can be compared, then by their scores those that cannot; of a
    # search as it ranks them itself.
    ranked: tuple[Group, ...]
    runs: tuple[Row, ...]
    attempts: tuple[AttemptRow, ...]
    stages: tuple[StageRow, ...]
    seconds: Mapping[tuple[str, int], float]  # of all attempts of a run that have ended
    tries: Mapping[tuple[str, int], tuple[str, ...]]  # how a run's attempts ended before the last
    notes: tuple[NoteRow, ...]
    last: Mapping[tuple[str, int], AttemptRow]  # each run's last attempt
    provenance: Mapping[str, Any] = field(default_factory=dict)
    tails: Mapping[tuple[str, int], Tail] = field(default_factory=dict)
    traces: tuple[Trace, ...] = ()
    # What of a run is not as it should be, and is left out; by trial and seed.
    odd: Mapping[tuple[str, int], tuple[str, ...]] = field(default_factory=dict)
    secrets: frozenset[str] = frozenset()  # values that stand nowhere on the page
    found: Findings | None = None

    @property
    def budget(self) -> int:
        return self.spec.budget.max_bytes

    @cached_property
    def counts(self) -> Counter[str]:
        """How many runs are in each state."""
        return Counter(str(run["state"]) for run in self.runs)

    @property
    def over(self) -> bool:
        return all(RunState(run["state"]).over for run in self.runs) and bool(self.runs)

    @property
    def metric(self) -> str | None:
        """What most configurations are scored by."""
        return common_metric(self.groups)

    @cached_property
    def compared(self) -> tuple[Group, ...]:
        """Those of `ranked` that can be held against each other."""
        return tuple(group for group in self.ranked if group.doubt(self.metric) is None)

    @cached_property
    def verdict(self) -> Verdict | None:
        """Of a sweep whose configurations are all known before; None where fewer than two are."""
        if len(self.compared) < 2 or self.spec.search is not None:
            return None
        return judge(self.compared)

    @cached_property
    def places(self) -> dict[tuple[str, int], int]:
        """Each run's place in the order of launch, by trial and seed."""
        return {(run["trial"], run["seed"]): place for place, run in enumerate(self.runs)}

    @cached_property
    def failures(self) -> dict[tuple[str, int], str]:
        """Why the first runs have failed that did, with the end of the traceback."""
        keys = [(r["trial"], r["seed"]) for r in self.runs if r["state"] == RunState.FAILED]
        return {
            key: self.told(describe_failure(self.last[key]), FAILURE_LETTERS)
            for key in keys[:MOST_FAILURES]
            if key in self.last
        }

    def told(self, text: str, letters: int) -> str:
        """So much of a text as can stand on the page; of a secret not even the beginning."""
        return cut(told(text, self.secrets), letters)

    @cached_property
    def traced(self) -> tuple[str, ...]:
        """The configurations whose curves are there, in the order of their colours."""
        return tuple(dict.fromkeys(trace.trial for trace in self.traces))


def common_metric(groups: Sequence[Group]) -> str | None:
    kinds = Counter(g.row["metric"] for g in groups if g.mean is not None and g.row["metric"])
    return kinds.most_common(1)[0][0] if kinds else None


def rank(groups: Sequence[Group]) -> tuple[Group, ...]:
    """As `Facts.ranked`; fresh seeds come before those that a configuration was chosen by."""
    metric = common_metric(groups)

    def place(group: Group) -> tuple[bool, bool, bool, float]:
        fresh = bool(group.row.get("fresh", False))
        mean = group.mean
        return group.doubt(metric) is not None, mean is None, not fresh, mean or 0.0

    return tuple(sorted(groups, key=place))


def judge(compared: Sequence[Group]) -> Verdict:
    """The first beside the second, of so many that were compared."""
    best, second = compared[:2]
    pairs = len(compared) * (len(compared) - 1) // 2
    try:
        comparison = welch(best.values("val_bpb"), second.values("val_bpb"), alpha=ALPHA)
    except ValueError as error:
        return Verdict(best=best, second=second, pairs=pairs, reason=str(error))
    p = min(1.0, 2 * comparison.p * pairs)
    return Verdict(best=best, second=second, pairs=pairs, comparison=comparison, p=p)


# ---- reading


def gather(sweep: SweepDir, now: float | None = None) -> Facts:
    """Read a sweep; UserError where there is none."""
    now = time.time() if now is None else now
    with closing(FiniteLedger.open_for_reading(sweep.ledger)) as ledger, ledger.snapshot():
        groups, runs = read_groups(ledger)
        names = {trial.number: trial.name for trial in ledger.trials()}
        last = {(names[t], seed): each for (t, seed), each in last_attempts(ledger).items()}
        found, odd = _findings(ledger), ledger.odd()
        ranked = _in_order(groups, found)
        order = list(dict.fromkeys(group.trial for group in ranked))
        seeds = _seeds(runs, last)
        shown = {name: seeds.get(name, []) for name in _comparable(order, found)}
        traces, unread = read_traces(sweep, shown, last, most=MOST_TRACED)
        return Facts(
            sweep=sweep,
            spec=ledger.spec,
            now=now,
            at_work=is_alive(sweep, read_pulse(sweep.pulse)),
            groups=groups,
            ranked=ranked,
            runs=runs,
            attempts=tuple(ledger.attempts()),
            stages=tuple(ledger.stages()),
            seconds=_seconds(ledger),
            tries=_tries(ledger),
            notes=tuple(ledger.notes()),
            last=last,
            provenance=_provenance(sweep),
            tails=read_tails(sweep, ledger, _telling_first(runs, order), last),
            traces=traces,
            odd={key: tuple(filter(None, (odd.get(key), unread.get(key)))) for key in last},
            secrets=secrets_of(ledger.spec, ledger.trials()),
            found=found,
        )


def read_groups(ledger: Ledger) -> tuple[tuple[Group, ...], tuple[Row, ...]]:
    """All configurations in the order of the ledger, and all runs in that of their launch."""
    spec = ledger.spec
    runs, rows = records(runs_frame(ledger)), records(trials_frame(ledger))
    fresh = {seed for rung in spec.stages if rung.fresh for seed in rung.seeds_of(spec.seeds)}
    envs = {trial.name: trial.env for trial in ledger.trials()}
    values: dict[str, set[str | None]] = {}
    for name in {name for env in envs.values() for name in env}:
        values[name] = {env.get(name) for env in envs.values()}
    mine: dict[tuple[str, bool], list[Row]] = {}
    for run in runs:
        mine.setdefault((run["trial"], run["seed"] in fresh), []).append(run)
    groups = []
    for row in rows:
        name, on_fresh = row["trial"], bool(row.get("fresh", False))
        settings = {key: envs[name][key] for key in envs[name] if len(values[key]) > 1}
        group = Group(
            name=name + (ON_FRESH if on_fresh else ""),
            row=row,
            runs=tuple(mine.get((name, on_fresh), ())),
            settings=settings,
        )
        groups.append(group)
    return tuple(groups), tuple(runs)


def _by_run(ledger: Ledger) -> dict[tuple[str, int], list[AttemptRow]]:
    """Every run's attempts, by trial and seed."""
    names = {trial.number: trial.name for trial in ledger.trials()}
    runs = {run.id: (names[run.trial], run.seed) for run in ledger.runs()}
    found: dict[tuple[str, int], list[AttemptRow]] = {}
    for attempt in ledger.attempts():
        found.setdefault(runs[attempt.run], []).append(attempt)
    return found


def _seconds(ledger: Ledger) -> dict[tuple[str, int], float]:
    by_attempt: dict[int, float] = {}
    for stage in ledger.stages():
        by_attempt[stage.attempt] = by_attempt.get(stage.attempt, 0.0) + stage.seconds
    return {
        run: sum(by_attempt.get(attempt.id, 0.0) for attempt in attempts)
        for run, attempts in _by_run(ledger).items()
    }


def _tries(ledger: Ledger) -> dict[tuple[str, int], tuple[str, ...]]:
    """How attempts ended that were followed by another."""
    return {
        run: tuple(
            f"{attempt.state}: {first_line(attempt.message)}" if attempt.message else attempt.state
            for attempt in attempts[:-1]
        )
        for run, attempts in _by_run(ledger).items()
    }


def _findings(ledger: Ledger) -> Findings | None:
    if ledger.spec.search is None:
        return None
    from sweeper.findings import find  # the surrogate and optuna take two seconds

    try:
        return find(ledger)
    except ValueError:  # a score that it rests on is none
        return None


def _in_order(groups: Sequence[Group], found: Findings | None) -> tuple[Group, ...]:
    """The best first; of a search as its winner and its tables say."""
    ranked = rank(groups)
    if found is None:
        return ranked
    names = _named(found)
    places = {name: place for place, name in reversed(list(enumerate(names)))}
    return tuple(sorted(ranked, key=lambda group: places.get(group.trial, len(names))))


def _named(found: Findings) -> list[str]:
    """The winner of a search, what it beat, and its front: of the last stages alone."""
    tables = [table for table in (found.confirming, found.choosing) if table is not None]
    names = [found.winner.name] if found.winner is not None else []
    names += [each.name for each in found.front]
    return names + [rival.name for table in tables for rival in table.rivals]


def _comparable(order: Sequence[str], found: Findings | None) -> list[str]:
    """Configurations whose curves belong in one picture: stages have settings of their own."""
    last = set() if found is None else set(_named(found))
    return [name for name in order if not last or name in last]


def _telling_first(runs: Sequence[Row], order: Sequence[str]) -> list[tuple[str, int]]:
    """Runs whose logs are wanted most: what has failed, then those of the best."""
    places = {name: place for place, name in enumerate(order)}
    wanted = sorted(
        runs,
        key=lambda run: (run["state"] != RunState.FAILED, places.get(run["trial"], 0), run["seed"]),
    )
    return [(run["trial"], run["seed"]) for run in wanted]


def _seeds(runs: Sequence[Row], last: Mapping[tuple[str, int], AttemptRow]) -> dict[str, list[int]]:
    """Those of each trial that have begun."""
    seeds: dict[str, list[int]] = {}
    for run in runs:
        if (run["trial"], run["seed"]) in last:
            seeds.setdefault(run["trial"], []).append(run["seed"])
    return seeds


def _provenance(sweep: SweepDir) -> dict[str, Any]:
    try:
        facts = json.loads(sweep.resolved_spec.read_bytes())
    except (OSError, ValueError, RecursionError):
        return {}
    return facts if isinstance(facts, dict) else {}


def is_partial(metric: str | None) -> bool:
    """Whether a metric is of a part of the validation tokens alone."""
    return any(kind.endswith(SUBSET) for kind in (metric or "").split(AND))
