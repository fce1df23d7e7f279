"""A good record's script, files and wording, doctored; and a record against a baseline."""

from __future__ import annotations

import os
import re
import shutil
from pathlib import Path

import pytest

from sweeper.evidence.read import read_record
from sweeper.evidence.rules import Finding, Status
from sweeper.evidence.validate import validate
from tests.sweeper.evidence.doctored import (
    ALL,
    BEFORE,
    CODE_BYTES,
    GOOD,
    ONE,
    README,
    claimed,
    doctor,
    good_folder,
    judge,
    real,
    rewrite,
    rules,
    seed_claim,
    text_of,
)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A good record to doctor."""
    return good_folder(tmp_path)


def test_a_stub_that_runs_other_code(folder: Path) -> None:
    (folder / "core.py").write_bytes((folder / "train_gpt.py").read_bytes()[:80_000])
    stub = 'exec(open("core.py").read())'
    (folder / "train_gpt.py").write_text(stub + "#" * (74 - len(stub)))
    found = judge(folder)
    assert rules(found) == {"code-beside"}
    assert "core.py has 80,000 bytes, train_gpt.py uses it" in text_of(found["code-beside"])
    assert "train_gpt.py has 74" in text_of(found["code-counted"])


def test_a_module_beside_the_script_that_is_counted(folder: Path) -> None:
    whole = (folder / "train_gpt.py").read_text()
    (folder / "cache.py").write_text("# a cache\n")
    script = "import cache\n" + whole
    (folder / "train_gpt.py").write_text(script[: CODE_BYTES - len("# a cache\n")])
    found = judge(folder)
    assert rules(found) == set()
    assert "and is counted" in text_of(found["code-beside"])
    (folder / "cache.py").write_text("# a cache that is not counted\n")
    assert rules(judge(folder)) == {"code-beside"}


def test_a_script_larger_than_what_was_counted(folder: Path) -> None:
    with (folder / "train_gpt.py").open("a") as file:
        file.write("# more\n")
    assert rules(judge(folder)) == {"code-counted"}


def test_files_that_the_script_names(folder: Path) -> None:
    (folder / "table.npz").write_bytes(b"x" * 5000)
    doctor(folder, "train_gpt.py", "torch.manual_seed(42)", 'open("table.npz")    ')
    found = judge(folder)
    assert "code-beside" in rules(found, Status.WARN)
    assert "these 5,000 bytes" in text_of(found["code-beside"])


def test_a_compressor_that_is_not_installed(folder: Path) -> None:
    (folder / "requirements.txt").write_text("torch\n")
    found = judge(folder)
    assert rules(found) == set()
    assert rules(found, Status.WARN) == {"compressor"}
    assert "imports brotli" in text_of(found["compressor"])


def test_a_script_that_does_not_compile(folder: Path) -> None:
    doctor(folder, "train_gpt.py", "def main():", "def main(:  ")
    assert "script-compiles" in rules(judge(folder))


@pytest.mark.parametrize("name", ["README.md", "submission.json"])
def test_a_pipe_is_no_file_to_wait_for(folder: Path, name: str) -> None:
    (folder / name).unlink()
    os.mkfifo(folder / name)
    assert rules(judge(folder)) == {"folder-files"}


def test_a_requirements_file_in_another_encoding(folder: Path) -> None:
    (folder / "requirements.txt").write_text("torch\nbrotli\n", encoding="utf-16")
    assert judge(folder)["compressor"].status is Status.PASS


@pytest.mark.parametrize("name", ["README.md", "train_gpt.py", "submission.json"])
def test_a_file_that_is_missing(folder: Path, name: str) -> None:
    (folder / name).unlink()
    assert rules(judge(folder)) == {"folder-files"}
    found = judge(folder, rules="frontier")
    assert rules(found) == set()
    assert "folder-files" in rules(found, Status.WARN)


def test_a_submission_that_cannot_be_read(folder: Path) -> None:
    (folder / "submission.json").write_text("{")
    assert rules(judge(folder)) == {"submission-json"}


def test_a_readme_with_another_mean(folder: Path) -> None:
    doctor(folder, "README.md", "1.0924", "1.0913")
    found = judge(folder)
    assert rules(found) == {"headline"}
    assert "README.md:3" in text_of(found["headline"])


WARNINGS: dict[str, tuple[str, str, str, str]] = {
    "hardware": (ALL, "world_size: 8", "world_size: 4", "4 processes"),
    "train-time": (ONE, "train_time: 590078ms", "train_time: 600137ms", "0.137 s over"),
    "one-launch": (ONE, "warmup_step: 1/20", "Resumed from checkpoint 900", "resumed"),
    "log-complete": (ONE, "stopping_early: wallclock_cap", "stopping_early: sigterm", "sigterm"),
    "test-wording": ("README.md", "Reproduce", "A z-test gives p < 0.01. Reproduce", "z-test"),
    "technique": ("README.md", "Reproduce", "Min-NLL epoch selection. Reproduce", "C4 forbids"),
    "reproduce": ("README.md", "torchrun", "python", "torchrun command is missing"),
}


@pytest.mark.parametrize("rule", WARNINGS)
def test_what_is_to_be_looked_at(folder: Path, rule: str) -> None:
    pattern, old, new, words = WARNINGS[rule]
    doctor(folder, pattern, old, new)
    found = judge(folder)
    assert rules(found) == ({"calibration-time"} if rule == "train-time" else set())
    assert rule in rules(found, Status.WARN)
    assert words in text_of(found[rule])


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("Welch's t-test gives t = 5.1, p < 0.001.", "zero difference"),
        ("One-sided: t = 5.1, p = 0.001.", "zero difference"),
        ('"p_value": 0.001', "zero difference"),
        ("An improvement of 0.0060 BPB (> 0.005).", "not BPB"),
        ("The gain is 0.0059 BPB / 0.005 = 1.2 margins: delta bpb/0.005", "not BPB"),
    ],
)
def test_a_test_of_something_else(folder: Path, line: str, words: str) -> None:
    (folder / "README.md").write_text(README + "\n\n\n" + line + "\n")
    finding = judge(folder)["test-wording"]
    assert finding.status is Status.WARN
    assert words in text_of(finding)
    assert finding.evidence[0].line == len(README.splitlines()) + 4


def test_a_test_of_the_margin_is_not_blamed(folder: Path) -> None:
    line = "Welch's t-test, H0: gain <= margin of 0.005 nats: t = 62.1, p < 0.001."
    for text in (line, "Dropout with p = 0.1."):
        (folder / "README.md").write_text(README + "\n" + text + "\n")
        assert judge(folder)["test-wording"].status is Status.PASS
    for text in ("A gain of 0.0223 BPB (> 0.005 nats).", "From 1.1 to 1.0924 BPB > 0.0051."):
        (folder / "README.md").write_text(README + "\n" + text + "\n")
        assert judge(folder)["test-wording"].status is Status.PASS


def test_a_claimed_time_of_another_clock(folder: Path) -> None:
    for seconds, status, words in (
        (733.0, Status.FAIL, "over the 600 s"),
        (120.0, Status.WARN, "another clock"),
    ):
        rewrite(folder, seed_claim("42", "eval_time_s", seconds))
        finding = judge(folder)["eval-time-claimed"]
        assert finding.status is status
        assert words in text_of(finding)


# ---- the script, by its audit


def with_script(folder: Path, source: str) -> dict[str, Finding]:
    assert len(source) <= CODE_BYTES
    (folder / "train_gpt.py").write_text(source + "#" * (CODE_BYTES - len(source)))
    return judge(folder)


UPDATE_FIRST = """import brotli
import torch
import torch.nn.functional as F


