"""The data: what was trained on, that it is not what is scored on, and how many bytes were scored.

The validation set is fixed, so that its tokens are a fact of the tokenizer and its bytes one of
the challenge. Both are known by the public logs: TOKENIZERS.
"""

from __future__ import annotations

import itertools
import math
import posixpath
import re
from collections.abc import Iterator
from dataclasses import dataclass

from sweeper.evidence.record import LoggedRun
from sweeper.evidence.rules import (
    Context,
    Said,
    Status,
    failed,
    not_said,
    passed,
    rule,
    say,
    unknown,
    warned,
)
from sweeper.scores import Kind, Score


@dataclass(frozen=True, kw_only=True)
class Tokenizer:
    """A tokenizer in public use: the validation set's tokens by it, and ln 2 × bytes a token.

    Logs give the tokens as they cut them to whole sequences; several counts, where they do so
    differently.
    """

    name: str
    pattern: re.Pattern[str]  # of its data's or its model's path
    val_tokens: tuple[int, ...]
    nats_per_bpb: float


# By the public logs of this challenge. The first that matches.
TOKENIZERS = (
    Tokenizer(
        name="SP8192 caseops",
        pattern=re.compile(r"caseops|lossless_caps"),
        val_tokens=(47_851_520,),
        nats_per_bpb=2.1884,
    ),
    Tokenizer(
        name="SP1024",
        pattern=re.compile(r"sp1024|_1024_bpe"),
        val_tokens=(62_021_632,),
        nats_per_bpb=1.6885,
    ),
    Tokenizer(
        name="SP4096",
        pattern=re.compile(r"sp4096|_4096_bpe"),
        val_tokens=(45_508_608, 45_516_800),
        nats_per_bpb=2.301,
    ),
    Tokenizer(
        name="SP8192",
        pattern=re.compile(r"sp8192|_8192_bpe"),
        val_tokens=(40_540_160,),
        nats_per_bpb=2.5831,
    ),
    Tokenizer(
        name="bytes",
        pattern=re.compile(r"byte(?:s|260|256|_level|level)"),
        val_tokens=(151_076_864,),
        nats_per_bpb=math.log(2),
    ),
)
SUBSET = "-subset"  # ends the name of a metric over a part of the validation tokens
SEQUENCES = 16_384  # tokens by which a whole set may differ, cut into sequences of other lengths
BY_RATIO = 0.01  # a tokenizer is taken for known when its nats per BPB are so near

# The set's bytes are 151.07 to 151.08 million; a unit more for how passes cut off the last tokens.
LEAST_BYTES, MOST_BYTES = 151_060_000.0, 151_090_000.0
# Wrong counts were off by 20 % at most: what is further off is another text.
WRONG_COUNT = 0.75
# The most that a public log has: 195 shards of 100 M tokens by SP8192 caseops, 3.157 bytes each.
TEXT_BYTES = 195 * 100e6 * 2.1884 / math.log(2)
SHARD_TOKENS = 100e6
# Even byte by byte that fills 616 shards; a tenth is for how it may be cut.
FAR = 1.25  # of a tokenizer's own bound: more shards cannot be of another way to cut
MOST_SHARDS = round(1.1 * TEXT_BYTES / SHARD_TOKENS)


def tokenizer_of(run: LoggedRun) -> Tokenizer | None:
    """The tokenizer by the paths in the log, else by its nats per BPB; None for an unknown one."""
    facts = run.facts
    told = [facts.train_path, facts.val_path, facts.hyperparameters.get("tokenizer_path")]
    paths = " ".join(path.lower() for path in told if path)
    for known in TOKENIZERS:
        if known.pattern.search(paths):
            return known
    ratios = [loss / score.val_bpb for score, loss in plain_scores(run)]
    for known in TOKENIZERS:
        if any(abs(ratio / known.nats_per_bpb - 1) < BY_RATIO for ratio in ratios):
            return known
    return None


