"""Schedules: the published values, and what they must hold at the ends."""

from __future__ import annotations

import json
from typing import Any

import pytest

from model.config import Config
from model.schedule import (
    ema_decay,
    lr_multiplier,
    muon_momentum,
    progress,
    recurrence_active,
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


def test_recurrence_starts_at_its_step() -> None:
    config = Config()
    assert [recurrence_active(step, config) for step in (2999, 3000, 3001)] == [False, True, True]
    assert not recurrence_active(10**6, Config(recur_layers=()))
