"""The commands that read and judge records: records, compare, validate, audit."""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from sweeper.errors import UserError
from sweeper.exits import OK, SOME_FAILED
from sweeper.options import add_root, add_settings

if TYPE_CHECKING:
    from argparse import _SubParsersAction

    from sweeper.evidence.record import Record
    from sweeper.scores import Kind

METRICS = ("ttt", "mixed", "sliding", "summary", "quant")
SOURCE = "a record's folder, a log, a sweep's NAME, or NAME/TRIAL"
TELL_EVERY = 200  # logs, where nobody sees a line change


def add(commands: _SubParsersAction[argparse.ArgumentParser]) -> None:
    _add_records(commands)
    _add_compare(commands)
    _add_validate(commands)
    _add_audit(commands)


# ---- records


def _add_records(commands: _SubParsersAction[argparse.ArgumentParser]) -> None:
    command = commands.add_parser("records", help="published records and logs, read")
    parts = command.add_subparsers(required=True, metavar="WHAT")
    show = parts.add_parser("show", help="what their logs say and what they claim")
    show.add_argument(
        "paths", nargs="+", metavar="PATH", help=f"{SOURCE}; or a tree of folders and logs"
    )
    show.add_argument(
        "--format", choices=("table", "markdown", "json", "csv", "parquet"), default="table"
    )
    show.add_argument("--out", type=Path, metavar="FILE", help="write it there")
    _add_metric(show)
    add_root(show)
    show.set_defaults(run=show_records)


def _add_metric(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--metric",
        choices=METRICS,
        help="which final metric of a log is its score (default: the first of these that there is)",
    )


def _metric(arguments: argparse.Namespace) -> Kind | None:
    from sweeper.scores import Kind

    return None if arguments.metric is None else Kind(arguments.metric)


def show_records(arguments: argparse.Namespace) -> int:
    from sweeper.evidence import listing

    form, out = arguments.format, arguments.out
    if form == "parquet" and out is None:
        raise UserError("Parquet is for a file: add --out FILE.parquet")
    records = list(_read(arguments))
    if form == "parquet":
        data = listing.as_parquet(records)
    else:
        text = listing.as_text(records, form)
        data = text.encode(errors="replace") + b"\n"
    if out is not None:
        listing.check_out(out, records)
        try:
            out.write_bytes(data)
        except OSError as error:
            raise UserError(f"{out}: cannot be written: {error.strerror}") from error
    if out is None:
        print(text.rstrip("\n"))
    else:
        runs = sum(len(record.runs) for record in records)
        print(f"{out}: {len(records)} records, {runs} runs", file=sys.stderr)
    return OK


def _read(arguments: argparse.Namespace) -> Iterator[Record]:
    """The records of all paths, in order."""
    from sweeper.evidence.read import read_records
    from sweeper.evidence.sources import find_sweep, read_source, sweeps_below
    from sweeper.evidence.sweeps import read_trials
    from sweeper.layout import root_from

    metric, root = _metric(arguments), root_from(arguments.root)
    for text in arguments.paths:
        path = Path(text)
        if not path.is_dir() or find_sweep(text, root) is not None:
            yield read_source(text, root, metric=metric)
            continue
        sweeps = sweeps_below(path)
        if sweeps:
            yield from (record for sweep in sweeps for record in read_trials(sweep))
        yield from read_records([path], metric=metric, progress=_tell, may_be_none=bool(sweeps))


def _tell(done: int, of: int) -> None:
    """How many of many logs have been read, on stderr."""
    if of < TELL_EVERY:
        return
    if sys.stderr.isatty():
        end = "\n" if done == of else ""
        print(f"\r{done:,d} of {of:,d} logs read", end=end, file=sys.stderr, flush=True)
    elif done % TELL_EVERY == 0:
        print(f"{done:,d} of {of:,d} logs read", file=sys.stderr, flush=True)


# ---- compare


def _add_compare(commands: _SubParsersAction[argparse.ArgumentParser]) -> None:
    command = commands.add_parser(
        "compare", help="whether one record beats another by more than a margin"
    )
    command.add_argument("candidate", metavar="A", help=f"what may be better: {SOURCE}")
    command.add_argument("baseline", metavar="B", help="what it is held against")
    command.add_argument(
        "--margin-nats",
        type=_not_negative,
        default=0.005,
        metavar="NATS",
        help="what the gain must exceed (default: 0.005, the challenge's)",
    )
    command.add_argument(
        "--basis",
        choices=("token", "byte"),
        default="token",
        help="what its nats are counted by (default: token); the other stands beside it",
    )
    command.add_argument(
        "--alpha", type=_probability, default=0.01, help="below which p must be (default: 0.01)"
    )
    command.add_argument("--format", choices=("table", "json"), default="table")
    _add_metric(command)
    add_root(command)
    command.set_defaults(run=compare)


