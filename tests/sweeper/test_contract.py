"""The reading half of the process contract: nothing a run writes can mislead or stop the reader."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sweeper.contract import (
    NUMBERS,
    EventReader,
    check_echo,
    end_events,
    first_error,
    is_finite,
    read_handoff,
    read_result,
    same_value,
)
from sweeper.errors import ContractError
from tests.sweeper.conftest import result_facts


def line(kind: str, **fields: Any) -> bytes:
    return json.dumps({"t": 1.0, "kind": kind} | fields).encode() + b"\n"


# ---- events


def test_a_file_that_is_not_there_yet_has_no_events(tmp_path: Path) -> None:
    reader = EventReader(tmp_path / "events.jsonl")
    assert reader.read() == []
    (tmp_path / "events.jsonl").write_bytes(line("phase", phase="setup"))
    assert [event["phase"] for event in reader.read()] == ["setup"]


def test_every_event_is_read_once(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    reader = EventReader(path)
    seen = []
    with path.open("ab", buffering=0) as file:
        for step in range(5):
            file.write(line("step", step=step))
            seen += [event["step"] for event in reader.read()]
            assert reader.read() == []
    assert seen == [0, 1, 2, 3, 4]
    assert len(EventReader(path).read()) == 5


def test_a_torn_last_line_waits_for_its_rest(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    whole, torn = line("step", step=1), line("step", step=2, text="größe")
    cut = torn.index("ö".encode()) + 1 if "ö".encode() in torn else len(torn) // 2
    reader = EventReader(path)
    path.write_bytes(whole + torn[:cut])
    assert [event["step"] for event in reader.read()] == [1]
    assert reader.read() == []
    with path.open("ab") as file:
        file.write(torn[cut:])
    assert [event["step"] for event in reader.read()] == [2]


RUBBISH = [
    b"\n",
    b"Traceback (most recent call last):\n",
    b"\xff\xfe\x00\n",
    b"[1, 2]\n",
    b"null\n",
    b'{"t": 1.0}\n',
    b'{"kind": 3}\n',
    b'{"kind": "step"\n',
    b'{"kind": "step"}{"kind": "step"}\n',
    b"[" * 100_000 + b"\n",
    b'{"kind": "step", "step": ' + b"9" * 5_000 + b"}\n",
]


@pytest.mark.parametrize("rubbish", RUBBISH, ids=range(len(RUBBISH)))
def test_a_line_that_is_no_event_is_passed_over(tmp_path: Path, rubbish: bytes) -> None:
    path = tmp_path / "events.jsonl"
    path.write_bytes(line("step", step=1) + rubbish + line("step", step=2))
    assert [event["step"] for event in EventReader(path).read()] == [1, 2]


@given(data=st.binary(max_size=200), cuts=st.lists(st.integers(0, 200), max_size=5))
def test_reading_in_parts_is_reading_at_once(
    tmp_path_factory: pytest.TempPathFactory, data: bytes, cuts: list[int]
) -> None:
    path = tmp_path_factory.mktemp("events") / "events.jsonl"
    data = line("a") + data + line("b")
    reader, seen = EventReader(path), []
    for end in [*sorted(cuts), len(data)]:
        path.write_bytes(data[:end])
        seen += reader.read()
    assert seen == EventReader(path).read()


# ---- the result


def write_result(directory: Path, content: Any) -> Path:
    path = directory / "result.json"
    path.write_bytes(content if isinstance(content, bytes) else json.dumps(content).encode())
    return path


def test_a_whole_result_is_taken_as_it_is(tmp_path: Path) -> None:
    facts = result_facts(own="field")
    assert read_result(write_result(tmp_path, facts)) == facts


def test_a_missing_result_is_said(tmp_path: Path) -> None:
    with pytest.raises(ContractError, match=r"^result\.json: missing, though every process ended"):
        read_result(tmp_path / "result.json")


@pytest.mark.parametrize(
    "content", [b"", b'{"schema": 1', b"\x00\xff", b"[" * 100_000, b"Traceback"], ids=range(5)
)
def test_a_corrupt_result_is_said(tmp_path: Path, content: bytes) -> None:
    with pytest.raises(ContractError, match=r"^result\.json: corrupt \("):
        read_result(write_result(tmp_path, content))


def test_a_directory_is_no_result(tmp_path: Path) -> None:
    (tmp_path / "result.json").mkdir()
    with pytest.raises(ContractError, match="corrupt"):
        read_result(tmp_path / "result.json")


@pytest.mark.parametrize(
    "content", [[], 3, None, "text", result_facts(schema=2), result_facts(schema="1"), {}]
)
def test_another_schema_is_refused(tmp_path: Path, content: Any) -> None:
    with pytest.raises(ContractError, match="not a result of schema 1"):
        read_result(write_result(tmp_path, content))


@pytest.mark.parametrize("status", ["stopped", None, True])
def test_a_result_that_is_not_finished_is_refused(tmp_path: Path, status: Any) -> None:
    with pytest.raises(ContractError, match=f"status is {status!r}, not 'finished'"):
        read_result(write_result(tmp_path, result_facts(status=status)))


@pytest.mark.parametrize("name", NUMBERS)
def test_every_number_must_be_there_and_be_one(tmp_path: Path, name: str) -> None:
    facts = result_facts()
    del facts[name]
    with pytest.raises(ContractError, match=f"^result.json: {name} is None, not a number"):
        read_result(write_result(tmp_path, facts))
    no_number: list[Any] = [True, False, "1.1", [1.1], None]
    for wrong in no_number:
        with pytest.raises(ContractError, match=f"^result.json: {name} is .*, not a number"):
            read_result(write_result(tmp_path, result_facts(**{name: wrong})))
    for number in (math.nan, math.inf, -math.inf, 10**400):
        with pytest.raises(ContractError, match=f"^result.json: {name} is .*, not finite"):
            read_result(write_result(tmp_path, result_facts(**{name: number})))


@pytest.mark.parametrize("metric", [None, 3, True])
def test_the_metric_must_be_named(tmp_path: Path, metric: Any) -> None:
    with pytest.raises(ContractError, match=f"metric is {metric!r}, not a name"):
        read_result(write_result(tmp_path, result_facts(metric=metric)))


@pytest.mark.parametrize(
    ("number", "finite"),
    [(0, True), (-1.5, True), (10**300, True), (10**400, False), (math.nan, False)],
)
def test_finite_is_what_fits_a_float(number: float, finite: bool) -> None:
    assert is_finite(number) is finite


# ---- the echo


@pytest.mark.parametrize(
    ("asked", "found"),
    [
        *(("1", True), ("true", True), ("YES", True), ("on", True)),
        *(("0", False), ("False", False), ("no", False), ("off", False)),
        *(("none", None), ("None", None), ("", None), (" ", None)),
        *(("3000", 3000), ("3e3", 3000), ("3000.0", 3000), (" 7 ", 7), ("+7", 7)),
        *(("0.667", 0.667), ("1", 1.0), ("1e-08", 1e-8), ("0.0", 0), (str(0.1 + 0.2), 0.3)),
        *(("linear", "linear"), ("4,5", "4,5"), ("4, 5", "4,5"), ("4,5", "4, 5")),
        *(("none", ""), ("", ""), ("4,5,", "4,5"), ("none", "none")),
        *(("4,5", [4, 5]), ("4, 5", [4, 5]), ("4", [4]), ("", []), ("a,b", ["a", "b"])),
        *(("0.5,1", [0.5, 1.0]), ("/da ta/größe", "/da ta/größe"), ("1", "1")),
    ],
)
def test_text_and_echo_that_mean_the_same(asked: str, found: Any) -> None:
    assert same_value(asked, found)


@pytest.mark.parametrize(
    ("asked", "found"),
    [
        *(("1", False), ("0", True), ("2", True), ("yes please", True), ("", False)),
        *(("0", None), ("false", None), ("4", None)),
        *(("3000", 3001), ("abc", 3), ("", 0), ("0.667", 0.6670001), ("nan", 0.5), ("true", 1)),
        *(("1", 10**400), ("1e999", 1.0), ("0", 1e-300)),
        *(
            ("linear", "cosine"),
            ("4,5", "4,6"),
            ("Linear", "linear"),
            ("none", "nothing"),
            ("none", "4"),
        ),
        *(("4,5", [4, 6]), ("4,5", [4]), ("4", [4, 5]), ("45", [4, 5]), ("", [0])),
        *(("a", {"a": 1}), ("1", "1.0")),
    ],
)
def test_text_and_echo_that_do_not(asked: str, found: Any) -> None:
    assert not same_value(asked, found)


@given(st.integers() | st.floats(allow_nan=False, allow_infinity=False))
def test_a_number_is_itself(value: float) -> None:
    assert same_value(str(value), json.loads(json.dumps(value))) or abs(value) >= 1e308


def echo(**config: Any) -> list[dict[str, Any]]:
    return [{"kind": "phase", "phase": "setup"}, {"kind": "config", "config": config}]


def test_confirmed_overrides_are_fine() -> None:
    check_echo({}, echo())
    check_echo({"SEED": "42", "LR": "0.1"}, echo(seed=42, lr=0.1, more="x"))


def test_an_override_that_came_back_changed_is_told() -> None:
    with pytest.raises(ContractError, match=r"^LR: asked for '0\.1', the run took 0\.2$"):
        check_echo({"SEED": "42", "LR": "0.1"}, echo(seed=42, lr=0.2))


def test_a_setting_that_leaked_in_is_told() -> None:
    known = echo(seed=42, iterations=5, path="x")
    check_echo({"SEED": "42"}, known, inherited=["HOME", "iterations", "TERM"])
    check_echo({"ITERATIONS": "5"}, known, inherited=["ITERATIONS"])
    with pytest.raises(ContractError, match=r"^ITERATIONS: the run takes it from the environment"):
        check_echo({"SEED": "42"}, known, inherited=["HOME", "ITERATIONS"])


def test_a_misspelt_name_is_told_with_the_closest_known_one() -> None:
    known = {"warmdown_frac": 0.667, "warmup_steps": 20}
    with pytest.raises(ContractError) as caught:
        check_echo({"WARMDWON_FRAC": "0.5"}, echo(**known))
    assert str(caught.value) == (
        "WARMDWON_FRAC: the run does not know this setting; did you mean WARMDOWN_FRAC?"
    )
    with pytest.raises(ContractError, match=r"does not know this setting$"):
        check_echo({"ZZZ": "0.5"}, echo(**known))


@pytest.mark.parametrize(
    "events",
    [
        [],
        [{"kind": "step"}],
        [{"kind": "config"}],
        [{"kind": "config", "config": None}],
        [{"kind": "config", "config": ["seed"]}],
    ],
)
def test_a_run_without_an_echo_confirms_nothing(events: list[dict[str, Any]]) -> None:
    with pytest.raises(ContractError, match="no config event"):
        check_echo({}, events)


# ---- stages


@pytest.mark.parametrize(
    "torn", [b"", b'{"t": 1.0, "ki', b'{"t": 1.0, "kind": "step", "text": "\xc3']
)
def test_the_events_of_a_stage_begin_where_those_before_it_end(tmp_path: Path, torn: bytes) -> None:
    path = tmp_path / "events.jsonl"
    assert end_events(path) == 0
    assert not path.exists()
    path.write_bytes(line("error", code="crash") + torn)
    begins = end_events(path)
    assert begins == end_events(path) == path.stat().st_size
    with path.open("ab") as file:
        file.write(line("config", config={}))
    assert [event["kind"] for event in EventReader(path, begins).read()] == ["config"]
    assert [event["kind"] for event in EventReader(path).read()] == ["error", "config"]


def test_a_handoff_is_what_its_stage_says(tmp_path: Path) -> None:
    path = tmp_path / "trained.json"
    facts = {"schema": 1, "status": "trained", "steps": 6}
    path.write_text(json.dumps(facts))
    assert read_handoff(path, "trained") == facts
    with pytest.raises(ContractError, match=r"trained\.json: not of schema 1 with status 'packed'"):
        read_handoff(path, "packed")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "missing"),
        (b"", "corrupt"),
        (b'{"schema": 1, "status": "trai', "corrupt"),
        (b"\xff", "corrupt"),
        (b"[]", "not of schema 1"),
        (b"1", "not of schema 1"),
        (b'{"status": "trained"}', "not of schema 1"),
        (b'{"schema": 2, "status": "trained"}', "not of schema 1"),
    ],
)
def test_a_handoff_that_is_none_is_refused(
    tmp_path: Path, content: bytes | None, message: str
) -> None:
    path = tmp_path / "trained.json"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ContractError, match=rf"trained\.json: {message}"):
        read_handoff(path, "trained")


# ---- errors


def test_the_earliest_error_of_any_rank_counts() -> None:
    events = [
        {"kind": "step", "t": 1.0},
        {"kind": "error", "t": 9.0, "rank": 0, "message": "connection closed by peer"},
        {"kind": "error", "t": 8.5, "rank": 1, "message": "out of memory"},
        {"kind": "error", "rank": 2, "message": "of no time"},
    ]
    error = first_error(events)
    assert error is not None
    assert error["rank"] == 1


def test_no_error_is_none() -> None:
    assert first_error([]) is None
    assert first_error([{"kind": "warning", "t": 1.0}]) is None


@pytest.mark.parametrize("t", [None, "yesterday", [], math.nan, 10**400])
def test_a_time_that_is_none_comes_last(t: Any) -> None:
    events = [{"kind": "error", "t": t, "rank": 0}, {"kind": "error", "t": 2.0, "rank": 1}]
    error = first_error(events)
    assert error is not None
    assert error["rank"] == 1
    assert first_error(events[:1]) == events[0]
