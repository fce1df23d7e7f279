"""The commands as a person or a script calls them: what they print, and how they exit."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from sweeper.cli import main
from sweeper.evidence.publish import publish
from sweeper.evidence.read import read_record
from sweeper.evidence.reproduce import plan, sweep_name
from tests.sweeper.evidence.doctored import doctor, good_folder
from tests.sweeper.evidence.folders import EARLIER, real
from tests.sweeper.evidence.publish_sweeps import LOW, change_results, make_sweep, script_spec

Capture = pytest.CaptureFixture[str]


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Where there is one sweep of a script, called published here by nobody yet."""
    make_sweep(tmp_path / "runs" / "mine", script_spec(tmp_path, name="mine"))
    return tmp_path / "runs"


def test_a_good_folder_stands_and_exits_with_0(capsys: Capture, tmp_path: Path) -> None:
    folder, earlier = str(good_folder(tmp_path)), str(real(EARLIER))
    assert main(["validate", folder, "--baseline", earlier, "--format", "json"]) == 0
    findings = json.loads(capsys.readouterr().out)
    assert isinstance(findings, list)
    for finding in findings:
        assert {"rule", "status", "evidence"} <= finding.keys()
        assert finding["status"] in ("pass", "warn", "unknown")
    assert main(["validate", folder, "--rules", "frontier"]) == 0
    assert "0 fail" in capsys.readouterr().out


def test_a_doctored_folder_exits_with_1_and_names_file_and_line(
    capsys: Capture, tmp_path: Path
) -> None:
    folder = good_folder(tmp_path)
    doctor(folder, "train_seed42.log", "15987206", "16054963")
    assert main(["validate", str(folder), "--format", "json"]) == 1
    findings = {each["rule"]: each for each in json.loads(capsys.readouterr().out)}
    assert findings["artifact-bytes"]["status"] == "fail"
    (evidence, *_) = findings["artifact-bytes"]["evidence"]
    assert "16,054,963" in evidence["text"]
    assert evidence["file"] == "train_seed42.log"
    assert (
        (folder / evidence["file"])
        .read_text()
        .splitlines()[evidence["line"] - 1]
        .startswith("Total submission size")
    )
    for form in ("table", "markdown"):
        assert main(["validate", str(folder), "--format", form]) == 1
        assert "artifact-bytes" in capsys.readouterr().out


def test_a_trial_is_published_validated_and_compared(
    capsys: Capture, root: Path, tmp_path: Path
) -> None:
    out = tmp_path / "records" / "2026-04-06_Mine"
    arguments = ["publish", "mine", "--trial", LOW, "--out", str(out), "--root", str(root)]
    assert main(arguments) in (0, 1)  # whether it stands is the validator's word
    text = capsys.readouterr().out
    assert str(out) in text
    assert "folder-files" in text
    assert main(arguments) == 2
    assert "there already" in capsys.readouterr().err
    assert main(["records", "show", str(out), "--format", "json"]) == 0
    (record,) = json.loads(capsys.readouterr().out)
    assert abs(record["val_bpb_difference"]) < 1e-8
    pair = [str(out), f"mine/{LOW}", "--root", str(root), "--margin-nats", "0"]
    assert main(["compare", *pair, "--format", "json"]) == 0
    assert json.loads(capsys.readouterr().out)["gain_bpb"] == pytest.approx(0.0, abs=1e-7)


def test_what_comes_out_otherwise_exits_with_1(capsys: Capture, tmp_path: Path) -> None:
    made = make_sweep(tmp_path / "mine", script_spec(tmp_path, name="mine"))
    record = read_record(publish(made, LOW, tmp_path / "2026-01-02 Mine"))
    again = make_sweep(tmp_path / "runs" / sweep_name(record), plan(record, tmp_path).spec)
    arguments = ["reproduce", str(record.path), "--no-run", "--root", str(tmp_path / "runs")]
    assert main(arguments) == 0
    assert "reproduced to the digit" in capsys.readouterr().out
    for seed in (1, 2):
        change_results(again, seed, val_bpb=1.3 + seed * 1e-6)
    assert main([*arguments, "--format", "json"]) == 1
    assert json.loads(capsys.readouterr().out)["outcome"] == "different"


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["publish", "other", "--trial", "x", "--out", "o"], "no sweep of that name"),
        (["publish", "mine", "--out", "o"], "--trial"),
        (["publish", "mine", "--trial", "nothing", "--out", "o"], "nothing"),
        (["compare", "mine", "mine"], "say which"),
        (["validate", "nowhere"], "no folder, log, or sweep"),
        (["reproduce", "nowhere"], "no such file or folder"),
        (["audit", "nowhere.py"], "nowhere.py"),
    ],
)
def test_what_cannot_be_done_is_said_in_a_line(
    capsys: Capture,
    root: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    arguments: list[str],
    said: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("SWEEPER_ROOT", str(root))
    assert main(arguments) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert said in error
    assert error.count("\n") == 1
    assert not (tmp_path / "o").exists()


def test_the_page_is_written_beside_the_results(capsys: Capture, root: Path) -> None:
    assert main(["report", "mine", "--format", "html", "--root", str(root)]) == 0
    path = Path(capsys.readouterr().out.strip())
    assert path.name == "report.html"
    assert (root / "mine" / "report.html").read_text().startswith("<!DOCTYPE html>")
