"""Logs as files: whatever is in them, as facts and, while they grow, as events."""

from __future__ import annotations

import errno
import io
import json
import math
import os
import re
import tracemalloc
from dataclasses import asdict
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sweeper.adapters import parse
from sweeper.layout import AttemptDir
from sweeper.logfacts import reasons
from sweeper.logreader import (
    LINE_BYTES,
    Lines,
    LogReader,
    RunReader,
    find_logs,
    read_log,
    read_runs,
)
from sweeper.pace import MOST_INTERVALS
from sweeper.seen import MOST_SCORES, MOST_SETTINGS

# ---- whatever comes


# Lines that say something, with a place for a number.
LINES = [
    *("seed:#", "#/9 train_loss: # train_time: #m tok/s: #", "Hyperparameters:", "  seed: #"),
    *("step:#/# train_loss:# train_time:#ms step_avg:#ms", "Serialized model x: # bytes", "---"),
    *("step     #/# | loss # | #s", "Total submission size: # bytes", "Code size: # bytes"),
    *("val_bpb: #", "total_bytes: #", "train_shards: #", "world_size:#", "  train_batch_tokens: #"),
    *("peak memory allocated: # MiB", "gptq:calibrated 2 layers in #s", "x:done elapsed=#s"),
    *("stopping_early: cap train_time:#ms step:#/#", "Artifact: # bytes", "a, total: # bytes"),
    *("=== RUN 2 (seed=#) ===", "train_loader:x train_shards:#", "#: seed:#", "[rank#]: seed:#"),
    *("10:00:00 INFO seed:#", "(x pid=#) \x1b[#mseed:#", "bar #\rworld_size:#"),
]
NUMBERS = ["3", "-5", "0", "1e999", "nan", "-inf", "9" * 400, "1." + "0" * 5000, "7" * 5000, "٣"]


def torn(line: str, number: str, length: int | None) -> bytes:
    return line.replace("#", number).encode()[:length]


SOMETHING = st.builds(
    torn, st.sampled_from(LINES), st.sampled_from(NUMBERS), st.none() | st.integers(0, 40)
)


@given(st.lists(st.binary(max_size=60) | SOMETHING))
def test_no_bytes_make_the_reading_fail(
    tmp_path_factory: pytest.TempPathFactory, lines: list[bytes]
) -> None:
    path = tmp_path_factory.mktemp("log") / "log"
    path.write_bytes(b"\n".join(lines))
    facts = read_log(path)
    assert facts.metric in (None, "summary")
    assert LogReader(path).read() is not None
    for run in read_runs(path):
        sizes = (run.bytes_model, run.bytes_code, run.bytes_total, run.steps, run.peak_memory_mib)
        assert all(size is None or size >= 0 for size in sizes)
        assert all(1 <= line <= b"\n".join(lines).count(b"\n") + 1 for line in run.lines.values())
        assert all(interval.ms >= 0 for interval in run.intervals)
        assert "val_bpb" in reasons(run) or run.val_bpb is not None
        json.dumps(asdict(run), allow_nan=True)


@pytest.mark.parametrize("number", ["1e999", "-1e999", "nan", "inf"])
def test_a_score_that_is_no_number_is_nan_and_one_too_long_is_none(number: str) -> None:
    facts = parse([f"final_int8_roundtrip val_loss:2.5 val_bpb:{number}"])
    assert math.isnan(facts.val_bpb or 0)
    assert reasons(facts)["val_bpb"] == "`final_int8_roundtrip` is no number"
    longer = f"final_int8_roundtrip val_loss:2.5 val_bpb:{'9' * 400}"
    assert parse([longer]).scores == ()


