"""The artifact: a trained model as few bytes, and back. Reading one never executes anything.

Layout, little-endian:

    magic "SWPT" | version u8 | codec u8 | shuffle stride u16 | raw length u64 | crc32 of raw u32
    body: the raw bytes, made smaller by the codec

    raw: index length u32 | index, JSON | planes, one after another in the order of the index

The index holds what differs from the record's network ("config") and one [name, kind, shape] per
tensor. Its planes are the values (int8 codes of the kinds int6, int8 and steps, else float16 or
float32) and then what `Packed.details` says: a float16 scale per row, or a step per row and per
column, both int8.

    codec 1, brotli: all raw bytes, byte-shuffled by the stride, in one stream
    codec 2, rans:   side's length u32, as compressed, and u32, as it is | side | words
                     side, in brotli: the raw bytes without the codes, each plane byte-shuffled by
                     the width of its values, and then the spreads and tables of model/rans.py
"""

from __future__ import annotations

import itertools
import json
import math
import struct
import zlib
from typing import Any, Literal

import brotli
import numpy as np
import torch

from model.config import Config
from model.fields import echo_value
from model.gpt import GPT
from model.packed import CODED, SCALED, VALUE_DTYPES, Kind, Model, Packed, coded_planes
from model.rans import RansError, rans_decode, rans_encode
from model.recurrence import NO_LOOP, Loop

Codec = Literal["brotli", "rans"]
Entry = tuple[str, Kind, list[int]]

MAGIC = b"SWPT"
VERSION = 1
CODECS = ("", "brotli", "rans")  # by number
SHUFFLE_STRIDE = 2
BROTLI_QUALITY = 10
HEADER = struct.Struct("<4sBBHQI")
RANS_HEADER = struct.Struct("<II")
# Far above anything that could come out of 16 MB; a file that claims more is refused unread.
MAX_RAW_BYTES = 1 << 28
MAX_INDEX_BYTES = 1 << 18
MAX_TABLE_BYTES = 1 << 20
MAX_TENSORS = 2_048
TENSORS_PER_LAYER = 9  # at least
MAX_QUOTED = 300  # characters of an error that quotes from a file
# Up to so many raw bytes brotli is tried beside rans for certain; above, where a quick look says
# that it might win: repeats show at its lowest quality, which then comes within so much of what
# rans makes, and what neighbours tell of each other shows in a few rows, of which rans makes more
# than brotli (by less, it may be that few rows do not do its models justice).
SURELY_TRIED_BYTES = 1 << 18
QUICK_MARGIN = 1.03
SAMPLED_BYTES = 1 << 16
SAMPLE_MARGIN = 0.98
# What the network is made of; all that reading an artifact back needs of a config.
NETWORK_FIELDS = (
    *("vocab_size", "train_seq_len", "num_layers", "model_dim", "embedding_dim", "num_heads"),
    *("num_kv_heads", "mlp_mult", "tie_embeddings", "logit_softcap", "rope_base", "rope_dims"),
    *("ln_scale", "xsa_last_n", "skip_gates_enabled", "ve_enabled", "ve_dim", "ve_layers"),
    *("parallel_start_layer", "recur_layers", "recur_loops"),
)


class ArtifactError(ValueError):
    """An artifact cannot be read or made; the message says what is wrong with it."""


def encode(packed: Model, config: Config, loop: Loop, codec: Codec) -> bytes:
    """The artifact's bytes, of a model with `loop` in force; the same input, the same bytes."""
    index = {
        "config": _network_config(config, loop),
        "recurrence": loop != NO_LOOP,
        "tensors": [[name, p.kind, list(p.values.shape)] for name, p in packed.items()],
    }
    text = json.dumps(index, separators=(",", ":")).encode()
    start = struct.pack("<I", len(text)) + text
    planes = {name: [_stored_values(p), *p.details()] for name, p in packed.items()}
    length, crc = len(start), zlib.crc32(start)
    for plane in itertools.chain(*planes.values()):
        length, crc = length + plane.nbytes, zlib.crc32(plane.data, crc)
    if length > MAX_RAW_BYTES or len(text) > MAX_INDEX_BYTES:
        raise ArtifactError(
            f"the model is {length} raw bytes, an artifact holds {MAX_RAW_BYTES}, and "
            f"{MAX_INDEX_BYTES} of names; make the model smaller"
        )
    if codec == "brotli":
        raw = b"".join([start, *(plane.tobytes() for plane in itertools.chain(*planes.values()))])
        body = brotli.compress(_shuffle(raw, SHUFFLE_STRIDE), quality=BROTLI_QUALITY)
    else:
        body = _encode_rans(start, packed, planes)
    number = CODECS.index(codec)
    return HEADER.pack(MAGIC, VERSION, number, SHUFFLE_STRIDE, length, crc) + body


