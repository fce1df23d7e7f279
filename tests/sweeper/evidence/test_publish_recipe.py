"""The recipe itself is published: its folder is read, understood, and gives the same losses."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import pytest

from sweeper.errors import UserError
from sweeper.evidence.publish import publish
from sweeper.evidence.read import read_record
from sweeper.evidence.reproduce import plan
from sweeper.evidence.rules import Status
from sweeper.evidence.validate import validate
from sweeper.judge import judge
from sweeper.layout import SweepDir
from sweeper.ledger import Ledger
from sweeper.logreader import read_log
from sweeper.provenance import record_spec
from sweeper.rows import AttemptState, RunState
from sweeper.snapshot import prepare
from tests.model.conftest import SMALL, data_dir, train_environment
from tests.sweeper.conftest import ROOT, make_spec
from tests.sweeper.evidence.publish_sweeps import (
    bash_block,
    change_results,
    published_json,
    spec_of,
)

__all__ = ["data_dir"]  # a fixture

SEED = 42


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory, data_dir: Path) -> SweepDir:
    """A real run of the recipe, small, as a sweep would have left it."""
    sweep = SweepDir(tmp_path_factory.mktemp("recipe") / "recipe")
    sweep.path.mkdir()
    env = SMALL | {"DATA_DIR": str(data_dir)}
    trial = {"name": "small", "env": {}}
    spec = make_spec(seeds=[SEED], workload={}, env=env, trial=[trial])
    snapshot, _ = prepare(spec.workload, sweep, finished=False)
    assert snapshot is not None
    record_spec(sweep, spec, "", snapshot)

    attempt = sweep.attempt(0, "small", SEED, 1)
    logs = attempt.logs / "ranks" / "id" / "attempt_0" / "0"
    logs.mkdir(parents=True)
    settings = train_environment(data_dir, attempt.path, seed=SEED)
    with (logs / "stdout.log").open("wb") as stdout:
        command = [sys.executable, "-m", "model.train"]
        subprocess.run(command, cwd=ROOT, env=settings, stdout=stdout, timeout=240, check=True)
    attempt.exit.write_text('{"exit_code": 0, "stop_reason": null}')
    path = attempt.path.relative_to(sweep.path).as_posix()
    outcome = judge(attempt, {**spec.trial_env(spec.trials[0]), "SEED": str(SEED)})
    assert outcome.state is AttemptState.FINISHED, outcome.message
    with closing(Ledger.open_for_writing(sweep.ledger, spec)) as ledger:
        (row,) = ledger.runs()
        identity = ledger.launched(
            row, number=1, path=path, host="here", gpus="", code=snapshot.sha256
        )
        ledger.ended(identity, outcome.state, RunState.FINISHED, result=outcome.result)
    return sweep


@pytest.fixture(scope="module")
def folder(recipe: SweepDir, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What is published of it; to be copied before anything of it is changed."""
    return publish(recipe, "small", tmp_path_factory.mktemp("records") / "small")


def test_the_recipe_is_published_with_all_that_its_log_says(folder: Path) -> None:
    facts = published_json(folder)
    assert (folder / "train_gpt.py").stat().st_size == facts["bytes_code"]
    assert {path.suffix for path in folder.iterdir()} == {".md", ".json", ".log", ".py", ".txt"}
    record = read_record(folder)
    (run,) = record.counted
    assert run.seed == SEED
    assert record.bytes_max == facts["bytes_total"]
    assert record.claim.val_bpb is not None
    assert record.claim.val_bpb.agrees(record.summary.mean or 0.0)
    # It says all that a log can say, and stands as what it claims to be.
    assert dict(run.missing) == {}
    assert run.facts.train_path == "fineweb10B_sp512"
    failing = {each.rule for each in validate(record) if each.status is Status.FAIL}
    assert failing == {"seeds-enough"}  # it has one
    text = (folder / "README.md").read_text()
    assert "GPTQ with Hessians of 2 training batches, packed by rans" in text
    assert "4 layers of width 64, 2 heads of attention, 1 of keys and values" in text
    needed = (folder / "requirements.txt").read_text()
    lines = {re.split("==|  #", line)[0] for line in needed.splitlines() if line[0] != "#"}
    assert lines == {"brotli", "constriction", "numpy", "sentencepiece", "torch"}


def test_its_command_is_understood_as_it_was_meant(
    recipe: SweepDir, folder: Path, tmp_path: Path
) -> None:
    planned, asked = plan(read_record(folder), tmp_path).spec, spec_of(recipe)
    assert planned.trial_env(planned.trials[0]) == asked.trial_env(asked.trials[0])
    assert (planned.seeds, planned.resources.gpus_per_run) == ((SEED,), 0)


def test_the_folder_alone_gives_the_same_losses(folder: Path, tmp_path: Path) -> None:
    """As a user would: what its README says, where nothing else is."""
    alone = Path(shutil.copytree(folder, tmp_path / "allein und leer"))
    log = alone / f"train_seed{SEED}.log"
    commands = bash_block((alone / "README.md").read_text())
    torchrun = commands.splitlines()[-1].split()
    assert torchrun == ["torchrun", "--standalone", "--nproc_per_node=1", "train_gpt.py"]
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    done = subprocess.run(
        ["bash", "-e", "-c", commands],
        cwd=alone,
        env={"PATH": path, "HOME": str(tmp_path), "TMPDIR": str(tmp_path)},
        capture_output=True,
        timeout=240,
        check=False,
    )
    assert done.returncode == 0, done.stderr.decode()
    (tmp_path / "again.log").write_bytes(done.stdout)
    again, before = read_log(tmp_path / "again.log"), read_log(log)
    assert (again.val_loss, again.val_bpb) == (before.val_loss, before.val_bpb)
    assert again.bytes_total == before.bytes_total
    losses = re.findall(rb"train_loss: [\d.]+", done.stdout)
    assert losses == re.findall(rb"train_loss: [\d.]+", log.read_bytes())
    assert losses


def test_code_of_another_size_than_was_counted_is_refused(recipe: SweepDir, tmp_path: Path) -> None:
    own = SweepDir(Path(shutil.copytree(recipe.path, tmp_path / "recipe")))
    change_results(own, SEED, bytes_code=12_345)
    with pytest.raises(UserError, match=r"makes \d+ bytes .* seed 42 counted 12345"):
        publish(own, "small", tmp_path / "out")
    (snapshot,) = (path for path in (own.path / "code").iterdir() if path.is_dir())
    with (snapshot / "model" / "train.py").open("a") as file:
        file.write("# changed\n")
    with pytest.raises(UserError, match="not the code that ran any more"):
        publish(own, "small", tmp_path / "out")
    assert not (tmp_path / "out").exists()
