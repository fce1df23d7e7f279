"""The display: a table that fits its terminal, plain lines where there is none."""

from __future__ import annotations

import dataclasses
import io

import pytest
from rich.console import Console

from sweeper import progress
from sweeper.ledger import RunState
from sweeper.progress import Progress, clock, describe, render, summarise
from sweeper.view import RunView, SweepView

PENDING, RUNNING = RunState.PENDING, RunState.RUNNING
FINISHED, FAILED = RunState.FINISHED, RunState.FAILED

BUSY = RunView(
    trial="low",
    seed=42,
    state=RUNNING,
    attempts=1,
    phase="train",
    step=80,
    iterations=160,
    train_loss=3.14159,
    fraction=0.4,
    seconds=75.0,
    host="box",
)
DONE = RunView(
    trial="high", seed=42, state=FINISHED, attempts=1, val_bpb=1.092443, fraction=1.0, seconds=3_700
)
BROKEN = RunView(trial="low", seed=314, state=FAILED, attempts=2, message="it broke", seconds=1.0)
WAITING = RunView(trial="high", seed=314, state=PENDING, attempts=0)


def view(*runs: RunView, seconds_left: float | None = 90.0) -> SweepView:
    return SweepView(name="small", runs=list(runs), seconds_left=seconds_left)


def screen(width: int, height: int, *, terminal: bool = True) -> Console:
    return Console(
        file=io.StringIO(),
        width=width,
        height=height,
        force_terminal=terminal,
        color_system=None,
        legacy_windows=False,
    )


def text_of(console: Console) -> str:
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def drawn(shown: SweepView, width: int = 100, max_rows: int | None = None) -> list[str]:
    console = screen(width, 50)
    console.print(render(shown, max_rows=max_rows))
    return text_of(console).splitlines()


# ---- the table


def test_a_run_is_a_line_with_all_that_is_known() -> None:
    title, heading, busy, done, broken, waiting = drawn(view(BUSY, DONE, BROKEN, WAITING))
    assert title.startswith("small: 1/4 runs done, 1 failed, 1 running, loss 3.142, about 1:30")
    assert heading.split() == [
        *("trial", "seed", "state", "progress", "step", "loss", "val_bpb", "time")
    ]
    words = busy.replace("━", " ").replace("╸", " ").replace("╺", " ").split()
    assert words == ["low", "42", "train", "80/160", "3.142", "1:15"]
    assert "finished" in done
    assert done.split()[-2:] == ["1.0924", "1:01:40"]
    assert "failed" in broken
    assert "pending" in waiting


@pytest.mark.parametrize("width", [40, 60, 80, 120, 200])
@pytest.mark.parametrize("count", [1, 6, 60])
def test_no_line_is_wider_than_the_terminal(width: int, count: int) -> None:
    runs = [dataclasses.replace(BUSY, seed=seed) for seed in range(count)]
    lines = drawn(view(*runs), width)
    assert all(len(line) <= width for line in lines)
    # Cut short where it must be, but a line a run all the same.
    assert len([line for line in lines if line.startswith(("low", "lo…", "l…"))]) == count


def test_eighty_columns_hold_everything() -> None:
    lines = drawn(view(dataclasses.replace(BUSY, trial="linear to 0"), DONE), 80)
    assert "…" not in "".join(lines)
    assert len(lines) == 4


@pytest.mark.parametrize("height", [5, 10, 24])
def test_the_live_table_is_no_taller_than_the_terminal(height: int) -> None:
    console = screen(120, height)
    runs = [dataclasses.replace(WAITING, seed=seed) for seed in range(100)]
    shown = view(*runs, BUSY)
    with Progress(console).show() as display:
        display.update(shown)
    text = text_of(console)
    frame = text[text.rindex("small:") :].splitlines()
    assert any("train" in line and "80/160" in line for line in frame)
    assert 3 <= len(frame) <= height


