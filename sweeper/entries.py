"""A configuration in a stage of a search: what it was judged by, and what Optuna is told of it."""

from __future__ import annotations

import enum
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any


class EntryState(enum.StrEnum):
    """OPEN until it has all its seeds (COMPLETE), has lost the race (PRUNED), or one has failed."""

    OPEN = "open"
    COMPLETE = "complete"
    PRUNED = "pruned"
    FAILED = "failed"


@dataclass(frozen=True, kw_only=True)
class Entry:
    """One configuration in one stage (`rung`) of a search; `number` is that of Optuna's trial.

    `params` are the settings that the search chose, `trial` is what they are in the ledger, at the
    settings of the stage. `seeds` are those whose scores counted when it was settled, `reports`
    what its validations on the way said, by place. The best are entered first in a later stage.
    """

    rung: str
    number: int
    trial: int
    params: Mapping[str, Any]
    state: EntryState = EntryState.OPEN
    reason: str | None = None
    seeds: tuple[int, ...] = ()
    reports: Mapping[int, float] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Evidence:
    """What one finished run says: its objectives, and its artifact's bytes where they are known."""

    values: tuple[float, ...]
    bytes_total: int | None


@dataclass(frozen=True, kw_only=True)
class Told:
    """All that Optuna knows of an entry; the same whether it was there or is told years later.

    `values` are the means over its seeds, `constraints` are met at 0 and below.
    """

    number: int
    params: Mapping[str, Any]
    state: EntryState
    values: tuple[float, ...] | None
    intermediate: Mapping[int, float]
    constraints: Mapping[str, float]
    attributes: Mapping[str, Any]


def told(
    entry: Entry,
    evidence: Mapping[int, Evidence],
    *,
    objectives: Sequence[str],
    max_bytes: int,
) -> Told:
    """What is to be told of an entry, given the evidence of its finished seeds, in their order.

    A race shows as intermediate values: after n seeds the mean of those, at 100·n where the places
    before are percents or steps of the first run. Each attribute of a trial is a transaction of
    Optuna's, so that there are no more of them than what it is judged by; of one seed alone the
    value says as much as a race would.
    """
    counted = [seed for seed in evidence if entry.state is EntryState.OPEN or seed in entry.seeds]
    rows = [evidence[seed] for seed in counted]
    intermediate = dict(entry.reports)
    base = max([100, *(place + 1 for place in entry.reports)])
    if len(objectives) == 1 and (len(rows) > 1 or entry.state is not EntryState.COMPLETE):
        for n in range(1, len(rows) + 1):
            intermediate[base * n] = statistics.fmean(row.values[0] for row in rows[:n])
    sizes = [row.bytes_total for row in rows]
    known = [size for size in sizes if size is not None]
    largest = max(known) if known and len(known) == len(sizes) else None
    attributes: dict[str, Any] = {}
    for position, objective in enumerate(objectives if rows else ()):
        attributes[objective] = {
            str(seed): row.values[position] for seed, row in zip(counted, rows, strict=True)
        }
        scores = [row.values[position] for row in rows]
        if len(scores) > 1:
            attributes[f"{objective}_std"] = statistics.stdev(scores)
    if largest is not None:
        attributes |= {"bytes_max": largest, "feasible": largest <= max_bytes}
    if entry.reason is not None:
        attributes["reason"] = entry.reason
    values = None
    if entry.state is EntryState.COMPLETE:
        values = tuple(
            statistics.fmean(row.values[position] for row in rows)
            for position in range(len(objectives))
        )
    elif entry.state is EntryState.PRUNED and intermediate:
        values = (intermediate[max(intermediate)],)
    settled = entry.state is not EntryState.OPEN
    return Told(
        number=entry.number,
        params=entry.params,
        state=entry.state,
        values=values,
        intermediate=intermediate,
        constraints={"bytes": largest - max_bytes} if settled and largest is not None else {},
        attributes=attributes,
    )
