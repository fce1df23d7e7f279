"""What the log of a run says, and why what is not there is missing."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from sweeper.pace import Interval
from sweeper.scores import HEADLINES, Kind, Score, before_quantisation, last_of

# The facts that a log may have, each of which has a reason where it has not.
FACTS = (
    *("seed", "val_bpb", "val_loss", "prequant_val_bpb", "prequant_val_loss", "quant_val_bpb"),
    *("quant_val_loss", "steps", "iterations", "step_avg_ms", "train_time_ms", "hessian_time_s"),
    *("eval_time_s", "bytes_total", "bytes_code", "bytes_model", "peak_memory_mib", "world_size"),
    *("train_shards", "val_tokens", "stop_reason"),
)
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
    sum of those it times, also where a later one of the same name has the score that counts.
    `code_compressed` says that `bytes_code` is of the code as packed, not of the script as it is.
    `last_step` is where training was when the log last told. `steps` are those
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
    """Why each fact that a log may have (FACTS) is missing in this one, by the fact's name."""
    whys = {
        **BEFORE_TRAINING,
        **{name: f"{why}{_cut_off(facts)}" for name, why in AFTER_TRAINING.items()},
        "val_bpb": _why_no_score(facts),
        "val_loss": _why_no_score(facts),
        **_why_not_before(facts),
        **_why_not_plain(facts),
        "steps": _why_no_steps(facts),
        "iterations": "no line of a step says of how many (`step:N/ITERATIONS`)",
        "step_avg_ms": "no line of a step has `step_avg:Nms`, nor are training time and steps "
        f"both known{_cut_off(facts)}",
        "stop_reason": _why_no_stop(facts),
        **facts.untaken,
    }
    return {name: whys[name] for name in FACTS if _missing(getattr(facts, name))}


def _missing(value: object) -> bool:
    return value is None or _is_nan(value)


def _is_nan(value: object) -> bool:
    return isinstance(value, float) and math.isnan(value)


def _why_no_score(facts: LogFacts) -> str:
    if _is_nan(facts.val_bpb):
        return f"`{facts.headline}` is no number"
    if facts.headline is not None:
        return _why_no_loss(facts.headline, facts.val_loss)
    if any(score.kind is Kind.VARIANT for score in facts.scores):
        return "its scores are of variants, none is of the quantised model as it is submitted"
    if facts.scores:
        return "its scores are of the model before quantisation"
    names = ", ".join(kind.value for kind in HEADLINES)
    return f"no line `NAME val_loss:… val_bpb:…` of a final model ({names}){_cut_off(facts)}"


def _why_no_loss(name: str, loss: float | None) -> str:
    return (
        f"the val_loss of `{name}` is no number" if _is_nan(loss) else f"`{name}` has no val_loss"
    )


def _why_not_before(facts: LogFacts) -> dict[str, str]:
    """Of the scores before quantisation."""
    bpb, loss = facts.prequant_val_bpb, facts.prequant_val_loss
    why = "no score of the model before quantisation has a name (`pre-quant…`)"
    why = facts.untaken.get("prequant_val_bpb", f"{why}{_cut_off(facts)}")
    score = before_quantisation(facts.scores)
    name = "the last validation in training" if score is None else score.name
    return {
        "prequant_val_bpb": f"`{name}` is no number" if _is_nan(bpb) else why,
        "prequant_val_loss": why if bpb is None else _why_no_loss(name, loss),
    }


def _why_not_plain(facts: LogFacts) -> dict[str, str]:
    """Of the scores of the quantised model by plain windows."""
    score = last_of(facts.scores, Kind.QUANT)
    if score is None:
        why = "no line `NAME val_loss:… val_bpb:…` of the quantised model by plain windows"
        why = f"{why} (`final_…`, `quantized…`){_cut_off(facts)}"
        return {"quant_val_bpb": why, "quant_val_loss": why}
    return {
        "quant_val_bpb": f"`{score.name}` is no number",
        "quant_val_loss": _why_no_loss(score.name, facts.quant_val_loss),
    }


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
