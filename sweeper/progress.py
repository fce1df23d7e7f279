"""What a person sees while a sweep runs: a live picture; plain lines where there is no terminal."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.live import Live
from rich.text import Text

from sweeper.disk import NO_ROOM
from sweeper.rows import RunState
from sweeper.screen import render, summarise
from sweeper.view import RunView, SweepView
from sweeper.words import clock, first_line

PLAIN_SECONDS = 30.0
# Where the cursor stays, below the picture.
MARGIN = 1


class Progress:
    """Shows views of a sweep as they come; the last one stays on the screen."""

    def __init__(self, console: Console | None = None) -> None:
        self._console = console or Console(stderr=True)
        self._live: Live | None = None
        self._said: dict[tuple[str, int], tuple[RunState, int]] | None = None
        self._next_line = 0.0

    @property
    def live(self) -> bool:
        """Whether there is a terminal to draw on; else all news are lines."""
        return self._console.is_terminal

    @contextmanager
    def show(self) -> Iterator[Progress]:
        """Keep the display up for the time of a `with` block."""
        if not self.live:
            yield self
            return
        with Live(console=self._console, auto_refresh=False) as self._live:
            yield self

    def update(self, view: SweepView) -> None:
        """Show the sweep as it is now."""
        if self._live is not None:
            width, height = self._console.size
            self._live.update(render(view, width, height - MARGIN), refresh=True)
        else:
            self._print_news(view)

    def note(self, text: str) -> None:
        """Say one thing above the display."""
        with _unless_full():
            self._console.print(Text(text), soft_wrap=True)

    def _print_news(self, view: SweepView) -> None:
        """One line for each run that has changed, and one for all now and then."""
        if self._said is None:
            # What was over before anybody looked is no news.
            self._said = {_name(run): _news(run) for run in view.runs if run.state.over}
        for run in view.runs:
            if self._said.get(_name(run), (RunState.PENDING, 0)) != _news(run):
                self._said[_name(run)] = _news(run)
                self._say(f"{run.trial}, seed {run.seed}: {describe(run)}")
        if time.monotonic() >= self._next_line:
            self._next_line = time.monotonic() + PLAIN_SECONDS
            self._say(summarise(view))

    def _say(self, text: str) -> None:
        with _unless_full():
            print(text, file=self._console.file, flush=True)


@contextmanager
def _unless_full() -> Iterator[None]:
    """Leave out what has no room where it goes: a sweep outlives a log that is on a full disk."""
    try:
        yield
    except OSError as error:
        if error.errno not in NO_ROOM:
            raise


def _name(run: RunView) -> tuple[str, int]:
    return run.trial, run.seed


def _news(run: RunView) -> tuple[RunState, int]:
    return run.state, run.attempts


def describe(run: RunView) -> str:
    """One run's state in a few words."""
    match run.state:
        case RunState.FINISHED:
            score = "" if run.val_bpb is None else f", val_bpb {run.val_bpb:.5f}"
            return f"finished in {clock(run.seconds or 0.0)}{score}"
        case RunState.FAILED:
            return f"failed: {first_line(run.message or 'no reason is recorded')}"
        case RunState.RUNNING:
            return f"running on {run.host} (attempt {run.attempts})"
        case RunState.PENDING:
            reason = f": {first_line(run.message)}" if run.message else ""
            return f"waiting{reason}"
        case RunState.PRUNED:
            return f"given up: {first_line(run.message or 'its trial has lost the race')}"


def say(text: str) -> None:
    """One line for people, on stderr: stdout is kept for results."""
    print(text, file=sys.stderr, flush=True)
