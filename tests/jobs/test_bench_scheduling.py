"""The bench of scheduling: what its numbers mean, and one small call of the real thing."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from pathlib import Path

import pytest

from jobs.bench import starting
from jobs.bench.driving import Driver, Sample, watch
from jobs.bench.scheduling import Size, bench, describe, print_table
from jobs.bench.starting import PARTS, bench_starts, print_starts
from jobs.bench.timeline import Timed, Timeline, growth, ideal_seconds, percentile
from sweeper.contract import read_result
from tests.jobs.conftest import ROOT


def timed(slot: str, launched: float, *, seconds: float = 3.0) -> Timed:
    """A run whose sleep begins 0.1 s after its launch and ends 0.2 s before its end."""
    began = launched + 0.1
    slept = began + seconds
    return Timed(slot=slot, launched=launched, began=began, slept=slept, ended=slept + 0.2)


# Two slots; in the second the launch of the second run is late by a second.
TIMELINE = Timeline(
    up=8.0,
    runs=(timed("a", 10.0), timed("b", 10.0), timed("b", 14.4), timed("a", 13.4)),
)


def test_the_wall_is_from_the_first_launch_to_the_last_end() -> None:
    assert TIMELINE.wall == pytest.approx(7.7)
    assert TIMELINE.wall_from_up == pytest.approx(9.7)


def test_a_gap_is_between_two_sleeps_of_one_slot() -> None:
    assert TIMELINE.gaps() == pytest.approx([0.4, 1.4])  # in the order of the later sleeps
    assert TIMELINE.launch_gaps() == pytest.approx([0.1, 1.1])


def test_a_slot_with_one_run_has_no_gap() -> None:
    assert Timeline(up=0.0, runs=(timed("a", 1.0), timed("b", 1.0))).gaps() == []


def test_ideal_is_wave_after_wave() -> None:
    assert ideal_seconds(40, 4, 3.0) == 30.0
    assert ideal_seconds(5, 4, 3.0) == 6.0


def test_percentiles_are_values_that_were_there() -> None:
    values = [5.0, 1.0, 4.0, 2.0, 3.0]
    assert [percentile(values, share) for share in (0.5, 0.95, 1.0)] == [3.0, 5.0, 5.0]
    assert percentile([7.0], 0.05) == 7.0
    assert math.isnan(percentile([], 0.5))


def test_growth_compares_the_ends_of_a_sweep() -> None:
    assert growth([1.0] * 10) == 1.0
    assert growth([1.0, 1.0, *[9.0] * 6, 2.0, 2.0]) == 2.0
    assert math.isnan(growth([1.0] * 9))


def test_a_driver_is_counted_while_the_first_and_the_last_runs_end() -> None:
    runs = tuple(timed("a", 10.0 * number, seconds=1.0) for number in range(10))
    # A hundredth of a processor at first, twice as much later on.
    samples = [
        Sample(at=t / 10, cpu_s=(t / 10 + max(0.0, t / 10 - 50)) / 100, memory=t)
        for t in range(950)
    ]
    row = describe(
        Timeline(up=0.0, runs=runs),
        Driver(command_s=95.0, samples=samples),
        Size(runs=10, seconds=1.0, slots=1),
    )
    # A run every 10 s: two of them end in 11.3 s at first, and in 20 s at last.
    assert row["driver_cpu_s_a_run"]["first"] == pytest.approx(0.113 / 2, abs=0.002)
    assert row["driver_cpu_s_a_run"]["last"] == pytest.approx(0.4 / 2, abs=0.002)
    assert row["driver_peak_bytes"] == 949
    assert row["driver_last_bytes"] == 913
    assert row["utilisation"] == pytest.approx(10 / 91.3)


def test_a_run_too_few_is_no_measurement() -> None:
    with pytest.raises(SystemExit, match="4 runs have ended, not 5"):
        describe(TIMELINE, Driver(), Size(runs=5, seconds=3.0, slots=2))


def test_a_driver_that_fails_is_no_measurement(tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match=r"(?s)failed.*no such run"):
        watch(["-c", "import sys; sys.exit('no such run')"], tmp_path / "log", lambda: None)


def test_the_sleeper_keeps_the_contract(tmp_path: Path) -> None:
    own = {"RUN_DIR": str(tmp_path), "SEED": "7", "SLEEP_SECONDS": "0.05"}
    command = [sys.executable, "-m", "jobs.bench.sleeper"]
    subprocess.run(command, cwd=ROOT, env=os.environ | own, check=True)
    result = read_result(tmp_path / "result.json")
    stamps = result["stamps"]
    assert stamps["slept"] - stamps["began"] >= 0.05
    assert result["bytes_model"] == (tmp_path / result["artifact"]).stat().st_size
    (event,) = map(json.loads, (tmp_path / "events.jsonl").read_text().splitlines())
    assert event["config"] == {"seed": 7, "sleep_seconds": 0.05}


def test_the_sweeper_and_a_peer_are_measured_alike(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    facts = bench(Size(runs=5, seconds=0.2, slots=2), ["tasks"], 1, tmp_path)
    assert [row["what"] for row in facts["rows"]] == ["sweeper", "tasks"]
    assert facts["ideal_s"] == pytest.approx(0.6)
    assert 0 < facts["fsync_ms"] < 1000
    for row in facts["rows"]:
        assert 1 <= row["slots_used"] <= 2
        assert 0 < row["utilisation_from_up"] <= row["utilisation"] < 1
        assert 0 < row["gap_s"]["median"] <= row["gap_s"]["max"]
        assert row["idle_s"]["max"] < row["gap_s"]["max"]
        assert 0 < row["driver_cpu_s"] < row["command_s"] * (os.cpu_count() or 1)
        assert row["driver_peak_bytes"] >= row["driver_last_bytes"] > 0
    json.dumps(facts)  # holds nothing that a program cannot read
    print_table(facts)
    printed = capsys.readouterr().out
    assert "sweeper" in printed
    assert "5 runs of 0.2 s on 2 slots of 8 logical GPUs: 0.6 s at best" in printed


@pytest.mark.slow
def test_starts_are_taken_apart(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(starting, "RANKS", (2,))
    monkeypatch.setattr(starting, "MIN_STARTS", 1)
    monkeypatch.setattr(starting, "WORK_SECONDS", 0.1)
    facts = bench_starts(tmp_path, 1)
    assert [row["kind"] for row in facts["rows"]] == ["plain", "made ahead"]
    assert facts["rows"][0]["ahead"] == 0
    for row in facts["rows"]:
        assert set(row["parts"]) == set(PARTS)
        parts = {name: seconds for name, (seconds,) in row["parts"].items()}
        whole, end = parts.pop("free to step"), parts.pop("end")
        assert whole == pytest.approx(sum(parts.values()))
        assert end > 0
        # A process's start is known to 10 ms only; all else is in order.
        assert all(seconds > -0.02 for seconds in parts.values()), parts
    print_starts(facts)
    assert "free to step" in capsys.readouterr().out
