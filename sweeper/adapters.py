"""The facts of a run read from the log of a script that knows no contract.

Two formats cover nearly all public logs: A (`step:1/20000 train_loss:6.9370 …`) and B
(`1/20000 train_loss: 6.9370 …`, settings under `Hyperparameters:`). What a log does not say is
None, never guessed. Nothing in a log can make the reading fail: it may be cut off, binary, of
another encoding, or hold the source of its own script.

Which of the final metrics is the headline, sweeper/scores.py decides.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from sweeper.contract import Event, is_finite
from sweeper.scores import (
    Kind,
    Score,
    before_quantisation,
    eval_seconds,
    headline,
    last_of,
    name_score,
)

MOST_SCORES = 200
MOST_SETTINGS = 2_000

NUMBER = r"[-+]?(?:\d+\.?\d*(?:[eE][-+]?\d+)?|nan|inf)"
# What torchrun, a launcher or a logger puts before a line.
PREFIX = re.compile(
    r"^(?:\[(?:default|rank)0\]:)?(?:\[\d{4}-\d\d-\d\d[^\]]{0,40}\] *(?:INFO: *)?)?"
)
OTHER_RANK = re.compile(r"^\[(?:default|rank)[1-9]\d*\]:")
STEP = re.compile(r"^(?:step:)?(\d+)/(\d+)\s+(?=(?:train|val)_loss)")
BARE_STEP = re.compile(r"^step:(\d+)\s+(?=val_loss)")  # where the whole number is not said
PAIR = re.compile(rf"\b([A-Za-z_]\w*)[:=]\s*({NUMBER})(?![\w.])")
TIME = re.compile(r"\btrain_time(?: \([^)]{0,80}\))?:\s*(\d+(?:\.\d+)?)(ms|m)\b")
STEP_AVG = re.compile(r"\bstep_avg:\s*(\d+(?:\.\d+)?)ms\b")
SCORE = re.compile(
    rf"^([A-Za-z_][\w .:+-]*?)[ :]+val_loss[:=]\s*({NUMBER})[, ]+val_bpb[:=]\s*({NUMBER})(?![\w.])"
)
EVAL_TIME = re.compile(r"\beval_time:\s*(\d+(?:\.\d+)?)ms\b")
TOTAL_EVAL_TIME = re.compile(r"^total_eval_time:\s*(\d+(?:\.\d+)?)s\b")
STOPPED = re.compile(r"^stopping_early:\s*(\w+)")
STOPPED_AT = re.compile(r"\bstep:?\s*(\d+)(?:/(\d+))?")
SETTING = re.compile(r"^ {2,}([A-Za-z_]\w*): ?(.*)$")
TOKEN = re.compile(r"([A-Za-z_]\w*):(\S+)")
SEED = re.compile(r"^(?:=== .*\b)?(?:seed|SEED|Seed)[:=] ?(\d+)\b")
# A model or a total without a name for its coding is the uncompressed one.
MODEL_BYTES = re.compile(
    r"^(?:Serialized model \S.*?|Model blob ?|\S+(?=: \d+ bytes, total:))"
    r"(?:: (\d+) bytes|\bbytes:(\d+))"
)
RAW_MODEL = re.compile(r"^Serialized model: \d+ bytes")
CODE_BYTES = re.compile(
    r"^(?:Code size|Packed code|Raw model: \d+ bytes, code)(?: \((\w+)\))?: (\d+) bytes"
)
TOTAL_BYTES = re.compile(
    r"^(?:Total submission(?: size)?(?: ([^:]+))?|Submission size|(\S+): \d+ bytes, total)"
    r": (\d+) bytes"
)
PEAK = re.compile(r"^peak (?:memory|memory allocated): (\d+(?:\.\d+)?) MiB")
# One fact a line or a pair in it; the first group is the number.
COUNTS = {
    "world_size": re.compile(r"\bworld_size:\s*(\d+)\b"),
    "train_shards": re.compile(r"(?:^|\s)train_shards:\s*(\d+)\b"),
    "val_tokens": re.compile(r"(?:^val_loader:.*\btokens:|(?:^|\s)val_tokens:\s*)(\d+)\b"),
}
# What begins a run, where one log holds several.
BEGINNING = re.compile(
    r"^(?:Hyperparameters:|val_bpb:enabled|train_loader:|train_shards: |warmup_step:1/"
    r"|step:0/\d|0/\d+ val|logs/\S+\.txt$|=== RUN )"
)


@dataclass(frozen=True, kw_only=True)
class LogFacts:
    """All that one run's log says; None where it says nothing.

    `metric` is what the headline is, `headline` its name in the log. `eval_time_s` is the time of
    all passes after quantisation: as the log sums it, else the sum of those it times.
    `code_compressed` says that `bytes_code` is of the code as packed, not of the script as it is.
    """

    form: str | None = None
    seed: int | None = None
    metric: str | None = None
    headline: str | None = None
    val_bpb: float | None = None
    val_loss: float | None = None
    prequant_val_bpb: float | None = None
    prequant_val_loss: float | None = None
    quant_val_bpb: float | None = None
    quant_val_loss: float | None = None
    scores: tuple[Score, ...] = ()
    steps: int | None = None
    iterations: int | None = None
    train_time_ms: float | None = None
    step_avg_ms: float | None = None
    eval_time_s: float | None = None
    bytes_total: int | None = None
    bytes_code: int | None = None
    bytes_model: int | None = None
    code_compressed: bool = False
    peak_memory_mib: float | None = None
    world_size: int | None = None
    train_shards: int | None = None
    val_tokens: int | None = None
    stop_reason: str | None = None
    hyperparameters: dict[str, str] = field(default_factory=dict)


class LogParser:
    """Takes a log line by line; what it has seen so far are its `facts`.

    Its memory is bounded whatever it is given: it keeps facts, not lines.
    """

    def __init__(self) -> None:
        self._form: str | None = None
        self._settings: dict[str, str] = {}
        self._scores: dict[str, Score] = {}
        self._seen: dict[str, Any] = {}
        self._counts: dict[str, int] = {}
        self._in_settings = False
        self._phase: str | None = None

    @property
    def trained(self) -> bool:
        """Whether it has seen training: what begins a run after that begins another."""
        return int(self._seen.get("step", 0)) > 1

    def feed(self, line: str) -> list[Event]:
        """Take in one line; what it says as events, as `events.jsonl` would hold them."""
        if OTHER_RANK.match(line):
            return []
        text = PREFIX.sub("", line, count=1).rstrip()
        ended = self._end_settings(text)
        return ended + (self._take(text) if text else [])

    def _take(self, text: str) -> list[Event]:
        if self._in_settings:
            setting = SETTING.match(text)
            if setting is not None and len(self._settings) < MOST_SETTINGS:
                self._settings.setdefault(setting[1].lower(), setting[2].strip()[:500])
            return []
        if text == "Hyperparameters:":
            self._in_settings, self._form = True, self._form or "log-b"
            return self._enter("setup")
        step = STEP.match(text) or BARE_STEP.match(text)
        if step is not None:
            return self._take_step(text, step)
        score = SCORE.match(text)
        if score is not None:
            return self._take_score(text, score)
        return self._take_fact(text)

    def _end_settings(self, text: str) -> list[Event]:
        """Leave the block of settings at the first line that is none; they are the config."""
        if not self._in_settings or SETTING.match(text):
            return []
        self._in_settings = False
        return [{"kind": "config", "adapter": self._form, "config": dict(self._settings)}]

    def _take_step(self, text: str, match: re.Match[str]) -> list[Event]:
        step, bare = int(match[1]), match.re is BARE_STEP
        self._form = self._form or ("log-a" if text.startswith("step:") else "log-b")
        if not bare:
            self._seen["iterations"] = int(match[2])
        self._seen["step"] = step
        values = {name: float(value) for name, value in PAIR.findall(text)}
        spent = _milliseconds(text)
        average = STEP_AVG.search(text)
        if average is not None and step > 0:
            self._seen["step_avg_ms"] = float(average[1])
        if "val_loss" in values:
            self._seen["val_step"] = step
            # Format B times in tenths of a minute: good for progress, not a fact.
            if spent is not None and text.startswith("step:"):
                self._seen["train_time_ms"] = spent
            fields = {"val_loss": values["val_loss"], "val_bpb": values.get("val_bpb")}
            return [{"kind": "val", "step": step, **fields, "metric": "plain"}]
        event = {
            "kind": "step",
            "step": step,
            "iterations": self._seen.get("iterations"),
            "train_loss": values.get("train_loss"),
            "train_time_ms": spent,
            "step_avg_ms": self._seen.get("step_avg_ms"),
            "progress": self._progress(step, spent),
        }
        return [*self._enter("train"), event]

    def _progress(self, step: int, spent: float | None) -> float:
        """The share of the training budget that is used, of its steps or of its time."""
        parts = [step / max(1, int(self._seen.get("iterations", 0) or step or 1))]
        limit = _as_float(self._settings.get("max_wallclock_seconds"))
        if spent is not None and limit:
            parts.append(spent / 1000 / limit)
        return min(1.0, max(parts))

    def _take_score(self, text: str, match: re.Match[str]) -> list[Event]:
        name, kind = name_score(match[1])
        if kind is None:
            return []
        digits = len(match[3].partition(".")[2])
        timed = EVAL_TIME.search(text)
        earlier = self._scores.get(name)
        seconds = earlier.eval_time_s if earlier is not None else None
        if timed is not None:
            seconds = float(timed[1]) / 1000
        score = Score(
            name=name,
            kind=kind,
            val_loss=float(match[2]),
            val_bpb=float(match[3]),
            eval_time_s=seconds,
            digits=digits,
        )
        if earlier is not None and earlier.digits > digits:
            score = earlier
        if earlier is not None or len(self._scores) < MOST_SCORES:
            self._scores.pop(name, None)  # the last one comes last
            self._scores[name] = score
        event = {"kind": "val", "val_loss": score.val_loss, "val_bpb": score.val_bpb}
        step = self._seen.get("step")
        return [event | {"step": step, "metric": kind.value, "eval_time_s": seconds}]

    def _take_fact(self, text: str) -> list[Event]:
        seen = self._seen
        if (stopped := STOPPED.match(text)) is not None:
            seen["stop_reason"] = stopped[1]
            if (at := STOPPED_AT.search(text)) is not None:
                seen["stopped_at"] = int(at[1])
            if (spent := _milliseconds(text)) is not None:
                seen["train_time_ms"] = spent
        elif (model := MODEL_BYTES.match(text)) is not None:
            seen["bytes_model"] = int(model[1] or model[2])
            seen.pop("total", None)  # of an earlier model; this one's follows
            self._take_total(text)
            return self._enter("eval")
        elif RAW_MODEL.match(text):
            return self._enter("pack")
        elif (code := CODE_BYTES.match(text)) is not None:
            packed = code[1] == "compressed" or text.startswith("Packed")
            seen["code_packed" if packed else "code_plain"] = int(code[2])
        elif self._take_total(text):
            return []
        elif (peak := PEAK.match(text)) is not None:
            seen["peak_memory_mib"] = float(peak[1])
            return self._enter("hessians")
        elif (whole := TOTAL_EVAL_TIME.match(text)) is not None:
            seen["total_eval_time_s"] = float(whole[1])
        elif text.startswith("warmup_step:"):
            return self._enter("warmup")
        self._take_pairs(text)
        return []

    def _take_total(self, text: str) -> bool:
        total = TOTAL_BYTES.match(text)
        if total is not None:
            self._seen["total" if total[1] or total[2] else "total_unnamed"] = int(total[3])
        return total is not None

    def _take_pairs(self, text: str) -> None:
        """Counts, the seed, and the settings that format A prints as `name:value name:value`."""
        for name, pattern in COUNTS.items():
            if (count := pattern.search(text)) is not None:
                self._counts.setdefault(name, int(count[1]))
        if self._seen.get("step", 0) > 0:
            return
        if (seed := SEED.match(text)) is not None:
            self._seen.setdefault("seed", int(seed[1]))
        words = text.split()
        pairs = [TOKEN.fullmatch(word) for word in words]
        for pair in pairs:
            if pair is None:
                continue
            if pair[1] == "seed" and pair[2].isdecimal():
                self._seen.setdefault("seed", int(pair[2]))
            if all(pairs) and self._form != "log-b" and len(self._settings) < MOST_SETTINGS:
                self._settings.setdefault(pair[1].lower(), pair[2][:500])

    def _enter(self, phase: str) -> list[Event]:
        if phase == self._phase:
            return []
        self._phase = phase
        return [{"kind": "phase", "phase": phase}]

    def facts(self) -> LogFacts:
        """What the lines so far say."""
        seen, scores = self._seen, list(self._scores.values())
        head, before = headline(scores), before_quantisation(scores)
        plain = last_of(scores, Kind.QUANT)
        steps, spent = self._steps(), seen.get("train_time_ms")
        return LogFacts(
            form=self._form,
            seed=seen.get("seed", _as_int(self._settings.get("seed"))),
            metric=head.kind.value if head else None,
            headline=head.name if head else None,
            val_bpb=head.val_bpb if head else None,
            val_loss=head.val_loss if head else None,
            prequant_val_bpb=before.val_bpb if before else None,
            prequant_val_loss=before.val_loss if before else None,
            quant_val_bpb=plain.val_bpb if plain else None,
            quant_val_loss=plain.val_loss if plain else None,
            scores=tuple(scores),
            steps=steps,
            iterations=seen.get("iterations"),
            train_time_ms=spent,
            step_avg_ms=spent / steps if spent and steps else seen.get("step_avg_ms"),
            eval_time_s=seen.get("total_eval_time_s", eval_seconds(scores)),
            peak_memory_mib=seen.get("peak_memory_mib"),
            stop_reason=self._stop_reason(steps),
            hyperparameters=dict(self._settings),
            world_size=self._counted("world_size"),
            train_shards=self._counted("train_shards"),
            val_tokens=self._counted("val_tokens"),
            **self._sizes(),
        )

    def _steps(self) -> int | None:
        """The last step: of the early stop, else of the last validation, which comes at the end."""
        seen = self._seen
        if "stopped_at" in seen:
            return int(seen["stopped_at"])
        step = seen.get("step")
        if step is None or step not in (seen.get("val_step"), seen.get("iterations")):
            return None
        return int(step)

    def _stop_reason(self, steps: int | None) -> str | None:
        if "stop_reason" in self._seen:
            return str(self._seen["stop_reason"])
        return "iterations" if steps and steps == self._seen.get("iterations") else None

    def _sizes(self) -> dict[str, Any]:
        """The bytes that count: of the packed model, of the code as it counts, and both."""
        seen = self._seen
        model, total = seen.get("bytes_model"), seen.get("total")
        code = seen.get("code_packed", seen.get("code_plain"))
        # The unnamed total is of the uncompressed model, unless it adds up.
        if total is None and model is not None and code is not None:
            unnamed = seen.get("total_unnamed")
            total = unnamed if unnamed == model + code else None
        return {
            "bytes_model": model,
            "bytes_code": code,
            "bytes_total": total,
            "code_compressed": "code_packed" in seen,
        }

    def _counted(self, name: str) -> int | None:
        return self._counts.get(name, _as_int(self._settings.get(name)))


def parse(lines: Iterable[str]) -> LogFacts:
    """What a log of one run says."""
    parser = LogParser()
    for line in lines:
        parser.feed(line)
    return parser.facts()


def parse_runs(lines: Iterable[str]) -> list[LogFacts]:
    """What a log says that may hold several runs, one after the other, in their order."""
    parsers = [LogParser()]
    for line in lines:
        if parsers[-1].trained and BEGINNING.match(PREFIX.sub("", line, count=1)):
            parsers.append(LogParser())
        parsers[-1].feed(line)
    return [parser.facts() for parser in parsers]


def _milliseconds(text: str) -> float | None:
    """The training time in a line: format A gives milliseconds, B minutes on its steps."""
    found = TIME.search(text)
    if found is None:
        return None
    return float(found[1]) * (1.0 if found[2] == "ms" else 60_000.0)


def _as_int(text: str | None) -> int | None:
    return int(text) if text is not None and text.isdecimal() and len(text) < 20 else None


def _as_float(text: str | None) -> float | None:
    try:
        value = float(text or "nan")
    except ValueError:
        return None
    return value if is_finite(value) else None
