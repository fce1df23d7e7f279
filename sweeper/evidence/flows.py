"""What a source's functions call, and which of them evaluate.

All by name, from the syntax tree: a call of `a.step()` may be of any class that has a method `step`
where nothing says what `a` is. Such a call is weak; a strong one is of a function that is known.
What is found here is a reason to read a line, and proves nothing.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from functools import cached_property

# Functions that score, by name.
EVALUATION = re.compile(
    r"^_*(eval|evaluate|validate|val|score|ttt|sliding|test_time|slot)(_|\d|$)"
    r"|_(eval|ttt|bpb|sliding|score|slot)(_|$)|^_*(run_|do_|final_)?(eval|ttt)|ngram|_ppm|ppm_",
    re.I,
)
EVALUATION_CLASS = re.compile(r"^_*(Val(idation|idator)?$|Eval|Scor(er|ing)$|TTT|SLOT)", re.I)
TRAINING = re.compile(r"^_*(main|train|fit|run)(_|$)|_train(_|ing|$)|training", re.I)
# Methods that so many things have that their name says nothing of whose they are.
COMMON = frozenset(
    {"add", "append", "backward", "clear", "close", "copy", "cpu", "cuda", "decode", "encode"}
    | {"eval", "event", "extend", "float", "forward", "get", "half", "index", "insert", "items"}
    | {"join", "keys", "line", "load", "log", "main", "mean", "new", "next", "open", "pop", "put"}
    | {"read", "replace", "reset", "run", "save", "set", "size", "sort", "split", "start"}
    | {"state_dict", "step", "stop", "sum", "to", "train", "update", "values", "view", "write"}
)
# A method that so many classes have says nothing of whose it is.
MOST_OWNERS = 20
AnyFunction = ast.FunctionDef | ast.AsyncFunctionDef


@dataclass(eq=False)
class Function:
    """A function or method of a source with all that is in it; or the source's own top level."""

    name: str
    owner: str | None
    node: AnyFunction | ast.Lambda | ast.Module = field(repr=False)
    nodes: tuple[ast.AST, ...] = field(repr=False)

    @property
    def qualname(self) -> str:
        return f"{self.owner}.{self.name}" if self.owner else self.name

    @cached_property
    def params(self) -> tuple[str, ...]:
        """Its parameters in order, without self."""
        if isinstance(self.node, ast.Module):
            return ()
        args = self.node.args
        names = [each.arg for each in [*args.posonlyargs, *args.args, *args.kwonlyargs]]
        return tuple(names[1:] if names[:1] in (["self"], ["cls"]) else names)

    @property
    def evaluates(self) -> bool:
        """Whether its name, or that of its class, says that it scores."""
        named = EVALUATION.search(self.name) is not None and not TRAINING.search(self.name)
        return named or bool(self.owner and EVALUATION_CLASS.search(self.owner))


@dataclass(frozen=True)
class Call:
    """A call in one function of another that the source defines.

    Where a function is handed on, `node` is the call that it is handed to, and its own arguments
    are what follows it there: all but the first `skipped`. Of its parameters the first `given` have
    their values already, from functools.partial.
    """

    caller: Function
    callee: Function
    node: ast.Call
    strong: bool
    skipped: int = 0
    given: int = 0


class Renamings:
    """Functions of a source by what else they are called: an alias, an entry, a partial.

    By the last part of a name alone: `self.step = update` and `step = update` are one.
    """

    def __init__(self, program: Program) -> None:
        self.program = program
        self.found: dict[str, dict[Function, int]] = {}
        for node in program.nodes:
            if isinstance(node, ast.Assign | ast.AnnAssign) and node.value is not None:
                targets = node.targets if isinstance(node, ast.Assign) else [node.target]
                meant = dict(self._meant(node.value))
                for name in filter(None, map(_last_name, targets)) if meant else ():
                    self.found.setdefault(name, {}).update(meant)

    def of(self, node: ast.expr) -> Iterator[tuple[Function, bool, int]]:
        """What a call of it calls, whether that is sure, and how many arguments it has already."""
        if isinstance(node, ast.Name) and node.id in self.program.own_names:
            return
        held = node
        while isinstance(held, ast.Subscript):
            held = held.value
        here = isinstance(held, ast.Call | ast.Dict | ast.List | ast.Tuple)
        meant = dict(self._meant(held)) if here else self.found.get(_last_name(node) or "", {})
        for function, given in meant.items():
            yield function, len(meant) == 1, given

    def _meant(self, value: ast.expr) -> Iterator[tuple[Function, int]]:
        """The functions that an expression is or holds."""
        if isinstance(value, ast.Name):
            yield from ((each, 0) for each in self.program.named(value.id))
        elif isinstance(value, ast.Dict | ast.List | ast.Tuple):
            for each in value.values if isinstance(value, ast.Dict) else value.elts:
                if isinstance(each, ast.Name):
                    yield from self._meant(each)
        elif self.program.called(value).rpartition(".")[2] in ("partial", "partialmethod"):
            assert isinstance(value, ast.Call)
            for each in value.args[:1]:
                for function, _ in self._meant(each):
                    yield function, len(value.args) - 1


