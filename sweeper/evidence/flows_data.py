"""Where data goes in a source: which names of which functions hold some of it.

Data come in by names (val_tokens), by text (fineweb_val_*.bin) and by functions that load them, and
go on through assignments, loops and calls that are known. By name alone, as all of flows.py is.
"""

from __future__ import annotations

import ast
import re
from bisect import bisect_left
from collections.abc import Iterator
from dataclasses import dataclass

from sweeper.evidence.flows import Call, Function, Program, position

# What says how much there is, not what it is.
COUNTING = frozenset(
    {"numel", "size", "dim", "element_size", "nelement", "__len__", "stat", "name"}
)
DESCRIBING = frozenset(
    {"shape", "size", "dtype", "device", "ndim", "nbytes", "name", "itemsize", "stem"}
)
# Where a name is bound, whether only a part of it, and to what.
Entry = tuple[tuple[int, int], bool, ast.expr]
HOLDS_DATA = re.compile(r"load|data|stream|token|batch|iter|reader|shard", re.I)


@dataclass(frozen=True, kw_only=True)
class Source:
    """How data is known where it comes in: names, text in constants, functions that make it."""

    names: re.Pattern[str]
    text: re.Pattern[str] | None = None
    calls: re.Pattern[str] | None = None


class Flow:
    """Which names hold something of a source, in every function, through calls that are known."""

    MOST_ROUNDS = 6

    def __init__(self, program: Program, source: Source) -> None:
        self.program = program
        self.source = source
        self.held: dict[Function, set[str]] = {each: set() for each in program.functions}
        self.given: dict[Function, set[str]] = {each: set() for each in program.functions}
        self.fields: set[tuple[str, str]] = set()  # of a class
        self._bound: dict[Function, dict[str, list[Entry]]] = {}
        self._pairs = {each: list(_bindings(each)) for each in program.functions}
        for _ in range(self.MOST_ROUNDS):
            before = sum(map(len, self.held.values())) + len(self.fields)
            for function in program.functions:
                self._settle(function)
                self._take_fields(function)
            for call in program.calls:
                self._pass_on(call)
            if sum(map(len, self.held.values())) + len(self.fields) == before:
                break

    def holds(self, node: ast.AST | None, function: Function) -> bool:
        """Whether an expression holds something of the source, and not only a count of it."""
        if node is None:
            return False
        return any(self._is_source(each, function) for each in self._parts(node, function))

    def holds_there(self, node: ast.expr, function: Function) -> bool:
        """`holds`, by what each name was last bound to before: a name may be used for many things.

        Where nothing before binds it, it is a parameter, or comes from the round before of a loop.
        """
        waiting, seen = [node], {node}
        while waiting:
            expression = waiting.pop()
            for each in self._parts(expression, function):
                if not isinstance(each, ast.Name):
                    if self._is_source(each, function):
                        return True
                    continue
                if self.source.names.search(each.id):
                    return True
                value = self.bound_before(each.id, position(expression), function)
                if value is None:
                    found = self.given if each.id in function.params else self.held
                    if each.id in found[function]:
                        return True
                elif value not in seen:
                    seen.add(value)
                    waiting.append(value)
        return False

    def bound_before(
        self, name: str, before: tuple[int, int], function: Function, *, whole: bool = False
    ) -> ast.expr | None:
        """What a name was last bound to before a place in a function, by the order of the text.

        What is put into a part of it counts as well, unless the `whole` is asked for.
        """
        entries = self._entries(function).get(name, [])
        for number in range(bisect_left(entries, before, key=_place) - 1, -1, -1):
            _, part, value = entries[number]
            if not (whole and part):
                return value
        return None

    def _entries(self, function: Function) -> dict[str, list[Entry]]:
        """What binds each name of a function, in the order of the text."""
        known = self._bound.get(function)
        if known is None:
            known = self._bound[function] = {}
            for targets, value in self._pairs[function]:
                for target in targets:
                    entry = position(target), isinstance(target, ast.Subscript), value
                    for name in _names_bound(target):
                        known.setdefault(name, []).append(entry)
            for entries in known.values():
                entries.sort(key=_place)
        return known

    def _parts(self, node: ast.AST, function: Function) -> Iterator[ast.AST]:
        """The nodes of an expression that can make it hold something."""
        stack = [node]
        while stack:
            each = stack.pop()
            yield each
            if isinstance(each, ast.Call):
                stack += self._parts_of(each, function)
            elif isinstance(each, ast.Attribute) and each.attr in DESCRIBING:
                continue
            elif not isinstance(each, ast.Lambda):
                stack += ast.iter_child_nodes(each)

    def _is_source(self, node: ast.AST, function: Function) -> bool:
        if isinstance(node, ast.Name):
            return node.id in self.held[function] or bool(self.source.names.search(node.id))
        if isinstance(node, ast.Attribute):
            known = self.source.names.search(node.attr)
            own = isinstance(node.value, ast.Name) and node.value.id in ("self", "cls")
            return bool(known) or (own and (function.owner or "", node.attr) in self.fields)
        if isinstance(node, ast.Constant) and self.source.text is not None:
            return isinstance(node.value, str) and bool(self.source.text.search(node.value))
        if isinstance(node, ast.Call) and self.source.calls is not None:
            last = self.program.called(node).rpartition(".")[2]
            return bool(self.source.calls.search(last))
        return False

    def _parts_of(self, node: ast.Call, function: Function) -> list[ast.AST]:
        """What of a call's parts can make its result hold something."""
        last = self.program.called(node).rpartition(".")[2]
        if last in COUNTING or last in ("len", "range", "isinstance", "print"):
            return []
        known = [each for each, strong in self.program.callees(node, function) if strong]
        if any(each in self.program.evaluating and not _gives_data(each) for each in known):
            return []  # a score
        made = self.program.called(node).partition(".")[0]
        if made in self.program.classes and not HOLDS_DATA.search(made):
            return []  # a thing of many parts
        parts: list[ast.AST] = [*node.args, *[each.value for each in node.keywords]]
        return [*parts, node.func.value] if isinstance(node.func, ast.Attribute) else parts

    def _take_fields(self, function: Function) -> None:
        """What a class is made with by name is taken to be its field of that name."""
        for node in function.nodes:
            if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Name):
                continue
            made = function.owner if node.func.id == "cls" else node.func.id
            if made in self.program.classes:
                for each in node.keywords:
                    if each.arg is not None and self.holds(each.value, function):
                        self.fields.add((made, each.arg))

    def _settle(self, function: Function) -> None:
        """Follow assignments within a function until nothing new holds anything."""
        pairs = self._pairs[function]
        while True:
            before = len(self.held[function]) + len(self.fields)
            for targets, value in pairs:
                if self.holds(value, function):
                    for target in targets:
                        self._hold(target, function)
            if len(self.held[function]) + len(self.fields) == before:
                return

    def _hold(self, target: ast.expr, function: Function) -> None:
        for part in target.elts if isinstance(target, ast.Tuple | ast.List) else [target]:
            while isinstance(part, ast.Subscript | ast.Starred):
                part = part.value
            if isinstance(part, ast.Name) and part.id not in ("self", "cls", "_"):
                self.held[function].add(part.id)
            elif isinstance(part, ast.Tuple | ast.List):
                self._hold(part, function)
            elif isinstance(part, ast.Attribute) and function.owner is not None and _is_self(part):
                self.fields.add((function.owner, part.attr))

    def _pass_on(self, call: Call) -> None:
        if not call.strong:
            return
        for name, value in arguments(call):
            if self.holds(value, call.caller):
                self.held[call.callee].add(name)
                self.given[call.callee].add(name)


