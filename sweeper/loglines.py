"""The lines of a log that say a fact: their patterns, found by how a line begins.

Patterns are tried only on lines that begin as they do, so that a log which is mostly other text
(the source of its script, thousands of lines of progress) is read fast. None of them takes more
than 18 digits for a whole number: what is longer is none.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

NUMBER = r"[-+]?(?:\d{1,40}\.?\d{0,40}(?:[eE][-+]?\d{1,5})?|nan|inf)"
MOST_DIGITS = 40
WHOLE = r"\d{1,3}(?:,\d{3}){1,5}|\d{1,18}"
DECIMAL = r"\d{1,18}(?:\.\d{1,18})?"
# What launchers and loggers put before a line, one after the other. Each takes one space with it at
# most: what is then indented is a setting, or source code.
ANSI = re.compile(r"\x1b(?:\[[0-9;?]{0,20}[A-Za-z]|\][^\x07\x1b]{0,200}(?:\x07|\x1b\\))")
SPACE = r"(?: (?=\S))?"
LEVEL = r"(?:\[(?:DEBUG|INFO|WARNING|ERROR)\]|\b(?:DEBUG|INFO|WARNING|ERROR)\b)"
NAME = r"[\w.<>/-]{1,80}"
CLOCK = r"(?:\d{4}[-/]\d\d[-/]\d\d[T ])?\d\d:\d\d:\d\d(?:[.,]\d{1,9})?(?:Z|[+-]\d\d:?\d\d)?"
PREFIXES = re.compile(
    # torchrun's `[default0]:`, PyTorch's `[rank0]: `, a script's `[0] `
    rf"\[(?:[a-z_]{{1,20}}(?P<role>\d{{1,6}})\]:{SPACE}|(?P<rank>\d{{1,6}})\]:? )"
    # srun --label, which pads the numbers of its tasks
    r"| {0,3}(?P<task>\d{1,6}): "
    # a worker of Ray's
    rf"|\((?:{NAME} )?pid=\d{{1,9}}(?:, ip=[\w.:]{{1,60}})?\)(?: |$)"
    # `[2026-04-06 10:00:00] `, `[2026-04-06 10:00:00,123][__main__][INFO] - `
    rf"|\[(?:\d{{4}}-\d\d-\d\d[^\]]{{0,40}}|{CLOCK})\](?:\[{NAME}\]){{0,2}}(?: -(?= ))?{SPACE}"
    rf"|{CLOCK}(?: std(?:out|err) [FP]| ?[|-]|:)?(?: |$)"
    # `INFO `, `name - INFO - `, `INFO     | module:function:12 - `, `INFO:root:`
    rf"|(?:{NAME} [|-] )?{LEVEL}"
    rf"(?: *\| {NAME}:{NAME}:\d{{1,6}} - | *[|-] |:(?:root|__main__|\w{{1,40}}\.[\w.]{{1,80}}):"
    rf"|:{SPACE}| |$)"
)
BEFORE = frozenset("[( 0123456789DIWE")  # what such a line begins with
MOST_PREFIXES = 6
# A mark of the encoding, read as whatever it is there.
MARKS = "\ufeff\ufffd"

# ---- settings

# The weights that are quantised may be others than training has ended with.
AVERAGED = re.compile(r"\b(?:ema|swa|lawa)\b|averag", re.IGNORECASE)
SETTING = re.compile(r"^ {2,}([A-Za-z_]\w{0,99}): ?(.*)$")
TOKEN = re.compile(r"([A-Za-z_]\w{0,99}):(\S+)")

# ---- steps

STEP = re.compile(r"^(\d{1,18})/(\d{1,18})\s+(?=(?:train|val)_loss)")
STEP_A = re.compile(r"^step:(\d{1,18})/(\d{1,18})\s+(?=(?:train|val)_loss)")
# Where the whole number is not said.
BARE_STEP = re.compile(r"^step:(\d{1,18})()\s+(?=(?:train|val)_loss)")
PROSE_STEP = re.compile(r"^[Ss]tep:? +(\d{1,18})/(\d{1,18})(?:: (?=train_loss=)| \| (?=loss ))")
LOSS = re.compile(rf"\b(train_loss|val_loss|val_bpb|loss)(?:[:=]\s*| )({NUMBER})(?![\w.])")
TIME = re.compile(
    rf"\btrain_time(?: \([^)]{{0,80}}\))?:\s*({DECIMAL})(ms|m)\b|\|\s*({DECIMAL})(s)$"
)
MILLISECONDS = {"ms": 1.0, "s": 1000.0, "m": 60_000.0}
STEP_AVG = re.compile(rf"\bstep_avg:\s*({DECIMAL})ms\b")
TOKENS_A_SECOND = re.compile(rf"\btok/s:\s*({DECIMAL})\b")

# A step's pattern -> the form of log that has it.
FORMS = {STEP_A: "log-a", BARE_STEP: "log-a", STEP: "log-b", PROSE_STEP: "prose"}

# ---- scores

LONGEST_NAME = 120
SCORE_NAME = re.compile(r"([A-Za-z_][\w .:+-]*?)[ :]+")
SCORE = re.compile(rf"val_loss[:=]\s*({NUMBER})[, ]+val_bpb[:=]\s*({NUMBER})(?![\w.])")
SCORE_IN_NATS = re.compile(rf"val_bpb=({NUMBER}), val_nats=({NUMBER})(?![\w.])")
PASS_TIME = re.compile(rf"\b(?:eval_time|time|elapsed)[:=]\s*({DECIMAL})(ms|s)\b")
# Scores in bits per byte alone. The name, the number.
BPB_ALONE = re.compile(rf"^((?:EMA|Quantized) BPB(?: \([^)]{{1,40}}\))?): ({NUMBER})$")
COMPRESSED = re.compile(rf"^(compress_roundtrip): .*\bval_bpb_after=({NUMBER})(?![\w.])")
# A pass that adapts the model; what is scored after it is another.
UNSCORED_PASS = re.compile(rf"^(\w{{1,80}}):done elapsed=({DECIMAL})s$")

# ---- what begins a run, where one log holds several

STEPS_BEGIN = ("step:0/", "0/")
BEGINNINGS = (
    *("Hyperparameters:", "val_bpb:enabled", "train_loader:", "train_shards: ", "warmup_step:1/"),
    *("logs/", "=== RUN ", "Starting training", *STEPS_BEGIN),
)
BEGINNING = re.compile(r"^(?:[A-Ztvw=]|step:0/\d|0/\d+ val|logs/\S+\.txt$)")

# ---- a summary: `---`, then `name:    value` line by line

SUMMARY_LINE = re.compile(r"^(\w{1,40}):\s+(\S{1,100})$")


def whole(text: str) -> int:
    """A whole number, also one with commas."""
    return int(text.replace(",", ""))


def number(text: str) -> float:
    """A number; NaN where it is none, or too large for one."""
    value = float(text)
    return value if math.isfinite(value) else math.nan


def decimals(text: str) -> int:
    """How many digits after the point a number is given to, also one with an exponent."""
    digits, _, exponent = text.lower().partition("e")
    return min(MOST_DIGITS, max(0, len(digits.partition(".")[2]) - int(exponent or 0)))


def seconds(text: str) -> float:
    """Seconds as milliseconds."""
    return 1000.0 * float(text)


def count(text: str) -> int | None:
    """A whole number of a summary; None where it is none."""
    return int(text) if text.isdecimal() and len(text) <= 18 else None


def underscored(text: str) -> str:
    return text.replace(" ", "_")


# Name in a summary -> the fact, and how it is read.
OF_SUMMARY: dict[str, tuple[str, Callable[[str], Any]]] = {
    "training_seconds": ("train_time_ms", seconds),
    "peak_vram_mb": ("peak_memory_mib", number),  # MiB, as PyTorch's scripts divide
    "num_steps": ("stopped_at", count),
    "model_bytes": ("bytes_model", count),
    "code_bytes": ("code_plain", count),
    "total_bytes": ("total", count),
}


@dataclass(frozen=True, kw_only=True)
class Found:
    """A score as it stands in a line."""

    name: str
    val_loss: str | None
    val_bpb: str


def strip(line: str) -> str | None:
    """A line without what stands before it; None where another rank than the first says it."""
    line = line.lstrip(MARKS)
    if "\x1b" in line:
        line = ANSI.sub("", line)
    if line[:1] not in BEFORE:
        return line.rstrip()
    for _ in range(MOST_PREFIXES):
        prefix = PREFIXES.match(line)
        if prefix is None:
            break
        if int(prefix["role"] or prefix["rank"] or prefix["task"] or 0) > 0:
            return None
        line = line[prefix.end() :]
    return line.rstrip()


def step(text: str) -> re.Match[str] | None:
    """A step that a line is of: its number, and of how many, empty where that is not said."""
    if text[0] not in "sS":
        return STEP.match(text)
    return STEP_A.match(text) or BARE_STEP.match(text) or PROSE_STEP.match(text)


def score(text: str) -> Found | None:
    """The final metric that a line is of."""
    at = text.find("val_loss")
    if at > 0:
        name, values = SCORE_NAME.fullmatch(text, 0, at), SCORE.match(text, at)
        if name is None or values is None or at > LONGEST_NAME:
            return None
        return Found(name=name[1], val_loss=values[1], val_bpb=values[2])
    if (alone := BPB_ALONE.match(text) or COMPRESSED.match(text)) is not None:
        called = alone[1] if alone.re is BPB_ALONE else f"quantized {alone[1]}"
        return Found(name=called, val_loss=None, val_bpb=alone[2])
    at = text.find("val_bpb")
    values = SCORE_IN_NATS.match(text, at) if 0 < at <= LONGEST_NAME else None
    if values is None or (name := SCORE_NAME.fullmatch(text, 0, at)) is None:
        return None
    return Found(name=name[1], val_loss=values[2], val_bpb=values[1])


def begins(text: str) -> str | None:
    """What of a run's beginning a line is, of BEGINNINGS; None where it is nothing of it."""
    if not text.startswith(BEGINNINGS) or BEGINNING.match(text) is None:
        return None
    return next(each for each in BEGINNINGS if text.startswith(each))


