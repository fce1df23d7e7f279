"""Bare Optuna, for `jobs.bench.asking` to be held against: a study, ask and tell, nothing else."""

from __future__ import annotations

import random
import time
from typing import Any

import optuna
from optuna.storages import BaseStorage
from optuna.study import Study
from optuna.trial import create_trial

from sweeper.search import Search
from sweeper.study import distribution


def bare_study(storage: BaseStorage, search: Search, finished: int) -> Study:
    """A study of its own in the storage, with so many finished trials drawn at random."""
    sampler = optuna.samplers.TPESampler(seed=search.seed, multivariate=True)
    study = optuna.create_study(storage=storage, study_name="bare", sampler=sampler)
    spaces = {name: distribution(param) for name, param in search.space.items()}
    draw = random.Random(0)
    for _ in range(finished):
        params = {name: _draw(space, draw) for name, space in spaces.items()}
        study.add_trial(create_trial(params=params, distributions=spaces, value=draw.random()))
    return study


def time_ask_and_tell(study: Study, search: Search) -> float:
    """Seconds for one more trial."""
    begun = time.perf_counter()
    trial = study.ask({name: distribution(param) for name, param in search.space.items()})
    study.tell(trial, 1.1)
    return time.perf_counter() - begun


def _draw(space: Any, draw: random.Random) -> Any:
    if isinstance(space, optuna.distributions.CategoricalDistribution):
        return draw.choice(space.choices)
    if isinstance(space, optuna.distributions.IntDistribution):
        return draw.randrange(space.low, space.high + 1, space.step)
    return draw.uniform(space.low, space.high)
