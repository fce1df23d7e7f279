"""Training batches in an order set by seed and shard contents alone.

Neither file names, nor the world size, nor the time of day change which sequence is trained on
when: two machines with the same shards and the same seed see the same data.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from model.shards import ShardError, check_ids, fingerprint, read_shard, sample_blocks

Batch = tuple[Tensor, Tensor]  # inputs and targets, int64 [n, seq_len]


class TrainData:
    """Batches of training sequences; the order is a function of (seed, shard contents).

    Every epoch cuts each shard into sequences from a fresh offset and visits all of them in one
    global permutation. The only state is `position`, the number of sequences handed out.
    """

    def __init__(self, files: Sequence[Path], *, seq_len: int, seed: int, vocab_size: int) -> None:
        shards = [(path, read_shard(path)) for path in files]
        for path, tokens in shards:
            check_ids(path, sample_blocks(tokens), vocab_size)
        ordered = sorted(
            ((fingerprint(tokens), path, tokens) for path, tokens in shards), key=lambda s: s[0]
        )
        self._prints = [name for name, _, _ in ordered]
        self.files = [path for _, path, _ in ordered]
        self._shards = [tokens for _, _, tokens in ordered]
        self.vocab_size = vocab_size
        self.seq_len = seq_len
        self.seed = seed
        self.position = 0
        self._epoch = -1
        # One sequence of every shard is given up to the epoch's offset.
        self._counts = np.array([max(0, (s.size - 1) // seq_len - 1) for s in self._shards])
        self._ends = np.cumsum(self._counts)
        if self.epoch_length == 0:
            raise ShardError(
                f"{files[0].parent}: too few training tokens for sequences of TRAIN_SEQ_LEN "
                f"{seq_len}; each shard needs at least {2 * seq_len + 1}"
            )

    @property
    def epoch_length(self) -> int:
        """Sequences in one pass over the data."""
        return int(self._ends[-1])

    @property
    def tokens(self) -> int:
        """Tokens in all shards."""
        return sum(shard.size for shard in self._shards)

    @cached_property
    def fingerprint(self) -> str:
        """Identity of the training set, whatever its files are called."""
        return hashlib.sha256("".join(self._prints).encode()).hexdigest()[:16]

    def next_batch(self, sequences: int, part: slice) -> Batch:
        """Hand out the next `sequences` sequences and return those in `part` of them.

        Returns inputs and targets, both int64 [len(part), seq_len]. All ranks call this with
        the same `sequences`, each with its own part, so the global batch is the same for any
        world size.
        """
        batch = self.read(self.position, sequences, part)
        self.position += sequences
        return batch

    def read(self, position: int, sequences: int, part: slice) -> Batch:
        """What `next_batch` gives at a position; for one thread at a time."""
        wanted = range(position, position + sequences)[part]
        rows = np.stack([self._sequence(index) for index in wanted])
        batch = torch.from_numpy(rows.astype(np.int64))
        return batch[:, :-1].contiguous(), batch[:, 1:].contiguous()

    def _sequence(self, index: int) -> np.ndarray:
        epoch, within = divmod(index, self.epoch_length)
        if epoch != self._epoch:
            self._start_epoch(epoch)
        number = int(self._order[within])
        shard = int(np.searchsorted(self._ends, number, side="right"))
        local = number - int(self._ends[shard] - self._counts[shard])
        start = int(self._offsets[shard]) + local * self.seq_len
        tokens = self._shards[shard][start : start + self.seq_len + 1]
        check_ids(self.files[shard], tokens, self.vocab_size)
        return tokens

    def _start_epoch(self, epoch: int) -> None:
        rng = np.random.default_rng([self.seed, epoch])
        self._offsets = rng.integers(0, self.seq_len, len(self._shards))
        self._order = rng.permutation(self.epoch_length)
        self._epoch = epoch


class Prefetcher:
    """Reads the batch after the one that was asked for, on a thread, while that one is used.

    `data.position` moves as without it: what is read ahead is not handed out yet.
    """

    def __init__(self, data: TrainData, device: torch.device) -> None:
        self._data = data
        self._device = device
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="batches")
        self._ahead: tuple[tuple[int, int, slice], Future[Batch]] | None = None

    def next_batch(self, sequences: int, part: slice) -> Batch:
        """`TrainData.next_batch`, on the device."""
        position = self._data.position
        batch = self._take((position, sequences, part))
        self._data.position = position + sequences
        following = (position + sequences, sequences, part)
        self._ahead = following, self._thread.submit(self._read, *following)
        inputs, targets = batch
        device = self._device
        return inputs.to(device, non_blocking=True), targets.to(device, non_blocking=True)

    def close(self) -> None:
        """Read no more ahead."""
        self._thread.shutdown(cancel_futures=True)

    def _take(self, wanted: tuple[int, int, slice]) -> Batch:
        if self._ahead is not None:
            read_ahead, future = self._ahead
            if read_ahead == wanted:
                return future.result()
            future.exception()  # waits: the data is one thread's at a time
        return self._read(*wanted)

    def _read(self, position: int, sequences: int, part: slice) -> Batch:
        inputs, targets = self._data.read(position, sequences, part)
        if self._device.type == "cuda":
            # From pinned memory a copy to the GPU runs beside its other work.
            return inputs.pin_memory(), targets.pin_memory()
        return inputs, targets
