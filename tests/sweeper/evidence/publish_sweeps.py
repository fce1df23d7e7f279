"""Sweeps that have ended, made of real runs of a public kind of script, without a cluster."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from contextlib import closing
from pathlib import Path
from typing import Any

from sweeper.judge import judge
from sweeper.layout import AttemptDir, SweepDir
from sweeper.ledger import Ledger
from sweeper.provenance import record_spec
from sweeper.rows import AttemptState, RunState
from sweeper.snapshot import prepare
from sweeper.spec import SweepSpec
from tests.sweeper.conftest import make_spec

FAKE_GPT = Path(__file__).parents[1] / "fake_gpt.py"
LOW, HIGH = "low | rate", "high"  # a name that Markdown would take for something else


def script_spec(directory: Path, **changes: Any) -> SweepSpec:
    """A spec of a copy of the script with a file beside it: two trials, two seeds, no GPU."""
    directory.mkdir(parents=True, exist_ok=True)
    script = directory / "train_gpt.py"
    if not script.exists():
        shutil.copy(FAKE_GPT, script)
        (directory / "table.bin").write_bytes(b"table")
    table: dict[str, Any] = {
        "name": "made",
        "seeds": [1, 2],
        "workload": {"script": str(script), "include": [str(directory / "table.bin")]},
        "env": {"ITERATIONS": 4, "DATA_PATH": "/data/größe und platz"},
        "process_env": {"LOG_FORMAT": "b"},
        "trial": [
            {"name": LOW, "env": {"MATRIX_LR": 0.02}},
            {"name": HIGH, "env": {"MATRIX_LR": 0.03}},
        ],
    }
    return make_spec(**(table | changes))


def make_sweep(path: Path, spec: SweepSpec, *, failing: tuple[int, ...] = ()) -> SweepDir:
    """Run what a spec asks for, here; the seeds of `failing` crash."""
    sweep = SweepDir(path)
    sweep.path.mkdir(parents=True)
    snapshot, _ = prepare(spec.workload, sweep, finished=False)
    record_spec(sweep, spec, "# as it was given\n", snapshot)
    assert snapshot is not None
    with closing(Ledger.open_for_writing(sweep.ledger, spec)) as ledger:
        trials = {trial.number: trial for trial in ledger.trials()}
        for run in ledger.runs():
            trial = trials[run.trial]
            attempt = sweep.attempt(trial.number, trial.name, run.seed, 1)
            settings = trial.env | {"SEED": str(run.seed)}
            if run.seed in failing:
                settings |= {"FAULT": "raise"}
            shutil.copytree(snapshot.path, attempt.path)
            _run(attempt, settings | {name: str(v) for name, v in spec.process_env.items()})
            request = {"script": "train_gpt.py", "files": list(snapshot.files), "inherited": []}
            attempt.request.write_text(json.dumps(request))
            relative = attempt.path.relative_to(sweep.path).as_posix()
            identity = ledger.launched(
                run, number=1, path=relative, host="here", gpus="", code=snapshot.sha256
            )
            outcome = judge(attempt, trial.env | {"SEED": str(run.seed)})
            finished = outcome.state is AttemptState.FINISHED
            ledger.ended(
                identity,
                outcome.state,
                RunState.FINISHED if finished else RunState.FAILED,
                exit_code=outcome.exit_code,
                message=outcome.message,
                result=outcome.result,
            )
    return sweep


def _run(attempt: AttemptDir, settings: dict[str, str]) -> None:
    """One run of the script, by itself; its logs lie where a launcher puts them."""
    attempt.logs.mkdir()
    with attempt.stdout.open("wb") as stdout, attempt.stderr.open("wb") as stderr:
        done = subprocess.run(
            [sys.executable, "train_gpt.py"],
            cwd=attempt.path,
            env=os.environ | settings | {"STEP_SECONDS": "0"},
            stdout=stdout,
            stderr=stderr,
            timeout=60,
            check=False,
        )
    ended = {"exit_code": done.returncode, "stop_reason": None}
    attempt.exit.write_text(json.dumps(ended))


def change_results(sweep: SweepDir, seed: int, **changes: Any) -> None:
    """Change what the ledger has of the runs of a seed."""
    with closing(Ledger.open_for_writing(sweep.ledger, spec_of(sweep))) as ledger:
        runs = [run.id for run in ledger.runs() if run.seed == seed]
        for attempt in ledger.attempts():
            if attempt.run in runs and attempt.result is not None:
                text = json.dumps(attempt.result | changes)
                values = (text, attempt.id)
                ledger.db.execute("UPDATE attempts SET result = ? WHERE id = ?", values)


def spec_of(sweep: SweepDir) -> SweepSpec:
    """What a sweep is of, by its ledger."""
    with closing(Ledger.open_for_reading(sweep.ledger)) as ledger:
        return ledger.spec


def published_json(folder: Path) -> dict[str, object]:
    """The fields of a published folder."""
    found: dict[str, object] = json.loads((folder / "submission.json").read_text())
    return found


def bash_block(readme: str) -> str:
    """The commands of the section `Reproduce`, as a person would copy them."""
    section = readme.partition("## Reproduce")[2].partition("\n## ")[0]
    match = re.search(r"```bash\n(.*?)```", section, re.DOTALL)
    assert match is not None
    return match[1]
