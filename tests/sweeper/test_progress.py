"""The display: a live picture on a terminal, plain lines where there is none."""

from __future__ import annotations

import contextlib
import dataclasses
import io
from pathlib import Path

import pytest
from rich.console import Console

from sweeper import progress
from sweeper.progress import Progress, describe
from sweeper.rows import RunState
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


def test_a_log_without_room_costs_its_lines_and_no_more() -> None:
    said = False
    # What had no room is tried once more when the file is closed.
    with contextlib.suppress(OSError), Path("/dev/full").open("w") as file:
        shown = Progress(Console(file=file))
        shown.update(view(BUSY, DONE))
        shown.note("paused")
        said = True
    assert said


# ---- a terminal


@pytest.mark.parametrize("height", [4, 5, 10, 24])
def test_the_live_table_is_no_taller_than_the_terminal(height: int) -> None:
    console = screen(120, height)
    runs = [dataclasses.replace(WAITING, seed=seed) for seed in range(100)]
    shown = view(*runs, BUSY)
    with Progress(console).show() as display:
        display.update(shown)
    text = text_of(console)
    frame = text[text.rindex("small:") :].splitlines()
    assert any("train" in line and "80/160" in line for line in frame)
    assert len(frame) <= height


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
        display.update(view(WAITING, dataclasses.replace(DONE, seed=7)))
        display.update(view(WAITING))
        display.update(view(dataclasses.replace(BUSY, trial="high", seed=314)))
        display.update(view(dataclasses.replace(BUSY, trial="high", seed=314, step=81)))
        display.update(view(dataclasses.replace(WAITING, attempts=1, message="it broke")))
        again = dataclasses.replace(BUSY, trial="high", seed=314, attempts=2)
        display.update(view(again))
        display.update(view(dataclasses.replace(DONE, seed=314, attempts=2)))
    assert text_of(console).splitlines() == [
        "small: 1/2 runs done, 0 running, about 1:30 left",
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
