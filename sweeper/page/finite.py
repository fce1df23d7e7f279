"""A ledger whose results hold numbers alone where numbers belong: means would break on others."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace

from sweeper.aggregate import MEASURES
from sweeper.ledger import Ledger
from sweeper.phases import number
from sweeper.rows import AttemptRow, AttemptState

NUMBERS = {*MEASURES, "train_time_ms", "eval_time_s", "resumed_from_step"}  # of a result


class FiniteLedger(Ledger):
    """To read from: what is no finite number where one belongs is not known. `odd` says where."""

    def attempts(
        self, run: int | None = None, state: AttemptState | None = None
    ) -> list[AttemptRow]:
        return [_finite(each) for each in super().attempts(run, state)]

    def attempt(self, identity: int) -> AttemptRow:
        return _finite(super().attempt(identity))

    def odd(self) -> dict[tuple[str, int], str]:
        """What is not used of a run's last result, by trial and seed."""
        names = {trial.number: trial.name for trial in self.trials()}
        runs = {run.id: (names[run.trial], run.seed) for run in self.runs()}
        last = {each.run: each.result or {} for each in super().attempts()}
        odd = {
            runs[run]: [name for name in facts if _is_odd(name, facts)]
            for run, facts in last.items()
        }
        return {
            run: f"{', '.join(names)}: no finite number in its result"
            for run, names in odd.items()
            if names
        }


def _finite(attempt: AttemptRow) -> AttemptRow:
    facts = attempt.result or {}
    odd = dict.fromkeys(name for name in facts if _is_odd(name, facts))
    return replace(attempt, result=facts | odd) if odd else attempt


def _is_odd(name: str, facts: Mapping[str, object]) -> bool:
    value = facts[name]
    if isinstance(value, float):
        return not math.isfinite(value)
    return name in NUMBERS and value is not None and number(value) is None
