"""What a record claims against what running it again gave, seed by seed and in the mean."""

from __future__ import annotations

import enum
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from sweeper.errors import UserError
from sweeper.evidence.record import LoggedRun, Record
from sweeper.evidence.reproduce_checks import Check, explanations
from sweeper.evidence.sweeps import read_trial
from sweeper.layout import SweepDir
from sweeper.stats import Summary, paired, summarise, welch
from sweeper.words import aligned

SHOWN = 0.05  # two-sided: below it a difference is one


class Outcome(enum.StrEnum):
    SAME = "same_digits"
    NO_DIFFERENCE = "no_difference_shown"
    DIFFERENT = "different"
    UNTESTED = "untested"  # too few runs to say
    NOTHING = "nothing_reproduced"


@dataclass(frozen=True, kw_only=True)
class SeedAccount:
    """One seed: its score as claimed and as it came out here.

    `why` says why there is none here; None as well where the seed was not to be run.
    """

    seed: int
    claimed: float | None
    here: float | None
    why: str | None = None

    @property
    def difference(self) -> float | None:
        """Here less claimed, in BPB: above 0 is worse."""
        if self.claimed is None or self.here is None:
            return None
        return self.here - self.claimed


@dataclass(frozen=True, kw_only=True)
class Reproduction:
    """A record against its own runs made again; all scores are val_bpb.

    `claimed` is over all seeds that the record counts, `here` over those that have finished here;
    `difference` is the mean over the seeds of both, and `in_stds` that in the record's sample
    standard deviations. `p_welch` and `p_paired` are two-sided, of "there is no difference".
    """

    record: Record
    sweep: SweepDir
    seeds: tuple[SeedAccount, ...]
    claimed: Summary
    here: Summary
    difference: float | None
    in_stds: float | None
    p_welch: float | None
    p_paired: float | None
    checks: tuple[Check, ...]
    outcome: Outcome

    @property
    def common(self) -> tuple[SeedAccount, ...]:
        return tuple(seed for seed in self.seeds if seed.difference is not None)

    @property
    def failed(self) -> tuple[SeedAccount, ...]:
        """The seeds that were to be run and have no score here."""
        return tuple(seed for seed in self.seeds if seed.why is not None)

    @property
    def explanation(self) -> Check | None:
        """The first thing that explains a difference; None where nothing is known to differ."""
        return next((check for check in self.checks if check.same is False), None)


def account(record: Record, sweep: SweepDir) -> Reproduction:
    """Hold a record against the sweep that has run it again, as far as that has come."""
    theirs = {run.seed: run for run in record.counted}
    if not theirs:
        raise UserError(f"{record.path}: no run of it counts; there is nothing to hold against")
    again = read_trial(sweep)
    ours = {run.seed: run for run in again.runs}
    seeds = tuple(_seed_account(seed, theirs, ours) for seed in _order(theirs, ours))
    pairs = [(theirs[s.seed], ours[s.seed]) for s in seeds if s.difference is not None]
    sides = [one for one, _ in pairs], [other for _, other in pairs]
    claimed, here = record.summary, again.summary
    differing = [s.difference for s in seeds if s.difference is not None]
    difference = math.fsum(differing) / len(differing) if differing else None
    p_welch = _two_sided(welch, record.scores, again.scores)
    p_paired = _two_sided(paired, *([run.val_bpb or math.nan for run in s] for s in sides))
    std = claimed.std
    return Reproduction(
        record=record,
        sweep=sweep,
        seeds=seeds,
        claimed=claimed,
        here=here,
        difference=difference,
        in_stds=difference / std if difference is not None and std else None,
        p_welch=p_welch,
        p_paired=p_paired,
        checks=tuple(explanations(record, sweep, pairs)),
        outcome=_outcome(pairs, p_welch if p_welch is not None else _of_one(claimed, here)),
    )


def _order(theirs: dict[int | None, LoggedRun], ours: dict[int | None, LoggedRun]) -> list[int]:
    return [seed for seed in dict.fromkeys([*theirs, *ours]) if seed is not None]


def _seed_account(
    seed: int, theirs: dict[int | None, LoggedRun], ours: dict[int | None, LoggedRun]
) -> SeedAccount:
    claimed, here = theirs.get(seed), ours.get(seed)
    return SeedAccount(
        seed=seed,
        claimed=None if claimed is None else claimed.val_bpb,
        here=None if here is None or not here.counts else here.val_bpb,
        why=None if here is None else here.excluded,
    )


def _two_sided(
    test: Callable[..., Any], claimed: Sequence[float], here: Sequence[float]
) -> float | None:
    """Two-sided p of "no difference"; None where there are too few values, or no spread."""
    try:
        p = float(test(here, claimed).p)
    except ValueError:
        return None
    return min(1.0, 2 * min(p, 1 - p))


def _of_one(claimed: Summary, here: Summary) -> float | None:
    """Two-sided p of "it is one more of them", of a single run; by Student's t, as predicted."""
    if here.n != 1 or here.mean is None or claimed.mean is None or not claimed.std:
        return None
    from scipy.stats import t

    error = claimed.std * math.sqrt(1 + 1 / claimed.n)
    return float(2 * t.sf(abs(here.mean - claimed.mean) / error, claimed.n - 1))