def encode_smallest(
    packed: Model, config: Config, loop: Loop, codec: Codec, data: bytes | None = None
) -> tuple[bytes, Codec]:
    """`encode` by `codec`, or by brotli where that is found to be smaller; and which it was.

    data: what `encode` makes by `codec`, where that is known.
    """
    if data is None:
        data = encode(packed, config, loop, codec)
    if codec == "rans" and _brotli_may_win(packed, len(data)):
        other = encode(packed, config, loop, "brotli")
        if len(other) < len(data):
            return other, "brotli"
    return data, codec


def _brotli_may_win(packed: Model, size: int) -> bool:
    """Whether brotli, which takes a minute for 34 M codes, is worth trying."""
    raw = b"".join(_stored_values(p).tobytes() for p in packed.values())
    if len(raw) <= SURELY_TRIED_BYTES:
        return True
    if len(brotli.compress(raw, quality=1)) < QUICK_MARGIN * size:
        return True
    share = SAMPLED_BYTES / len(raw)
    rows = {
        name: (codes[: max(1, round(share * len(codes)))], steps)
        for name, (codes, steps) in coded_planes(packed).items()
    }
    tables, words = rans_encode(rows)
    ours = len(words) + len(brotli.compress(tables, quality=BROTLI_QUALITY))
    sample = b"".join(codes.tobytes() for codes, _ in rows.values())
    return len(brotli.compress(sample, quality=BROTLI_QUALITY)) < SAMPLE_MARGIN * ours


def _stored_values(p: Packed) -> np.ndarray:
    return np.ascontiguousarray(p.values, VALUE_DTYPES[p.kind])


def _encode_rans(start: bytes, packed: Model, planes: dict[str, list[np.ndarray]]) -> bytes:
    side = [start]
    for name, p in packed.items():
        stored = planes[name][p.kind in CODED :]
        side += [_shuffle(plane.tobytes(), plane.itemsize) for plane in stored]
    tables, words = rans_encode(coded_planes(packed))
    whole = b"".join([*side, tables])
    small = brotli.compress(whole, quality=BROTLI_QUALITY)
    return RANS_HEADER.pack(len(small), len(whole)) + small + words


def decode(data: bytes) -> tuple[GPT, dict[str, Packed]]:
    """The model that an artifact holds, ready to score, and its stored tensors.

    Raises ArtifactError for anything that `encode` did not write: truncated, altered, of another
    version, or lying about its sizes. Memory stays within a few times the length that the header
    declares, which is bounded.
    """
    if len(data) < HEADER.size:
        raise ArtifactError(f"truncated: {len(data)} bytes, the header alone has {HEADER.size}")
    magic, version, number, stride, length, crc = HEADER.unpack_from(data)
    if magic != MAGIC:
        raise ArtifactError(f"not an artifact: expected magic {MAGIC!r}, found {magic!r}")
    if version != VERSION:
        raise ArtifactError(f"artifact version {version}; this program reads version {VERSION}")
    if not 0 < number < len(CODECS) or stride != SHUFFLE_STRIDE:
        raise ArtifactError(f"unknown codec {number} with shuffle stride {stride}")
    if length > MAX_RAW_BYTES:
        raise ArtifactError(f"claims {length} raw bytes, more than {MAX_RAW_BYTES}")
    read = _read_brotli if CODECS[number] == "brotli" else _read_rans
    index, packed, found = read(data[HEADER.size :], length)
    if found != crc:
        raise ArtifactError("checksum mismatch: the file was altered or damaged")
    model = _restore(index["config"], packed)
    model.set_recurrence_active(index["recurrence"])
    return model, packed


