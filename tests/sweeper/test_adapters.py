"""Logs of scripts that know no contract: real ones against their truth, and how they are read."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from sweeper.adapters import MOST_RUNS, LogFacts, parse, parse_runs
from sweeper.logfacts import FACTS
from sweeper.logreader import Lines, read_log, read_runs
from sweeper.scores import Kind, seconds_of
from sweeper.seen import MOST_PASSES

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
# Files with more than one run where the truth is of one: a terminal session, and others' claims.
SESSIONS = ("script.txt",)
# Where truth is the claim and that is not the score of the highest priority.
OTHER_CLAIM = {
    "pr116__2026-03-19_MSEQuant_SlidingWindow_EMA": "claims plain windows, has sliding ones too",
    "pr525__2026-03-23_10L_Optimized": "has no score where its claim has another log",
}
# Its weights were averaged after the last validation; it names the state that was chosen.
OTHER_BEFORE = ("pr1384__", "pr1474__")
# What the truth's reader has not found or not taken, and is there.
FOUND_HERE = {
    ("pr1474__", "bytes_model"): "Serialized model NAME:FILE bytes:N",
    ("pr1747__", "bytes_total"): "Total mixed submission: N bytes, which is model + code",
    ("pr702__2", "bytes_model"): "model:N code:N total:N",
    ("pr702__2", "bytes_code"): "model:N code:N total:N",
    ("pr702__2", "bytes_total"): "model:N code:N total:N",
    ("pr1687__", "world_size"): "World size: N",
    ("pr1335__", "peak_memory_mib"): "peak_vram_mb: N",
}


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


def test_every_real_log_is_read_as_a_person_reads_it() -> None:
    checked = 0
    mistakes: list[str] = []
    for folder in folders():
        for run, facts in read_truth(folder):
            mistakes += wrong(folder, run, facts)
            checked += 1
            if run["seed_from"] == "log" and facts.seed != run["seed"]:
                mistakes.append(f"{folder.name}/{run['file']}: seed {facts.seed}")
            before = run["pre_quant_val_bpb"]
            if folder.name.startswith(OTHER_BEFORE):
                continue
            if before is not None and abs((facts.prequant_val_bpb or 0) - before) > 1e-8:
                mistakes.append(f"{run['file']}: before {facts.prequant_val_bpb}, not {before}")
            assert facts.form in ("log-a", "log-b", "prose")
    assert mistakes == []
    assert checked > 125


def test_a_score_has_its_line_its_digits_and_the_time_of_its_pass() -> None:
    timed = 0
    for folder in folders():
        for run, facts in read_truth(folder):
            if folder.name in OTHER_CLAIM:
                continue
            head = next(score for score in facts.scores if score.name == facts.headline)
            where = f"{folder.name}/{run['file']}"
            assert facts.lines["val_bpb"] == head.line == run["final_line_no"], where
            assert head.val_bpb_text == run["val_bpb_str"], where
            assert head.val_loss_text == run["val_loss_str"], where
            if run["eval_time_ms"] is not None:
                # Where no pass is timed, the log has the time of the whole evaluation.
                seconds = seconds_of(head, facts.scores) or facts.eval_time_s or 0.0
                assert facts.eval_time_s is not None
                assert seconds == pytest.approx(run["eval_time_ms"] / 1000), where
                assert facts.eval_time_s >= seconds - 0.1, where  # a sum, or to a tenth as summed
                timed += 1
    assert timed > 110


def test_the_line_of_every_fact_says_it() -> None:
    said = 0
    for folder in folders():
        for run, facts in read_truth(folder):
            lines = list(Lines(folder / run["file"]).read(whole=True))
            for name, line in facts.lines.items():
                value = getattr(facts, name)
                if name in ("eval_time_s", "stop_reason") or value is None:
                    continue  # a sum, and what may follow from the last step
                text = lines[line - 1].replace(",", "").lower()
                said += 1
                found = (
                    re.search(rf"(?<![\d.]){re.escape(way)}0*(?!\d)", text) for way in ways(value)
                )
                assert any(found), (folder.name, name, value, text)
    assert said > 1800


def ways(value: object) -> list[str]:
    """How a log may write a value."""
    if isinstance(value, str):
        return [value.lower()]
    assert isinstance(value, int | float)
    return [f"{value:g}", f"{value:.4f}", str(value), f"{value:.0f}", f"{value / 1000:g}"]


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
    assert facts.val_path == "./data/datasets/fineweb10B_sp4096/fineweb_val_*.bin"
    assert facts.train_path == "./data/datasets/fineweb10B_sp4096/fineweb_train_*.bin"
    steps = [(interval.begin, interval.end) for interval in facts.intervals]
    assert (steps[0], steps[-1][0]) == ((1, 2), 4500)
    # To a tenth of a minute, the log says the same; its clock runs on.
    assert sum(interval.ms for interval in facts.intervals) == pytest.approx(9.0 * 60_000, rel=0.02)


def test_a_failed_adaptation_is_no_headline() -> None:
    if not SHARED.exists():
        pytest.skip("reference data logs is not here")
    facts = read_log(SHARED / RECORD / "train_seed42.log")
    assert facts.val_bpb == 1.08938974
    assert [score.val_bpb for score in facts.scores if score.kind is Kind.TTT][-1] == 1.336032
    # The pass is timed twice, by two clocks; it counts once.
    assert facts.eval_time_s == pytest.approx(405.41 + 7.7 + 76.7, abs=0.5)


def test_the_seconds_of_calibration_are_read_where_a_log_states_them() -> None:
    found: dict[str, set[float | None]] = {}
    for folder in folders():
        for _, facts in read_truth(folder):
            found.setdefault(folder.name, set()).add(facts.hessian_time_s)
    stated = {name for name, times in found.items() if times != {None}}
    names = ("pr2080_", "pr2039_", "pr790_", "pr991_", "pr1812_", RECORD)
    assert all(any(each.startswith(name) for each in stated) for name in names)
    assert all(0 < time < 20 for name in stated for time in found[name] if time is not None)
    # Generating the data for it is not it, and a log with time stamps does not state seconds.
    assert not any(name.startswith(("main__2026-03-25", "pr702_", "pr1747_")) for name in stated)


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


def test_a_summary_is_the_result_of_a_script_that_ends_with_one() -> None:
    training = ["step:0/9 val_loss:7 val_bpb:4", "step:9/9 val_loss:2 val_bpb:1.2 train_time:90ms"]
    block = ["---", "val_bpb:          1.197130", "val_loss:         2.021304"]
    block += ["training_seconds: 10.1", "peak_vram_mb:     7188.3", "model_bytes:      15"]
    block += ["code_bytes:       7", "total_bytes:      22", "under_16mb:       True"]
    before = "compress_roundtrip: vq G=2 val_bpb_before=1.1971 val_bpb_after=1.2046 delta=+0.0075"
    facts = parse([*training, "swa:post_eval val_loss:2.0213 val_bpb:1.1971", before, *block])
    assert (facts.metric, facts.val_bpb, facts.val_loss) == ("summary", 1.19713, 2.021304)
    assert (facts.prequant_val_bpb, facts.quant_val_bpb) == (1.1971, 1.2046)
    assert (facts.bytes_model, facts.bytes_code, facts.bytes_total) == (15, 7, 22)
    assert (facts.peak_memory_mib, facts.train_time_ms) == (7188.3, 90)  # what is more exact
    assert (facts.lines["val_bpb"], facts.lines["val_loss"]) == (6, 7)
    # Not what a script's source or its settings look like, and not before a score by its name.
    assert parse([*block, *training]).val_bpb is None
    assert parse([*training, *block[1:]]).val_bpb is None
    assert parse([*training, *(f"    {line}" for line in block)]).val_bpb is None
    sliding = "final_sliding_window val_loss:2.0 val_bpb:1.19"
    assert parse([*training, sliding, *block]).val_bpb == 1.19


def test_prose_says_the_same_facts() -> None:
    stamp = "[2026-04-19 10:15:22] "
    lines = ["Starting training with seed=42", "Loading data from ./data/x"]
    lines += ["Step 0/4550: train_loss=4.8, lr=0.0020", "Step 4400/4550: train_loss=1.2, lr=0.0009"]
    lines += ["Quantization complete: model size 900 bytes"]
    lines += ["Sliding window evaluation: val_bpb=1.0791, val_nats=2.7892"]
    lines += ["Final evaluation with TTT: val_bpb=1.0783, val_nats=2.7845"]
    lines += ["Artifact size: 950 bytes (15.23 MB)", "Training time: 588 seconds"]
    lines += ["Evaluation time: 498 seconds", "Seed: 43"]
    facts = parse([stamp + line for line in lines])
    assert (facts.form, facts.seed, facts.train_path) == ("prose", 42, "./data/x")
    assert (facts.metric, facts.val_bpb, facts.val_loss) == ("ttt", 1.0783, 2.7845)
    assert (facts.bytes_model, facts.bytes_total) == (900, 950)
    assert (facts.train_time_ms, facts.eval_time_s) == (588_000, 498)
    # Its last step; how many there were it does not say, so they have no mean time.
    assert (facts.steps, facts.iterations, facts.step_avg_ms) == (4400, 4550, None)
    assert parse([stamp + line for line in lines[:4]]).steps is None


def test_a_pass_counts_once_in_the_time_of_the_evaluation() -> None:
    ttt = "legal_ttt:done val_loss=1.9 val_bpb=1.090641 elapsed=408.0s"
    same = "final_legal_ttt val_loss:1.9 val_bpb:1.0906 eval_time:408500ms"
    sliding = "final_sliding_window val_loss:1.95 val_bpb:1.12 eval_time:70000ms"
    before = "pre-quantization post-ema val_loss:1.9 val_bpb:1.09 eval_time:9000ms"
    assert parse([before, sliding, ttt, same]).eval_time_s == pytest.approx(478.5)
    assert parse([before, ttt]).eval_time_s == 408.0
    # A pass that adapts the model and has its score later; and one whose score has its time.
    assert parse(["ttt:done elapsed=466.6s", sliding]).eval_time_s == pytest.approx(536.6)
    assert parse(["ttt:done elapsed=408.0s", same]).eval_time_s == 408.5
    assert parse([sliding, "total_eval_time:508.8s"]).eval_time_s == 508.8


def test_a_log_of_several_runs_is_taken_apart() -> None:
    one = ["train_loader:dataset:x train_shards:80", "seed:1", "step:0/9 val_loss:7 val_bpb:4"]
    one += ["step:9/9 val_loss:2.5 val_bpb:1.2 train_time:90ms step_avg:10.0ms"]
    one += ["final_int8_roundtrip val_loss:2.5 val_bpb:1.25"]
    two = [line.replace("seed:1", "seed:2").replace("1.25", "1.35") for line in one]
    runs = parse_runs([*one, *two])
    assert [(run.seed, run.val_bpb, run.steps) for run in runs] == [(1, 1.25, 9), (2, 1.35, 9)]
    assert runs[0].stop_reason == "iterations"
    assert [run.lines["val_bpb"] for run in runs] == [5, 10]  # of the file


# ---- what looks like another run's beginning


RUN = [
    "train_loader:dataset:x train_shards:80",
    "seed:1337",
    "step:0/20000 val_loss:6.9 val_bpb:4.1 train_time:0ms step_avg:0.01ms",
    "step:100/20000 train_loss:3 train_time:4000ms step_avg:40ms",
    "step:13700/20000 val_loss:2 val_bpb:1.2 train_time:700051ms step_avg:51ms",
    "stopping_early: wallclock_cap train_time:700051ms step:13700/20000",
    "peak memory allocated: 10000 MiB reserved: 10 MiB",
    "Serialized model int8+zlib: 15800000 bytes",
    "final_int8_zlib_roundtrip val_loss:2.07 val_bpb:1.2244 eval_time:1400ms",
]
AGAIN = [
    *(["train_shards: 80"], ["train_loader:dataset:x train_shards:80"], ["val_bpb:enabled x=y"]),
    *(["Hyperparameters:", "  seed: 42", ""], ["warmup_step:1/10"], ["logs/x.txt"]),
    ["step:0/20000 val_loss:2 val_bpb:1.2 train_time:0ms step_avg:0.01ms"],
]


@pytest.mark.parametrize("again", AGAIN)
@pytest.mark.parametrize("place", [5, 6, 7, 8])
def test_what_looks_like_a_beginning_after_training_begins_no_run(
    again: list[str], place: int
) -> None:
    (run,) = parse_runs([*RUN[:place], *again, *RUN[place:]])
    (plain,) = parse_runs(RUN)
    for fact in FACTS:
        assert getattr(run, fact) == getattr(plain, fact), fact
    assert (run.train_time_ms, run.last_step, run.seed) == (700_051, 13_700, 1337)
    assert run.lines["val_bpb"] == len(RUN) + len(again)


@pytest.mark.parametrize("again", AGAIN)
def test_two_runs_of_which_the_first_opens_its_data_again_are_two(again: list[str]) -> None:
    first = [*RUN[:7], *again, *RUN[7:]]
    second = [line.replace("1337", "7").replace("1.2244", "1.3344") for line in RUN]
    runs = parse_runs([*first, *second, *again])
    assert [(run.seed, run.val_bpb, run.bytes_model) for run in runs] == [
        *((1337, 1.2244, 15_800_000), (7, 1.3344, 15_800_000))
    ]
    assert runs[1].lines["seed"] == len(first) + 2


def test_a_smoke_run_and_a_broken_start_are_apart_from_the_run_that_follows() -> None:
    smoke = [*RUN[:3], "step:30/30 train_loss:3 train_time:900ms step_avg:30ms"]
    late = [*RUN[:2], *RUN[3:]]  # the first step that it logs comes after the smoke run's last
    for following in (RUN, late):
        runs = parse_runs([*smoke, *following])
        assert [(run.steps, run.val_bpb) for run in runs] == [(30, None), (13_700, 1.2244)]
    # It broke off at the first step, and only its seed tells that it was another start.
    start = [*RUN[:3], "step:1/20000 train_loss:6.9 train_time:40ms step_avg:40ms"]
    broken = [line.replace("1337", "7") for line in start]
    assert [run.seed for run in parse_runs([*broken, *RUN])] == [7, 1337]
    assert [run.seed for run in parse_runs([*broken[:2], *RUN])] == [1337]
    assert [run.seed for run in parse_runs([*start, *RUN])] == [1337]


def test_a_run_that_was_resumed_is_one() -> None:
    resumed = "step:200/20000 train_loss:3 train_time:8000ms step_avg:40ms"
    (run,) = parse_runs([*RUN[:4], *RUN[:2], resumed, *RUN[4:]])
    assert (run.seed, run.steps, run.val_bpb) == (1337, 13_700, 1.2244)
    other = [line.replace("1337", "7") for line in RUN[:2]]
    assert [run.seed for run in parse_runs([*RUN[:4], *other, resumed, *RUN[4:]])] == [1337, 7]


# ---- scores


def test_a_score_before_training_counts_only_where_no_training_follows() -> None:
    usage = ["usage:", "legal_ttt val_loss:1.2 val_bpb:0.5 eval_time:9ms", "total_eval_time:9s"]
    for lines in ([*usage, *RUN], [*usage, *(line for line in RUN if "train_loss" not in line)]):
        facts = parse(lines)
        assert (facts.headline, facts.val_bpb, facts.eval_time_s) == (
            *("final_int8_zlib_roundtrip", 1.2244, 1.4),
        )
    assert parse([*usage, *RUN[:4]]).val_bpb is None
    # Where a model is only evaluated.
    assert parse([*usage, RUN[2]]).val_bpb == parse(usage).val_bpb == 0.5


@pytest.mark.parametrize(
    ("number", "digits"),
    [
        *(("1.2244", 4), ("9e-05", 5), ("1.5e-3", 4), ("1.0926e+00", 4), ("1.09264E1", 4)),
        *(("12e3", 0), ("1.5e2", 0), ("1", 0), ("1e-99999", 40), ("nan", 0)),
    ],
)
def test_the_digits_of_a_score_are_those_after_its_point(number: str, digits: int) -> None:
    (score,) = parse([f"final_int8_roundtrip val_loss:2.5 val_bpb:{number}"]).scores
    assert score.digits == digits


def test_passes_that_have_one_name_and_several_scores_count_each() -> None:
    first = "legal_ttt val_loss:2.5 val_bpb:1.09 eval_time:400000ms"
    second = "legal_ttt val_loss:2.4 val_bpb:1.08 eval_time:400500ms"
    facts = parse([*RUN[:4], first, second])
    assert (facts.val_bpb, facts.eval_time_s, len(facts.scores)) == (1.08, 800.5, 1)
    assert facts.notes == (
        "`legal_ttt` was scored twice, each time otherwise, first in line 5: that of line 6 counts,"
        " and the time of all",
    )
    # Twins count once, also one that is printed again at the end, and as they are rounded.
    twin = "legal_ttt_exact val_loss:2.4 val_bpb:1.08000123 eval_time:400500ms"
    assert parse([*RUN[:4], first, second, twin, first]).eval_time_s == 800.5
    assert parse([*RUN[:4], second, twin]).notes == ()
    # A training that begins again has passes of its own.
    assert parse([*RUN[:4], first, *RUN[:4], second]).eval_time_s == 400.5
    before = "pre-quantization val_loss:2.5 val_bpb:1.# eval_time:9ms"
    only = parse([before.replace("#", "1"), before.replace("#", "2")])
    assert (only.eval_time_s, only.notes) == (None, ())


def test_the_time_of_very_many_passes_is_kept_whole() -> None:
    lines = [f"final_q{n % 300} val_loss:2 val_bpb:{n + 1}.5 eval_time:250ms" for n in range(1200)]
    facts = parse(lines)
    assert facts.eval_time_s == 300
    assert len(facts.notes) <= MOST_PASSES


# ---- what stands before a line


STARTS = [
    *("[default0]:", "[rank0]:", "[rank0]: ", "[0] ", "[worker0]:", "0: ", " 0: ", "  0: "),
    *("0: [rank0]: ", "(train pid=123) ", "(RayTrainWorker pid=4, ip=10.0.0.1) ", "INFO: "),
    *("2026-04-06 10:00:00,123 INFO ", "2026-04-06 10:00:00,123 - __main__ - INFO - ", "INFO "),
    *("[2026-04-06 10:00:00] ", "[2026-04-06 10:00:00] INFO: ", "[10:00:00] ", "10:00:00 | "),
    *("2026-04-06T10:00:00.123456Z ", "2026-04-06T10:00:00.1Z stdout F ", "INFO:root:"),
    *("[2026-04-06 10:00:00,123][__main__][INFO] - ", "2026/04/06 10:00:00 ", "INFO:a.b:"),
    *("2026-04-06 10:00:00.123 | INFO     | __main__:main:12 - ", "[INFO] ", "\x1b[32m"),
    *("2026-04-06 10:00:00+00:00 [INFO] ", "\x1b[36m(train pid=7)\x1b[0m ", "\x1b[1;31m0: "),
]
FORMAT_B = [
    *("Hyperparameters:", "  seed: 42", "  recur_layers: 4,5", "", "train_shards: 80"),
    *("0/20000 val_loss: 6.9 val_bpb: 4.1", "1/20000 train_loss: 6.9 train_time: 0.0m tok/s: 9"),
    *("    final_int6 val_loss:2.5 val_bpb:1.2", "World size: 8"),
    "5410/20000 val_loss: 2.6403 val_bpb: 1.1476",
    "stopping_early: wallclock_cap train_time: 590078ms step: 5410/20000",
    "final_int6_sliding_window val_loss:2.51393353 val_bpb:1.09269834 eval_time:75810ms",
]


@pytest.mark.parametrize("start", STARTS)
def test_what_launchers_put_before_a_line_hides_nothing(start: str) -> None:
    for lines in (RUN, FORMAT_B):
        assert parse([start + line for line in lines]) == parse(lines)


@pytest.mark.parametrize(
    "start", ["[rank1]: ", "[default12]:", "1: ", " 10: ", "[3] ", "0: [rank1]:"]
)
def test_what_other_ranks_say_is_not_read(start: str) -> None:
    score = "final_int6_sliding_window val_loss:2.5 val_bpb:1.2"
    assert parse([*FORMAT_B, start + score]) == parse(FORMAT_B)
    assert parse([start + line for line in FORMAT_B]) == LogFacts()


def test_of_a_log_of_very_many_runs_the_rest_is_noted() -> None:
    one = ["step:0/9 val_loss:7 val_bpb:4", "step:9/9 train_loss:2 train_time:9ms step_avg:1ms"]
    runs = parse_runs(one * (MOST_RUNS + 5))
    assert len(runs) == MOST_RUNS
    assert [run.notes for run in runs[:-1]] == [()] * (MOST_RUNS - 1)
    assert runs[-1].notes == ("the log goes on after 1,000 runs, from line 2,001: not read",)
    assert len(parse_runs(one * MOST_RUNS)) == MOST_RUNS
    assert parse_runs(one * MOST_RUNS)[-1].notes == ()
