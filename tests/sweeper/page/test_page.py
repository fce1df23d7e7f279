"""A sweep's page: its numbers are those of the report, and what does not count is said with why."""

from __future__ import annotations

import json
import re
import sqlite3
import statistics
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from sweeper.aggregate import runs_frame, trials_frame
from sweeper.errors import UserError
from sweeper.layout import SweepDir
from sweeper.ledger import Ledger
from sweeper.page import figures, logs, runs
from sweeper.page.facts import ALPHA, gather, judge
from sweeper.page.figures import lanes_of
from sweeper.page.html import E
from sweeper.page.write import page, policy, write_page
from sweeper.rows import AttemptState, RunState
from sweeper.stats import summarise, welch
from sweeper.tables import records
from tests.sweeper.kept_searches import keeping
from tests.sweeper.page.page_sweeps import (
    BROKEN,
    SCORES,
    Outcome,
    make_sweep,
    outcome_of,
    part,
    two_trials,
)
from tests.sweeper.searches import bowl, search_spec


@pytest.fixture(scope="module")
def sweep(tmp_path_factory: pytest.TempPathFactory) -> SweepDir:
    """Two trials, three seeds, all finished."""
    root = tmp_path_factory.mktemp("größe und platz")
    return make_sweep(root, two_trials, resources={"gpus_per_run": 2}, cost={"usd_per_gpu_hour": 3})


@contextmanager
def ledger_of(sweep: SweepDir) -> Iterator[Ledger]:
    with closing(Ledger.open_for_reading(sweep.ledger)) as ledger:
        yield ledger


# ---- numbers


@pytest.mark.usefixtures("unpictured")
def test_the_headline_is_what_the_report_says_of_the_best(sweep: SweepDir) -> None:
    shown = part(page(sweep), "result")
    with ledger_of(sweep) as ledger:
        row = next(row for row in records(trials_frame(ledger)) if row["trial"] == "low")
    assert row["val_bpb_mean"] == statistics.fmean(SCORES)
    assert "Best: low" in shown
    assert f"{row['val_bpb_mean']:.5f} ± {row['val_bpb_std']:.5f}" in shown
    assert f"{row['val_bpb_low95']:.5f} to {row['val_bpb_high95']:.5f}" in shown
    assert "n = 3, seeds 42, 314, 999" in shown
    assert f"{row['bytes_total_max']:,} bytes" in shown
    assert f"{16_000_000 - row['bytes_total_max']:,} bytes below 16,000,000" in shown
    assert f"{row['quantisation_gap_mean']:+.5f}" in shown


@pytest.mark.usefixtures("unpictured")
def test_every_run_and_configuration_is_there_with_the_reports_numbers(sweep: SweepDir) -> None:
    text = page(sweep)
    runs, trials = part(text, "runs"), part(text, "configurations")
    with ledger_of(sweep) as ledger:
        for row in records(runs_frame(ledger)):
            assert f"{row['trial']} / {row['seed']} finished {row['val_bpb']:.5f}" in runs
            assert f"{row['bytes_total']:,} {row['steps']:,}" in runs
        for row in records(trials_frame(ledger)):
            spread = f"{row['val_bpb_mean']:.5f} ± {row['val_bpb_std']:.5f}"
            assert (
                f"{row['trial']} LR={0.1 if row['trial'] == 'low' else 0.2} 3/3 {spread}" in trials
            )


def test_the_next_is_beaten_by_welchs_test_on_both_sides(sweep: SweepDir) -> None:
    verdict = gather(sweep).verdict
    assert verdict is not None
    assert verdict.comparison is not None
    expected = welch(SCORES, [score + 0.02 for score in SCORES], alpha=ALPHA)
    assert verdict.comparison.t == pytest.approx(expected.t)
    assert verdict.p == pytest.approx(2 * expected.p)
    assert (verdict.best.name, verdict.second.name, verdict.apart) == ("low", "high", True)


def test_what_was_picked_by_the_scores_is_tested_for_all_pairs(tmp_path: Path) -> None:
    trials = [{"name": name, "env": {"LR": n}} for n, name in enumerate("abcd")]

    def outcome(trial: str, seed: int) -> Outcome:
        return {"val_bpb": SCORES[seed % 3] + 0.001 * "abcd".index(trial)}

    facts = gather(make_sweep(tmp_path, outcome, trial=trials))
    assert facts.verdict is not None
    assert facts.verdict.comparison is not None
    assert facts.verdict.pairs == 6
    assert facts.verdict.p == pytest.approx(min(1.0, 12 * facts.verdict.comparison.p))
    assert [group.name for group in facts.ranked] == list("abcd")


