"""A script's source behind whatever wraps it: layer by layer, and nothing of it executed.

A counted train_gpt.py is often a few lines that decompress a text and `exec` it, at times several
times over. Each such call is worked out from the syntax tree (unpack_values.py); what it would
execute is the next layer. What cannot be worked out is a problem with its line.
"""

from __future__ import annotations

import ast
import re
from collections import Counter
from dataclasses import dataclass
from typing import Any

from sweeper.evidence.flows_spelling import bindings, names_of
from sweeper.evidence.unpack_codecs import Budget, TooLargeError, UnknownValueError
from sweeper.evidence.unpack_nodes import (
    asked_by_name,
    blocks,
    changed_later,
    is_exec,
    names_in_target,
    own_nodes,
)
from sweeper.evidence.unpack_source import decode, parse, says_anything
from sweeper.evidence.unpack_values import MODULES, UNBOUND, Code, Evaluator, Name
from sweeper.evidence.unpack_ways import changes_names, other_ways

MOST_LAYERS = 10
WORTH_READING = 400  # characters of a text that is written out, to be taken for a script
LINE_ENDS = re.compile(r"\r\n|\r|\n")
# What is compiled is executed somewhere.
EXECUTING = frozenset({"builtins.exec", "builtins.eval", "builtins.compile"})


@dataclass(frozen=True, kw_only=True)
class Layer:
    """One source of a script; layer 0 is the file itself.

    `at` is the line in layer `parent` that executes this one. `tree` is None where the source is
    no Python.
    """

    number: int
    source: str
    encoding: str
    bytes: int
    how: str
    parent: int | None = None
    at: int | None = None
    tree: ast.Module | None = None

    @property
    def lines(self) -> list[str]:
        """Its lines, numbered as a syntax tree numbers them."""
        return LINE_ENDS.split(self.source)


@dataclass(frozen=True, kw_only=True)
class Problem:
    """What could not be read: a line of a layer, the call there, and why."""

    layer: int
    line: int
    call: str
    why: str


@dataclass(frozen=True, kw_only=True)
class Unpacked:
    """All layers of a script, and what could not be unpacked."""

    bytes: int
    layers: tuple[Layer, ...]
    problems: tuple[Problem, ...] = ()

    @property
    def wrapped(self) -> bool:
        return len(self.layers) > 1


def unpack(data: bytes) -> Unpacked:
    """All layers of a script. Whatever the bytes are, it returns: what fails is a problem."""
    return _Unpacking(data).run()


class _Unpacking:
    def __init__(self, data: bytes) -> None:
        self.data = data
        self.budget = Budget()
        self.layers: list[Layer] = []
        self.problems: list[Problem] = []

    def run(self) -> Unpacked:
        self._add(self.data, "the file itself", None, None)
        done = 0
        while done < len(self.layers):
            layer = self.layers[done]
            if layer.tree is not None:
                self._read(layer, layer.tree)
            done += 1
        return Unpacked(
            bytes=len(self.data), layers=tuple(self.layers), problems=tuple(self.problems)
        )

    def _read(self, layer: Layer, tree: ast.Module) -> None:
        reader = _Reader(self, layer)
        try:
            reader.read_block(tree.body)
            reader.find_other_ways()
        except RecursionError:
            self.fail(layer.number, 1, "the source", "nested too deeply to be read")

    def _add(self, source: str | bytes, how: str, parent: int | None, at: int | None) -> None:
        if len(self.layers) >= MOST_LAYERS:
            self.fail(parent or 0, at or 1, "exec", f"more than {MOST_LAYERS} layers")
            return
        if isinstance(source, bytes):
            text, encoding = decode(source)
        else:
            text, encoding = source, "text"
        number = len(self.layers)
        tree = None
        try:
            tree = parse(text)
            if number == 0 and not says_anything(tree):
                self.fail(number, 1, "the source", "there is nothing in it")
        except ValueError as error:
            self.fail(number, 1, "the source", str(error))
        self.layers.append(
            Layer(
                number=number,
                source=text,
                encoding=encoding,
                bytes=len(source if isinstance(source, bytes) else text.encode("utf-8", "replace")),
                how=how,
                parent=parent,
                at=at,
                tree=tree,
            )
        )

    def add_found(self, source: str | bytes, how: str, layer: Layer, line: int) -> None:
        """Take in what a layer executes, once."""
        text = decode(source)[0] if isinstance(source, bytes) else source
        if all(text != each.source for each in self.layers):
            self._add(source, how, layer.number, line)

    def fail(self, layer: int, line: int, call: str, why: str) -> None:
        self.problems.append(Problem(layer=layer, line=line, call=call, why=why))


