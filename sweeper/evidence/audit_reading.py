"""What an audit finds, and what its rules read: a layer's program, and where data goes in it."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from enum import StrEnum
from functools import cached_property
from pathlib import Path

from sweeper.evidence.flows import Function, Program
from sweeper.evidence.flows_data import Flow, Source
from sweeper.evidence.flows_spelling import names_of, spell_out
from sweeper.evidence.unpack import Layer

MOST_TEXT = 160  # characters of a line that is shown


class Kind(StrEnum):
    """What a finding is of."""

    TEST_TIME_TRAINING = "test_time_training"
    MULTI_EPOCH_TTT = "multi_epoch_ttt"
    SLOT_LIKE = "slot_like"
    MIN_OVER_PASSES = "min_over_passes"
    NGRAM_CACHE = "ngram_cache"
    TARGET_LOOKUP = "target_lookup"
    VALIDATION_IN_TRAINING = "validation_in_training"
    SEED_NOT_IN_DATA = "seed_not_in_data"
    EVAL_SWITCH = "eval_switch"
    NETWORK = "network"
    SUBPROCESS = "subprocess"
    READS_OUTSIDE = "reads_outside"
    UNCOUNTED_CODE = "uncounted_code"
    HIDDEN_EXEC = "hidden_exec"
    UNREADABLE = "unreadable"


class Confidence(StrEnum):
    """How likely the line is what its finding says; not whether a rule is broken."""

    LOW = "low"
    MEDIUM = "medium"
    HIGH = "high"


class Order(StrEnum):
    """What comes first in an evaluation that also updates: the score of a token, or the update."""

    SCORE_FIRST = "score_first"
    UPDATE_FIRST = "update_first"
    UNCLEAR = "unclear"


# What a person is to find out about a finding of each kind.
QUESTIONS = {
    Kind.TEST_TIME_TRAINING: "Is every token's score fixed before any update that depends on it, "
    "and was this on in the runs that count?",
    Kind.MULTI_EPOCH_TTT: "Are the scores of the last of several passes reported?",
    Kind.SLOT_LIKE: "Is what is optimised here fitted to the tokens that it then scores?",
    Kind.MIN_OVER_PASSES: "Is the better of several scores reported?",
    Kind.NGRAM_CACHE: "Is a token scored before it is counted, and are the probabilities "
    "normalised over the whole vocabulary?",
    Kind.TARGET_LOOKUP: "Could this probability be computed without knowing the target?",
    Kind.VALIDATION_IN_TRAINING: "Do validation tokens reach weights, calibration or choices?",
    Kind.SEED_NOT_IN_DATA: "Is it said that the seeds differ in their initial weights alone?",
    Kind.EVAL_SWITCH: "Was it on in the runs that count? Their logs may say so.",
    Kind.NETWORK: "Does this run in training or evaluation, and what does it fetch or send?",
    Kind.SUBPROCESS: "What does the other process do that the counted bytes do not hold?",
    Kind.READS_OUTSIDE: "What is in this file, and is it counted or part of the challenge's data?",
    Kind.UNCOUNTED_CODE: "Are the bytes of this code counted?",
    Kind.HIDDEN_EXEC: "What is executed here? Nothing of it was read.",
    Kind.UNREADABLE: "What is in this source? Nothing of it was read.",
}


@dataclass(frozen=True, kw_only=True)
class Finding:
    """A line that a person must look at, and why. `layer` 0 is the file itself."""

    kind: Kind
    line: int
    layer: int
    text: str
    confidence: Confidence
    why: str
    question: str
    order: Order | None = None  # where scores and updates meet


VAL_NAMES = re.compile(
    r"^(?!\w*(len|size|seqs|count|num|every|stride|frac|time|steps|batch_tokens|subset))"
    r"(val|valid|validation|eval|test)_?(tok|token|data|ids|np|files?|loader|set|stream|inputs?|"
    r"shards?|pattern|glob|path|batch|xy|x|y|iter|seq|chunk|docs?)(s|ens)?(_|\d|$)|_val_(tok|data)",
    re.I,
)
VAL_TEXT = re.compile(r"_val_|_val\b|\bval_\w*\*|/val(idation)?/|\bval\*", re.I)
VAL_CALLS = re.compile(r"(load|read|get)_?val|val(idation)?_(files|tokens|data|loader)", re.I)
TARGET_NAMES = re.compile(
    r"^(y|ys|y_\w+|\w+_y|tgts?|tgt_\w+|targets?|target_\w+|labels?|gold|next_tok(en)?s?)$", re.I
)
LOSS_CALLS = re.compile(r"cross_?entropy|nll|nats|log_softmax|kl_div|(^|_)loss(es)?$", re.I)
LOSS_NAMES = re.compile(r"loss|nll|nats|bits|xent|score|(^|_)ce(_|$)|bpb", re.I)


class Reading:
    """One layer of a script as its rules see it; computed once, when first asked for.

    The tree is spelled out in place: what it is read for first is done by then.
    """

    def __init__(self, layer: Layer, tree: ast.Module, path: Path | None) -> None:
        self.layer = layer
        self.path = path  # the script's own, beside which local modules lie
        names = names_of(tree)
        spell_out(tree)
        self.program = Program(tree, names)
        self._lines = layer.lines
        # What audit_order.py finds in each function, once.
        self.updates: dict[Function, dict[ast.Call, ast.expr | None]] = {}
        self.scores: dict[Function, list[ast.AST]] = {}

    @cached_property
    def validation(self) -> Flow:
        """Where validation tokens go."""
        source = Source(names=VAL_NAMES, text=VAL_TEXT, calls=VAL_CALLS)
        return Flow(self.program, source)

    @cached_property
    def targets(self) -> Flow:
        """Where the tokens that are to be predicted go."""
        return Flow(self.program, Source(names=TARGET_NAMES))

    @cached_property
    def evaluating(self) -> set[Function]:
        """The functions that score, and those of which it is known that they call them."""
        return self.program.reached(self.program.evaluating)

    def text(self, line: int) -> str:
        """A line of the source, safe to print."""
        if not 1 <= line <= len(self._lines):
            return ""
        return printable(self._lines[line - 1])

    def find(
        self,
        kind: Kind,
        node: ast.AST,
        confidence: Confidence,
        why: str,
        order: Order | None = None,
    ) -> Finding:
        line = getattr(node, "lineno", 1)
        return Finding(
            kind=kind,
            line=line,
            layer=self.layer.number,
            text=self.text(line),
            confidence=confidence,
            why=why,
            question=QUESTIONS[kind],
            order=order,
        )


def printable(line: str) -> str:
    """A line without what a terminal could take for a command, and no longer than is read."""
    text = "".join(c if c.isprintable() else " " for c in line[: 4 * MOST_TEXT]).strip()
    return text if len(text) <= MOST_TEXT else text[: MOST_TEXT - 1] + "…"


def calls_in(nodes: Iterable[ast.AST]) -> Iterator[ast.Call]:
    for node in nodes:
        if isinstance(node, ast.Call):
            yield node


def loops_around(reading: Reading, node: ast.AST, function: Function) -> list[ast.For | ast.While]:
    """The loops of a function that a node is in, innermost first."""
    return [
        each
        for each in reading.program.ancestors(node, function.node)
        if isinstance(each, ast.For | ast.While)
    ]
