"""The artifact: a trained model as few bytes, and back. Reading one never executes anything.

Layout, little-endian:

    magic "SWPT" | version u8 | codec u8 | shuffle stride u16 | raw length u64 | crc32 of raw u32
    body: the raw bytes, byte-shuffled by the stride, then compressed by the codec

    raw: index length u32 | index, JSON | planes, one after another in the order of the index

The index holds what differs from the record's network ("config") and one [name, kind, shape] per
tensor. Kinds: int6 and int8 (codes as int8, then one float16 scale per row), float16, float32.
"""

from __future__ import annotations

import json
import math
import struct
import zlib
from dataclasses import dataclass
from typing import Any, Literal

import brotli
import numpy as np
import torch
from torch import Tensor

from model.config import Config
from model.fields import echo_value
from model.gpt import GPT
from model.gptq import quantize_rows
from model.muon import is_control
from model.recurrence import NO_LOOP, Loop

MAGIC = b"SWPT"
VERSION = 1
CODEC_BROTLI = 1
SHUFFLE_STRIDE = 2
BROTLI_QUALITY = 10
HEADER = struct.Struct("<4sBBHQI")
# Above anything that could come out of 16 MB; a file that claims more is refused unread.
MAX_RAW_BYTES = 1 << 30
PRUNED_PER_EXCESS_BYTE = 4
SMALL_TENSOR = 65_536
# What the network is made of; all that reading an artifact back needs of a config.
NETWORK_FIELDS = (
    *("vocab_size", "train_seq_len", "num_layers", "model_dim", "embedding_dim", "num_heads"),
    *("num_kv_heads", "mlp_mult", "tie_embeddings", "logit_softcap", "rope_base", "rope_dims"),
    *("ln_scale", "xsa_last_n", "skip_gates_enabled", "ve_enabled", "ve_dim", "ve_layers"),
    *("parallel_start_layer", "recur_layers", "recur_loops"),
)

Kind = Literal["int6", "int8", "float16", "float32"]
CODED: tuple[Kind, ...] = ("int6", "int8")
DTYPES = {"int6": "<i1", "int8": "<i1", "float16": "<f2", "float32": "<f4"}


class ArtifactError(ValueError):
    """An artifact cannot be read or made; the message says what is wrong with it."""


@dataclass(frozen=True, kw_only=True)
class Packed:
    """One tensor as it is stored: codes with row scales, or plain values."""

    kind: Kind
    values: np.ndarray  # codes int8, or float16/float32 values
    scales: np.ndarray | None = None  # float16, one per row of codes

    def tensor(self) -> Tensor:
        """The float32 tensor that these bytes stand for."""
        values = torch.from_numpy(self.values.astype(np.float32))
        if self.scales is None:
            return values
        return values * torch.from_numpy(self.scales.astype(np.float32))[:, None]


Model = dict[str, Packed]


def pack_model(model: GPT, codes: dict[str, tuple[Tensor, Tensor]]) -> Model:
    """Every parameter in its stored form: given GPTQ codes, else int8 or plain values.

    codes: parameter name -> (codes, scales) from `gptq.quantize`. Control parameters stay
    float32, small tensors become float16, the other matrices int8 with a scale per row.
    """
    packed: Model = {}
    for name, value in model.state_dict().items():
        value = value.detach().cpu()
        if name in codes:
            packed[name] = _coded("int6", *codes[name])
        elif is_control(name):
            packed[name] = Packed(kind="float32", values=value.float().numpy())
        elif value.ndim == 2 and (value.numel() > SMALL_TENSOR or "emb" in name):
            packed[name] = _coded("int8", *quantize_rows(value))
        else:
            packed[name] = Packed(kind="float16", values=value.half().numpy())
    return packed


def _coded(kind: Kind, codes: Tensor, scales: Tensor) -> Packed:
    return Packed(kind=kind, values=codes.cpu().numpy(), scales=scales.cpu().numpy())


def encode(packed: Model, config: Config, loop: Loop) -> bytes:
    """The artifact's bytes, of a model with `loop` in force; the same input, the same bytes."""
    index = {
        "config": _network_config(config, loop),
        "recurrence": loop != NO_LOOP,
        "tensors": [[name, p.kind, list(p.values.shape)] for name, p in packed.items()],
    }
    text = json.dumps(index, separators=(",", ":")).encode()
    planes = [struct.pack("<I", len(text)), text]
    for p in packed.values():
        planes.append(np.ascontiguousarray(p.values, DTYPES[p.kind]).tobytes())
        if p.scales is not None:
            planes.append(np.ascontiguousarray(p.scales, "<f2").tobytes())
    raw = b"".join(planes)
    body = brotli.compress(_shuffle(raw, SHUFFLE_STRIDE), quality=BROTLI_QUALITY)
    header = HEADER.pack(MAGIC, VERSION, CODEC_BROTLI, SHUFFLE_STRIDE, len(raw), zlib.crc32(raw))
    return header + body


def decode(data: bytes) -> tuple[GPT, Model]:
    """The model that an artifact holds, ready to score, and its stored tensors.

    Raises ArtifactError for anything that `encode` did not write: truncated, altered, of another
    version, or lying about its sizes. Memory stays within the length the header declares.
    """
    raw = _unwrap(data)
    index, start = _read_index(raw)
    packed = _read_planes(raw, start, index["tensors"])
    model = _restore(index["config"], packed)
    model.set_recurrence_active(index["recurrence"])
    return model, packed


