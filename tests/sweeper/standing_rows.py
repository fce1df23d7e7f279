"""Stages of a search made by hand: only the scores are given, by configuration and seed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from sweeper.entries import Entry, EntryState, Evidence
from sweeper.rows import RunState
from sweeper.search import Direction, Rung
from sweeper.standings import Standing, Standings

MAX_BYTES = 16_000_000


def make_row(
    number: int,
    scores: Mapping[int, float],
    *,
    size: int | None = 15_900_000,
    state: EntryState = EntryState.COMPLETE,
    reason: str | None = None,
    params: Mapping[str, object] | None = None,
) -> Standing:
    """A configuration with these scores, all its seeds finished; no two are close to each other."""
    place = 0.3 + 0.6 * (number * 0.618 % 1)
    entry = Entry(
        rung="race",
        number=number,
        trial=number,
        params=params or {"WARMDOWN_SHAPE": "linear", "WARMDOWN_FRAC": place},
        state=state,
        reason=reason,
        seeds=tuple(scores),
    )
    return Standing(
        entry=entry,
        name=f"t{number}",
        runs=dict.fromkeys(scores, RunState.FINISHED),
        evidence={
            seed: Evidence(values=(score,), bytes_total=size) for seed, score in scores.items()
        },
        ended=dict.fromkeys(scores, 1.0),
    )


def make_stage(
    rows: Sequence[Standing],
    seeds: tuple[int, ...] = (42, 314, 999),
    *,
    fresh: bool = False,
    sense: Direction = "minimize",
) -> Standings:
    return Standings(
        rung=Rung(name="race", seeds=seeds if fresh else len(seeds)),
        seeds=seeds,
        objectives=("val_bpb",),
        senses=(sense,),
        max_bytes=MAX_BYTES,
        rows=tuple(rows),
    )
