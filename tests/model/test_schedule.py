"""Schedules: the published values, and what they must hold at the ends."""

from __future__ import annotations

import json
import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from model.config import Config
from model.recurrence import NO_LOOP, Loop
from model.schedule import (
    ema_decay,
    loops_of_a_run,
    lr_multiplier,
    muon_momentum,
    progress,
    recurrence,
)
from tests.model.conftest import shared_data


def test_lr_multiplier_matches_the_reference() -> None:
    rows: list[dict[str, Any]] = json.loads(shared_data("golden/metrics.json").read_text())[
        "lr_schedule"
    ]
    for row in rows:
        found = lr_multiplier(
            row["frac"], shape=row["shape"], warmdown_frac=row["warmdown_frac"], floor=row["floor"]
        )
        assert found == pytest.approx(row["mul"], abs=1e-9), row


@pytest.mark.parametrize(
    ("shape", "floor", "frac", "expected"),
    [
        ("linear", 0.0, 0.0, 1.0),
        ("linear", 0.0, 0.5, 1.0),
        ("linear", 0.0, 0.75, 0.5),
        ("linear", 0.0, 1.0, 0.0),
        ("linear", 0.2, 0.95, 0.2),
        ("cosine", 0.05, 0.5, 1.0),
        ("cosine", 0.05, 0.75, 0.525),
        ("cosine", 0.05, 1.0, 0.05),
    ],
)
def test_lr_multiplier(shape: Any, floor: float, frac: float, expected: float) -> None:
    found = lr_multiplier(frac, shape=shape, warmdown_frac=0.5, floor=floor)
    assert found == pytest.approx(expected, abs=1e-12)


def test_no_warmdown_is_constant() -> None:
    assert lr_multiplier(1.0, shape="linear", warmdown_frac=0.0, floor=0.0) == 1.0


def test_progress_is_by_clock_under_a_cap_and_by_step_without() -> None:
    capped = Config(max_wallclock_seconds=110, gptq_reserve_seconds=10, iterations=1000)
    assert progress(step=999, elapsed=50, config=capped) == 0.5
    assert progress(step=0, elapsed=500, config=capped) == 1.0
    free = Config(max_wallclock_seconds=0, iterations=1000)
    assert progress(step=250, elapsed=500, config=free) == 0.25


def test_momentum_warms_up_and_stays() -> None:
    config = Config()
    assert muon_momentum(0, config) == pytest.approx(0.92)
    assert muon_momentum(750, config) == pytest.approx(0.955)
    assert muon_momentum(1500, config) == muon_momentum(9000, config) == pytest.approx(0.99)


def test_average_has_a_short_memory_at_first() -> None:
    config = Config()
    assert ema_decay(0, config) == 0.1
    assert ema_decay(10**6, config) == 0.997


LOOP = Loop((4, 5), 1)


@pytest.mark.parametrize(
    ("settings", "onset", "expected"),
    [
        # The loop in force at (step, share of the budget).
        ({}, "step", {(2999, 0.9): NO_LOOP, (3000, 0.1): LOOP, (9999, 1.0): LOOP}),
        ({"recur_start_step": 0}, "always", {(0, 0.0): LOOP}),
        ({"recur_start_frac": 0.0}, "always", {(0, 0.0): LOOP}),
        ({"recur_layers": "none"}, "off", {(9999, 1.0): NO_LOOP}),
        ({"recur_start_frac": 0.35}, "fraction", {(9999, 0.34): NO_LOOP, (0, 0.35): LOOP}),
        ({"recur_start_frac": 0.5, "recur_loops": 2}, "fraction", {(0, 0.5): Loop((4, 5), 2)}),
        (
            {"recur_stages": "0.35:4,5;0.6:3,4,5x2"},
            "staged",
            {(0, 0.3): NO_LOOP, (0, 0.4): LOOP, (0, 0.6): Loop((3, 4, 5), 2)},
        ),
    ],
)
def test_recurrence(settings: Any, onset: str, expected: dict[tuple[int, float], Loop]) -> None:
    config = Config(**settings)
    assert config.echo()["recurrence_onset"] == onset
    for (step, frac), loop in expected.items():
        assert recurrence(step, frac, config) == loop
        assert loop in loops_of_a_run(config)
    assert Config.from_echo(config.echo()) == config


def test_a_run_that_ends_before_recurrence_starts_needs_one_graph() -> None:
    assert loops_of_a_run(Config(iterations=3000)) == [NO_LOOP]
    assert loops_of_a_run(Config(iterations=3001)) == [NO_LOOP, LOOP]
    assert loops_of_a_run(Config(recur_stages="0:4,5;0.5:4,5x2")) == [LOOP, Loop((4, 5), 2)]


SHAPES = ("linear", "cosine", "1-sqrt", "power", "exponential")


@pytest.mark.parametrize("shape", SHAPES)
@given(
    frac=st.floats(0, 1),
    later=st.floats(0, 1),
    warmdown=st.floats(0.01, 1),
    floor=st.floats(0, 1),
    mode=st.sampled_from(["auto", "clip", "reach"]),
)
def test_every_shape_falls_from_one_to_its_floor(
    shape: Any, frac: float, later: float, warmdown: float, floor: float, mode: Any
) -> None:
    def multiplier(at: float) -> float:
        return lr_multiplier(at, shape=shape, warmdown_frac=warmdown, floor=floor, floor_mode=mode)

    first, second = sorted((frac, later))
    assert multiplier(first) >= multiplier(second) - 1e-12
    assert floor - 1e-12 <= multiplier(frac) <= 1
    assert multiplier(0.0) == pytest.approx(1.0)
    assert multiplier(1.0) == pytest.approx(floor, abs=1e-9)


@pytest.mark.parametrize(
    ("shape", "half"),
    [
        ("linear", 0.5),
        ("cosine", 0.5),
        ("1-sqrt", 1 - 0.5**0.5),
        ("power", 0.25),
        ("exponential", 1 / (math.exp(2.5) + 1)),
    ],
)
def test_half_way_down(shape: Any, half: float) -> None:
    def multiplier(mode: Any) -> float:
        return lr_multiplier(0.75, shape=shape, warmdown_frac=0.5, floor=0.4, floor_mode=mode)

    assert multiplier("clip") == pytest.approx(max(half, 0.4), abs=1e-12)
    assert multiplier("reach") == pytest.approx(0.4 + 0.6 * half, abs=1e-12)


def test_power_and_rate_bend_their_shapes() -> None:
    common: dict[str, Any] = {"warmdown_frac": 1.0, "floor": 0.0}
    assert lr_multiplier(0.5, shape="power", power=3, **common) == pytest.approx(0.125)
    gentle = lr_multiplier(0.5, shape="exponential", rate=1e-6, **common)
    assert gentle == pytest.approx(0.5, abs=1e-5)