def test_without_spread_there_is_no_test(tmp_path: Path) -> None:
    facts = gather(make_sweep(tmp_path, lambda trial, _: {"val_bpb": 1.1 + (trial == "high")}))
    verdict = judge(facts.compared)
    assert (verdict.comparison, verdict.apart) == (None, False)
    assert "no test can be made" in str(verdict.reason)


# ---- what does not count


@pytest.mark.usefixtures("unpictured")
@pytest.mark.parametrize(
    ("broken", "doubt", "said"),
    [
        ({("low", 42): {"bytes_total": 16_000_001}}, "over the budget", "16,000,001 over!"),
        ({("low", 314): RunState.FAILED}, "2 of 3 seeds have finished", "failed"),
        ({("low", 314): RunState.PENDING}, "2 of 3 seeds have finished", "pending"),
        ({("low", 314): RunState.RUNNING}, "2 of 3 seeds have finished", "running"),
        ({("low", 999): {"metric": "ttt"}}, "which have no mean", "low / 999"),
    ],
)
def test_what_cannot_be_compared_is_not_the_best_and_it_is_said_why(
    tmp_path: Path, broken: dict[tuple[str, int], Outcome], doubt: str, said: str
) -> None:
    sweep = make_sweep(tmp_path, outcome_of(broken))
    text = page(sweep)
    assert "high" in part(text, "result").partition(" bits per byte")[0]
    assert doubt in part(text, "excluded")
    assert said in part(text, "runs")
    assert gather(sweep).verdict is None


def test_scores_of_other_kinds_are_not_held_against_each_other(tmp_path: Path) -> None:
    kinds = {("high", seed): {"metric": "sliding-subset"} for seed in (42, 314, 999)}
    text = page(make_sweep(tmp_path, outcome_of({**kinds})))
    why = part(text, "excluded")
    assert "scored by sliding-subset, the others by sliding" in why
    assert "a subset of the tokens, not a full score" in why
    assert "Only what is scored by sliding." in part(text, "seeds")


@pytest.mark.usefixtures("unpictured")
def test_a_sweep_of_subsets_alone_says_that_it_has_no_full_score(tmp_path: Path) -> None:
    def outcome(trial: str, seed: int) -> Outcome:
        usual = two_trials(trial, seed)
        assert isinstance(usual, dict)
        return {**usual, "metric": "sliding-subset", "resumed_from_step": 7}

    text = page(make_sweep(tmp_path, outcome))
    assert "not a full score" in part(text, "result")
    assert "3 of its runs were interrupted and resumed" in part(text, "result")
    assert "resumed from step 7" in part(text, "excluded")


@pytest.mark.usefixtures("unpictured")
def test_other_code_earlier_attempts_and_slow_runs_are_named(tmp_path: Path) -> None:
    slow: dict[tuple[str, int], Any] = {("high", 42): {"step_avg_ms": 200.0}}
    sweep = make_sweep(tmp_path, outcome_of(slow))
    with closing(sqlite3.connect(sweep.ledger)) as db, db:
        # As if it had been tried before, and another had been of other code.
        columns = "run, path, host, gpus, launched"
        db.execute("UPDATE attempts SET number = 2, code = 'beef' WHERE id = 1")
        db.execute("UPDATE attempts SET code = 'cafe' WHERE id > 1")
        db.execute(
            f"INSERT INTO attempts (id, number, state, message, {columns}) "
            f"SELECT -1, 1, 'crashed', 'it broke', {columns} FROM attempts WHERE id = 1"
        )
    why = part(page(sweep), "excluded")
    assert "low / 42 finished at attempt 2, after: crashed: it broke" in why
    assert "low not compared: its runs are of 2 versions of the code" in why
    assert "high / 42 81 % slower steps than the median, on node-" in why


