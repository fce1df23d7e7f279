"""The command line: thin commands; heavy imports wait until a command needs them."""

from __future__ import annotations

import argparse
import errno
import os
import sys
import traceback
from collections.abc import Callable
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from sweeper import cli_evidence, cli_jobs, cli_publish, cli_search, cli_stats, cli_watch
from sweeper.exits import INTERRUPTED, OK, OUR_FAULT, SOME_FAILED, WRONG_USE
from sweeper.options import add_cluster, add_root, add_settings

if TYPE_CHECKING:
    from sweeper.layout import SweepDir
    from sweeper.spec import SweepSpec


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="sweeper",
        description="Multi-seed sweeps for tiny language models: every configuration judged over "
        "seeds, under the byte budget.",
    )
    parser.add_argument("--version", action="version", version=_version())
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    command = commands.add_parser("run", help="run a sweep, or what is left of it")
    _add_spec(command)
    command.add_argument(
        "--extend", action="store_true", help="the spec has more seeds or trials than the sweep"
    )
    command.set_defaults(run=run, searches=False)

    command = commands.add_parser("search", help="run a search, or what is left of it")
    _add_spec(command)
    command.set_defaults(run=run, searches=True, extend=False)

    command = commands.add_parser("resume", help="go on with a sweep, by its name alone")
    command.add_argument("name", metavar="NAME")
    _add_cluster(command)
    add_root(command)
    command.set_defaults(run=resume)

    cli_watch.add(commands)

    command = commands.add_parser("report", help="a sweep's results: a row a configuration")
    command.add_argument("name", metavar="NAME")
    command.add_argument(
        "--format",
        choices=("table", "markdown", "json", "csv", "html"),
        default="table",
        help="html: a page to look at, written beside the results; says where",
    )
    command.add_argument("--figures", action="store_true", help="draw it; says which files")
    add_root(command)
    command.set_defaults(run=report)

    cli_search.add(commands)
    cli_stats.add(commands)
    cli_evidence.add(commands)
    cli_publish.add(commands)
    cli_jobs.add(commands)

    command = commands.add_parser(
        "data", help="make or fetch a data set: sample, prepare, fetch", add_help=False
    )
    command.add_argument("arguments", nargs=argparse.REMAINDER)
    command.set_defaults(run=data)

    command = commands.add_parser("export-script", help="write the recipe as one counted file")
    command.add_argument("--out", type=Path, metavar="FILE.py", default=Path("train_gpt.py"))
    command.set_defaults(run=export_script)
    return parser


def _add_spec(command: argparse.ArgumentParser) -> None:
    command.add_argument("spec", type=Path, metavar="SPEC", help="a .toml file, see jobs/specs/")
    add_settings(command)
    _add_cluster(command)
    add_root(command)


def _add_cluster(command: argparse.ArgumentParser) -> None:
    add_cluster(command)
    command.add_argument(
        "--update-code",
        action="store_true",
        help="what is left runs today's code, not the copy that the sweep began with",
    )
    command.add_argument(
        "--leave-failed",
        action="store_true",
        help="do not try runs again that have failed: for a start that follows an accident",
    )
    command.add_argument(
        "--stop-seconds",
        type=float,
        metavar="S",
        help="what there is to end in after an interrupt (default: the spec's grace_seconds)",
    )


def _version() -> str:
    try:
        return f"sweeper {version('sweeper')}"
    except PackageNotFoundError:
        return "sweeper, not installed"


def run(arguments: argparse.Namespace) -> int:
    from sweeper.errors import UserError
    from sweeper.layout import SweepDir, root_from
    from sweeper.spec import load_spec

    spec = load_spec(arguments.spec, env=dict(arguments.env))
    if arguments.searches and spec.search is None:
        raise UserError(f"{arguments.spec}: no [search] in it; `sweeper run` runs what it lists")
    sweep = SweepDir(root_from(arguments.root) / spec.name)
    text = arguments.spec.read_text(encoding="utf-8")
    drive = partial(_drive, arguments, spec, sweep, spec_text=text, extend=arguments.extend)
    return _keep(drive, arguments.address, spec.name)


def resume(arguments: argparse.Namespace) -> int:
    from contextlib import closing

    from sweeper.layout import SweepDir, root_from
    from sweeper.ledger import Ledger

    sweep = SweepDir(root_from(arguments.root) / arguments.name)
    with closing(Ledger.open_for_reading(sweep.ledger)) as ledger:
        spec = ledger.spec
    return _keep(partial(_drive, arguments, spec, sweep), arguments.address, spec.name)


