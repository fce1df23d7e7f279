"""Tables: every number is over the finished seeds, every form says the same, nothing is hidden."""

from __future__ import annotations

import csv
import io
import json
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from sweeper.aggregate import FORMATS, report, runs_frame, trials_frame, write_report
from sweeper.errors import UserError
from sweeper.layout import SweepDir
from sweeper.ledger import Ledger
from sweeper.rows import AttemptState, RunState
from sweeper.tables import GPU_HEADINGS, HEADINGS, NO_FULL_SCORE, records
from tests.sweeper.conftest import make_spec, result_facts

SCORES = (1.09269834, 1.09269085, 1.09194120)
BUDGET = 16_000_000


@pytest.fixture
def sweep(tmp_path: Path) -> SweepDir:
    sweep = SweepDir(tmp_path / "größe und platz")
    sweep.path.mkdir()
    return sweep


def finished(ledger: Ledger, trial: int, seed: int, **changes: Any) -> None:
    (run,) = [run for run in ledger.runs() if (run.trial, run.seed) == (trial, seed)]
    number = len(ledger.attempts(run.id)) + 1
    attempt = ledger.launched(run, number=number, path=f"a/{run.id}", host="box", gpus="0")
    facts = result_facts(seed=seed, **changes)
    ledger.ended(attempt, AttemptState.FINISHED, RunState.FINISHED, exit_code=0, result=facts)


def failed(ledger: Ledger, trial: int, seed: int, state: RunState = RunState.FAILED) -> None:
    (run,) = [run for run in ledger.runs() if (run.trial, run.seed) == (trial, seed)]
    number = len(ledger.attempts(run.id)) + 1
    attempt = ledger.launched(run, number=number, path=f"a/{run.id}", host="box", gpus="0")
    ledger.ended(attempt, AttemptState.CRASHED, state, exit_code=1, message="it broke")


@pytest.fixture
def ledger(sweep: SweepDir) -> Iterator[Ledger]:
    """Two trials: `low` has all seeds, one of them over the budget; `high` has one of three."""
    ledger = Ledger.open_for_writing(sweep.ledger, make_spec(budget={"max_bytes": BUDGET}))
    sizes = (15_900_000, 16_000_001, 15_950_000)
    for seed, score, size in zip((42, 314, 999), SCORES, sizes, strict=True):
        if seed == 999:
            failed(ledger, 0, seed, RunState.PENDING)
        finished(
            *(ledger, 0, seed),
            val_bpb=score,
            prequant_val_bpb=score - 0.02,
            quant_val_bpb=score + 0.005,
            bytes_total=size,
            steps=5_000 + seed,
            train_time_ms=590_000.0,
            step_avg_ms=110.5,
        )
    finished(ledger, 1, 42, val_bpb=1.2, prequant_val_bpb=1.15, quant_val_bpb=1.21)
    failed(ledger, 1, 314)
    yield ledger
    ledger.close()


def trial_rows(ledger: Ledger) -> list[dict[str, Any]]:
    return records(trials_frame(ledger))


# ---- frames


def test_there_is_a_row_a_run_in_launch_order(ledger: Ledger) -> None:
    rows = records(runs_frame(ledger))
    assert [(row["trial"], row["seed"]) for row in rows] == [
        (trial, seed) for seed in (42, 314, 999) for trial in ("low", "high")
    ]
    assert [row["state"] for row in rows] == [
        *("finished", "finished", "finished", "failed", "finished", "pending")
    ]
    assert [row["attempts"] for row in rows] == [1, 1, 1, 1, 2, 0]
    assert [row["val_bpb"] for row in rows] == [SCORES[0], 1.2, SCORES[1], None, SCORES[2], None]
    assert [row["bytes_total"] for row in rows][:3] == [15_900_000, 150, 16_000_001]
    assert (rows[0]["metric"], rows[0]["stop_reason"]) == ("sliding", "iterations")
    assert rows[3]["message"] == "it broke"
    assert rows[5]["message"] is rows[5]["host"] is rows[5]["path"] is None


def test_a_trials_numbers_are_over_its_finished_seeds(ledger: Ledger) -> None:
    low, high = trial_rows(ledger)
    assert (low["trial"], low["n"], low["seeds"], low["failed"]) == ("low", 3, 3, 0)
    assert low["val_bpb_mean"] == pytest.approx(sum(SCORES) / 3, abs=1e-12)
    assert low["val_bpb_std"] == pytest.approx(0.000435, abs=5e-7)
    assert low["val_bpb_low95"] < low["val_bpb_mean"] < low["val_bpb_high95"]
    assert low["train_s_mean"] == 590.0
    assert low["steps_mean"] == pytest.approx(5_000 + (42 + 314 + 999) / 3)
    assert (high["trial"], high["n"], high["seeds"], high["failed"]) == ("high", 1, 3, 1)
    assert high["val_bpb_mean"] == 1.2
    assert high["val_bpb_std"] is high["val_bpb_low95"] is None


