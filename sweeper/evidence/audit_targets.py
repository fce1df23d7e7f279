"""Rules about evaluations that know too much: caches of tokens, and predictions that see targets.

Each is a function from a layer's reading to findings.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator

from sweeper.evidence.audit_order import is_machinery, order_of
from sweeper.evidence.audit_reading import (
    Confidence,
    Finding,
    Kind,
    Reading,
    calls_in,
    loops_around,
)
from sweeper.evidence.audit_scoring import SAYS
from sweeper.evidence.flows import Function, names_in, position

TABLE = re.compile(
    r"n_?gram|cache|count|ctx|table|hash|ppm|trie|freq|bigram|histor|hist$|memory|lookup|bucket",
    re.I,
)
CACHE_CLASS = re.compile(r"n_?gram|cache|ppm|mixer|blend|memory|trie|hedge", re.I)
KV_CACHE = re.compile(r"(^|_)(kv|k|v|cos|sin|rope|rotary|mask)_?cache", re.I)
# What fills a table at places that data choose.
FILLING = frozenset({"scatter_add_", "scatter_", "index_add_", "index_put_", "scatter_reduce_"})
PLACING = FILLING | {"scatter", "scatter_add", "index_add", "index_put"}
COUNTERS = frozenset({"numpy.add.at", "numpy.bincount", "torch.bincount", "torch.histc"})
DICTS = frozenset({"dict", "defaultdict", "Counter", "OrderedDict"})
DISTRIBUTION = re.compile(
    r"logit|prob|(^|_)p(_|\d|$)|log_?p|dist(ribution)?(_|$)|softmax|pred", re.I
)
EMBEDDING = re.compile(r"(^|_)(emb|embed|embeds|embedding|embeddings|wte)(_|$)", re.I)
ALTERED = "a prediction is altered at the place of the target"
UNNORMALISED = (
    "a table is read at a key that holds the target: nothing here shows that the probabilities of "
    "all tokens sum to one"
)
SIZES = re.compile(r"lut|byte|space|boundary|piece|len|width|weight_table", re.I)


def ngram_cache(reading: Reading) -> Iterator[Finding]:
    """Tables that are filled from validation tokens while they are scored."""
    seen: set[tuple[Function, ast.AST]] = set()
    for function in _functions(reading):
        for node, table in _fillings(reading, function):
            if any(KV_CACHE.search(each) for each in names_in(table)):
                continue
            loops = loops_around(reading, node, function)
            place = loops[-1] if loops else function.node
            if (function, place) in seen:
                continue  # one table, filled for several orders
            seen.add((function, place))
            order = order_of(reading, function, node, _reads(reading, function, node, table))
            said = " ".join([function.qualname, *sorted(names_in(table))])
            # A tally that nothing here reads may be there to be shown.
            tally = isinstance(node, ast.Call) and getattr(node.func, "attr", "") in FILLING
            read = not tally or bool(_reads(reading, function, node, table))
            confidence = Confidence.HIGH if TABLE.search(said) and read else Confidence.MEDIUM
            why = f"{function.qualname} fills a table by tokens that it scores; {SAYS[order]}"
            yield reading.find(Kind.NGRAM_CACHE, node, confidence, why, order)


def _functions(reading: Reading) -> list[Function]:
    """What runs in evaluation; and the methods of what is a cache by its name."""
    found = {
        each
        for each in reading.program.functions
        if each.owner is not None
        and CACHE_CLASS.search(each.owner)
        and reading.validation.given[each]
    } | {each for each in reading.program.functions if _is_given_while_scoring(reading, each)}
    return sorted(found | reading.evaluating, key=lambda each: position(each.node))


def _is_given_while_scoring(reading: Reading, function: Function) -> bool:
    return bool(reading.validation.given[function]) and TABLE.search(function.name) is not None


def _fillings(reading: Reading, function: Function) -> Iterator[tuple[ast.AST, ast.expr]]:
    """Where a table takes in tokens, and the table."""
    holds = reading.validation.holds
    for node in function.nodes:
        if isinstance(node, ast.Call):
            called = reading.program.called(node)
            last = called.rpartition(".")[2]
            if called in COUNTERS and any(holds(each, function) for each in node.args):
                yield node, node.args[0]
            elif isinstance(node.func, ast.Attribute) and any(
                holds(each, function) for each in node.args
            ):
                table = node.func.value
                counter = last == "update" and _is_dict(reading, function, table)
                kept = last in ("append", "add") and _is_entry(reading, function, table)
                if last in FILLING or counter or kept:
                    yield node, table
        elif isinstance(node, ast.AugAssign) and _is_entry(reading, function, node.target):
            yield node, node.target
        elif isinstance(node, ast.Assign):
            for target in node.targets:
                entry = isinstance(target, ast.Subscript) and _is_entry(reading, function, target)
                if entry and _is_dict(reading, function, target):
                    yield node, target


def _is_entry(reading: Reading, function: Function, node: ast.expr) -> bool:
    """Whether an expression is an entry at a key that holds tokens."""
    if not isinstance(node, ast.Subscript):
        return False
    if reading.validation.holds(node.slice, function) and not _is_mask(node.slice):
        return not any(DISTRIBUTION.search(each) for each in names_in(node.value))
    return _is_entry(reading, function, node.value)


def _is_mask(node: ast.expr) -> bool:
    masks = re.compile(r"mask|valid|match|keep|has_|is_", re.I)
    return isinstance(node, ast.Compare | ast.Slice) or any(masks.search(n) for n in names_in(node))


def _is_dict(reading: Reading, function: Function, node: ast.expr, depth: int = 0) -> bool:
    """Whether an expression is a dict made here, one of a table's, or named as tables are."""
    if depth > 6:
        return False
    while isinstance(node, ast.Subscript):
        node = node.value
    if isinstance(node, ast.List | ast.ListComp):
        parts = node.elts[:1] if isinstance(node, ast.List) else [node.elt]
        return any(_is_dict(reading, function, each, depth + 1) for each in parts)
    if isinstance(node, ast.Dict | ast.DictComp):
        return True
    if isinstance(node, ast.Call):
        if reading.program.called(node).rpartition(".")[2] in DICTS:
            return True
        method = node.func.attr if isinstance(node.func, ast.Attribute) else ""
        if method == "setdefault":  # which only dicts have
            return True
        if method != "get" or not isinstance(node.func, ast.Attribute):
            return False
        return _is_dict(reading, function, node.func.value, depth + 1)
    if isinstance(node, ast.Attribute) and node.attr in _dicts_of(reading, function.owner):
        return True
    if isinstance(node, ast.Name):
        bound = reading.validation.bound_before(node.id, (1 << 30, 0), function, whole=True)
        if bound is not None and bound is not node:
            return _is_dict(reading, function, bound, depth + 1)
    return any(TABLE.search(each) for each in names_in(node))


