"""What is shown of records: by people and by programs, in every format."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path

import pandas as pd
import pytest

from sweeper.cli import main
from tests.sweeper.evidence.folders import RECORD, SCORES, log_text, real, write_folder
from tests.sweeper.evidence.publish_sweeps import HIGH, LOW, make_sweep, script_spec

FIELDS = {
    *("path", "seed", "val_bpb", "val_loss", "metric", "prequant_val_bpb", "steps"),
    *("train_time_ms", "eval_time_s", "bytes_total", "bytes_code", "bytes_model"),
    *("peak_memory_mib", "train_shards", "val_tokens"),
}
OF_A_FOLDER = {"n", "val_bpb_mean", "val_bpb_std", "val_bpb_std_population", "bytes_max"}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    claim = {"val_bpb": 1.0925, "val_bpb_std": 0.0004, "bytes_total": 15_984_000}
    return write_folder(tmp_path / "records" / "<b>|[red]", claim=claim)


def show(capsys: pytest.CaptureFixture[str], *arguments: str | Path) -> str:
    assert main(["records", "show", *map(str, arguments)]) == 0
    return capsys.readouterr().out


def test_a_record_as_json_has_every_field(capsys: pytest.CaptureFixture[str], folder: Path) -> None:
    (record,) = json.loads(show(capsys, folder, "--format", "json"))
    assert record.keys() >= OF_A_FOLDER
    assert record["n"] == 3
    assert record["val_bpb_mean"] == pytest.approx(1.09244346, abs=1e-8)
    assert record["val_bpb_difference"] == pytest.approx(1.0925 - 1.09244346, abs=1e-8)
    assert record["bytes_max"] == 15_984_000
    assert record["bytes_difference"] == 0
    assert record["claims"]["val_bpb"]["where"] == "submission.json: val_bpb"
    assert len(record["runs"]) == 3
    for run in record["runs"]:
        assert run.keys() >= FIELDS
        assert run["val_bpb"] == SCORES[run["seed"]]
        assert run["val_bpb_text"] == f"{SCORES[run['seed']]:.8f}"
        assert run["metric"] == "sliding"
        assert (run["hessian_time_s"], run["train_shards"]) == (9.8, 80)
        assert run["hyperparameters"]["num_layers"] == "11"
        kinds = [each["kind"] for each in run["metrics"]]
        assert kinds == ["prequant", "quant", "sliding"]
        line = Path(run["path"]).read_text().splitlines()[run["lines"]["val_bpb"] - 1]
        assert line.startswith("final_int6_sliding_window")
        assert run["missing"] == {}


def test_what_is_missing_is_null_with_its_reason(
    capsys: pytest.CaptureFixture[str], folder: Path
) -> None:
    path = folder / "train_seed42.log"
    lines = [line for line in path.read_text().splitlines() if "Total" not in line]
    path.write_text("\n".join(lines).replace("train_shards: 80", ""))
    (record,) = json.loads(show(capsys, folder, "--format", "json"))
    run = next(run for run in record["runs"] if run["seed"] == 42)
    assert run["train_shards"] is None
    assert "train_shards" in run["missing"]
    text = show(capsys, folder)
    assert "not known: train_shards (train_seed42.log)" in text


@pytest.mark.parametrize("form", ["csv", "parquet"])
def test_a_table_has_a_row_a_run(
    capsys: pytest.CaptureFixture[str], folder: Path, tmp_path: Path, form: str
) -> None:
    out = tmp_path / f"runs.{form}"
    show(capsys, folder, "--format", form, "--out", out)
    frame = pd.read_parquet(out) if form == "parquet" else pd.read_csv(out)
    assert {"record", *FIELDS} <= set(frame.columns)
    assert sorted(frame["val_bpb"]) == sorted(SCORES.values())
    assert set(frame["record"]) == {"<b>|[red]"}


def test_csv_goes_to_the_terminal_as_well(capsys: pytest.CaptureFixture[str], folder: Path) -> None:
    rows = list(csv.DictReader(io.StringIO(show(capsys, folder, "--format", "csv"))))
    assert {row["seed"] for row in rows} == {"42", "314", "999"}


def test_parquet_needs_a_file(capsys: pytest.CaptureFixture[str], folder: Path) -> None:
    assert main(["records", "show", str(folder), "--format", "parquet"]) == 2
    assert "--out" in capsys.readouterr().err


def test_a_table_for_people(capsys: pytest.CaptureFixture[str], folder: Path) -> None:
    text = show(capsys, folder)
    for part in ("<b>|[red]", "1.09269834", "15,984,000", "± 0.00043499 (sample)", "yes"):
        assert part in text, part
    assert "claimed val_bpb 1.0925, +0.00005654 from the logs" in text
    assert "claimed bytes 15984000, as in the logs" in text
    markdown = show(capsys, folder, "--format", "markdown")
    assert "| train_seed42.log | 42 | 1.09269834 | sliding |" in markdown
    assert markdown.startswith("### <b>|[red]")


def test_of_several_records_there_is_one_table_more(
    capsys: pytest.CaptureFixture[str], folder: Path
) -> None:
    write_folder(folder.parent / "other", {7: 1.2})
    text = show(capsys, folder.parent)
    assert "2 records, 4 runs" in text
    assert "1.200000" in text
    assert len(json.loads(show(capsys, folder.parent, "--format", "json"))) == 2


def test_a_run_that_does_not_count_is_shown_with_its_reason(
    capsys: pytest.CaptureFixture[str], folder: Path
) -> None:
    (folder / "copy.txt").write_text(log_text(42, SCORES[42]))
    text = show(capsys, folder)
    assert "a copy of train_seed42.log" in text
    assert "what counts: all logs are named alike" in text


def test_stalls_are_shown(capsys: pytest.CaptureFixture[str], folder: Path) -> None:
    path = folder / "train_seed42.log"
    begin = path.read_text().index("5400/20000")
    steps, ms = [], 0
    for step in range(100, 5001, 100):
        ms += 60_000 if step == 3000 else 10_000
        steps.append(f"step:{step}/20000 train_loss:3.0 train_time:{ms}ms step_avg:100.0ms\n")
    text = path.read_text()
    path.write_text(text[:begin] + "".join(steps) + text[begin:])
    assert "1 stall, the worst at steps 2900 to 3000 with 600 ms a step" in show(capsys, folder)


def test_a_real_record_for_people(capsys: pytest.CaptureFixture[str]) -> None:
    text = show(capsys, real(RECORD))
    assert "val_bpb 1.09244346 ± 0.00043499 (sample), 0.00035517 (population), n = 3" in text
    assert "claimed val_bpb 1.09244346, as in the logs" in text


def test_what_is_not_there_is_said_in_a_line(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    assert main(["records", "show", str(tmp_path / "absent"), "--root", str(tmp_path)]) == 2
    assert "no folder, log, or sweep" in capsys.readouterr().err


def test_nothing_that_was_read_is_written_over(
    capsys: pytest.CaptureFixture[str], folder: Path, tmp_path: Path
) -> None:
    for out in (folder / "train_seed42.log", folder / "submission.json"):
        before = out.read_bytes()
        assert main(["records", "show", str(folder), "--format", "json", "--out", str(out)]) == 2
        assert "files that were read" in capsys.readouterr().err
        assert out.read_bytes() == before
    for out in (tmp_path, tmp_path / "none" / "x.json"):
        assert main(["records", "show", str(folder), "--format", "json", "--out", str(out)]) == 2
        assert "cannot be written" in capsys.readouterr().err


@pytest.mark.parametrize("form", ["table", "markdown", "json", "csv", "parquet"])
def test_names_that_are_no_text_and_scores_that_are_no_numbers(
    capsys: pytest.CaptureFixture[str], folder: Path, tmp_path: Path, form: str
) -> None:
    name = b"train_seed7\xff.log".decode(errors="surrogateescape")
    (folder / name).write_text(log_text(7, 1.1).replace("val_bpb:1.10000000", "val_bpb:nan"))
    out = tmp_path / "out"
    show(capsys, folder, "--format", form, "--out", out)
    if form == "json":
        (record,) = json.loads(out.read_text(), parse_constant=lambda text: pytest.fail(text))
        assert None in [run["val_bpb"] for run in record["runs"]]
    if form == "csv":
        assert "train_seed7" in out.read_text()


def test_tables_of_different_records_can_be_joined(
    capsys: pytest.CaptureFixture[str], folder: Path, tmp_path: Path
) -> None:
    other = write_folder(tmp_path / "other", {7: 1.2})
    (other / "train_seed8.log").write_text("nothing")
    schemas = []
    for number, each in enumerate((folder, other)):
        out = tmp_path / f"{number}.parquet"
        show(capsys, each, "--format", "parquet", "--out", out)
        schemas.append(pd.read_parquet(out).dtypes.to_dict())
    assert schemas[0] == schemas[1]


def test_the_trials_of_sweeps_in_a_tree_are_records(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    make_sweep(tmp_path / "runs" / "mine", script_spec(tmp_path, name="mine"))
    text = show(capsys, tmp_path / "runs", "--format", "json")
    names = [record["record"] for record in json.loads(text)]
    assert names == [f"mine/{LOW}", f"mine/{HIGH}"]


# ---- compare, as a command


def test_the_known_case_by_the_command(capsys: pytest.CaptureFixture[str]) -> None:
    pair = [str(real(RECORD)), str(real("main__2026-03-25"))]
    assert main(["compare", *pair, "--basis", "byte", "--format", "json"]) == 0
    table = json.loads(capsys.readouterr().out)
    assert table["t"] == pytest.approx(46.6, abs=0.05)
    assert table["margin_bpb"] == pytest.approx(0.00721, abs=5e-6)
    assert main(["compare", *pair, "--margin-nats", "0"]) == 0
    assert "68.85" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--alpha", "0"], "--alpha"),
        (["--alpha", "1.5"], "--alpha"),
        (["--margin-nats", "nan"], "--margin-nats"),
        (["--margin-nats", "-1"], "--margin-nats"),
    ],
)
def test_numbers_that_make_no_sense_are_refused(
    capsys: pytest.CaptureFixture[str], folder: Path, arguments: list[str], said: str
) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["compare", str(folder), str(folder), *arguments])
    assert ended.value.code == 2
    assert said in capsys.readouterr().err
