"""Whether one record beats another by more than a margin.

One-sided Welch's test with H0 "the gain is at most the margin", on the sample standard deviations.
The challenge's margin, 0.005 nats, can be read per token or per byte: one of the readings decides,
the other stands beside it.
"""

from __future__ import annotations

import enum
import math
import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from sweeper.errors import UserError
from sweeper.evidence.record import LoggedRun, Record
from sweeper.evidence.settings import differences
from sweeper.stats import Basis, Comparison, bpb_of_nats, paired, welch
from sweeper.words import aligned

MARGIN_NATS = 0.005
ALPHA = 0.01
BASES: tuple[Basis, ...] = ("token", "byte")
SUBSET = "-subset"  # ends the name of a metric over a part of the validation tokens
# Ratios of one tokenizer and validation set agree to about 1e-5; those of two differ by more.
SAME_RATIO = 1e-3
# Whole sets are cut to sequences differently; a part of one is smaller by more.
SAME_SET = 0.01
FEWEST = 3  # distinct seeds of a record
NAMED = 6  # settings, in a warning


class Outcome(enum.StrEnum):
    BEYOND = "beyond_margin"
    NOT_SHOWN = "not_shown"


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """What a comparison says; all differences in BPB, a gain is above 0.

    `tests` are Welch's by the reading of the margin, that of `basis` decides; one that needs the
    tokenizer's ratio is missing where no log gives it. `zero` is the same test with no margin.
    `paired` is Student's on the differences seed by seed, where both have the same seeds.
    """

    candidate: Record
    baseline: Record
    margin_nats: float
    basis: Basis
    alpha: float
    nats_per_bpb: float | None
    tests: Mapping[Basis, Comparison]
    zero: Comparison
    paired: Comparison | None = None
    warnings: tuple[str, ...] = field(default=())

    @property
    def test(self) -> Comparison:
        """The one that decides."""
        return self.tests[self.basis]

    @property
    def outcome(self) -> Outcome:
        return Outcome.BEYOND if self.test.p < self.alpha else Outcome.NOT_SHOWN

    @property
    def beyond(self) -> bool:
        return self.outcome is Outcome.BEYOND


def compare_records(
    candidate: Record,
    baseline: Record,
    *,
    margin_nats: float = MARGIN_NATS,
    basis: Basis = "token",
    alpha: float = ALPHA,
) -> Verdict:
    """Hold a record against another; UserError where no test can be made of them."""
    _check(candidate, baseline)
    ratio = ratio_of(candidate)
    if basis == "token" and ratio is None and margin_nats:
        raise UserError(
            f"{candidate.name}: no val_loss beside val_bpb, so nats per token are no BPB; "
            "add --basis byte"
        )
    ours, theirs = candidate.scores, baseline.scores
    tests: dict[Basis, Comparison] = {}
    try:
        zero = welch(ours, theirs, alpha=alpha)
        for each in BASES:
            if each == "byte" or ratio is not None or not margin_nats:
                margin = bpb_of_nats(margin_nats, each, ratio) if margin_nats else 0.0
                tests[each] = welch(ours, theirs, margin=margin, alpha=alpha)
    except ValueError as error:
        raise UserError(f"{candidate.name} and {baseline.name}: {error}") from error
    pairs = _pairs(candidate, baseline)
    margin = tests[basis].margin
    return Verdict(
        candidate=candidate,
        baseline=baseline,
        margin_nats=margin_nats,
        basis=basis,
        alpha=alpha,
        nats_per_bpb=ratio,
        tests=tests,
        zero=zero,
        paired=_paired(pairs, margin, alpha),
        warnings=tuple(_warnings(candidate, baseline)),
    )


def _check(candidate: Record, baseline: Record) -> None:
    for record in (candidate, baseline):
        if len(record.scores) < 2:
            left_out = "; ".join(f"{run.label}: {run.excluded}" for run in record.excluded[:3])
            raise UserError(
                f"{record.name}: {len(record.scores)} scored run{'s' * (len(record.scores) != 1)}; "
                "a test needs at least 2, a record 3 seeds"
                + (f" (not counted: {left_out})" if left_out else "")
            )
        if len(record.metrics) > 1:
            raise UserError(
                f"{record.name}: its runs are scored by {' and '.join(record.metrics)}, which have "
                "no mean; choose one with --metric"
            )
    parts = [record.metrics[0].endswith(SUBSET) for record in (candidate, baseline)]
    if parts[0] != parts[1]:
        part, whole = (candidate, baseline) if parts[0] else (baseline, candidate)
        raise UserError(
            f"{part.name} is scored on a subset of the validation tokens, {whole.name} on all: "
            "they cannot be compared; score both alike (EVAL_SUBSET_TOKENS)"
        )
    tokens = [_largest(record, "val_tokens") for record in (candidate, baseline)]
    known = tokens[0] is not None and tokens[1] is not None
    same_text = known and _same_ratio(ratio_of(candidate), ratio_of(baseline))
    if same_text and not math.isclose(tokens[0] or 0, tokens[1] or 0, rel_tol=SAME_SET):
        raise UserError(
            f"{candidate.name} is scored on {tokens[0]:,} validation tokens, {baseline.name} "
            f"on {tokens[1]:,} by the same tokenizer: they cannot be compared"
        )


