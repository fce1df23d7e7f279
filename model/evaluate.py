"""Bits per byte of a model on the validation tokens, by plain and by sliding windows.

BPB is (nats per token / ln 2) x (tokens / bytes): unlike the loss it compares models whose
tokenizers differ. A sliding window starts every `stride` tokens and scores only its last `stride`
positions, the first window all of its own, so that every token is scored exactly once and nearly
all of them with a long context. Plain windows are the case stride = length.

An early score of a search trial takes only every n-th window (EVAL_SUBSET_TOKENS). Its name says
so: such a score compares with others on the same subset, never with a whole one.

Run as a program it scores an artifact again: `python -m model.evaluate RUN_DIR`.
"""

from __future__ import annotations

import argparse
import dataclasses
import itertools
import json
import math
import os
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from model.artifact import ArtifactError, decode
from model.config import Config
from model.fields import ConfigError
from model.gpt import GPT
from model.graphs import Shape
from model.precision import COMPUTE_DTYPES, choose_dtype
from model.ranks import Ranks, start_ranks, stop_ranks
from model.report import RESULT
from model.shards import ShardError, load_val_tokens, val_files
from model.tokens import TokenBytes, TokenizerError, load_token_bytes

Nats = Callable[[Tensor, Tensor], Tensor]  # inputs [B, T], targets [B, S] -> [B, S]


@dataclass(frozen=True, kw_only=True)
class Score:
    """A model's score: nats per token, bits per byte, over how many tokens and bytes."""

    val_loss: float
    val_bpb: float
    tokens: int
    bytes: int
    seconds: float


@dataclass(frozen=True, kw_only=True)
class DeviceTokenBytes:
    """TokenBytes as tensors, for counting where the scores are."""

    piece_bytes: Tensor
    leading_space: Tensor
    boundary: Tensor

    @classmethod
    def of(cls, table: TokenBytes, device: torch.device) -> DeviceTokenBytes:
        return cls(
            piece_bytes=torch.from_numpy(table.piece_bytes).to(device),
            leading_space=torch.from_numpy(table.leading_space).to(device),
            boundary=torch.from_numpy(table.boundary).to(device),
        )

    def count(self, previous: Tensor, scored: Tensor) -> Tensor:
        """Total bytes of `scored` given the tokens before them (equal shapes); an int64 scalar."""
        spaces = self.leading_space[scored] & ~self.boundary[previous]
        return self.piece_bytes[scored].sum(dtype=torch.int64) + spaces.sum(dtype=torch.int64)


