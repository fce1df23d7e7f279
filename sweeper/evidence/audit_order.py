"""Which comes first in an evaluation that learns: a token's score, or what is learned from it.

By the order of the text: within the innermost loop that has both, else of the loops. A score counts
from where the model was asked for it, not from where it is added up.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterable, Iterator

from sweeper.evidence.audit_reading import LOSS_CALLS, LOSS_NAMES, Order, Reading, loops_around
from sweeper.evidence.flows import Call, Function, names_in, position

DEEPEST, MOST_CALLS = 3, 40  # calls outwards, and of one function
NO_SCORE = re.compile(r"train|ttt_?loss|adapt|inner|count|token|byte|_lr$", re.I)
LOGARITHMS = frozenset(
    f"{module}.{name}" for module in ("math", "numpy", "torch") for name in ("log", "log2")
)
OPTIMISERS = re.compile(r"opt|sgd|adam|muon", re.I)
# Gradients that are no method of their loss.
FREE = frozenset({"torch.func.grad", "torch.func.grad_and_value"})
TENSORS = frozenset({"torch.Tensor", "torch._tensor.Tensor"})
# A name by which models are asked; `base_model`, `compiled_logits` and `fwd` among them.
MODELS = re.compile(r"model|logits|forward|net(work)?$|gpt|fwd", re.I)


def order_of(
    reading: Reading, function: Function, update: ast.AST, reads: Iterable[ast.AST] = ()
) -> Order:
    """Whether scores come before an update. `reads` are those of what is updated, if known."""
    found = list(reads) or scores_of(reading, function)
    asked = [(each, _origin(reading, function, each)) for each in found]
    asked = [(each, origin) for each, origin in asked if origin is not update]
    if asked:
        return _compare(reading, function, update, asked)
    return _by_callers(reading, function, {function})


def _by_callers(reading: Reading, function: Function, seen: set[Function]) -> Order:
    """An update in a function of its own: by where that is called."""
    orders = set()
    for call in reading.program.calls_to[function][:MOST_CALLS]:
        if not call.strong or call.caller in seen:
            continue
        scores = [each for each in scores_of(reading, call.caller) if each is not call.node]
        asked = [(each, _origin(reading, call.caller, each)) for each in scores]
        if asked:
            orders.add(_compare(reading, call.caller, call.node, asked))
        elif len(seen) < DEEPEST:
            orders.add(_by_callers(reading, call.caller, seen | {call.caller}))
    if Order.UPDATE_FIRST in orders:
        return Order.UPDATE_FIRST
    return orders.pop() if len(orders) == 1 else Order.UNCLEAR


def _compare(
    reading: Reading,
    function: Function,
    update: ast.AST,
    asked: list[tuple[ast.AST, ast.AST]],
) -> Order:
    for loop in loops_around(reading, update, function):
        inside = [origin for each, origin in asked if loop in loops_around(reading, each, function)]
        if inside:
            return _order({position(each) < position(update) for each in inside})
    return _order({position(origin) < position(update) for _, origin in asked}, last=True)


def _order(before: set[bool], *, last: bool = False) -> Order:
    """By whether each score is before; `last`: of several apart, a later one is the headline."""
    if before == {True}:
        return Order.SCORE_FIRST
    if before == {False} or last:
        return Order.UPDATE_FIRST
    return Order.UNCLEAR


def scores_of(reading: Reading, function: Function) -> list[ast.AST]:
    """Where a function adds up losses, or has another function score."""
    known = reading.scores.get(function)
    if known is None:
        known = reading.scores[function] = list(_scores(reading, function))
    return known


def _scores(reading: Reading, function: Function) -> Iterator[ast.AST]:
    for node in function.nodes:
        if isinstance(node, ast.AugAssign) and isinstance(node.op, ast.Add | ast.Sub):
            added: tuple[ast.expr, ast.expr] | None = node.target, node.value
        else:
            added = _appended(node)
        if added is not None and _is_score(reading, function, *added):
            yield node
    yield from (call.node for call in _scorers(reading, function))


def _appended(node: ast.AST) -> tuple[ast.expr, ast.expr] | None:
    """The list and what is appended to it, where a node does that."""
    if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Attribute):
        return None
    if node.func.attr not in ("append", "extend") or not node.args:
        return None
    return node.func.value, node.args[0]


def _scorers(reading: Reading, function: Function) -> list[Call]:
    scoring = reading.program.evaluating
    return [
        call
        for call in reading.program.calls_from[function]
        if call.callee in scoring and call.strong and not updates_of(reading, call.callee)
    ]


def _is_score(reading: Reading, function: Function, target: ast.expr, value: ast.expr) -> bool:
    names = names_in(target)
    if any(NO_SCORE.search(each) for each in names):
        return False
    if any(LOSS_NAMES.search(each) for each in names):
        return True
    if is_loss(reading, value):
        return True
    # By what a name in it was bound to: a minified source says nothing by its names.
    bound = [
        reading.validation.bound_before(each.id, position(value), function)
        for each in ast.walk(value)
        if isinstance(each, ast.Name)
    ]
    return any(each is not None and is_loss(reading, each) for each in bound)


def is_loss(reading: Reading, value: ast.expr) -> bool:
    called = [reading.program.called(each) for each in ast.walk(value)]
    return any(each in LOGARITHMS or LOSS_CALLS.search(each.rpartition(".")[2]) for each in called)


def _origin(reading: Reading, function: Function, score: ast.AST, depth: int = 0) -> ast.AST:
    """Where the model was asked for what a score adds up: back along the names in it."""
    value = score
    if isinstance(score, ast.AugAssign):
        value = score.value
    elif depth == 0:
        appended = _appended(score)
        if appended is None:  # the call of a function that scores, or a table that is read
            return score
        value = appended[1]
    if depth > 8 or any(_asks(reading, each) for each in ast.walk(value)):
        return value
    for name in sorted(each.id for each in ast.walk(value) if isinstance(each, ast.Name)):
        bound = reading.validation.bound_before(name, position(score), function)
        if bound is not None and bound is not value and _leads(reading, function, bound, name):
            return _origin(reading, function, bound, depth + 1)
    return value


def _leads(reading: Reading, function: Function, bound: ast.expr, name: str) -> bool:
    """Whether what a name is bound to is on the way to a score."""
    if LOSS_NAMES.search(name) or re.search(r"logit|prob|(^|_)p(_|$)|out", name, re.I):
        return True
    return any(
        _asks(reading, each) or LOSS_CALLS.search(reading.program.called(each).rpartition(".")[2])
        for each in ast.walk(bound)
    )


def _asks(reading: Reading, node: ast.AST) -> bool:
    """Whether a node is a call of a model."""
    called = reading.program.called(node)
    if not called or called.startswith(("torch.", "numpy.")):
        return False
    *owners, last = called.split(".")
    if last in ("eval", "train", "parameters", "named_parameters", "state_dict", "to", "modules"):
        return False
    return MODELS.search(last) is not None and (not owners or last != "load_state_dict")


# ---- updates


def updates_of(reading: Reading, function: Function) -> dict[ast.Call, ast.expr | None]:
    """The calls of a function that change weights, or take gradients: backward, grad, step.

    Each with what it takes the gradient of; None for a step, which does not say.
    """
    known = reading.updates.get(function)
    if known is None:
        known = reading.updates[function] = dict(_updates(reading, function))
    return known


def _updates(reading: Reading, function: Function) -> Iterator[tuple[ast.Call, ast.expr | None]]:
    if function.owner is not None and is_machinery(reading, function.owner):
        return
    for node in function.nodes:
        if not isinstance(node, ast.Call):
            continue
        asked = _asked(reading, function, node)
        called = reading.program.dotted(asked)
        owner, _, last = called.rpartition(".")
        first = node.args[0] if node.args else None
        if called in FREE or called.endswith(("autograd.grad", "autograd.backward")):
            yield node, first
        elif last == "backward" and isinstance(asked, ast.Attribute):
            yield node, first if owner in TENSORS else asked.value
        elif (last == "step" and OPTIMISERS.search(_receiver(asked, owner))) or (
            last in ("add_", "sub_", "addcdiv_") and _of_gradient(node)
        ):
            yield node, None


def _asked(reading: Reading, function: Function, node: ast.Call) -> ast.expr:
    """What a call is of; of a name that stands for a method, that: go = loss.backward."""
    if not isinstance(node.func, ast.Name):
        return node.func
    bound = reading.validation.bound_before(node.func.id, position(node), function, whole=True)
    return bound if isinstance(bound, ast.Attribute) else node.func


def _receiver(asked: ast.expr, owner: str) -> str:
    if owner or not isinstance(asked, ast.Attribute):
        return owner
    return " ".join(sorted(names_in(asked.value)))


def _of_gradient(node: ast.Call) -> bool:
    return any("grad" in names_in(each) for each in node.args)


def is_machinery(reading: Reading, owner: str) -> bool:
    """Optimisers and autograd functions, whose own methods are how any update is made."""
    bases = [reading.program.dotted(each) for each in reading.program.classes[owner].bases]
    return any("Optimizer" in each or "autograd.Function" in each for each in bases)
