"""rANS of codes: whatever goes in comes out, in about as few bytes as theory has it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from model.rans import (
    FREQUENCIES,
    SPREADS,
    CodeModel,
    Codes,
    Plane,
    RansError,
    count_codes,
    grouped_codes,
    model_table,
    rans_decode,
    rans_encode,
)

ROOT = Path(__file__).parents[2]
INT8 = st.integers(-128, 127)
SHAPES = st.tuples(st.integers(0, 12), st.integers(0, 12))


@st.composite
def planes(draw: st.DrawFn) -> tuple[np.ndarray, np.ndarray | None]:
    """Codes of any range, one code only among them, with and without column steps."""
    rows, cols = draw(SHAPES)
    lowest, highest = sorted(draw(st.tuples(INT8, INT8)))
    codes = draw(hnp.arrays(np.int8, (rows, cols), elements=st.integers(lowest, highest)))
    steps = draw(st.none() | hnp.arrays(np.int8, cols, elements=INT8))
    return codes, steps


def decoded(codes: Codes, tables: bytes, words: bytes) -> dict[str, np.ndarray]:
    """What comes back, into planes that hold other codes before."""
    blank = {name: (np.full_like(plane, 5), steps) for name, (plane, steps) in codes.items()}
    rans_decode(blank, tables, words)
    return {name: plane for name, (plane, _) in blank.items()}


def assert_comes_back(codes: Codes) -> int:
    """The bytes that it takes."""
    tables, words = rans_encode(codes)
    for name, plane in decoded(codes, tables, words).items():
        np.testing.assert_array_equal(plane, codes[name][0])
    return len(tables) + len(words)


@given(st.lists(planes(), max_size=3))
def test_any_planes_come_back(found: list[tuple[np.ndarray, np.ndarray | None]]) -> None:
    assert_comes_back({f"plane {number}": plane for number, plane in enumerate(found)})


@pytest.mark.parametrize("code", [-128, -127, -1, 0, 1, 126, 127])
@pytest.mark.parametrize("shape", [(1, 1), (1, 257), (257, 1), (63, 65)])
def test_one_code_only_takes_next_to_nothing(code: int, shape: tuple[int, int]) -> None:
    codes: Codes = {"a": (np.full(shape, code, np.int8), None)}
    assert assert_comes_back(codes) <= shape[0] + 12  # a spread per row, and a model


@pytest.mark.parametrize("pair", [(-128, 127), (0, 127), (-128, 0), (126, 127), (-127, 127)])
def test_extreme_codes_come_back(pair: tuple[int, int]) -> None:
    codes = np.random.default_rng(0).choice(np.array(pair, np.int8), (65, 127))
    assert_comes_back({"a": (codes, None)})
    # What lies between the two could occur, for all that a model says: 254 in 2^14.
    assert len(rans_encode({"a": (codes, None)})[1]) < 1.08 * codes.size / 8


def test_all_256_codes_come_back() -> None:
    codes = np.random.default_rng(0).integers(-128, 128, (300, 301), np.int8)
    assert assert_comes_back({"a": (codes, None)}) < 1.02 * codes.nbytes


def test_more_codes_than_go_at_once_come_back() -> None:
    codes = np.random.default_rng(0).integers(-2, 3, (1_100, 1_001), np.int8)
    assert_comes_back({"a": (codes, None)})


def test_a_rare_code_among_a_million_comes_back() -> None:
    codes = np.zeros((1_000, 1_000), np.int8)
    codes[371, 93], codes[999, 999] = -128, 127
    assert assert_comes_back({"a": (codes, None)}) < 1_500


@given(hnp.arrays(np.int8, SHAPES, elements=INT8), st.data())
def test_codes_of_one_spread_are_together(codes: np.ndarray, data: st.DataObject) -> None:
    rows, cols = (data.draw(hnp.arrays(np.int8, n, elements=INT8)) for n in codes.shape)
    plane = Plane(codes=codes, spreads=rows, col_steps=cols)
    spreads = (rows.astype(int)[:, None] - cols).clip(*SPREADS)
    groups = grouped_codes({"one": plane, "two": plane})
    assert list(groups) == np.unique(spreads).tolist()
    for spread, group in groups.items():
        np.testing.assert_array_equal(np.sort(group), np.sort(codes[spreads == spread].repeat(2)))


# ---- how few bytes


def gaussian(rows: int, cols: int, spreads: float | np.ndarray) -> np.ndarray:
    noise = np.random.default_rng(0).normal(0, 1, (rows, cols)) * spreads
    return np.rint(noise).clip(-127, 127).astype(np.int8)


def entropy_bytes(codes: np.ndarray) -> float:
    """The codes' entropy of order 0."""
    counts = np.unique(codes, return_counts=True)[1]
    return float(-(counts @ np.log2(counts / codes.size)) / 8)


