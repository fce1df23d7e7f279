"""Integer codes as few bytes: rANS (`constriction`) with static models, each shared by many codes.

A model is a table of frequencies over the codes' range. Which one codes a code is a matter of how
widely it is spread: its row's spread, which is measured and stored, over its column's step where
the tensor has such. All codes of one spread share a model, whatever their tensor. Spreads and
tables count as bytes.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import constriction
import numpy as np

# Frequencies of a model sum to about this; against exact ones it costs less than 0.1 %.
FREQUENCIES = 1 << 14
MAX_FREQUENCY_BYTES = 3  # nothing that is written needs more
SPREADS = (-12, 32)  # the narrowest and the widest, in quarters of an octave
ALL_SPREADS = range(SPREADS[0], SPREADS[1] + 1)
QUARTERS = 4
CODES_AT_ONCE = 1 << 20
SYMMETRIC = 127
LIBRARY_ERRORS = ("ValueError", "PanicException")

Codes = Mapping[str, tuple[np.ndarray, np.ndarray | None]]  # int8 [rows, cols], column steps
Slices = tuple[slice, slice]


class RansError(ValueError):
    """Models and words are not what `rans_encode` wrote."""


@dataclass(frozen=True, kw_only=True)
class Plane:
    """The codes of one tensor, int8 [rows, cols], sorted into rectangles of one spread.

    A code's spread is its row's less its column's step, in quarters of an octave, brought between
    the narrowest and the widest.
    """

    codes: np.ndarray
    spreads: np.ndarray  # int8 [rows]
    col_steps: np.ndarray | None  # int8 [cols]; None: all alike

    @classmethod
    def of(cls, codes: np.ndarray, col_steps: np.ndarray | None) -> Plane:
        """Codes with the spreads that they are found to have."""
        steps = np.zeros(codes.shape[1], np.int8) if col_steps is None else col_steps
        sizes = np.exp2(steps.astype(np.float32) / (QUARTERS / 2))  # squared
        squares = codes.astype(np.float32) ** 2 @ sizes / max(1, codes.shape[1])
        spreads = np.rint(QUARTERS / 2 * np.log2(squares + 1e-9))
        return cls(
            codes=codes, spreads=spreads.clip(-128, 127).astype(np.int8), col_steps=col_steps
        )

    @cached_property
    def row_order(self) -> np.ndarray:
        """Rows, those of equal spread together."""
        return np.argsort(self.spreads, kind="stable")

    @cached_property
    def col_order(self) -> np.ndarray | None:
        """Columns, those of equal step together; None: as they are."""
        return None if self.col_steps is None else np.argsort(self.col_steps, kind="stable")

    def sorted_codes(self) -> np.ndarray:
        codes = self.codes[self.row_order]
        return codes if self.col_order is None else codes[:, self.col_order]

    def fill(self, sorted_codes: np.ndarray) -> None:
        """Take the codes in from their sorted places."""
        if self.col_order is not None:
            sorted_codes = sorted_codes[:, np.argsort(self.col_order)]
        self.codes[self.row_order] = sorted_codes

    @cached_property
    def _row_stretches(self) -> tuple[np.ndarray, np.ndarray]:
        """Each different spread of a row, in order, and where in the sorted rows each begins."""
        return _stretches(self.spreads)

    @cached_property
    def _col_stretches(self) -> tuple[np.ndarray, np.ndarray]:
        """The same of the columns' steps."""
        if self.col_steps is None:
            return np.zeros(1, int), np.array([0, self.codes.shape[1]])
        return _stretches(self.col_steps)

    def regions(self, spread: int) -> Iterator[Slices]:
        """The rectangles of the sorted codes that have this spread: one per spread of a row.

        Not kept, for a hostile file could make one of every code.
        """
        narrowest, widest = SPREADS
        (values, tops), (steps, lefts) = self._row_stretches, self._col_stretches
        wanted = values - spread
        starts = lefts[np.searchsorted(steps, wanted)] if spread < widest else 0 * wanted
        stops = lefts[np.searchsorted(steps, wanted, "right")]
        if spread == narrowest:
            stops[:] = lefts[-1]
        places = np.stack([tops[:-1], tops[1:], starts, stops])[:, starts < stops]
        for top, bottom, left, right in places.T.tolist():
            yield slice(top, bottom), slice(left, right)