def _not_negative(text: str) -> float:
    number = float(text)
    if not 0 <= number < math.inf:
        raise ValueError
    return number


def _probability(text: str) -> float:
    number = float(text)
    if not 0 < number < 1:
        raise ValueError
    return number


# What argparse calls them when it complains.
_not_negative.__name__ = "number of 0 or more"
_probability.__name__ = "probability"


def compare(arguments: argparse.Namespace) -> int:
    from sweeper.evidence.compare import as_json, as_text, compare_records
    from sweeper.evidence.sources import read_source
    from sweeper.layout import root_from
    from sweeper.words import finite

    root, metric = root_from(arguments.root), _metric(arguments)
    candidate, baseline = (
        read_source(text, root, metric=metric) for text in (arguments.candidate, arguments.baseline)
    )
    verdict = compare_records(
        candidate,
        baseline,
        margin_nats=arguments.margin_nats,
        basis=arguments.basis,
        alpha=arguments.alpha,
    )
    if arguments.format == "json":
        print(json.dumps(finite(as_json(verdict)), indent=1))
    else:
        print(as_text(verdict))
    return OK


# ---- validate


def _add_validate(commands: _SubParsersAction[argparse.ArgumentParser]) -> None:
    command = commands.add_parser("validate", help="whether a record stands: every rule, checked")
    command.add_argument("record", metavar="FOLDER|SWEEP", help=SOURCE)
    command.add_argument("--baseline", metavar="FOLDER|SWEEP", help="the record that it must beat")
    command.add_argument(
        "--rules",
        choices=("record", "frontier"),
        default="record",
        help="record: all rules; frontier: any gain, without the margin (default: record)",
    )
    command.add_argument("--format", choices=("table", "markdown", "json"), default="table")
    _add_metric(command)
    add_root(command)
    command.set_defaults(run=validate)


def validate(arguments: argparse.Namespace) -> int:
    from sweeper.evidence import validate as judge
    from sweeper.evidence.sources import read_source
    from sweeper.layout import root_from

    root, metric = root_from(arguments.root), _metric(arguments)
    record = read_source(arguments.record, root, metric=metric)
    baseline = arguments.baseline and read_source(arguments.baseline, root, metric=metric)
    findings = judge.validate(record, baseline=baseline or None, rules=arguments.rules)
    if arguments.format == "json":
        print(json.dumps(judge.as_json(findings), indent=1))
    elif arguments.format == "markdown":
        print(judge.as_markdown(findings, record))
    else:
        print(judge.as_table(findings, record))
    return OK if judge.stands(findings) else SOME_FAILED


# ---- audit


def _add_audit(commands: _SubParsersAction[argparse.ArgumentParser]) -> None:
    command = commands.add_parser(
        "audit", help="what in a train_gpt.py a reviewer must look at; a triage, not a verdict"
    )
    command.add_argument("script", type=Path, metavar="TRAIN_GPT.PY")
    command.add_argument(
        "--smoke",
        action="store_true",
        help="build its model on the CPU as well, in a locked-down process",
    )
    command.add_argument(
        "--timeout", type=float, default=60.0, metavar="S", help="of the smoke test (default: 60)"
    )
    command.add_argument("--format", choices=("table", "json"), default="table")
    add_settings(command)
    command.set_defaults(run=audit)


def audit(arguments: argparse.Namespace) -> int:
    from sweeper.evidence import audit as triage
    from sweeper.evidence import smoke as child

    report = triage.audit(arguments.script)
    smoked = None
    if arguments.smoke:
        settings = dict(arguments.env)
        smoked = child.smoke(arguments.script, timeout=arguments.timeout, settings=settings)
    if arguments.format == "json":
        whole = triage.as_json(report) | {"smoke": smoked and child.as_json(smoked)}
        print(json.dumps(whole, indent=1))
    else:
        print(triage.as_table(report))
        if smoked is not None:
            print(f"\n{child.as_text(smoked)}")
    return SOME_FAILED if smoked is not None and not smoked.ok else OK