def _largest(record: Record, fact: str) -> int | None:
    known = [getattr(run.facts, fact) for run in record.counted]
    return max((each for each in known if each is not None), default=None)


def ratio_of(record: Record) -> float | None:
    """Nats per token in one BPB, by a record's own scores; None where a run has no val_loss."""
    ratios = [run.nats_per_bpb for run in record.counted]
    known = [ratio for ratio in ratios if ratio is not None]
    return statistics.fmean(known) if known and len(known) == len(ratios) else None


def _pairs(candidate: Record, baseline: Record) -> list[tuple[LoggedRun, LoggedRun]]:
    """The runs of both by seed; empty unless the seeds are the same ones, and the data."""
    sides = [{run.seed: run for run in record.counted} for record in (candidate, baseline)]
    if any(
        len(side) != len(r.counted) or None in side
        for side, r in zip(sides, (candidate, baseline), strict=True)
    ):
        return []
    if sides[0].keys() != sides[1].keys():
        return []
    pairs = [(sides[0][seed], sides[1][seed]) for seed in sides[0]]
    return pairs if all(_same_data(*pair) for pair in pairs) else []


def _same_data(one: LoggedRun, other: LoggedRun) -> bool:
    return all(
        None in (mine, theirs) or mine == theirs
        for mine, theirs in (
            (one.facts.val_tokens, other.facts.val_tokens),
            (one.facts.train_shards, other.facts.train_shards),
        )
    ) and _same_ratio(one.nats_per_bpb, other.nats_per_bpb)


def _same_ratio(one: float | None, other: float | None) -> bool:
    return one is None or other is None or math.isclose(one, other, rel_tol=SAME_RATIO)


def _paired(
    pairs: Sequence[tuple[LoggedRun, LoggedRun]], margin: float, alpha: float
) -> Comparison | None:
    if len(pairs) < 2:
        return None
    scores = [(one.val_bpb, other.val_bpb) for one, other in pairs]
    try:
        return paired(
            [mine for mine, _ in scores if mine is not None],
            [theirs for _, theirs in scores if theirs is not None],
            margin=margin,
            alpha=alpha,
        )
    except ValueError:  # no spread at all
        return None


# ---- what a reader must know beside the numbers


def _warnings(candidate: Record, baseline: Record) -> Iterator[str]:
    for record in (candidate, baseline):
        yield from _of_one(record)
    if candidate.metrics != baseline.metrics:
        yield (
            f"the scores are of different metrics: {candidate.metrics[0]} against "
            f"{baseline.metrics[0]}"
        )
    ratios = [ratio_of(record) for record in (candidate, baseline)]
    if not _same_ratio(ratios[0], ratios[1]):
        yield (
            f"different tokenizers ({ratios[0]:.4f} and {ratios[1]:.4f} nats per token in a BPB): "
            "nats per token cannot be compared, BPB can; the margin is by the candidate's"
        )
    sizes = [{run.facts.val_tokens for run in r.counted} - {None} for r in (candidate, baseline)]
    if _same_ratio(*ratios) and sizes[0] and sizes[1] and sizes[0] != sizes[1]:
        yield "the two were scored on different numbers of validation tokens"


def _of_one(record: Record) -> Iterator[str]:
    name = record.name
    if record.summary.std == 0.0:
        yield f"{name}: its scores have no spread at all; are they one run?"
    seeds = [run.seed for run in record.counted]
    known = [seed for seed in seeds if seed is not None]
    if len(set(known)) < len(known):
        yield f"{name}: a seed counts more than once ({_listed(known)})"
    if len(set(known)) < FEWEST:
        count = len(set(known))
        yield f"{name}: {count} distinct seed{'s' * (count != 1)}; a record has at least {FEWEST}"
    odd = {
        setting
        for run in record.counted[1:]
        for setting in differences(record.counted[0].facts, run.facts)
    }
    if odd:
        named = ", ".join(sorted(odd)[:NAMED]) + (", …" if len(odd) > NAMED else "")
        yield f"{name}: its runs differ in their settings: {named}"
    for what, values in _of_the_machine(record):
        yield f"{name}: its runs differ in their {what}: {_listed(sorted(values))}"
    dropped = [run for run in record.excluded if not _is_harmless(run, record)]
    if dropped:
        reasons = "; ".join(f"{run.label} ({run.excluded})" for run in dropped[:NAMED])
        more = f"; and {len(dropped) - NAMED} more" if len(dropped) > NAMED else ""
        yield f"{name}: runs left out: {reasons}{more}"
    yield from (f"{name}: {note}" for note in record.notes)


