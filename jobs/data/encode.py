"""Text to tokens, in processes of their own; light to import, since each of them does."""

from __future__ import annotations

import multiprocessing
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import sentencepiece as spm

from jobs.data.errors import DataError

# Enough batches in hand to keep every worker busy, few enough to bound the memory.
BATCHES_PER_WORKER = 3


@dataclass(frozen=True, kw_only=True)
class Batch:
    """Some documents of one split, with their UTF-8 bytes in all."""

    split: str
    texts: list[str]
    bytes: int


_processor: spm.SentencePieceProcessor | None = None


def _start(tokenizer: str) -> None:
    global _processor
    _processor = spm.SentencePieceProcessor(tokenizer)


def _encode(texts: Sequence[str]) -> np.ndarray:
    """Tokens of some documents, each after a BOS; uint16 [n]."""
    assert _processor is not None
    bos = _processor.bos_id()
    ids = [np.array([bos, *_processor.EncodeAsIds(text)], np.uint16) for text in texts]
    return np.concatenate(ids)


def encode_batches(
    batches: Iterable[Batch], tokenizer: Path, workers: int
) -> Iterator[tuple[Batch, np.ndarray]]:
    """Each batch with its tokens, uint16 [n], in order."""
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(
        workers, mp_context=context, initializer=_start, initargs=(str(tokenizer),)
    ) as pool:
        waiting: deque[tuple[Batch, Future[np.ndarray]]] = deque()
        try:
            for batch in batches:
                waiting.append((batch, pool.submit(_encode, batch.texts)))
                if len(waiting) > BATCHES_PER_WORKER * workers:
                    first, future = waiting.popleft()
                    yield first, future.result()
            for first, future in waiting:
                yield first, future.result()
        except BrokenProcessPool as error:
            raise DataError(
                "a tokenizing process was killed, most likely for want of memory; try fewer "
                "--workers"
            ) from error
        finally:
            pool.shutdown(cancel_futures=True)