def test_where_there_is_little_room_the_busy_ones_are_shown() -> None:
    lines = drawn(view(WAITING, DONE, BROKEN, BUSY), max_rows=2)
    busy, broken = lines[-2:]
    assert "train" in busy
    assert "failed" in broken
    assert not any("pending" in line or "finished" in line for line in lines)


@pytest.mark.parametrize("name", ["[bold]x[/bold]", "[/]", ":heart:", "größe 日本"])
def test_a_trials_name_is_shown_as_it_is(name: str) -> None:
    lines = drawn(view(dataclasses.replace(BUSY, trial=name)))
    assert lines[2].startswith(name)


def test_the_last_table_stays_on_the_screen() -> None:
    console = screen(100, 30)
    with Progress(console).show() as display:
        display.update(view(BUSY))
        display.note("a [word] to say")
        display.update(view(dataclasses.replace(BUSY, state=FINISHED, val_bpb=1.5)))
    text = text_of(console)
    assert "a [word] to say" in text
    assert "1.5000" in text[text.rindex("small:") :]


# ---- plain lines


def test_without_a_terminal_news_are_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progress, "PLAIN_SECONDS", 1e9)
    console = screen(40, 10, terminal=False)
    with Progress(console).show() as display:
        display.update(view(WAITING))
        display.update(view(WAITING))
        display.update(view(dataclasses.replace(BUSY, trial="high", seed=314)))
        display.update(view(dataclasses.replace(BUSY, trial="high", seed=314, step=81)))
        display.update(view(dataclasses.replace(WAITING, attempts=1, message="it broke")))
        again = dataclasses.replace(BUSY, trial="high", seed=314, attempts=2)
        display.update(view(again))
        display.update(view(dataclasses.replace(DONE, seed=314, attempts=2)))
    assert text_of(console).splitlines() == [
        "small: 0/1 runs done, 0 running, about 1:30 left",
        "high, seed 314: running on box (attempt 1)",
        "high, seed 314: waiting: it broke",
        "high, seed 314: running on box (attempt 2)",
        "high, seed 314: finished in 1:01:40, val_bpb 1.09244",
    ]


def test_the_sum_of_it_is_said_now_and_then(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progress, "PLAIN_SECONDS", 0.0)
    console = screen(40, 10, terminal=False)
    display = Progress(console)
    for _ in range(3):
        display.update(view(WAITING))
    assert text_of(console).splitlines() == ["small: 0/1 runs done, 0 running, about 1:30 left"] * 3


# ---- words


def test_a_sweep_in_one_line() -> None:
    other = dataclasses.replace(BUSY, seed=7, train_loss=2.5)
    early = dataclasses.replace(BUSY, seed=8, train_loss=None)
    assert summarise(view(BUSY, other, early, seconds_left=None)) == (
        "small: 0/3 runs done, 3 running, loss 3.142 2.500, time left unknown yet"
    )
    assert summarise(view(DONE, BROKEN)) == "small: 1/2 runs done, 1 failed, 0 running"


@pytest.mark.parametrize(
    ("run", "words"),
    [
        (BUSY, "running on box (attempt 1)"),
        (DONE, "finished in 1:01:40, val_bpb 1.09244"),
        (dataclasses.replace(DONE, val_bpb=None), "finished in 1:01:40"),
        (BROKEN, "failed: it broke"),
        (dataclasses.replace(BROKEN, message=None), "failed: no reason is recorded"),
        (WAITING, "waiting"),
        (dataclasses.replace(WAITING, message="slot lost"), "waiting: slot lost"),
    ],
)
def test_a_run_in_a_few_words(run: RunView, words: str) -> None:
    assert describe(run) == words


@pytest.mark.parametrize(
    ("seconds", "shown"),
    [
        (0, "0:00"),
        (9.4, "0:09"),
        (59.6, "1:00"),
        (75, "1:15"),
        (3_599.7, "1:00:00"),
        (7_325, "2:02:05"),
    ],
)
def test_clocks(seconds: float, shown: str) -> None:
    assert clock(seconds) == shown