@pytest.mark.parametrize("number", ["-5", "9" * 400, "9" * 5000, "1.5", "0x10", "12abc"])
def test_a_size_that_cannot_be_is_none(number: str) -> None:
    lines = [f"Serialized model x: {number} bytes", f"Total submission size x: {number} bytes"]
    lines += [f"Code size: {number} bytes", f"seed:{number}x", f"peak memory: -{number} MiB"]
    facts = parse([*lines, f"train_shards: {number}x", f"Artifact: {number} bytes"])
    assert (facts.bytes_model, facts.bytes_total, facts.bytes_code) == (None, None, None)
    assert (facts.seed, facts.peak_memory_mib, facts.train_shards) == (None, None, None)


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "latin-1"])
@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_a_log_is_read_in_whatever_encoding_a_shell_wrote_it(
    tmp_path: Path, encoding: str, end: str
) -> None:
    lines = ["größe", "seed:7", "10 %\r90 %\rpeak memory allocated: 5 MiB", "final_q val_loss:2"]
    lines += ["final_int8_roundtrip val_loss:2.5 val_bpb:1.25000001 eval_time:7ms"]
    path = tmp_path / "log"
    path.write_bytes(end.join(lines).encode(encoding))
    facts = read_log(path)
    assert (facts.seed, facts.val_bpb, facts.peak_memory_mib) == (7, 1.25000001, 5.0)


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-32"])
def test_the_mark_of_an_encoding_hides_no_fact(tmp_path: Path, encoding: str) -> None:
    path = tmp_path / "log"
    path.write_bytes("[rank0]:seed:7\r\n".encode(encoding))
    assert (read_log(path).seed, read_log(path).lines["seed"]) == (7, 1)


def test_a_line_without_an_end_takes_no_memory(tmp_path: Path) -> None:
    path = tmp_path / "log"
    with path.open("wb") as file:
        for _ in range(40):
            file.write(b"x" * (1 << 20))
        file.write(b"\nseed:9\n")
    lines = [len(line) for line in LogReader(path)._lines.read()]
    assert lines == [LINE_BYTES, 6]
    assert read_log(path).seed == 9