def _restore(config: dict[str, Any], packed: Model) -> GPT:
    """The network of an index with these tensors as its weights."""
    try:
        shape = Config(**config)
        # Every layer has tensors of its own, so a lie about the layers costs no time, and on the
        # meta device a lie about the sizes costs no memory.
        if shape.num_layers > len(packed):
            raise ArtifactError(f"{shape.num_layers} layers, but only {len(packed)} tensors")
        with torch.device("meta"):
            model = GPT(shape)
        tensors = {name: p.tensor() for name, p in packed.items()}
        model.load_state_dict(tensors, strict=True, assign=True)
    except (TypeError, ValueError, RuntimeError) as error:
        raise ArtifactError(f"the artifact's tensors do not fit its network: {error}") from error
    return model


def _network_config(config: Config, loop: Loop) -> dict[str, Any]:
    """The fields that make the network, where they differ from the record's."""
    ours, record = config.echo(), Config().echo()
    if loop != NO_LOOP:
        ours |= {"recur_layers": echo_value(loop.layers), "recur_loops": loop.loops}
    return {name: ours[name] for name in NETWORK_FIELDS if ours[name] != record[name]}


def _unwrap(data: bytes) -> bytes:
    """The raw bytes behind header, codec and shuffle, checked."""
    if len(data) < HEADER.size:
        raise ArtifactError(f"truncated: {len(data)} bytes, the header alone has {HEADER.size}")
    magic, version, codec, stride, length, crc = HEADER.unpack_from(data)
    if magic != MAGIC:
        raise ArtifactError(f"not an artifact: expected magic {MAGIC!r}, found {magic!r}")
    if version != VERSION:
        raise ArtifactError(f"artifact version {version}; this program reads version {VERSION}")
    if codec != CODEC_BROTLI or stride != SHUFFLE_STRIDE:
        raise ArtifactError(f"unknown codec {codec} with shuffle stride {stride}")
    if length > MAX_RAW_BYTES:
        raise ArtifactError(f"claims {length} raw bytes, more than {MAX_RAW_BYTES}")
    shuffled = _decompress(data[HEADER.size :], length)
    raw = _unshuffle(shuffled, stride)
    if zlib.crc32(raw) != crc:
        raise ArtifactError("checksum mismatch: the file was altered or damaged")
    return raw


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
        index = json.loads(raw[4 : 4 + length])
        tensors, config = index["tensors"], index["config"]
        well_formed = isinstance(config, dict) and set(config) <= set(NETWORK_FIELDS)
        for name, kind, shape in tensors:
            sizes = all(type(n) is int and 0 <= n <= MAX_RAW_BYTES for n in shape)
            well_formed &= isinstance(name, str) and kind in DTYPES and sizes and len(shape) <= 8
            well_formed &= kind not in CODED or len(shape) == 2
        index["recurrence"] = bool(index["recurrence"])
    except (struct.error, ValueError, KeyError, TypeError) as error:
        raise ArtifactError(f"the index is damaged: {error!r}") from error
    if not well_formed:
        raise ArtifactError("the index is damaged: impossible entries")
    return index, 4 + length


def _read_planes(raw: bytes, offset: int, tensors: list[tuple[str, Kind, list[int]]]) -> Model:
    packed: Model = {}
    for name, kind, shape in tensors:
        values, offset = _read_plane(raw, offset, DTYPES[kind], shape)
        scales = None
        if kind in CODED:
            scales, offset = _read_plane(raw, offset, "<f2", shape[:1])
        packed[name] = Packed(kind=kind, values=values, scales=scales)
    if offset != len(raw):
        raise ArtifactError(f"{len(raw) - offset} bytes are left after the last tensor")
    return packed


def _read_plane(raw: bytes, offset: int, dtype: str, shape: list[int]) -> tuple[np.ndarray, int]:
    count = math.prod(shape)
    stop = offset + count * np.dtype(dtype).itemsize
    if stop > len(raw):
        raise ArtifactError(f"a tensor of shape {shape} reaches beyond the end of the file")
    return np.frombuffer(raw, dtype, count, offset).reshape(shape), stop


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


def fit_by_pruning(packed: Model, config: Config, loop: Loop, *, budget: int) -> tuple[bytes, int]:
    """Encode within `budget` bytes, zeroing codes of ±1 where they cost the least; and how many.

    The record's method: four codes per byte too many, those of the smallest squared scale first,
    again until it fits. Raises ArtifactError when no ±1 code is left to zero.
    """
    data = encode(packed, config, loop)
    pruned = 0
    while len(data) > budget:
        wanted = PRUNED_PER_EXCESS_BYTE * (len(data) - budget)
        packed, done = prune(packed, wanted)
        if done == 0:
            raise ArtifactError(
                f"the artifact is {len(data)} bytes, {len(data) - budget} over what the budget "
                "leaves it, and nothing is left to prune; make the model smaller"
            )
        pruned += done
        data = encode(packed, config, loop)
    return data, pruned


def prune(packed: Model, count: int) -> tuple[Model, int]:
    """Zero up to `count` int6 codes of ±1, smallest squared row scale first; and how many."""
    rows = [
        (float(scale), name, row)
        for name, p in packed.items()
        if p.kind == "int6" and p.scales is not None
        for row, scale in enumerate(p.scales)
    ]
    values = {name: p.values.copy() for name, p in packed.items() if p.kind == "int6"}
    left = count
    for _, name, row in sorted(rows):
        ones = np.flatnonzero(np.abs(values[name][row]) == 1)[:left]
        values[name][row, ones] = 0
        left -= ones.size
        if left == 0:
            break
    smaller = {
        name: Packed(kind=p.kind, values=values.get(name, p.values), scales=p.scales)
        for name, p in packed.items()
    }
    return smaller, count - left