def test_the_gap_is_quant_less_prequant(ledger: Ledger) -> None:
    low, high = trial_rows(ledger)
    assert low["quantisation_gap_mean"] == pytest.approx(0.025)
    assert low["quantisation_gap_std"] == pytest.approx(0.0, abs=1e-9)
    assert high["quantisation_gap_mean"] == pytest.approx(0.06)


def test_the_largest_artifact_is_the_one_that_must_fit(ledger: Ledger) -> None:
    low, high = trial_rows(ledger)
    assert low["bytes_total_mean"] < BUDGET  # the mean alone would pass
    assert low["bytes_total_max"] == BUDGET + 1
    assert low["within_budget"] is False
    assert high["within_budget"] is True


def test_an_artifact_of_just_the_budget_fits(sweep: SweepDir) -> None:
    ledger = Ledger.open_for_writing(sweep.ledger, make_spec(budget={"max_bytes": BUDGET}))
    finished(ledger, 0, 42, bytes_total=BUDGET)
    assert trial_rows(ledger)[0]["within_budget"] is True
    ledger.close()


def test_a_run_that_goes_on_is_not_counted_yet(sweep: SweepDir) -> None:
    ledger = Ledger.open_for_writing(sweep.ledger, make_spec())
    finished(ledger, 0, 42)
    ledger.launched(ledger.runs()[2], number=1, path="a", host="box", gpus="")
    assert [row["n"] for row in trial_rows(ledger)] == [1, 0]
    ledger.close()


def test_a_new_sweep_has_rows_and_no_numbers(sweep: SweepDir) -> None:
    Ledger.open_for_writing(sweep.ledger, make_spec()).close()
    for form in FORMATS:
        assert "nan" not in report(sweep, form).lower()
    parsed = json.loads(report(sweep, "json"))
    assert [row["n"] for row in parsed["trials"]] == [0, 0]
    assert parsed["trials"][0]["val_bpb_mean"] is parsed["trials"][0]["within_budget"] is None
    assert "0/3" in report(sweep, "table")


# ---- for people


def markdown_rows(text: str) -> list[dict[str, str]]:
    table = [line for line in text.splitlines() if line.startswith("|")]
    split = [[cell.strip() for cell in line.strip("|").split(" | ")] for line in table]
    return [dict(zip(split[0], row, strict=True)) for row in split[2:]]


def test_cells_say_mean_spread_and_what_is_over(ledger: Ledger, sweep: SweepDir) -> None:
    low, high = markdown_rows(report(sweep, "markdown"))
    assert tuple(low) == (*HEADINGS, *GPU_HEADINGS)
    assert low["configuration"] == "low"
    assert (low["n"], low["val_bpb"], low["gap"]) == ("3/3", "1.09244 ± 0.00043", "+0.02500")
    assert low["before quantisation"] == "1.07244 ± 0.00043"
    assert (low["bytes mean"], low["bytes max"]) == ("15,950,000", "16,000,001 over!")
    assert (low["steps"], low["ms/step"], low["train s"]) == ("5,452", "110.5", "590.0")
    assert (high["n"], high["val_bpb"], high["bytes max"]) == ("1/3", "1.20000", "150")


def test_a_missing_seed_is_said_in_words(ledger: Ledger, sweep: SweepDir) -> None:
    remark = "high: 1 of 3 seeds finished, 1 failed; not to be compared yet"
    for form in ("table", "markdown"):
        text = report(sweep, form)
        assert remark in text.splitlines()
        assert "low: " not in text


def test_interrupted_runs_and_mixed_code_are_said_in_words(sweep: SweepDir) -> None:
    with closing(Ledger.open_for_writing(sweep.ledger, make_spec())) as ledger:
        for number, run in enumerate(run for run in ledger.runs() if run.trial == 0):
            attempt = ledger.launched(
                *(run,), number=1, path="a", host="box", gpus="", code=f"hash {number % 2}"
            )
            facts = result_facts(seed=run.seed, resumed_from_step=7 if number == 0 else None)
            ledger.ended(attempt, AttemptState.FINISHED, RunState.FINISHED, result=facts)
        rows = trial_rows(ledger)
    assert (rows[0]["resumed"], rows[0]["codes"]) == (1, 2)
    text = report(sweep, "table")
    assert "low: 1 of 3 runs were interrupted and resumed" in text
    assert "low: its runs are of 2 versions of the code" in text
    assert "high: its runs" not in text


