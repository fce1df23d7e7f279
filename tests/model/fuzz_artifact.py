"""Fuzzing of the artifact's reader: whatever the bytes, a model or an ArtifactError in one line.

    python -m tests.model.fuzz_artifact --codec rans --seconds 60

Guided by coverage (atheris, which is installed apart: `pip install atheris`). Changed bytes alone
would all fail at the checksum; so an artifact is taken apart, one part of it changed, and lengths
and checksum made to fit again, mostly. The tests use the same mutations, and build their hostile
files from the functions here.
"""

from __future__ import annotations

import argparse
import dataclasses
import importlib
import inspect
import json
import math
import random
import struct
import sys
import tempfile
import zlib
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import brotli
import numpy as np

from model import artifact, packed, rans
from model.artifact import (
    CODECS,
    HEADER,
    MAGIC,
    RANS_HEADER,
    SHUFFLE_STRIDE,
    VERSION,
    ArtifactError,
    decode,
    encode,
)
from model.packed import CODED, SCALED, VALUE_DTYPES, Model

GOLDEN = Path(__file__).parent / "golden" / "brotli_v1.swpt"
BROTLI, RANS = CODECS.index("brotli"), CODECS.index("rans")
SECONDS_A_FILE = 10
MEBIBYTES = 2_048


# ---- files, hostile ones too


def index_bytes(index: object) -> bytes:
    """What raw bytes begin with."""
    text = json.dumps(index).encode()
    return struct.pack("<I", len(text)) + text


def brotli_file(raw: bytes, **header: object) -> bytes:
    """An artifact around raw bytes, with chosen fields of the header replaced."""
    half = np.frombuffer(raw, np.uint8)
    shuffled = half[::2].tobytes() + half[1::2].tobytes()
    fields = {"codec": BROTLI, "length": len(raw), "crc": zlib.crc32(raw)} | header
    return _header(**fields) + brotli.compress(shuffled, quality=1)


def rans_file(
    side: bytes, words: bytes = b"", *, small: int = 0, whole: int | None = None, **header: object
) -> bytes:
    """An artifact around a side and words; `small` is added to the true length of the side."""
    body = brotli.compress(side, quality=1)
    lengths = RANS_HEADER.pack(len(body) + small, len(side) if whole is None else whole)
    fields = {"codec": RANS, "length": len(side), "crc": 0} | header
    return _header(**fields) + lengths + body + words


def _header(**fields: object) -> bytes:
    rest = {"magic": MAGIC, "version": VERSION, "codec": 0, "stride": SHUFFLE_STRIDE}
    return HEADER.pack(*(rest | fields).values())


# ---- artifacts taken apart, changed and put together


@dataclasses.dataclass(frozen=True, kw_only=True)
class Parts:
    """An artifact's index (JSON), what follows it in raw bytes or side, and the words."""

    codec: int
    index: bytes
    planes: bytes
    words: bytes
    length: int

    @classmethod
    def of(cls, data: bytes) -> Parts:
        """The parts of an artifact that can be read."""
        _, _, codec, _, length, _ = HEADER.unpack_from(data)
        body, words = data[HEADER.size :], b""
        if codec == RANS:
            small, _ = RANS_HEADER.unpack_from(body)
            body, words = body[RANS_HEADER.size :][:small], body[RANS_HEADER.size + small :]
        raw = brotli.decompress(body)
        if codec == BROTLI:
            lanes = np.empty(len(raw), np.uint8)
            middle = (len(raw) + 1) // 2
            lanes[::2], lanes[1::2] = (
                np.frombuffer(raw[:middle], np.uint8),
                np.frombuffer(raw[middle:], np.uint8),
            )
            raw = lanes.tobytes()
        (size,) = struct.unpack_from("<I", raw)
        index, planes = raw[4 : 4 + size], raw[4 + size :]
        return cls(codec=codec, index=index, planes=planes, words=words, length=length)

    def file(self) -> bytes:
        """The parts as an artifact, its checksum right where it can be."""
        raw = struct.pack("<I", len(self.index)) + self.index + self.planes
        if self.codec == BROTLI:
            return brotli_file(raw)
        length = _raw_length(self.index) or self.length
        data = rans_file(raw, self.words, length=length)
        try:
            _, _, crc = artifact._read_rans(data[HEADER.size :], length)
        except ArtifactError:
            return data
        return rans_file(raw, self.words, length=length, crc=crc)


def _raw_length(index: bytes) -> int | None:
    """The raw bytes of an artifact with this index, where it makes sense."""
    try:
        tensors = json.loads(index)["tensors"]
        length = 4 + len(index)
        for _, kind, shape in tensors:
            length += math.prod(shape) * np.dtype(VALUE_DTYPES[kind]).itemsize
            length += 2 * shape[0] if kind in SCALED else sum(shape) if kind in CODED else 0
    except (ValueError, TypeError, LookupError, RecursionError):
        return None
    return length if isinstance(length, int) and 0 <= length < 1 << 63 else None


