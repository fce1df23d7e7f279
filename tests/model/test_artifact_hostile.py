"""Hostile artifacts: each lie gets its error, bounded memory, and nothing is ever executed."""

from __future__ import annotations

import pickle
import random
import struct
import subprocess
import sys

import brotli
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from model.artifact import (
    HEADER,
    MAGIC,
    MAX_RAW_BYTES,
    RANS_HEADER,
    SHUFFLE_STRIDE,
    VERSION,
    ArtifactError,
    decode,
)
from model.rans import rans_encode
from tests.model.fuzz_artifact import (
    BROTLI,
    RANS,
    brotli_file,
    check,
    index_bytes,
    mutate,
    rans_file,
    small_artifact,
)


def with_tensors(*tensors: object, planes: bytes = b"", **config: object) -> bytes:
    index = {"config": config, "tensors": tensors, "recurrence": False}
    return brotli_file(index_bytes(index) + planes)


@pytest.mark.parametrize(
    ("data", "complaint"),
    [
        (brotli_file(b"", magic=b"PK\3\4"), "not an artifact"),
        (brotli_file(b"", version=9), "version 9; this program reads version 1"),
        (brotli_file(b"", codec=0), "unknown codec 0"),
        (brotli_file(b"", codec=7), "unknown codec 7"),
        (brotli_file(b"", stride=3), "shuffle stride 3"),
        (brotli_file(b"x" * 100, length=50), "expected 50 raw bytes"),
        (brotli_file(b"x" * 100, length=200), "expected 200 raw bytes"),
        (brotli_file(b"x" * 100, length=1 << 60), f"more than {MAX_RAW_BYTES}"),
        (brotli_file(index_bytes([]), crc=0), "index is damaged"),
        (brotli_file(index_bytes({"config": {}, "tensors": [], "recurrence": 0}), crc=0),
         "checksum mismatch"),
        (brotli_file(struct.pack("<I", 1 << 31) + b"{}"), "index is damaged"),
        (brotli_file(struct.pack("<I", 9) + b"{}"), "index is damaged"),
        (brotli_file(struct.pack("<I", 9_999) + b"[" * 9_999), "index is damaged"),
        (with_tensors(["a", "pickle", [1]]), "impossible entries"),
        (with_tensors(["a", "float16", {}], planes=b"12"), "impossible entries"),
        (with_tensors(["a", "float16", ""], planes=b"12"), "impossible entries"),
        (with_tensors(["a", "float16", 1], planes=b"12"), "index is damaged"),
        (with_tensors(["a", "float16", [True]], planes=b"12"), "impossible entries"),
        (with_tensors(["a", "float16", [1]], ["a", "float16", [1]], planes=b"1212"),
         "impossible entries"),
        (with_tensors(["a", "int8", [1 << 29, 1 << 29]]), "impossible entries"),
        (with_tensors(["a", "int8", [4]]), "impossible entries"),
        (with_tensors(["a", "int8", [1 << 14, 1 << 14]]), "beyond the end"),
        (with_tensors(["a", "steps", [2, 2]], planes=bytes(7)), "beyond the end"),
        (with_tensors(["a", "float32", [-1]]), "impossible entries"),
        (with_tensors(planes=b"more"), "4 bytes are left"),
        (with_tensors(run_dir="/"), "impossible entries"),
        (with_tensors(num_layers=1 << 30, parallel_start_layer=None),
         "1073741824 layers, but only 0 tensors"),
        (with_tensors(*([f"t{i}", "float32", [1]] for i in range(11)), planes=bytes(44),
                      model_dim=1 << 30), "do not fit"),
        (with_tensors(*([f"t{i}", "float32", [1]] for i in range(11)), planes=bytes(44),
                      mlp_mult=1e308), "do not fit"),
        (with_tensors(num_heads=0), "do not fit"),
        (with_tensors(recur_loops=1 << 40), "do not fit"),
        (with_tensors(["a", "float32", []], planes=bytes(4)), "do not fit"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)  # fmt: skip
def test_hostile_files_are_named(data: bytes, complaint: str) -> None:
    with pytest.raises(ArtifactError, match=complaint) as caught:
        decode(data)
    assert "\n" not in str(caught.value)


CODES = np.array([[1, -1, 0], [0, 1, 1]], np.int8)
SCALES = np.ones(2, "<f2").tobytes()
TABLES, WORDS = rans_encode({"a": (CODES, None)})


def rans_side(shape: list[int], rest: bytes = SCALES + TABLES) -> bytes:
    index = {"config": {}, "tensors": [["a", "int8", shape]], "recurrence": False}
    return index_bytes(index) + rest


SIDE = rans_side([2, 3])
LENGTH = len(SIDE) - len(TABLES) + CODES.size


@pytest.mark.parametrize(
    ("data", "complaint"),
    [
        # As it should be, but for the checksum: all that follows differs in one thing.
        (rans_file(SIDE, WORDS, length=LENGTH), "checksum mismatch"),
        (rans_file(SIDE, WORDS, length=LENGTH)[: HEADER.size + 7], "the body has no header"),
        (rans_file(SIDE, WORDS, length=LENGTH + 1), "another number"),
        (rans_file(SIDE, WORDS, length=5), "beyond the end"),
        (rans_file(SIDE, WORDS, length=LENGTH, small=-1), "another number|damaged"),
        (rans_file(SIDE, WORDS, length=LENGTH, small=1), "another number|damaged"),
        (rans_file(SIDE, WORDS, length=LENGTH, small=1 << 20), "larger than the whole"),
        (rans_file(SIDE, WORDS, length=LENGTH, whole=len(SIDE) - 1), "another number"),
        (rans_file(SIDE, WORDS, length=LENGTH, whole=len(SIDE) + 1), "another number"),
        (rans_file(SIDE, WORDS, length=LENGTH, whole=(1 << 32) - 1), "larger than the whole"),
        (rans_file(SIDE, WORDS[:-1], length=LENGTH), "words are damaged"),
        (rans_file(SIDE, WORDS + bytes(4), length=LENGTH), "words are damaged"),
        (rans_file(SIDE, WORDS + WORDS, length=LENGTH), "left over"),
        (rans_file(SIDE + b"\0", WORDS, length=LENGTH), "left over"),
        (rans_file(SIDE[:-1], WORDS, length=LENGTH), "table is cut off"),
        (rans_file(rans_side([2, 3], SCALES + TABLES[:2]), WORDS, length=LENGTH), "is cut off"),
        (rans_file(rans_side([2, 3], SCALES + TABLES[:1]), WORDS, length=LENGTH), "are cut off"),
        (rans_file(rans_side([2, 3], SCALES[:3]), WORDS, length=LENGTH), "beyond the end"),
        (rans_file(rans_side([2, 1 << 28]), WORDS, length=LENGTH), "impossible entries"),
        (rans_file(rans_side([10**9, 3]), WORDS, length=1 << 28), "impossible entries"),
        (rans_file(rans_side([1 << 14, 1 << 14]), WORDS, length=1 << 28), "beyond the end"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)  # fmt: skip
def test_hostile_files_of_rans_are_named(data: bytes, complaint: str) -> None:
    with pytest.raises(ArtifactError, match=complaint):
        decode(data)


@pytest.mark.parametrize("codec", ["brotli", "rans"])
@settings(max_examples=40)
@given(seed=st.integers(0, 1 << 32), part=st.binary(max_size=40), keep=st.floats(0, 1))
def test_what_is_put_together_wrongly_is_refused(
    codec: str, seed: int, part: bytes, keep: float
) -> None:
    """What fuzz_artifact.py does at length: past the checksum, into every part."""

    def change(data: bytes) -> bytes:
        start = int(keep * len(data))
        return data[:start] + part + data[start + len(part) :]

    check(mutate(small_artifact(codec), change, random.Random(seed)))


class Bomb:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return print, ("executed",)


def test_a_pickle_is_not_executed(capfd: pytest.CaptureFixture[str]) -> None:
    bomb = pickle.dumps(Bomb())
    length = struct.pack("<I", len(bomb))
    for data in (
        *(bomb, brotli_file(bomb), brotli_file(length + bomb)),
        *(rans_file(bomb), rans_file(length + bomb), rans_file(SIDE, bomb, length=LENGTH)),
    ):
        with pytest.raises(ArtifactError):
            decode(data)
    assert "executed" not in capfd.readouterr().out


MEASURE = """
import resource, struct, sys
from model.artifact import ArtifactError, decode
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
while size := sys.stdin.buffer.read(4):
    data = sys.stdin.buffer.read(*struct.unpack("<I", size))
    try:
        decode(data)
    except ArtifactError as error:
        print(error)
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) >> 10)
"""


def long_row(cols: int) -> bytes:
    """An artifact that can be read, of one row of equal codes."""
    index = {"config": {}, "tensors": [["a", "int8", [1, cols]]], "recurrence": False}
    start = index_bytes(index)
    tables, words = rans_encode({"a": (np.ones((1, cols), np.int8), None)})
    return rans_file(start + b"\0\0" + tables, words, length=len(start) + 2 + cols)


def test_bombs_stay_within_bounded_memory() -> None:
    zeros = brotli.compress(bytes(1 << 28), quality=1)  # 256 MiB in a few hundred bytes
    header = (MAGIC, VERSION, BROTLI, SHUFFLE_STRIDE)
    empty = [[f"t{i}", "int8", [0, 1 << 28]] for i in range(9)]
    names = [[f"t{i}", "float16", [0] * 8] for i in range(40_000)]
    bombs = {
        "expected 1000 raw bytes": HEADER.pack(*header, 1_000, 0) + zeros,
        "expected 1048676 raw bytes": HEADER.pack(MAGIC, VERSION, RANS, SHUFFLE_STRIDE, 50, 0)
        + RANS_HEADER.pack(len(zeros), (1 << 20) + 100) + zeros,
        "impossible entries": with_tensors(*empty),
        "checksum mismatch": long_row(1 << 22),
        "it claims": with_tensors(*names),
        "beyond the end": rans_file(rans_side([1 << 14, 1 << 14]), WORDS, length=1 << 28),
    }  # fmt: skip
    files = b"".join(struct.pack("<I", len(data)) + data for data in bombs.values())
    command = [sys.executable, "-c", MEASURE]
    done = subprocess.run(command, input=files, capture_output=True, check=True)
    *messages, grown_mebibytes = done.stdout.decode().splitlines()
    for message, expected in zip(messages, bombs, strict=True):
        assert expected in message
    assert int(grown_mebibytes) < 64
