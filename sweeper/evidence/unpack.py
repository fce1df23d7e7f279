"""A script's source behind whatever wraps it: layer by layer, and nothing of it executed.

A counted train_gpt.py is often a few lines that decompress a text and `exec` it, at times several
times over. Each such call is worked out from the syntax tree (unpack_values.py); what it would
execute is the next layer. What cannot be worked out is a problem with its line.
"""

from __future__ import annotations

import ast
import io
import re
import tokenize
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from sweeper.evidence.unpack_codecs import Budget, TooLargeError, UnknownValueError
from sweeper.evidence.unpack_values import MODULES, Code, Evaluator, Name
from sweeper.evidence.unpack_ways import changes_names, other_ways

MOST_LAYERS = 10
MOST_SOURCE = 4 << 20  # bytes of a source that is parsed; a wrapper's data are not source
WORTH_READING = 400  # characters of a text that is written out, to be taken for a script
LINE_ENDS = re.compile(r"\r\n|\r|\n")
EXECUTING = frozenset({"builtins.exec", "builtins.eval"})


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


def parse(source: str) -> ast.Module:
    """A syntax tree, without a word on stderr. ValueError where it is no Python or too large."""
    if len(source) > MOST_SOURCE:
        raise ValueError(f"its source is larger than {MOST_SOURCE >> 20} MiB")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return ast.parse(source)
    except SyntaxError as error:
        raise ValueError(f"no Python of this version: line {error.lineno}: {error.msg}") from error
    except (RecursionError, MemoryError) as error:
        raise ValueError("nested too deeply to be read") from error


def decode(data: bytes) -> tuple[str, str]:
    """A source as text, by the encoding that it declares, and that encoding's name."""
    try:
        encoding, _ = tokenize.detect_encoding(io.BytesIO(data).readline)
        return data.decode(encoding), encoding
    except (SyntaxError, LookupError, ValueError):
        return data.decode("latin-1"), "unknown"


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
                reader = _Reader(self, layer)
                reader.read_block(layer.tree.body)
                reader.find_other_ways()
            done += 1
        return Unpacked(
            bytes=len(self.data), layers=tuple(self.layers), problems=tuple(self.problems)
        )

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
        if number == 0 and not text.strip():
            self.fail(number, 1, "the source", "there is nothing in it")
        try:
            tree = parse(text)
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
        for line, why in other_ways(self.layer.tree, own):
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
        for block in _blocks(statement):
            before = dict(self.evaluator.names)
            self.read_block(block)
            for name, value in before.items():
                if self.evaluator.names.get(name) is not value:
                    self._bind(name, None)

    def _read_apart(self, block: list[ast.stmt], owner: ast.stmt) -> None:
        """A function's body, whose names are its own; its parameters are not known."""
        before = dict(self.evaluator.names)
        if isinstance(owner, ast.FunctionDef | ast.AsyncFunctionDef):
            for each in ast.walk(owner.args):
                if isinstance(each, ast.arg):
                    self.evaluator.names[each.arg] = None
        self.read_block(block)
        self.evaluator.names = before

    def _read(self, statement: ast.stmt) -> None:
        nodes = list(_own_nodes(statement))
        for node in nodes:
            if isinstance(node, ast.Call):
                self._read_call(node)
        for node in nodes:
            self.evaluator.changed |= changes_names(node)
            # It may have been evaluated or not, and more than once.
            if isinstance(node, ast.NamedExpr):
                self._bind(node.target.id, None)
        if isinstance(statement, ast.Import):
            for alias in statement.names:
                top = alias.name.partition(".")[0]
                bound = alias.name if alias.asname else top
                self._bind(alias.asname or top, Name(bound) if top in MODULES else None)
        elif isinstance(statement, ast.ImportFrom):
            module = statement.module or ""
            known = module.partition(".")[0] in MODULES
            for alias in statement.names:
                dotted = f"{module}.{alias.name}".removeprefix("compression.")
                self._bind(alias.asname or alias.name, Name(dotted) if known else None)
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

    def _assign(self, target: ast.expr, value: ast.expr) -> None:
        if isinstance(target, ast.Tuple) and isinstance(value, ast.Tuple):
            if len(target.elts) == len(value.elts):
                for each, part in zip(target.elts, value.elts, strict=True):
                    self._assign(each, part)
            return
        found = self._value(value) if isinstance(target, ast.Name) else None
        # An attribute that is set changes what it is of: zlib.decompress = …
        for name in _names(target):
            self._bind(name, found)

    def _bind(self, name: str, value: Any) -> None:
        if value is None or name in self.shared:
            value = _NOT_KNOWN
        self.evaluator.names[name] = value

    def _value(self, node: ast.expr) -> Any:
        try:
            return self.evaluator.value(node)
        except (UnknownValueError, TooLargeError, RecursionError):
            return None

    # ---- what is executed

    def _read_call(self, call: ast.Call) -> None:
        if self._executes(call):
            self._read_executed(call)
        elif isinstance(call.func, ast.Attribute) and call.args:
            name = call.func.attr
            if name == "seek":
                self._value(call)
            elif name in ("write", "write_text", "write_bytes"):
                self._read_written(call)

    def _executes(self, call: ast.Call) -> bool:
        if not call.args or not isinstance(call.func, ast.Name | ast.Attribute | ast.Call):
            return False
        if isinstance(call.func, ast.Call) and not isinstance(call.func.func, ast.Name):
            return False
        found = self._value(call.func)
        return isinstance(found, Name) and found.dotted in EXECUTING

    def _read_executed(self, call: ast.Call) -> None:
        name = "exec" if "exec" in ast.unparse(call.func) else "eval"
        try:
            value = self.evaluator.value(call.args[0])
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


def _blocks(statement: ast.stmt) -> Iterator[list[ast.stmt]]:
    """The blocks of statements in a statement."""
    for name in ("body", "orelse", "finalbody"):
        block = getattr(statement, name, None)
        if isinstance(block, list):
            yield block
    for handler in getattr(statement, "handlers", []):
        yield handler.body
    for case in getattr(statement, "cases", []):
        yield case.body


def _own_nodes(statement: ast.stmt) -> Iterator[ast.AST]:
    """The nodes of a statement but those of the statements in it, a call's parts before it."""
    stack: list[ast.AST] = [statement]
    found: list[ast.AST] = []
    while stack:
        node = stack.pop()
        found.append(node)
        stack += [each for each in ast.iter_child_nodes(node) if not _is_inner(each)]
    return reversed(found)


def _is_inner(node: ast.AST) -> bool:
    return isinstance(node, ast.stmt | ast.excepthandler | ast.match_case)


def _names(target: ast.expr) -> Iterator[str]:
    for node in ast.walk(target):
        if isinstance(node, ast.Name):
            yield node.id
