"""A triage of somebody's train_gpt.py: which of its lines a person must read, and why.

The script may be hostile: it is unpacked and read, and nothing of it is executed. What is found is
by names and by the order of lines. A finding is no proof that a rule is broken, and no finding is
none that it is kept.
"""

from __future__ import annotations

import ast
import pickle
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from sweeper.errors import UserError
from sweeper.evidence.audit_best import min_over_passes
from sweeper.evidence.audit_child import CPU_SECONDS, MEMORY_BYTES, limited
from sweeper.evidence.audit_leaks import target_seen
from sweeper.evidence.audit_reading import (
    QUESTIONS,
    Confidence,
    Finding,
    Kind,
    Reading,
    printable,
)
from sweeper.evidence.audit_scoring import slot_like, test_time_training
from sweeper.evidence.audit_sizes import code_sizes
from sweeper.evidence.audit_targets import ngram_cache, target_lookup
from sweeper.evidence.audit_training import (
    eval_switches,
    seed_not_in_data,
    settings_of,
    validation_in_training,
)
from sweeper.evidence.audit_world import (
    hidden_exec,
    network,
    processes,
    reads_outside,
    uncounted_code,
)
from sweeper.evidence.unpack import Layer, Unpacked, unpack
from sweeper.evidence.unpack_source import decode

SCHEMA = 1
MOST_BYTES = 32 << 20  # of a script: twice what a whole submission may have
RULES: tuple[Callable[[Reading], Iterator[Finding]], ...] = (
    test_time_training,
    slot_like,
    min_over_passes,
    ngram_cache,
    target_lookup,
    target_seen,
    validation_in_training,
    seed_not_in_data,
    eval_switches,
    network,
    processes,
    reads_outside,
    uncounted_code,
    code_sizes,
    hidden_exec,
)
PLAIN_ENCODINGS = frozenset({"utf-8", "utf-8-sig", "iso-8859-1", "ascii", "text"})
RANK = {Confidence.HIGH: 0, Confidence.MEDIUM: 1, Confidence.LOW: 2}
# Of a minified source, more local names than this share have a letter or two.
MINIFIED = 0.6


@dataclass(frozen=True, kw_only=True)
class Facts:
    """What a script is, as far as its text says. `environment` has defaults as they stand."""

    wrapped: bool
    minified: bool
    lines: int  # of the innermost source
    functions: int
    classes: int
    imports: tuple[str, ...]
    environment: Mapping[str, str | None]
    evaluating: tuple[str, ...]  # the functions that were taken to score


@dataclass(frozen=True, kw_only=True)
class AuditReport:
    """A script's findings by line, and its facts. `bytes` are those of the file, which count."""

    path: Path
    bytes: int
    layers: tuple[Layer, ...]
    findings: tuple[Finding, ...]
    facts: Facts

    def of(self, kind: Kind, at_least: Confidence = Confidence.LOW) -> list[Finding]:
        """The findings of a kind that are at least so sure."""
        most = RANK[at_least]
        return [
            each for each in self.findings if each.kind is kind and RANK[each.confidence] <= most
        ]


def audit(path: Path) -> AuditReport:
    """Read a script. UserError where there is none that can be read.

    It is read in a process of its own, for a script may be made so that reading it takes all time
    and memory; what was read of it in vain is a finding. The layers come without their trees.
    """
    data = _read(path)
    found = limited(f"from {__name__} import _in_child as run", [str(path)], data)
    if found is None:
        return _not_read(data, path)
    report: AuditReport = pickle.loads(found)
    return report


def _in_child(data: bytes, path: str) -> bytes:
    """A script's report for the process that asked for it."""
    report = audit_bytes(data, Path(path))
    layers = tuple(replace(each, tree=None) for each in report.layers)
    return pickle.dumps(replace(report, layers=layers))


