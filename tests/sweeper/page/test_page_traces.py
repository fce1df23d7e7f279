"""What runs say of their training: rates, times, stalls and the beginning of recurrence."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from sweeper.layout import AttemptDir
from sweeper.page.traces import POINTS, Trace, read_trace, thinned
from tests.sweeper.conftest import write_attempt
from tests.sweeper.kept_searches import write_log


def step(number: int, ms: float, rate: float | None = 1.0) -> dict[str, Any]:
    facts: dict[str, Any] = {"train_time_ms": ms, "train_loss": 3.0}
    return {"kind": "step", "t": 1.0, "step": number, "lr_mul": rate, **facts}


def trace_of(directory: Path, *events: dict[str, Any], log: str | None = None) -> Trace:
    attempt = write_attempt(directory / "a", events=list(events))
    if log is not None:
        write_log(attempt, 42, log)
    return read_trace(attempt, "low", 42)


def times(trace: Trace) -> list[tuple[int, int, float]]:
    return [(each.begin, each.end, each.step_ms) for each in trace.intervals]


def test_rates_and_intervals_are_by_step(tmp_path: Path) -> None:
    trace = trace_of(tmp_path, step(1, 300), step(2, 400), step(10, 1200, 0.5))
    assert trace.rates == ((1, 1.0), (2, 1.0), (10, 0.5))
    assert times(trace) == [(0, 1, 300.0), (1, 2, 100.0), (2, 10, 100.0)]


def test_steps_done_again_count_once_as_they_were_done_last(tmp_path: Path) -> None:
    events = [step(10, 1000), step(20, 2000), step(30, 9000), step(20, 2500), step(30, 3500)]
    assert times(trace_of(tmp_path, *events)) == [
        *((0, 10, 100.0), (10, 20, 150.0), (20, 30, 100.0))
    ]


def test_what_is_no_number_is_passed_over(tmp_path: Path) -> None:
    odd: list[dict[str, Any]] = [
        {"kind": "step", "step": "7"},
        {"kind": "step", "step": 8, "lr_mul": "x"},
        {"kind": "x"},
    ]
    trace = trace_of(tmp_path, step(5, 500, None), *odd, step(10, float("nan"), float("nan")))
    assert (trace.rates, times(trace)) == ((), [(0, 5, 100.0)])


def test_a_stall_is_what_has_lost_time(tmp_path: Path) -> None:
    events = [step(n, 100.0 * n + (5_000 if n > 50 else 0)) for n in range(10, 101, 10)]
    trace = trace_of(tmp_path, *events)
    assert [(each.begin, each.end) for each in trace.stalls] == [(50, 60)]
    assert trace.usual_ms == 100.0
    assert (trace.lost_ms, trace.lost_share) == (5_000.0, 5_000.0 / 15_000.0)
    assert trace_of(tmp_path / "few", step(1, 100), step(2, 9000)).stalls == ()
    # Slower for good, as where recurrence begins, and less than a second: no stalls.
    slower = [step(n, 100.0 * n + 150.0 * max(0, n - 50)) for n in range(10, 101, 10)]
    assert trace_of(tmp_path / "slower", *slower).stalls == ()
    short = [step(n, 100.0 * n + (900 if n > 50 else 0)) for n in range(10, 101, 10)]
    assert trace_of(tmp_path / "short", *short).stalls == ()


def test_recurrence_begins_where_the_log_says(tmp_path: Path) -> None:
    said = "recurrence:activated at step 2, layers=1,2\nlayer_loop:enabled step:5 frac:0.5"
    trace = trace_of(tmp_path, step(9, 1.0), log=f"{said}\n  recurrence:activated at step 3")
    assert trace.onsets == (2, 5)


def test_without_a_log_it_begins_where_the_settings_say_once_that_is_reached(
    tmp_path: Path,
) -> None:
    settings = {"recurrence_onset": "step", "recur_start_step": 50}
    config = {"kind": "config", "t": 1.0, "config": settings}
    assert trace_of(tmp_path / "before", config, step(40, 1.0)).onsets == ()
    assert trace_of(tmp_path / "after", config, step(60, 1.0)).onsets == (50,)
    other = config | {"config": settings | {"recurrence_onset": "off"}}
    assert trace_of(tmp_path / "off", other, step(60, 1.0)).onsets == ()


def test_the_times_of_a_script_are_what_its_log_can_tell(tmp_path: Path) -> None:
    attempt = AttemptDir(tmp_path / "a")
    lines = [
        f"step:{n}/400 train_loss:3.0 train_time:{10 * n}ms step_avg:10.00ms"
        for n in range(100, 401, 100)
    ]
    write_log(attempt, 42, "\n".join(lines))
    trace = read_trace(attempt, "low", 42)
    assert times(trace)[-1] == (300, 400, 10.0)
    assert [step for step, _ in trace.losses] == [100, 200, 300, 400]


def test_a_line_has_no_more_points_than_can_be_seen() -> None:
    line = thinned(dict.fromkeys(range(10_000), 1.0))
    assert len(line) <= POINTS
    assert line[-1] == (9_999, 1.0)
    assert thinned({}) == ()