@dataclass(frozen=True, kw_only=True)
class Windows:
    """The windows that cover `total` target tokens, one every `stride`; or only some of them:
    each `every`-th.
    """

    total: int
    seq_len: int
    stride: int
    every: int = 1

    @classmethod
    def spread(cls, *, total: int, seq_len: int, stride: int, tokens: int) -> Windows:
        """Windows that score about `tokens` of the targets, evenly spread; 0: all of them.

        A sample of the whole score: a token has the context in it, and so the nats, that it has
        there. It follows from these numbers alone: all seeds, runs and ranks agree on it.
        """
        every = -(-total // tokens) if tokens else 1
        return cls(total=total, seq_len=seq_len, stride=stride, every=every)

    @property
    def hop(self) -> int:
        """Tokens from the start of one window to that of the next."""
        return self.every * self.stride

    @property
    def scored(self) -> int:
        """How many targets the windows score."""
        alike = self.batches(0, len(self), len(self))
        return sum((end - begin) * self.span(begin)[2] for begin, end in alike)

    def __len__(self) -> int:
        covering = 1 + -(-max(0, self.total - self.seq_len) // self.stride)
        # From the middle of the first `every`, so that the only long one, the first, is not in.
        return len(range(self.every // 2, covering, self.every))

    def span(self, index: int) -> tuple[int, int, int]:
        """Start, end (both in tokens) and the number of scored positions of a window."""
        start = self.every // 2 * self.stride + index * self.hop
        end = min(start + self.seq_len, self.total)
        if start == 0:
            return start, end, end
        return start, end, end - (start + self.seq_len - self.stride)

    def batches(self, first: int, last: int, size: int) -> Iterator[tuple[int, int]]:
        """Cut windows first..last into ranges of equal spans, at most `size` windows each."""
        # Only the first window scores more than the others, and only the last may be shorter.
        inner = {cut for cut in (1, len(self) - 1) if first < cut < last}
        for begin, end in itertools.pairwise(sorted({first, last} | inner)):
            for start in range(begin, end, size):
                yield start, min(start + size, end)

    def views(self, stream: Tensor, begin: int, end: int) -> tuple[Tensor, int]:
        """Windows begin..end, which span alike, of stream [total + 1], without copying any.

        Returns [windows, span + 1], the inputs and the target after them, and the number of scored
        positions of each.
        """
        start, stop, scored = self.span(begin)
        return stream[start:].unfold(0, stop - start + 1, self.hop)[: end - begin], scored


def usual_shape(windows: Windows, batch_tokens: int, ranks: Ranks) -> Shape | None:
    """The shape of nearly all batches that this rank scores; None where it scores none."""
    shapes: Counter[Shape] = Counter()
    for begin, end in _batches_of_share(windows, batch_tokens, ranks):
        start, stop, scored = windows.span(begin)
        shapes[end - begin, stop - start, scored] += end - begin
    return shapes.most_common(1)[0][0] if shapes else None


def _share(windows: Windows, ranks: Ranks) -> tuple[int, int]:
    """The first of this rank's windows, and the one after its last."""
    first = len(windows) * ranks.rank // ranks.world
    return first, len(windows) * (ranks.rank + 1) // ranks.world


def _batches_of_share(windows: Windows, batch_tokens: int, ranks: Ranks) -> list[tuple[int, int]]:
    """This rank's batches, as ranges of windows."""
    size = max(1, batch_tokens // (windows.seq_len * ranks.world))
    return list(windows.batches(*_share(windows, ranks), size))


@torch.no_grad()
def evaluate(
    nats: Nats,
    tokens: np.ndarray,
    token_bytes: DeviceTokenBytes,
    *,
    seq_len: int,
    stride: int,
    batch_tokens: int,
    ranks: Ranks,
    subset_tokens: int = 0,
    on_progress: Callable[[float], None] = lambda _: None,
) -> Score:
    """Score tokens [n + 1] as n targets; every rank does its share and gets the whole score.

    `nats` is `GPT.nats` or a compiled form of it; `batch_tokens` bounds the tokens of one forward
    pass over all ranks; `subset_tokens` is that of `Windows.spread`. `on_progress` hears the share
    done, 0 to 1: on a GPU the share handed to it, which it is never waited for.
    """
    started = time.perf_counter()
    stream = torch.from_numpy(tokens.astype(np.int64)).to(ranks.device)
    windows = Windows.spread(
        total=tokens.size - 1, seq_len=seq_len, stride=stride, tokens=subset_tokens
    )
    total = torch.zeros((), dtype=torch.float64, device=ranks.device)
    batches = _batches_of_share(windows, batch_tokens, ranks)
    for number, (begin, end) in enumerate(batches, 1):
        views, scored = windows.views(stream, begin, end)
        total += nats(views[:, :-1], views[:, -scored:]).sum(dtype=torch.float64)
        on_progress(number / len(batches))
    text_bytes = _count_bytes(stream, token_bytes, windows, ranks)
    nats_sum, bytes_sum = ranks.sum_(torch.stack([total, text_bytes.double()])).tolist()
    val_loss = nats_sum / windows.scored
    return Score(
        val_loss=val_loss,
        val_bpb=val_loss / math.log(2) * windows.scored / bytes_sum,
        tokens=windows.scored,
        bytes=int(bytes_sum),
        seconds=time.perf_counter() - started,
    )


def _count_bytes(
    stream: Tensor, token_bytes: DeviceTokenBytes, windows: Windows, ranks: Ranks
) -> Tensor:
    """Bytes of all that this rank scores, an int64 scalar."""
    total = torch.zeros((), dtype=torch.int64, device=stream.device)
    for begin, end in windows.batches(*_share(windows, ranks), len(windows)):
        views, scored = windows.views(stream, begin, end)
        total += token_bytes.count(views[:, -scored - 1 : -1], views[:, -scored:])
    return total


def metric_name(kind: str, config: Config) -> str:
    """The name of a kind of score (plain, prequant, quant, sliding), on a subset `kind-subset`."""
    return f"{kind}-subset" if config.eval_subset_tokens else kind


def headline_metric(config: Config) -> str:
    """The name of the score that stands for an artifact, that of `score_artifact`."""
    return metric_name("sliding" if config.sliding_window_enabled else "quant", config)


def score_artifact(data: bytes, config: Config, ranks: Ranks, dtype: str) -> Score:
    """The headline score of an artifact: read back, sliding windows (plain where disabled), on
    the subset that the config asks for.
    """
    model, _ = decode(data)
    move_to_compute(model, ranks.device, dtype)
    if model.config.vocab_size != config.vocab_size:
        raise ArtifactError(
            f"the artifact has {model.config.vocab_size} tokens, VOCAB_SIZE is {config.vocab_size}"
        )
    files = val_files(config.data_path, config.vocab_size)
    table = load_token_bytes(config.tokenizer_file, config.vocab_size)
    return evaluate(
        model.nats,
        load_val_tokens(files, config.vocab_size, config.eval_seq_len),
        DeviceTokenBytes.of(table, ranks.device),
        seq_len=config.eval_seq_len,
        stride=config.eval_stride if config.sliding_window_enabled else config.eval_seq_len,
        batch_tokens=config.val_batch_tokens,
        ranks=ranks,
        subset_tokens=config.eval_subset_tokens,
    )


def move_to_compute(model: GPT, device: torch.device, dtype: str) -> None:
    """Place a model, and let it compute in a dtype of `precision.COMPUTE_DTYPES`."""
    model.move_to_compute(device, COMPUTE_DTYPES[dtype])


def _read_run(path: Path) -> tuple[bytes, Config, str | None]:
    """An artifact, its config and the dtype it was scored in: from a run directory, or a file and
    the environment.
    """
    try:
        if path.is_dir():
            result = json.loads((path / RESULT).read_bytes())
            data = (path / result["artifact"]).read_bytes()
            return data, Config.from_echo(result["config"]), result["compute_dtype"]
        return path.read_bytes(), Config.from_env(os.environ), None
    except (OSError, json.JSONDecodeError, KeyError) as error:
        raise ArtifactError(f"{path}: no artifact or finished run: {error!r}") from error


def main() -> int:
    """Print the score of a run directory or an artifact as one JSON line, with its metric.

    A run directory brings its own config; a bare artifact takes it from the environment.
    """
    parser = argparse.ArgumentParser(prog="python -m model.evaluate", description=main.__doc__)
    parser.add_argument("path", type=Path, help="a run directory, or an artifact")
    arguments = parser.parse_args()
    try:
        data, config, dtype = _read_run(arguments.path)
        ranks = start_ranks(config, os.environ)
        score = score_artifact(data, config, ranks, dtype or choose_dtype(config, ranks.device))
    except (ArtifactError, ConfigError, ShardError, TokenizerError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    if ranks.main:
        print(json.dumps({"metric": headline_metric(config)} | dataclasses.asdict(score)))
    stop_ranks()
    return 0


if __name__ == "__main__":
    sys.exit(main())
