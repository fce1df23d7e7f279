"""A trial becomes a folder that stands: what is in it, what is refused, and that it runs again."""

from __future__ import annotations

import json
import re
import shutil
import sqlite3
import subprocess
import sys
from collections.abc import Mapping
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import pytest

from sweeper.errors import UserError
from sweeper.evidence.publish import publish
from sweeper.evidence.publish_runs import gather
from sweeper.evidence.read import read_record
from sweeper.evidence.submission import submission
from sweeper.layout import SweepDir
from sweeper.ledger import Ledger
from sweeper.spec import SweepSpec
from sweeper.stages import Stage
from tests.sweeper.evidence.publish_sweeps import (
    FAKE_GPT,
    HIGH,
    LOW,
    bash_block,
    change_results,
    make_sweep,
    published_json,
    script_spec,
    spec_of,
)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> SweepDir:
    """A sweep of a script, whole; to be copied before anything of it is changed."""
    root = tmp_path_factory.mktemp("made")
    return make_sweep(root / "läufe und platz" / "made", script_spec(root / "script"))


@pytest.fixture
def own(made: SweepDir, tmp_path: Path) -> SweepDir:
    """A copy of the sweep that a test may spoil."""
    return SweepDir(Path(shutil.copytree(made.path, tmp_path / "made")))


def test_a_script_is_published_with_all_that_belongs_to_it(made: SweepDir, tmp_path: Path) -> None:
    out = publish(made, LOW, tmp_path / "records" / "2026-01-02_Größe")
    names = {path.name for path in out.iterdir()}
    assert names == {
        *("README.md", "submission.json", "requirements.txt", "train_gpt.py", "table.bin"),
        *("train_seed1.log", "train_seed2.log"),
    }
    assert (out / "train_gpt.py").read_bytes() == FAKE_GPT.read_bytes()
    for seed in (1, 2):
        attempt = made.attempt(0, LOW, seed, 1)
        assert (out / f"train_seed{seed}.log").read_bytes() == attempt.stdout.read_bytes()
    assert not list(out.parent.glob(".*"))
    text = (out / "README.md").read_text()
    assert "whether evaluation needs `table.bin`" in text
    assert "0.005 nats per token are" in text  # no baseline: only what the margin is
    assert f"| `MATRIX_LR` | {0.02} |" in text


def test_a_published_folder_says_what_its_logs_say(made: SweepDir, tmp_path: Path) -> None:
    out = publish(made, LOW, tmp_path / "record")
    facts = published_json(out)
    assert facts["seeds"] == [1, 2]
    assert facts["val_bpb"] == pytest.approx(1.1100015, abs=1e-9)
    assert facts["val_bpb_std"] == pytest.approx(0.5**0.5 * 1e-6, abs=1e-8)
    size = len(FAKE_GPT.read_bytes())
    assert (facts["bytes_code"], facts["bytes_total"]) == (size, size + 1_002)
    assert facts["artifact_bytes_mean"] in (size + 1_001, size + 1_002)
    results = facts["seed_results"]
    assert isinstance(results, dict)
    assert results["2"] == {
        "val_bpb": 1.110002,
        "val_loss": 2.51219162,
        "artifact_bytes": size + 1_002,
        "steps": 4,
        "step_avg_ms": 10.5,
        "eval_time_s": pytest.approx(83.505),
    }
    assert facts["track"] == "non_record_16mb"
    for name in ("author", "github_id", "name", "blurb"):
        assert str(facts[name]).startswith("FILL IN:")

    # Whoever reads it finds what it says in its logs.
    record = read_record(out)
    assert [run.seed for run in record.counted] == [1, 2]
    assert record.claim.val_bpb is not None
    assert record.claim.val_bpb.agrees(record.summary.mean or 0.0)
    assert record.claim.bytes_total is not None
    assert [claimed.agrees(record.summary.mean or 0.0) for claimed in record.claim.readme] == [True]


