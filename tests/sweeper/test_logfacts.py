"""Why what a log does not say is missing."""

from __future__ import annotations

import math
from dataclasses import fields
from typing import Any

import pytest

from sweeper.adapters import parse
from sweeper.logfacts import FACTS, LogFacts, reasons

TRAINED = [
    "seed:1",
    "step:0/9 val_loss:7.0 val_bpb:4.0 train_time:0ms step_avg:0.01ms",
    "step:9/9 val_loss:2.5 val_bpb:1.2 train_time:90ms step_avg:10.0ms",
]
WHOLE = [
    "world_size:8 grad_accum_steps:1",
    "train_loader:dataset:x train_shards:80",
    "val_loader:shards pattern=./x_val_*.bin tokens:62021632",
    *TRAINED,
    "peak memory allocated: 30208 MiB reserved: 30250 MiB",
    "pre-quantization post-ema val_loss:2.4 val_bpb:1.19 eval_time:2019ms",
    "GPTQ:collected 66 Hessians in 9.8s",
    "Code size: 50 bytes",
    "Serialized model int6+brotli: 100 bytes",
    "Total submission size int6+brotli: 150 bytes",
    "final_int6_roundtrip val_loss:2.47 val_bpb:1.205 eval_time:7000ms",
    "final_int6_sliding_window val_loss:2.45 val_bpb:1.195 eval_time:75810ms",
]
AVERAGED = [*TRAINED, "swa: averaging 13 checkpoints", WHOLE[-1]]
# The line that is taken away -> the facts that are then missing.
OF_LINE = {
    "world_size": {"world_size"},
    "train_loader": {"train_shards"},
    "val_loader": {"val_tokens"},
    "seed": {"seed"},
    "step:9": {"steps", "stop_reason", "step_avg_ms"},
    "step:": {"steps", "stop_reason", "step_avg_ms", "iterations", "train_time_ms"},
    "peak": {"peak_memory_mib"},
    "GPTQ": {"hessian_time_s"},
    "Code": {"bytes_code"},
    "Serialized": {"bytes_model"},
    "Total": {"bytes_total"},
    "final_int6_roundtrip": {"quant_val_bpb", "quant_val_loss"},
    "final": {"val_bpb", "val_loss", "eval_time_s", "quant_val_bpb", "quant_val_loss"},
}


def test_where_all_is_said_nothing_is_missing() -> None:
    assert reasons(parse(WHOLE)) == {}


def test_the_last_validation_is_before_quantisation_where_nothing_was_averaged_after_it() -> None:
    left = [line for line in WHOLE if not line.startswith("pre-quant")]
    facts = parse(left)
    assert (facts.prequant_val_bpb, facts.lines["prequant_val_bpb"]) == (1.2, 6)
    place = left.index(next(line for line in left if line.startswith("Serialized")))
    averaged = [*left[:place], "swa: averaging 13 checkpoints", *left[place:]]
    assert parse(averaged).prequant_val_bpb is None
    begun = [*left[:2], "swa:start step:7", *left[2:]]
    assert parse(begun).prequant_val_bpb == 1.2


@pytest.mark.parametrize("start", OF_LINE)
def test_what_is_missing_has_a_reason_and_nothing_else_has(start: str) -> None:
    left = [line for line in WHOLE if not line.startswith(start)]
    assert set(reasons(parse(left))) == OF_LINE[start]


def test_every_fact_has_a_reason_in_an_empty_log_and_where_it_is_no_number() -> None:
    assert tuple(reasons(LogFacts())) == FACTS
    assert reasons(parse([]))["steps"] == "no line of a step"
    assert {each.name for each in fields(LogFacts)} >= set(FACTS)
    numbers = {"val_bpb", "val_loss", "prequant_val_bpb", "quant_val_loss", "step_avg_ms"}
    broken: dict[str, Any] = dict.fromkeys(numbers, math.nan)
    assert tuple(reasons(LogFacts(**broken))) == FACTS


def test_a_score_without_a_loss_or_with_none_that_is_a_number_is_named() -> None:
    lines = [*TRAINED, "pre-quantization val_loss:nan val_bpb:1.19", "Quantized BPB: 1.04"]
    whys = reasons(parse(lines))
    assert whys["prequant_val_loss"] == "the val_loss of `pre-quantization` is no number"
    assert whys["quant_val_loss"] == whys["val_loss"] == "`quantized bpb` has no val_loss"
    averaged = reasons(parse(AVERAGED))
    assert averaged["prequant_val_loss"] == averaged["prequant_val_bpb"]
    broken = reasons(parse([*TRAINED, "final_int8_roundtrip val_loss:2.1 val_bpb:nan"]))
    assert broken["quant_val_bpb"] == broken["val_bpb"] == "`final_int8_roundtrip` is no number"


def test_a_log_that_was_cut_off_says_where() -> None:
    lines = ["seed:1", "step:0/900 val_loss:7 val_bpb:4 train_time:0ms step_avg:0.01ms"]
    whys = reasons(parse([*lines, "step:450/900 train_loss:2.5 train_time:90ms step_avg:1.0ms"]))
    cut = "; the log has no more of training than step 450 of 900: cut off"
    assert whys["steps"] == f"no line ends the training{cut}"
    assert whys["bytes_model"] == f"no line `Serialized model NAME: N bytes`{cut}"
    assert whys["val_bpb"].endswith(cut)
    assert "cut off" not in whys["world_size"]
    # A validation on the way does not end the training; what comes after it does.
    on_the_way = "step:400/900 val_loss:2.5 val_bpb:1.2 train_time:90ms step_avg:1.0ms"
    assert parse([*lines, on_the_way]).steps is None
    assert parse([*lines, on_the_way, "peak memory allocated: 5 MiB"]).steps == 400
    assert "cut off" not in str(reasons(parse([*lines, "peak memory allocated: 5 MiB"])))


@pytest.mark.parametrize(
    ("lines", "fact", "why"),
    [
        (
            [
                "Code size: 50 bytes",
                "Serialized model x: 9 bytes",
                "Total submission size: 7 bytes",
            ],
            "bytes_total",
            "the total without a name (line 3: 7) is not model + code",
        ),
        (["Artifact: 15,870,797 bytes (15.14 MB)"], "bytes_total", "line 1 (`Artifact`) does not"),
        (["Serialized model: 99 bytes"], "bytes_model", "only the uncompressed model has a size"),
        (["gptq:generated 64 sequences in 196.7s"], "hessian_time_s", "line 1 times the calibrat"),
        (["1/9 train_loss: 6.9 train_time: 0.5m tok/s: 9"], "train_time_ms", "timed in tenths of"),
        (AVERAGED, "prequant_val_bpb", "(line 3: 1.2) is not of the weights that were quantised"),
        (["pre_quant_eval val_loss:2 val_bpb:1.1"], "val_bpb", "of the model before quantisation"),
        (["final_ntk_sliding val_loss:2 val_bpb:1.1"], "val_bpb", "of variants"),
        (["Quantized BPB (no XSA): 1.04"], "val_loss", "`quantized bpb (no xsa)` has no val_loss"),
    ],
)
def test_a_line_that_was_not_taken_is_named(lines: list[str], fact: str, why: str) -> None:
    assert why in reasons(parse(lines))[fact]