Contents = tuple[dict[str, Any], dict[str, Packed], int]  # index, tensors, crc32 of the raw bytes


def _read_brotli(body: bytes, length: int) -> Contents:
    raw = _unshuffle(_decompress(body, length), SHUFFLE_STRIDE)
    index, offset = _read_index(raw)
    reader = _Reader(raw, offset)
    packed = {name: reader.tensor(kind, shape) for name, kind, shape in index["tensors"]}
    reader.finish()
    return index, packed, zlib.crc32(raw)


def _read_rans(body: bytes, length: int) -> Contents:
    if len(body) < RANS_HEADER.size:
        raise ArtifactError("truncated: the body has no header")
    small, whole = RANS_HEADER.unpack_from(body)
    if whole > 2 * length + MAX_TABLE_BYTES or RANS_HEADER.size + small > len(body):
        raise ArtifactError("the body's parts are larger than the whole")
    words = body[RANS_HEADER.size + small :]
    side = _decompress(body[RANS_HEADER.size : RANS_HEADER.size + small], whole)
    index, offset = _read_index(side)
    shapes = [shape for _, kind, shape in index["tensors"] if kind in CODED]
    coded = sum(map(math.prod, shapes))
    # Nothing of the codes' size is made before the sizes are known to add up.
    if coded > length or len(side) < length - coded:
        raise ArtifactError("the tensors reach beyond the end of the file")
    reader = _Reader(side, offset, shuffled=True)
    packed = {name: reader.tensor(kind, shape) for name, kind, shape in index["tensors"]}
    if coded + reader.offset != length:
        raise ArtifactError(f"expected {length} raw bytes, the tensors have another number")
    try:
        rans_decode(coded_planes(packed), side[reader.offset :], words)
    except RansError as error:
        raise ArtifactError(f"the codes are damaged: {error}") from error
    crc = zlib.crc32(side[:offset])
    for p in packed.values():
        for plane in (_stored_values(p), *p.details()):
            crc = zlib.crc32(plane.data, crc)
    return index, packed, crc


class _Reader:
    """Takes tensors out of raw bytes, or (`shuffled`) out of a side, which has no codes."""

    def __init__(self, raw: bytes, offset: int, *, shuffled: bool = False) -> None:
        self.raw, self.offset, self.shuffled = raw, offset, shuffled

    def tensor(self, kind: Kind, shape: list[int]) -> Packed:
        if kind in CODED and self.shuffled:
            values = np.zeros(shape, np.int8)
        else:
            values = self._plane(VALUE_DTYPES[kind], shape)
        if kind in SCALED:
            return Packed(kind=kind, values=values, scales=self._plane("<f2", shape[:1]))
        if kind != "steps":
            return Packed(kind=kind, values=values)
        rows, cols = (self._plane("<i1", [n]) for n in shape)
        return Packed(kind=kind, values=values, row_steps=rows, col_steps=cols)

    def _plane(self, dtype: str, shape: list[int]) -> np.ndarray:
        width = np.dtype(dtype).itemsize
        count = math.prod(shape)
        stop = self.offset + count * width
        if stop > len(self.raw):
            raise ArtifactError(f"a tensor of shape {shape} reaches beyond the end of the file")
        data = self.raw[self.offset : stop]
        self.offset = stop
        if self.shuffled:
            data = _unshuffle(data, width)
        return np.frombuffer(data, dtype, count).reshape(shape)

    def finish(self) -> None:
        if self.offset != len(self.raw):
            left = len(self.raw) - self.offset
            raise ArtifactError(f"{left} bytes are left after the last tensor")


def _restore(config: dict[str, Any], packed: Model) -> GPT:
    """The network of an index with these tensors as its weights."""
    try:
        shape = Config(**config)
        # Every layer has tensors of its own, so a lie about the layers costs no time, and on the
        # meta device a lie about the sizes costs no memory.
        if shape.num_layers * TENSORS_PER_LAYER > len(packed):
            raise ArtifactError(f"{shape.num_layers} layers, but only {len(packed)} tensors")
        with torch.device("meta"):
            model = GPT(shape)
        tensors = {name: p.tensor() for name, p in packed.items()}
        _check_finite(tensors)
        model.load_state_dict(tensors, strict=True, assign=True)
    except (ArithmeticError, TypeError, ValueError, RuntimeError) as error:
        reason = _in_one_line(error)
        raise ArtifactError(f"the artifact's tensors do not fit its network: {reason}") from error
    return model