def _of_the_machine(record: Record) -> Iterator[tuple[str, set[int]]]:
    """What the runs of a record were scored and trained on, where it is not the same."""
    for fact in ("val_tokens", "train_shards", "world_size"):
        values = {getattr(run.facts, fact) for run in record.counted} - {None}
        if len(values) > 1:
            yield fact.replace("_", " "), values
    ratios = [run.nats_per_bpb for run in record.counted]
    if any(not _same_ratio(ratios[0], ratio) for ratio in ratios):
        yield "tokenizers, in nats per token of 0.01 BPB", {round(100 * r) for r in ratios if r}


def _is_harmless(run: LoggedRun, record: Record) -> bool:
    """Whether a run is left out for being the same as one that counts, under the same seed."""
    kept = [each for each in record.counted if run.excluded == f"a copy of {each.label}"]
    return bool(kept) and run.seed in (None, kept[0].seed)


def _listed(values: Sequence[object]) -> str:
    return ", ".join(map(str, values))


# ---- as people and programs read it


def as_json(verdict: Verdict) -> dict[str, Any]:
    test = verdict.test
    return {
        "gain_bpb": test.gain,
        "standard_error_bpb": test.standard_error,
        "margin_bpb": test.margin,
        "margin_nats": verdict.margin_nats,
        "t": test.t,
        "df": test.df,
        "p": test.p,
        "lower_bound_bpb": test.lower_bound,
        "basis": verdict.basis,
        "alpha": verdict.alpha,
        "verdict": verdict.outcome.value,
        "warnings": list(verdict.warnings),
        "test": "welch",
        "nats_per_bpb": verdict.nats_per_bpb,
        "bases": {
            basis: {"margin_bpb": each.margin, "t": each.t, "df": each.df, "p": each.p}
            for basis, each in verdict.tests.items()
        },
        "no_margin": _short(verdict.zero),
        "paired": None if verdict.paired is None else _short(verdict.paired),
        "candidate": _side(verdict.candidate),
        "baseline": _side(verdict.baseline),
    }


def _short(test: Comparison) -> dict[str, float]:
    names = ("gain", "margin", "standard_error", "t", "df", "p", "lower_bound")
    return {name: getattr(test, name) for name in names}


def _side(record: Record) -> dict[str, Any]:
    summary = record.summary
    return {
        "name": record.name,
        "path": str(record.path),
        "metric": record.metrics[0],
        "n": summary.n,
        "seeds": [run.seed for run in record.counted],
        "val_bpb": list(record.scores),
        "val_bpb_mean": summary.mean,
        "val_bpb_std": summary.std,
    }


def as_text(verdict: Verdict) -> str:
    """The comparison for a terminal."""
    sides = [("candidate", verdict.candidate), ("baseline", verdict.baseline)]
    rows = [("", "n", "mean val_bpb", "sample std", "metric", "seeds", "what")]
    for role, record in sides:
        summary = record.summary
        seeds = _listed([run.seed if run.seed is not None else "?" for run in record.counted])
        rows.append(
            (
                *(role, str(summary.n), f"{summary.mean:.6f}", f"{summary.std:.6f}"),
                *(record.metrics[0], seeds, record.name),
            )
        )
    test = verdict.test
    lines = [
        *aligned(rows, (0, len(rows[0]) - 1)),
        "",
        f"gain {test.gain:+.6f} BPB, standard error {test.standard_error:.6f}, with "
        f"{100 * (1 - verdict.alpha):g} % confidence at least {test.lower_bound:+.6f}",
        "",
        *aligned(list(_test_rows(verdict)), (0, 4)),
        "",
        _sentence(verdict),
    ]
    return "\n".join([*lines, *(f"warning: {each}" for each in verdict.warnings)])


def _test_rows(verdict: Verdict) -> Iterator[tuple[str, ...]]:
    yield ("H0: the gain is at most", "in BPB", "t", "df", "p")
    yield ("0", *_numbers(verdict.zero))
    for basis, each in verdict.tests.items():
        mark = "  <- decides" if basis == verdict.basis else ""
        yield (f"{verdict.margin_nats:g} nats per {basis}", *_numbers(each)[:-1], _p(each.p) + mark)
    if verdict.paired is not None:
        yield (f"the same per {verdict.basis}, paired by seed", *_numbers(verdict.paired))


def _numbers(test: Comparison) -> tuple[str, ...]:
    return f"{test.margin:.6f}", f"{test.t:.2f}", f"{test.df:.2f}", _p(test.p)


def _p(p: float) -> str:
    return f"{p:.4f}" if p >= 0.0001 else f"{p:.1e}"


def _sentence(verdict: Verdict) -> str:
    what = f"a gain beyond {verdict.margin_nats:g} nats per {verdict.basis}"
    if verdict.beyond:
        return f"{what} is shown (p = {_p(verdict.test.p)}, below {verdict.alpha:g})"
    return f"{what} is not shown (p = {_p(verdict.test.p)}, not below {verdict.alpha:g})"
