"""What the final metrics of a log are, by their names, and which of them is the headline.

Names lie (`final_int8_zlib_roundtrip_exact` may carry a sliding score), so the headline is chosen
by what scores there are: test-time training before a mixture with a cache or n-grams, before
sliding windows, before plain windows of the quantised model. Among equals the last one counts,
and of twins the one with more digits. Scores before quantisation are never it, nor those of a
variant that is only shown beside the score (NTK, two passes), nor those of an adaptation that
failed: that made the model worse than plain windows find it.
"""

from __future__ import annotations

import enum
import re
from collections.abc import Collection
from dataclasses import dataclass


class Kind(enum.StrEnum):
    """What a score is; the value is the metric's name in a result."""

    PREQUANT = "prequant"
    VARIANT = "variant"
    QUANT = "quant"
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
HEADLINES = (Kind.TTT, Kind.MIXED, Kind.SLIDING, Kind.QUANT)
# Of the scores before quantisation, the closest to what is quantised first.
CLOSEST = (
    re.compile(r"pre-?_?quant"),
    re.compile(r"post[-_]ema|_or_swa"),
    re.compile(r"selected"),
)
DETAIL = re.compile(r"\S+:[-+]?\d\S*")  # stride:64 in a score's name


@dataclass(frozen=True, kw_only=True)
class Score:
    """One final metric as a log gives it, with so many `digits` after the point."""

    name: str
    kind: Kind
    val_loss: float
    val_bpb: float
    eval_time_s: float | None = None
    digits: int = 0


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
        failed = kind not in UNADAPTED and worst is not None and found.val_bpb > worst
        if not failed:
            return found
    return None


def last_of(scores: Collection[Score], kind: Kind) -> Score | None:
    """The last score of a kind, by its most exact twin."""
    mine = [score for score in scores if score.kind is kind]
    if not mine:
        return None
    last = mine[-1]
    twins = [score for score in mine if abs(score.val_bpb - last.val_bpb) <= 10**-last.digits]
    # With a score that is no number there are no twins.
    return max(twins, key=lambda score: score.digits, default=last)


def before_quantisation(scores: Collection[Score]) -> Score | None:
    """The score that the quantised model's is to be compared with."""
    mine = [score for score in scores if score.kind is Kind.PREQUANT]
    for pattern in CLOSEST:
        found = [score for score in mine if pattern.search(score.name)]
        if found:
            return found[-1]
    return mine[-1] if mine else None


def eval_seconds(scores: Collection[Score]) -> float | None:
    """The time of all passes after quantisation that are timed."""
    timed = [s.eval_time_s for s in scores if s.kind is not Kind.PREQUANT]
    known = [seconds for seconds in timed if seconds is not None]
    return sum(known) if known else None
