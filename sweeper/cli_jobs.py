"""`sweeper submit` and `sweeper jobs …`: sweeps as jobs of a Ray cluster."""

from __future__ import annotations

import argparse
import os
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sweeper.errors import UserError
from sweeper.exits import GO_ON_LATER, INTERRUPTED, OK
from sweeper.options import add_settings

if TYPE_CHECKING:
    from sweeper.submit import JobRow

PASSED_ON = ("extend", "update_code")
ADDRESS_NAMES = ("RAY_API_SERVER_ADDRESS", "RAY_ADDRESS")


def add(commands: Any) -> None:
    """Add the commands to a parser's subparsers."""
    command = commands.add_parser("submit", help="run a sweep as a job of a Ray cluster")
    command.add_argument("spec", type=Path, metavar="SPEC", help="a .toml file, see jobs/specs/")
    _add_address(command)
    command.add_argument("--follow", action="store_true", help="show its log until it has ended")
    command.add_argument(
        "--root",
        metavar="DIR",
        help="where sweeps are kept on the cluster's head (default: ~/sweeper-runs there)",
    )
    add_settings(command)
    command.add_argument(
        "--extend", action="store_true", help="the spec has more seeds or trials than the sweep"
    )
    command.add_argument(
        "--update-code",
        action="store_true",
        help="what is left runs the code that is sent, not the copy that the sweep began with",
    )
    command.add_argument(
        "--python", default="python", metavar="PROGRAM", help="the Python of the cluster's head"
    )
    command.set_defaults(run=submit)

    parser = commands.add_parser("jobs", help="sweeps that are jobs of a Ray cluster")
    parsers = parser.add_subparsers(required=True, metavar="COMMAND")
    command = parsers.add_parser("list", help="the jobs there are")
    command.add_argument("--json", action="store_true", help="for programs")
    _add_address(command)
    command.set_defaults(run=list_jobs)

    command = _job_command(parsers, "logs", "what a job has said")
    command.add_argument("--follow", action="store_true", help="until it has ended")
    command.set_defaults(run=logs)

    command = _job_command(parsers, "stop", "stop a job; another submission goes on from there")
    command.set_defaults(run=stop)

    command = _job_command(parsers, "pull", "bring a sweep's results here, also while it runs")
    command.add_argument(
        "--out",
        metavar="DIR",
        help="where to (default: $SWEEPER_ROOT, or ./runs)",
    )
    command.set_defaults(run=pull)


def _job_command(parsers: Any, name: str, text: str) -> argparse.ArgumentParser:
    command: argparse.ArgumentParser = parsers.add_parser(name, help=text)
    command.add_argument("job", metavar="JOB", help="its id, or the name of its sweep")
    _add_address(command)
    return command


def _add_address(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--address",
        metavar="URL",
        help="the cluster's dashboard, as http://head:8265 (default: $RAY_API_SERVER_ADDRESS, or "
        "$RAY_ADDRESS)",
    )


def address_from(argument: str | None) -> str:
    """The address of a dashboard; UserError when none is known, or it is of another kind."""
    given = [argument, *(os.environ.get(name) for name in ADDRESS_NAMES)]
    address = next((text for text in given if text), None)
    if argument is None and address is not None and not address.startswith("http"):
        address = None  # RAY_ADDRESS may name the cluster's other port
    if address is None:
        raise UserError("give the cluster's dashboard: --address http://HEAD:8265")
    if "://" not in address:
        address = f"http://{address}"
    if not address.startswith(("http://", "https://")):
        raise UserError(f"--address {address}: jobs go to the dashboard, as http://HEAD:8265")
    return address.rstrip("/")


def _client(arguments: argparse.Namespace) -> Any:
    from sweeper.cluster import job_client

    return job_client(address_from(arguments.address))


def submit(arguments: argparse.Namespace) -> int:
    from sweeper import submit as jobs

    options = vars(arguments)
    submission = jobs.Submission(
        spec=arguments.spec,
        env=dict(arguments.env),
        root=arguments.root or jobs.DEFAULT_ROOT,
        python=arguments.python,
        options=tuple(f"--{name.replace('_', '-')}" for name in PASSED_ON if options[name]),
    )
    client = _client(arguments)
    job = jobs.submit(client, submission)
    print(job, flush=True)
    if arguments.follow:
        return _follow(client, job)
    _say(
        f"submitted; `sweeper jobs logs {job} --follow` shows it, `sweeper jobs pull {job}` brings "
        "its results"
    )
    return OK


def list_jobs(arguments: argparse.Namespace) -> int:
    from sweeper import submit as jobs

    rows = jobs.jobs(_client(arguments))
    if arguments.json:
        print(jobs.as_json(rows))
        return OK
    lines = [("JOB", "SWEEP", "STATUS", "STARTED", "KEPT IN")]
    lines += [(row.id, row.sweep, _status(row), _clock(row.started), row.root) for row in rows]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    for line in lines:
        cells = zip(line, widths, strict=True)
        print("  ".join(cell.ljust(width) for cell, width in cells).rstrip())
    return OK


def logs(arguments: argparse.Namespace) -> int:
    from sweeper import submit as jobs

    client = _client(arguments)
    job = jobs.find_job(client, arguments.job)
    if arguments.follow:
        return _follow(client, job.id)
    _show(str(client.get_job_logs(job.id)))
    return OK


def stop(arguments: argparse.Namespace) -> int:
    from sweeper import submit as jobs

    client = _client(arguments)
    job = jobs.find_job(client, arguments.job)
    if job.over:
        _say(f"job {job.id} has ended already: {_status(job)}")
        return OK
    ended = jobs.stop(client, job)
    _say(f"job {job.id}: {_status(ended)}; submitting the sweep again goes on where it was")
    return OK


def pull(arguments: argparse.Namespace) -> int:
    from sweeper import submit as jobs
    from sweeper.layout import root_from
    from sweeper.pull import pull as bring

    client = _client(arguments)
    job = jobs.find_job(client, arguments.job)
    try:
        pulled = bring(client, job, root_from(arguments.out), _say)
    except KeyboardInterrupt:
        _say("\nstopped; the same command brings the rest")
        return INTERRUPTED
    print(pulled.directory)
    return OK


def _follow(client: Any, job: str) -> int:
    """Show a job's log to its end; the exit code of its sweep."""
    from sweeper import submit as jobs

    try:
        ended = jobs.follow(client, job, _show)
    except KeyboardInterrupt:
        _say(
            f"\njob {job} goes on; `sweeper jobs logs {job} --follow` shows it again, "
            f"`sweeper jobs stop {job}` stops it"
        )
        return INTERRUPTED
    _say(f"job {job}: {_status(ended)}")
    if ended.status == "SUCCEEDED":
        return OK
    # Without a code, the cluster ended it and not the sweep.
    return INTERRUPTED if ended.status == "STOPPED" else ended.exit_code or GO_ON_LATER


def _status(row: JobRow) -> str:
    if row.exit_code:
        return f"{row.status.lower()} (exit code {row.exit_code})"
    return row.status.lower()


def _clock(seconds: float | None) -> str:
    return "" if seconds is None else time.strftime("%Y-%m-%d %H:%M", time.localtime(seconds))


def _show(text: str) -> None:
    sys.stdout.write(text)
    sys.stdout.flush()


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
