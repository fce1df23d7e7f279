"""The rules of the challenge as one table of named checks, and how a check is added to it.

A check is a function of a record's Context, entered by `@rule(name, title, …)`. It yields what it
has seen, each with a status, and the worst of them is the rule's:

    @rule("lucky-number", "No seed is 13", source="folklore", advice="Take another seed.")
    def lucky_number(context: Context) -> Iterator[Said]:
        for run in context.record.counted:
            yield failed("seed 13", run, "seed") if run.seed == 13 else passed(f"seed {run.seed}")

Two sets of rules there are. `record` is for what claims to beat the standing record: its gain must
exceed the margin, of three seeds, in a folder that is complete. `frontier` is for what moves the
state of the art without such a claim (a pure systems change, a run on the way): the margin is
waived, so the gain must only exceed zero, and too few seeds or an unfinished folder are a warning.
Bytes, times, data and the agreement of claims with logs bind both alike.
"""

from __future__ import annotations

import enum
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from sweeper.evidence.record import Claimed, LoggedRun, Record

# ---- what the challenge demands

# The track of what is published without claiming to be a record.
NO_RECORD = re.compile(r"non[-_ ]?record", re.IGNORECASE)
BUDGET = 16_000_000  # bytes of code and model, decimal; the artifact is strictly below
LIMIT_S = 600.0  # of training, and again of evaluation
# The clock is read after a step: 43 merged records overshoot, by 137 ms at most.
TOLERANCE_S = 1.0
MARGIN_NATS = 0.005  # gain over the standing record
ALPHA = 0.01
SEEDS = 3


class Status(enum.StrEnum):
    """What became of a rule. `unknown`: what is there does not say."""

    PASS = "pass"
    UNKNOWN = "unknown"
    WARN = "warn"
    FAIL = "fail"

    @property
    def severity(self) -> int:
        """Rises from pass to fail: the worst of several is the one that counts."""
        return list(Status).index(self)


class RuleSet(enum.StrEnum):
    RECORD = "record"
    FRONTIER = "frontier"


@dataclass(frozen=True, kw_only=True)
class Evidence:
    """One thing that was seen: its own status, and where it stands; lines count from 1."""

    text: str
    status: Status = Status.PASS
    file: str | None = None
    line: int | None = None

    def __str__(self) -> str:
        place = "" if self.file is None else self.file
        place += "" if self.line is None else f":{self.line}"
        return f"{place}: {self.text}" if place else self.text


@dataclass(frozen=True, kw_only=True)
class Finding:
    """What one rule has found; `advice` says what to do about it, and is empty on a pass."""

    rule: str
    title: str
    status: Status
    evidence: tuple[Evidence, ...] = ()
    advice: str = ""
    source: str = ""


class AuditFinding(Protocol):
    """What a check needs of a finding of the static audit (sweeper/evidence/audit.py)."""

    @property
    def kind(self) -> str: ...
    @property
    def line(self) -> int: ...
    @property
    def text(self) -> str: ...
    @property
    def layer(self) -> int: ...
    @property
    def confidence(self) -> str: ...
    @property
    def why(self) -> str: ...


@dataclass(frozen=True, kw_only=True)
class Context:
    """All that a check may look at.

    `audit` are the findings of the audit of the folder's script, and `source` is its text with all
    that is packed in it; None where no audit was made, and `audit_note` says why. `verdict` is the
    comparison with the baseline (compare.py); None where there is no baseline, or where none can
    be made: `verdict_note` says why.
    """

    record: Record
    baseline: Record | None = None
    rules: RuleSet = RuleSet.RECORD
    audit: tuple[AuditFinding, ...] | None = None
    audit_note: str = ""
    source: str = ""
    verdict: Any = None
    verdict_note: str = ""

    @property
    def is_folder(self) -> bool:
        """Whether it is a published folder; a sweep's trial or a single log has no form to keep."""
        return self.record.path.is_dir() and not (self.record.path / "ledger.sqlite").exists()

    @property
    def claims_record(self) -> bool:
        """Whether it is published as a record; a sweep is not yet, and other tracks never are."""
        track = self.record.claim.fields.get("track")
        return self.is_folder and NO_RECORD.search(str(track)) is None

    @property
    def lenient(self) -> Status:
        """What a rule of form or number costs: a fail for a record, else a warning."""
        return Status.FAIL if self.rules is RuleSet.RECORD else Status.WARN


