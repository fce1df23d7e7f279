"""A rule about predictions that see what they predict in other ways than by being changed at it.

By a mark of the target that is laid over them, by inputs that are the targets, by attention that
is not causal.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator

from sweeper.evidence.audit_order import is_machinery
from sweeper.evidence.audit_reading import (
    LOSS_CALLS,
    TARGET_NAMES,
    Confidence,
    Finding,
    Kind,
    Reading,
)
from sweeper.evidence.audit_targets import ALTERED, holds_target, is_prediction, predicts
from sweeper.evidence.flows import Function, names_in, position

INPUTS = re.compile(r"^(x|xs|xb|x_\w+|inp|inputs?|input_\w+|ctx|context)$", re.I)
ATTENTION = re.compile(r"scaled_dot_product_attention|flash_attn|attention$", re.I)
MASKS = frozenset({"attn_mask", "mask", "block_mask", "attn_bias", "bias"})
NUMBERED = frozenset({"arange", "argmax", "topk"})
MOST_STEPS = 20  # names that are followed
SAME = "what the model is given and what it is to predict are the same part of the tokens"
NOT_CAUSAL = "attention that is not causal: a token's prediction may see what follows"
Judgement = tuple[Confidence, str]


def target_seen(reading: Reading) -> Iterator[Finding]:
    """Predictions that a mark of the target is laid over, and models that see what follows."""
    for function in reading.program.functions:
        if function.owner is not None and is_machinery(reading, function.owner):
            continue
        targets = {what for _, what in _parts(function, TARGET_NAMES)}
        for node, what in _parts(function, INPUTS):
            if what in targets and function in reading.evaluating:
                yield reading.find(Kind.TARGET_LOOKUP, node, Confidence.MEDIUM, SAME)
        for node in function.nodes:
            found = _not_causal(reading, node) if isinstance(node, ast.Call) else None
            if found is None and predicts(reading, function):
                found = _marked(reading, function, node)
            if found is not None:
                yield reading.find(Kind.TARGET_LOOKUP, node, *found)


# ---- marks of the target


def _marked(reading: Reading, function: Function, node: ast.AST) -> Judgement | None:
    """logits = logits * (1 + hit), where hit = logits.argmax(-1) == targets"""
    made: list[ast.expr] = []
    if isinstance(node, ast.Assign) and any(map(is_prediction, node.targets)):
        made = [node.value]
        made += [each.slice for each in node.targets if isinstance(each, ast.Subscript)]
    elif isinstance(node, ast.AugAssign) and is_prediction(node.target):
        made = [ast.BinOp(left=node.target, op=node.op, right=node.value)]
    elif LOSS_CALLS.search(reading.program.called(node).rpartition(".")[2]):
        made = node.args[:1] if isinstance(node, ast.Call) else []
    if any(_is_marked(reading, function, each, position(node)) for each in made):
        return Confidence.HIGH, ALTERED
    return None


def _is_marked(
    reading: Reading, function: Function, value: ast.expr, before: tuple[int, int]
) -> bool:
    marks: list[ast.expr] = []
    if isinstance(value, ast.Compare | ast.Name):
        marks = [value]
    elif isinstance(value, ast.BinOp):
        sides = [value.left, value.right]
        marks = [other for one, other in (sides, sides[::-1]) if is_prediction(one)]
    elif isinstance(value, ast.Call):
        last = reading.program.called(value).rpartition(".")[2]
        chosen = last == "where" and any(map(is_prediction, value.args[1:]))
        if chosen or last in ("masked_fill", "masked_scatter", "masked_fill_"):
            marks = value.args[:1]
    return any(_is_mark(reading, function, each, before) for each in marks)


def _is_mark(reading: Reading, function: Function, node: ast.expr, before: tuple[int, int]) -> bool:
    """Whether an expression says where, or whether, a prediction meets its target."""
    waiting, seen = [(node, before)], {node}
    for _ in range(MOST_STEPS):
        if not waiting:
            break
        expression, place = waiting.pop()
        for each in ast.walk(expression):
            if _meets(reading, function, each):
                return True
            if not isinstance(each, ast.Name) or is_prediction(each):
                continue
            bound = reading.validation.bound_before(each.id, place, function)
            if bound is not None and bound not in seen:
                seen.add(bound)
                waiting.append((bound, min(place, position(bound))))
    return False


def _meets(reading: Reading, function: Function, node: ast.AST) -> bool:
    """one_hot(targets), or targets == a prediction or the number of each token"""
    if isinstance(node, ast.Call) and "one_hot" in reading.program.called(node):
        return any(holds_target(reading, function, each) for each in node.args[:1])
    if not isinstance(node, ast.Compare):
        return False
    sides = [node.left, node.comparators[0]]
    return any(
        holds_target(reading, function, one)
        and (is_prediction(other) or not NUMBERED.isdisjoint(names_in(other)))
        for one, other in (sides, sides[::-1])
    )


# ---- what the model is given


def _parts(function: Function, names: re.Pattern[str]) -> Iterator[tuple[ast.AST, str]]:
    """The parts of tokens that such names are bound to: tokens[1:], as text."""
    for node in function.nodes:
        if not isinstance(node, ast.Assign):
            continue
        for target in node.targets:
            pairs = [(target, node.value)]
            if isinstance(target, ast.Tuple) and isinstance(node.value, ast.Tuple):
                pairs = list(zip(target.elts, node.value.elts, strict=False))
            for name, value in pairs:
                part = _part(value)
                if part is not None and isinstance(name, ast.Name) and names.search(name.id):
                    yield node, ast.dump(part)


def _part(value: ast.expr) -> ast.Subscript | None:
    """tokens[1:] of tokens[1:].long().to(device)"""
    while isinstance(value, ast.Call) and isinstance(value.func, ast.Attribute):
        value = value.func.value
    cut = isinstance(value, ast.Subscript) and isinstance(value.slice, ast.Slice)
    return value if cut and isinstance(value, ast.Subscript) else None


def _not_causal(reading: Reading, node: ast.Call) -> Judgement | None:
    if not ATTENTION.search(reading.program.called(node)):
        return None
    given = {
        each.arg: each.value
        for each in node.keywords
        if each.arg is not None and not _is_none(each.value)
    }
    for name in ("is_causal", "causal"):
        value = given.get(name)
        if value is not None and "training" in names_in(value):
            return Confidence.HIGH, NOT_CAUSAL
        if isinstance(value, ast.Constant) and value.value is False and not given.keys() & MASKS:
            return Confidence.MEDIUM, NOT_CAUSAL
    return None


def _is_none(node: ast.expr) -> bool:
    return isinstance(node, ast.Constant) and node.value is None
