"""Decompressors and decoders for data that nobody vouches for.

Each stops at what may be had, and says why.
"""

from __future__ import annotations

import base64
import binascii
import bz2
import codecs
import lzma
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

MOST_BYTES = 64 << 20  # of all that an unpacking makes, together
MOST_STEPS = 500_000  # of expressions evaluated
MOST_MEMORY = 256 << 20  # of a decompressor


class UnknownValueError(Exception):
    """An expression whose value is not known from the text alone; the message says why."""


class TooLargeError(Exception):
    """An unpacking that makes more than it may."""


@dataclass
class Budget:
    """What is left of bytes and steps; TooLargeError once nothing is."""

    bytes: int = MOST_BYTES
    steps: int = MOST_STEPS

    def take(self, size: int) -> None:
        self.bytes -= size
        if self.bytes < 0:
            raise TooLargeError(f"it unpacks to more than {MOST_BYTES >> 20} MiB")

    def step(self) -> None:
        self.steps -= 1
        if self.steps < 0:
            raise TooLargeError("it takes too many steps to unpack")


def _drained(feed: Callable[[bytes, int], bytes], data: bytes, budget: Budget) -> bytes:
    """What one decompressor makes of data; it is asked for no more than may be had."""
    made = feed(data, budget.bytes + 1)
    budget.take(len(made))
    return made


def unlzma(
    data: bytes,
    format: int = lzma.FORMAT_AUTO,  # noqa: A002 - the name that lzma gives it
    memlimit: object = None,
    filters: list[dict[str, Any]] | None = None,
    *,
    budget: Budget,
) -> bytes:
    for each in filters or ():
        if int(each.get("dict_size", 0)) > MOST_MEMORY:
            raise TooLargeError("its LZMA dictionary is too large")
    raw = format == lzma.FORMAT_RAW
    parts: list[bytes] = []
    while data:
        memory = None if raw else MOST_MEMORY
        decoder = lzma.LZMADecompressor(format=format, memlimit=memory, filters=filters)
        try:
            parts.append(_drained(decoder.decompress, data, budget))
        except lzma.LZMAError:
            if parts:  # as lzma.decompress has it: what follows a stream may be anything
                break
            raise
        if not decoder.eof:
            # A raw stream need not have an end mark; lzma.decompress takes it all the same only
            # where it has one.
            raise UnknownValueError("its LZMA data are cut off")
        data = b"" if raw else decoder.unused_data
    return b"".join(parts)


def unzlib(data: bytes, wbits: int = zlib.MAX_WBITS, bufsize: int = 0, *, budget: Budget) -> bytes:
    decoder = zlib.decompressobj(wbits)
    made = _drained(decoder.decompress, data, budget)
    if not decoder.eof:
        raise UnknownValueError("its zlib data are cut off")
    return made


def ungzip(data: bytes, *, budget: Budget) -> bytes:
    """All members, as gzip.decompress takes them; zeros may follow each."""
    parts: list[bytes] = []
    while data:
        decoder = zlib.decompressobj(31)
        parts.append(_drained(decoder.decompress, data, budget))
        if not decoder.eof:
            raise UnknownValueError("its gzip data are cut off")
        data = decoder.unused_data.lstrip(b"\0")
    return b"".join(parts)


def unbz2(data: bytes, *, budget: Budget) -> bytes:
    """All streams, as bz2.decompress takes them; what follows a whole one may be anything."""
    parts: list[bytes] = []
    while data:
        decoder = bz2.BZ2Decompressor()
        try:
            parts.append(_drained(decoder.decompress, data, budget))
        except OSError:
            if parts:
                break
            raise
        if not decoder.eof:
            raise UnknownValueError("its bz2 data are cut off")
        data = decoder.unused_data
    return b"".join(parts)


def unbz2_one(data: bytes, *, budget: Budget) -> bytes:
    """One stream, as a decompressor that was made first takes it."""
    decoder = bz2.BZ2Decompressor()
    made = _drained(decoder.decompress, data, budget)
    if not decoder.eof:
        raise UnknownValueError("its bz2 data are cut off")
    return made


