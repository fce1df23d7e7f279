"""The validation set of a run, and how its model is scored on it."""

from __future__ import annotations

import hashlib
import math
import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from model.config import Config
from model.evaluate import (
    DeviceTokenBytes,
    Score,
    Windows,
    evaluate,
    metric_name,
    usual_shape,
)
from model.gpt import GPT
from model.graphs import Graphs
from model.ranks import Ranks
from model.report import Report
from model.shards import load_val_tokens, val_files
from model.tokens import load_token_bytes

TELL_SECONDS = 1.0


@dataclass(kw_only=True)
class Validation:
    """The validation set, and how to score the model on it."""

    config: Config
    ranks: Ranks
    report: Report
    tokens: np.ndarray
    table: DeviceTokenBytes
    graphs: Graphs
    sliding: bool  # whether this process scores sliding windows too

    @classmethod
    def load(
        cls, model: GPT, config: Config, ranks: Ranks, report: Report, *, sliding: bool
    ) -> Validation:
        """The set that the config names, for a model in its place. ShardError, TokenizerError."""
        table = load_token_bytes(config.tokenizer_file, config.vocab_size)
        files = val_files(config.data_path, config.vocab_size)
        return cls(
            config=config,
            ranks=ranks,
            report=report,
            tokens=load_val_tokens(files, config.vocab_size, config.eval_seq_len),
            table=DeviceTokenBytes.of(table, ranks.device),
            graphs=Graphs(model, config, ranks.device),
            sliding=sliding,
        )

    @property
    def fingerprint(self) -> str:
        return hashlib.sha256(self.tokens.tobytes()).hexdigest()[:16]

    def score(self, *, step: int, metric: str, sliding: bool = False) -> Score:
        metric = metric_name(metric, self.config)
        score = evaluate(
            self.graphs.nats,
            self.tokens,
            self.table,
            seq_len=self.config.eval_seq_len,
            stride=self._stride(sliding),
            batch_tokens=self.config.val_batch_tokens,
            ranks=self.ranks,
            subset_tokens=self.config.eval_subset_tokens,
            on_progress=self._teller(metric),
        )
        facts = {"val_loss": score.val_loss, "val_bpb": score.val_bpb}
        self.report.event("val", step=step, metric=metric, eval_time_s=score.seconds, **facts)
        return score

    def warm_up(self, last: bool) -> None:
        """Make the graphs that score the model as it is now; `last`: as it will be at the end."""
        plain = [False] if last or self.config.val_loss_every else []
        for sliding in [*plain, *([True] if last and self.sliding else [])]:
            windows = Windows.spread(
                total=self.tokens.size - 1,
                seq_len=self.config.eval_seq_len,
                stride=self._stride(sliding),
                tokens=self.config.eval_subset_tokens,
            )
            shape = usual_shape(windows, self.config.val_batch_tokens, self.ranks)
            if shape is not None:
                self.graphs.warm_scoring(shape)

    def __call__(self, step: int) -> None:
        score = self.score(step=step, metric="plain")
        self.report.line(
            f"{step}/{self.config.iterations} val_loss: {score.val_loss:.4f} "
            f"val_bpb: {score.val_bpb:.4f}"
        )

    def _teller(self, metric: str) -> Callable[[float], None]:
        """Says how much is done, at most once a second: a GPU waits for nothing between batches."""
        told_at = -math.inf

        def tell(done: float) -> None:
            nonlocal told_at
            if time.monotonic() - told_at >= TELL_SECONDS or done == 1:
                told_at = time.monotonic()
                self.report.event("eval", metric=metric, progress=done)

        return tell

    def _stride(self, sliding: bool) -> int:
        return self.config.eval_stride if sliding else self.config.eval_seq_len