def _outcome(pairs: Sequence[tuple[LoggedRun, LoggedRun]], p: float | None) -> Outcome:
    if not pairs:
        return Outcome.NOTHING
    if all(_same_digits(claimed, here) for claimed, here in pairs):
        return Outcome.SAME
    if p is None:
        return Outcome.UNTESTED
    return Outcome.DIFFERENT if p < SHOWN else Outcome.NO_DIFFERENCE


def _same_digits(claimed: LoggedRun, here: LoggedRun) -> bool:
    """Whether a score is the claimed one in all digits that both logs give."""
    assert claimed.val_bpb is not None
    assert here.val_bpb is not None
    digits = min(_digits(claimed), _digits(here))
    return abs(claimed.val_bpb - here.val_bpb) <= 0.5000001 * 10.0**-digits


def _digits(run: LoggedRun) -> int:
    return len((run.val_bpb_text or "").partition(".")[2]) or 4


# ---- as people and programs read it


def as_text(found: Reproduction) -> str:
    """The account for a terminal."""
    return "\n".join([*aligned(_rows(found)), "", *_lines(found)])


def as_markdown(found: Reproduction) -> str:
    heads, *rows = _rows(found)
    table = [heads, ["--:"] * len(heads), *rows]
    lines = [f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in row)} |" for row in table]
    said = [f"- {line}" for line in _lines(found) if line]
    return "\n".join([f"## {found.record.name}, run again", "", *lines, "", *said])


def as_json(found: Reproduction) -> dict[str, Any]:
    return {
        "record": found.record.name,
        "sweep": found.sweep.name,
        "outcome": found.outcome.value,
        "difference_bpb": found.difference,
        "difference_in_stds": found.in_stds,
        "p_welch": found.p_welch,
        "p_paired": found.p_paired,
        "claimed": asdict(found.claimed),
        "here": asdict(found.here),
        "seeds": [asdict(seed) | {"difference_bpb": seed.difference} for seed in found.seeds],
        "checks": [asdict(check) for check in found.checks],
        "explanation": None if found.explanation is None else found.explanation.name,
    }


def _rows(found: Reproduction) -> list[list[str]]:
    std = found.claimed.std
    rows = [
        ["seed", "claimed", "here", "difference", "in stds"],
        *(_row(str(s.seed), s.claimed, s.here, s.difference, std) for s in found.seeds),
    ]
    common = found.common
    if len(common) > 1:
        claimed = summarise([seed.claimed for seed in common if seed.claimed is not None])
        here = summarise([seed.here for seed in common if seed.here is not None])
        rows.append(_row("mean", claimed.mean, here.mean, found.difference, std))
        rows.append(["sample std", _bpb(claimed.std), _bpb(here.std), "", ""])
    return rows


def _row(
    name: str, claimed: float | None, here: float | None, gap: float | None, std: float | None
) -> list[str]:
    stds = "–" if gap is None or not std else f"{gap / std:+.2f}"
    difference = "–" if gap is None else f"{gap:+.6f}"
    return [name, _bpb(claimed), _bpb(here), difference, stds]


def _bpb(value: float | None) -> str:
    return "–" if value is None else f"{value:.6f}"


def _lines(found: Reproduction) -> Iterator[str]:
    yield _verdict(found)
    for seed in found.failed:
        yield f"seed {seed.seed} is not reproduced: {seed.why}"
    for check in found.checks:
        yield f"{check.name}: {_said(check)}"
    first = found.explanation
    if first is not None and found.outcome is not Outcome.SAME:
        yield f"what explains a difference first: {first.name} ({first.explains})"
    elif found.outcome is Outcome.DIFFERENT:
        yield "nothing that the logs tell explains the difference"


def _said(check: Check) -> str:
    if check.same:
        numbers = "" if check.claimed == check.here else f", here {check.here}"
        return f"same ({check.claimed}{numbers})"
    word = "differs" if check.same is False else "not known"
    return f"{word}: claimed {check.claimed}, here {check.here}"


def _verdict(found: Reproduction) -> str:
    tests = ", ".join(
        f"{name} p = {p:.2g}"
        for name, p in (("Welch", found.p_welch), ("paired", found.p_paired))
        if p is not None
    )
    if found.difference is None:
        return "nothing is reproduced yet: no seed of the record has a score here"
    gap = f"{found.difference:+.6f} BPB"
    if found.in_stds is not None:
        gap += f", {abs(found.in_stds):.2f} of the record's standard deviations"
    count = f"{len(found.common)} of {found.claimed.n} seeds"
    match found.outcome:
        case Outcome.SAME:
            return f"reproduced to the digit ({count})"
        case Outcome.NO_DIFFERENCE:
            return f"no difference is shown: {gap} ({tests}; {count})"
        case Outcome.DIFFERENT:
            return f"the scores differ: {gap} ({tests}; {count})"
    return f"too few runs for a test: {gap} ({count})"