def test_the_readme_of_a_script_runs_as_it_stands(made: SweepDir, tmp_path: Path) -> None:
    out = publish(made, HIGH, tmp_path / "record")
    again = Path(shutil.copytree(out, tmp_path / "elsewhere"))
    commands = bash_block((again / "README.md").read_text())
    assert "export DATA_PATH='/data/größe und platz'" in commands
    # Without torchrun's two seconds a start; the model's folder below runs with it.
    commands = commands.replace("torchrun --standalone --nproc_per_node=1", sys.executable)
    done = subprocess.run(
        ["bash", "-e", "-c", commands], cwd=again, capture_output=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr
    whole = b"".join((again / f"train_seed{seed}.log").read_bytes() for seed in (1, 2))
    lines = [line for line in whole.splitlines() if b"run_id" not in line]
    assert [line for line in done.stdout.splitlines() if b"run_id" not in line] == lines


def test_a_baseline_is_compared_with_by_both_readings(made: SweepDir, tmp_path: Path) -> None:
    baseline = publish(made, HIGH, tmp_path / "baseline")
    text = (publish(made, LOW, tmp_path / "better", baseline=baseline) / "README.md").read_text()
    section = text.partition("## Comparison")[2].partition("\n## ")[0]
    assert "Gain 0.01000 BPB" in section
    ratio = 2.51219162 / 1.110001
    assert f"| 0.005 nats per token | {0.005 / ratio:.5f} |" in section
    assert "| 0.005 nats per byte | 0.00721 |" in section
    ends = re.findall(r"^\| (0|0\.005 nats per \w+) \|.*\| ([\w ]+) \|$", section, re.MULTILINE)
    readings = ("0", "0.005 nats per token", "0.005 nats per byte")
    assert ends == [(margin, "shown") for margin in readings]
    worse = publish(made, HIGH, tmp_path / "worse", baseline=tmp_path / "better")
    text = (worse / "README.md").read_text()
    assert "Gain -0.01000 BPB" in text
    assert "| shown |" not in text


def test_nothing_is_overwritten(made: SweepDir, tmp_path: Path) -> None:
    out = tmp_path / "there"
    out.mkdir()
    (out / "mine.txt").write_text("mine")
    with pytest.raises(UserError, match="nothing is overwritten"):
        publish(made, LOW, out)
    assert [path.name for path in out.iterdir()] == ["mine.txt"]
    empty = tmp_path / "empty"
    empty.mkdir()
    assert publish(made, LOW, empty) == empty
    assert (empty / "README.md").is_file()
    with pytest.raises(UserError, match="cannot be made"):
        publish(made, LOW, out / "mine.txt" / "below")


def test_a_seed_that_failed_is_never_dropped_in_silence(tmp_path: Path) -> None:
    spec = script_spec(tmp_path / "script", seeds=[1, 2, 3])
    sweep = make_sweep(tmp_path / "runs" / "made", spec, failing=(2,))
    with pytest.raises(UserError, match=r"seed 2: failed: .*the cause.*--allow-missing"):
        publish(sweep, LOW, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    out = publish(sweep, LOW, tmp_path / "out", allow_missing=True)
    assert published_json(out)["seeds"] == [1, 3]
    text = (out / "README.md").read_text()
    assert "**2 of 3 seeds count.** Not among them: seed 2 (failed: " in text
    assert not (out / "train_seed2.log").exists()


def test_the_logs_of_all_stages_are_one(own: SweepDir, tmp_path: Path) -> None:
    attempt = own.attempt(0, LOW, 1, 1)
    whole = attempt.stdout.read_bytes()
    trained, packed = whole.index(b"Serialized model: "), whole.index(b"final_int6_roundtrip")
    parts = (whole[:trained], whole[trained:packed], whole[packed:])
    shutil.rmtree(attempt.logs)
    rows = []
    for stage, part in zip((Stage.TRAIN, Stage.PACK, Stage.SCORE), parts, strict=True):
        # A first launch of the last stage was lost: what it had printed is of no run.
        for number in (1, 2) if stage is Stage.SCORE else (1,):
            directory = attempt.of(stage, number)
            directory.logs.mkdir(parents=True)
            directory.stdout.write_bytes(part if number > 1 or not stage.last else part[:40])
            rows.append((stage,))
    with closing(Ledger.open_for_writing(own.ledger, spec_of(own))) as ledger:
        (row,) = (row for row in ledger.attempts() if own.path / row.path == attempt.path)
        ledger.db.execute("DELETE FROM stages WHERE attempt = ?", (row.id,))
        ledger.db.executemany(
            "INSERT INTO stages (attempt, stage, host, gpus, launched, events_from)"
            f" VALUES ({row.id}, ?, 'here', '', 0.0, 0)",
            rows,
        )
    out = publish(own, LOW, tmp_path / "out")
    assert (out / "train_seed1.log").read_bytes() == whole


def test_of_a_search_only_the_fresh_seeds_are_the_record(own: SweepDir, tmp_path: Path) -> None:
    table = spec_of(own).model_dump(by_alias=True, mode="json")
    table |= {
        "seeds": [1],
        "search": {"space": {"MATRIX_LR": {"low": 0.01, "high": 0.1}}},
        "stage": [{"name": "screen", "seeds": 1, "trials": 2}, {"name": "confirm", "seeds": [2]}],
    }
    # One seed is enough here: the second stage takes the best of the first.
    table["stage"][1]["top"] = 1
    text = SweepSpec.model_validate(table).model_dump_json(by_alias=True)
    with closing(Ledger.open_for_writing(own.ledger, spec_of(own))) as ledger:
        ledger.db.execute("UPDATE sweep SET spec = ?", (text,))
    out = publish(own, LOW, tmp_path / "out")
    assert published_json(out)["seeds"] == [2]
    assert not (out / "train_seed1.log").exists()
    said = (out / "README.md").read_text()
    assert "**1 of 2 seeds count.** Not among them: seed 1 (the search chose" in said


def change_spec(sweep: SweepDir, **changes: Mapping[str, object]) -> None:
    """Put values over those of tables of a sweep's spec."""
    table = spec_of(sweep).model_dump(by_alias=True, mode="json")
    for name, values in changes.items():
        table[name] |= values
    text = SweepSpec.model_validate(table).model_dump_json(by_alias=True)
    with closing(Ledger.open_for_writing(sweep.ledger, spec_of(sweep))) as ledger:
        ledger.db.execute("UPDATE sweep SET spec = ?", (text,))


def test_no_secret_is_published(own: SweepDir, tmp_path: Path) -> None:
    names = ("DB_PASS", "GITHUB_PAT", "NGROK_AUTHTOKEN", "WANDB_API_KEY", "WHATEVER")
    settings = dict.fromkeys(names, "verysecret") | {
        "HTTPS_PROXY": "http://me:verysecret@proxy",
        "NCCL_DEBUG": "WARN",
    }
    change_spec(own, process_env=settings)
    out = publish(own, LOW, tmp_path / "out")
    said = (out / "README.md").read_text()
    listed = ", ".join(f"`{name}`" for name in sorted([*names, "HTTPS_PROXY", "LOG_FORMAT"]))
    assert f"Not told here, to be set by you: {listed}." in said
    assert "export NCCL_DEBUG=WARN" in said
    assert not [path for path in out.iterdir() if b"verysecret" in path.read_bytes()]
    # A log is published as it is, or not at all.
    log = own.attempt(0, LOW, 1, 1).stdout
    for line in ("logged in with verysecret", "HF_TOKEN=hf_abcdef", "s3://me:secret@host/x"):
        before = log.read_text()
        log.write_text(f"{before}{line}\n")
        place = rf"{log.name}:{before.count(chr(10)) + 1}: "
        with pytest.raises(UserError, match=place):
            publish(own, LOW, tmp_path / "again")
        log.write_text(before)
    assert not (tmp_path / "again").exists()


def test_no_secret_is_in_what_the_readme_says_of_a_run(own: SweepDir, tmp_path: Path) -> None:
    """Arguments, settings of a trial and of a log, the message of a seed that failed."""
    arguments = ["--wandb-key", "verysecret", "--seed-file", "s3://me:verysecret@host/seeds"]
    change_results(own, 1, config={"hf_token": "verysecret", "matrix_lr": 0.02})
    change_spec(own, workload={"arguments": arguments}, process_env={"DB_PASS": "othersecret"})
    mirror = json.dumps({"MATRIX_LR": "0.02", "MIRROR": "https://me:verysecret@host"})
    with closing(sqlite3.connect(own.ledger, isolation_level=None)) as db:
        db.execute("UPDATE trials SET env = ? WHERE number = 0", (mirror,))
        db.execute("UPDATE runs SET state = 'failed' WHERE trial = 0 AND seed = 2")
        db.execute("UPDATE attempts SET message = 'no entry for othersecret'")
    out = publish(own, LOW, tmp_path / "out", allow_missing=True)
    said = (out / "README.md").read_text()
    assert not re.search("verysecret|othersecret", said)
    assert "MIRROR=https://…@host" in said
    assert "--wandb-key …" in said
    assert "no entry for …" in said


def test_a_log_that_echoes_a_secret_setting_is_refused(own: SweepDir, tmp_path: Path) -> None:
    """In lower case, as scripts echo theirs; words are no secrets."""
    log = own.attempt(0, LOW, 1, 1).stdout
    before = log.read_text()
    for line in ("  hf_token: hf_AbCdEf0123456789xyz", "wandb_api_key=0123456789abcdef0123"):
        log.write_text(f"{before}{line}\n")
        with pytest.raises(UserError, match=r"logs are published as they are"):
            publish(own, LOW, tmp_path / "out")
    code = 'api_key = os.environ["API_KEY_2"]'
    for line in ("hf_token: None", code, "nats per token: 2.31415926535897932"):
        log.write_text(f"{before}{line}\n")
        shutil.rmtree(tmp_path / "out", ignore_errors=True)
        publish(own, LOW, tmp_path / "out")


def test_what_is_no_record_is_refused_with_the_reason(own: SweepDir, tmp_path: Path) -> None:
    out = tmp_path / "out"
    with pytest.raises(UserError, match=r"no trial 'lower'; there are 0 \(low \| rate\), 1 \(high"):
        publish(own, "lower", out)
    with pytest.raises(UserError, match="no sweep there"):
        publish(SweepDir(tmp_path / "nowhere"), LOW, out)

    change_results(own, 2, metric="sliding-subset")
    with pytest.raises(UserError, match="more than one metric"):
        publish(own, LOW, out)
    change_results(own, 1, metric="sliding-subset", resumed_from_step=3)
    text = (publish(own, LOW, tmp_path / "subset") / "README.md").read_text()
    assert "subset of the validation tokens: not a full score" in text
    assert "**Seed 1 was interrupted and resumed from step 3**" in text

    change_results(own, 1, val_bpb=1.0)
    with pytest.raises(UserError, match=r"its log says val_bpb 1\.110001, its result 1\.0"):
        publish(own, LOW, out)
    shutil.rmtree(own.attempt(1, HIGH, 1, 1).path / "logs")
    with pytest.raises(UserError, match="no log of rank 0 there"):
        publish(own, HIGH, out)
    assert not out.exists()


@pytest.mark.parametrize(
    ("train_s", "eval_s", "size", "kept", "track"),
    [
        (600.0, 600.0, 15_999_999, (True, True, True), "10min_16mb"),
        # By less than a second more a reviewer may let it pass.
        (600.1, 600.0, 15_999_999, (False, True, True), "10min_16mb"),
        (601.1, 600.0, 15_999_999, (False, True, True), "non_record_16mb"),
        (590.0, 600.1, 15_999_999, (True, False, True), "non_record_16mb"),
        (590.0, 500.0, 16_000_000, (True, True, False), "non_record_16mb"),
    ],
)
def test_limits_are_kept_at_the_limit_and_not_beyond(
    made: SweepDir, train_s: float, eval_s: float, size: int, kept: tuple[bool, ...], track: str
) -> None:
    published = gather(made, LOW)
    runs = [
        replace(
            run,
            facts=replace(
                run.facts,
                train_time_ms=1000 * train_s,
                hessian_time_s=None,
                eval_time_s=eval_s,
                bytes_total=size,
            ),
        )
        for run in published.runs
    ]
    resources = published.spec.resources.model_copy(
        update={"gpus_per_run": 8, "accelerator": "H100"}
    )
    spec = published.spec.model_copy(update={"resources": resources})
    facts = submission(replace(published, spec=spec, runs=tuple(runs)))
    names = ("train_under_600s", "eval_under_600s", "artifact_under_16mb")
    assert tuple(facts["compliance"][name] for name in names) == kept
    assert facts["track"] == track


def test_a_result_that_is_no_number_is_not_published(own: SweepDir, tmp_path: Path) -> None:
    change_results(own, 1, val_loss=float("nan"))
    with pytest.raises(UserError, match="its result nan"):
        publish(own, LOW, tmp_path / "out")


def test_only_the_code_that_ran_is_published(own: SweepDir, tmp_path: Path) -> None:
    (snapshot,) = (path for path in (own.path / "code").iterdir() if path.is_dir())
    copy = own.attempt(0, LOW, 2, 1).path / "train_gpt.py"
    copy.write_text(copy.read_text() + "# changed\n")
    with pytest.raises(UserError, match=r"seed 2: .* differs from the sweep's copy"):
        publish(own, LOW, tmp_path / "out")
    script = snapshot / "train_gpt.py"
    script.write_text(script.read_text() + "# changed\n")
    with pytest.raises(UserError, match="not the code that ran any more: its hash is"):
        publish(own, HIGH, tmp_path / "out")
    shutil.rmtree(snapshot)
    with pytest.raises(UserError, match="it is gone"):
        publish(own, HIGH, tmp_path / "out")

    with closing(Ledger.open_for_writing(own.ledger, spec_of(own))) as ledger:
        ledger.db.execute("UPDATE attempts SET code = 'feed' WHERE run = 3")
    with pytest.raises(UserError, match=r"more than one version of the code.*feed: seeds 2"):
        publish(own, LOW, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_module_without_an_export_is_refused(own: SweepDir, tmp_path: Path) -> None:
    with closing(Ledger.open_for_writing(own.ledger, spec_of(own))) as ledger:
        text = spec_of(own).model_dump(by_alias=True, mode="json")
        text["workload"] |= {"script": None, "include": [], "module": "somebody.train"}
        ledger.db.execute("UPDATE sweep SET spec = ?", (json.dumps(text),))
    with pytest.raises(UserError, match=r"it has no somebody/export\.py"):
        publish(own, LOW, tmp_path / "out")