class _Reader:
    """Goes through a layer's statements in their order, binding names and taking in what runs."""

    def __init__(self, unpacking: _Unpacking, layer: Layer) -> None:
        self.unpacking = unpacking
        self.layer = layer
        self.evaluator = Evaluator(own=unpacking.data, budget=unpacking.budget)
        assert layer.tree is not None
        self.imported = names_of(layer.tree)
        counted = Counter(bindings(ast.walk(layer.tree)))
        self.rebound = {name for name, times in counted.items() if times > 1}
        # What a function may change at any time is never known.
        self.shared = {
            name
            for node in ast.walk(layer.tree)
            if isinstance(node, ast.Global | ast.Nonlocal)
            for name in node.names
        }

    def find_other_ways(self) -> None:
        """What may execute something and is no plain call of exec."""
        assert self.layer.tree is not None
        own = {
            node.name
            for node in ast.walk(self.layer.tree)
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef)
        }
        for line, why in other_ways(self.layer.tree, self.imported, own):
            self.unpacking.fail(self.layer.number, line, "what runs", why)

    def read_block(self, statements: list[ast.stmt]) -> None:
        for statement in statements:
            if isinstance(statement, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
                self._bind(statement.name, None)
                self._read_apart(statement.body, statement)
                self._read(statement)
            elif isinstance(statement, ast.With | ast.AsyncWith):
                self._read(statement)
                self.read_block(statement.body)
            else:
                self._read_branches(statement)
                self._read(statement)

    def _read_branches(self, statement: ast.stmt) -> None:
        """Blocks that may run or not, or many times: a name that they change is not known after."""
        for node in ast.walk(statement) if isinstance(statement, ast.Match) else ():
            for name in (getattr(node, "name", None), getattr(node, "rest", None)):
                if isinstance(name, str):
                    self._bind(name, None)
        if isinstance(statement, ast.For | ast.AsyncFor | ast.While):
            for node in ast.walk(statement):
                if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
                    self._bind(node.id, None)
        for handler in getattr(statement, "handlers", []):
            if handler.name is not None:
                self._bind(handler.name, None)
        for block in blocks(statement):
            since = len(self.evaluator.journal)
            self.read_block(block)
            before: dict[str, Any] = {}
            for name, value in self.evaluator.journal[since:]:
                before.setdefault(name, value)
            for name, value in before.items():
                if value is not UNBOUND and self.evaluator.names.get(name) is not value:
                    self._bind(name, None)

    def _read_apart(self, block: list[ast.stmt], owner: ast.stmt) -> None:
        """A function's body, whose names are its own; its parameters are not known."""
        since = len(self.evaluator.journal)
        if isinstance(owner, ast.FunctionDef | ast.AsyncFunctionDef):
            for each in ast.walk(owner.args):
                if isinstance(each, ast.arg):
                    self._bind(each.arg, None)
            for name in changed_later(block, self.rebound):
                self._bind(name, None)
        self.read_block(block)
        self.evaluator.undo(since)

    def _read(self, statement: ast.stmt) -> None:
        found = own_nodes(statement, self.rebound)
        nodes = [node for node, _ in found]
        self._read_calls(found)
        by_name = set(asked_by_name(nodes))
        for node in nodes:
            changed = changes_names(node, self.imported) or self._sets_module(node, by_name)
            self.evaluator.changed |= changed
            # It may have been evaluated or not, and more than once.
            if isinstance(node, ast.NamedExpr):
                self._bind(node.target.id, None)
        if isinstance(statement, ast.Import | ast.ImportFrom):
            self._read_import(statement)
        elif isinstance(statement, ast.Assign):
            for target in statement.targets:
                self._assign(target, statement.value)
        elif isinstance(statement, ast.AnnAssign) and statement.value is not None:
            self._assign(statement.target, statement.value)
        elif isinstance(statement, ast.AugAssign) and isinstance(statement.target, ast.Name):
            target = ast.Name(statement.target.id, ast.Load())
            self._assign(statement.target, ast.BinOp(target, statement.op, statement.value))
        elif isinstance(statement, ast.With):
            for item in statement.items:
                if item.optional_vars is not None:
                    self._assign(item.optional_vars, item.context_expr)

    def _read_calls(self, found: list[tuple[ast.AST, frozenset[str]]]) -> None:
        """The calls of a statement; what its parts bind for themselves is not known in them."""
        calls = [(node, names) for node, names in found if isinstance(node, ast.Call)]
        # compile in a call of exec is read with it.
        inner = {id(part) for call, _ in calls if is_exec(call) for part in call.args}
        for call, others in calls:
            if id(call) not in inner:
                since = len(self.evaluator.journal)
                for name in others:
                    self._bind(name, None)
                self._read_call(call)
                self.evaluator.undo(since)

    def _read_import(self, statement: ast.Import | ast.ImportFrom) -> None:
        if isinstance(statement, ast.Import):
            for alias in statement.names:
                top = alias.name.partition(".")[0]
                bound = alias.name if alias.asname else top
                self._bind(alias.asname or top, Name(bound) if top in MODULES else None)
            return
        module = statement.module or ""
        known = module.partition(".")[0] in MODULES
        self.evaluator.changed |= statement.names[0].name == "*"
        for alias in statement.names:
            dotted = f"{module}.{alias.name}".removeprefix("compression.")
            self._bind(alias.asname or alias.name, Name(dotted) if known else None)

    def _sets_module(self, node: ast.AST, by_name: set[int]) -> bool:
        """Whether a module's function is replaced, or the module handed to what may do that."""
        if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store):
            return isinstance(self._value(node.value), Name)
        if not isinstance(node, ast.Name) or id(node) in by_name:
            return False
        known = self.evaluator.names.get(node.id)
        return isinstance(known, Name) and known.dotted in MODULES

    def _assign(self, target: ast.expr, value: ast.expr) -> None:
        if isinstance(target, ast.Tuple) and isinstance(value, ast.Tuple):
            if len(target.elts) == len(value.elts):
                for each, part in zip(target.elts, value.elts, strict=True):
                    self._assign(each, part)
            return
        found = self._value(value) if isinstance(target, ast.Name) else None
        # An attribute that is set changes what it is of: zlib.decompress = …
        for name in names_in_target(target):
            self._bind(name, found)

    def _bind(self, name: str, value: Any) -> None:
        if value is None or name in self.shared:
            value = _NOT_KNOWN
        self.evaluator.bind(name, value)

    def _value(self, node: ast.expr) -> Any:
        try:
            return self.evaluator.value(node)
        except (UnknownValueError, TooLargeError, RecursionError):
            return None

    # ---- what is executed

    def _read_call(self, call: ast.Call) -> None:
        name = self._called(call)
        if name in EXECUTING:
            self._read_executed(call, name.rpartition(".")[2])
        elif isinstance(call.func, ast.Attribute) and call.args:
            name = call.func.attr
            if name == "seek":
                self._value(call)
            elif name in ("write", "write_text", "write_bytes"):
                self._read_written(call)

    def _called(self, call: ast.Call) -> str:
        """The builtin or the function of a known module that a call is of; '' of all else."""
        if not isinstance(call.func, ast.Name | ast.Attribute | ast.Call):
            return ""
        if isinstance(call.func, ast.Call) and not isinstance(call.func.func, ast.Name):
            return ""
        found = self._value(call.func)
        return found.dotted if isinstance(found, Name) else ""

    def _read_executed(self, call: ast.Call, name: str) -> None:
        source = [each.value for each in call.keywords if each.arg == "source"]
        given = call.args[0] if call.args else next(iter(source), None)
        if given is None:
            return
        try:
            value = self.evaluator.value(given)
            if isinstance(value, Code):
                value = value.source
            if not isinstance(value, str | bytes):
                raise UnknownValueError("what it executes is no text")
        except (UnknownValueError, TooLargeError, RecursionError) as error:
            self.unpacking.fail(self.layer.number, call.lineno, name, str(error))
            return
        how = f"{name} at line {call.lineno} of layer {self.layer.number}"
        self.unpacking.add_found(value, how, self.layer, call.lineno)

    def _read_written(self, call: ast.Call) -> None:
        """A script may write its own source somewhere and run it from there."""
        value = self._value(call.args[0])
        if not isinstance(value, str | bytes) or len(value) < WORTH_READING:
            return
        text = decode(value)[0] if isinstance(value, bytes) else value
        try:
            tree = parse(text)
        except ValueError:
            return
        if any(
            isinstance(each, ast.Import | ast.ImportFrom | ast.FunctionDef) for each in tree.body
        ):
            how = f"written out at line {call.lineno} of layer {self.layer.number}"
            self.unpacking.add_found(value, how, self.layer, call.lineno)


class _NotKnown:
    """A name that is bound to what is not known."""


_NOT_KNOWN = _NotKnown()