Said = tuple[Status, Evidence]
Check = Callable[[Context], Finding | Iterable[Said]]


@dataclass(frozen=True, kw_only=True)
class Rule:
    """One entry of the table; `source` is the rule or failure of the challenge that it guards."""

    name: str
    title: str
    check: Check
    source: str
    advice: str
    sets: frozenset[RuleSet] = field(default_factory=lambda: frozenset(RuleSet))


RULES: dict[str, Rule] = {}


def rule(
    name: str,
    title: str,
    *,
    source: str,
    advice: str,
    sets: Iterable[RuleSet] = tuple(RuleSet),
) -> Callable[[Check], Check]:
    """Enter a check into RULES, after those that are there; ValueError for a name taken."""

    def enter(check: Check) -> Check:
        if name in RULES:
            raise ValueError(f"there is a rule {name!r} already")
        RULES[name] = Rule(
            name=name,
            title=title,
            check=check,
            source=source,
            advice=advice,
            sets=frozenset(sets),
        )
        return check

    return enter


def apply(each: Rule, context: Context) -> Finding:
    """What a rule finds. A check that raises is unknown: the others are not to be lost for it."""
    try:
        found = each.check(context)
        if isinstance(found, Finding):
            return found
        said = list(found)
    except Exception as error:
        text = f"the check itself failed, which is a bug: {type(error).__name__}: {error}"
        said = [(Status.UNKNOWN, Evidence(text=text))]
    if not said:
        said = [(Status.UNKNOWN, Evidence(text="nothing there that could be judged"))]
    worst = max((status for status, _ in said), key=lambda status: status.severity)
    return Finding(
        rule=each.name,
        title=each.title,
        status=worst,
        evidence=tuple(_worst_first(said)),
        advice="" if worst is Status.PASS else each.advice,
        source=each.source,
    )


def _worst_first(said: list[Said]) -> Iterator[Evidence]:
    for status, evidence in sorted(said, key=lambda each: -each[0].severity):
        yield Evidence(text=evidence.text, status=status, file=evidence.file, line=evidence.line)


# ---- how a check says what it has seen

Place = LoggedRun | Claimed | Path | None


def say(status: Status, text: str, place: Place = None, at: str | int = "") -> Said:
    """A status with its evidence: in a run's log where it says a fact, or in a line; in a claim."""
    if isinstance(place, LoggedRun):
        line = place.line(at) if isinstance(at, str) else at
        return status, Evidence(text=text, file=place.label, line=line)
    if isinstance(place, Claimed):
        file, _, rest = place.where.partition(":")
        if rest.isdecimal():
            return status, Evidence(text=text, file=file, line=int(rest))
        return status, Evidence(text=f"{rest.strip()}: {text}" if rest else text, file=file)
    if isinstance(place, Path):
        line = at if isinstance(at, int) and at > 0 else None
        return status, Evidence(text=text, file=place.name, line=line)
    return status, Evidence(text=text)


def passed(text: str, place: Place = None, at: str | int = "") -> Said:
    return say(Status.PASS, text, place, at)


def unknown(text: str, place: Place = None, at: str | int = "") -> Said:
    return say(Status.UNKNOWN, text, place, at)


def warned(text: str, place: Place = None, at: str | int = "") -> Said:
    return say(Status.WARN, text, place, at)


def failed(text: str, place: Place = None, at: str | int = "") -> Said:
    return say(Status.FAIL, text, place, at)


def not_said(run: LoggedRun, fact: str, what: str) -> Said:
    """Unknown, with the reason why the log's reader has no such fact."""
    reason = run.missing.get(fact)
    return unknown(f"{what} is not known" + (f": {reason}" if reason else ""), run)
