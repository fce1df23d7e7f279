"""From documents to a data set: count, train a tokenizer, tokenize, write shards, put in place."""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import sentencepiece as spm

from jobs.data.datadir import (
    SPLITS,
    DataDir,
    Staged,
    describe_split,
    file_facts,
    file_sha256,
    shard_name,
)
from jobs.data.encode import Batch, encode_batches
from jobs.data.errors import DataError
from jobs.data.meter import Meter
from jobs.data.tokenizer import train_tokenizer
from model.shards import write_shard
from model.tokens import TokenizerError, load_token_bytes

BATCH_BYTES = 1 << 20
# More text hardly changes the pieces of a few thousand, but costs minutes.
TOKENIZER_BYTES = 32_000_000
MAX_VAL_DOCUMENTS = 50_000  # the challenge's own number
VAL_SHARE = 0.05


@dataclass(frozen=True, kw_only=True)
class Corpus:
    """Documents that can be read again and again, always in the same order."""

    kind: str
    read: Callable[[], Iterable[str]]


@dataclass(frozen=True, kw_only=True)
class Request:
    """How a corpus is made into a data set.

    `tokenizer` is a model file to use, None to train one of `vocab_size` pieces; the first
    `val_documents` documents are validation, None: a twentieth, at most the challenge's 50,000.
    """

    vocab_size: int
    tokenizer: Path | None = None
    val_documents: int | None = None
    shard_tokens: int = 100_000_000
    workers: int = 1
    replace: bool = False


@dataclass(frozen=True, kw_only=True)
class Survey:
    """What one pass over a corpus has found."""

    documents: int
    bytes: int
    sha256: str


def build(corpus: Corpus, request: Request, data: DataDir, meter: Meter) -> bool:
    """Make a data set; False when it was there already, made of the same in the same way.

    Nothing is at its final place before all of it is whole. Raises DataError.
    """
    if request.tokenizer is not None:
        _check_tokenizer(request.tokenizer, request.vocab_size)
    survey = survey_corpus(corpus, meter)
    val_documents = _val_documents(request, survey)
    source = _describe_source(corpus, request, survey, val_documents)
    with data.hold():
        there = data.described()
        if there is not None and there["source"] == source and data.complete(there):
            return False
        data.check_free(replace=request.replace)
        shutil.rmtree(data.staging, ignore_errors=True)
        files = data.stage()
        if request.tokenizer is None:
            _train(corpus, request, survey, files.tokenizer, meter)
        else:
            shutil.copyfile(request.tokenizer, files.tokenizer)
        splits = _write_splits(corpus, val_documents, survey, request, files, meter)
        description = data.describe(files.tokenizer, source=source, splits=splits)
        data.publish(files, description, replace=request.replace)
    return True


def survey_corpus(corpus: Corpus, meter: Meter) -> Survey:
    """Read a whole corpus once: its size, its identity, and whether all of it can be read."""
    digest = hashlib.sha256()
    documents, size = 0, 0
    with meter.task("reading documents", None):
        for text in corpus.read():
            data = text.encode()
            # With their lengths, so that other cuts of the same text are another corpus.
            digest.update(len(data).to_bytes(8, "little") + data)
            documents += 1
            size += len(data)
            meter.advance(len(data))
    return Survey(documents=documents, bytes=size, sha256=digest.hexdigest())


def _val_documents(request: Request, survey: Survey) -> int:
    """How many of the first documents are validation; DataError unless both splits get some."""
    if survey.documents < 2:
        raise DataError(
            f"{survey.documents} documents found, but both splits need some; give more files, or "
            "cut a text into documents with --separator"
        )
    wanted = request.val_documents
    if wanted is None:
        return min(MAX_VAL_DOCUMENTS, max(1, round(VAL_SHARE * survey.documents)))
    if not 1 <= wanted < survey.documents:
        raise DataError(
            f"--val-documents {wanted}: must be from 1 to {survey.documents - 1}, since there are "
            f"{survey.documents} documents"
        )
    return wanted


def _describe_source(
    corpus: Corpus, request: Request, survey: Survey, val_documents: int
) -> dict[str, Any]:
    """All that the shards are a function of."""
    given = request.tokenizer
    return {
        "kind": corpus.kind,
        "corpus_sha256": survey.sha256,
        "documents": survey.documents,
        "bytes": survey.bytes,
        "val_documents": val_documents,
        "shard_tokens": request.shard_tokens,
        "tokenizer": "trained" if given is None else file_sha256(given),
    }


