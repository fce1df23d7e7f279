"""What is read of a sweep's trials, and what a person may name."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from sweeper.errors import UserError
from sweeper.evidence.compare import compare_records
from sweeper.evidence.sources import find_sweep, read_source
from sweeper.evidence.sweeps import read_trial
from sweeper.findings import find
from sweeper.layout import SweepDir
from sweeper.ledger import Ledger
from sweeper.rows import AttemptState, RunState
from sweeper.scores import Kind
from tests.sweeper.conftest import make_spec, result_facts, write_attempt
from tests.sweeper.evidence.folders import log_text, write_folder
from tests.sweeper.kept_searches import keeping
from tests.sweeper.searches import search_spec

SCORES = {"low": {42: 1.10, 314: 1.11, 999: 1.12}, "high": {42: 1.20, 314: 1.21}}


def finish(sweep: SweepDir, ledger: Ledger, scores: dict[str, dict[int, float]]) -> None:
    """End the runs that have a score here, with logs; the others fail."""
    names = {trial.number: trial.name for trial in ledger.trials()}
    for run in ledger.runs():
        name = names[run.trial]
        where = sweep.attempt(run.trial, name, run.seed, 1)
        path = str(where.path.relative_to(sweep.path))
        attempt = ledger.launched(run, number=1, path=path, host="here", gpus="")
        score = scores[name].get(run.seed)
        if score is None:
            ledger.ended(attempt, AttemptState.NONFINITE, RunState.FAILED, message="loss is nan")
            continue
        result: dict[str, Any] = result_facts(seed=run.seed, val_bpb=score + 1e-10, val_loss=2.3)
        write_attempt(where.path, result=result)
        where.stdout.write_text(log_text(run.seed, score))
        ledger.ended(attempt, AttemptState.FINISHED, RunState.FINISHED, result=result)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Where there is one sweep, `small`: of its six runs five have finished."""
    sweep = SweepDir(tmp_path / "runs" / "small")
    sweep.path.mkdir(parents=True)
    ledger = Ledger.open_for_writing(sweep.ledger, make_spec())
    finish(sweep, ledger, SCORES)
    ledger.close()
    return tmp_path / "runs"


def test_a_trial_is_a_record_with_its_results_before_its_logs(root: Path) -> None:
    record = read_trial(SweepDir(root / "small"), "low")
    assert record.name == "small/low"
    assert record.scores == pytest.approx([1.10, 1.11, 1.12], abs=1e-9)
    assert record.scores != (1.10, 1.11, 1.12)  # a result has all digits
    run = record.counted[0]
    assert (run.facts.bytes_total, run.facts.steps) == (150, 6)  # the result's
    assert (run.facts.world_size, run.facts.hyperparameters["num_layers"]) == (8, "11")  # the log's
    assert run.line("bytes_total") is not None
    assert run.metric == "sliding"
    assert run.nats_per_bpb == pytest.approx(2.3 / 1.1)


def test_a_seed_that_failed_does_not_count_and_is_not_forgotten(root: Path) -> None:
    record = read_trial(SweepDir(root / "small"), "high")
    assert record.summary.n == 2
    assert [(run.seed, run.excluded) for run in record.excluded] == [(999, "failed: loss is nan")]
    verdict = compare_records(
        read_trial(SweepDir(root / "small"), "low"), record, margin_nats=0, alpha=0.05
    )
    assert any("(failed: loss is nan)" in each for each in verdict.warnings)


def test_runs_that_have_not_begun_are_there_as_well(tmp_path: Path) -> None:
    sweep = SweepDir(tmp_path / "small")
    sweep.path.mkdir()
    Ledger.open_for_writing(sweep.ledger, make_spec()).close()
    record = read_trial(sweep, "0")
    assert [run.excluded for run in record.runs] == ["it has not begun"] * 3


@pytest.mark.parametrize("wanted", ["low", "0", "lo"])
def test_a_trial_is_found_by_name_number_or_beginning(root: Path, wanted: str) -> None:
    assert read_trial(SweepDir(root / "small"), wanted).name == "small/low"
    assert read_source(f"small/{wanted}", root).name == "small/low"


