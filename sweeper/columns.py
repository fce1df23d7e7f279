"""The runs of a sweep as a table: as many columns as fit, the most telling ones."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from rich.cells import cell_len, set_cell_size
from rich.text import Text

from sweeper.rows import RunState
from sweeper.view import RunView
from sweeper.words import clock, shorten_gpus

GAP = 2
BAR_WIDTH = 12
# To keep a column, the trials' names are shortened to so much; at the end to less.
NAME_WIDTH, LEAST_NAME_WIDTH = 16, 6
STYLES = {
    RunState.PENDING: "dim",
    RunState.RUNNING: "cyan",
    RunState.FINISHED: "green",
    RunState.FAILED: "bold red",
    RunState.PRUNED: "yellow",
}


@dataclass(frozen=True, kw_only=True)
class Column:
    """One fact of a run as text. Those of the highest `rank` go first where there is no room."""

    heading: str
    text: Callable[[RunView], str]
    rank: int
    right: bool = True

    def width(self, runs: Sequence[RunView]) -> int:
        """How wide it is; 0 where it says nothing."""
        widest = max((cell_len(self.text(run)) for run in runs), default=0)
        return max(widest, cell_len(self.heading)) if widest or self.rank == 0 else 0


def describe_state(run: RunView) -> str:
    """What a run does, or how it stands."""
    if run.state is RunState.RUNNING:
        return run.phase or run.stage or run.state
    return "retry" if run.state is RunState.PENDING and run.message else run.state


def _step(run: RunView) -> str:
    if run.step is None:
        return ""
    return f"{run.step}/{run.iterations}" if run.iterations else str(run.step)


def _score(run: RunView) -> str:
    """The score; while there is none, that of the latest validation, marked as such."""
    if run.val_bpb is not None:
        return f"{run.val_bpb:.4f}"
    return "" if run.latest_val_bpb is None else f"~{run.latest_val_bpb:.4f}"


def _place(run: RunView) -> str:
    if run.state is not RunState.RUNNING or run.host is None:
        return ""
    return f"{run.host}:{shorten_gpus(run.gpus)}" if run.gpus else run.host


def _optional(value: float | None, show: Callable[[float], str]) -> str:
    return "" if value is None else show(value)


COLUMNS = (
    Column(heading="trial", text=lambda run: run.trial, rank=0, right=False),
    Column(heading="seed", text=lambda run: str(run.seed), rank=0),
    Column(heading="state", text=describe_state, rank=0, right=False),
    Column(heading="progress", text=lambda run: " " * BAR_WIDTH, rank=6, right=False),
    Column(heading="step", text=_step, rank=2),
    Column(heading="loss", text=lambda run: _optional(run.train_loss, "{:.3f}".format), rank=3),
    Column(heading="val_bpb", text=_score, rank=1),
    Column(heading="ms/step", text=lambda run: _optional(run.ms_per_step, "{:.1f}".format), rank=4),
    Column(heading="time", text=lambda run: _optional(run.seconds, clock), rank=7),
    Column(heading="left", text=lambda run: _optional(run.seconds_left, clock), rank=5),
    Column(heading="try", text=lambda run: str(run.attempts) if run.attempts > 1 else "", rank=8),
    Column(heading="cost", text=lambda run: _optional(run.cost_usd, "${:,.2f}".format), rank=9),
    Column(heading="on", text=_place, rank=10, right=False),
)


def run_lines(runs: Sequence[RunView], width: int | None = None) -> list[Text]:
    """A heading and a line a run, at most so wide.

    Not one of rich's tables, which take twice as long: the driver draws this twice a second.
    """
    columns, name_width = choose_columns(runs, width)
    rows = [[_cell(column, run, name_width) for column in columns] for run in runs]
    heading = [Text(column.heading, "bold") for column in columns]
    lines = []
    widths = [max(cell.cell_len for cell in cells) for cells in zip(heading, *rows, strict=True)]
    for cells in (heading, *rows):
        line = Text()
        for column, cell, cell_width in zip(columns, cells, widths, strict=True):
            gap = " " * (cell_width - cell.cell_len)
            line.append(gap if column.right else "").append_text(cell)
            line.append("" if column.right else gap).append(" " * GAP)
        line.rstrip()
        lines.append(line)
    return lines


def choose_columns(runs: Sequence[RunView], width: int | None) -> tuple[list[Column], int | None]:
    """The columns that fit, and how wide the names of trials may be."""
    widths = {column: column.width(runs) for column in COLUMNS}
    chosen = [column for column in COLUMNS if widths[column]]
    if width is None:
        return chosen, None
    names = chosen[0]

    def room_for_names() -> int:
        return width - sum(widths[column] + GAP for column in chosen if column is not names)

    while room_for_names() < min(widths[names], NAME_WIDTH):
        least = max(chosen, key=lambda column: column.rank)
        if least.rank == 0:
            break
        chosen.remove(least)
    return chosen, max(LEAST_NAME_WIDTH, min(widths[names], room_for_names()))


def _cell(column: Column, run: RunView, name_width: int | None) -> Text:
    if column.heading == "progress":
        return _bar(run.fraction)
    text = column.text(run)
    if column.heading == "trial" and name_width is not None:
        text = shorten(text, name_width)
    # As Text: a name may hold what rich takes for markup.
    return Text(text, STYLES[run.state] if column.heading == "state" else "")


def _bar(fraction: float) -> Text:
    done = min(BAR_WIDTH, max(0, int(fraction * BAR_WIDTH)))
    return Text("━" * done, "green").append("─" * (BAR_WIDTH - done), "dim")


def shorten(name: str, width: int) -> str:
    """A name with its middle left out: many differ only at their end."""
    if cell_len(name) <= width:
        return name
    if not name.isascii():
        return set_cell_size(name, width - 1) + "…"
    end = (width - 1) // 2
    return f"{name[: width - 1 - end]}…{name[-end:]}"
