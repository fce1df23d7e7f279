"""The space of a search: which settings are chosen, from where, and under which conditions."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Mapping
from typing import Any

from pydantic import Field, StrictFloat, StrictInt, model_validator

from sweeper.settings import EnvName, EnvValue, Table

# One configuration: the settings that a search has chosen, those that do not apply left out.
Params = Mapping[str, Any]
# A grid beyond this is a mistake, not a plan.
MAX_GRID = 100_000


class Param(Table):
    """One setting: a range, a list of choices, or a fixed value.

    A range of two whole numbers is of whole numbers; `step` makes a lattice that begins at `low`,
    `log` spreads the values evenly over their logarithm. With `when` it only applies where another
    setting, which stands before it, has the value given, or one of the values.
    """

    low: StrictInt | StrictFloat | None = None
    high: StrictInt | StrictFloat | None = None
    step: StrictInt | StrictFloat | None = Field(None, gt=0)
    log: bool = False
    choices: tuple[EnvValue, ...] | None = Field(None, min_length=1, strict=False)
    value: EnvValue | None = None
    when: dict[EnvName, EnvValue | list[EnvValue]] = Field({})

    @model_validator(mode="after")
    def _check(self) -> Param:
        ranged = self.low is not None or self.high is not None
        if ranged + (self.choices is not None) + (self.value is not None) != 1:
            raise ValueError("give low and high, or choices, or value")
        if self.is_range:
            self._check_range()
        elif self.step is not None or self.log:
            raise ValueError("step and log are for a range, with low and high")
        if self.choices is not None and len(set(map(repr, self.choices))) < len(self.choices):
            raise ValueError(f"choices: a value stands twice in {list(self.choices)}")
        return self

    def _check_range(self) -> None:
        if self.low is None or self.high is None:
            raise ValueError("a range needs both low and high")
        if self.low >= self.high:
            raise ValueError(f"low = {self.low} must be below high = {self.high}")
        if self.log and (self.low <= 0 or self.step is not None):
            raise ValueError("log is for a range above 0, without step")
        if self.is_int and self.step is not None and not isinstance(self.step, int):
            raise ValueError(f"step = {self.step} in a range of whole numbers")

    @property
    def is_range(self) -> bool:
        return self.choices is None and self.value is None

    @property
    def is_int(self) -> bool:
        """Whether it is a range of whole numbers."""
        return isinstance(self.low, int) and isinstance(self.high, int)

    def lattice(self) -> tuple[Any, ...] | None:
        """Every value that it can have; None where that is a continuum."""
        if self.value is not None:
            return (self.value,)
        if self.choices is not None:
            return self.choices
        assert self.low is not None
        assert self.high is not None
        step = self.step or (1 if self.is_int else None)
        if step is None:
            return None
        count = math.floor((self.high - self.low) / step + 1e-9) + 1
        return tuple(self.low + number * step for number in range(count))

    def why_not(self, value: object) -> str | None:
        """What is wrong with a value for this setting; None where it is one."""
        if (values := self.lattice()) is not None and not self.log:
            if any(_same(value, allowed) for allowed in values):
                return None
            if len(values) <= 8:
                return f"{value!r} is not one of {', '.join(map(str, values))}"
            return f"{value!r} is not one of {self.low} to {self.high} in steps of {self.step or 1}"
        assert self.low is not None
        assert self.high is not None
        if isinstance(value, bool) or not isinstance(value, int | float):
            return f"{value!r} is no number"
        if self.is_int and value != int(value):
            return f"{value} is no whole number"
        if self.low <= value <= self.high:
            return None
        return f"{value} is not from {self.low} to {self.high}"


def applies(param: Param, chosen: Params) -> bool:
    """Whether a setting applies, given those before it."""
    return all(
        name in chosen
        and any(
            _same(chosen[name], wanted)
            for wanted in (wanted if isinstance(wanted, list) else [wanted])
        )
        for name, wanted in param.when.items()
    )


def check_space(space: Mapping[str, Param]) -> None:
    """ValueError where a condition names what cannot decide it."""
    before: dict[str, Param] = {}
    for name, param in space.items():
        for parent, wanted in param.when.items():
            if parent not in before:
                raise ValueError(f"search.space.{name}: when.{parent} has to stand before it")
            for value in wanted if isinstance(wanted, list) else [wanted]:
                if (why := before[parent].why_not(value)) is not None:
                    raise ValueError(f"search.space.{name}: when.{parent}: {why}")
        before[name] = param
    if all(param.value is not None for param in space.values()):
        raise ValueError("search.space: nothing to choose; give at least one range or list")


def check_point(space: Mapping[str, Param], point: Params) -> None:
    """ValueError where a configuration is not one of the space, with all that applies set."""
    for name in point.keys() - space.keys():
        raise ValueError(f"{name} is not in [search.space]; put it there, or under [env]")
    chosen: dict[str, Any] = {}
    for name, param in space.items():
        if not applies(param, chosen):
            if name in point:
                raise ValueError(f"{name} only applies with {_conditions(param)}")
            continue
        if param.value is not None:
            chosen[name] = param.value
            if name not in point:
                continue
        if name not in point:
            raise ValueError(
                f"{name} is missing; a configuration to be tried sets all that applies"
            )
        if (why := param.why_not(point[name])) is not None:
            raise ValueError(f"{name}: {why}")
        chosen[name] = point[name]


def complete(space: Mapping[str, Param], point: Params) -> dict[str, Any]:
    """A configuration in the space's order, its fixed values filled in."""
    full: dict[str, Any] = {}
    for name, param in space.items():
        if applies(param, full):
            full[name] = param.value if param.value is not None else point[name]
    return full


def grid(space: Mapping[str, Param]) -> list[dict[str, Any]]:
    """Every configuration of a space, in order; ValueError where they cannot be counted."""
    lattices = {}
    for name, param in space.items():
        values = param.lattice()
        if values is None:
            raise ValueError(f"search.space.{name}: a grid needs a step, or choices")
        lattices[name] = values
    if math.prod(map(len, lattices.values())) > MAX_GRID:
        raise ValueError(f"search.space: a grid of more than {MAX_GRID} configurations")
    return list(_distinct(space, lattices))


def _distinct(
    space: Mapping[str, Param], lattices: Mapping[str, tuple[Any, ...]]
) -> Iterator[dict[str, Any]]:
    """The grid, with settings that do not apply left out and what is then equal given once."""
    seen = set()
    for values in itertools.product(*lattices.values()):
        point = complete(space, dict(zip(lattices, values, strict=True)))
        key = tuple(point.items())
        if key not in seen:
            seen.add(key)
            yield point


def _same(a: object, b: object) -> bool:
    """Equality that tells true from 1, and forgives what decimal steps cannot say exactly."""
    if isinstance(a, bool) or isinstance(b, bool) or isinstance(a, str) or isinstance(b, str):
        return type(a) is type(b) and a == b
    return (
        isinstance(a, int | float)
        and isinstance(b, int | float)
        and math.isclose(a, b, rel_tol=1e-9, abs_tol=1e-12)
    )


def _conditions(param: Param) -> str:
    return ", ".join(f"{name} = {wanted}" for name, wanted in param.when.items())
