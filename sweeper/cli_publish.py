"""The commands that make records and run them again: publish, reproduce."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from sweeper.errors import UserError
from sweeper.exits import INTERRUPTED, OK, SOME_FAILED
from sweeper.options import add_cluster, add_root, add_settings

if TYPE_CHECKING:
    from argparse import _SubParsersAction

    from sweeper.evidence.reproduce import Plan


def add(commands: _SubParsersAction[argparse.ArgumentParser]) -> None:
    _add_publish(commands)
    _add_reproduce(commands)


# ---- publish


def _add_publish(commands: _SubParsersAction[argparse.ArgumentParser]) -> None:
    command = commands.add_parser("publish", help="a trial as a record's folder, ready to check")
    command.add_argument("name", metavar="SWEEP")
    command.add_argument("--trial", metavar="TRIAL", help="its name or number")
    command.add_argument("--out", type=Path, required=True, metavar="FOLDER")
    command.add_argument("--baseline", metavar="FOLDER|SWEEP", help="the record that it beats")
    command.add_argument(
        "--allow-missing",
        action="store_true",
        help="though seeds of the trial have failed; the folder says which",
    )
    add_root(command)
    command.set_defaults(run=publish)


def publish(arguments: argparse.Namespace) -> int:
    from sweeper.evidence import validate as judge
    from sweeper.evidence.publish import publish as write_record
    from sweeper.evidence.read import read_record
    from sweeper.evidence.sources import find_sweep, read_source
    from sweeper.layout import root_from

    root = root_from(arguments.root)
    found = find_sweep(arguments.name, root)
    if found is None:
        raise UserError(f"{arguments.name}: no sweep of that name in {root}")
    sweep, trial = found
    trial = arguments.trial or trial
    if trial is None:
        raise UserError(f"{arguments.name}: say which of its trials with --trial NAME")
    baseline = arguments.baseline and read_source(arguments.baseline, root)
    folder = write_record(
        sweep,
        trial,
        arguments.out,
        baseline=baseline or None,
        allow_missing=arguments.allow_missing,
    )
    record = read_record(folder)
    findings = judge.validate(record, baseline=baseline or None)
    print(judge.as_table(findings, record))
    print(folder)
    return OK if judge.stands(findings) else SOME_FAILED


# ---- reproduce


def _add_reproduce(commands: _SubParsersAction[argparse.ArgumentParser]) -> None:
    command = commands.add_parser(
        "reproduce",
        help="run a published folder's seeds again",
        description="Exits with 1 where a seed fails or the scores differ beyond noise.",
    )
    command.add_argument("folder", type=Path, metavar="FOLDER")
    command.add_argument(
        "--seeds", type=_seeds, metavar="S,S", help="some of its seeds, as 42,314 (default: all)"
    )
    command.add_argument(
        "--gpus-per-run", type=int, metavar="N", help="default: as its README runs it, else 8"
    )
    command.add_argument("--cpus-per-run", type=int, metavar="N")
    command.add_argument(
        "--processes-per-run", type=int, metavar="N", help="ranks, where they are not its GPUs"
    )
    command.add_argument("--accelerator", metavar="TYPE", help="only on nodes with this, as H100")
    command.add_argument("--max-parallel", type=int, metavar="N", help="runs at a time")
    command.add_argument(
        "--max-seconds", type=float, metavar="S", help="a run that takes longer is ended"
    )
    command.add_argument(
        "--no-run", action="store_true", help="only hold it against what has been run already"
    )
    command.add_argument("--format", choices=("table", "markdown", "json"), default="table")
    add_settings(command)
    add_cluster(command)
    add_root(command)
    command.set_defaults(run=reproduce)


def _seeds(text: str) -> list[int]:
    return [int(seed) for seed in text.split(",")]


_seeds.__name__ = "list of seeds"


def reproduce(arguments: argparse.Namespace) -> int:
    from sweeper.evidence import reproduce_account as accounts
    from sweeper.evidence.read import read_record
    from sweeper.evidence.reproduce import plan
    from sweeper.layout import root_from

    record = read_record(arguments.folder)
    planned = plan(
        record,
        root_from(arguments.root),
        seeds=arguments.seeds,
        env=dict(arguments.env),
        gpus_per_run=arguments.gpus_per_run,
        cpus_per_run=arguments.cpus_per_run,
        processes_per_run=arguments.processes_per_run,
        accelerator=arguments.accelerator,
        max_parallel=arguments.max_parallel,
        max_seconds=arguments.max_seconds,
    )
    if not arguments.no_run and not _drive(planned, arguments):
        return INTERRUPTED
    found = accounts.account(record, planned.sweep)
    if arguments.format == "json":
        print(json.dumps(accounts.as_json(found), indent=1))
    else:
        shown = accounts.as_markdown if arguments.format == "markdown" else accounts.as_text
        print(shown(found))
    differs = found.outcome is accounts.Outcome.DIFFERENT
    return SOME_FAILED if found.failed or differs else OK


def _drive(planned: Plan, arguments: argparse.Namespace) -> bool:
    """Run what is left of a plan; False where it was interrupted."""
    from contextlib import redirect_stdout

    from sweeper.cluster import ClusterOptions
    from sweeper.progress import Progress, say
    from sweeper.session import run_sweep

    for note in planned.notes:
        say(note)
    options = ClusterOptions(
        address=arguments.address, num_cpus=arguments.num_cpus, num_gpus=arguments.num_gpus
    )
    try:
        # Ray tells its own stories there; stdout is for results.
        with redirect_stdout(sys.stderr):
            run_sweep(
                planned.spec,
                planned.sweep,
                options,
                spec_text=planned.text,
                progress=Progress(),
                extend=True,
            )
    except KeyboardInterrupt:
        say("stopped; the same command goes on where it was")
        return False
    return True
