"""Optuna's own samplers, for `jobs.bench.search`: asked in memory, told a mean and a constraint."""

from __future__ import annotations

from typing import Any

import optuna

from sweeper.search import Search
from sweeper.study import distribution, make_sampler


class Asker:
    """A study in memory with the sampler that a search would have; all its settings apply."""

    def __init__(self, search: Search) -> None:
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        self._study = optuna.create_study(sampler=make_sampler(search, 0))
        self._space = {name: distribution(param) for name, param in search.space.items()}

    def ask(self) -> dict[str, Any]:
        """The settings to try next; what they bring has to be told before the next."""
        self._trial = self._study.ask(self._space)
        return self._trial.params

    def tell(self, score: float, excess: float) -> None:
        """What was asked for last has scored, and by how much it is too large."""
        self._trial.set_constraint("bytes", excess)
        self._study.tell(self._trial, score)