def _not_read(data: bytes, path: Path) -> AuditReport:
    source, encoding = decode(data)
    layer = Layer(
        number=0, source=source, encoding=encoding, bytes=len(data), how="the file itself"
    )
    why = f"reading it takes more than {CPU_SECONDS} s, or {MEMORY_BYTES >> 20} MiB of memory"
    unpacked = Unpacked(bytes=len(data), layers=(layer,))
    return AuditReport(
        path=path,
        bytes=len(data),
        layers=(layer,),
        findings=(_unread(layer, 1, why),),
        facts=_facts(unpacked, []),
    )


def _read(path: Path) -> bytes:
    if path.is_dir():
        raise UserError(f"{path}: a folder; give the script in it, {path / 'train_gpt.py'}")
    if not path.is_file():
        raise UserError(f"{path}: there is no such file; give the path of a train_gpt.py")
    try:
        with path.open("rb") as file:
            data = file.read(MOST_BYTES + 1)
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from error
    if len(data) > MOST_BYTES:
        raise UserError(f"{path}: larger than {MOST_BYTES >> 20} MiB; no train_gpt.py is")
    return data


def audit_bytes(data: bytes, path: Path) -> AuditReport:
    """Read a script's bytes; local modules are looked for beside `path`."""
    unpacked = unpack(data)
    readings = [
        Reading(layer, layer.tree, path) for layer in unpacked.layers if layer.tree is not None
    ]
    found = [
        *_of_unpacking(unpacked),
        *(each for reading in readings for each in _read_by(reading)),
    ]
    return AuditReport(
        path=path,
        bytes=unpacked.bytes,
        layers=unpacked.layers,
        findings=_sorted(found),
        facts=_facts(unpacked, readings),
    )


def _read_by(reading: Reading) -> Iterator[Finding]:
    for rule in RULES:
        try:
            yield from list(rule(reading))
        except RecursionError:
            yield _unread(reading.layer, 1, f"too deeply nested for {rule.__name__}")


def _of_unpacking(unpacked: Unpacked) -> Iterator[Finding]:
    """What could not be unpacked, and sources that are not what they look like."""
    for problem in unpacked.problems:
        layer = unpacked.layers[min(problem.layer, len(unpacked.layers) - 1)]
        if problem.call == "the source":
            yield _unread(layer, problem.line, problem.why)
            continue
        why = f"cannot be unpacked: line {problem.line}: {problem.call} of {problem.why}"
        yield _finding(Kind.HIDDEN_EXEC, layer, problem.line, Confidence.HIGH, why)
    for layer in unpacked.layers:
        if layer.encoding not in PLAIN_ENCODINGS:
            why = f"its encoding is {layer.encoding}: what an editor shows may not be what runs"
            yield _finding(Kind.HIDDEN_EXEC, layer, 1, Confidence.MEDIUM, why)


def _unread(layer: Layer, line: int, why: str) -> Finding:
    return _finding(Kind.UNREADABLE, layer, line, Confidence.HIGH, why)


def _finding(kind: Kind, layer: Layer, line: int, confidence: Confidence, why: str) -> Finding:
    lines = layer.lines
    return Finding(
        kind=kind,
        line=line,
        layer=layer.number,
        text=printable(lines[line - 1]) if 1 <= line <= len(lines) else "",
        confidence=confidence,
        why=printable(why),
        question=QUESTIONS[kind],
    )


def _sorted(found: list[Finding]) -> tuple[Finding, ...]:
    """By layer and line; of one kind at one line only the surest."""
    best: dict[tuple[int, int, Kind], Finding] = {}
    for each in found:
        place = (each.layer, each.line, each.kind)
        if place not in best or RANK[each.confidence] < RANK[best[place].confidence]:
            best[place] = each
    return tuple(best[place] for place in sorted(best))


# ---- facts