def plain_scores(run: LoggedRun) -> list[tuple[Score, float]]:
    """The scores whose val_loss and val_bpb are of the same predictions, and their losses.

    The run's own score comes first, then those of most digits.

    A mixture's loss may be that of the model in it.
    """
    plain = (Kind.PREQUANT, Kind.QUANT, Kind.SLIDING)
    mine = [
        (score, score.val_loss)
        for score in run.facts.scores
        if score.kind in plain and score.val_bpb > 0 and score.val_loss and score.val_loss > 0
    ]
    return sorted(mine, key=lambda each: (each[0].name != run.headline, -each[0].digits))


@rule(
    "train-shards",
    "The training shards are as many as the published set can have",
    source="Failures: training on validation data",
    advice="Say what was trained on: list the training files, and show that none is of validation.",
)
def train_shards(context: Context) -> Iterator[Said]:
    for run in context.record.counted:
        shards, known = run.facts.train_shards, tokenizer_of(run)
        if shards is None:
            yield not_said(run, "train_shards", "the number of training shards")
            continue
        text = f"{shards} training shards"
        most = MOST_SHARDS
        if known is not None:
            most = round(1.1 * TEXT_BYTES * math.log(2) / known.nats_per_bpb / SHARD_TOKENS)
        if shards > MOST_SHARDS:
            text += f"; the published text has {MOST_SHARDS} at most, by any tokenizer"
            yield failed(text, run, "train_shards")
        elif shards > most and known is not None:
            far = shards > FAR * most
            yield (failed if far else warned)(
                f"{text}; by {known.name} about {most} can be", run, "train_shards"
            )
        elif shards == 0:
            yield warned(f"{text}: the log counts none", run, "train_shards")
        else:
            yield passed(text, run, "train_shards")


@rule(
    "data-paths",
    "Training data and validation data are in different files",
    source="Failures: training on validation data",
    advice="List the training files and their hashes; a doubled path once held validation data.",
)
def data_paths(context: Context) -> Iterator[Said]:
    for run in context.record.counted:
        train, val = run.facts.train_path, run.facts.val_path
        if train is None:
            yield unknown("the log does not say what was trained on", run)
            continue
        parts = [part for part in train.replace("\\", "/").split("/") if part not in ("", ".")]
        doubled = next((a for a, b in itertools.pairwise(parts) if a == b), None)
        name = posixpath.basename(train.replace("\\", "/")).lower()
        if val is not None and train == val:
            yield failed(f"trains on what it is scored on: {train}", run, "train_path")
        elif re.search(r"(?:^|[_\W])val(?:id(?:ation)?)?(?:[_\W]|$)", name):
            yield failed(f"the training files are of validation: {train}", run, "train_path")
        elif doubled is not None:
            yield failed(f"{doubled}/{doubled} in the path: {train}", run, "train_path")
        elif len(set(parts)) < len(parts):
            yield warned(f"a folder occurs twice in the path: {train}", run, "train_path")
        else:
            yield passed(train, run, "train_path")


@rule(
    "val-tokens",
    "Every run is scored on the whole validation set",
    source="Failures: wrong validation set",
    advice="Score the whole official validation set, with the same tokens for every seed.",
)
def val_tokens(context: Context) -> Iterator[Said]:
    counts: set[int] = set()
    for run in context.record.counted:
        if (run.metric or "").endswith(SUBSET):
            yield failed(f"{run.metric}: scored on a subset of the validation tokens", run)
        tokens = run.facts.val_tokens
        if tokens is None:
            yield not_said(run, "val_tokens", "the number of validation tokens")
            continue
        counts.add(tokens)
        yield _tokens(run, tokens, context)
    if len(counts) > 1:
        yield failed(f"not the same for all runs: {', '.join(f'{n:,}' for n in sorted(counts))}")


