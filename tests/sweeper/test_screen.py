"""A sweep on a screen: it fits, and what matters most is on it."""

from __future__ import annotations

import dataclasses
import io
import time

import pytest
from rich.cells import cell_len
from rich.console import Console

from sweeper.columns import shorten
from sweeper.pulse import Quarantined, SlotPulse, SlotState
from sweeper.rows import NoteRow, RunState
from sweeper.screen import most_telling, render, summarise
from sweeper.stages import Stage
from sweeper.view import DriverView, RunView, SweepView
from sweeper.words import clock, first_line, shorten_gpus
from tests.sweeper.test_progress import BROKEN, BUSY, DONE, FAILED, FINISHED, PENDING, RUNNING
from tests.sweeper.test_progress import WAITING as WAITS

ALIVE = DriverView(alive=True, pid=7, host="head", started=1.0, t=2.0)
FULL = dataclasses.replace(
    *(BUSY,),
    latest_val_bpb=1.25,
    ms_per_step=29.94,
    seconds_left=401.0,
    attempts=2,
    cost_usd=1234.5,
    gpus="0,1,2,3,4,5,6,7",
)


def view(*runs: RunView, **changes: object) -> SweepView:
    shown = SweepView(name="small", runs=list(runs), seconds_left=90.0, driver=ALIVE)
    return dataclasses.replace(shown, **changes)  # type: ignore[arg-type]


def drawn(shown: SweepView, width: int | None = None, height: int | None = None) -> list[str]:
    console = Console(
        file=io.StringIO(), width=width or 500, height=50, force_terminal=True, color_system=None
    )
    console.print(render(shown, width, height))
    assert isinstance(console.file, io.StringIO)
    return [line.rstrip() for line in console.file.getvalue().splitlines()]


def busy_slot(host: str, gpus: str, trial: str, stage: Stage = Stage.ALL) -> SlotPulse:
    state = SlotState.BUSY
    return SlotPulse(
        pool="runs", state=state, host=host, gpus=gpus, trial=trial, seed=1, stage=stage
    )


# ---- the table of runs


def test_a_run_is_a_line_with_all_that_is_known() -> None:
    lines = drawn(view(FULL, DONE, BROKEN, WAITS))
    assert lines[0] == "small: 1/4 runs done, 1 failed, 1 running, about 1:30 left"
    heading, busy, done, broken, waiting = lines[2:7]
    assert heading.split() == [
        *("trial", "seed", "state", "progress", "step", "loss", "val_bpb", "ms/step", "time"),
        *("left", "try", "cost", "on"),
    ]
    words = busy.replace("━", " ").replace("─", " ").split()
    assert words == [
        *("low", "42", "train", "80/160", "3.142", "~1.2500", "29.9", "1:15", "6:41", "2"),
        *("$1,234.50", "box:0-7"),
    ]
    assert done.split()[-2:] == ["1.0924", "1:01:40"]
    assert broken.split()[:3] == ["low", "314", "failed"]
    assert waiting.split()[:3] == ["high", "314", "pending"]


def test_a_column_that_says_nothing_is_left_out() -> None:
    assert drawn(view(WAITS))[2].split() == ["trial", "seed", "state", "progress"]


@pytest.mark.parametrize("width", [30, 40, 60, 80, 120, 200])
@pytest.mark.parametrize("count", [1, 6, 60])
def test_no_line_is_wider_than_the_terminal(width: int, count: int) -> None:
    runs = [dataclasses.replace(FULL, seed=seed) for seed in range(count)]
    slots = tuple(busy_slot("box", str(gpu), "low") for gpu in range(8))
    lines = drawn(view(*runs, slots=slots), width)
    assert all(cell_len(line) <= width for line in lines)
    assert len([line for line in lines if line.startswith("low")]) == count


def test_eighty_columns_hold_what_is_watched() -> None:
    long = dataclasses.replace(
        FULL, trial="a long name with its end: 0.125", seed=314, step=12_345, iterations=20_000
    )
    heading, line = drawn(view(long), 80)[2:4]
    assert heading.split()[3:] == ["step", "loss", "val_bpb", "ms/step", "left"]
    assert line.startswith("a long n")
    assert "0.125" in line.split("314")[0]
    assert "12345/20000  3.142  ~1.2500     29.9  6:41" in line


@pytest.mark.parametrize("name", ["[bold]x[/bold]", "[/]", ":heart:", "größe 日本"])
def test_a_trials_name_is_shown_as_it_is(name: str) -> None:
    lines = drawn(view(dataclasses.replace(BUSY, trial=name)), 80)
    assert lines[3].startswith(name)


@pytest.mark.parametrize(
    ("name", "width", "shown"),
    [
        ("short", 5, "short"),
        ("trial-1", 5, "tr…-1"),
        ("trial-1", 6, "tri…-1"),
        ("日本日本", 6, "日本 …"),
    ],
)
def test_names_keep_both_ends(name: str, width: int, shown: str) -> None:
    assert shorten(name, width) == shown


# ---- what is shown where there is little room


def many(*counts: tuple[RunState, int]) -> list[RunView]:
    return [
        RunView(trial="a", seed=seed, state=state, attempts=int(state is not PENDING))
        for state, count in counts
        for seed in range(seed_of(state), seed_of(state) + count)
    ]


def seed_of(state: RunState) -> int:
    return list(RunState).index(state) * 1000


