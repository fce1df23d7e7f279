"""Loss curves: as the events say them, whatever else is among them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from sweeper.curves import POINTS, curves_of, last_attempts, read_curve
from sweeper.layout import AttemptDir, SweepDir
from sweeper.ledger import Ledger
from sweeper.rows import AttemptState, RunState
from tests.sweeper.conftest import write_attempt


def step(number: int, loss: float) -> dict[str, Any]:
    return {"kind": "step", "t": 1.0, "step": number, "train_loss": loss}


def val(number: int, bpb: float, metric: str = "plain") -> dict[str, Any]:
    return {"kind": "val", "t": 1.0, "step": number, "metric": metric, "val_bpb": bpb}


def curve_of(directory: Path, *events: dict[str, Any]) -> Any:
    return read_curve(write_attempt(directory / "a", events=list(events)), "seed 42")


def test_a_curve_is_losses_and_validations_by_step(tmp_path: Path) -> None:
    curve = curve_of(tmp_path, step(1, 5.0), step(2, 4.0), val(2, 1.5), step(3, 3.0))
    assert curve.label == "seed 42"
    assert curve.losses == ((1, 5.0), (2, 4.0), (3, 3.0))
    assert curve.validations == ((2, 1.5),)


def test_steps_done_again_after_a_checkpoint_count_once(tmp_path: Path) -> None:
    curve = curve_of(tmp_path, step(1, 5.0), step(2, 4.0), step(1, 5.5), step(2, 4.5), step(3, 3.0))
    assert curve.losses == ((1, 5.5), (2, 4.5), (3, 3.0))


def test_what_is_no_point_is_left_out(tmp_path: Path) -> None:
    curve = curve_of(
        *(tmp_path, step(1, float("nan")), step(2, 4.0), val(2, 1.4, "sliding")),
        {"kind": "step", "t": 1.0, "step": None, "train_loss": 1.0},
        {"kind": "step", "t": 1.0, "step": 3},
        {"kind": "phase", "t": 1.0, "phase": "eval"},
    )
    assert curve.losses == ((2, 4.0),)
    assert curve.validations == ()


def test_a_torn_last_line_waits(tmp_path: Path) -> None:
    attempt = write_attempt(tmp_path / "a", events=[step(1, 5.0)])
    with attempt.events.open("a") as file:
        file.write(json.dumps(step(2, 4.0))[:-3])
    assert read_curve(attempt, "").losses == ((1, 5.0),)


@pytest.mark.parametrize("count", [POINTS - 1, POINTS, POINTS + 1, 10 * POINTS + 7])
def test_a_long_curve_is_the_means_of_neighbours(tmp_path: Path, count: int) -> None:
    curve = curve_of(tmp_path, *(step(number, float(number)) for number in range(count)))
    assert POINTS // 2 <= len(curve.losses) <= POINTS
    assert curve.losses[-1][0] == count - 1
    size = -(-count // POINTS)
    first, mean = curve.losses[0]
    assert (first, mean) == (size - 1, (size - 1) / 2)


def test_a_script_that_writes_no_events_has_the_curve_of_its_log(tmp_path: Path) -> None:
    attempt = AttemptDir(tmp_path / "a")
    attempt.logs.mkdir(parents=True)
    attempt.stdout.write_text(
        "step:0/100 val_loss:6.9357 val_bpb:4.1077 train_time:0ms step_avg:0.02ms\n"
        "step:10/100 train_loss:5.9357 train_time:100ms step_avg:10.00ms\n"
        "step:20/100 train_loss:5.1077 train_time:200ms step_avg:10.00ms\n"
    )
    curve = read_curve(attempt, "seed 42")
    assert curve.losses == ((10, 5.9357), (20, 5.1077))
    assert curve.validations == ((0, 4.1077),)


def test_curves_are_of_the_last_attempt_and_of_those_that_have_begun(
    sweep: SweepDir, ledger: Ledger
) -> None:
    first, second, _ = [run for run in ledger.runs() if run.trial == 0]
    for number, loss in ((1, 9.0), (2, 3.0)):
        path = f"a/{number}"
        attempt = ledger.launched(first, number=number, path=path, host="here", gpus="")
        write_attempt(sweep.path / path, events=[step(1, loss)])
        ledger.ended(attempt, AttemptState.CRASHED, RunState.PENDING)
    ledger.launched(second, number=1, path="a/3", host="here", gpus="")
    attempts = last_attempts(ledger)
    assert set(attempts) == {(0, first.seed), (0, second.seed)}
    (curve,) = curves_of(sweep, attempts, 0, (42, 314, 999))
    assert (curve.label, curve.losses) == ("seed 42", ((1, 3.0),))