def _tokens(run: LoggedRun, tokens: int, context: Context) -> Said:
    known, text = tokenizer_of(run), f"{tokens:,} validation tokens"
    whole = plain_bytes(run)
    if whole is not None and whole.of_another_set:
        what = "not the whole of it" if whole.size < LEAST_BYTES else "another text"
        text += f" of {whole.size / 1e6:.3g} M bytes, the set has 151.08 M: {what}"
        wrong = context.lenient if known is None else Status.FAIL
        return say(wrong if context.claims_record else Status.WARN, text, run, "val_tokens")
    if any(tokens in each.val_tokens for each in TOKENIZERS) and known is None:
        return passed(text, run, "val_tokens")
    if known is None:
        if whole is not None and whole.right:
            return passed(f"{text}, which are all bytes of the set", run, "val_tokens")
        return warned(f"{text} of a tokenizer that is not known here", run, "val_tokens")
    near = min(known.val_tokens, key=lambda count: abs(count - tokens))
    official = f"the set has {near:,} by {known.name}"
    if abs(tokens - near) <= SEQUENCES:
        return passed(f"{text}, by {known.name}", run, "val_tokens")
    if tokens < near:
        return failed(f"{text}; {official}: not the whole of it", run, "val_tokens")
    theirs = next((each for each in TOKENIZERS if tokens in each.val_tokens), None)
    if theirs is not None:
        return failed(f"{text}; {official}: that of {theirs.name}", run, "val_tokens")
    return warned(f"{text}; {official}: another set", run, "val_tokens")


@dataclass(frozen=True, kw_only=True)
class Scored:
    """The bytes that a score was divided by, and how far rounding lets them be from that."""

    score: Score
    size: float
    rounding: float

    @property
    def right(self) -> bool:
        return LEAST_BYTES - self.rounding <= self.size <= MOST_BYTES + self.rounding

    @property
    def of_another_set(self) -> bool:
        """Whether the bytes are too far from the set's to be a wrong count of it."""
        return not WRONG_COUNT < self.size / LEAST_BYTES < 1 / WRONG_COUNT

    def __str__(self) -> str:
        return f"{self.size / 1e6:.4f} ± {self.rounding / 1e6:.4f} M bytes by {self.score.name}"


def bytes_scored(run: LoggedRun, score: Score, loss: float) -> Scored | None:
    """bytes = val_tokens · val_loss / (ln 2 · val_bpb); None where the tokens are not known."""
    tokens = run.facts.val_tokens
    if tokens is None or not (score.val_bpb > 0 and loss > 0):
        return None
    size = tokens * loss / (math.log(2) * score.val_bpb)
    half = 0.5 * 10.0**-score.digits
    return Scored(score=score, size=size, rounding=size * (half / loss + half / score.val_bpb))


def plain_bytes(run: LoggedRun) -> Scored | None:
    """The same by the first of the plain scores."""
    return next((bytes_scored(run, score, loss) for score, loss in plain_scores(run)), None)


@rule(
    "byte-count",
    "Scores are per byte of the validation text: 151.07 to 151.08 million",
    source="Failures: wrong byte count",
    advice="Count the bytes of the decoded validation text; a wrong count scales every score.",
)
def byte_count(context: Context) -> Iterator[Said]:
    for run in context.record.counted:
        tokens = run.facts.val_tokens
        if tokens is None:
            yield not_said(run, "val_tokens", "the number of validation tokens")
            continue
        plain, known = plain_bytes(run), tokenizer_of(run)
        another = plain is not None and plain.of_another_set
        if another or (known is not None and _tokens(run, tokens, context)[0] is Status.FAIL):
            yield unknown("another text, or a part of this one, was scored: see val-tokens", run)
            continue
        yield from _bytes(run)


def _bytes(run: LoggedRun) -> Iterator[Said]:
    plain = plain_bytes(run)
    own = next((score for score in run.facts.scores if score.name == run.headline), None)
    if own is not None and own.val_loss is not None and own.kind in (Kind.TTT, Kind.MIXED):
        found = bytes_scored(run, own, own.val_loss)
        if found is not None and not found.right and (plain is None or plain.right):
            text = f"{found}: its loss or its bytes are of something else"
            yield warned(text, run, own.line or "")
    if plain is None:
        yield unknown("no plain score from which the bytes can be told", run)
    elif plain.right:
        yield passed(str(plain), run, plain.score.line or "")
    else:
        text = f"{plain}: not those of the validation set"
        yield failed(text, run, plain.score.line or "")
