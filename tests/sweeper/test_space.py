"""The space of a search: what a setting may be, when it applies, and which grids there are."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from sweeper.errors import SpecError
from sweeper.space import Param, applies, check_point, check_space, complete, grid
from sweeper.spec import load_spec

SPACE = {
    "WARMDOWN_SHAPE": Param(choices=("linear", "cosine")),
    "WARMDOWN_FRAC": Param(low=0.3, high=0.9),
    "LR_FLOOR": Param(low=0.0, high=0.1, step=0.05, when={"WARMDOWN_SHAPE": "cosine"}),
    "RECUR_START_STEP": Param(low=1000, high=3000, step=500),
    "MUON": Param(value=True),
}


@pytest.mark.parametrize(
    ("facts", "message"),
    [
        ({}, "give low and high, or choices, or value"),
        ({"low": 1}, "a range needs both low and high"),
        ({"low": 1, "high": 2, "choices": [1]}, "give low and high, or choices, or value"),
        ({"value": False, "choices": [1]}, "give low and high, or choices, or value"),
        ({"low": 2, "high": 2}, "low = 2 must be below high = 2"),
        ({"low": 0, "high": 2, "log": True}, "log is for a range above 0, without step"),
        ({"low": 1, "high": 9, "step": 0.5}, "step = 0.5 in a range of whole numbers"),
        ({"choices": [1, 1]}, "a value stands twice"),
        ({"choices": [1], "log": True}, "step and log are for a range"),
        ({"choices": []}, "at least 1 item"),
        ({"low": 1, "high": 2, "step": 0}, "greater than 0"),
    ],
)
def test_what_is_no_setting_is_refused(facts: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        Param(**facts)


@pytest.mark.parametrize(
    ("name", "value", "why"),
    [
        ("WARMDOWN_SHAPE", "linear", None),
        ("WARMDOWN_SHAPE", "sqrt", "'sqrt' is not one of linear, cosine"),
        ("WARMDOWN_FRAC", 0.5, None),
        ("WARMDOWN_FRAC", 1.0, "1.0 is not from 0.3 to 0.9"),
        ("WARMDOWN_FRAC", True, "True is no number"),
        ("LR_FLOOR", 0.1, None),
        ("LR_FLOOR", 0.07, "0.07 is not one of 0.0, 0.05, 0.1"),
        ("RECUR_START_STEP", 1500, None),
        ("RECUR_START_STEP", 1600, "1600 is not one of 1000, 1500, 2000, 2500, 3000"),
        ("MUON", True, None),
        ("MUON", 1, "1 is not one of True"),
    ],
)
def test_values_are_held_against_their_setting(name: str, value: object, why: str | None) -> None:
    assert SPACE[name].why_not(value) == why


def test_a_step_that_decimals_cannot_say_reaches_the_end() -> None:
    lattice = Param(low=0.1, high=0.7, step=0.1).lattice()
    assert lattice is not None
    assert len(lattice) == 7


def test_a_condition_names_what_stands_before_it_and_can_be() -> None:
    check_space(SPACE)
    late = {"A": Param(low=0.0, high=1.0, when={"B": 1}), "B": Param(choices=(1, 2))}
    with pytest.raises(ValueError, match=r"search.space.A: when.B has to stand before it"):
        check_space(late)
    never = {"B": Param(choices=(1, 2)), "A": Param(low=0.0, high=1.0, when={"B": [1, 3]})}
    with pytest.raises(ValueError, match=r"search.space.A: when.B: 3 is not one of 1, 2"):
        check_space(never)
    with pytest.raises(ValueError, match="nothing to choose"):
        check_space({"A": Param(value=1)})


def test_a_setting_under_a_condition_that_does_not_apply_itself_does_not_apply() -> None:
    space = {
        "A": Param(choices=(1, 2)),
        "B": Param(choices=(1, 2), when={"A": 1}),
        "C": Param(low=0, high=9, when={"B": 2}),
    }
    assert complete(space, {"A": 2}) == {"A": 2}
    assert not applies(space["C"], {"A": 2})
    assert complete(space, {"A": 1, "B": 2, "C": 7}) == {"A": 1, "B": 2, "C": 7}


GOOD = {"WARMDOWN_SHAPE": "linear", "WARMDOWN_FRAC": 0.667, "RECUR_START_STEP": 3000}


def test_a_configuration_to_be_tried_sets_all_that_applies_and_nothing_else() -> None:
    check_point(SPACE, GOOD)
    assert complete(SPACE, GOOD) == GOOD | {"MUON": True}
    cosine = GOOD | {"WARMDOWN_SHAPE": "cosine"}
    for point, message in (
        (GOOD | {"LR": 1}, r"LR is not in \[search.space\]"),
        (GOOD | {"LR_FLOOR": 0.05}, "LR_FLOOR only applies with WARMDOWN_SHAPE = cosine"),
        (cosine, "LR_FLOOR is missing"),
        (cosine | {"LR_FLOOR": 0.2}, "LR_FLOOR: 0.2 is not one of"),
    ):
        with pytest.raises(ValueError, match=message):
            check_point(SPACE, point)
    check_point(SPACE, cosine | {"LR_FLOOR": 0.1})


def test_a_grid_has_every_configuration_once() -> None:
    space = {name: param for name, param in SPACE.items() if name != "WARMDOWN_FRAC"}
    points = grid(space)
    assert len(points) == 5 + 3 * 5  # where the shape is linear there is no floor
    assert len({tuple(point.items()) for point in points}) == len(points)
    for point in points:
        check_point(space, point)
    with pytest.raises(ValueError, match="WARMDOWN_FRAC: a grid needs a step, or choices"):
        grid(SPACE)
    with pytest.raises(ValueError, match="a grid of more than 100000"):
        grid({name: Param(low=0, high=999) for name in ("A", "B")})


def test_a_wrong_parameter_is_named_with_its_place(tmp_path: Path) -> None:
    path = tmp_path / "spec.toml"
    path.write_text('name = "x"\nseeds = [1]\n[search.space]\nLR_FLOOR = { low = 1 }\n')
    with pytest.raises(
        SpecError, match=r"search\.space\.LR_FLOOR: a range needs both low and high"
    ):
        load_spec(path)
