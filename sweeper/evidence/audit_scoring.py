"""Rules about evaluations that learn: test-time training, several passes, SLOT.

Each is a function from a layer's reading to findings.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator

from sweeper.evidence.audit_order import order_of, scores_of, updates_of
from sweeper.evidence.audit_reading import (
    Confidence,
    Finding,
    Kind,
    Order,
    Reading,
    loops_around,
)
from sweeper.evidence.flows import TRAINING, Function, names_in
from sweeper.evidence.flows_data import arguments

EPOCHS = re.compile(r"epoch|(^|_)ep(s|_|$)|passes|num_pass", re.I)
AT_TEST_TIME = re.compile(r"ttt|test_?time|adapt|slot", re.I)
MADE = frozenset(
    {"zeros", "zeros_like", "ones", "ones_like", "randn", "randn_like", "empty", "empty_like"}
    | {"full", "full_like", "tensor", "clone", "detach", "Parameter", "rand"}
)
SAYS = {
    Order.SCORE_FIRST: "by the order of lines each part is scored before it is learned from",
    Order.UPDATE_FIRST: "by the order of lines the update comes before the score",
    Order.UNCLEAR: "whether scores come first is not clear from the order of lines",
}


def test_time_training(reading: Reading) -> Iterator[Finding]:
    """Weights that are updated while they are scored, or by what is then scored."""
    for function in reading.program.functions:
        for update in _first_of_each_loop(reading, function):
            yield from _judge(reading, function, update)
        if function in reading.program.evaluating:
            yield from _helpers(reading, function)


def _first_of_each_loop(reading: Reading, function: Function) -> list[ast.Call]:
    """One update for each loop: where the gradient is taken, else the step."""
    found: dict[ast.AST, ast.Call] = {}
    losses = updates_of(reading, function)
    for update, loss in losses.items():
        loops = loops_around(reading, update, function)
        # An optimiser's step may stand in a small loop over several of them.
        around = loops[0] if loops and loss is not None else None
        place: ast.AST = around or (loops[-1] if loops else function.node)
        known = found.get(place)
        if known is None or (losses[known] is None and loss is not None):
            found[place] = update
    with_loss = [each for each in found.values() if losses[each] is not None]
    return with_loss or list(found.values())


def _judge(reading: Reading, function: Function, update: ast.Call) -> Iterator[Finding]:
    losses = updates_of(reading, function)
    loss = losses[update]
    validation = loss is not None and reading.validation.holds_there(loss, function)
    scoring = function in reading.program.evaluating
    if not validation and function not in reading.evaluating:
        return
    if validation and not scoring and _trains(reading, function, update):
        why = f"the loss that {function.qualname} trains on is one of validation tokens"
        yield reading.find(Kind.VALIDATION_IN_TRAINING, update, Confidence.HIGH, why)
        return
    order = order_of(reading, function, update)
    epochs = list(_epochs(reading, function, update, order))
    if epochs:  # a later pass scores what an earlier one has learned from
        order = Order.UPDATE_FIRST
    stepping = None in losses.values()
    confidence = Confidence.LOW
    if validation or (scoring and stepping):
        confidence = Confidence.HIGH
    elif scoring:
        confidence = Confidence.MEDIUM
    of = "a loss of validation tokens" if validation else "a loss"
    why = f"{function.qualname} takes gradients of {of}; {SAYS[order]}"
    yield reading.find(Kind.TEST_TIME_TRAINING, update, confidence, why, order)
    yield from epochs


def _trains(reading: Reading, function: Function, update: ast.Call) -> bool:
    """Whether an update is one of training, as far as names say."""
    if function is not reading.program.top and not TRAINING.search(function.name):
        return False
    loops = loops_around(reading, update, function)
    return not any(AT_TEST_TIME.search(each) for loop in loops for each in names_in(loop))


def _helpers(reading: Reading, function: Function) -> Iterator[Finding]:
    """Updates that an evaluation leaves to a function that is named for training."""
    for call in reading.program.calls_from[function]:
        if call.callee in reading.evaluating or not updates_of(reading, call.callee):
            continue
        given = any(reading.validation.holds(value, function) for _, value in arguments(call))
        if not call.strong and not given:
            continue
        order = order_of(reading, function, call.node)
        confidence = Confidence.HIGH if given and call.strong else Confidence.MEDIUM
        why = f"{function.qualname} has {call.callee.qualname} take gradients; {SAYS[order]}"
        yield reading.find(Kind.TEST_TIME_TRAINING, call.node, confidence, why, order)


def _epochs(
    reading: Reading, function: Function, update: ast.Call, order: Order
) -> Iterator[Finding]:
    """Several passes over what is scored."""
    scores = scores_of(reading, function)
    for loop in loops_around(reading, update, function):
        if not isinstance(loop, ast.For):
            continue
        if not any(EPOCHS.search(each) for each in names_in(loop.target) | names_in(loop.iter)):
            continue
        if any(loop in loops_around(reading, each, function) for each in scores):
            why = "scores are added up in a loop over epochs that also updates: what counts are "
            why += "those of a later pass"
            first = Order.UPDATE_FIRST
            yield reading.find(Kind.MULTI_EPOCH_TTT, loop, Confidence.HIGH, why, first)
        elif order is Order.UPDATE_FIRST:
            why = "several epochs of updates come before the score"
            yield reading.find(Kind.MULTI_EPOCH_TTT, loop, Confidence.HIGH, why, order)


# ---- SLOT


def slot_like(reading: Reading) -> Iterator[Finding]:
    """Fresh tensors that are optimised while scoring: deltas, biases, prompts."""
    for function in reading.evaluating:
        updates = updates_of(reading, function)
        if function.name == "__init__" or not updates:
            continue
        for node in function.nodes:
            if not _makes_leaf(reading, function, node):
                continue
            order = order_of(reading, function, list(updates)[-1])
            scoring = function in reading.program.evaluating
            confidence = Confidence.HIGH if scoring else Confidence.LOW
            why = f"{function.qualname} makes a tensor that takes gradients, and optimises it; "
            yield reading.find(Kind.SLOT_LIKE, node, confidence, why + SAYS[order], order)


def _makes_leaf(reading: Reading, function: Function, node: ast.AST) -> bool:
    if isinstance(node, ast.Call):
        called = reading.program.called(node)
        last = called.rpartition(".")[2]
        if last == "Parameter":
            return True
        if last in MADE and any(_is_true(each) for each in node.keywords):
            return True
        return last == "requires_grad_" and _is_made(reading, function, node)
    if isinstance(node, ast.Assign) and isinstance(node.value, ast.Constant) and node.value.value:
        target = node.targets[0]
        return isinstance(target, ast.Attribute) and target.attr == "requires_grad"
    return False


def _is_true(keyword: ast.keyword) -> bool:
    return (
        keyword.arg == "requires_grad"
        and isinstance(keyword.value, ast.Constant)
        and keyword.value.value is True
    )


def _is_made(reading: Reading, function: Function, node: ast.Call) -> bool:
    """Whether `x.requires_grad_()` is of a tensor that this function made."""
    if node.args and isinstance(node.args[0], ast.Constant) and not node.args[0].value:
        return False
    owner: ast.expr | None = node.func.value if isinstance(node.func, ast.Attribute) else None
    if isinstance(owner, ast.Name):
        owner = reading.validation.bound_before(
            owner.id, (node.lineno, node.col_offset + 1), function
        )
    return owner is not None and reading.program.called(owner).rpartition(".")[2] in MADE
