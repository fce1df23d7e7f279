"""Byte accounting, shard order and what may not change it."""

from __future__ import annotations

import collections
import json
import lzma
import shutil
from pathlib import Path

import numpy as np
import pytest
import sentencepiece as spm
import torch

from model.batches import Prefetcher, TrainData
from model.evaluate import DeviceTokenBytes
from model.shards import ShardError, load_val_tokens, train_files, val_files, write_shard
from model.tokens import TokenizerError, load_token_bytes
from tests.model.conftest import VOCAB, shared_data

SHARED_VOCABULARIES = (1024, 2048, 4096, 8192)


@pytest.mark.parametrize("vocab_size", SHARED_VOCABULARIES)
def test_bytes_of_real_documents(vocab_size: int) -> None:
    rows = json.loads(shared_data("golden/metrics.json").read_text())["byte_accounting"]
    (row,) = [row for row in rows if row["vocab_size"] == vocab_size]
    path = shared_data(f"tokenizers/fineweb_{vocab_size}_bpe.model")
    processor = spm.SentencePieceProcessor(str(path))
    first, last = row["docs"]
    with lzma.open(shared_data("corpus/docs.jsonl.xz"), "rt") as lines:
        texts = [json.loads(line)["text"] for line in lines][first:last]
    documents = [[processor.bos_id(), *processor.EncodeAsIds(text)] for text in texts]
    tokens = np.concatenate([np.array(ids) for ids in documents])
    table = load_token_bytes(path, vocab_size)
    assert tokens.size == row["tokens"]
    assert table.count(tokens) == row["bytes"]
    on_device = DeviceTokenBytes.of(table, torch.device("cpu"))
    stream = torch.from_numpy(tokens)
    assert int(on_device.count(stream[:-1], stream[1:])) == row["bytes"]


def test_bytes_are_those_of_the_text(data_dir: Path) -> None:
    path = data_dir / "tokenizers" / f"fineweb_{VOCAB}_bpe.model"
    processor = spm.SentencePieceProcessor(str(path))
    table = load_token_bytes(path, VOCAB)
    text = "def größe(x):  # naïve — 12 €"
    tokens = np.array([processor.bos_id(), *processor.EncodeAsIds(text)])
    normalised = processor.Normalize(text).replace("▁", " ").removeprefix(" ")
    assert table.count(tokens) == len(normalised.encode())


def test_unusable_tokenizers_are_refused(tmp_path: Path, data_dir: Path) -> None:
    with pytest.raises(TokenizerError, match="no such tokenizer"):
        load_token_bytes(tmp_path / "missing.model", VOCAB)
    broken = tmp_path / "broken.model"
    broken.write_bytes(b"not a model")
    with pytest.raises(TokenizerError, match="not a SentencePiece model"):
        load_token_bytes(broken, VOCAB)
    with pytest.raises(TokenizerError, match=f"VOCAB_SIZE is 1024, but .* has {VOCAB} pieces"):
        load_token_bytes(data_dir / "tokenizers" / f"fineweb_{VOCAB}_bpe.model", 1024)


@pytest.fixture
def shards(tmp_path: Path) -> list[Path]:
    """Three shards of different lengths whose every token is different."""
    paths = []
    for number, (start, stop) in enumerate([(0, 5_000), (5_000, 9_000), (9_000, 20_000)]):
        paths.append(tmp_path / f"fineweb_train_{number:06d}.bin")
        write_shard(paths[-1], np.arange(start, stop))
    return paths


def load(files: list[Path], seed: int = 1) -> TrainData:
    return TrainData(files, seq_len=64, seed=seed, vocab_size=65_536)


def batches(data: TrainData, count: int, sequences: int = 8) -> torch.Tensor:
    return torch.cat([data.next_batch(sequences, slice(None))[0] for _ in range(count)])


def test_order_depends_on_seed_and_contents_alone(shards: list[Path], tmp_path: Path) -> None:
    elsewhere = tmp_path / "a very different place"
    elsewhere.mkdir()
    renamed = [Path(shutil.copy(path, elsewhere / f"{9 - i}.bin")) for i, path in enumerate(shards)]
    first = batches(load(shards), 50)
    assert torch.equal(first, batches(load(renamed[::-1]), 50))
    assert not torch.equal(first, batches(load(shards, seed=2), 50))
    assert load(shards).fingerprint == load(renamed).fingerprint
    assert load(shards).fingerprint != load(shards[:2]).fingerprint


