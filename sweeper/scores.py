"""What the final metrics of a log are, by their names, and which of them is the headline.

Names lie (`final_int8_zlib_roundtrip_exact` may carry a sliding score), so the headline is chosen
by what scores there are: test-time training before a mixture with a cache or n-grams, before
sliding windows, before what the script sums up as its result, before plain windows of the quantised
model. Among equals the last one counts, and of twins the one with more digits. Scores before
quantisation are never it, nor those of a variant that is only shown beside the score (NTK, two
passes), nor those of an adaptation that failed: that made the model worse than plain windows find
it.
"""

from __future__ import annotations

import enum
import re
from collections.abc import Collection
from dataclasses import dataclass, replace


class Kind(enum.StrEnum):
    """What a score is; the value is the metric's name in a result."""

    PREQUANT = "prequant"
    VARIANT = "variant"
    QUANT = "quant"
    SUMMARY = "summary"
    SLIDING = "sliding"
    MIXED = "mixed"
    TTT = "ttt"


# By name, the first that matches; a name that matches none says nothing of the final model.
KINDS = (
    (re.compile(r"pre-?_?quant|post[-_]ema|post_train|_or_swa|selected|candidate"), Kind.PREQUANT),
    (re.compile(r"^(?:diagnostic )?(?:post_)?(?:ema|swa|raw)(?:_|:|\b)"), Kind.PREQUANT),
    (re.compile(r"ntk|two_pass"), Kind.VARIANT),
    (re.compile(r"ttt"), Kind.TTT),
    (re.compile(r"ppm|ngram|cache|mixer|hedge"), Kind.MIXED),
    (re.compile(r"sliding"), Kind.SLIDING),
    (re.compile(r"^(?:final|(?:diagnostic )?quantized)"), Kind.QUANT),
)
UNADAPTED = (Kind.SLIDING, Kind.QUANT)
HEADLINES = (Kind.TTT, Kind.MIXED, Kind.SLIDING, Kind.SUMMARY, Kind.QUANT)
# Of the scores before quantisation, the closest to what is quantised first.
CLOSEST = (
    re.compile(r"pre-?_?quant"),
    re.compile(r"post[-_]ema|_or_swa"),
    re.compile(r"selected"),
)
DETAIL = re.compile(r"\S+:[-+]?\d\S*")  # stride:64 in a score's name


@dataclass(frozen=True, kw_only=True)
class Score:
    """One final metric as a log gives it, in its `line`, with so many `digits` after the point.

    The texts are the numbers as they stand there. A number that is none, or too large for one, is
    NaN. Some logs give no val_loss beside it. `eval_time_s` is what the line itself says of the
    time; `seconds_of` knows of twins, and `timed_passes` counts no pass twice.
    """

    name: str
    kind: Kind
    val_loss: float | None
    val_bpb: float
    eval_time_s: float | None = None
    digits: int = 0
    val_loss_text: str | None = None
    val_bpb_text: str | None = None
    line: int | None = None


def name_score(text: str) -> tuple[str, Kind | None]:
    """A score's name without details and without `_exact`, and what it is; None of no interest."""
    words = [word for word in text.lower().split() if not DETAIL.fullmatch(word)]
    name = " ".join(words).removesuffix(":").removesuffix("_exact")
    return name, next((kind for pattern, kind in KINDS if pattern.search(name)), None)


def headline(scores: Collection[Score]) -> Score | None:
    """The score that a run is judged by; None where there is none of the final model."""
    plain = [last_of(scores, kind) for kind in UNADAPTED]
    worst = max((score.val_bpb for score in plain if score is not None), default=None)
    for kind in HEADLINES:
        found = last_of(scores, kind)
        if found is None:
            continue
        adapted = kind in (Kind.TTT, Kind.MIXED)
        if not (adapted and worst is not None and found.val_bpb > worst):
            return found
    return None


def last_of(scores: Collection[Score], kind: Kind) -> Score | None:
    """The last score of a kind, by its most exact twin."""
    mine = [score for score in scores if score.kind is kind]
    if not mine:
        return None
    last = mine[-1]
    # With a score that is no number there are no twins.
    twins = [last, *(score for score in mine if same_pass(score, last))]
    return max(twins, key=lambda score: score.digits)


def before_quantisation(scores: Collection[Score]) -> Score | None:
    """The score that the quantised model's is to be compared with."""
    mine = [score for score in scores if score.kind is Kind.PREQUANT]
    for pattern in CLOSEST:
        found = [score for score in mine if pattern.search(score.name)]
        if found:
            return found[-1]
    return mine[-1] if mine else None


def same_pass(one: Score, other: Score) -> bool:
    """Whether two scores are of one pass: of a kind, and one the other rounded."""
    unit = 10.0 ** -min(one.digits, other.digits)
    return one.kind is other.kind and abs(one.val_bpb - other.val_bpb) <= unit * (0.5 + 1e-6)


def later(earlier: Score, score: Score) -> Score:
    """What counts of two scores of one name: the more exact of twins, else the later one."""
    if not same_pass(earlier, score):
        return score
    exact = earlier if earlier.digits > score.digits else score
    seconds = score.eval_time_s if score.eval_time_s is not None else earlier.eval_time_s
    return replace(exact, eval_time_s=seconds)


def seconds_of(score: Score, scores: Collection[Score]) -> float | None:
    """The time of a score's pass: the longest that it or a twin of it states."""
    twins = [score, *(other for other in scores if same_pass(score, other))]
    return max((each.eval_time_s for each in twins if each.eval_time_s is not None), default=None)


def timed_passes(scores: Collection[Score]) -> list[Score]:
    """The passes after quantisation that are timed, each once: of twins the longest."""
    found: list[Score] = []
    for score in scores:
        if score.kind is Kind.PREQUANT or score.eval_time_s is None:
            continue
        twin = next((place for place, each in enumerate(found) if same_pass(each, score)), None)
        if twin is None:
            found.append(score)
        elif score.eval_time_s > (found[twin].eval_time_s or 0.0):
            found[twin] = score
    return found
