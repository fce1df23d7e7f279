"""What model/ really writes is what sweeper/ reads: one real run binds the two halves."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest

from model.config import Config
from model.failure import EXIT_STOPPED
from model.report import ARTIFACT, EVENTS, RESULT, RESULT_SCHEMA
from sweeper.aggregate import MEASURES
from sweeper.contract import (
    NUMBERS,
    SCHEMA,
    EventReader,
    check_echo,
    end_events,
    first_error,
    read_handoff,
    read_result,
)
from sweeper.errors import ContractError
from sweeper.judge import ERROR_STATES, judge, next_stage
from sweeper.launch import PROJECT
from sweeper.layout import AttemptDir
from sweeper.logreader import RunReader
from sweeper.phases import PHASE_STARTS, RunProgress
from sweeper.rows import AttemptState
from sweeper.spec import load_spec
from sweeper.stages import Stage
from tests.model.conftest import ROOT, SMALL, Finished, Train, data_dir, train

__all__ = ["data_dir", "train"]  # fixtures

GOLDEN = Path(__file__).parent / "golden"


def attempt_of(done: Finished, stage: Stage = Stage.ALL) -> AttemptDir:
    """The directory of a run, with what its guard would have said of it, or of a stage of it."""
    attempt = AttemptDir(done.run_dir).of(stage)
    attempt.exit.write_text(json.dumps({"exit_code": done.returncode, "stop_reason": None}))
    return attempt


def overrides(data: Path, **changes: str) -> dict[str, str]:
    """What a sweep would have asked the run of `train` for."""
    return SMALL | {"DATA_DIR": str(data)} | changes


def fields_of(events: Path) -> dict[str, set[str]]:
    """Kind of event -> the fields that it has."""
    return {event["kind"]: set(event) for event in EventReader(events).read()}


def assert_measured(result: dict[str, Any]) -> None:
    """Every measure of a table is there, and is a number."""
    values = [measure(result) for measure in MEASURES.values()]
    assert all(value is not None and math.isfinite(value) for value in values)


def test_a_real_run_is_judged_by_what_it_wrote(
    train: Train, data_dir: Path, tmp_path: Path
) -> None:
    # In stages; a whole run writes the same (tests/model/test_export.py).
    asked, events = overrides(data_dir, SEED="42"), AttemptDir(tmp_path / "run").events
    for stage in (Stage.TRAIN, Stage.PACK, Stage.SCORE):
        assert next_stage(AttemptDir(tmp_path / "run")) is stage
        begins = end_events(events)
        done = train(seed=42, stage=stage)
        outcome = judge(attempt_of(done, stage), asked, begins)
        expected = AttemptState.FINISHED if stage.last else AttemptState.LAUNCHED
        assert outcome.state is expected, (outcome, done.stderr)
    assert outcome.result == done.result
    assert (done.result["stages"], done.result["useful_s"] > 0) == ("apart", True)
    attempt = AttemptDir(done.run_dir)
    assert judge(attempt, asked) == outcome
    assert not attempt.trained_tensors.exists()
    assert set(NUMBERS) <= done.result.keys()
    assert_measured(done.result)

    # The paths that both halves know by names of their own.
    assert (attempt.events.name, attempt.result.name) == (EVENTS, RESULT)
    assert done.result["artifact"] == attempt.artifact.name == ARTIFACT
    assert SCHEMA == RESULT_SCHEMA

    # The observer knows every phase, and ends where the run does.
    phases = {event["phase"] for event in done.of_kind("phase")}
    assert phases == set(PHASE_STARTS)
    progress = RunProgress(RunReader(attempt))
    progress.update()
    assert (progress.phase, progress.fraction) == ("done", 1.0)
    assert (progress.step, progress.iterations) == (done.of_kind("step")[-1]["step"], 6)
    assert progress.train_loss == done.losses[-1]

    # All that was written when the golden was made is written today.
    for path, status in ((attempt.trained, "trained"), (attempt.packed, "packed")):
        assert read_handoff(GOLDEN / path.name, status).keys() <= read_handoff(path, status).keys()
    golden = json.loads((GOLDEN / "result.json").read_text())
    assert golden.keys() <= done.result.keys()
    assert golden["config"].keys() <= done.result["config"].keys()
    golden_fields, fields = fields_of(GOLDEN / "events.jsonl"), fields_of(attempt.events)
    assert golden_fields.keys() == fields.keys()
    assert all(golden_fields[kind] <= fields[kind] for kind in fields)

    # What the run did not take, or did not know, does not pass.
    for name, value, message in (
        ("SEED", "43", "asked for '43', the run took 42"),
        ("MODEL_DIM", "65", "asked for '65', the run took 64"),
        ("RECUR_LAYERS", "1,3", "asked for '1,3', the run took '1,2'"),
        ("WARMDWON_FRAC", "0.5", "did you mean WARMDOWN_FRAC?"),
    ):
        other = judge(attempt, asked | {name: value})
        assert other.state is AttemptState.USER_ERROR
        assert other.message is not None
        assert message in other.message


def test_a_real_failure_is_judged_by_what_it_wrote(train: Train) -> None:
    done = train(model_dim="abc")
    outcome = judge(attempt_of(done), {})
    assert outcome.state is AttemptState.USER_ERROR
    assert outcome.message == "ConfigError: MODEL_DIM: expected a whole number, found 'abc'"
    assert outcome.traceback is not None
    assert "ConfigError" in outcome.traceback


def test_a_real_loss_that_is_no_number_is_judged_as_such(train: Train) -> None:
    done = train(matrix_lr=1e30, tied_embed_lr=1e30, grad_clip_norm=0, iterations=50)
    outcome = judge(attempt_of(done), {})
    assert outcome.state is AttemptState.NONFINITE
    assert done.events[-1]["code"] in ERROR_STATES


@pytest.mark.parametrize("path", sorted((ROOT / "jobs" / "specs").glob("*.toml")), ids=str)
def test_the_projects_specs_name_settings_that_the_trainer_knows(path: Path) -> None:
    spec = load_spec(path)
    if spec.workload.script is not None:
        pytest.skip("of a script of somebody else's")
    for trial in spec.trials:
        asked = spec.trial_env(trial) | {"SEED": str(spec.seeds[0])}
        config = Config.from_env(asked)
        check_echo(asked, [{"kind": "config", "config": json.loads(json.dumps(config.echo()))}])
        config.check_run(spec.resources.processes)
        assert config.budget_bytes == spec.budget.max_bytes


@pytest.mark.parametrize("name", ["seed", "model_dim", "recur_layers", "compile", "min_lr"])
def test_every_kind_of_setting_is_confirmed_by_its_echo(name: str) -> None:
    values = {"seed": "7", "model_dim": "64", "recur_layers": "2, 3", "compile": "none"}
    asked = {"PRESET": "tiny", name.upper(): values.get(name, "0.05")}
    echo = json.loads(json.dumps(Config.from_env(asked).echo()))
    check_echo(asked, [{"kind": "config", "config": echo}])
    with pytest.raises(ContractError):
        check_echo(asked | {name.upper(): "9"}, [{"kind": "config", "config": echo}])


def test_the_sweep_and_the_trainer_agree_on_the_exit_code_of_a_stop() -> None:
    # docs/ARCHITECTURE.md names the codes; both halves and the text must say the same.
    text = (PROJECT / "docs" / "ARCHITECTURE.md").read_text()
    assert f"{EXIT_STOPPED} stopped on request" in text


# ---- a run of the past


def test_a_golden_run_is_still_read() -> None:
    """A sweep that was begun before a change is read after it."""
    result = read_result(GOLDEN / "result.json")
    events = EventReader(GOLDEN / "events.jsonl").read()
    assert len(events) == len((GOLDEN / "events.jsonl").read_text().splitlines())
    assert first_error(events) is None
    check_echo({"SEED": "42", "PRESET": "tiny", "VE_LAYERS": "2,3", "LR_FLOOR": "0"}, events)
    assert result["seed"] == 42
    assert_measured(result)