def _last_name(node: ast.expr) -> str | None:
    while isinstance(node, ast.Subscript):
        node = node.value
    if isinstance(node, ast.Attribute):
        return node.attr
    return node.id if isinstance(node, ast.Name) else None


@dataclass(eq=False)
class Program:
    """One source, read. `aliases` are what its imports bring in: flows_spelling.names_of."""

    tree: ast.Module
    aliases: dict[str, str] = field(default_factory=dict)
    functions: list[Function] = field(default_factory=list)
    classes: dict[str, ast.ClassDef] = field(default_factory=dict)
    parents: dict[ast.AST, ast.AST] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.nodes = tuple(ast.walk(self.tree))
        for node in self.nodes:
            self.parents.update((child, node) for child in ast.iter_child_nodes(node))
        self._collect(self.tree, None)
        inside = {each for function in self.functions for each in function.nodes}
        top = tuple(each for each in self.nodes if each not in inside)
        self.top = Function("the top level", None, self.tree, top)
        self.functions.append(self.top)

    def _collect(self, scope: ast.AST, owner: str | None) -> None:
        """Functions that stand in no other; those within belong to it."""
        for node in ast.iter_child_nodes(scope):
            if isinstance(node, AnyFunction):
                self.functions.append(Function(node.name, owner, node, tuple(ast.walk(node))))
            elif isinstance(node, ast.ClassDef):
                self.classes[node.name] = node
                self._collect(node, node.name)
            elif isinstance(node, ast.Assign) and isinstance(node.value, ast.Lambda):
                inside = tuple(ast.walk(node.value))
                for target in node.targets:
                    if isinstance(target, ast.Name):
                        self.functions.append(Function(target.id, owner, node.value, inside))
            elif isinstance(node, ast.stmt | ast.excepthandler):
                self._collect(node, owner)

    # ---- names

    def dotted(self, node: ast.AST) -> str:
        """What an expression names, by its imports: torch.nn.functional.cross_entropy; else ''.

        Of what is no name but has attributes, those: `.step` of `self.opts[0].step`.
        """
        parts: list[str] = []
        while isinstance(node, ast.Attribute):
            parts.append(node.attr)
            node = node.value
        if isinstance(node, ast.Name):
            parts.append(self.aliases.get(node.id, node.id))
        elif parts:
            parts.append("")
        return ".".join(reversed(parts))

    def called(self, node: ast.AST) -> str:
        """The dotted name of what a call calls; '' for all else."""
        return self.dotted(node.func) if isinstance(node, ast.Call) else ""

    def ancestors(self, node: ast.AST, stop: ast.AST | None = None) -> Iterator[ast.AST]:
        """What a node stands in, innermost first, up to `stop`."""
        while (parent := self.parents.get(node)) is not None and node is not stop:
            yield parent
            node = parent

    # ---- calls

    @cached_property
    def calls(self) -> list[Call]:
        return [call for function in self.functions for call in self._calls_of(function)]

    @cached_property
    def calls_from(self) -> dict[Function, list[Call]]:
        found: dict[Function, list[Call]] = {each: [] for each in self.functions}
        for call in self.calls:
            found[call.caller].append(call)
        return found

    @cached_property
    def calls_to(self) -> dict[Function, list[Call]]:
        found: dict[Function, list[Call]] = {each: [] for each in self.functions}
        for call in self.calls:
            found[call.callee].append(call)
        return found

    def _calls_of(self, function: Function) -> Iterator[Call]:
        for node in function.nodes:
            if not isinstance(node, ast.Call):
                continue
            for callee, strong in self.callees(node, function):
                yield Call(function, callee, node, strong)
            for callee, strong, count in self.renamings.of(node.func):
                yield Call(function, callee, node, strong, given=count)
            # A function that is handed on is called by whoever takes it.
            given = [*node.args, *[keyword.value for keyword in node.keywords]]
            for number, each in enumerate(given, 1):
                if isinstance(each, ast.Name):
                    for callee in self._named.get((None, each.id), ()):
                        yield Call(function, callee, node, True, number)

    @cached_property
    def renamings(self) -> Renamings:
        return Renamings(self)

    def named(self, name: str) -> list[Function]:
        """The functions of that name that are no methods."""
        return self._named.get((None, name), [])

    @cached_property
    def own_names(self) -> set[str]:
        """The functions and classes that it defines by name."""
        return {name for owner, name in self._named if owner is None} | set(self.classes)

    @cached_property
    def _named(self) -> dict[tuple[str | None, str], list[Function]]:
        found: dict[tuple[str | None, str], list[Function]] = {}
        for each in self.functions:
            found.setdefault((each.owner, each.name), []).append(each)
        return found

    @cached_property
    def _methods(self) -> dict[str, list[Function]]:
        found: dict[str, list[Function]] = {}
        for each in self.functions:
            if each.owner is not None:
                found.setdefault(each.name, []).append(each)
        return found

    def callees(self, node: ast.Call, function: Function) -> list[tuple[Function, bool]]:
        target = node.func
        if isinstance(target, ast.Name):
            known = self._named.get((None, target.id), [])
            if target.id in self.classes:
                known = self._named.get((target.id, "__init__"), [])
            return [(each, True) for each in known]
        if not isinstance(target, ast.Attribute):
            return []
        owner = self.type_of(target.value, function)
        if owner is not None:
            return [(each, True) for each in self._of_class(owner, target.attr)]
        if self._is_module(target.value):
            return []
        methods = self._methods.get(target.attr, [])
        if len(methods) > MOST_OWNERS:
            return []
        strong = len(methods) == 1 and target.attr not in COMMON
        return [(each, strong) for each in methods]

    def _is_module(self, node: ast.expr) -> bool:
        return isinstance(node, ast.Name) and node.id in self.aliases

    def _of_class(self, owner: str, method: str) -> list[Function]:
        seen: set[str] = set()
        while owner not in seen and owner in self.classes:
            seen.add(owner)
            found = self._named.get((owner, method), [])
            bases = [self.dotted(each) for each in self.classes[owner].bases]
            if found or not bases:
                return found
            owner = bases[0]
        return []

    def type_of(self, node: ast.expr, function: Function, depth: int = 0) -> str | None:
        """The class of this source that an expression is most likely of."""
        if depth > 6:
            return None
        if isinstance(node, ast.Name):
            if node.id in ("self", "cls"):
                return function.owner
            if node.id in self.classes:
                return node.id
            value = self._assigned(function).get(node.id)
            if value is not None:
                return self.type_of(value, function, depth + 1)
            return self._by_annotation(node.id, function) or self._by_name(node.id)
        if isinstance(node, ast.Attribute):
            return self._by_name(node.attr)
        if isinstance(node, ast.Call):
            made = self.dotted(node.func).partition(".")[0]
            return made if made in self.classes else None
        return None

    def _assigned(self, function: Function) -> dict[str, ast.expr]:
        cache = self._assignments
        if function not in cache:
            cache[function] = {
                target.id: node.value
                for node in function.nodes
                if isinstance(node, ast.Assign)
                for target in node.targets
                if isinstance(target, ast.Name)
            }
        return cache[function]

    @cached_property
    def _assignments(self) -> dict[Function, dict[str, ast.expr]]:
        return {}

    def _by_annotation(self, name: str, function: Function) -> str | None:
        if isinstance(function.node, ast.Module):
            return None
        args = function.node.args
        for each in [*args.posonlyargs, *args.args, *args.kwonlyargs]:
            if each.arg == name and isinstance(each.annotation, ast.Name):
                return each.annotation.id if each.annotation.id in self.classes else None
        return None

    @cached_property
    def _lower(self) -> dict[str, str]:
        return {name.lower().strip("_"): name for name in self.classes}

    def _by_name(self, name: str) -> str | None:
        return self._lower.get(name.lower().replace("_", ""))

    # ---- reach

    def reached(self, roots: Iterable[Function], *, weak: bool = False) -> set[Function]:
        """Roots and what they call, by strong calls; `weak`: by any. Training is not entered."""
        found = set(roots)
        waiting = list(found)
        while waiting:
            for call in self.calls_from[waiting.pop()]:
                entered = call.strong or weak
                if entered and call.callee not in found and not TRAINING.search(call.callee.name):
                    found.add(call.callee)
                    waiting.append(call.callee)
        return found

    @cached_property
    def evaluating(self) -> set[Function]:
        """The functions that score by their name, or assign a BPB that they work out."""
        return {each for each in self.functions if each.evaluates or self._computes_bpb(each)}

    def _computes_bpb(self, function: Function) -> bool:
        if function is self.top or TRAINING.search(function.name):
            return False
        return any(
            isinstance(node, ast.Assign)
            and isinstance(node.value, ast.BinOp)
            and any(isinstance(t, ast.Name) and "bpb" in t.id.lower() for t in node.targets)
            for node in function.nodes
        )


def names_in(node: ast.AST) -> set[str]:
    """All names and attributes in an expression."""
    return {each.id for each in ast.walk(node) if isinstance(each, ast.Name)} | {
        each.attr for each in ast.walk(node) if isinstance(each, ast.Attribute)
    }


def position(node: ast.AST) -> tuple[int, int]:
    """Where a node begins: line and column."""
    return getattr(node, "lineno", 0), getattr(node, "col_offset", 0)