@dataclass(frozen=True, kw_only=True)
class Rule:
    """A line that says a fact in the pattern's first group.

    `first` says that of several such lines the first counts, not the last; `forgets` what is then
    no longer true; `phase` what the run does from here on.
    """

    name: str
    pattern: re.Pattern[str]
    read: Callable[[str], Any] = whole
    first: bool = False
    forgets: str | None = None
    phase: str | None = None


def _rule(name: str, pattern: str, read: Callable[[str], Any] = whole, **more: Any) -> Rule:
    return Rule(name=name, pattern=re.compile(pattern), read=read, **more)


def _model(pattern: str) -> Rule:
    """A packed model. A total is of the model before it, so an earlier one is none of this."""
    return _rule("bytes_model", pattern, forgets="total", phase="eval")


STOPPED = (
    _rule("stop_reason", r"^stopping_early:\s*(\w{1,80})", str),
    _rule("stopped_at", r"^stopping_early:.*?\bstep:?\s*(\d{1,18})\b"),
    _rule(
        "train_time_ms",
        rf"^stopping_early:.*?\btrain_time(?: \([^)]{{0,80}}\))?:\s*({DECIMAL})ms\b",
        float,
    ),
    _rule("train_time_ms", rf"^stopping_early:.*?\bTrain time: ({DECIMAL})s\b", seconds),
)
HESSIANS = (
    _rule(
        "hessian_time_s",
        rf"^(?:gptq|GPTQ)[\w+ -]{{0,20}}: ?(?:collected|calibrated) .{{1,80}}? in ({DECIMAL})s\b",
        float,
    ),
    _rule("calibration_data_s", rf"^gptq: ?generated .{{1,80}}? in ({DECIMAL})s\b", float),
)
PEAK = _rule(
    "peak_memory_mib",
    rf"^[Pp]eak (?:memory|memory allocated): ({DECIMAL}) MiB",
    float,
    phase="hessians",
)
# By the four characters that a line begins with. A model or a total without a name for its coding
# is the uncompressed one. An artifact may be the model alone or all that is submitted.
RULES: dict[str, tuple[Rule, ...]] = {
    "stop": STOPPED,
    "Stop": (
        _rule("stopped_at", r"^Stopping early at step (\d{1,18})\b"),
        _rule("stop_reason", r"^Stopping early at step \d{1,18} \(([^)]{1,60})\)", underscored),
    ),
    "Seri": (
        _rule("raw_model", rf"^Serialized model: ({WHOLE}) bytes", phase="pack"),
        _model(rf"^Serialized model \S.*?: ({WHOLE}) bytes"),
        _model(r"^Serialized model \S.*?\bbytes:(\d{1,18})\b"),
    ),
    "Mode": (_model(rf"^Model blob ?: ({WHOLE}) bytes"),),
    "mode": (
        _model(r"^model:(\d{1,18}) code:\d+ total:\d+\b"),
        _rule("code_plain", r"^model:\d+ code:(\d{1,18}) total:\d+\b"),
        _rule("total", r"^model:\d+ code:\d+ total:(\d{1,18})\b"),
    ),
    "Code": (
        _rule("code_packed", rf"^Code size \(compressed\): ({WHOLE}) bytes"),
        _rule("code_plain", rf"^Code size(?: \((?!compressed\))\w+\))?: ({WHOLE}) bytes"),
    ),
    "Pack": (_rule("code_packed", rf"^Packed code: ({WHOLE}) bytes"),),
    "Raw ": (_rule("code_plain", rf"^Raw model: \d+ bytes, code: ({WHOLE}) bytes"),),
    "Tota": (
        _rule("total", rf"^Total submission(?! size:)(?: size)? [^:]+: ({WHOLE}) bytes"),
        _rule("total", rf"^Total mixed submission: ({WHOLE}) bytes"),
        _rule("total_unnamed", rf"^Total submission(?: size)?: ({WHOLE}) bytes"),
    ),
    "Subm": (_rule("total_unnamed", rf"^Submission size: ({WHOLE}) bytes"),),
    "Arti": (_rule("artifact", rf"^Artifact(?: size)?: ({WHOLE}) bytes"),),
    "peak": (
        PEAK,
        _rule("peak_memory_mib", rf"^peak_vram_mb: ({DECIMAL})$", float, phase="hessians"),
    ),
    "Peak": (PEAK,),
    "GPTQ": HESSIANS,
    "gptq": HESSIANS,
    "tota": (_rule("total_eval_time_s", rf"^total_eval_time:\s*({DECIMAL})s\b", float),),
    "Eval": (_rule("total_eval_time_s", rf"^Evaluation time: ({DECIMAL}) seconds$", float),),
    "Trai": (
        _rule("train_time_ms", rf"^Training time: ({DECIMAL}) seconds$", seconds),
        _rule("train_time_ms", rf"^Training complete in ({DECIMAL})s$", seconds),
        _rule("trained", r"^(Training (?:time: |complete in )\d)", str),
    ),
    "Quan": (
        _rule("bytes_model", rf"^Quantization complete: model size ({WHOLE}) bytes$", phase="eval"),
    ),
    "Worl": (_rule("world_size", r"^World size: (\d{1,18})\b", first=True),),
    "Vali": (_rule("val_tokens", rf"^Validation tokens: ({WHOLE})$", first=True),),
    "Load": (_rule("data_path", r"^Loading data from (\S{1,1000})$", str, first=True),),
    "Data": (_rule("data_path", r"^Data path: (\S{1,1000})$", str, first=True),),
    "val_": (
        _rule("val_path", r"^val_loader:.*?\bpattern=(\S{1,1000})", str, first=True),
        _rule("val_tokens", r"^val_loader:.*\btokens:(\d{1,18})(?!\.?\w)", first=True),
    ),
    "trai": (
        _rule("dataset", r"^train_loader:dataset:(\S{1,1000})", str, first=True),
        _rule("train_time_ms", rf"^train_time: ({DECIMAL})ms step: \d", float),
    ),
    "warm": (_rule("warmup", r"^(warmup_step):", str, phase="warmup"),),
    **dict.fromkeys(
        ("seed", "SEED", "Seed"),
        (_rule("seed", r"^(?:seed|SEED|Seed)[:=] ?(\d{1,18})(?!\.?\w)", first=True),),
    ),
    "=== ": (_rule("seed", r"^=== .*\b(?:seed|SEED|Seed)[:=] ?(\d{1,18})(?!\.?\w)", first=True),),
    "Star": (_rule("seed", r"^Starting training with seed=(\d{1,18})\b", first=True),),
}
# Facts somewhere in a line: the word that must be there, and how it says it.
SOMEWHERE = (
    (
        "world_size",
        _rule("world_size", r"(?:.*[^\w])?world_size:\s*(\d{1,18})(?!\.?\w)", first=True),
    ),
    (
        "train_shards",
        _rule("train_shards", r"(?:.*\s)?train_shards:\s*(\d{1,18})(?!\.?\w)", first=True),
    ),
    ("val_tokens", _rule("val_tokens", r"(?:.*\s)?val_tokens:\s*(\d{1,18})(?!\.?\w)", first=True)),
)
# A model and a total in one line; the name of the coding is before them.
MODEL_AND_TOTAL = (
    _model(rf"^\S+: ({WHOLE}) bytes, total: \d+ bytes"),
    _rule("total", rf"^\S+: \d+ bytes, total: ({WHOLE}) bytes"),
)