def _check_finite(tensors: dict[str, torch.Tensor]) -> None:
    for name, values in tensors.items():
        if not values.isfinite().all():
            raise ArtifactError(f"{name} holds what is no number")


def _network_config(config: Config, loop: Loop) -> dict[str, Any]:
    """The fields that make the network, where they differ from the record's."""
    ours, record = config.echo(), Config().echo()
    if loop != NO_LOOP:
        ours |= {"recur_layers": echo_value(loop.layers), "recur_loops": loop.loops}
    return {name: ours[name] for name in NETWORK_FIELDS if ours[name] != record[name]}


def _decompress(body: bytes, length: int) -> bytes:
    """Exactly `length` decompressed bytes, never holding many more."""
    decompressor = brotli.Decompressor()
    chunks, size = [], 0
    try:
        while size <= length and not decompressor.is_finished():
            chunk = decompressor.process(body, output_buffer_limit=length + 1 - size)
            body = b""
            if not chunk:
                break
            chunks.append(chunk)
            size += len(chunk)
    except brotli.error as error:
        raise ArtifactError(f"the compressed body is damaged: {error}") from error
    if size != length or not decompressor.is_finished():
        raise ArtifactError(f"expected {length} raw bytes, the body holds another number")
    return b"".join(chunks)


def _read_index(raw: bytes) -> tuple[dict[str, Any], int]:
    """The index and the offset of the first plane."""
    try:
        (length,) = struct.unpack_from("<I", raw)
        if length > MAX_INDEX_BYTES:
            raise ValueError(f"it claims {length} bytes")
        if length > len(raw) - 4:
            raise ValueError("it is cut off")
        index = json.loads(raw[4 : 4 + length])
        tensors, config = index["tensors"], index["config"]
        well_formed = isinstance(config, dict) and set(config) <= set(NETWORK_FIELDS)
        well_formed &= all(_is_entry(name, kind, shape) for name, kind, shape in tensors)
        well_formed &= len(tensors) <= MAX_TENSORS
        well_formed &= len({name for name, *_ in tensors}) == len(tensors)
        index["recurrence"] = bool(index["recurrence"])
    except (struct.error, ValueError, KeyError, TypeError, RecursionError) as error:
        raise ArtifactError(f"the index is damaged: {_in_one_line(error)}") from error
    if not well_formed:
        raise ArtifactError("the index is damaged: impossible entries")
    return index, 4 + length


def _is_entry(name: Any, kind: Any, shape: Any) -> bool:
    """Whether there can be such a tensor: of printable name, known kind and possible sizes."""
    if not (isinstance(name, str) and name.isascii() and name.isprintable()):
        return False
    if kind not in VALUE_DTYPES or not isinstance(shape, list) or len(shape) > 8:
        return False
    if not all(type(n) is int and 0 <= n <= MAX_RAW_BYTES for n in shape):
        return False
    if kind in CODED and (len(shape) != 2 or 0 in shape):
        return False
    # Sizes beside a 0 cost no bytes, and can still be more than an array has.
    return math.prod(max(1, n) for n in shape) <= MAX_RAW_BYTES


def _in_one_line(error: Exception) -> str:
    """An error's words, which quote from the file, at a length for people."""
    words = " ".join(str(error).split())
    return words if len(words) <= MAX_QUOTED else f"{words[:MAX_QUOTED]} …"


def _shuffle(data: bytes, stride: int) -> bytes:
    """Bytes 0, s, 2s, …, then 1, s+1, …: equal halves of float16 come together."""
    array = np.frombuffer(data, np.uint8)
    return b"".join(array[start::stride].tobytes() for start in range(stride))


def _unshuffle(data: bytes, stride: int) -> bytes:
    array = np.frombuffer(data, np.uint8)
    out = np.empty_like(array)
    start = 0
    for lane in range(stride):
        part = out[lane::stride]
        part[:] = array[start : start + part.size]
        start += part.size
    return out.tobytes()
