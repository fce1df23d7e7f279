"""Every rule held against one record, and what was found as a table, JSON or Markdown.

The rules are in the modules CHECKS, each entered into RULES (rules.py) by its decorator.
"""

from __future__ import annotations

import importlib
import io
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from sweeper.errors import UserError
from sweeper.evidence.claims import read_text
from sweeper.evidence.record import Record
from sweeper.evidence.rules import (
    ALPHA,
    MARGIN_NATS,
    RULES,
    AuditFinding,
    Context,
    Evidence,
    Finding,
    RuleSet,
    Status,
    apply,
)

# In the order in which their rules are shown.
CHECKS = (
    "folder",
    "size",
    "code",
    "time",
    "data",
    "logs",
    "seeds",
    "scores",
    "statistics",
    "evaluation",
)
SHOWN = 3  # pieces of evidence a rule, in a table; JSON has them all


def validate(
    record: Record, *, baseline: Record | None = None, rules: RuleSet | str = RuleSet.RECORD
) -> list[Finding]:
    """What every rule of a set says of a record, in the table's order.

    UserError for a set that there is not. Nothing in the record can make this fail otherwise: a
    check that breaks is unknown.
    """
    try:
        chosen = RuleSet(rules)
    except ValueError as error:
        known = ", ".join(RuleSet)
        raise UserError(f"no set of rules {rules!r}; there are {known}") from error
    load()
    context = context_of(record, baseline, chosen)
    return [apply(each, context) for each in RULES.values() if chosen in each.sets]


def load() -> None:
    """Enter all rules into the table."""
    for name in CHECKS:
        importlib.import_module(f"sweeper.evidence.checks_{name}")


def context_of(record: Record, baseline: Record | None, rules: RuleSet) -> Context:
    """All that checks look at: the record, its script's audit, its comparison with a baseline."""
    findings, source, audit_note = _audit(record)
    verdict, verdict_note = None, ""
    if baseline is not None:
        from sweeper.evidence.compare import compare_records

        try:
            verdict = compare_records(record, baseline, margin_nats=MARGIN_NATS, alpha=ALPHA)
        except UserError as error:
            verdict_note = str(error)
    return Context(
        record=record,
        baseline=baseline,
        rules=rules,
        audit=findings,
        audit_note=audit_note,
        source=source,
        verdict=verdict,
        verdict_note=verdict_note,
    )


def _audit(record: Record) -> tuple[tuple[AuditFinding, ...] | None, str, str]:
    """What the audit finds in the record's script, the text that it read, or why there is none."""
    if record.script is None:
        return None, "", "no train_gpt.py to audit"
    from sweeper.evidence.audit import audit

    try:
        report = audit(record.script)
    # Scripts are anyone's: what the audit cannot read is to be said, not to stop all other rules.
    except Exception as error:
        note = f"the audit of train_gpt.py failed: {type(error).__name__}: {error}"
        return None, read_text(record.script), note
    lines = (line for layer in report.layers for line in layer.lines)
    return report.findings, "\n".join(lines), ""


def stands(findings: Sequence[Finding]) -> bool:
    """Whether no rule fails."""
    return all(finding.status is not Status.FAIL for finding in findings)


def totals(findings: Sequence[Finding]) -> str:
    """How many rules came out how, the worst first."""
    counts = Counter(finding.status for finding in findings)
    return ", ".join(f"{counts[status]} {status}" for status in reversed(Status))


# ---- as people and programs read it


def as_json(findings: Sequence[Finding]) -> list[dict[str, Any]]:
    """One object a rule: rule, title, status, evidence (text, status, file, line), advice."""
    return [asdict(finding) for finding in findings]


def as_table(findings: Sequence[Finding], record: Record) -> str:
    """The findings for a terminal, worst first."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    # As Text: a name or a log may hold what rich takes for markup.
    title = Text(f"{record.name}: {totals(findings)}")
    table = Table(title=title, title_justify="left", show_lines=True)
    table.add_column("rule", no_wrap=True)
    table.add_column("status", no_wrap=True)
    table.add_column("evidence, and what to do", overflow="fold", max_width=110)
    for finding in _worst_first(findings):
        lines = [*_evidence(finding), *([f"→ {finding.advice}"] if finding.advice else [])]
        table.add_row(finding.rule, finding.status.upper(), Text("\n".join(lines)))
    buffer = io.StringIO()
    Console(file=buffer, width=160, color_system=None).print(table)
    return "\n".join(line.rstrip() for line in buffer.getvalue().rstrip().splitlines())


def as_markdown(findings: Sequence[Finding], record: Record) -> str:
    lines = [
        f"### {_cell(record.name)}: {totals(findings)}",
        "",
        "| rule | status | evidence | what to do |",
        "| :-- | :-- | :-- | :-- |",
    ]
    for finding in _worst_first(findings):
        evidence = "<br>".join(_cell(text) for text in _evidence(finding))
        title = f"**{finding.rule}**<br>{_cell(finding.title)}"
        lines.append(f"| {title} | {finding.status} | {evidence} | {_cell(finding.advice)} |")
    return "\n".join(lines)


def _worst_first(findings: Sequence[Finding]) -> list[Finding]:
    return sorted(findings, key=lambda finding: -finding.status.severity)


def _evidence(finding: Finding) -> list[str]:
    """The first pieces of evidence, of which those that decided come first."""
    shown: list[Evidence] = list(finding.evidence[:SHOWN])
    more = len(finding.evidence) - len(shown)
    return [*map(str, shown), *([f"and {more} more"] if more else [])]


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("<", "&lt;").replace("\n", " ")