@pytest.mark.parametrize("spread", [0.3, 1.0, 6.0, 30.0])
def test_codes_of_one_spread_take_what_their_entropy_says(spread: float) -> None:
    codes = gaussian(512, 512, spread)
    tables, words = rans_encode({"a": (codes, None)})
    # A row's spread is what its codes are found to have, so rows differ by chance as well.
    assert entropy_bytes(codes) * 0.98 < len(tables) + len(words)
    assert len(tables) + len(words) <= 1.01 * (entropy_bytes(codes) + 2 * len(codes))


def test_rows_of_different_spread_take_less_than_the_entropy_of_all() -> None:
    codes = gaussian(512, 512, np.geomspace(0.5, 30, 512)[:, None])
    assert assert_comes_back({"a": (codes, None)}) < 0.87 * entropy_bytes(codes)


def test_columns_of_different_spread_need_their_steps() -> None:
    steps = np.arange(-10, 11, dtype=np.int8).repeat(24)
    codes = gaussian(512, 504, 4 * np.exp2(-steps / 4))
    with_steps = assert_comes_back({"a": (codes, steps)})
    without = assert_comes_back({"a": (codes, None)})
    assert with_steps < 0.9 * without


def test_tensors_of_one_spread_share_a_model() -> None:
    codes = gaussian(64, 64, 6.0)
    alone = len(rans_encode({"a": (codes, None)})[0])
    both = len(rans_encode({"a": (codes, None), "b": (codes, None)})[0])
    assert both - alone < alone


COUNTS = hnp.arrays(np.int64, 256, elements=st.just(0) | st.integers(0, 3_000))


@settings(max_examples=60)
@given(COUNTS)
def test_a_models_cost_is_what_the_coder_makes(counts: np.ndarray) -> None:
    codes = np.random.default_rng(0).permutation(np.repeat(np.arange(-128, 128), counts))
    codes = codes.astype(np.int8)[None]
    np.testing.assert_array_equal(count_codes(codes[0]), counts)
    tables, words = rans_encode({"a": (codes, None)})
    if codes.size:
        table = model_table(counts)
        assert tables[1:] == table
        made = len(table) + len(words)
        # Whole words of four bytes; two of them are the coder's state, which may be half empty.
        assert CodeModel.parse(table).cost(counts) == pytest.approx(made, abs=12, rel=0.001)


@given(COUNTS)
def test_a_model_has_every_code_that_occurs(counts: np.ndarray) -> None:
    table = model_table(counts)
    model = CodeModel.parse(table)
    assert model.size == len(table)
    inside = range(128 + model.low, 128 + model.low + model.frequencies.size)
    assert set(np.flatnonzero(counts)) <= set(inside) or not counts.any()
    assert model.frequencies.min() >= 1
    assert model.frequencies.sum() <= 2 * FREQUENCIES + 512