def test_which_trials_there_are_is_said(root: Path) -> None:
    with pytest.raises(UserError, match=r"say which: small/TRIAL of 0 \(low\), 1 \(high\)"):
        read_source("small", root)
    with pytest.raises(UserError, match=r"no trial 'x'; there are 0 \(low\), 1 \(high\)"):
        read_source("small/x", root)


def test_a_search_without_a_trial_is_its_winner_on_fresh_seeds(tmp_path: Path) -> None:
    with keeping(search_spec(), tmp_path) as play:
        play.go_on()
        winner = find(play.ledger).winner
    assert winner is not None
    assert winner.fresh is not None
    record = read_source("found", tmp_path)
    assert record.name == f"found/{winner.name}"
    assert record.summary.mean == pytest.approx(winner.fresh.mean)
    assert tuple(run.seed for run in record.counted) == winner.planned


def test_a_folder_goes_before_a_sweep_and_a_sweeps_folder_is_a_sweep(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    folder = write_folder(tmp_path / "small")
    assert read_source("small", root).path == Path("small")
    assert read_source(str(folder / "train_seed42.log"), root).scores == (1.09269834,)
    found = find_sweep(str(root / "small"), root)
    assert found is not None
    assert (found[0].name, found[1]) == ("small", None)
    assert find_sweep("other", root) is None
    with pytest.raises(UserError, match="NAME/TRIAL"):
        read_source("other", root)


@pytest.mark.parametrize(
    "form", ["{root}/small/low", "runs/small/low", "runs/small/0", "small/low/"]
)
def test_a_trial_is_found_by_any_path_to_its_sweep(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, form: str
) -> None:
    monkeypatch.chdir(tmp_path)
    assert read_source(form.format(root=root), root).name == "small/low"


def test_a_trial_may_have_a_slash_in_its_name(tmp_path: Path) -> None:
    sweep = SweepDir(tmp_path / "runs" / "sweep")
    sweep.path.mkdir(parents=True)
    trials = [{"name": "a/b", "env": {"LR": 1}}, {"name": "c", "env": {"LR": 2}}]
    Ledger.open_for_writing(sweep.ledger, make_spec(trial=trials)).close()
    assert read_source("sweep/a/b", tmp_path / "runs").name == "sweep/a/b"


def test_a_name_that_no_file_can_have_is_no_sweep(root: Path) -> None:
    for name in ("x" * 300, f"small/{'x' * 300}"):
        with pytest.raises(UserError, match="xxx"):
            read_source(name, root)


def test_a_broken_ledger_is_said_in_a_line(tmp_path: Path) -> None:
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "ledger.sqlite").write_bytes(b"no database" * 1000)
    with pytest.raises(UserError, match="no ledger of a sweep"):
        read_source("broken/x", tmp_path)


def test_lines_of_a_run_in_stages_are_not_told(root: Path) -> None:
    """A line's number says nothing where it is not known of which log."""
    sweep = SweepDir(root / "small")
    ledger = Ledger.open_for_writing(sweep.ledger, make_spec())
    (first, *_) = ledger.attempts()
    ledger.db.execute("DELETE FROM stages WHERE attempt = ?", (first.id,))
    for stage in ("train", "score"):
        ledger.db.execute(
            "INSERT INTO stages (attempt, stage, host, gpus, launched, events_from)"
            " VALUES (?, ?, 'here', '', 1.0, 0)",
            (first.id, stage),
        )
    ledger.db.commit()
    ledger.close()
    place = sweep.path / first.path / "logs"
    whole = (place / "stdout.log").read_text().splitlines(keepends=True)
    for stage, lines in (("train", whole[:-2]), ("score", whole[-2:])):
        (place / stage).mkdir()
        (place / stage / "stdout.log").write_text("".join(lines))
    run = next(run for run in read_trial(sweep, "low").runs if run.seed == 42)
    assert run.facts.world_size == 8  # by the one
    assert run.headline == "final_int6_sliding_window"  # by the other
    assert run.facts.lines == {}


def test_a_metric_is_for_logs(root: Path) -> None:
    with pytest.raises(UserError, match="--metric is for logs"):
        read_source("small/low", root, metric=Kind.QUANT)
