"""The challenge's shard files: written, read, checked and told apart; numpy only.

A shard is a header of 256 little-endian int32 (magic, version, token count, zeros) followed by
uint16 tokens.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np

SHARD_MAGIC = 20240520
SHARD_VERSION = 1
HEADER_INTS = 256
HEADER_BYTES = 4 * HEADER_INTS
TOKEN_BYTES = 2


class ShardError(ValueError):
    """A shard cannot be used; the message names the file, what was expected and what was found."""


def write_shard(path: Path, tokens: np.ndarray) -> None:
    """Write tokens [n] (integers below 65,536) as one shard: a temporary name, then a rename."""
    if tokens.size and (int(tokens.min()) < 0 or int(tokens.max()) > np.iinfo(np.uint16).max):
        raise ShardError(f"{path}: token ids must fit in uint16 (0 to 65535)")
    header = np.zeros(HEADER_INTS, "<i4")
    header[:3] = SHARD_MAGIC, SHARD_VERSION, tokens.size
    partial = path.with_name(path.name + ".partial")
    with partial.open("wb") as file:
        file.write(header.tobytes())
        file.write(np.ascontiguousarray(tokens, "<u2").data)
        file.flush()
        os.fsync(file.fileno())
    partial.replace(path)


def shard_token_count(path: Path) -> int:
    """Tokens in a shard, from its header, which must agree with the file's size."""
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            head = file.read(HEADER_BYTES)
    except OSError as error:
        raise ShardError(f"{path}: cannot be read: {error.strerror}") from error
    if len(head) < HEADER_BYTES:
        raise ShardError(f"{path}: expected a {HEADER_BYTES}-byte header, found {size} bytes")
    magic, version, count = (int(word) for word in np.frombuffer(head, "<i4", 3))
    if magic != SHARD_MAGIC:
        raise ShardError(f"{path}: expected magic {SHARD_MAGIC}, found {magic}; not a token shard")
    if version != SHARD_VERSION:
        raise ShardError(f"{path}: expected version {SHARD_VERSION}, found {version}")
    expected = HEADER_BYTES + TOKEN_BYTES * count
    if count < 0 or size != expected:
        raise ShardError(
            f"{path}: expected {expected} bytes for the {count} tokens of its header, "
            f"found {size}; truncated or damaged, fetch or build it again"
        )
    return count


def read_shard(path: Path, vocab_size: int | None = None) -> np.ndarray:
    """The tokens of a shard as a read-only uint16 memory map [n].

    With `vocab_size` every token id is checked as well, which reads the whole file.
    """
    count = shard_token_count(path)
    if count == 0:
        return np.empty(0, "<u2")
    tokens = np.memmap(path, "<u2", mode="r", offset=HEADER_BYTES, shape=(count,))
    if vocab_size is not None:
        check_ids(path, tokens, vocab_size)
    return tokens


def check_ids(path: Path, tokens: np.ndarray, vocab_size: int) -> None:
    """ShardError unless every token id is below `vocab_size`."""
    if tokens.size and int(tokens.max()) >= vocab_size:
        raise ShardError(
            f"{path}: expected token ids below VOCAB_SIZE {vocab_size}, found {int(tokens.max())}; "
            "the shard belongs to another tokenizer"
        )


def train_files(data_dir: Path, vocab_size: int) -> list[Path]:
    """Training shards of a data directory; ShardError when there are none."""
    return _files(data_dir, vocab_size, "train")


def val_files(data_dir: Path, vocab_size: int) -> list[Path]:
    """Validation shards of a data directory, in document order; ShardError when there are none."""
    return _files(data_dir, vocab_size, "val")


def _files(data_dir: Path, vocab_size: int, split: str) -> list[Path]:
    folder = data_dir / "datasets" / f"fineweb10B_sp{vocab_size}"
    files = sorted(folder.glob(f"fineweb_{split}_*.bin"))
    if not files:
        raise ShardError(
            f"{folder}: no fineweb_{split}_*.bin; check DATA_DIR and VOCAB_SIZE, or make them "
            f"with `sweeper data sample --vocab-size {vocab_size}` or `sweeper data fetch`"
        )
    return files


def sample_blocks(tokens: np.ndarray) -> np.ndarray:
    """64 evenly spaced blocks of 4 KiB, [64, 2048] (fewer tokens: all of them, [1, n]).

    Stands for the shard where reading all of it would cost minutes: a full training set is 16 GB.
    """
    block = 2048
    if tokens.size <= block:
        return np.asarray(tokens)[None]
    starts = np.linspace(0, tokens.size - block, 64).astype(np.int64)
    return np.stack([tokens[start : start + block] for start in starts])


def fingerprint(tokens: np.ndarray) -> str:
    """Identity of a shard by its contents: its token count and its sampled blocks."""
    digest = hashlib.sha256(str(tokens.size).encode())
    digest.update(sample_blocks(tokens).tobytes())
    return digest.hexdigest()


def load_val_tokens(files: Sequence[Path], vocab_size: int, seq_len: int) -> np.ndarray:
    """All validation tokens, cut so that the targets fill whole windows: [k * seq_len + 1]."""
    tokens = np.concatenate([read_shard(path, vocab_size) for path in files])
    usable = (tokens.size - 1) // seq_len * seq_len
    if usable <= 0:
        raise ShardError(
            f"{files[0].parent}: {tokens.size} validation tokens, but one window of EVAL_SEQ_LEN "
            f"{seq_len} needs {seq_len + 1}; shorten EVAL_SEQ_LEN or use a larger validation split"
        )
    return tokens[: usable + 1]