def _dicts_of(reading: Reading, owner: str | None) -> set[str]:
    """The fields of a class that it makes as dicts."""
    return {
        target.attr
        for function in reading.program.functions
        if owner is not None and function.owner == owner
        for node in function.nodes
        if isinstance(node, ast.Assign) and _makes_dict(reading, node.value)
        for target in node.targets
        if isinstance(target, ast.Attribute)
    }


def _makes_dict(reading: Reading, value: ast.expr) -> bool:
    made = reading.program.called(value).rpartition(".")[2]
    return isinstance(value, ast.Dict | ast.DictComp) or made in DICTS


def _reads(
    reading: Reading, function: Function, filling: ast.AST, table: ast.expr
) -> list[ast.AST]:
    """Where the same table is read in the function, but for what fills it."""
    root: ast.expr = table
    while isinstance(root, ast.Subscript):
        root = root.value
    name = root.id if isinstance(root, ast.Name) else getattr(root, "attr", "")
    inside = set(ast.walk(filling))
    return [
        node
        for node in function.nodes
        if node not in inside
        and isinstance(node, ast.Subscript)
        and isinstance(node.ctx, ast.Load)
        and name in names_in(node.value)
        and not _is_filled(reading, node)
    ]


def _is_filled(reading: Reading, node: ast.AST) -> bool:
    """Whether a table stands where it is filled: as what np.add.at adds to."""
    parent = reading.program.parents.get(node)
    return isinstance(parent, ast.Call) and reading.program.called(parent) in COUNTERS