@pytest.mark.usefixtures("unpictured")
def test_a_run_that_lost_time_to_stalls_is_named(tmp_path: Path) -> None:
    sweep = make_sweep(tmp_path, two_trials)
    events = sweep.attempt(0, "low", 314, 1).events
    times = [10_000 + 100 * step + (9_000 if step > 60 else 0) for step in range(0, 101, 10)]
    steps = [
        {"kind": "step", "step": step, "train_loss": 3.0, "train_time_ms": ms}
        for step, ms in zip(range(10, 111, 10), times, strict=True)
    ]
    events.write_text("".join(f"{json.dumps(event)}\n" for event in steps))
    why = part(page(sweep), "excluded")
    assert "low / 314 lost 18.0 s (62 % of its training) to stalls: steps 1 to 10 took" in why
    assert "its median is 100 ms, and 1 shorter stall" in why


@pytest.mark.usefixtures("unpictured")
def test_long_messages_are_cut(tmp_path: Path) -> None:
    sweep = make_sweep(tmp_path, outcome_of({("high", 314): RunState.FAILED}))
    with closing(sqlite3.connect(sweep.ledger)) as db, db:
        db.execute("UPDATE attempts SET message = ?, traceback = ?", ("m" * 90_000, "t" * 90_000))
        db.execute("UPDATE notes SET text = ?", ("n" * 90_000,))
    assert len(page(sweep)) < 60_000


@pytest.mark.usefixtures("unpictured")
def test_where_nothing_was_left_out_that_is_said(sweep: SweepDir) -> None:
    assert "Nothing: every run finished" in part(page(sweep), "excluded")


# ---- not over yet


@pytest.mark.usefixtures("unpictured")
def test_a_sweep_that_has_not_begun_says_what_is_missing(tmp_path: Path) -> None:
    text = page(make_sweep(tmp_path, lambda *_: RunState.PENDING))
    assert "none yet no run has finished yet" in part(text, "result")
    assert "0 of 6 runs finished, 6 pending; no driver is at work" in text
    assert "low / 42 pending" in part(text, "runs")
    assert '<section id="logs"' not in text


def test_a_sweep_at_work_shows_how_far_its_runs_are(tmp_path: Path) -> None:
    text = page(make_sweep(tmp_path, lambda *_: RunState.RUNNING))
    assert "no run has finished yet" in part(text, "result")
    assert "Loss" in part(text, "training")
    assert '<section id="seeds"' not in text


@pytest.mark.usefixtures("unpictured")
def test_a_sweep_whose_runs_all_failed_says_so(tmp_path: Path) -> None:
    text = page(make_sweep(tmp_path, lambda *_: RunState.FAILED))
    assert "no run has finished: 6 runs failed" in part(text, "result")
    assert str(E(BROKEN)) in text
    assert "Traceback" in part(text, "logs")


# ---- logs, notes, what it was made of


@pytest.mark.usefixtures("unpictured")
def test_logs_are_bounded_and_those_of_what_failed_come_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sweep = make_sweep(tmp_path, outcome_of({("high", 999): RunState.FAILED}))
    for path in sweep.path.glob("attempts/**/stdout.log"):
        path.write_text("".join(f"line {n} <&>\n" for n in range(5_000)))
    bounds = {"MOST_BYTES": 4_000, "LEAST_BYTES": 4_000, "MOST_IN_ALL": 9_000}
    for name, value in bounds.items():
        monkeypatch.setattr(logs, name, value)
    facts = gather(sweep)
    shown = [run for run, tail in facts.tails.items() if tail.text]
    assert shown == [("high", 999), ("low", 42)]
    for run in shown:
        tail = facts.tails[run]
        assert tail.text.endswith("line 4999 <&>")
        assert len(E(tail.text).encode()) <= 4_000
        assert not tail.whole
        assert (sweep.path / tail.path).is_file()
    assert "4 more logs would not fit" in part(page(sweep), "logs")


def test_a_log_is_no_longer_than_its_lines_and_bytes(tmp_path: Path) -> None:
    path = tmp_path / "a.log"
    path.write_text("short\nlog\n")
    assert (logs.read_tail(path, 1_000).text, logs.read_tail(path, 1_000).whole) == (
        "short\nlog",
        True,
    )
    path.write_text("\n".join(map(str, range(1_000))))
    assert logs.read_tail(path, 100_000).text.count("\n") == logs.MOST_LINES - 1
    path.write_bytes(b"x" * 100_000)
    assert len(logs.read_tail(path, 1_000).text) <= 1_000
    assert logs.read_tail(tmp_path / "none", 10).text == ""