def _place(entry: Entry) -> tuple[int, int]:
    return entry[0]


def _names_bound(target: ast.expr) -> Iterator[str]:
    """The names that a target binds, wholly or in a part of them."""
    waiting = [target]
    while waiting:
        each = waiting.pop()
        while isinstance(each, ast.Subscript | ast.Starred):
            each = each.value
        if isinstance(each, ast.Tuple | ast.List):
            waiting += each.elts
        elif isinstance(each, ast.Name):
            yield each.id


def _is_self(node: ast.Attribute) -> bool:
    return isinstance(node.value, ast.Name) and node.value.id == "self"


def _gives_data(function: Function) -> bool:
    return HOLDS_DATA.search(function.name) is not None


def _bindings(function: Function) -> Iterator[tuple[list[ast.expr], ast.expr]]:
    """What is bound in a function, and to what."""
    for node in function.nodes:
        if isinstance(node, ast.Assign):
            for target in node.targets:
                if (
                    isinstance(target, ast.Tuple)
                    and isinstance(node.value, ast.Tuple)
                    and len(target.elts) == len(node.value.elts)
                ):
                    yield from (([a], b) for a, b in zip(target.elts, node.value.elts, strict=True))
                else:
                    yield [target], node.value
        elif isinstance(node, ast.AnnAssign | ast.AugAssign | ast.NamedExpr):
            if node.value is not None:
                yield [node.target], node.value
        elif isinstance(node, ast.For | ast.AsyncFor | ast.comprehension):
            yield from _of_loop(node.target, node.iter)
        elif isinstance(node, ast.withitem) and node.optional_vars is not None:
            yield [node.optional_vars], node.context_expr


def _of_loop(target: ast.expr, iterated: ast.expr) -> Iterator[tuple[list[ast.expr], ast.expr]]:
    """A loop's target, without the number that enumerate puts before it."""
    if isinstance(iterated, ast.Call) and isinstance(iterated.func, ast.Name):
        inner = iterated.args[0] if iterated.args else None
        if iterated.func.id == "enumerate" and isinstance(target, ast.Tuple) and inner is not None:
            yield from _of_loop(target.elts[-1], inner)
            return
        if iterated.func.id == "zip" and isinstance(target, ast.Tuple):
            yield from (([a], b) for a, b in zip(target.elts, iterated.args, strict=False))
            return
    yield [target], iterated


def arguments(call: Call) -> Iterator[tuple[str, ast.expr]]:
    """A call's arguments by the names of the parameters that take them."""
    names = call.callee.params[call.given :]
    yield from zip(names, call.node.args[call.skipped :], strict=False)
    params = set(call.callee.params)
    for keyword in call.node.keywords:
        if keyword.arg in params and keyword.arg is not None:
            yield keyword.arg, keyword.value
