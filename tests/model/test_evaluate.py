"""Windows and scores: counted against the reference, and against the plainest possible loop."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from model.artifact import encode
from model.config import Config
from model.evaluate import (
    DeviceTokenBytes,
    Windows,
    evaluate,
    headline_metric,
    metric_name,
    score_artifact,
)
from model.gpt import GPT
from model.packed import pack_model
from model.ranks import Ranks
from model.tokens import TokenBytes
from tests.model.conftest import ROOT, SMALL, shared_data

ALONE = Ranks(rank=0, world=1, device=torch.device("cpu"), control=None)


def scored_positions(windows: Windows) -> np.ndarray:
    """How often each target is scored, walking every window."""
    counts = np.zeros(windows.total, np.int64)
    for index in range(len(windows)):
        _, end, scored = windows.span(index)
        counts[end - scored : end] += 1
    return counts


@st.composite
def subsets(draw: st.DrawFn) -> tuple[Windows, Windows, int]:
    """Windows of a whole set, those of a subset, and how many tokens this was to have."""
    seq_len = draw(st.integers(1, 40))
    stride = draw(st.integers(1, seq_len))
    total = draw(st.integers(1, 60)) * seq_len
    tokens = draw(st.integers(seq_len, 2 * total))
    whole = Windows(total=total, seq_len=seq_len, stride=stride)
    spread = Windows.spread(total=total, seq_len=seq_len, stride=stride, tokens=tokens)
    return whole, spread, tokens


@given(subsets())
def test_a_subset_is_some_of_the_windows_evenly_spread(
    drawn: tuple[Windows, Windows, int],
) -> None:
    whole, subset, tokens = drawn
    spans = [whole.span(index) for index in range(len(whole))]
    chosen = [subset.span(index) for index in range(len(subset))]
    assert chosen == spans[subset.every // 2 :: subset.every]
    assert len(chosen) >= 1
    counts = scored_positions(subset)
    assert counts.max() == 1
    assert subset.scored == counts.sum() < tokens + 2 * subset.stride
    assert (subset == whole) == (tokens >= whole.total)
    if subset.every > 1 and len(chosen) > 2:
        # No stretch without a sample: not at the ends either.
        (scored,) = np.nonzero(counts)
        gaps = np.diff(scored, prepend=-1, append=whole.total)
        assert gaps.max() <= 1.5 * subset.hop + whole.seq_len


@given(subsets())
def test_ranks_share_a_subset_without_overlap(drawn: tuple[Windows, Windows, int]) -> None:
    _, subset, _ = drawn
    stream = torch.arange(subset.total + 1)
    for world in (1, 3):
        found = []
        for rank in range(world):
            first, last = (len(subset) * (rank + side) // world for side in (0, 1))
            for begin, end in subset.batches(first, last, 4):
                views, scored = subset.views(stream, begin, end)
                found += views[:, -scored:].flatten().tolist()
        assert found == (1 + np.nonzero(scored_positions(subset))[0]).tolist()


def test_a_subset_does_not_depend_on_more_than_its_numbers() -> None:
    # What a search compared by this subset must find again after an update.
    record = Windows.spread(total=62_021_632, seq_len=2_048, stride=64, tokens=1_000_000)
    assert (record.every, len(record), record.scored) == (63, 15_382, 984_448)
    assert record.span(0) == (1_984, 4_032, 64)


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
    config = Config.from_env({"PRESET": "tiny", "VOCAB_SIZE": "64", "TRAIN_SEQ_LEN": "32"})
    return filled_model(config)


def filled_model(config: Config) -> GPT:
    """With recurrence, and no weight that is zero."""
    torch.manual_seed(0)
    model = GPT(config)
    with torch.no_grad():
        for p in model.parameters():
            p.add_(0.1 * torch.randn_like(p))
    model.set_recurrence_active(True)
    return model


def random_table(seed: int) -> TokenBytes:
    rng = np.random.default_rng(seed)
    return TokenBytes(
        piece_bytes=rng.integers(1, 9, 64).astype(np.int16),
        leading_space=rng.integers(0, 2, 64).astype(np.bool_),
        boundary=rng.integers(0, 2, 64).astype(np.bool_),
    )


@pytest.mark.parametrize(
    ("stride", "total", "subset"),
    [(8, 500, 0), (32, 512, 0), (32, 320, 0), (5, 33, 0), (8, 20, 0), (1, 40, 0),
     (8, 500, 100), (32, 512, 100), (5, 333, 32), (8, 500, 499), (8, 500, 500), (32, 64, 32)],
)  # fmt: skip
def test_score_is_that_of_the_plain_loop(stride: int, total: int, subset: int) -> None:
    model, seq_len = tiny_model(), 32
    tokens = np.random.default_rng(0).integers(0, 64, total + 1)
    table = random_table(0)
    nats, count, text_bytes = 0.0, 0, 0
    windows = Windows.spread(total=total, seq_len=seq_len, stride=stride, tokens=subset)
    stream = torch.from_numpy(tokens)
    for index in range(len(windows)):
        start, end, scored = windows.span(index)
        with torch.no_grad():
            logits = model.forward_logits(stream[None, start:end])[0, -scored:]
        targets = stream[start + 1 : end + 1][-scored:]
        nats += F.cross_entropy(logits.double(), targets, reduction="sum").item()
        count += scored
        text_bytes += table.count(tokens[end - scored : end + 1])
    if subset in (0, total):
        assert (count, text_bytes) == (total, table.count(tokens))

    score = evaluate(
        model.nats,
        tokens,
        DeviceTokenBytes.of(table, torch.device("cpu")),
        seq_len=seq_len,
        stride=stride,
        batch_tokens=200,
        ranks=ALONE,
        subset_tokens=subset,
    )
    assert (score.tokens, score.bytes) == (count, text_bytes)
    assert score.val_loss == pytest.approx(nats / count, abs=1e-6)
    assert score.val_bpb == pytest.approx(nats / math.log(2) / text_bytes, abs=1e-6)


class Operations(TorchDispatchMode):
    """Which of torch's operations run."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.names.append(func.overloadpacket.__name__)
        return func(*args, **(kwargs or {}))