def mutate(data: bytes, change: Callable[[bytes], bytes], choice: random.Random) -> bytes:
    """The artifact with one part changed; where it cannot be read, its bytes changed."""
    try:
        parts = Parts.of(data)
    except (brotli.error, struct.error, ValueError):
        return change(data)
    way = choice.randrange(8)
    if way == 0:
        return change(data)
    if way <= 3:
        index = _other_index(parts.index, choice) if way < 3 else change(parts.index)
        return dataclasses.replace(parts, index=index).file()
    if way <= 6 or parts.codec == BROTLI:
        # Spreads and tables come last, and are few: they get as much as all planes before.
        start = choice.choice((0, len(parts.planes) * 3 // 4, max(0, len(parts.planes) - 64)))
        planes = parts.planes[:start] + change(parts.planes[start:])
        return dataclasses.replace(parts, planes=planes).file()
    return dataclasses.replace(parts, words=change(parts.words)).file()


def _other_index(text: bytes, choice: random.Random) -> bytes:
    """An index with one thing in it replaced by a hostile one."""
    try:
        index = json.loads(text)
        tensors, config = index["tensors"], index["config"]
        place = choice.randrange(4)
        if place == 0:
            config[choice.choice(sorted(artifact.NETWORK_FIELDS))] = _hostile(choice)
        elif place == 1:
            tensors[choice.randrange(len(tensors))][choice.randrange(3)] = _hostile(choice)
        elif place == 2:
            entry = tensors[choice.randrange(len(tensors))]
            entry[2][choice.randrange(len(entry[2]))] = _hostile(choice)
        else:
            entry = tensors[choice.randrange(len(tensors))]
            entry[1] = choice.choice(sorted(VALUE_DTYPES))
        return json.dumps(index).encode()
    except (ValueError, TypeError, LookupError, AttributeError, RecursionError):
        return text + b" "


def _hostile(choice: random.Random) -> Any:
    """A value of any kind, extremes among them."""
    whole = choice.choice((0, 1, 2, 3, 8, 16, 17, 255, 1 << 20, 1 << 28, 1 << 31, 1 << 63, 10**30))
    return choice.choice(
        (
            *(whole, whole, whole, -whole, whole + 0.5, [whole], [whole, whole], {"a": whole}),
            *(None, True, "", "0,1", "int8", "steps", [], {}, 1e308, float("inf"), float("nan")),
        )
    )


def check(data: bytes) -> None:
    """Read the artifact; raises what is not meant to be."""
    try:
        decode(data)
    except ArtifactError as error:
        message = str(error)
    else:
        return
    assert "\n" not in message, message
    assert len(message) < 1_000


def small_artifact(codec: str) -> bytes:
    """The golden artifact, by this codec; for rans, one matrix in two has steps."""
    data = GOLDEN.read_bytes()
    if codec == "brotli":
        return data
    model, read = decode(data)
    tensors: Model = {
        name: _with_steps(p) if p.kind == "int6" and number % 2 else p
        for number, (name, p) in enumerate(read.items())
    }
    return encode(tensors, model.config, model.loop, "rans")


def _with_steps(p: packed.Packed) -> packed.Packed:
    rows, cols = (np.arange(n, dtype=np.int8) % 7 - 3 for n in p.values.shape)
    return packed.Packed(kind="steps", values=p.values, row_steps=rows, col_steps=cols)


# ---- the fuzzer


def instrument(atheris: ModuleType, module: ModuleType) -> None:
    """Make the coverage of a module's functions and methods seen."""
    owners = [module, *(c for _, c in inspect.getmembers(module, inspect.isclass))]
    for owner in owners:
        for function in vars(owner).values():
            function = getattr(function, "__func__", getattr(function, "func", function))
            if inspect.isfunction(function) and function.__module__ == module.__name__:
                atheris.instrument_func(function)


def main() -> None:
    parser = argparse.ArgumentParser(prog="tests.model.fuzz_artifact", description=__doc__)
    parser.add_argument("--codec", choices=CODECS[1:], default="rans", help="of the first file")
    parser.add_argument("--seconds", type=int, default=60, help="how long (default: 60)")
    arguments = parser.parse_args()
    try:
        atheris = importlib.import_module("atheris")
    except ImportError:
        sys.exit("fuzz_artifact: atheris is not installed; pip install atheris")

    def one_mutation(data: bytes, max_size: int, seed: int) -> bytes:
        def change(part: bytes) -> bytes:
            return bytes(atheris.Mutate(part, max(len(part), 1) + 64))

        return mutate(data, change, random.Random(seed))[:max_size]

    for module in (artifact, packed, rans):
        instrument(atheris, module)
    with tempfile.TemporaryDirectory() as corpus:
        (Path(corpus) / "first").write_bytes(small_artifact(arguments.codec))
        limits = (f"-timeout={SECONDS_A_FILE}", f"-rss_limit_mb={MEBIBYTES}", "-max_len=65536")
        options = (f"-max_total_time={arguments.seconds}", "-print_final_stats=1", *limits)
        atheris.Setup(["fuzz_artifact", corpus, *options], check, custom_mutator=one_mutation)
        atheris.Fuzz()


if __name__ == "__main__":
    main()
