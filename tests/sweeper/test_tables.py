"""What a table says beside its numbers: what is unknown, slow, unconfirmed, and what it cost."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from sweeper.aggregate import FORMATS, report, runs_frame, trials_frame
from sweeper.layout import SweepDir
from sweeper.ledger import Ledger
from sweeper.rows import AttemptState, RunState
from sweeper.tables import records
from tests.sweeper.conftest import make_spec, result_facts

# What the log of a script may leave open.
UNKNOWN = (
    *("prequant_val_bpb", "quant_val_bpb", "steps", "train_time_ms", "step_avg_ms", "eval_time_s"),
    *("bytes_total", "bytes_code", "bytes_model", "stop_reason", "seed"),
)


@contextmanager
def ledger_of(
    sweep: SweepDir, results: dict[tuple[int, int], dict[str, Any]], **spec: Any
) -> Iterator[Ledger]:
    """A ledger with a finished run for each (trial, seed), on a host of its own, for 36 s."""
    ledger = Ledger.open_for_writing(sweep.ledger, make_spec(**spec))
    try:
        runs = {(run.trial, run.seed): run for run in ledger.runs()}
        for number, (key, changes) in enumerate(results.items()):
            path, host = f"a/{number}", f"box{number}"
            attempt = ledger.launched(runs[key], number=1, path=path, host=host, gpus="0,1")
            facts = result_facts(seed=key[1]) | changes
            at = ledger.stages(attempt)[-1].launched + 36.0
            ledger.ended(
                *(attempt, AttemptState.FINISHED, RunState.FINISHED),
                exit_code=0,
                result=facts,
                at=at,
            )
        yield ledger
    finally:
        ledger.close()


def test_what_a_log_does_not_say_is_missing_in_every_form(sweep: SweepDir) -> None:
    results: dict[tuple[int, int], dict[str, Any]] = {
        (0, seed): dict.fromkeys(UNKNOWN) for seed in (42, 314)
    }
    results[(0, 999)] = {}
    with ledger_of(sweep, results) as ledger:
        low = records(trials_frame(ledger))[0]
        assert (low["n"], low["val_bpb_mean"]) == (3, pytest.approx(1.1))
        # One run of three says it: a mean over that one would be of other runs than the score's.
        assert low["steps_mean"] is low["bytes_total_max"] is low["within_budget"] is None
        assert low["quantisation_gap_mean"] is low["step_avg_ms_mean"] is None
        run = records(runs_frame(ledger))[0]
        assert run["bytes_total"] is run["quantisation_gap"] is run["train_s"] is None
        for form in FORMATS:
            text = report(sweep, form)
            assert "nan" not in text.lower(), form
        assert json.loads(report(sweep, "json"))["trials"][0]["steps_mean"] is None
        assert next(csv.DictReader(io.StringIO(report(sweep, "csv"))))["steps_mean"] == ""


def test_all_unknown_is_no_crash_either(sweep: SweepDir) -> None:
    with ledger_of(sweep, {(0, 42): dict.fromkeys(UNKNOWN)}) as ledger:
        assert records(trials_frame(ledger))[0]["bytes_total_mean"] is None
        assert "1.10000" in report(sweep, "table")


@pytest.mark.parametrize(
    ("times", "slow"),
    [
        ({(0, 42): 100.0, (0, 314): 104.0, (0, 999): 106.0}, set()),
        ({(0, 42): 100.0, (0, 314): 101.0, (0, 999): 106.5}, {(0, 999)}),
        # Another network may be slower in all its runs: each is held against its own.
        ({(t, s): 100.0 * (t + 1) for t in (0, 1) for s in (42, 314, 999)}, set()),
        # Too few of its own: against all there are.
        ({(0, 42): 100.0, (0, 314): 100.0, (1, 42): 120.0}, {(1, 42)}),
        ({(0, 42): 100.0, (1, 42): 120.0}, set()),
        ({(0, 42): None, (0, 314): 100.0, (0, 999): 150.0}, set()),
    ],
)
def test_a_run_with_slow_steps_is_named_with_its_host(
    sweep: SweepDir, times: dict[tuple[int, int], float | None], slow: set[tuple[int, int]]
) -> None:
    results = {key: {"step_avg_ms": time} for key, time in times.items()}
    with ledger_of(sweep, results) as ledger:
        rows = records(runs_frame(ledger))
        found = {(int(r["trial"] == "high"), r["seed"]) for r in rows if r["slow"] is not None}
        assert found == slow
        lines = [line for line in report(sweep, "table").splitlines() if "slower steps" in line]
        assert len(lines) == len(slow)
        for line, key in zip(lines, slow, strict=True):
            assert f"on box{list(times).index(key)}" in line
            assert f"seed {key[1]}" in line


def test_a_price_is_put_on_what_was_reserved(sweep: SweepDir) -> None:
    results: dict[tuple[int, int], dict[str, Any]] = {(0, 42): {}, (1, 314): {}}
    with ledger_of(sweep, results, cost={"usd_per_gpu_hour": 2.5}) as ledger:
        # 2 GPUs for 36 s are 0.02 GPU-hours.
        assert [r["cost_usd"] for r in records(runs_frame(ledger))][:2] == [pytest.approx(0.05), 0]
        assert records(trials_frame(ledger))[1]["cost_usd"] == pytest.approx(0.05)
        assert json.loads(report(sweep, "json"))["cost_usd"] == pytest.approx(0.10)
        for form in ("table", "markdown"):
            assert "cost: $0.10 for 0.04 GPU-hours reserved" in report(sweep, form)


def test_without_a_price_nothing_is_said_of_cost(sweep: SweepDir) -> None:
    with ledger_of(sweep, {(0, 42): {}}) as ledger:
        assert records(runs_frame(ledger))[0]["cost_usd"] is None
        assert "cost" not in report(sweep, "table")


def test_settings_that_nothing_confirms_are_named(sweep: SweepDir) -> None:
    results = {(0, 42): {"unconfirmed": ["LR"]}, (0, 314): {"unconfirmed": ["ITERATIONS", "LR"]}}
    with ledger_of(sweep, results) as ledger:
        assert records(runs_frame(ledger))[0]["unconfirmed"] == "LR"
        assert records(trials_frame(ledger))[0]["unconfirmed"] == "ITERATIONS, LR"
        assert "low: its logs do not say whether the script took ITERATIONS, LR" in report(
            sweep, "markdown"
        )