def test_the_table_has_a_line_a_trial(ledger: Ledger, sweep: SweepDir) -> None:
    lines = report(sweep, "table").splitlines()
    assert lines[0].startswith("small: val_bpb of the artifact, mean ± sample std over seeds 42, 3")
    (line,) = [line for line in lines if "│ low" in line]
    cells = [cell.strip() for cell in line.strip("│").split("│")]
    assert cells == list(markdown_rows(report(sweep, "markdown"))[0].values())
    assert "…" not in "\n".join(lines)


# ---- what GPUs were held for


def launches(sweep: SweepDir, *facts: tuple[str, str, float, float, int]) -> None:
    """Write down when stages were at work: (stage, GPUs, launched, ended), by attempt."""
    with sqlite3.connect(sweep.ledger) as database:
        database.execute("DELETE FROM stages")
        database.executemany(
            "INSERT INTO stages (stage, gpus, launched, ended, attempt, host, events_from)"
            " VALUES (?, ?, ?, ?, ?, 'box', 0)",
            facts,
        )
    database.close()


def test_all_attempts_reserve_and_only_the_result_is_of_use(sweep: SweepDir) -> None:
    with closing(Ledger.open_for_writing(sweep.ledger, make_spec())) as ledger:
        failed(ledger, 0, 42, RunState.PENDING)
        finished(ledger, 0, 42, useful_s=150.0)
        finished(ledger, 0, 314, useful_s=100)
        failed(ledger, 1, 42)
        failed(ledger, 1, 314)
        for number in (2, 3):
            attempt = ledger.attempts()[number - 1]
            ledger._db.execute("UPDATE attempts SET gpus = '0,1' WHERE id = ?", (attempt.id,))
    launches(
        sweep,
        *(("train", "0,1", 0.0, 50.0, 1), ("train", "0,1", 50.0, 150.0, 2)),
        *(("pack", "", 150.0, 999.0, 2), ("score", "0,1", 999.0, 1049.0, 2)),
        *(("all", "4,5", 0.0, 100.0, 3), ("all", "0", 0.0, 7.0, 4), ("all", "", 0.0, 7.0, 5)),
    )
    with closing(Ledger.open_for_reading(sweep.ledger)) as ledger:
        rows = records(runs_frame(ledger))
        low, high = trial_rows(ledger)
    numbers = [(row["gpu_s_reserved"], row["gpu_s_useful"]) for row in rows]
    assert numbers[:4] == [(400.0, 300.0), (7.0, None), (200.0, 200.0), (0.0, None)]
    assert (low["gpu_s_reserved_mean"], low["gpu_s_useful_mean"]) == (300.0, 250.0)
    assert high["gpu_s_reserved_mean"] is high["gpu_s_useful_mean"] is None
    shown, nothing = markdown_rows(report(sweep, "markdown"))
    assert (shown["GPU s"], shown["useful %"]) == ("300", "83")
    assert (nothing["GPU s"], nothing["useful %"]) == ("–", "–")


def test_what_an_older_result_does_not_say_is_not_guessed(sweep: SweepDir) -> None:
    with closing(Ledger.open_for_writing(sweep.ledger, make_spec())) as ledger:
        finished(ledger, 0, 42, useful_s=150.0)
        finished(ledger, 0, 314)
    launches(sweep, ("all", "0", 0.0, 200.0, 1), ("all", "0", 0.0, 100.0, 2))
    with closing(Ledger.open_for_reading(sweep.ledger)) as ledger:
        low, _ = trial_rows(ledger)
    assert (low["gpu_s_reserved_mean"], low["gpu_s_useful_mean"]) == (150.0, None)
    shown, _ = markdown_rows(report(sweep, "markdown"))
    assert (shown["GPU s"], shown["useful %"]) == ("150", "–")


def test_without_gpus_there_is_no_column_of_them(sweep: SweepDir) -> None:
    with closing(Ledger.open_for_writing(sweep.ledger, make_spec())) as ledger:
        finished(ledger, 0, 42, useful_s=150.0)
    launches(sweep, ("all", "", 0.0, 200.0, 1))
    assert tuple(markdown_rows(report(sweep, "markdown"))[0]) == HEADINGS
    assert "useful" not in report(sweep, "table")


# ---- scores that are not of one kind


def test_runs_of_different_metrics_have_no_mean(sweep: SweepDir) -> None:
    with closing(Ledger.open_for_writing(sweep.ledger, make_spec())) as ledger:
        finished(ledger, 0, 42, metric="sliding")
        finished(ledger, 0, 314, metric="quant")
        finished(ledger, 1, 42, metric="quant")
        low, high = trial_rows(ledger)
    assert low["metric"] == "quant and sliding"
    assert low["val_bpb_mean"] is low["val_bpb_std"] is low["val_bpb_high95"] is None
    assert (low["n"], low["steps_mean"]) == (2, 6.0)
    assert (high["metric"], high["val_bpb_mean"]) == ("quant", 1.1)
    for form in ("table", "markdown"):
        lines = report(sweep, form).splitlines()
        assert (
            "low: its runs are scored by different metrics (quant and sliding), so they have no "
            "mean" in lines
        )
        assert (
            "trials are scored by different metrics, not to be compared: quant and "
            "sliding: low; quant: high" in lines
        )
    assert markdown_rows(report(sweep, "markdown"))[0]["val_bpb"] == "–"