BAR = b"".join(b"\r%3d%% |####| %d/1000" % (each // 10, each) for each in range(2_000))


@pytest.mark.parametrize("after", [b"", b"\r"])
@pytest.mark.parametrize("chunk", [1 << 20, 1_000, 7])
def test_of_a_long_line_that_overwrites_itself_the_last_state_counts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, after: bytes, chunk: int
) -> None:
    monkeypatch.setattr("sweeper.logreader.CHUNK_BYTES", chunk)
    assert len(BAR) > LINE_BYTES
    path = tmp_path / "log"
    score = b"final_int8_roundtrip val_loss:2.5 val_bpb:1.25"
    path.write_bytes(b"seed:7\n" + BAR + b"\r" + score + after + b"\npeak memory: 5 MiB\n")
    (facts,) = read_runs(path)
    assert (facts.seed, facts.val_bpb, facts.peak_memory_mib) == (7, 1.25, 5.0)
    assert facts.lines["val_bpb"] == 2
    assert list(Lines(path).read()) == ["seed:7", score.decode(), "peak memory: 5 MiB"]
    # As it grows: it has not ended yet.
    path.write_bytes(BAR)
    lines = Lines(path)
    assert list(lines.read()) == []
    with path.open("ab") as file:
        file.write(b"\r" + score + after)
    assert list(lines.read(whole=True)) == [score.decode()]


def test_empty_lines_in_a_row_are_one_and_the_numbers_are_the_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "log"
    path.write_bytes(b"\n\r\n\nHyperparameters:\n  seed: 4\n\n\n\n\nseed:5\n\nlast")
    expected = [(1, ""), (4, "Hyperparameters:"), (5, "  seed: 4"), (6, ""), (10, "seed:5")]
    for chunk in (1 << 20, 1):
        monkeypatch.setattr("sweeper.logreader.CHUNK_BYTES", chunk)
        assert list(Lines(path).numbered(whole=True)) == [*expected, (11, ""), (12, "last")]
        assert (read_log(path).lines, read_log(path).seed) == ({"seed": 10}, 5)
    lines = Lines(path)
    assert [number for number, _ in lines.numbered()] == [1, 4, 5, 6, 10, 11]
    with path.open("ab") as file:
        file.write(b" one\nmore\n")
    assert list(lines.numbered()) == [(12, "last one"), (13, "more")]


def test_a_log_that_cannot_be_read_is_told_where_that_is_asked_for(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    for path in (pipe, tmp_path, tmp_path / "none"):
        assert read_runs(path) == [parse([])]
        with pytest.raises(OSError, match=re.escape(str(path))):
            read_runs(path, strict=True)
    log = tmp_path / "log"
    log.write_text("seed:5\n")
    assert read_runs(log, strict=True) == read_runs(log)


def test_a_disk_that_fails_in_the_middle_is_told_as_well(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Failing(io.BytesIO):
        def read(self, size: int | None = -1) -> bytes:
            data = super().read(size)
            if not data:
                raise OSError(errno.EIO, "Input/output error")
            return data

    path = tmp_path / "log"
    path.write_text("seed:5\n")
    monkeypatch.setattr(Path, "open", lambda *_: Failing(b"seed:5\n"))
    assert [run.seed for run in read_runs(path)] == [5]
    with pytest.raises(OSError, match="Input/output error"):
        read_runs(path, strict=True)


def test_a_large_log_is_read_in_little_memory(tmp_path: Path) -> None:
    path = tmp_path / "log"
    with path.open("w") as file:
        file.write("Hyperparameters:\n")
        file.writelines(f"  setting_{place}: {'x' * 400}\n" for place in range(4_000))
        file.writelines(f"pass_{place}:done elapsed=3.5s\n" for place in range(4_000))
        for place in range(150_000):
            file.write(f"    self.weight_{place} = rotate({'x' * 100})  # val_loss: val_bpb:\n")
        for place in range(8_000):
            file.write(f"final_quant_{place} val_loss:2.5 val_bpb:1.{place + 1000} eval_time:9ms\n")
            file.write(f"step:{place}/9000 train_loss:2.5 train_time:{50 * place}ms\n")
    assert path.stat().st_size > 20e6
    tracemalloc.start()
    try:
        facts = read_log(path)
        most = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert most < 12e6
    assert (facts.val_bpb, facts.last_step) == (1.8999, 7_999)
    assert (len(facts.scores), len(facts.hyperparameters)) == (MOST_SCORES, MOST_SETTINGS)
    assert len(facts.intervals) <= MOST_INTERVALS
    assert sum(interval.ms for interval in facts.intervals) == 50 * 7_999


# ---- as it grows


def test_a_growing_log_is_read_as_events(tmp_path: Path) -> None:
    path = tmp_path / "log"
    reader = LogReader(path)
    assert reader.read() == []
    with path.open("a") as file:
        file.write("Hyperparameters:\n  iterations: 4\n  max_wallclock_seconds: 60.0\n")
        file.write("train_shards: 80\n1/4 train_loss: 6.9 train_time: 0.5m tok/s: 9\n2/4 train_l")
        file.flush()
        events = reader.read()
        assert [event["kind"] for event in events] == ["phase", "config", "phase", "step"]
        assert events[1]["config"]["iterations"] == "4"
        assert events[1]["adapter"] == "log-b"
        step = {"step": 1, "train_loss": 6.9, "train_time_ms": 30_000.0, "progress": 0.5}
        assert step.items() <= events[-1].items()
        file.write("oss: 6.8 train_time: 0.6m\n4/4 val_loss: 2.6 val_bpb: 1.2\n")
        file.write("peak memory allocated: 5 MiB\nSerialized model: 99 bytes\n")
        file.write("Serialized model int6+brotli: 9 bytes\n")
        file.write("final_int6_roundtrip val_loss:2.5 val_bpb:1.11 eval_time:70ms\n")
    events = reader.read()
    assert [event.get("phase", event["kind"]) for event in events] == [
        *("step", "val", "hessians", "pack", "eval", "val")
    ]
    assert (events[1]["metric"], events[-1]["metric"]) == ("plain", "quant")
    assert reader.read() == []


def test_a_run_is_read_by_its_events_where_it_writes_any(tmp_path: Path) -> None:
    attempt = AttemptDir(tmp_path / "größe und platz")
    ranks = attempt.logs / "ranks" / "x" / "attempt_0" / "0"
    ranks.mkdir(parents=True)
    reader = RunReader(attempt)
    assert reader.read() == []
    attempt.stdout.write_text("torchrun says something\n")
    attempt.events.touch()  # as a slot makes it that brings files home
    assert reader.read() == []
    (ranks / "stdout.log").write_text("step:1/9 train_loss:6.9 train_time:9ms step_avg:9.0ms\n")
    (attempt.logs / "own.txt").write_text("seed:5\n")
    assert [event["kind"] for event in reader.read()] == ["phase", "step"]
    assert find_logs(attempt) == [ranks / "stdout.log", attempt.stdout, attempt.logs / "own.txt"]
    attempt.events.write_text('{"kind": "phase", "phase": "setup"}\n')
    assert reader.read() == [{"kind": "phase", "phase": "setup"}]