def _stretches(steps: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Each different step [n], in order, and where they begin once sorted, and end [n + 1]."""
    values, counts = np.unique(steps, return_counts=True)
    return values.astype(int), np.concatenate([[0], np.cumsum(counts)])


def rans_encode(codes: Codes) -> tuple[bytes, bytes]:
    """The rows' spreads and the models' tables, and the words that all codes come to."""
    planes = {name: Plane.of(*plane) for name, plane in codes.items()}
    groups = list(grouped_codes(planes).values())
    tables = [model_table(count_codes(group)) for group in groups]
    coder = constriction.stream.stack.AnsCoder()
    # It is a stack: what is to come out first goes in last.
    for group, table in zip(reversed(groups), reversed(tables), strict=True):
        model = CodeModel.parse(table)
        if model.coder is not None:
            for start in reversed(range(0, group.size, CODES_AT_ONCE)):
                part = group[start : start + CODES_AT_ONCE].astype(np.int32)
                coder.encode_reverse(part - model.low, model.coder)
    spreads = [plane.spreads.tobytes() for plane in planes.values()]
    return b"".join(spreads + tables), coder.get_compressed().astype("<u4").tobytes()


def rans_decode(codes: Codes, tables: bytes, words: bytes) -> None:
    """Fill in the codes from what `rans_encode` wrote. Raises RansError."""
    try:
        _decode_planes(codes, tables, words)
    except BaseException as error:
        # What goes wrong inside of constriction is a panic: no Exception, and not to be imported.
        if isinstance(error, RansError) or type(error).__name__ not in LIBRARY_ERRORS:
            raise
        raise RansError(f"the coded words are damaged: {error}") from error


def _decode_planes(codes: Codes, tables: bytes, words: bytes) -> None:
    planes, offset = _read_spreads(codes, tables)
    coder = constriction.stream.stack.AnsCoder(np.frombuffer(words, "<u4").astype(np.uint32))
    found = {name: np.empty_like(plane.codes) for name, plane in planes.items()}
    for spread in ALL_SPREADS:
        count = sum(part.size for part in _parts_of(found, planes, spread))
        if count == 0:
            continue
        model = CodeModel.parse(tables, offset)
        offset += model.size
        group = model.decode(coder, count)
        start = 0
        for part in _parts_of(found, planes, spread):
            part[...] = group[start : start + part.size].reshape(part.shape)
            start += part.size
    if offset != len(tables) or not coder.is_empty():
        raise RansError("models or coded words are left over")
    for name, plane in planes.items():
        plane.fill(found[name])


def _read_spreads(codes: Codes, tables: bytes) -> tuple[dict[str, Plane], int]:
    """The planes that are to be filled in, and where the spreads end."""
    planes, offset = {}, 0
    for name, (values, steps) in codes.items():
        if offset + len(values) > len(tables):
            raise RansError("the spreads are cut off")
        spreads = np.frombuffer(tables, np.int8, len(values), offset)
        planes[name] = Plane(codes=values, spreads=spreads, col_steps=steps)
        offset += len(values)
    return planes, offset


def grouped_codes(planes: Mapping[str, Plane]) -> dict[int, np.ndarray]:
    """All codes by their spread, int8 [n] each; the narrowest first."""
    codes = {name: plane.sorted_codes() for name, plane in planes.items()}
    groups = {}
    for spread in ALL_SPREADS:
        parts = [part.ravel() for part in _parts_of(codes, planes, spread)]
        if parts:
            groups[spread] = np.concatenate(parts)
    return groups


def _parts_of(
    codes: Mapping[str, np.ndarray], planes: Mapping[str, Plane], spread: int
) -> Iterator[np.ndarray]:
    """The codes of this spread, as the parts of the planes' sorted codes that they are."""
    for name, plane in planes.items():
        for where in plane.regions(spread):
            yield codes[name][where]


def count_codes(codes: np.ndarray) -> np.ndarray:
    """How often each code from -128 to 127 occurs in int8 codes [n]: int64 [256]."""
    values = codes.view(np.uint8)
    # Two at a time, which is twice as fast.
    pairs = np.bincount(values[: values.size & ~1].view("<u2"), minlength=1 << 16)
    pairs = pairs.reshape(256, 256)
    counts = pairs.sum(0) + pairs.sum(1)
    if values.size % 2:
        counts[values[-1]] += 1
    return np.roll(counts, 128)


# ---- models


@dataclass(frozen=True, kw_only=True)
class CodeModel:
    """A distribution of the codes from `low` on, as its table of `size` bytes tells it.

    Table: low i8 | number of codes less 1 u8 | frequencies, 7 bits a byte, the last one's high bit
    clear. Of a model that is alike on both sides of 0, low is 127 (no code is beyond that) and the
    frequencies are of 0 and of each pair.
    """

    low: int
    frequencies: np.ndarray
    size: int

    @classmethod
    def parse(cls, tables: bytes, offset: int = 0) -> CodeModel:
        """The model whose table begins at `offset`. Raises RansError."""
        stop = offset + 2
        frequencies = []
        try:
            low, count = (tables[offset] ^ 128) - 128, tables[offset + 1] + 1
            for _ in range(count):
                value, stop = _read_frequency(tables, stop)
                frequencies.append(value)
        except IndexError:
            raise RansError("a model's table is cut off") from None
        if low == SYMMETRIC:
            low = 1 - count
            frequencies = frequencies[:0:-1] + frequencies
        if min(frequencies) < 1 or low < -128 or low + len(frequencies) > 128:
            raise RansError("a model's table is impossible")
        return cls(low=low, frequencies=np.array(frequencies), size=stop - offset)

    @cached_property
    def coder(self) -> Any:
        """The model as `constriction` has it; None where there is but one code."""
        if self.frequencies.size == 1:
            return None
        return constriction.stream.model.Categorical(
            self.frequencies.astype(np.float64), perfect=False
        )

    def decode(self, coder: Any, count: int) -> np.ndarray:
        """The next `count` codes, int8."""
        codes = np.full(count, self.low, np.int8)
        for start in range(0, count if self.coder is not None else 0, CODES_AT_ONCE):
            part = codes[start : start + CODES_AT_ONCE]
            part += coder.decode(self.coder, part.size).astype(np.int8)
        return codes

    def cost(self, counts: np.ndarray) -> float:
        """Bytes of codes that occur so often (`count_codes`), its table included."""
        inside = counts[128 + self.low :][: self.frequencies.size]
        bits = -np.log2(self.frequencies / self.frequencies.sum())
        return float(inside @ bits) / 8 + self.size


def _read_frequency(tables: bytes, start: int) -> tuple[int, int]:
    """A frequency and where it ends; IndexError where the tables end before it."""
    value = 0
    for number in range(MAX_FREQUENCY_BYTES):
        byte = tables[start + number]
        value |= (byte & 127) << 7 * number
        if byte < 128:
            return value, start + number + 1
    raise RansError("a model's table is impossible")


def model_table(counts: np.ndarray) -> bytes:
    """The table of the cheapest model for codes that occur so often (`count_codes`)."""
    used = np.flatnonzero(counts)
    if not used.size:
        return _table(0, np.ones(1))
    lowest = min(int(used[0]), 127 + SYMMETRIC)  # what says that it is symmetric is no code
    plain = _table(lowest - 128, counts[lowest : used[-1] + 1])
    widest = int(np.abs(used - 128).max())
    if widest == 128:
        return plain
    ahead, behind = counts[128 : 129 + widest], counts[128 - widest : 129][::-1]
    symmetric = _table(SYMMETRIC, (ahead + behind) / 2)
    return min(plain, symmetric, key=lambda table: CodeModel.parse(table).cost(counts))


def _table(low: int, counts: np.ndarray) -> bytes:
    scale = min(1.0, FREQUENCIES / counts.sum())
    table = bytearray([low & 255, counts.size - 1])
    for count in np.maximum(1, np.rint(counts * scale)).astype(int).tolist():
        value = count
        while value >= 128:
            table.append(value & 127 | 128)
            value >>= 7
        table.append(value)
    return bytes(table)
