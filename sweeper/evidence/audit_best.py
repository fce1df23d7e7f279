"""A rule about several scores of the same tokens: the lower of them, or the best run of several.

What is a score is known by its name, or by what it was bound to: a loss, or a function that scores.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator

from sweeper.evidence.audit_order import is_loss
from sweeper.evidence.audit_reading import Confidence, Finding, Kind, Reading, calls_in
from sweeper.evidence.flows import Function, names_in, position

SCORES = re.compile(r"bpb|nll|val_loss|bits|ppl|(^|_)loss(es)?(_|$)|score", re.I)
VALIDATED = re.compile(r"bpb|val_|nll", re.I)
BEST = re.compile(r"best|lowest|min", re.I)
LOWEST = frozenset(
    f"{module}.{name}"
    for module in ("torch", "numpy")
    for name in ("min", "amin", "minimum", "fmin", "nanmin")
)
STACKING = frozenset({"torch.stack", "torch.cat", "numpy.stack", "numpy.array", "torch.tensor"})
LOWER = "the lower of two scores is taken"
OF_SEVERAL = "the lowest of several scores is taken"
Judgement = tuple[Confidence, str]


def min_over_passes(reading: Reading) -> Iterator[Finding]:
    """The lower of several scores, token by token or as a whole."""
    for function in reading.program.functions:
        rule = _Rule(reading, function)
        for node in function.nodes:
            found: Judgement | None = None
            if isinstance(node, ast.Call):
                found = rule.of_call(node)
            elif isinstance(node, ast.If):
                found = rule.of_branch(node)
            elif isinstance(node, ast.IfExp | ast.Subscript):
                found = rule.of_choice(node)
            if found is not None:
                yield reading.find(Kind.MIN_OVER_PASSES, node, *found)


class _Rule:
    """One function's expressions."""

    def __init__(self, reading: Reading, function: Function) -> None:
        self.reading = reading
        self.function = function

    # ---- what is a score

    def scores(self, *nodes: ast.expr) -> bool:
        """Whether each of them is a score."""
        return all(self._is_score(each) for each in nodes)

    def _is_score(self, node: ast.expr) -> bool:
        if isinstance(node, ast.Constant):
            return False
        if SCORES.search(_telling(node)) or self._scored(node):
            return True
        names = [each for each in ast.walk(node) if isinstance(each, ast.Name)]
        bound = [
            self.reading.validation.bound_before(each.id, position(node), self.function)
            for each in names[:8]
        ]
        return any(each is not None and self._scored(each) for each in bound)

    def _scored(self, node: ast.expr) -> bool:
        """Whether a loss is worked out there, or a function asked that scores validation tokens."""
        scoring = self.reading.program.evaluating
        if is_loss(self.reading, node):
            return self.function in scoring
        return any(
            callee in scoring and strong
            for call in calls_in(ast.walk(node))
            for callee, strong in self.reading.program.callees(call, self.function)
        )

    def _several(self, node: ast.expr) -> bool:
        """Whether it is several scores: a list of them, or one for each of something."""
        if isinstance(node, ast.List | ast.Tuple):
            return len(node.elts) > 1 and self.scores(*node.elts)
        if isinstance(node, ast.GeneratorExp | ast.ListComp):
            return self._is_score(node.elt)
        if isinstance(node, ast.Call) and self.reading.program.called(node) in STACKING:
            return any(map(self._several, node.args[:1]))
        if not isinstance(node, ast.Name):
            return False
        bound = self.reading.validation.bound_before(node.id, position(node), self.function)
        return bound is not None and bound is not node and self._listed(bound)

    def _listed(self, node: ast.expr) -> bool:
        lists = ast.List | ast.Tuple | ast.GeneratorExp | ast.ListComp
        return isinstance(node, lists) and self._several(node)

    # ---- where one is chosen

    def of_call(self, node: ast.Call) -> Judgement | None:
        called = self.reading.program.called(node)
        if called in LOWEST:
            if len(node.args) == 2 and self.scores(*node.args):
                return Confidence.HIGH, "the lower of two scores is taken, token by token"
            several = len(node.args) > 0 and self._several(node.args[0])
            return (Confidence.HIGH, LOWER) if several else None
        if called == "min" and node.args:
            telling = SCORES if self.function in self.reading.program.evaluating else VALIDATED
            named = all(telling.search(_telling(each)) for each in node.args)
            scored = all(map(self._by_origin, node.args)) or self._several(node.args[0])
            return (Confidence.MEDIUM, OF_SEVERAL) if named or scored else None
        if called in ("torch.where", "numpy.where") and len(node.args) == 3:
            chosen = isinstance(node.args[0], ast.Compare) and self.scores(*node.args[1:])
            return (Confidence.HIGH, LOWER) if chosen else None
        return self._of_method(node) if isinstance(node.func, ast.Attribute) else None

    def _by_origin(self, node: ast.expr) -> bool:
        """Whether a name, whatever it is, stands for what a function scored."""
        return isinstance(node, ast.Name) and self._is_score(node)

    def _of_method(self, node: ast.Call) -> Judgement | None:
        assert isinstance(node.func, ast.Attribute)
        owner, last = node.func.value, node.func.attr
        found = False
        if last in ("minimum", "fmin") and len(node.args) == 1:
            found = self.scores(owner, node.args[0])
        elif last in ("clamp", "clip", "clamp_max", "clamp_", "clamp_max_"):
            most = [each.value for each in node.keywords if each.arg == "max"]
            most = most or (node.args[:1] if last.startswith("clamp_max") else node.args[1:2])
            found = bool(most) and self.scores(owner, *most)
        elif last in ("min", "amin"):
            found = self._several(owner) or (len(node.args) == 1 and self.scores(owner, *node.args))
        return (Confidence.HIGH, LOWER) if found else None

    def of_choice(self, node: ast.IfExp | ast.Subscript) -> Judgement | None:
        """a if a < b else b; sorted([a, b])[0]"""
        if isinstance(node, ast.IfExp):
            compared = isinstance(node.test, ast.Compare)
            two = compared and _compares(node.test, node.body, node.orelse)
            found = two and self.scores(node.body, node.orelse)
            return (Confidence.HIGH, LOWER) if found else None
        first = isinstance(node.slice, ast.Constant) and node.slice.value == 0
        if first and isinstance(node.value, ast.Call) and node.value.args:
            ordered = self.reading.program.called(node.value) == "sorted"
            if ordered and self._several(node.value.args[0]):
                return Confidence.HIGH, LOWER
        return None

    def of_branch(self, node: ast.If) -> Judgement | None:
        """if bpb < best_bpb: what is kept is chosen by its score; if a < b: x = a, else x = b"""
        for each in ast.walk(node.test):
            if not isinstance(each, ast.Compare) or not isinstance(each.ops[0], ast.Lt | ast.LtE):
                continue
            left, right = _telling(each.left), _telling(each.comparators[0])
            if VALIDATED.search(left) and BEST.search(right) and not BEST.search(left):
                why = "what is kept is chosen by its score on validation tokens"
                return Confidence.MEDIUM, why
        given = [_given(block) for block in (node.body, node.orelse)]
        if None in given or not isinstance(node.test, ast.Compare):
            return None
        one, other = [each for each in given if each is not None]
        found = _compares(node.test, one, other) and self.scores(one, other)
        return (Confidence.HIGH, LOWER) if found else None


def _telling(node: ast.expr) -> str:
    return " ".join(sorted(names_in(node)))


def _given(block: list[ast.stmt]) -> ast.expr | None:
    """What a block's only statement binds a name to."""
    if len(block) == 1 and isinstance(block[0], ast.Assign):
        return block[0].value
    return None


def _compares(test: ast.expr, one: ast.expr, other: ast.expr) -> bool:
    """Whether a test compares what is then chosen between."""
    known = names_in(test)
    return bool(names_in(one) & known) and bool(names_in(other) & known)
