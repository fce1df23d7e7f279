"""What the log of a run says, and why what is not there is missing."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from sweeper.pace import Interval
from sweeper.scores import HEADLINES, Kind, Score

# Fact -> what was looked for in vain.
BEFORE_TRAINING = {
    "seed": "no line `seed: N` before training",
    "world_size": "no line `world_size:N`",
    "train_shards": "no line `train_shards: N`",
    "val_tokens": "no line `val_loader:… tokens:N` or `val_tokens: N`",
}
AFTER_TRAINING = {
    "train_time_ms": "no line has the training time in ms or in seconds (`train_time:Nms`)",
    "eval_time_s": "no line after quantisation has a time (`eval_time:Nms`, `total_eval_time:Ns`)",
    "hessian_time_s": "no line `GPTQ:collected N Hessians in Ns`",
    "bytes_total": "no line `Total submission size NAME: N bytes`",
    "bytes_code": "no line `Code size: N bytes`",
    "bytes_model": "no line `Serialized model NAME: N bytes`",
    "peak_memory_mib": "no line `peak memory allocated: N MiB`",
}


@dataclass(frozen=True, kw_only=True)
class LogFacts:
    """All that one run's log says; None where it says nothing.

    `metric` is what the headline is, `headline` its name in the log; a score that is no number is
    NaN. `eval_time_s` is the time of all passes after quantisation: as the log sums it, else the
    sum of those it times. `code_compressed` says that `bytes_code` is of the code as packed, not of
    the script as it is. `last_step` is where training was when the log last told. `steps` are those
    that were trained, by the line that ends training; a log in prose may have no such line, and
    then its last step counts. `lines` has the line of the log, from 1, by a fact's name; `untaken`
    why a fact is not known although lines speak of it; `notes` what was odd.
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
    last_step: int | None = None
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
    hessian_time_s: float | None = None
    train_path: str | None = None
    val_path: str | None = None
    intervals: tuple[Interval, ...] = ()
    lines: dict[str, int] = field(default_factory=dict)
    untaken: dict[str, str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()


def reasons(facts: LogFacts) -> dict[str, str]:
    """Why each fact that a log may have is missing in this one, by the fact's name."""
    whys = {
        **BEFORE_TRAINING,
        **{name: f"{why}{_cut_off(facts)}" for name, why in AFTER_TRAINING.items()},
        "val_bpb": _why_no_score(facts),
        "val_loss": _why_no_score(facts),
        "prequant_val_bpb": "no score of the model before quantisation has a name (`pre-quant…`)",
        "steps": _why_no_steps(facts),
        "stop_reason": _why_no_stop(facts),
        **facts.untaken,
    }
    return {name: why for name, why in whys.items() if _missing(getattr(facts, name))}


def _missing(value: object) -> bool:
    return value is None or (isinstance(value, float) and math.isnan(value))


def _why_no_score(facts: LogFacts) -> str:
    if facts.val_bpb is not None and math.isnan(facts.val_bpb):
        return f"`{facts.headline}` is no number"
    if facts.headline is not None:
        return f"`{facts.headline}` has no val_loss"
    if any(score.kind is Kind.VARIANT for score in facts.scores):
        return "its scores are of variants, none is of the quantised model as it is submitted"
    if facts.scores:
        return "its scores are of the model before quantisation"
    names = ", ".join(kind.value for kind in HEADLINES)
    return f"no line `NAME val_loss:… val_bpb:…` of a final model ({names}){_cut_off(facts)}"


def _why_no_steps(facts: LogFacts) -> str:
    if facts.last_step is None:
        return "no line of a step"
    return f"no line ends the training{_cut_off(facts)}"


def _why_no_stop(facts: LogFacts) -> str:
    if facts.last_step is None:
        return "no line of a step"
    return f"no line `stopping_early: …`, nor was the last iteration reached{_cut_off(facts)}"


def _cut_off(facts: LogFacts) -> str:
    """What the log says of training where that is the last thing that it says."""
    later = (facts.peak_memory_mib, facts.bytes_model, facts.bytes_code, facts.headline)
    if (
        facts.last_step is None
        or facts.steps is not None
        or any(each is not None for each in later)
    ):
        return ""
    planned = "" if facts.iterations is None else f" of {facts.iterations}"
    return f"; the log has no more of training than step {facts.last_step}{planned}: cut off"
