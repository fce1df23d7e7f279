"""The table of rules: how a check gets into it, and what becomes of one that breaks."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from sweeper.evidence.record import Claim, Claimed, LoggedRun, Record
from sweeper.evidence.rules import (
    RULES,
    Context,
    Evidence,
    Finding,
    Rule,
    RuleSet,
    Said,
    Status,
    apply,
    failed,
    passed,
    rule,
    unknown,
    warned,
)
from sweeper.evidence.validate import as_json, as_markdown, as_table, load, stands, totals, validate
from sweeper.logfacts import LogFacts

EMPTY = Record(path=Path("nowhere"), name="nothing [bold]|", claim=Claim())


@pytest.fixture
def table() -> Iterator[dict[str, Rule]]:
    """The table of rules, as it was before afterwards."""
    load()
    before = dict(RULES)
    yield RULES
    RULES.clear()
    RULES.update(before)


def test_a_check_is_entered_by_one_function(table: dict[str, Rule]) -> None:
    @rule("no-thirteen", "No seed is 13", source="folklore", advice="Take another seed.")
    def no_thirteen(context: Context) -> Iterator[Said]:
        for run in context.record.counted:
            yield failed("seed 13", run, "seed") if run.seed == 13 else passed(f"seed {run.seed}")

    facts = LogFacts(seed=13, lines={"seed": 7})
    runs = (
        LoggedRun(path=Path("a.log"), seed=1),
        LoggedRun(path=Path("b.log"), seed=13, facts=facts),
    )
    found = validate(Record(path=Path("x"), name="x", runs=runs))
    assert found[-1] == Finding(
        rule="no-thirteen",
        title="No seed is 13",
        status=Status.FAIL,
        evidence=(
            Evidence(text="seed 13", status=Status.FAIL, file="b.log", line=7),
            Evidence(text="seed 1"),
        ),
        advice="Take another seed.",
        source="folklore",
    )


def test_a_name_is_taken_once(table: dict[str, Rule]) -> None:
    name = next(iter(table))
    with pytest.raises(ValueError, match=name):
        rule(name, "again", source="", advice="")(lambda _: [])


def test_a_rule_may_be_of_one_set(table: dict[str, Rule]) -> None:
    @rule("only", "Of one set", source="", advice="", sets=[RuleSet.FRONTIER])
    def only(context: Context) -> Iterator[Said]:
        yield passed("seen")

    assert "only" not in {finding.rule for finding in validate(EMPTY)}
    assert "only" in {finding.rule for finding in validate(EMPTY, rules="frontier")}


def test_a_check_that_breaks_loses_nothing_else(table: dict[str, Rule]) -> None:
    @rule("broken", "Breaks", source="", advice="")
    def broken(context: Context) -> Iterator[Said]:
        yield failed("seen before")
        raise ZeroDivisionError("by nothing")

    found = {finding.rule: finding for finding in validate(EMPTY)}
    assert found["broken"].status is Status.UNKNOWN
    assert "bug" in found["broken"].evidence[0].text
    assert "ZeroDivisionError: by nothing" in found["broken"].evidence[0].text
    assert len(found) == len(table)


def test_what_says_nothing_is_unknown() -> None:
    def silent(context: Context) -> Iterator[Said]:
        yield from ()

    each = Rule(name="silent", title="", check=silent, source="", advice="")
    assert apply(each, Context(record=EMPTY)).status is Status.UNKNOWN


def test_the_worst_decides() -> None:
    order = [passed("a"), unknown("b"), warned("c"), failed("d")]
    for count in range(1, 5):
        each = Rule(name="", title="", check=lambda _: order[:count], source="", advice="do")  # noqa: B023
        found = apply(each, Context(record=EMPTY))
        assert found.status is order[count - 1][0]
        assert found.advice == ("" if found.status is Status.PASS else "do")


def test_a_check_may_return_its_finding() -> None:
    mine = Finding(rule="own", title="", status=Status.WARN)
    each = Rule(name="own", title="", check=lambda _: mine, source="", advice="")
    assert apply(each, Context(record=EMPTY)) is mine


def test_evidence_says_where_it_stands() -> None:
    readme = Claimed(value=1.0, text="1.0", where="README.md:12")
    field = Claimed(value=1.0, text="1.0", where="submission.json: seeds.42.val_bpb")
    assert str(failed("x", readme)[1]) == "README.md:12: x"
    assert str(failed("x", field)[1]) == "submission.json: seeds.42.val_bpb: x"
    assert str(failed("x", Path("a/b.py"), 3)[1]) == "b.py:3: x"
    assert str(failed("x")[1]) == "x"


def test_every_rule_says_what_it_guards_and_what_to_do(table: dict[str, Rule]) -> None:
    for each in table.values():
        assert each.title
        assert each.source
        assert each.advice.endswith(".")


def test_nothing_to_read_breaks_no_check() -> None:
    for findings in (validate(EMPTY), validate(EMPTY, rules="frontier")):
        text = str(findings)
        assert "which is a bug" not in text
        # Names are the user's, and no markup.
        assert "nothing [bold]|" in as_table(findings, EMPTY)
        assert "nothing [bold]\\|" in as_markdown(findings, EMPTY)
        assert as_json(findings)[0].keys() >= {"rule", "status", "evidence", "advice"}
        assert totals(findings).startswith(f"{sum(f.status is Status.FAIL for f in findings)} fail")
        assert not stands(findings)


def test_an_unknown_set_is_refused() -> None:
    with pytest.raises(ValueError, match="no set of rules 'mild'; there are record, frontier"):
        validate(EMPTY, rules="mild")
