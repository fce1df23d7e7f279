"""Logs of scripts that know no contract: real ones against their truth, and whatever else comes."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sweeper.adapters import LogFacts, parse, parse_runs
from sweeper.layout import AttemptDir
from sweeper.logreader import LINE_BYTES, LogReader, RunReader, find_logs, read_log, read_runs
from sweeper.scores import Kind

SHARED = Path(__file__).parents[3] / "shared" / "data" / "logs"
RECORD = "main__2026-04-04_SP4096_DepthRecurrence_ParallelResid_MuonEqR"

# What a log's facts are called in its truth.
SAME = {
    "val_bpb": "val_bpb",
    "val_loss": "val_loss",
    "steps": "steps",
    "train_time_ms": "train_time_ms",
    "bytes_total": "total_submission_bytes",
    "bytes_model": "model_bytes",
    "bytes_code": "code_bytes",
    "peak_memory_mib": "peak_memory_mib",
    "world_size": "world_size",
}
# Logs of neither format; a person has read them.
FOREIGN = ("pr1335__", "pr1687__", "pr1731__", "pr1273__")
# Files with more than one run where the truth is of one: a terminal session, and others' claims.
SESSIONS = ("script.txt",)
# Where truth is the claim and that is not the score of the highest priority.
OTHER_CLAIM = {
    "pr116__2026-03-19_MSEQuant_SlidingWindow_EMA": "claims plain windows, has sliding ones too",
    "pr525__2026-03-23_10L_Optimized": "has no score where its claim has another log",
}
# What the truth's reader has not found, and is there.
FOUND_HERE = {("pr1474__", "bytes_model")}


def folders() -> list[Path]:
    if not SHARED.exists():
        pytest.skip("reference data logs is not here")
    return sorted(path.parent for path in SHARED.glob("*/truth.json"))


def read_truth(folder: Path) -> Iterator[tuple[dict[str, Any], LogFacts]]:
    """Every run of a folder that a person has checked, and what is read of it here."""
    truth = json.loads((folder / "truth.json").read_text())
    for run in truth["runs"]:
        if run["file"] not in SESSIONS:
            runs = read_runs(folder / run["file"])
            # Starts that broke off are no runs of the truth's.
            several = len(runs) == run["runs_in_file"]
            yield run, runs[run["run_in_file"] - 1 if several else -1]


def wrong(folder: Path, run: dict[str, Any], facts: LogFacts) -> Iterator[str]:
    for mine, theirs in SAME.items():
        found, true = getattr(facts, mine), run[theirs]
        if (folder.name[:8], mine) in FOUND_HERE and true is None:
            continue
        if mine in ("val_bpb", "val_loss") and folder.name in OTHER_CLAIM:
            continue
        equal = found == true if None in (found, true) else abs(found - true) <= 1e-8
        if not equal:
            yield f"{folder.name}/{run['file']}: {mine} is {found}, truly {true}"


def test_every_real_log_of_either_format_is_read_as_a_person_reads_it() -> None:
    checked = 0
    mistakes: list[str] = []
    for folder in folders():
        if not folder.name.startswith(FOREIGN):
            for run, facts in read_truth(folder):
                mistakes += wrong(folder, run, facts)
                checked += 1
                if run["seed_from"] == "log" and facts.seed != run["seed"]:
                    mistakes.append(f"{folder.name}/{run['file']}: seed {facts.seed}")
                before = run["pre_quant_val_bpb"]
                of_step = (run["pre_quant_label"] or "step").startswith("step")
                if not of_step and facts.prequant_val_bpb != before:
                    mistakes.append(f"{run['file']}: before {facts.prequant_val_bpb}, not {before}")
                assert facts.form in ("log-a", "log-b")
    assert mistakes == []
    assert checked > 110


def test_what_is_not_read_of_foreign_logs_is_missing_and_never_wrong() -> None:
    for folder in folders():
        if folder.name.startswith(FOREIGN):
            for run, facts in read_truth(folder):
                for mine, theirs in SAME.items():
                    assert getattr(facts, mine) in (None, run[theirs]), (folder.name, mine)


def test_the_records_log_gives_every_fact() -> None:
    if not SHARED.exists():
        pytest.skip("reference data logs is not here")
    facts = read_log(SHARED / RECORD / "train_seed314.log")
    assert (facts.form, facts.metric, facts.headline) == (
        *("log-b", "sliding", "final_int6_sliding_window"),
    )
    assert (facts.train_shards, facts.val_tokens, facts.world_size) == (80, 45508608, 8)
    assert facts.quant_val_bpb == pytest.approx(1.10848, abs=1e-4)
    assert facts.step_avg_ms == pytest.approx(590088 / 5449)
    assert facts.eval_time_s == pytest.approx(76.573 + 7.7, abs=0.5)
    assert (facts.stop_reason, facts.iterations) == ("wallclock_cap", 20000)
    assert facts.hyperparameters["recur_layers"] == "4,5"
    assert len(facts.hyperparameters) > 60


def test_a_failed_adaptation_is_no_headline() -> None:
    if not SHARED.exists():
        pytest.skip("reference data logs is not here")
    facts = read_log(SHARED / RECORD / "train_seed42.log")
    assert facts.val_bpb == 1.08938974
    assert [score.val_bpb for score in facts.scores if score.kind is Kind.TTT][-1] == 1.336032


# ---- which score is the headline


@pytest.mark.parametrize(
    ("lines", "metric", "val_bpb"),
    [
        (["final_int6_roundtrip val_loss:2.5 val_bpb:1.11"], "quant", 1.11),
        (
            [
                "final_int6_sliding_window val_loss:2.5 val_bpb:1.0927 eval_time:7ms",
                "final_int6_sliding_window_exact val_loss:2.51 val_bpb:1.09269834",
                "final_int8_zlib_roundtrip_exact val_loss:2.51 val_bpb:1.10269834",
            ],
            *("sliding", 1.09269834),
        ),
        (
            [
                "final_int6_sliding_window_exact val_loss:2.5 val_bpb:1.0990",
                "legal_ttt:done val_loss=1.95 val_bpb=1.090641 elapsed=429.5s",
                "final_legal_ttt val_loss:1.95 val_bpb:1.0906 eval_time:5ms",
                "ngram_two_pass_exact val_loss:0.3 val_bpb:0.19517272",
            ],
            *("ttt", 1.090641),
        ),
        (
            [
                "final_sliding_window_exact stride:64 val_loss:1.9 val_bpb:1.16",
                "final_ntk_sliding_window_exact seq_len:2048 stride:64 val_loss:2.1 val_bpb:1.25",
            ],
            *("sliding", 1.16),
        ),
        # Worse than plain windows find the model: it has failed.
        (
            [
                "final_int6_roundtrip val_loss:2.5 val_bpb:1.108",
                "final_int6_sliding_window val_loss:2.5 val_bpb:1.089",
                "final_int6_ttt val_loss:3.07 val_bpb:1.336",
            ],
            *("sliding", 1.089),
        ),
        (["ppm_sliding val_loss:2.4 val_bpb:0.97373767 eval_time:4ms"], "mixed", 0.97373767),
        (["[default0]:quantized_ttt val_loss:2.7 val_bpb:1.07295259"], "ttt", 1.07295259),
        (["pre-quantization post-ema val_loss:2.5 val_bpb:1.09 eval_time:2ms"], None, None),
        (["DIAGNOSTIC post_ema val_loss:2.5 val_bpb:1.09"], None, None),
        (["step:5/5 val_loss:2.5 val_bpb:1.09 train_time:9ms step_avg:1.0ms"], None, None),
        # Source code in the log, and other ranks.
        (['log0(f"final_int8 val_loss:{q_val_loss:.4f} val_bpb:{q_val_bpb:.4f}")'], None, None),
        (['    log("final_int8_roundtrip val_loss:1.0 val_bpb:1.0")'], None, None),
        (["[rank3]:final_int6_sliding_window val_loss:2.5 val_bpb:1.2"], None, None),
    ],
)
def test_the_headline_is_what_the_scores_are_not_what_they_are_called(
    lines: list[str], metric: str | None, val_bpb: float | None
) -> None:
    facts = parse(lines)
    assert (facts.metric, facts.val_bpb) == (metric, val_bpb)


def test_the_total_without_a_name_counts_only_where_it_adds_up() -> None:
    sizes = ["Code size: 50 bytes", "Serialized model int6+zstd: 100 bytes"]
    assert parse([*sizes, "Total submission size: 9999 bytes"]).bytes_total is None
    assert parse([*sizes, "Total submission size: 150 bytes"]).bytes_total == 150
    named = [*sizes, "Total submission size int6+zstd: 151 bytes"]
    assert parse([*named, "Total submission size: 150 bytes"]).bytes_total == 151


@pytest.mark.parametrize(
    ("lines", "seed"),
    [
        (["seed:1337"], 1337),
        (["Hyperparameters:", "  seed: 42", ""], 42),
        (["lr:embed=0.035 batch:786432 seed:42 x:1"], 42),
        (["=== RUN 1 (seed=7) ==="], 7),
        (["    seed = int(os.environ.get('SEED', 1337))"], None),
        (["seed: int = 1337"], None),
        (["step:9/9 train_loss:1.0", "seed:5"], None),
    ],
)
def test_the_seed_is_read_before_training_and_never_from_code(
    lines: list[str], seed: int | None
) -> None:
    assert parse(lines).seed == seed


def test_a_log_of_several_runs_is_taken_apart() -> None:
    one = ["train_loader:dataset:x train_shards:80", "seed:1", "step:0/9 val_loss:7 val_bpb:4"]
    one += ["step:9/9 val_loss:2.5 val_bpb:1.2 train_time:90ms step_avg:10.0ms"]
    one += ["final_int8_roundtrip val_loss:2.5 val_bpb:1.25"]
    two = [line.replace("seed:1", "seed:2").replace("1.25", "1.35") for line in one]
    runs = parse_runs([*one, *two])
    assert [(run.seed, run.val_bpb, run.steps) for run in runs] == [(1, 1.25, 9), (2, 1.35, 9)]
    assert runs[0].stop_reason == "iterations"


# ---- whatever comes


LINES = ["seed:3", "1/9 train_loss: 6.9 train_time: 0.1m tok/s: 7", "Hyperparameters:", "  a: b"]


@given(st.lists(st.one_of(st.binary(max_size=60), st.sampled_from(LINES).map(str.encode))))
def test_no_bytes_make_the_reading_fail(
    tmp_path_factory: pytest.TempPathFactory, lines: list[bytes]
) -> None:
    path = tmp_path_factory.mktemp("log") / "log"
    path.write_bytes(b"\n".join(lines))
    facts = read_log(path)
    assert facts.val_bpb is None
    assert LogReader(path).read() is not None


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "latin-1"])
@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_a_log_is_read_in_whatever_encoding_a_shell_wrote_it(
    tmp_path: Path, encoding: str, end: str
) -> None:
    lines = ["größe", "seed:7", "10 %\r90 %\rpeak memory allocated: 5 MiB", "final_q val_loss:2"]
    lines += ["final_int8_roundtrip val_loss:2.5 val_bpb:1.25000001 eval_time:7ms"]
    path = tmp_path / "log"
    path.write_bytes(end.join(lines).encode(encoding))
    facts = read_log(path)
    assert (facts.seed, facts.val_bpb, facts.peak_memory_mib) == (7, 1.25000001, 5.0)


def test_a_line_without_an_end_takes_no_memory(tmp_path: Path) -> None:
    path = tmp_path / "log"
    with path.open("wb") as file:
        for _ in range(40):
            file.write(b"x" * (1 << 20))
        file.write(b"\nseed:9\n")
    lines = [len(line) for line in LogReader(path)._lines.read()]
    assert lines == [LINE_BYTES, 6]
    assert read_log(path).seed == 9


# ---- as it grows


def test_a_growing_log_is_read_as_events(tmp_path: Path) -> None:
    path = tmp_path / "log"
    reader = LogReader(path)
    assert reader.read() == []
    with path.open("a") as file:
        file.write("Hyperparameters:\n  iterations: 4\n  max_wallclock_seconds: 60.0\n")
        file.write("train_shards: 80\n1/4 train_loss: 6.9 train_time: 0.5m tok/s: 9\n2/4 train_l")
        file.flush()
        events = reader.read()
        assert [event["kind"] for event in events] == ["phase", "config", "phase", "step"]
        assert events[1]["config"]["iterations"] == "4"
        assert events[1]["adapter"] == "log-b"
        step = {"step": 1, "train_loss": 6.9, "train_time_ms": 30_000.0, "progress": 0.5}
        assert step.items() <= events[-1].items()
        file.write("oss: 6.8 train_time: 0.6m\n4/4 val_loss: 2.6 val_bpb: 1.2\n")
        file.write("peak memory allocated: 5 MiB\nSerialized model: 99 bytes\n")
        file.write("Serialized model int6+brotli: 9 bytes\n")
        file.write("final_int6_roundtrip val_loss:2.5 val_bpb:1.11 eval_time:70ms\n")
    events = reader.read()
    assert [event.get("phase", event["kind"]) for event in events] == [
        *("step", "val", "hessians", "pack", "eval", "val")
    ]
    assert (events[1]["metric"], events[-1]["metric"]) == ("plain", "quant")
    assert reader.read() == []


def test_a_run_is_read_by_its_events_where_it_writes_any(tmp_path: Path) -> None:
    attempt = AttemptDir(tmp_path / "größe und platz")
    ranks = attempt.logs / "ranks" / "x" / "attempt_0" / "0"
    ranks.mkdir(parents=True)
    reader = RunReader(attempt)
    assert reader.read() == []
    attempt.stdout.write_text("torchrun says something\n")
    attempt.events.touch()  # as a slot makes it that brings files home
    assert reader.read() == []
    (ranks / "stdout.log").write_text("step:1/9 train_loss:6.9 train_time:9ms step_avg:9.0ms\n")
    (attempt.logs / "own.txt").write_text("seed:5\n")
    assert [event["kind"] for event in reader.read()] == ["phase", "step"]
    assert find_logs(attempt) == [ranks / "stdout.log", attempt.stdout, attempt.logs / "own.txt"]
    attempt.events.write_text('{"kind": "phase", "phase": "setup"}\n')
    assert reader.read() == [{"kind": "phase", "phase": "setup"}]