def eval_val_ttt(model, val_tokens, optimizer):
    total = 0.0
    for x, y in val_tokens:
        optimizer.zero_grad()
        loss = F.cross_entropy(model(x), y)
        loss.backward()
        optimizer.step()
        with torch.no_grad():
            total += F.cross_entropy(model(x), y).item()
    return total
"""
FETCHES = """import brotli
import urllib.request


def main():
    urllib.request.urlretrieve("https://example.org/weights.bin", "weights.bin")
"""
RUNS = """import brotli
import subprocess


def unpack(path):
    return subprocess.run(["lrzip", "-d", path], check=True)
"""


def test_a_script_that_trains_on_what_it_scores(folder: Path) -> None:
    """The audit warns and never fails; where the logs say that it was off, it only tells."""
    finding = with_script(folder, UPDATE_FIRST)["score-first"]
    assert finding.status is Status.PASS
    assert "ttt_enabled is off in all logs" in text_of(finding)
    doctor(folder, ALL, "ttt_enabled: False", "ttt_enabled: True")
    found = judge(folder)
    assert rules(found) == set()
    assert found["score-first"].status is Status.WARN
    first = found["score-first"].evidence[0]
    assert first.file == "train_gpt.py"
    assert UPDATE_FIRST.splitlines()[(first.line or 0) - 1].strip() in first.text
    assert "TTT_ENABLED" in text_of(found["technique"])


def test_a_script_that_fetches_what_it_needs(folder: Path) -> None:
    found = with_script(folder, FETCHES)
    assert rules(found) == set()
    assert found["closed"].status is Status.WARN
    assert "network" in text_of(found["closed"])


def test_a_compressor_that_is_a_program(folder: Path) -> None:
    found = with_script(folder, RUNS)
    assert {"closed", "compressor"} <= rules(found, Status.WARN)
    assert "runs the program lrzip" in text_of(found["compressor"])


def test_a_script_that_the_audit_cannot_read(folder: Path) -> None:
    (folder / "train_gpt.py").write_bytes(b"\0" * CODE_BYTES)
    found = judge(folder)
    assert "script-compiles" in rules(found)
    assert "which is a bug" not in str(found)


# ---- what is no folder


def test_another_set_of_an_unknown_tokenizer(folder: Path) -> None:
    """No score of the challenge: a fail of a record, and no wrong count of its bytes."""
    doctor(folder, ALL, "sp4096", "own")
    doctor(folder, ALL, "fineweb_4096_bpe", "own")
    doctor(folder, ALL, "val_tokens: 45516800", "val_tokens: 31488")
    for path in folder.glob(ALL):
        path.write_text(re.sub(r"val_loss:2\.5", "val_loss:1.9", path.read_text()))
    found = judge(folder)
    assert "val-tokens" in rules(found)
    assert "not the whole of it" in text_of(found["val-tokens"])
    assert found["byte-count"].status is Status.UNKNOWN
    assert "val-tokens" in rules(judge(folder, rules="frontier"), Status.WARN)
    rewrite(folder, claimed("track", "non_record_16mb"))
    assert "val-tokens" in rules(judge(folder), Status.WARN)


def test_a_single_log_has_no_folder_to_judge(folder: Path) -> None:
    found = judge(folder / ONE)
    for rule in ("folder-files", "folder-name", "submission-json", "script-compiles", "reproduce"):
        assert found[rule].status is Status.UNKNOWN
    assert rules(found) == {"seeds-enough"}


def test_a_sweep_has_no_folder_to_judge(folder: Path) -> None:
    (folder / "ledger.sqlite").touch()
    for name in ("README.md", "train_gpt.py", "submission.json"):
        (folder / name).unlink()
    assert rules(judge(folder)) == set()


# ---- against a baseline


def test_a_gain_that_is_not_beyond_the_margin(folder: Path) -> None:
    found = judge(folder, baseline=real(GOOD))
    assert rules(found) == {"significance"}
    backwards = {f.rule: f for f in validate(real(BEFORE), baseline=real(GOOD))}
    assert backwards["significance"].status is Status.FAIL


def test_the_frontier_waives_the_margin(folder: Path) -> None:
    """A gain of a quarter of the margin is one, but not a record's."""
    baseline = read_record(folder)
    ahead = folder.parent / "ahead" / folder.name
    shutil.copytree(folder, ahead)
    for path in ahead.glob(ALL):
        text = path.read_text()
        lower = re.sub(
            r"(sliding_window .*val_bpb:)(\S+)", lambda m: f"{m[1]}{float(m[2]) - 0.0016:.8f}", text
        )
        path.write_text(lower)
    record = read_record(ahead)
    by_record = {f.rule: f for f in validate(record, baseline=baseline)}
    by_frontier = {f.rule: f for f in validate(record, baseline=baseline, rules="frontier")}
    assert by_record["significance"].status is Status.FAIL
    assert by_frontier["significance"].status in (Status.PASS, Status.WARN)
    assert "margin 0:" in text_of(by_frontier["significance"])


def test_a_baseline_of_one_run_is_said(folder: Path) -> None:
    for seed in (314, 999):
        (folder / f"train_seed{seed}.log").unlink()
    finding = {f.rule: f for f in validate(real(GOOD), baseline=read_record(folder))}[
        "significance"
    ]
    assert finding.status is Status.UNKNOWN
    assert "no test can be made" in text_of(finding)
