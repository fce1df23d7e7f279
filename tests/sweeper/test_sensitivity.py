"""How much a setting matters, held against functions whose indices are known."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
import pytest

from sweeper.sensitivity import total_indices
from sweeper.surrogate import Array, Axis, Observation, fit

X, Y = Axis(name="X"), Axis(name="Y")
SHAPE = Axis(name="SHAPE", choices=("linear", "cosine"))
FLOOR = Axis(name="FLOOR", when=("SHAPE", ("cosine",)))


class Known:
    """A surrogate that believes a function of the encoded coordinates."""

    def __init__(self, axes: tuple[Axis, ...], function: Callable[[Array], Array]) -> None:
        self.axes, self._function = axes, function

    def moments(self, points: Array) -> tuple[Array, Array]:
        return self._function(points), np.zeros(len(points))


def indices(axes: tuple[Axis, ...], function: Callable[[Array], Array]) -> Mapping[str, float]:
    return total_indices(axes, Known(axes, function))  # type: ignore[arg-type]


def test_of_a_sum_each_has_its_share() -> None:
    # The variance of 3x + 4y over the unit square is (9 + 16)/12.
    found = indices((X, Y), lambda p: 3 * p[:, 0] + 4 * p[:, 1])
    assert found == pytest.approx({"X": 9 / 25, "Y": 16 / 25}, abs=0.03)


def test_of_a_product_both_have_the_whole_of_their_interaction() -> None:
    # (x − ½)(y − ½) has no effect of either alone.
    found = indices((X, Y), lambda p: (p[:, 0] - 0.5) * (p[:, 1] - 0.5))
    assert found == pytest.approx({"X": 1.0, "Y": 1.0}, abs=0.08)


def test_what_has_no_part_has_no_share() -> None:
    assert indices((X, Y), lambda p: p[:, 0])["Y"] == 0


def test_where_all_is_equal_nothing_matters() -> None:
    assert indices((X, Y), lambda p: np.ones(len(p))) == {"X": 0.0, "Y": 0.0}


def test_choices_are_measured_as_ranges_are() -> None:
    # A step of 1 has variance ¼, x has 1/12.
    found = indices((SHAPE, X), lambda p: (p[:, 0] > 0.5) + p[:, 2])
    assert found == pytest.approx({"SHAPE": 3 / 4, "X": 1 / 4}, abs=0.03)


def test_what_applies_only_sometimes_matters_only_then() -> None:
    # Half the time FLOOR is in force, with variance 1/12; else it stands in the middle.
    found = indices((SHAPE, FLOOR), lambda p: p[:, 2])
    assert found["FLOOR"] == pytest.approx(1.0, abs=0.03)
    assert found["SHAPE"] == pytest.approx(0.5, abs=0.05)


def test_the_same_evidence_says_the_same() -> None:
    draws = np.random.default_rng(1)
    runs = []
    for place, other in draws.random((40, 2)).tolist():
        score = 1.0 + 0.01 * place + draws.normal(0, 0.0007)
        runs.append(Observation(params={"X": place, "Y": other}, seed=42, score=score))
    found = total_indices((X, Y), fit((X, Y), runs, 0.0007))
    assert found == total_indices((X, Y), fit((X, Y), runs, 0.0007))
    # Forty noisy scores are enough to see that nothing but X matters.
    assert found["X"] > 0.9
    assert found["Y"] < 0.1
