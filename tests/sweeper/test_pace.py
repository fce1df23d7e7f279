"""How the steps of a run went by, and where it lost time."""

from __future__ import annotations

from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from sweeper.adapters import parse
from sweeper.pace import MOST_INTERVALS, Interval, Pace, stalls


def evenly(*times: float, by: int = 100) -> tuple[Interval, ...]:
    """Intervals of so many steps each that took these times in seconds."""
    pace = Pace()
    total = 0.0
    pace.at(0, 0.0)
    for place, seconds in enumerate(times, start=1):
        total += 1000 * seconds
        pace.at(place * by, total)
    return pace.intervals


def test_format_a_gives_the_time_between_steps_in_ms() -> None:
    lines = ["step:0/900 val_loss:7 val_bpb:4 train_time:0ms step_avg:0.01ms"]
    lines += ["step:100/900 train_loss:5 train_time:5000ms step_avg:50.00ms"]
    lines += ["step:200/900 train_loss:4 train_time:9000ms step_avg:45.00ms"]
    lines += ["step:200/900 val_loss:3 val_bpb:2 train_time:9010ms step_avg:45.05ms"]
    lines += ["step:300/900 train_loss:4 train_time:13010ms step_avg:43.37ms"]
    intervals = parse(lines).intervals
    assert [(each.begin, each.end, each.ms) for each in intervals] == [
        *((0, 100, 5000), (100, 200, 4000), (200, 300, 4000))
    ]
    assert intervals[0].step_ms == 50


def test_format_b_gives_it_by_its_tokens_a_second() -> None:
    lines = ["Hyperparameters:", "  train_batch_tokens: 1000", ""]
    lines += ["100/900 train_loss: 5.0 train_time: 0.1m tok/s: 20000"]
    lines += ["200/900 train_loss: 4.0 train_time: 0.2m tok/s: 16000"]
    (interval,) = parse(lines).intervals
    assert (interval.begin, interval.end, interval.ms) == (100, 200, 12_500 - 5_000)
    # Tenths of a minute are too coarse, and without a batch's tokens there is no more.
    assert parse(lines[3:]).intervals == ()
    assert parse(["Hyperparameters:", "  train_batch_tokens: no", *lines[2:]]).intervals == ()


def test_a_clock_that_goes_back_begins_anew() -> None:
    pace = Pace()
    for step, ms in ((0, 0.0), (10, 100.0), (5, 120.0), (15, 220.0), (20, 10.0), (30, 50.0)):
        pace.at(step, ms)
    assert [(each.begin, each.end, each.ms) for each in pace.intervals] == [
        *((0, 10, 100), (5, 15, 100), (20, 30, 40))
    ]


@given(st.lists(st.tuples(st.integers(0, 50), st.floats(0, 1e6)), max_size=50), st.integers(1, 40))
def test_however_many_steps_there_are_the_intervals_are_few_and_none_is_negative(
    clock: list[tuple[int, float]], times: int
) -> None:
    pace = Pace()
    for round_ in range(times):
        for step, ms in clock:
            pace.at(60 * round_ + step, ms)
    assert len(pace.intervals) <= MOST_INTERVALS
    assert all(each.ms >= 0 and each.end > each.begin for each in pace.intervals)


def test_intervals_become_one_where_there_are_too_many() -> None:
    pace = Pace()
    for step in range(5_001):
        pace.at(step, 50.0 * step)
    intervals = pace.intervals
    assert MOST_INTERVALS / 2 <= len(intervals) <= MOST_INTERVALS
    assert (intervals[0].begin, intervals[-1].end) == (0, 5_000)
    assert all(one.end == other.begin for one, other in pairwise(intervals))
    assert sum(each.ms for each in intervals) == 250_000


def test_a_stall_is_where_time_was_lost() -> None:
    assert stalls(evenly(5, 5, 5, 30, 5, 5, 5)) == (
        Interval(begin=300, end=400, ms=30_000),
    )  # of a file system, say
    assert stalls(()) == ()
    assert stalls(evenly(5, 5, 5, 7, 5, 5)) == ()  # 1.4 times as slow
    assert stalls(evenly(0.5, 0.5, 0.5, 1.4, 0.5)) == ()  # less than a second lost


def test_a_run_that_gets_slower_for_good_has_not_stalled() -> None:
    assert stalls(evenly(*[5] * 20, *[9] * 20)) == ()
    slow = stalls(evenly(*[5] * 20, 25, *[9] * 20))
    assert [(each.begin, each.end) for each in slow] == [(2000, 2100)]