def unbrotli(data: bytes, *, budget: Budget) -> bytes:
    import brotli

    decoder = brotli.Decompressor()
    parts: list[bytes] = []
    rest = data
    while not decoder.is_finished():
        try:
            part = bytes(decoder.process(rest, output_buffer_limit=1 << 16))
        except brotli.error as error:
            raise UnknownValueError(f"its brotli data are damaged: {error}") from error
        if not part and not rest:
            raise UnknownValueError("its brotli data are cut off")
        budget.take(len(part))
        parts.append(part)
        rest = b""
    return b"".join(parts)


def unzstd(data: bytes, max_output_size: int = 0, *, budget: Budget) -> bytes:
    import zstandard

    decoder = zstandard.ZstdDecompressor(max_window_size=MOST_MEMORY)
    try:
        with decoder.stream_reader(data) as reader:
            return _drained(lambda _, most: bytes(reader.read(most)), data, budget)
    except zstandard.ZstdError as error:
        raise UnknownValueError(f"its zstandard data are damaged: {error}") from error


DECOMPRESSORS: Mapping[str, Callable[..., bytes]] = {
    "lzma.decompress": unlzma,
    "zlib.decompress": unzlib,
    "gzip.decompress": ungzip,
    "bz2.decompress": unbz2,
    "brotli.decompress": unbrotli,
    "zstandard.decompress": unzstd,
    "zstd.decompress": unzstd,
    "lzma.LZMADecompressor.decompress": unlzma,
    "zlib.decompressobj.decompress": unzlib,
    "bz2.BZ2Decompressor.decompress": unbz2_one,
    "zstandard.ZstdDecompressor.decompress": unzstd,
}


# ---- texts

CODECS = frozenset(
    {"utf-8", "utf8", "ascii", "latin-1", "latin1", "iso-8859-1", "l1", "cp437", "cp1252"}
    | {"utf-16", "utf-16-le", "utf-16-be", "utf-32", "unicode_escape", "raw_unicode_escape"}
)


def _decoded(data: Any, encoding: str = "utf-8", errors: str = "strict") -> Any:
    """codecs.decode, for the codecs that hide code."""
    name = encoding.lower().replace("-", "_").removesuffix("_codec")
    if name in ("hex", "base64"):
        return (binascii.unhexlify if name == "hex" else base64.b64decode)(data)
    if name in ("rot13", "rot_13"):
        return codecs.decode(data, "rot13")
    return bytes(data).decode(codec(encoding), errors)


def codec(name: str) -> str:
    if name.lower().replace("_", "-") not in {each.replace("_", "-") for each in CODECS}:
        raise UnknownValueError(f"the codec {name!r} is none of the plain ones")
    return name


DECODERS: Mapping[str, Callable[..., Any]] = {
    **{
        f"base64.{name}": getattr(base64, name)
        for name in (
            *("b64decode", "standard_b64decode", "urlsafe_b64decode", "b32decode"),
            *("b16decode", "b85decode", "a85decode", "decodebytes"),
        )
    },
    "binascii.unhexlify": binascii.unhexlify,
    "binascii.a2b_hex": binascii.a2b_hex,
    "binascii.a2b_base64": binascii.a2b_base64,
    "codecs.decode": _decoded,
    "bytes.fromhex": bytes.fromhex,
    "builtins.chr": chr,
    "builtins.ord": ord,
    "builtins.len": len,
    "builtins.int": int,
    "builtins.tuple": tuple,
    "builtins.list": list,
}
# Methods of text and bytes that make no more than they are given.
SHRINKING = frozenset(
    {"strip", "lstrip", "rstrip", "split", "rsplit", "partition", "rpartition", "splitlines"}
    | {"lower", "upper", "swapcase", "hex", "find", "rfind", "index", "rindex", "count"}
    | {"removeprefix", "removesuffix", "startswith", "endswith", "keys", "values", "tobytes"}
)
