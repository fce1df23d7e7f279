"""`sweeper dashboard`: a search in Optuna's dashboard."""

from __future__ import annotations

import argparse
import signal
import threading
from typing import Any

OK, INTERRUPTED = 0, 130


def add(commands: Any) -> None:
    """Add the commands to a parser's subparsers."""
    from sweeper.options import add_root

    command = commands.add_parser(
        "dashboard",
        help="a search in Optuna's dashboard, on this machine's own address",
        description="Shows a copy of the search in Optuna's dashboard until it is interrupted: "
        "while the search is under way, and after. Nothing can be changed from there.",
    )
    command.add_argument("name", metavar="NAME")
    command.add_argument(
        "--port", type=int, default=0, metavar="N", help="to listen at (default: any that is free)"
    )
    add_root(command)
    command.set_defaults(run=dashboard)


def dashboard(arguments: argparse.Namespace) -> int:
    """Show until SIGINT (130) or SIGTERM (0); the URL is the one line on stdout."""
    from sweeper.dashboard import show
    from sweeper.layout import SweepDir, root_from

    over, received = threading.Event(), []

    def end(number: int, _: object) -> None:
        received.append(number)
        over.set()

    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, end)
    show(
        SweepDir(root_from(arguments.root) / arguments.name),
        arguments.port,
        lambda url: print(url, flush=True),
        over,
    )
    return INTERRUPTED if signal.SIGINT in received else OK
