"""A page is made of what there is, and says what could not be used."""

from __future__ import annotations

import json
import sqlite3
from contextlib import closing
from pathlib import Path

import pytest

from sweeper.layout import SweepDir
from sweeper.page.facts import gather
from sweeper.page.write import page
from tests.sweeper.kept_searches import keeping
from tests.sweeper.page.page_sweeps import make_sweep, part, two_trials
from tests.sweeper.searches import bowl, search_spec


def change_results(sweep: SweepDir, which: str, name: str, value: object) -> None:
    """Put a value into the results of some attempts, as no run may write it."""
    with closing(sqlite3.connect(sweep.ledger)) as db, db:
        for key, text in db.execute(f"SELECT id, result FROM attempts WHERE {which}").fetchall():
            changed = json.dumps(json.loads(text) | {name: value})
            db.execute("UPDATE attempts SET result = ? WHERE id = ?", (changed, key))


@pytest.mark.usefixtures("unpictured")
def test_a_score_that_is_no_finite_number_is_not_used(tmp_path: Path) -> None:
    trials = [{"name": name, "env": {"LR": n}} for n, name in enumerate(["low", "high", "odd"])]
    sweep = make_sweep(tmp_path, two_trials, trial=trials)
    # Seed by seed the trials in their order: all of "odd", and one of "low".
    odd = {1: float("inf"), 3: float("nan"), 6: "1.09", 9: [1]}
    for attempt, value in odd.items():
        change_results(sweep, f"id = {attempt}", "val_bpb", value)
    text = page(sweep)
    for run in ("low / 42", "odd / 42", "odd / 314", "odd / 999"):
        said = f"{run} not used: val_bpb: no finite number in its result"
        assert said in part(text, "excluded")
        assert f"{run} finished – " in part(text, "runs")
    for name in ("low", "odd"):
        assert f"{name} not compared: not every run" in part(text, "excluded")
    assert "Best: high 1.11244" in part(text, "result")


def test_without_any_score_the_page_says_so(tmp_path: Path) -> None:
    sweep = make_sweep(tmp_path, two_trials)
    change_results(sweep, "true", "val_bpb", float("nan"))
    text = page(sweep)
    assert "none yet no run that has finished has a score" in part(text, "result")
    assert "Loss" in part(text, "training")


@pytest.mark.usefixtures("unpictured")
def test_other_numbers_may_be_none_too(tmp_path: Path) -> None:
    sweep = make_sweep(tmp_path, two_trials)
    names = ("bytes_total", "val_loss", "step_avg_ms", "prequant_val_bpb", "resumed_from_step")
    for attempt, name in enumerate(names, start=1):
        change_results(sweep, f"id = {attempt}", name, float("inf"))
    text = page(sweep)
    for name in names:
        assert f"not used: {name}: no finite number" in part(text, "excluded")
    assert "Best: low 1.09244 ± 0.00043" in part(text, "result")


@pytest.mark.usefixtures("unpictured")
def test_a_search_with_such_a_score_has_a_page(tmp_path: Path) -> None:
    with keeping(search_spec(), tmp_path, bowl) as play:
        play.go_on(4)
        change_results(play.sweep, "id = 1", "val_bpb", float("inf"))
        text = page(play.sweep)
    assert "not used: val_bpb: no finite number in its result" in part(text, "excluded")
    assert "What this search has found cannot be told" in part(text, "result")
    assert '<section id="search"' not in text


@pytest.mark.usefixtures("unpictured")
def test_events_that_cannot_be_read_are_named(tmp_path: Path) -> None:
    sweep = make_sweep(tmp_path, two_trials)
    events = sweep.attempt(0, "low", 314, 1).events
    events.unlink()
    events.mkdir()
    text = page(sweep)
    assert "low / 314 not used: events.jsonl cannot be read: Is a directory" in part(
        text, "excluded"
    )
    assert "Best: low 1.09244 ± 0.00043" in part(text, "result")
    assert len(gather(sweep).traces) == 5


@pytest.mark.usefixtures("unpictured")
def test_logs_and_specs_may_be_folders(tmp_path: Path) -> None:
    sweep = make_sweep(tmp_path, two_trials)
    for path in [*sweep.path.rglob("stdout.log"), sweep.spec, sweep.resolved_spec]:
        path.unlink(missing_ok=True)
        path.mkdir()
    text = page(sweep)
    assert "low / 42 finished" in part(text, "runs")
    assert "usd_per_gpu_hour" not in part(text, "made-of")


@pytest.mark.usefixtures("unpictured")
def test_what_a_sweep_was_made_of_may_be_lost(tmp_path: Path) -> None:
    sweep = make_sweep(tmp_path, two_trials)
    for facts in ('{"code": "x"}', '{"versions": ["y"]}', "[]", "{", "null", "[" * 90_000):
        sweep.resolved_spec.write_text(facts)
        assert "byte budget" in part(page(sweep), "made-of")