# ---- predictions that see what they predict


def target_lookup(reading: Reading) -> Iterator[Finding]:
    """Predictions that depend on the token to be predicted, other than by being read off at it."""
    for function in reading.program.functions:
        if not predicts(reading, function):
            continue
        for node in function.nodes:
            why = _seen(reading, function, node)
            if why is not None:
                yield reading.find(Kind.TARGET_LOOKUP, node, why[0], why[1])


def predicts(reading: Reading, function: Function) -> bool:
    """Whether a function makes predictions that are scored: an evaluation, a model's forward."""
    # A gradient that is written by hand has the target in it.
    if function.owner is not None and is_machinery(reading, function.owner):
        return False
    models = function.name in ("forward", "forward_logits", "__call__") and function.owner
    return function in reading.evaluating or bool(models)


def _seen(reading: Reading, function: Function, node: ast.AST) -> tuple[Confidence, str] | None:
    """How a node lets a prediction see its target, if it does."""
    if isinstance(node, ast.Assign | ast.AugAssign):
        targets = node.targets if isinstance(node, ast.Assign) else [node.target]
        if any(_is_altered(reading, function, each) for each in targets):
            return Confidence.HIGH, ALTERED
    elif isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
        last = node.func.attr
        indices = node.args[1:2] if last in PLACING else node.args
        at_target = any(holds_target(reading, function, each) for each in indices)
        if at_target and last in PLACING and is_prediction(node.func.value):
            return Confidence.HIGH, ALTERED
        if at_target and EMBEDDING.search(last):
            return Confidence.HIGH, "the model is given an embedding of the target"
    elif isinstance(node, ast.BinOp) and _is_raised(reading, function, node):
        return Confidence.HIGH, ALTERED
    elif isinstance(node, ast.Subscript) and _is_read_at_target(reading, function, node):
        return Confidence.MEDIUM, UNNORMALISED
    return None


def _is_altered(reading: Reading, function: Function, target: ast.expr) -> bool:
    return (
        isinstance(target, ast.Subscript)
        and is_prediction(target.value)
        and holds_target(reading, function, target.slice)
    )


def _is_raised(reading: Reading, function: Function, node: ast.BinOp) -> bool:
    """logits + bonus * one_hot(target)"""
    for one, other in ((node.left, node.right), (node.right, node.left)):
        hot = [
            call for call in calls_in(ast.walk(other)) if "one_hot" in reading.program.called(call)
        ]
        at_target = any(
            holds_target(reading, function, each) for call in hot for each in call.args[:1]
        )
        if at_target and isinstance(node.op, ast.Add | ast.Sub) and is_prediction(one):
            return True
    return False


def _is_read_at_target(reading: Reading, function: Function, node: ast.Subscript) -> bool:
    table = " ".join(sorted(names_in(node.value)))
    return (
        isinstance(node.ctx, ast.Load)
        and function in reading.evaluating
        and TABLE.search(table) is not None
        and SIZES.search(table) is None
        and holds_target(reading, function, node.slice)
    )


def is_prediction(node: ast.expr) -> bool:
    """Whether it is one by its name."""
    return any(DISTRIBUTION.search(each) for each in names_in(node))


def holds_target(reading: Reading, function: Function, node: ast.expr) -> bool:
    """Whether it holds tokens to be predicted, and not only where they are to be left out."""
    return reading.targets.holds(node, function) and not _is_mask(node)
