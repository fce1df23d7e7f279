"""What a search is asked to do: the tables [search] and [[stage]] of a specification.

A stage of a search (screen, race, confirm) is called a rung in the code, since the stages of a run
(train, pack, score) are something else.
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Sequence
from typing import Annotated, Literal, get_args

from pydantic import Field, model_validator

from sweeper.settings import RESERVED, Env, EnvName, Seed, Table
from sweeper.space import Param, check_space, grid

# What a search is over when nothing else is said about its stages.
DEFAULT_RUNG = "race"
LEAST_DIVIDED = 12  # runs
Objective = Annotated[str, Field(pattern=r"^[a-z][a-z0-9_]*$")]
Direction = Literal["minimize", "maximize"]
Sampler = Literal["surrogate", "tpe", "gp", "cmaes", "random", "grid", "qmc"]
SAMPLERS: tuple[str, ...] = get_args(Sampler)


class Rung(Table):
    """One stage of a search.

    The first one takes its configurations from the sampler, at most `trials`; each later one the
    `top` of the stage before. `seeds` is how many of the search's seeds a configuration gets, or a
    list of fresh ones, which are used in no other stage and so choose nothing. `env` are settings
    of this stage (a shorter training), `objective` what it judges by, `runs` how many it may make.
    """

    name: str = Field(pattern=r"^[a-z][a-z0-9_-]{0,31}$")
    seeds: Annotated[int, Field(ge=1)] | Annotated[tuple[Seed, ...], Field(strict=False)]
    trials: int | None = Field(None, ge=1)
    top: int | None = Field(None, ge=1)
    runs: int | None = Field(None, ge=1)
    env: Env = Field({})
    objective: Objective | None = None

    @property
    def fresh(self) -> bool:
        """Whether its seeds are its own, so that its scores are of nobody's choosing."""
        return not isinstance(self.seeds, int)

    def seeds_of(self, common: Sequence[int]) -> tuple[int, ...]:
        """Its seeds, in the order in which every configuration has them."""
        return tuple(common[: self.seeds]) if isinstance(self.seeds, int) else self.seeds


class Pruner(Table):
    """Ends runs whose validations on the way are worse than others' at the same place.

    `name` is Optuna's pruner. `by` says what "the same place" is: the training step, or the share
    of the training's budget, in steps of `interval` percent.
    """

    name: Literal["median", "successive_halving", "hyperband"] = "median"
    by: Literal["step", "budget"] = "budget"
    interval: int = Field(10, ge=1, le=50)
    startup_trials: int = Field(5, ge=0)
    warmup: int = Field(0, ge=0)  # steps, or percent


class Racing(Table):
    """When a configuration gets no more seeds: its difference to the best is surely this large.

    `sigma` is the standard deviation between seeds that is expected, in the objective's unit; it
    counts as much as `sigma_df` degrees of freedom of what the search sees itself.
    """

    sigma: float = Field(0.0007, gt=0)
    sigma_df: float = Field(8.0, gt=0)
    margin: float = Field(0.0, ge=0)
    confidence: float = Field(0.9, gt=0.5, lt=1)


class Budget(Table):
    """What a search may use up; what is reached first ends it.

    `trials` are configurations of the first stage, the listed ones among them.
    """

    trials: int | None = Field(None, ge=1)
    runs: int | None = Field(None, ge=1)
    gpu_hours: float | None = Field(None, gt=0)
    usd: float | None = Field(None, gt=0)


