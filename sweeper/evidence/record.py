"""What a record is once it has been read: its runs, those that count, and what is claimed.

A record is a published submission, ours or anyone's: a folder with a log for each seed and a
submission.json; or a sweep's trial, which may become one. Both look the same from here on.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from decimal import Decimal
from functools import cached_property
from pathlib import Path
from typing import Any

from sweeper.logfacts import LogFacts
from sweeper.stats import Summary, population_std, summarise

# Begins what a published folder leaves to its author: nobody else knows it.
FILL_IN = "FILL IN:"


CUT_OFF = 5  # digits of a score from which on cutting off is as good as rounding
ROUNDING = 1e-12  # of floats


@dataclass(frozen=True, kw_only=True)
class LoggedRun:
    """One run as its log says it; a log may hold several.

    The score is that of the record's metric, which is `facts`' own headline unless the record
    claims another of its final metrics. `excluded` says why the run does not count; None: it does.
    `missing` has a reason for each fact that is None.
    """

    path: Path  # of the log
    name: str | None = None  # where the log's own would say nothing
    number: int = 1  # in its file, of so many
    of: int = 1
    seed: int | None = None
    seed_from: str | None = None  # log, file name, result
    val_bpb: float | None = None
    val_loss: float | None = None
    val_bpb_text: str | None = None  # all digits that the log gives
    metric: str | None = None  # what the score is: a sweeper.scores.Kind
    headline: str | None = None  # the score's name in the log
    facts: LogFacts = field(default_factory=LogFacts)
    missing: Mapping[str, str] = field(default_factory=dict)
    sha256: str | None = None  # of the log's bytes
    excluded: str | None = None

    @property
    def counts(self) -> bool:
        return self.excluded is None

    @property
    def label(self) -> str:
        """The run's name for people: its file, and its place where the file has several."""
        if self.name is not None:
            return self.name
        return self.path.name if self.of == 1 else f"{self.path.name}#{self.number}"

    @property
    def nats_per_bpb(self) -> float | None:
        """val_loss / val_bpb: ln 2 × bytes per token, a fact of tokenizer and validation set."""
        if not self.val_loss or not self.val_bpb:
            return None
        ratio = self.val_loss / self.val_bpb
        return ratio if math.isfinite(ratio) else None

    def line(self, fact: str) -> int | None:
        """The line of the log that says a fact, by its name in LogFacts; from 1."""
        return self.facts.lines.get(fact)


@dataclass(frozen=True, kw_only=True)
class Claimed:
    """A number that a record claims: with its digits, and where it stands."""

    value: float
    text: str
    where: str  # "submission.json: seed_results.42.val_bpb", "README.md:12"

    @property
    def digits(self) -> int:
        """Digits after the point: 3 of 1.5e-2 as of 0.015."""
        exponent = Decimal(self.text).as_tuple().exponent
        return max(0, -exponent) if isinstance(exponent, int) else 0

    def agrees(self, value: float) -> bool:
        """Whether a value rounds to the claim at the digits that it has.

        Some cut digits off instead; that is let pass where what is cut off is next to nothing.
        """
        unit = 10.0**-self.digits
        rounded = abs(self.value - value) <= unit * (0.5 + 1e-6) + ROUNDING
        return rounded or (self.digits >= CUT_OFF and 0 <= value - self.value < unit)


@dataclass(frozen=True, kw_only=True)
class Claim:
    """What a record says of itself: submission.json as it is, and the numbers in it.

    `error` says why submission.json cannot be read; its `fields` are then empty. `per_seed` is by
    the key that the record gives, a seed in most; each has the claims that are known of it
    (val_bpb, val_loss, artifact_bytes, steps, eval_time_s, step_avg_ms). `readme` are the numbers
    that README.md gives as the record's mean or headline val_bpb.
    """

    path: Path | None = None
    error: str | None = None
    fields: Mapping[str, Any] = field(default_factory=dict)
    val_bpb: Claimed | None = None
    val_loss: Claimed | None = None
    val_bpb_std: Claimed | None = None
    val_bpb_std_population: Claimed | None = None  # where it is claimed as such
    bytes_total: Claimed | None = None
    bytes_code: Claimed | None = None
    seeds: tuple[int, ...] = ()
    per_seed: Mapping[str, Mapping[str, Claimed]] = field(default_factory=dict)
    readme: tuple[Claimed, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Record:
    """A record: all runs that were found, in the order of their paths, and what is claimed.

    `script` is the train_gpt.py in the folder; `code` are all other files of code beside it.
    `chosen_by` says in a sentence how the runs that count were told from the others.
    """

    path: Path
    name: str
    runs: tuple[LoggedRun, ...] = ()
    claim: Claim = field(default_factory=Claim)
    script: Path | None = None
    code: tuple[Path, ...] = ()
    readme: Path | None = None
    requirements: Path | None = None
    chosen_by: str = ""
    notes: tuple[str, ...] = ()  # what was odd in reading it

    @cached_property
    def counted(self) -> tuple[LoggedRun, ...]:
        """The runs that the record is judged by."""
        return tuple(run for run in self.runs if run.counts)

    @cached_property
    def excluded(self) -> tuple[LoggedRun, ...]:
        return tuple(run for run in self.runs if not run.counts)

    @property
    def scores(self) -> tuple[float, ...]:
        """The val_bpb of the runs that count."""
        return tuple(run.val_bpb for run in self.counted if run.val_bpb is not None)

    @cached_property
    def summary(self) -> Summary:
        """n, mean, sample std and 95 % interval of val_bpb over the runs that count."""
        return summarise(self.scores)

    @property
    def std_population(self) -> float | None:
        """With n below the line: only to tell a claim that was made with it."""
        return population_std(self.scores)

    @property
    def bytes_max(self) -> int | None:
        """The largest artifact of the runs that count; None where one of them does not say it."""
        sizes = [run.facts.bytes_total for run in self.counted]
        known = [size for size in sizes if size is not None]
        return max(known) if known and len(known) == len(sizes) else None

    @property
    def metrics(self) -> tuple[str, ...]:
        """What the scores are; more than one cannot be averaged."""
        return tuple(sorted({run.metric for run in self.counted if run.metric is not None}))