def test_scores_of_one_metric_need_no_remark(ledger: Ledger, sweep: SweepDir) -> None:
    assert [row["metric"] for row in trial_rows(ledger)] == ["sliding", "sliding"]
    text = report(sweep, "table")
    assert "metrics" not in text
    assert NO_FULL_SCORE not in text


def test_a_score_of_a_subset_never_passes_for_a_full_one(sweep: SweepDir) -> None:
    with closing(Ledger.open_for_writing(sweep.ledger, make_spec())) as ledger:
        finished(ledger, 0, 42, metric="sliding")
        finished(ledger, 1, 42, metric="sliding-subset")
    for form in ("table", "markdown"):
        lines = report(sweep, form).splitlines()
        assert f"high: {NO_FULL_SCORE}" in lines
        assert (
            "trials are scored by different metrics, not to be compared: sliding: low; "
            "sliding-subset: high" in lines
        )


HOSTILE = [
    "[bold]x[/bold]",
    "[/]",
    "[/red] [x",
    "a | b",
    "a, b",
    'say "x"',
    ":heart:",
    "größe 日本",
    "x" * 80,
]


@pytest.mark.parametrize("name", HOSTILE)
def test_a_trials_name_is_shown_as_it_is(sweep: SweepDir, name: str) -> None:
    ledger = Ledger.open_for_writing(sweep.ledger, make_spec(trial=[{"name": name}]))
    finished(ledger, 0, 42)
    ledger.close()
    assert name in report(sweep, "table").splitlines()[-3]
    assert f"| {name.replace('|', chr(92) + '|')} | 1/3 |" in report(sweep, "markdown")
    assert json.loads(report(sweep, "json"))["trials"][0]["trial"] == name
    (row,) = csv.DictReader(io.StringIO(report(sweep, "csv")))
    assert row["trial"] == name


# ---- for programs


def test_every_form_says_the_same(ledger: Ledger, sweep: SweepDir) -> None:
    parsed = json.loads(report(sweep, "json"))
    table = list(csv.DictReader(io.StringIO(report(sweep, "csv"))))
    shown = markdown_rows(report(sweep, "markdown"))
    assert (parsed["sweep"], parsed["seeds"]) == ("small", [42, 314, 999])
    assert (parsed["metric"], parsed["budget_bytes"]) == ("val_bpb", BUDGET)
    assert parsed["uid"] == ledger.uid
    assert len(parsed["trials"]) == len(table) == len(shown) == 2
    for row, line, cells in zip(parsed["trials"], table, shown, strict=True):
        assert row.keys() == line.keys()
        for name, value in row.items():
            if value is None:
                assert line[name] == ""
            elif isinstance(value, bool | str):
                assert line[name] == str(value)
            else:
                assert float(line[name]) == pytest.approx(value, rel=1e-12)
        assert cells["val_bpb"].split(" ± ")[0] == f"{row['val_bpb_mean']:.5f}"
        assert cells["n"] == f"{row['n']}/{row['seeds']}"
    assert [row["val_bpb"] for row in parsed["runs"]][:2] == [SCORES[0], 1.2]


def test_counts_stay_whole_in_json(ledger: Ledger, sweep: SweepDir) -> None:
    runs = json.loads(report(sweep, "json"))["runs"]
    assert all(isinstance(row["seed"], int) and isinstance(row["attempts"], int) for row in runs)
    assert isinstance(runs[0]["bytes_total"], int)
    assert isinstance(runs[0]["steps"], int)


def test_the_report_is_written_whole(ledger: Ledger, sweep: SweepDir) -> None:
    paths = write_report(sweep)
    assert paths == [sweep.report_csv, sweep.runs_csv, sweep.report_json]
    assert json.loads(sweep.report_json.read_text()) == json.loads(report(sweep, "json"))
    assert sweep.report_csv.read_text().rstrip("\n") == report(sweep, "csv")
    runs = pd.read_csv(sweep.runs_csv)
    assert runs["val_bpb"].dropna().tolist() == [SCORES[0], 1.2, SCORES[1], SCORES[2]]
    assert not list(sweep.path.glob("*.partial"))
    write_report(sweep)


def test_there_is_nothing_to_report_without_a_sweep(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no sweep there"):
        report(SweepDir(tmp_path / "nothing"), "table")