@pytest.mark.parametrize("height", [3, 4, 6, 10, 24, 60])
def test_a_picture_is_no_taller_than_the_terminal(height: int) -> None:
    runs = many((PENDING, 300), (RUNNING, 40), (FAILED, 20), (FINISHED, 300))
    crowded = view(
        *runs,
        slots=tuple(busy_slot(f"h{i}", "0", "a") for i in range(40)),
        paused="no room",
        quarantined=tuple(Quarantined(node="n", host=f"q{i}", why="x") for i in range(9)),
        notes=tuple(NoteRow(t=1.0, kind="stall", text=f"{i}") for i in range(40)),
    )
    lines = drawn(crowded, 100, height)
    assert len(lines) <= height
    assert any("running" in line for line in lines[1:])
    if height >= 24:
        assert any(line.startswith("a") and "failed" in line for line in lines)


def test_busy_and_failed_runs_come_first() -> None:
    again = dataclasses.replace(WAITS, seed=5, attempts=1)
    chosen = most_telling([WAITS, DONE, again, BROKEN, BUSY], 4)
    assert chosen == [BUSY, BROKEN, again, DONE]
    crowd = many((RUNNING, 100), (FAILED, 100))
    states = [run.state for run in most_telling(crowd, 8)]
    assert (states.count(RUNNING), states.count(FAILED)) == (6, 2)


def test_runs_that_are_not_shown_are_counted() -> None:
    runs = many((PENDING, 300), (RUNNING, 4), (FINISHED, 96))
    lines = drawn(view(*runs), 100, 12)
    shown = sum(line.startswith("a ") for line in lines)
    (rest,) = [line for line in lines if line.startswith("…")]
    assert rest.startswith(f"… and {400 - shown} more: 300 pending, ")


def test_all_is_shown_in_launch_order_where_there_is_room() -> None:
    lines = drawn(view(WAITS, DONE, BUSY), 100, 40)
    assert [line.split()[2] for line in lines[3:6]] == ["pending", "finished", "train"]


# ---- what is said beside the runs


def test_slots_are_a_line_a_host() -> None:
    slots = (
        busy_slot("b", "4,5,6,7", "high", Stage.SCORE),
        busy_slot("b", "0,1,2,3", "low"),
        SlotPulse(pool="runs", state=SlotState.IDLE, host="a", gpus="0,1,3"),
        SlotPulse(pool="runs", state=SlotState.OPENING),
    )
    lines = drawn(view(BUSY, slots=slots, waiting=9, backing_off=2, gpu_seconds=9000.0))
    assert lines[1:4] == [
        "2.50 GPU hours; slots: 2 busy, 1 idle, 1 opening; 9 waiting, 2 of them later; "
        "driver: process 7 on head",
        "a  0-1,3 idle",
        "b  0-3 low/1 · 4-7 high/1 score",
    ]


def test_what_keeps_a_sweep_from_going_on_is_said() -> None:
    dead = drawn(view(BUSY, driver=DriverView(alive=False)))
    assert "no driver is running; `sweeper resume small` goes on" in dead
    assert not any("driver" in line for line in drawn(view(DONE, driver=DriverView(alive=False))))
    held = drawn(
        view(BUSY, paused="no room", quarantined=(Quarantined(node="n", host="h", why="bad\nx"),))
    )
    assert "paused: no room" in held
    assert "h takes no more runs: bad" in held


def test_why_runs_failed_is_said() -> None:
    again = dataclasses.replace(WAITS, attempts=1, message="its node was lost")
    lines = drawn(view(again, dataclasses.replace(BROKEN, message="it broke\nbadly")))
    assert lines[-2:] == [
        "low/314 failed (attempt 2): it broke",
        "high/314 waits for its next try (attempt 1): its node was lost",
    ]
    assert [line.split()[2] for line in lines[3:5]] == ["retry", "failed"]


def test_notes_come_last_with_their_time() -> None:
    now = time.time()
    old = NoteRow(t=now - 1e6, kind="pause", text="long ago")
    new = NoteRow(t=now, kind="stall", text="it hung\nhere")
    lines = drawn(view(BUSY, notes=(old, new)))
    assert lines[-2].endswith("pause: long ago")
    assert lines[-2].startswith(time.strftime("%Y-", time.localtime(now - 1e6)))
    assert lines[-1] == time.strftime("%H:%M:%S", time.localtime(now)) + "  stall: it hung"


def test_a_sweep_in_one_line() -> None:
    other = dataclasses.replace(BUSY, seed=7, train_loss=2.5)
    early = dataclasses.replace(BUSY, seed=8, train_loss=None)
    assert summarise(view(BUSY, other, early, seconds_left=None)) == (
        "small: 0/3 runs done, 3 running, time left unknown yet, loss 3.142 2.500"
    )
    assert summarise(view(DONE, BROKEN, gpu_seconds=36.0, cost_usd=0.5)) == (
        "small: 1/2 runs done, 1 failed, 0 running, 0.01 GPU hours, $0.50"
    )
    crowd = [dataclasses.replace(BUSY, seed=seed) for seed in range(5)]
    assert "loss" not in summarise(view(*crowd))


# ---- words


@pytest.mark.parametrize(
    ("gpus", "shown"),
    [
        ("", ""),
        ("3", "3"),
        ("0,1,2,3", "0-3"),
        ("0,2,3,6", "0,2-3,6"),
        ("0,1,0,1", "4 GPUs"),
        ("GPU-a,GPU-b", "GPU-a,GPU-b"),
    ],
)
def test_gpus_are_spans(gpus: str, shown: str) -> None:
    assert shorten_gpus(gpus) == shown


def test_a_message_has_one_line() -> None:
    assert [first_line(text) for text in ("a\nb", "\n a", "")] == ["a", "a", ""]


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
