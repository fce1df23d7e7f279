"""Where a validation on the way belongs, by the events of a run."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from sweeper.layout import AttemptDir
from sweeper.search import Pruner
from sweeper.validations import Validations


def write(attempt: AttemptDir, *events: dict[str, object]) -> None:
    with attempt.events.open("a") as file:
        file.writelines(json.dumps({"t": 1.0} | event) + "\n" for event in events)


def step(number: int, progress: float) -> dict[str, object]:
    return {"kind": "step", "step": number, "train_loss": 3.0, "progress": progress}


def val(number: int, bpb: object, metric: str = "plain") -> dict[str, object]:
    return {"kind": "val", "step": number, "metric": metric, "val_loss": 2.0, "val_bpb": bpb}


@pytest.fixture
def attempt(tmp_path: Path) -> AttemptDir:
    return AttemptDir(tmp_path)


def test_by_step_a_place_is_the_step(attempt: AttemptDir) -> None:
    seen = Validations(attempt, Pruner(by="step"))
    write(attempt, step(100, 0.1), val(100, 1.5))
    assert seen.read() == [(100, 1.5)]
    write(attempt, step(200, 0.2), val(200, 1.4))
    assert seen.read() == [(200, 1.4)]  # each once
    assert seen.read() == []


def test_by_budget_a_place_is_a_share_of_the_training(attempt: AttemptDir) -> None:
    seen = Validations(attempt, Pruner(by="budget", interval=25))
    write(attempt, step(1, 0.1), val(1, 9.0), step(2, 0.26), val(2, 1.5), val(3, 1.4))
    write(attempt, step(9, 0.99), val(9, 1.3))
    # None before the first quarter, and the first of those in one.
    assert seen.read() == [(25, 1.5), (75, 1.3)]


def test_what_is_scored_after_training_or_is_no_number_does_not_count(attempt: AttemptDir) -> None:
    seen = Validations(attempt, Pruner(by="step"))
    write(attempt, val(5, 1.5, "prequant"), val(6, 1.5, "sliding"), val(7, None), val(0, 1.5))
    assert seen.read() == []
