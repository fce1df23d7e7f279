"""`sweeper watch`, `status` and `logs`: a sweep seen from outside, from any terminal."""

from __future__ import annotations

import argparse
import sys
import time
from typing import TYPE_CHECKING, Any

from sweeper.exits import INTERRUPTED, OK, SOME_FAILED
from sweeper.options import add_root

if TYPE_CHECKING:
    from sweeper.layout import SweepDir
    from sweeper.progress import Progress
    from sweeper.rows import NoteRow
    from sweeper.view import SweepView

WATCH_SECONDS = 1.0
# Without a terminal: how many of the notes made before are said.
EARLIER_NOTES = 5
# So wide that nothing is cut off, where the output is no terminal.
WIDE = 500


def add(commands: Any) -> None:
    """Add the commands to a parser's subparsers."""
    command = commands.add_parser("watch", help="see a sweep live, until it is over")
    command.add_argument("name", metavar="NAME")
    command.add_argument(
        "--interval",
        type=_seconds,
        default=WATCH_SECONDS,
        metavar="S",
        help=f"seconds between two looks (default: {WATCH_SECONDS:g})",
    )
    add_root(command)
    command.set_defaults(run=watch)

    command = commands.add_parser("status", help="how a sweep stands, while it runs or after")
    command.add_argument("name", metavar="NAME")
    command.add_argument("--json", action="store_true", help="for programs")
    add_root(command)
    command.set_defaults(run=status)

    command = commands.add_parser("logs", help="what a run has said")
    command.add_argument("name", metavar="NAME")
    command.add_argument("run_name", metavar="RUN", help="TRIAL/SEED, or what tells it from others")
    command.add_argument("--rank", type=int, metavar="N", help="default: 0, or the launcher's log")
    command.add_argument("--stderr", action="store_true", help="instead of stdout")
    command.add_argument("--follow", action="store_true", help="go on until the run is over")
    command.add_argument("--attempt", type=int, metavar="K", help="default: the last")
    add_root(command)
    command.set_defaults(run=logs)


def _seconds(text: str) -> float:
    seconds = float(text)
    if not 0.05 <= seconds <= 3600:
        raise ValueError
    return seconds


_seconds.__name__ = "seconds, from 0.05 to 3600"  # what argparse calls it when it complains


def _sweep(arguments: argparse.Namespace) -> SweepDir:
    from sweeper.layout import SweepDir, root_from

    return SweepDir(root_from(arguments.root) / arguments.name)


def watch(arguments: argparse.Namespace) -> int:
    """Show the sweep again and again until it is over; ^C ends the watching, not the sweep."""
    from contextlib import closing

    from rich.console import Console

    from sweeper.ledger import Ledger
    from sweeper.progress import Progress
    from sweeper.rows import RunState
    from sweeper.view import Observer

    sweep = _sweep(arguments)
    with closing(Ledger.open_for_reading(sweep.ledger)) as ledger:
        observer, display = Observer(sweep, ledger), Progress(Console())
        news = _News(display)
        try:
            with display.show():
                while True:
                    view = observer.look()
                    news.tell(view)
                    display.update(view)
                    if view.over:
                        return SOME_FAILED if view.count(RunState.FAILED) else OK
                    time.sleep(arguments.interval)
        except KeyboardInterrupt:
            return INTERRUPTED


class _News:
    """Says in lines what a picture would show beside the runs, where there is no terminal."""

    def __init__(self, display: Progress) -> None:
        self._display = display
        self._notes: tuple[NoteRow, ...] | None = None
        self._said: list[str] = []

    def tell(self, view: SweepView) -> None:
        if self._display.live:
            return
        earlier = self._notes
        new = [note for note in view.notes if earlier is None or note not in earlier]
        for note in new if earlier is not None else new[-EARLIER_NOTES:]:
            self._display.note(f"{note.kind}: {note.text}")
        self._notes = view.notes
        from sweeper.screen import headlines

        said = headlines(view)
        for line in said:
            if line not in self._said:
                self._display.note(line)
        self._said = said


def status(arguments: argparse.Namespace) -> int:
    """Show the sweep once, all of it."""
    import json
    from contextlib import closing

    from rich.console import Console

    from sweeper.ledger import Ledger
    from sweeper.screen import render
    from sweeper.view import Observer, as_table

    sweep = _sweep(arguments)
    with closing(Ledger.open_for_reading(sweep.ledger)) as ledger:
        view = Observer(sweep, ledger).look()
    if arguments.json:
        print(json.dumps(as_table(view), indent=1))
        return OK
    console = Console(soft_wrap=True)
    if not console.is_terminal:
        console.width = WIDE
    console.print(render(view, console.width if console.is_terminal else None))
    return OK


def logs(arguments: argparse.Namespace) -> int:
    """Show one run's log, or follow it until the run is over."""
    from contextlib import closing

    from sweeper import pulse
    from sweeper.ledger import Ledger
    from sweeper.logs import LogReader, Wish, find_run, name_runs
    from sweeper.progress import say

    sweep = _sweep(arguments)
    wish = Wish(
        rank=arguments.rank,
        stream="stderr" if arguments.stderr else "stdout",
        attempt=arguments.attempt,
    )
    warned = False

    def warn() -> None:
        nonlocal warned
        if not warned and not pulse.is_alive(sweep, pulse.read(sweep.pulse)):
            warned = True
            say(f"no driver is running; `sweeper resume {sweep.name}` goes on")

    with closing(Ledger.open_for_reading(sweep.ledger)) as ledger:
        run = find_run(arguments.run_name, name_runs(ledger))
        reader = LogReader(sweep, ledger, run, wish, sys.stdout.buffer, say)
        if not arguments.follow:
            reader.show()
            return OK
        try:
            reader.follow(warn)
        except KeyboardInterrupt:
            return INTERRUPTED
    return OK