def test_between_batches_there_are_views_and_a_sum() -> None:
    operations, heard = Operations(), list[int]()

    def one_each(inputs: Tensor, targets: Tensor) -> Tensor:
        return inputs[:, -targets.size(1) :]

    with operations:
        evaluate(
            one_each,
            np.ones(2_049, np.int64),
            DeviceTokenBytes.of(random_table(0), torch.device("cpu")),
            seq_len=32,
            stride=8,
            batch_tokens=320,
            ranks=ALONE,
            on_progress=lambda _: heard.append(len(operations.names)),
        )
    assert len(heard) > 20
    # Nothing that makes a tensor of a number, or a number of a tensor, or copies one.
    assert set(operations.names[heard[0] : heard[-1]]) == {"slice", "unfold", "sum", "add_"}


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


@pytest.mark.parametrize("kind", ["plain", "prequant", "quant", "sliding"])
def test_a_score_on_a_subset_has_a_name_of_its_own(kind: str) -> None:
    whole = Config.from_env({"PRESET": "tiny"})
    subset = Config.from_env({"PRESET": "tiny", "EVAL_SUBSET_TOKENS": "512"})
    assert metric_name(kind, whole) == kind
    assert metric_name(kind, subset) == f"{kind}-subset"


def test_the_headline_is_sliding_where_that_is_not_disabled() -> None:
    plain = {"PRESET": "tiny", "SLIDING_WINDOW_ENABLED": "0"}
    assert headline_metric(Config.from_env({"PRESET": "tiny"})) == "sliding"
    assert headline_metric(Config.from_env(plain)) == "quant"
    assert headline_metric(Config.from_env(plain | {"EVAL_SUBSET_TOKENS": "256"})) == "quant-subset"


def test_two_ranks_give_the_score_of_one_and_say_what_it_is(data_dir: Path, tmp_path: Path) -> None:
    settings = SMALL | {"DATA_DIR": str(data_dir), "EVAL_SUBSET_TOKENS": "500"}
    config = Config.from_env(settings)
    model = filled_model(config)
    artifact = encode(pack_model(model, {}), config, model.loop, "rans")
    alone = score_artifact(artifact, config, ALONE, "float32")
    assert 400 < alone.tokens < 500

    path = tmp_path / "model.ptz"
    path.write_bytes(artifact)
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    done = subprocess.run(
        [sys.executable, *torchrun, "-m", "model.evaluate", str(path)],
        cwd=ROOT,
        env=os.environ | settings | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    (line,) = done.stdout.splitlines()  # of one of them
    pair = json.loads(line)
    assert pair["metric"] == "sliding-subset"
    assert (pair["tokens"], pair["bytes"]) == (alone.tokens, alone.bytes)
    assert pair["val_loss"] == pytest.approx(alone.val_loss, abs=1e-6)