def _keep(drive: Callable[[bool], int], address: str | None, name: str) -> int:
    """Drive; on a cluster that is not ours, again after it has lost its head."""
    address = address or os.environ.get("RAY_ADDRESS")
    if not address:
        return drive(False)
    from sweeper.keeper import keep
    from sweeper.progress import say

    return keep(lambda again: _call(partial(drive, again)), address, say, name)


def _drive(
    arguments: argparse.Namespace,
    spec: SweepSpec,
    sweep: SweepDir,
    again: bool,
    *,
    spec_text: str = "",
    extend: bool = False,
) -> int:
    """Run what is left of a sweep, and print its results; `again` after a driver that died."""
    from contextlib import redirect_stdout

    from sweeper.cluster import ClusterOptions
    from sweeper.logs import describe_failures
    from sweeper.progress import Progress, say
    from sweeper.rows import RunState
    from sweeper.session import run_sweep

    options = ClusterOptions(
        address=arguments.address, num_cpus=arguments.num_cpus, num_gpus=arguments.num_gpus
    )
    try:
        # Ray tells its own stories there of nodes that die; stdout is for results.
        with redirect_stdout(sys.stderr):
            view = run_sweep(
                spec,
                sweep,
                options,
                spec_text=spec_text,
                progress=Progress(),
                extend=extend,
                update_code=arguments.update_code,
                leave_failed=again or arguments.leave_failed,
                stop_seconds=arguments.stop_seconds,
            )
    except KeyboardInterrupt:
        say(f"stopped; `sweeper resume {spec.name}` goes on where it was")
        return INTERRUPTED
    from sweeper.aggregate import report, write_report

    print(report(sweep, "table"))
    print("\n".join(f"{_shown(path)}" for path in write_report(sweep)))
    if not view.count(RunState.FAILED):
        return OK
    say(describe_failures(sweep))
    return SOME_FAILED


def _shown(path: Path) -> Path:
    """A path as a person would type it."""
    return path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path


def report(arguments: argparse.Namespace) -> int:
    from sweeper.aggregate import report as report_text
    from sweeper.aggregate import write_pictures
    from sweeper.layout import SweepDir, root_from
    from sweeper.progress import say

    sweep = SweepDir(root_from(arguments.root) / arguments.name)
    if arguments.format == "html":
        from sweeper.page.write import write_page

        print(_shown(write_page(sweep)))
    else:
        print(report_text(sweep, arguments.format))
    if arguments.figures:
        say("\n".join(f"{_shown(path)}" for path in write_pictures(sweep)) or "nothing to draw yet")
    return OK


def data(arguments: argparse.Namespace) -> int:
    """Become `python -m jobs.data`: data sets are made by a job, not by this package."""
    return _become("jobs.data", arguments.arguments)


def export_script(arguments: argparse.Namespace) -> int:
    """Become `python -m model.export`: only the recipe's own package knows its sources."""
    return _become("model.export", ["--out", str(arguments.out)])


def _become(module: str, arguments: list[str]) -> NoReturn:
    command = [sys.executable, "-m", module, *arguments]
    sys.stdout.flush()
    os.execv(command[0], command)


def main(arguments: list[str] | None = None) -> int:
    """Run one command; returns its exit code."""
    parsed = build_parser().parse_args(arguments)
    return _call(partial(parsed.run, parsed))


def _call(command: Callable[[], int]) -> int:
    """A command's exit code (sweeper/exits.py). What the user did wrong is said in one line."""
    from sweeper.errors import UserError

    try:
        code = int(command())
        sys.stdout.flush()  # here, where a reader that has gone can be caught
        return code
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return WRONG_USE
    except BrokenPipeError:
        # The reader (`| head`) has seen enough; nothing more can be said to it.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return OK
    except KeyboardInterrupt:
        return INTERRUPTED
    except Exception as error:
        if not isinstance(error, OSError) or error.errno not in (errno.ENOSPC, errno.EDQUOT):
            traceback.print_exc()
            return OUR_FAULT
        what = f"{error.filename}: {error.strerror}" if error.filename else error.strerror
        print(f"error: {what}; make room, then the same command goes on", file=sys.stderr)
        return WRONG_USE


if __name__ == "__main__":
    sys.exit(main())