def _facts(unpacked: Unpacked, readings: list[Reading]) -> Facts:
    programs = [reading.program for reading in readings]
    imports = {
        name.lstrip(".").split(".")[0] for each in programs for name in each.aliases.values()
    }
    environment: dict[str, str | None] = {}
    for reading in readings:
        for _, name, default in settings_of(reading):
            environment.setdefault(printable(name), None if default is None else printable(default))
    return Facts(
        wrapped=unpacked.wrapped,
        minified=bool(readings) and _is_minified(readings[-1]),
        lines=len(unpacked.layers[-1].lines),
        functions=sum(len(each.functions) - 1 for each in programs),
        classes=sum(len(each.classes) for each in programs),
        imports=tuple(sorted(imports - {""})),
        environment=environment,
        evaluating=tuple(
            sorted({each.qualname for program in programs for each in program.evaluating})
        ),
    )


def _is_minified(reading: Reading) -> bool:
    """Whether local names were shortened: rules that go by names then see less."""
    names = [
        (function, node.id)
        for function in reading.program.functions
        for node in function.nodes
        if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store)
    ]
    short = [name for _, name in set(names) if len(name) <= 2]
    return len(short) > 20 and len(short) > MINIFIED * len(set(names))


# ---- for people and programs


def as_json(report: AuditReport) -> dict[str, Any]:
    """The report for programs, ready for JSON, without the sources of its layers."""
    layers = [
        {
            "number": each.number,
            "bytes": each.bytes,
            "encoding": each.encoding,
            "how": each.how,
            "parent": each.parent,
            "at": each.at,
        }
        for each in report.layers
    ]
    return {
        "schema": SCHEMA,
        "kind": "audit",
        "note": _note(report),
        "path": str(report.path),
        "bytes": report.bytes,
        "layers": layers,
        "findings": [asdict(each) for each in report.findings],
        "facts": asdict(report.facts),
    }


def as_table(report: AuditReport) -> str:
    """The report as plain lines; the first and the last say what it is."""
    note = _note(report)
    lines = [f"{report.path.name}: {note}", "", *_fact_lines(report)]
    for each in report.findings:
        order = f", {each.order}" if each.order is not None else ""
        lines += [
            "",
            f"{each.confidence:6}  {_place(report, each)}  {each.kind}{order}",
            f"        {each.text}",
            f"        {each.why}",
            f"        ? {each.question}",
        ]
    return "\n".join([*lines, "", note])


def _place(report: AuditReport, finding: Finding) -> str:
    """Where a finding is: of a wrapped file in which source."""
    if finding.layer == 0:
        return f"line {finding.line}"
    of = "the unpacked source" if len(report.layers) == 2 else f"unpacked source {finding.layer}"
    return f"line {finding.line} of {of}"


def _note(report: AuditReport) -> str:
    """What the report is, and what is left to a person."""
    sure = [each for each in report.findings if each.confidence is not Confidence.LOW]
    if not report.findings:
        return "a triage, not a verdict: nothing was found, which proves nothing"
    places = ", ".join(dict.fromkeys(_place(report, each) for each in sure[:8]))
    more = f" and {len(sure) - 8} more" if len(sure) > 8 else ""
    what = f"a person must look at {places}{more}" if sure else "no finding is more than a hint"
    return f"a triage, not a verdict: {what}"


def _fact_lines(report: AuditReport) -> list[str]:
    facts = report.facts
    lines = [
        f"bytes       {report.bytes:,} counted; {'wrapped' if facts.wrapped else 'plain source'}",
        f"source      {facts.lines:,} lines, {facts.functions} functions, {facts.classes} classes"
        + ("; minified: rules that go by names see less" if facts.minified else ""),
        *(
            f"layer {each.number}     {each.bytes:,} bytes, {each.how}"
            for each in report.layers
            if facts.wrapped
        ),
        f"imports     {', '.join(facts.imports) or 'none'}",
        f"evaluation  {', '.join(facts.evaluating) or 'no function that scores was found'}",
        f"settings    {len(facts.environment)} environment variables are read",
    ]
    return [printable_wide(each) for each in lines]


def printable_wide(line: str) -> str:
    """A line of facts, safe to print, at any length."""
    return "".join(c if c.isprintable() else " " for c in line)
