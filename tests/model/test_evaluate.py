"""Windows and scores: counted against the reference, and against the plainest possible loop."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from model.config import Config
from model.evaluate import DeviceTokenBytes, Windows, evaluate
from model.gpt import GPT
from model.ranks import Ranks
from model.tokens import TokenBytes
from tests.model.conftest import shared_data

ALONE = Ranks(rank=0, world=1, device=torch.device("cpu"), control=None)


def scored_positions(windows: Windows) -> np.ndarray:
    """How often each target is scored, walking every window."""
    counts = np.zeros(windows.total, np.int64)
    for index in range(len(windows)):
        _, end, scored = windows.span(index)
        counts[end - scored : end] += 1
    return counts


def test_window_counts_match_the_reference() -> None:
    rows = json.loads(shared_data("golden/metrics.json").read_text())["sliding"]
    for row in rows:
        windows = Windows(total=row["total_tokens"], seq_len=row["seq_len"], stride=row["stride"])
        assert len(windows) == row["windows"], row
        scored = windows.span(0)[2] + sum(
            stop - begin
            for begin, stop in [(windows.seq_len, windows.total)]
            if windows.total > windows.seq_len
        )
        assert scored == row["scored"], row


@pytest.mark.parametrize(
    ("total", "seq_len", "stride"),
    [(10_000, 256, 64), (4_097, 2_048, 64), (300, 256, 64), (256, 256, 64), (200, 256, 64),
     (1_000, 100, 100), (1_050, 100, 7), (5, 4, 1)],
)  # fmt: skip
def test_every_token_is_scored_exactly_once(total: int, seq_len: int, stride: int) -> None:
    windows = Windows(total=total, seq_len=seq_len, stride=stride)
    assert (scored_positions(windows) == 1).all()
    for world in (1, 3, 8):
        spans: list[int] = []
        for rank in range(world):
            first = len(windows) * rank // world
            last = len(windows) * (rank + 1) // world
            for begin, end in windows.batches(first, last, 5):
                assert 0 < end - begin <= 5
                assert len({(b - a, n) for a, b, n in map(windows.span, range(begin, end))}) == 1
                spans += range(begin, end)
        assert spans == list(range(len(windows)))


def tiny_model() -> GPT:
    torch.manual_seed(0)
    model = GPT(Config.from_env({"PRESET": "tiny", "VOCAB_SIZE": "64", "TRAIN_SEQ_LEN": "32"}))
    with torch.no_grad():
        for p in model.parameters():
            p.add_(0.1 * torch.randn_like(p))
    model.set_recurrence_active(True)
    return model


@pytest.mark.parametrize(("stride", "total"), [(8, 500), (32, 512), (32, 320), (5, 33), (8, 20)])
def test_score_is_that_of_the_plain_loop(stride: int, total: int) -> None:
    model, seq_len = tiny_model(), 32
    rng = np.random.default_rng(0)
    tokens = rng.integers(0, 64, total + 1)
    table = TokenBytes(
        piece_bytes=rng.integers(1, 9, 64).astype(np.int16),
        leading_space=rng.integers(0, 2, 64).astype(np.bool_),
        boundary=rng.integers(0, 2, 64).astype(np.bool_),
    )
    nats = 0.0
    windows = Windows(total=total, seq_len=seq_len, stride=stride)
    stream = torch.from_numpy(tokens)
    for index in range(len(windows)):
        start, end, scored = windows.span(index)
        with torch.no_grad():
            logits = model.forward_logits(stream[None, start:end])[0, -scored:]
        targets = stream[start + 1 : end + 1][-scored:]
        nats += F.cross_entropy(logits.double(), targets, reduction="sum").item()
    text_bytes = table.count(tokens)

    score = evaluate(
        model.nats,
        tokens,
        DeviceTokenBytes.of(table, torch.device("cpu")),
        seq_len=seq_len,
        stride=stride,
        batch_tokens=200,
        ranks=ALONE,
    )
    assert (score.tokens, score.bytes) == (total, text_bytes)
    assert score.val_loss == pytest.approx(nats / total, abs=1e-6)
    assert score.val_bpb == pytest.approx(nats / math.log(2) / text_bytes, abs=1e-6)


def test_progress_reaches_the_end() -> None:
    heard: list[float] = []
    table = TokenBytes(
        piece_bytes=np.ones(64, np.int16),
        leading_space=np.zeros(64, np.bool_),
        boundary=np.zeros(64, np.bool_),
    )
    evaluate(
        tiny_model().nats,
        np.zeros(321, np.int64),
        DeviceTokenBytes.of(table, torch.device("cpu")),
        seq_len=32,
        stride=16,
        batch_tokens=64,
        ranks=ALONE,
        on_progress=heard.append,
    )
    assert heard == sorted(heard)
    assert heard[-1] == 1.0