class Search(Table):
    """A search over a space, judged by the mean of an objective over seeds.

    The samplers are Optuna's, but for "surrogate", which is ours (sweeper/proposal.py) and knows
    the noise of a run.
    """

    space: dict[EnvName, Param] = Field(min_length=1)
    sampler: Sampler = "tpe"
    seed: int = Field(0, ge=0, lt=2**32)
    objective: Objective | Annotated[tuple[Objective, ...], Field(strict=False, min_length=1)] = (
        "val_bpb"
    )
    directions: Annotated[tuple[Direction, ...], Field(strict=False)] = ()
    budget: Budget = Budget()
    racing: Racing = Racing()
    pruner: Pruner | None = None
    storage: str | None = Field(None, min_length=1)

    @model_validator(mode="after")
    def _check(self) -> Search:
        for name in RESERVED.keys() & self.space.keys():
            raise ValueError(f"search.space: {name} is set by the sweeper; use {RESERVED[name]}")
        check_space(self.space)
        if self.sampler == "grid":
            grid(self.space)
        if self.directions and len(self.directions) != len(self.objectives):
            raise ValueError(
                f"search.directions: {len(self.objectives)} needed, one for each objective, found "
                f"{len(self.directions)}"
            )
        if len(set(self.objectives)) < len(self.objectives):
            raise ValueError("search.objective: an objective stands twice")
        if len(self.objectives) > 1 and self.sampler in ("cmaes", "surrogate"):
            raise ValueError(f"search.sampler: {self.sampler} knows one objective; use tpe or gp")
        if len(self.objectives) > 1 and self.pruner is not None:
            raise ValueError("search.pruner: only for a single objective")
        return self

    @property
    def objectives(self) -> tuple[str, ...]:
        return (self.objective,) if isinstance(self.objective, str) else self.objective

    @property
    def senses(self) -> tuple[Direction, ...]:
        """The direction of each objective."""
        if self.directions:
            return self.directions
        return tuple("minimize" for _ in self.objectives)


def default_rungs(search: Search, common: Sequence[int]) -> tuple[Rung, ...]:
    """The stages of a search that names none.

    A budget of runs is divided between a screen by one seed each, a race of the best and fresh
    seeds for the winner; the shares did best in simulations (jobs/bench/search.py). Without one,
    or where nothing can be left out, there is one stage in which all are raced over all seeds.
    """
    runs = search.budget.runs
    whole = search.sampler == "grid" or len(search.objectives) > 1
    if runs is None or runs < LEAST_DIVIDED or whole:
        return (Rung(name=DEFAULT_RUNG, seeds=len(common)),)
    from sweeper.racing import divide  # numpy, which the command line does without

    shares = divide(runs)
    unused = (seed for seed in itertools.count(1) if seed not in common)
    fresh = tuple(itertools.islice(unused, shares.confirm_seeds))
    return (
        Rung(name="screen", seeds=1, runs=shares.screen_runs),
        Rung(name="race", seeds=len(common), top=shares.race_top, runs=shares.race_runs),
        Rung(name="confirm", seeds=fresh, top=shares.confirm_top),
    )


def check_rungs(rungs: Sequence[Rung], common: Sequence[int], search: Search) -> None:
    """ValueError where the stages of a search do not follow from each other."""
    for name, count in Counter(rung.name for rung in rungs).items():
        if count > 1:
            raise ValueError(f"stage: two stages are called {name!r}")
    taken = dict.fromkeys(common, "seeds")
    for number, rung in enumerate(rungs):
        where = f"stage {rung.name!r}"
        for name in RESERVED.keys() & rung.env.keys():
            raise ValueError(f"{where}: {name} is set by the sweeper; use {RESERVED[name]}")
        for name in search.space.keys() & rung.env.keys():
            raise ValueError(f"{where}: {name} is what [search.space] chooses")
        if number == 0 and rung.top is not None:
            raise ValueError(f"{where}: the first stage has `trials`, the sampler's; not `top`")
        if number > 0 and (rung.top is None or rung.trials is not None):
            raise ValueError(f"{where}: a later stage takes `top` configurations of the one before")
        if number == 0 and rung.fresh:
            raise ValueError(f"{where}: fresh seeds are for what has been chosen, after the first")
        if isinstance(rung.seeds, int):
            if rung.seeds > len(common):
                raise ValueError(f"{where}: {rung.seeds} seeds of {len(common)} in `seeds`")
            continue
        if not rung.seeds:
            raise ValueError(f"{where}: at least one seed is needed")
        for seed in rung.seeds:
            if seed in taken:
                raise ValueError(f"{where}: seed {seed} is not fresh; {taken[seed]} has it")
            taken[seed] = where
    budget = search.budget
    limits = (*vars(budget).values(), rungs[0].trials, rungs[0].runs)
    if search.sampler != "grid" and all(limit is None for limit in limits):
        raise ValueError("search.budget: give trials, runs, gpu_hours or usd; a search has to end")
