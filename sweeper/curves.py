"""The losses of runs over their steps, as their events say them."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from sweeper.layout import AttemptDir, SweepDir
from sweeper.ledger import Ledger
from sweeper.logreader import RunReader
from sweeper.rows import AttemptRow

POINTS = 600  # a curve has at most about so many: more cannot be seen


@dataclass(frozen=True, kw_only=True)
class Curve:
    """One run: training loss (nats per token) by step, and each validation's BPB by step."""

    label: str
    losses: tuple[tuple[int, float], ...]
    validations: tuple[tuple[int, float], ...]


def read_curve(attempt: AttemptDir, label: str) -> Curve:
    """The curve of an attempt, as far as it has come; steps that were done again count once."""
    losses: dict[int, float] = {}
    validations: dict[int, float] = {}
    for event in RunReader(attempt).read():
        step = event.get("step")
        if not isinstance(step, int):
            continue
        if event["kind"] == "step":
            _keep(losses, step, event.get("train_loss"))
        elif event["kind"] == "val" and event.get("metric") in ("plain", None):
            _keep(validations, step, event.get("val_bpb"))
    return Curve(label=label, losses=_thinned(losses), validations=_thinned(validations))


def _keep(values: dict[int, float], step: int, value: object) -> None:
    if isinstance(value, int | float) and math.isfinite(value):
        values[step] = float(value)


def _thinned(values: Mapping[int, float]) -> tuple[tuple[int, float], ...]:
    """Means of neighbours, as many as make POINTS of all."""
    points = sorted(values.items())
    size = math.ceil(len(points) / POINTS) or 1
    groups = [points[begin : begin + size] for begin in range(0, len(points), size)]
    return tuple((group[-1][0], math.fsum(v for _, v in group) / len(group)) for group in groups)


def last_attempts(ledger: Ledger) -> dict[tuple[int, int], AttemptRow]:
    """Each run's last attempt, by trial and seed; runs that have not begun are not there."""
    runs = {run.id: (run.trial, run.seed) for run in ledger.runs()}
    return {runs[attempt.run]: attempt for attempt in ledger.attempts()}


def curves_of(
    sweep: SweepDir,
    attempts: Mapping[tuple[int, int], AttemptRow],
    trial: int,
    seeds: Iterable[int],
) -> list[Curve]:
    """The curves of some seeds of a trial; those without a point are left out."""
    found = [
        read_curve(AttemptDir(sweep.path / attempts[trial, seed].path), f"seed {seed}")
        for seed in seeds
        if (trial, seed) in attempts
    ]
    return [curve for curve in found if curve.losses or curve.validations]