def test_ranks_share_the_same_global_batch(shards: list[Path]) -> None:
    whole = load(shards)
    ranks = [load(shards) for _ in range(4)]
    for _ in range(20):
        inputs, targets = whole.next_batch(8, slice(None))
        parts = [rank.next_batch(8, slice(2 * i, 2 * i + 2)) for i, rank in enumerate(ranks)]
        assert torch.equal(torch.cat([part[0] for part in parts]), inputs)
        assert torch.equal(torch.cat([part[1] for part in parts]), targets)


def test_an_epoch_visits_every_sequence_once(shards: list[Path]) -> None:
    data = load(shards)
    inputs, targets = data.next_batch(data.epoch_length, slice(None))
    assert torch.equal(inputs[:, 1:], targets[:, :-1])
    assert torch.equal(targets, inputs + 1)  # tokens count up within a shard
    starts = inputs[:, 0].tolist()
    assert len(set(starts)) == data.epoch_length
    again = data.next_batch(data.epoch_length, slice(None))[0]
    assert not torch.equal(again, inputs)


def test_position_is_the_whole_state(shards: list[Path]) -> None:
    data = load(shards)
    batches(data, 100)
    resumed = load(shards)
    resumed.position = data.position
    assert torch.equal(batches(data, 5), batches(resumed, 5))


def test_reading_ahead_changes_nothing(shards: list[Path]) -> None:
    plain, data = load(shards), load(shards)
    ahead = Prefetcher(data, torch.device("cpu"))
    parts = [slice(0, 4), slice(0, 4), slice(2, 6), slice(0, 4), slice(None), slice(None)]
    for number, part in enumerate(parts * 20):
        if number == 50:  # a jump back, as after warm-up or into a checkpoint
            plain.position = data.position = 3
        for ours, theirs in zip(ahead.next_batch(8, part), plain.next_batch(8, part), strict=True):
            assert torch.equal(ours, theirs)
        assert data.position == plain.position
    ahead.close()


def test_a_bad_shard_is_told_when_its_turn_comes(tmp_path: Path) -> None:
    tokens = np.zeros(10_000, np.int64)
    tokens[5_003] = 999
    path = tmp_path / "fineweb_train_000000.bin"
    write_shard(path, tokens)
    ahead = Prefetcher(
        TrainData([path], seq_len=100, seed=1, vocab_size=1_000), torch.device("cpu")
    )
    ahead._data.vocab_size = 512
    with pytest.raises(ShardError, match="found 999"):
        collections.deque((ahead.next_batch(1, slice(None)) for _ in range(200)), maxlen=0)
    ahead.close()


def test_foreign_token_ids_are_refused(shards: list[Path]) -> None:
    with pytest.raises(ShardError, match=r"below VOCAB_SIZE 1000, found \d+"):
        TrainData(shards, seq_len=64, seed=1, vocab_size=1000)


def test_a_rare_foreign_id_is_found_before_it_is_used(tmp_path: Path) -> None:
    tokens = np.zeros(1_000_000, np.int64)
    tokens[123_457] = 999  # between the sampled blocks
    path = tmp_path / "fineweb_train_000000.bin"
    write_shard(path, tokens)
    data = TrainData([path], seq_len=1000, seed=1, vocab_size=512)
    with pytest.raises(ShardError, match=r"fineweb_train_000000\.bin: .* found 999"):
        data.next_batch(data.epoch_length, slice(None))


def test_too_little_data_is_refused(tmp_path: Path, shards: list[Path]) -> None:
    with pytest.raises(ShardError, match="too few training tokens"):
        TrainData(shards, seq_len=6_000, seed=1, vocab_size=65_536)
    with pytest.raises(ShardError, match="one window of EVAL_SEQ_LEN 50000"):
        load_val_tokens(shards, 65_536, 50_000)
    with pytest.raises(ShardError, match="sweeper data sample"):
        train_files(tmp_path, 512)


def test_validation_tokens_fill_whole_windows(data_dir: Path) -> None:
    tokens = load_val_tokens(val_files(data_dir, VOCAB), VOCAB, 300)
    assert tokens.size == 2_049 // 300 * 300 + 1
