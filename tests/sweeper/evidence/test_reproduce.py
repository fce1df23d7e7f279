"""A published folder is run again: what is read of its README, and how the two compare."""

from __future__ import annotations

import base64
import json
import shutil
import zlib
from dataclasses import replace
from pathlib import Path

import pytest

from sweeper.adapters import parse
from sweeper.errors import UserError
from sweeper.evidence.publish import publish
from sweeper.evidence.read import read_record
from sweeper.evidence.record import LoggedRun, Record
from sweeper.evidence.reproduce import TRIAL, plan, sweep_name
from sweeper.evidence.reproduce_account import Outcome, account, as_json, as_markdown, as_text
from sweeper.layout import SweepDir
from sweeper.rows import AttemptState
from sweeper.spec import load_spec
from tests.sweeper.evidence.public_readme import PUBLIC
from tests.sweeper.evidence.publish_sweeps import (
    FAKE_GPT,
    LOW,
    change_results,
    make_sweep,
    script_spec,
    spec_of,
)
from tests.sweeper.ray_helpers import Place
from tests.sweeper.sweeps import attempt_states

FINISHED = AttemptState.FINISHED


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The record of two runs of a public kind of script."""
    root = tmp_path_factory.mktemp("folder")
    workload = {"launch": "exec", "script": str(root / "script" / "train_gpt.py")}
    workload["include"] = [str(root / "script" / "table.bin")]  # type: ignore[assignment]
    spec = script_spec(root / "script", workload=workload)
    return publish(make_sweep(root / "made", spec), LOW, root / "2026-01-02 Größe #1")


@pytest.fixture(scope="module")
def record(folder: Path) -> Record:
    return read_record(folder)


def test_a_folder_becomes_a_sweep_of_its_script(
    record: Record, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = plan(record, tmp_path, env={"DATA_PATH": "mine"}, max_seconds=60)
    spec = found.spec
    assert found.sweep == SweepDir(tmp_path / "reproduce-2026-01-02-Gr-e-1")
    assert spec.seeds == (1, 2)
    (trial,) = spec.trials
    assert spec.trial_env(trial) == {
        "DATA_PATH": str(Path.cwd() / "mine"),
        "ITERATIONS": "4",
        "MATRIX_LR": "0.02",
    }
    assert spec.process_env == {"OMP_NUM_THREADS": "1"}
    assert spec.workload.script == str(record.path / "train_gpt.py")
    assert spec.workload.launch == "exec"
    assert spec.workload.include == ()  # table.bin is nowhere named in the script
    assert (spec.resources.gpus_per_run, spec.resources.processes) == (0, 1)
    assert spec.limits.max_seconds == 60
    command, missing = found.notes
    assert command.startswith("the command in README.md:")
    assert command.endswith("one of 1 with different settings") is False
    assert (
        missing
        == f"DATA_PATH: {Path.cwd() / 'mine'} is not here; --env DATA_PATH=… says where it is"
    )
    # Its text is the same spec.
    path = tmp_path / "spec.toml"
    path.write_text(found.text)
    assert load_spec(path) == spec


def foreign(tmp_path: Path, readme: str | None, script: str, log: str = "") -> Record:
    """A record that others wrote, with a log of seed 5."""
    home = tmp_path / "record"
    home.mkdir()
    (home / "train_gpt.py").write_text(script)
    if readme is not None:
        (home / "README.md").write_text(readme)
    facts = parse(log.splitlines())
    run = LoggedRun(path=home / "train_seed5.log", seed=5, val_bpb=1.1, facts=facts)
    there = home / "README.md" if readme is not None else None
    return Record(path=home, name="record", runs=(run,), script=home / "train_gpt.py", readme=there)


ECHO = "Hyperparameters:\n  matrix_lr: 0.04\n  iterations: 9\n1/9 train_loss: 1.0\n"


def test_the_command_that_the_logs_confirm_is_taken(tmp_path: Path) -> None:
    record = foreign(tmp_path, PUBLIC, FAKE_GPT.read_text(), ECHO)
    (record.path / "table.bin").write_bytes(b"1")
    (record.path / "helper.py").write_text("")
    found = plan(record, tmp_path / "runs")
    assert found.spec.resources.processes == 4
    assert found.spec.resources.gpus_per_run == 4
    assert found.spec.env == {
        "DATA_PATH": str(Path.cwd() / "data/x"),
        "ITERATIONS": "9",
        "MATRIX_LR": "0.04",
    }
    assert found.spec.process_env == {"NCCL_DEBUG": "WARN"}
    assert found.spec.workload.arguments == ("--flag",)
    said = " ".join(found.notes)
    assert "README.md:11, one of 5 with different settings" in said
    assert "left out, since the script does not know them: TOKENIZER_PATH, QUITE_OTHER" in said


LISTED = """
```bash
torchrun --standalone --nproc_per_node=1 train_gpt.py
torchrun --standalone --nproc_per_node=8 train_gpt.py
```
Environment variables used:
```
MATRIX_LR=0.04  ITERATIONS=9
SEED=3 RECUR_LAYERS=4,5
```
"""


def test_settings_that_are_only_listed_count_where_the_logs_confirm_them(tmp_path: Path) -> None:
    record = foreign(tmp_path, LISTED, FAKE_GPT.read_text(), f"{ECHO}world_size: 8\n")
    found = plan(record, tmp_path / "runs")
    assert found.spec.env == {"MATRIX_LR": "0.04", "ITERATIONS": "9", "RECUR_LAYERS": "4,5"}
    assert found.spec.resources.processes == 8
    assert (
        "README.md:4, one of 2 with different settings, with the settings that are listed"
        in (found.notes[0])
    )
    # Where they are not those of the logs, they are told and not taken.
    shutil.rmtree(record.path)
    other = LISTED.replace("0.04", "0.9")
    record = foreign(tmp_path, other, FAKE_GPT.read_text(), f"{ECHO}world_size: 8\n")
    found = plan(record, tmp_path / "runs")
    assert found.spec.env == {}
    assert "that the command does not set: ITERATIONS, MATRIX_LR, RECUR_LAYERS" in found.notes[0]


def test_what_is_needed_beside_the_script_comes_along(tmp_path: Path) -> None:
    source = FAKE_GPT.read_text() + "\nimport helper, parts.more\nopen('table.bin')\n"
    record = foreign(tmp_path, None, source)
    for name in ("table.bin", "helper.py", "unrelated.py", "train_seed5.log", "notes.txt"):
        (record.path / name).write_text("")
    (record.path / "parts").mkdir()
    (record.path / "parts" / "more.py").write_text("")
    found = plan(record, tmp_path / "runs")
    names = [Path(path).name for path in found.spec.workload.include]
    assert names == ["helper.py", "parts", "table.bin"]
    assert found.notes == ("no README.md: the script's own defaults, and what --env sets",)
    assert found.spec.resources.processes == 8


def test_a_packed_script_is_looked_into(tmp_path: Path) -> None:
    packed = base64.b85encode(zlib.compress(FAKE_GPT.read_bytes())).decode()
    source = f"import base64,zlib\nexec(zlib.decompress(base64.b85decode({packed!r})))\n"
    record = foreign(tmp_path, PUBLIC, source, ECHO)
    found = plan(record, tmp_path / "runs")
    assert found.spec.env.keys() == {"DATA_PATH", "ITERATIONS", "MATRIX_LR"}
    assert "packed" not in " ".join(found.notes)


def test_a_script_that_cannot_be_looked_into_takes_all_settings(tmp_path: Path) -> None:
    record = foreign(tmp_path, PUBLIC, "import lzma\nexec(lzma.decompress(b'\\x00'))\n", ECHO)
    (record.path / "helper.py").write_text("")
    record = replace(record, code=(record.path / "helper.py",))
    found = plan(record, tmp_path / "runs", seeds=[9, 9, 3], gpus_per_run=2)
    assert found.spec.env["QUITE_OTHER"] == "1"
    assert found.spec.process_env == {"NCCL_DEBUG": "WARN"}
    assert found.spec.seeds == (9, 3)
    assert found.spec.resources.processes == 2
    assert [Path(path).name for path in found.spec.workload.include] == ["helper.py"]
    assert "train_gpt.py is packed" in " ".join(found.notes)


def test_a_record_that_cannot_be_run_says_why(record: Record, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no train_gpt\.py in it"):
        plan(replace(record, script=None), tmp_path)
    with pytest.raises(UserError, match="no log of it tells its seed; name them with --seeds"):
        plan(replace(record, runs=()), tmp_path)
    with pytest.raises(UserError, match=r"resources\.gpus_per_run: .*greater than or equal to 0"):
        plan(record, tmp_path, gpus_per_run=-1)
    with pytest.raises(UserError, match="no run of it counts"):
        account(replace(record, runs=()), SweepDir(tmp_path))
    assert len(sweep_name(replace(record, path=tmp_path / ("x" * 200)))) == 64


def test_a_second_call_tells_what_it_keeps_and_changes_no_setting(
    record: Record, tmp_path: Path
) -> None:
    first = plan(record, tmp_path, seeds=[1], env={"ITERATIONS": "12"})
    make_sweep(first.sweep.path, first.spec)
    second = plan(record, tmp_path, seeds=[2])
    assert second.spec.seeds == (1, 2)
    assert second.spec.env["ITERATIONS"] == "12"
    assert "ITERATIONS=12" in second.notes[0]
    assert plan(record, tmp_path, env={"ITERATIONS": "12"}).spec.seeds == (1, 2)
    for env, told in (({"ITERATIONS": "13"}, "ITERATIONS=12"), ({"NEW": "1"}, "without NEW")):
        with pytest.raises(UserError, match=rf"begun with {told}, .*another --root"):
            plan(record, tmp_path, env=env)


# ---- the account


def test_the_same_runs_again_are_the_same_to_the_digit(record: Record, tmp_path: Path) -> None:
    sweep = make_sweep(tmp_path / sweep_name(record), plan(record, tmp_path).spec)
    found = account(record, sweep)
    assert found.outcome is Outcome.SAME
    assert [seed.difference for seed in found.seeds] == [0.0, 0.0]
    assert found.explanation is None
    text = as_text(found)
    assert "reproduced to the digit (2 of 2 seeds)" in text
    assert "train shards: same (80)" in text
    assert "settings: same" in text
    assert "what explains" not in text
    facts = json.loads(json.dumps(as_json(found), allow_nan=False))
    assert facts["outcome"] == "same_digits"
    assert facts["seeds"][1]["here"] == pytest.approx(1.110002)
    assert "| 2 | 1.110002 | 1.110002 | +0.000000 | +0.00 |" in as_markdown(found)


def test_what_differs_is_told_and_explains_in_its_order(record: Record, tmp_path: Path) -> None:
    changed = plan(record, tmp_path, env={"MATRIX_LR": "0.025", "ITERATIONS": "8"})
    found = account(record, make_sweep(tmp_path / "settings", changed.spec))
    assert found.outcome is Outcome.DIFFERENT
    assert found.difference == pytest.approx(0.005)
    assert found.explanation is not None
    assert found.explanation.name == "settings"
    text = as_text(found)
    assert "settings: differs: claimed iterations 4, matrix_lr 0.02, here iterations 8" in text
    assert "steps: differs: claimed 4, here 8" in text
    assert "what explains a difference first: settings (it is another configuration)" in text
    assert [check.name for check in found.checks if check.same is False] == ["settings", "steps"]

    # Another validation set goes before everything else: nothing could be judged.
    changed = plan(record, tmp_path, env={"MATRIX_LR": "0.025", "LOG_FORMAT": "a"})
    found = account(record, make_sweep(tmp_path / "tokens", changed.spec))
    assert found.explanation is not None
    assert found.explanation.name == "validation tokens"
    assert "claimed 45,508,608, here 62,021,632" in as_text(found)


def test_one_run_is_held_against_the_spread_of_the_record(record: Record, tmp_path: Path) -> None:
    sweep = make_sweep(tmp_path / "one", plan(record, tmp_path, seeds=[1]).spec)
    assert account(record, sweep).outcome is Outcome.SAME
    assert record.summary.std is not None
    for stds, outcome in ((1.0, Outcome.NO_DIFFERENCE), (130.0, Outcome.DIFFERENT)):
        change_results(sweep, 1, val_bpb=record.scores[0] + stds * record.summary.std)
        assert account(record, sweep).outcome is outcome


def test_noise_is_no_difference(record: Record, tmp_path: Path) -> None:
    sweep = make_sweep(tmp_path / "noise", plan(record, tmp_path).spec)
    change_results(sweep, 1, val_bpb=1.1100013, step_avg_ms=12.0, train_time_ms=48.0)
    change_results(sweep, 2, val_bpb=1.1100020)
    found = account(record, sweep)
    assert found.outcome is Outcome.NO_DIFFERENCE
    assert found.p_welch is not None
    assert found.p_welch > 0.5
    assert found.in_stds == pytest.approx(0.15e-6 / (0.5**0.5 * 1e-6), rel=1e-3)
    text = as_text(found)
    assert "no difference is shown" in text
    assert "ms/step: differs: claimed 10.5, here 10.5 to 12.0" in text


def test_seeds_that_failed_are_listed_with_the_reason(record: Record, tmp_path: Path) -> None:
    spec = plan(record, tmp_path, seeds=[1, 2, 3]).spec
    found = account(record, make_sweep(tmp_path / "some", spec, failing=(2,)))
    assert [seed.seed for seed in found.failed] == [2]
    assert [seed.seed for seed in found.common] == [1]
    assert [(seed.seed, seed.claimed is None) for seed in found.seeds] == [
        (1, False),
        (2, False),
        (3, True),
    ]
    assert "seed 2 is not reproduced: failed: " in as_text(found)
    assert "the cause" in as_text(found)
    # What was not to be run has not failed.
    some = account(record, make_sweep(tmp_path / "one", plan(record, tmp_path, seeds=[1]).spec))
    assert some.failed == ()
    assert some.outcome is Outcome.SAME
    assert "reproduced to the digit (1 of 2 seeds)" in as_text(some)

    none = account(record, make_sweep(tmp_path / "none", spec, failing=(1, 2, 3)))
    assert none.outcome is Outcome.NOTHING
    assert [check.name for check in none.checks] == ["PyTorch"]
    assert "nothing is reproduced yet" in as_text(none)


# ---- the whole way


@pytest.mark.usefixtures("quiet")
def test_a_folder_is_run_again_on_a_cluster_and_goes_on(folder: Path, place: Place) -> None:
    mine = Path(shutil.copytree(folder, place.path / folder.name))
    record = read_record(mine)
    begun = plan(record, place.root, seeds=[1], env={"DATA_PATH": "mine"})
    make_sweep(begun.sweep.path, begun.spec)
    found = plan(record, place.root, seeds=[2])
    path = place.path / f"{found.spec.name}.toml"
    path.write_text(found.text)
    driver = place.drive(path, "--num-cpus", "1", "--extend")
    assert driver.wait() == 0, driver.said
    assert spec_of(found.sweep).seeds == (1, 2)
    reproduced = account(record, found.sweep)
    assert reproduced.outcome is Outcome.SAME, as_text(reproduced)
    assert attempt_states(found.sweep) == {(TRIAL, seed): [FINISHED] for seed in (1, 2)}
    (check,) = (check for check in reproduced.checks if check.name == "PyTorch")
    assert check.same
    assert len(reproduced.common) == 2

    script = mine / "train_gpt.py"
    script.write_text(script.read_text() + "# another\n")
    with pytest.raises(UserError, match=r"runs another train_gpt\.py than"):
        plan(record, place.root)