def _check_tokenizer(path: Path, vocab_size: int) -> None:
    """DataError unless a tokenizer can be scored with and has a BOS."""
    try:
        load_token_bytes(path, vocab_size)
    except TokenizerError as error:
        raise DataError(str(error)) from error
    if spm.SentencePieceProcessor(str(path)).bos_id() < 0:
        raise DataError(f"{path}: has no BOS piece, with which every document begins")


def _train(corpus: Corpus, request: Request, survey: Survey, tokenizer: Path, meter: Meter) -> None:
    every = -(-survey.bytes // TOKENIZER_BYTES)
    chosen = (text for number, text in enumerate(corpus.read()) if number % every == 0)
    with meter.task(f"training a tokenizer of {request.vocab_size} pieces", survey.bytes / every):
        train_tokenizer(_metered(chosen, meter), request.vocab_size, tokenizer)
    _check_tokenizer(tokenizer, request.vocab_size)


def _metered(documents: Iterable[str], meter: Meter) -> Iterator[str]:
    for text in documents:
        yield text
        meter.advance(len(text.encode()))


def _write_splits(
    corpus: Corpus,
    val_documents: int,
    survey: Survey,
    request: Request,
    files: Staged,
    meter: Meter,
) -> dict[str, Any]:
    """Tokenize all documents into the shards of both splits, and describe them."""
    writers = {split: ShardWriter(files.dataset, split, request.shard_tokens) for split in SPLITS}
    batches = cut_batches(corpus.read(), val_documents)
    found = {"documents": 0, "bytes": 0}
    with meter.task("tokenizing", survey.bytes):
        for batch, tokens in encode_batches(batches, files.tokenizer, request.workers):
            writers[batch.split].add(tokens)
            meter.advance(batch.bytes)
            found["documents"] += len(batch.texts)
            found["bytes"] += batch.bytes
    if found != {"documents": survey.documents, "bytes": survey.bytes}:
        raise DataError(
            f"the documents changed while they were read ({survey.documents} at first, then "
            f"{found['documents']}); give files that nobody writes to, and no pipes"
        )
    documents = {"val": val_documents, "train": survey.documents - val_documents}
    return {
        split: describe_split(writer.close(), documents=documents[split])
        for split, writer in writers.items()
    }


def cut_batches(documents: Iterable[str], val_documents: int) -> Iterator[Batch]:
    """Documents in batches of about a megabyte, the first `val_documents` apart from the rest."""
    texts: list[str] = []
    size = 0
    for number, text in enumerate(documents):
        if texts and (size >= BATCH_BYTES or number == val_documents):
            yield Batch(
                split="val" if number <= val_documents else "train", texts=texts, bytes=size
            )
            texts, size = [], 0
        texts.append(text)
        size += len(text.encode())
    if texts:
        yield Batch(split="train", texts=texts, bytes=size)


class ShardWriter:
    """Cuts a stream of tokens into shards of `shard_tokens`, the last one shorter."""

    def __init__(self, folder: Path, split: str, shard_tokens: int) -> None:
        self._folder = folder
        self._split = split
        self._shard_tokens = shard_tokens
        self._waiting: list[np.ndarray] = []
        self._files: dict[str, dict[str, Any]] = {}

    def add(self, tokens: np.ndarray) -> None:
        """Take tokens, uint16 [n], and write each shard that is full."""
        self._waiting.append(tokens)
        while sum(part.size for part in self._waiting) >= self._shard_tokens:
            whole = np.concatenate(self._waiting)
            self._write(whole[: self._shard_tokens])
            self._waiting = [whole[self._shard_tokens :]]

    def close(self) -> dict[str, dict[str, Any]]:
        """Write the rest and return the facts of all shards by file name."""
        rest = np.concatenate(self._waiting) if self._waiting else np.empty(0, np.uint16)
        if rest.size:
            self._write(rest)
        return self._files

    def _write(self, tokens: np.ndarray) -> None:
        path = self._folder / shard_name(self._split, len(self._files))
        write_shard(path, tokens)
        self._files[path.name] = file_facts(path, tokens.size)