def test_counts_alike_on_both_sides_make_half_a_table() -> None:
    codes = np.rint(np.random.default_rng(0).normal(0, 9, 4_000)).astype(np.int8)
    counts = count_codes(codes)
    lopsided = np.where(np.arange(256) < 128, 0, counts)
    assert len(model_table(counts)) < 1.2 * len(model_table(lopsided))
    assert CodeModel.parse(model_table(lopsided)).low == 0


# ---- damage

PLANE = gaussian(9, 11, 3.0)
TABLES, WORDS = rans_encode({"a": (PLANE, None)})


@pytest.mark.parametrize(
    ("tables", "complaint"),
    [
        (b"", "spreads are cut off"),
        (b"\0\0", "table is cut off"),
        (b"\0\0\0", "table is cut off"),
        (b"\0\0\2\1\1", "table is cut off"),
        (b"\0\0\1\1\0", "table is impossible"),  # never occurs
        (b"\0\0\0\xff\xff\xff\xff\0", "table is impossible"),  # occurs 2^28 times
        (b"\0\0\0" + b"\xff" * 1_000_000, "table is impossible"),
        (b"\0\x7e\2\1\1\1", "table is impossible"),  # codes 126 to 128
        (b"\0\x7f\x81" + b"\1" * 130, "table is impossible"),  # codes -129 to 129
        (b"\0\0\0\1more", "left over"),
    ],
)
def test_hostile_tables_are_named(tables: bytes, complaint: str) -> None:
    with pytest.raises(RansError, match=complaint):
        rans_decode({"a": (np.zeros((1, 4), np.int8), None)}, tables, b"")


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        (WORDS[:-1], "words are damaged"),
        (WORDS + bytes(4), "words are damaged"),  # the last is never 0
        (WORDS + WORDS, "left over"),
    ],
)
def test_hostile_words_are_named(words: bytes, complaint: str) -> None:
    with pytest.raises(RansError, match=complaint):
        rans_decode({"a": (PLANE.copy(), None)}, TABLES, words)


@given(
    tables=st.binary(max_size=60),
    head=st.integers(0, len(TABLES)),
    words=st.binary(max_size=24).map(lambda data: data[: len(data) & ~3]) | st.just(WORDS),
    steps=st.none() | hnp.arrays(np.int8, 11, elements=INT8),
)
def test_any_bytes_give_codes_or_an_error(
    tables: bytes, head: int, words: bytes, steps: np.ndarray | None
) -> None:
    """Never what constriction's Rust would raise."""
    try:
        rans_decode({"a": (PLANE.copy(), steps)}, TABLES[:head] + tables, words)
    except RansError as error:
        message = str(error)
    else:
        return
    assert message


def test_extreme_frequencies_decode_to_something() -> None:
    """The most lopsided tables that are allowed: coder and words are hostile, and none panics."""
    most, least = b"\xff\xff\x7f", b"\1"
    for frequencies in (most + 255 * least, 255 * least + most, 256 * most, 256 * least):
        for words in (b"", b"\1\0\0\0", b"\xff" * 4, b"\xff" * 40):
            plane = np.zeros((1, 999), np.int8)
            with pytest.raises(RansError, match="left over"):
                rans_decode({"a": (plane, None)}, b"\0\x80\xff" + frequencies + b"left over", words)


MEASURE = """
import resource
import numpy as np
from model.rans import SPREADS, rans_decode
sizes = np.arange(-128, 128, dtype=np.int8)
codes = {str(i): (np.zeros((256, 256), np.int8), sizes) for i in range(16)}
tables = 16 * sizes.tobytes() + (SPREADS[1] - SPREADS[0] + 1) * bytes([9, 0, 1])
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
rans_decode(codes, tables, b"")
assert all((plane == 9).all() for plane, _ in codes.values())
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before >> 10)
"""


def test_memory_stays_bounded_where_every_code_stands_alone() -> None:
    """A MiB of codes of which no two share both the spread of their rows and the column step."""
    done = subprocess.run(
        [sys.executable, "-c", MEASURE], cwd=ROOT, capture_output=True, check=True, text=True
    )
    assert int(done.stdout) < 32