@pytest.mark.usefixtures("unpictured")
def test_one_seed_is_told_to_be_one(tmp_path: Path) -> None:
    trials = [{"name": "low", "env": {"LR": 1}}]
    text = page(make_sweep(tmp_path, two_trials, seeds=[42], trial=trials))
    assert "One seed: no spread and no interval" in text
    assert "One seed:" not in page(make_sweep(tmp_path / "three", two_trials))


@pytest.mark.usefixtures("unpictured")
def test_price_and_notes_are_told(sweep: SweepDir) -> None:
    text = page(sweep)
    assert "GPU-hours" in part(text, "result")
    assert "$" in part(text, "result")
    assert "disk full" in part(text, "notes")


# ---- pictures


def test_there_is_a_picture_of_all_that_there_is_something_for(sweep: SweepDir) -> None:
    text = page(sweep)
    titles = re.findall(r"<figcaption><b>([^<]*)</b>", text)
    assert titles == [
        *("Score", "Bytes", "Quantisation gap", "Milliseconds per step"),
        *("Loss", "Validation on the way", "When runs were at work"),
    ]
    assert text.count('role="img"') >= len(titles)


def test_attempts_that_were_at_work_at_once_are_above_each_other(sweep: SweepDir) -> None:
    facts = gather(sweep, now=1_000.0)
    spans = [(100.0, 110.0), (105.0, 112.0), (110.0, 120.0), (111.0, None)]
    states = [AttemptState.CRASHED, AttemptState.FINISHED, AttemptState.LOST, AttemptState.LAUNCHED]
    attempts = tuple(
        replace(facts.attempts[0], launched=launched, ended=ended, state=state)
        for (launched, ended), state in zip(spans, states, strict=True)
    )
    lanes = lanes_of(replace(facts, attempts=attempts))
    assert [[(bar.begin, bar.end, bar.kind) for bar in lane] for lane in lanes] == [
        [(0.0, 10.0, "failed"), (10.0, 20.0, "failed")],
        [(5.0, 12.0, "finished")],
        [(11.0, 900.0, "other")],
    ]


def test_of_many_only_the_best_are_drawn_and_all_are_listed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trials = [{"name": f"trial {n}", "env": {"LR": n}} for n in range(18)]

    def outcome(trial: str, seed: int) -> Outcome:
        return {"val_bpb": 1.1 + int(trial.split()[1]) / 1000 + SCORES[seed % 3] / 100}

    monkeypatch.setattr(runs, "MOST_RUNS", 40)
    text = page(make_sweep(tmp_path, outcome, trial=trials))
    assert f"The best {figures.MOST_ROWS} of 18" in part(text, "seeds")
    assert "The first 4 configurations of 18, the best first" in part(text, "training")
    assert "The first 40 of 54; runs.csv has all" in part(text, "runs")
    assert all(f"trial {n} " in part(text, "configurations") for n in range(18))
    assert len(text.encode()) < 1_500_000


# ---- a search


@pytest.mark.usefixtures("unpictured")
def test_a_search_that_has_just_begun_has_a_page(tmp_path: Path) -> None:
    with keeping(search_spec(), tmp_path, bowl) as play:
        assert "none yet" in part(page(play.sweep), "result")
        play.go_on(1)
        shown = part(page(play.sweep), "result")
    assert "Leader so far: t0" in shown
    assert "Optimistic" in shown


# ---- the file


@pytest.mark.usefixtures("unpictured")
def test_the_file_is_written_by_rename_and_holds_the_page(sweep: SweepDir) -> None:
    path = write_page(sweep)
    assert path == sweep.path / "report.html"
    text = path.read_text(encoding="utf-8")
    assert text.startswith('<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">')
    assert policy().startswith("default-src 'none'; style-src 'sha256-")
    assert not list(sweep.path.glob("*.partial"))


def test_where_no_sweep_is_a_person_is_told(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no sweep there"):
        write_page(SweepDir(tmp_path / "none"))


def test_the_interval_is_of_the_mean_over_the_seeds(sweep: SweepDir) -> None:
    best = gather(sweep).ranked[0]
    assert summarise(best.values("val_bpb")).n == 3
    assert best.mean == summarise(SCORES).mean
