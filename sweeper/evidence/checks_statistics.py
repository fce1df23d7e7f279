"""Whether the gain over a baseline is shown, and whether the record's own test is one of it."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

from sweeper.evidence.claims import read_text
from sweeper.evidence.rules import (
    ALPHA,
    MARGIN_NATS,
    Context,
    RuleSet,
    Said,
    failed,
    passed,
    rule,
    unknown,
    warned,
)

# Wordings of tests that show something else than a gain beyond the margin.
Z_TEST = re.compile(r"\bz[- ]?(?:test|score|stat\w*)\b", re.IGNORECASE)
NO_P_VALUE = re.compile(
    r"\b(?:top|min|nucleus|dropout|drop|prob\w*|mask\w*|keep|typical)[-_ ]*(?:with )?p\b",
    re.IGNORECASE,
)
P_SMALL = re.compile(r"\bp\b[\"'*`]*\s*(?:<+|≪)\s*[\d.]|\bp[-_ ]value\b", re.IGNORECASE)
P_EQUAL = re.compile(r"\bp\b[\"'*`]*\s*[=≈:]\s*[\d.]", re.IGNORECASE)
TESTED = re.compile(r"\bwelch|\bt[-_ ](?:test|stat\w*)|\bt\s*=\s*[-−+]?\d|\bstudent", re.IGNORECASE)
MARGIN = re.compile(r"\bmargin\b|0\.005|threshold|non-?inferiority", re.IGNORECASE)
UNIT_MIX = re.compile(
    r"0\.005\s*bpb|bpb\s*/\s*0\.005|[Δd]\w*\s*bpb\D{0,20}0\.005(?!\s*nats?)"
    r"|bpb[\s*(]*(?:>=?|≥)\s*0\.0050*(?![\d\s-]*nats?|\d)",
    re.IGNORECASE,
)
NEAR = 2  # lines around a p value in which the margin may be named


@rule(
    "significance",
    "The gain over the standing record exceeds the margin at p < 0.01",
    source="Rules: improvement by 0.005 nats; Failures: significance",
    advice="Give the standing record with --baseline; where the gain is not shown, run more seeds.",
)
def significance(context: Context) -> Iterator[Said]:
    if context.baseline is None:
        yield unknown("no baseline was given to compare with")
        return
    verdict = context.verdict
    if verdict is None:
        yield unknown(f"no test can be made: {context.verdict_note}")
        return
    waived = context.rules is RuleSet.FRONTIER
    test = verdict.zero if waived else verdict.test
    margin = "0" if waived else f"{MARGIN_NATS:g} nats/{verdict.basis} = {test.margin:.5f} BPB"
    text = (
        f"gain {test.gain:.5f} BPB over {context.baseline.name}, margin {margin}: "
        f"t = {test.t:.2f}, df = {test.df:.2f}, p = {test.p:.2g}; the gain is above "
        f"{test.lower_bound:.5f} with {1 - test.alpha:.0%} confidence"
    )
    yield (passed if test.p < ALPHA else failed)(text)
    for basis, other in verdict.tests.items():
        if not waived and basis != verdict.basis and other.p >= ALPHA > test.p:
            text = f"read per {basis} the margin is {other.margin:.5f} BPB, and p = {other.p:.2g}"
            yield warned(text)
    for warning in verdict.warnings:
        yield warned(warning)


@rule(
    "test-wording",
    "The record's own test is of the margin, in the margin's unit",
    source="Failures: significance",
    advice="Test “gain ≤ margin” one-sided by Welch: `sweeper compare` prints t, df, p and bound.",
)
def wording_of_tests(context: Context) -> Iterator[Said]:
    record = context.record
    looked = [path for path in (record.readme, record.claim.path) if path is not None]
    if not looked:
        yield unknown("neither README.md nor submission.json")
    for path in looked:
        found = list(_wordings(path))
        yield from found or [passed("no test that shows something else", path)]


def _wordings(path: Path) -> Iterator[Said]:
    lines = read_text(path).splitlines()
    for number, line in enumerate(lines):
        near = " ".join(lines[max(0, number - NEAR) : number + NEAR + 1])
        if Z_TEST.search(line):
            yield _line(path, number, "a z-test takes three seeds' spread for known", line)
        elif UNIT_MIX.search(line):
            yield _line(path, number, "the margin is 0.005 nats, not BPB", line)
        elif _says_p(line, near) and not MARGIN.search(near):
            yield _line(path, number, "a test of zero difference, not of the margin", line)


def _says_p(line: str, near: str) -> bool:
    """Whether a line has the p of a test; p alone may be a probability of something else."""
    line = NO_P_VALUE.sub("", line)
    by_name = P_EQUAL.search(line) is not None and TESTED.search(near) is not None
    return by_name or P_SMALL.search(line) is not None


def _line(path: Path, number: int, text: str, line: str) -> Said:
    return warned(f"{text}: {line.strip()[:120]}", path, number + 1)
