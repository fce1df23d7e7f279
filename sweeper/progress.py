"""What a person sees while a sweep runs: a live table; plain lines where there is no terminal."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from sweeper.ledger import RunState
from sweeper.view import RunView, SweepView

PLAIN_SECONDS = 30.0
TABLE_MARGIN = 4
ROW_ORDER = [RunState.RUNNING, RunState.FAILED, RunState.FINISHED, RunState.PENDING]
STYLES = {
    RunState.PENDING: "dim",
    RunState.RUNNING: "cyan",
    RunState.FINISHED: "green",
    RunState.FAILED: "bold red",
}


class Progress:
    """Shows views of a sweep as they come; the last one stays on the screen."""

    def __init__(self, console: Console | None = None) -> None:
        self._console = console or Console(stderr=True)
        self._live: Live | None = None
        self._said: dict[tuple[str, int], tuple[RunState, int]] = {}
        self._next_line = 0.0

    @contextmanager
    def show(self) -> Iterator[Progress]:
        """Keep the display up for the time of a `with` block."""
        if not self._console.is_terminal:
            yield self
            return
        with Live(console=self._console, auto_refresh=False) as self._live:
            yield self

    def update(self, view: SweepView) -> None:
        """Show the sweep as it is now."""
        if self._live is not None:
            rows = self._console.height - TABLE_MARGIN
            self._live.update(render(view, max_rows=max(1, rows)), refresh=True)
        else:
            self._print_news(view)

    def note(self, text: str) -> None:
        """Say one thing above the display."""
        self._console.print(Text(text), soft_wrap=True)

    def _print_news(self, view: SweepView) -> None:
        """One line for each run that has changed, and one for all now and then."""
        for run in view.runs:
            news = (run.state, run.attempts)
            if self._said.get((run.trial, run.seed), (RunState.PENDING, 0)) != news:
                self._said[run.trial, run.seed] = news
                self._say(f"{run.trial}, seed {run.seed}: {describe(run)}")
        if time.monotonic() >= self._next_line:
            self._next_line = time.monotonic() + PLAIN_SECONDS
            self._say(summarise(view))

    def _say(self, text: str) -> None:
        print(text, file=self._console.file, flush=True)


def render(view: SweepView, max_rows: int | None = None) -> Table:
    """The sweep as a table: a line a run; the busy ones only, where there is not enough room."""
    runs = view.runs
    if max_rows is not None and len(runs) > max_rows:
        runs = sorted(runs, key=lambda run: ROW_ORDER.index(run.state))[:max_rows]
    table = Table(title=summarise(view), title_justify="left", box=None, pad_edge=False)
    for heading in ("trial", "seed", "state", "progress", "step", "loss", "val_bpb", "time"):
        right = heading in ("seed", "step", "loss", "val_bpb", "time")
        table.add_column(heading, justify="right" if right else "left", no_wrap=True)
    for run in runs:
        state = run.phase if run.state is RunState.RUNNING and run.phase else run.state.value
        table.add_row(
            Text(run.trial),  # as Text: a name may hold what rich takes for markup
            str(run.seed),
            Text(state, style=STYLES[run.state]),
            ProgressBar(total=1.0, completed=run.fraction, width=16),
            _step(run),
            "" if run.train_loss is None else f"{run.train_loss:.3f}",
            "" if run.val_bpb is None else f"{run.val_bpb:.4f}",
            "" if run.seconds is None else clock(run.seconds),
        )
    return table


def summarise(view: SweepView) -> str:
    """The sweep in one line: runs by state, current loss, time left."""
    finished, failed = view.count(RunState.FINISHED), view.count(RunState.FAILED)
    parts = [f"{view.name}: {finished}/{len(view.runs)} runs done"]
    if failed:
        parts.append(f"{failed} failed")
    parts.append(f"{view.count(RunState.RUNNING)} running")
    losses = [run.train_loss for run in view.runs if run.state is RunState.RUNNING]
    known = [loss for loss in losses if loss is not None]
    if known:
        parts.append("loss " + " ".join(f"{loss:.3f}" for loss in known))
    if not view.over:
        left = view.seconds_left
        parts.append("time left unknown yet" if left is None else f"about {clock(left)} left")
    return ", ".join(parts)


def describe(run: RunView) -> str:
    """One run's state in a few words."""
    match run.state:
        case RunState.FINISHED:
            score = "" if run.val_bpb is None else f", val_bpb {run.val_bpb:.5f}"
            return f"finished in {clock(run.seconds or 0.0)}{score}"
        case RunState.FAILED:
            return f"failed: {run.message or 'no reason is recorded'}"
        case RunState.RUNNING:
            return f"running on {run.host} (attempt {run.attempts})"
        case RunState.PENDING:
            reason = f": {run.message}" if run.message else ""
            return f"waiting{reason}"


def _step(run: RunView) -> str:
    if run.step is None:
        return ""
    return f"{run.step}/{run.iterations}" if run.iterations else str(run.step)


def clock(seconds: float) -> str:
    """Seconds as m:ss, or h:mm:ss."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


def say(text: str) -> None:
    """One line for people, on stderr: stdout is kept for results."""
    print(text, file=sys.stderr, flush=True)
