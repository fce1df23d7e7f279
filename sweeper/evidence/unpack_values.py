"""Constant expressions worked out without running any: what a wrapper makes of its own data.

Only pure calls over constants are known (decompressing, decoding, slicing, joining), each bounded
in what it may make. Whatever else stands in an expression makes it unknown; nothing of a script is
ever executed, imported or opened.
"""

from __future__ import annotations

import ast
import lzma
import operator
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from sweeper.evidence.unpack_codecs import (
    DECODERS,
    DECOMPRESSORS,
    SHRINKING,
    Budget,
    TooLargeError,
    UnknownValueError,
    codec,
)

DEEPEST = 200  # expressions within each other
ITEM_BYTES = 8  # of a list, whatever is in it
MOST_BITS = 4_096  # of a whole number
# The modules whose names may stand in a constant expression.
MODULES = frozenset(
    {"lzma", "zlib", "bz2", "gzip", "base64", "binascii", "codecs", "brotli", "zstandard", "zstd"}
    | {"builtins", "sys", "pathlib", "io", "os", "importlib", "runpy", "marshal", "compression"}
)
CONSTANTS: Mapping[str, Any] = {
    **{f"lzma.{name}": getattr(lzma, name) for name in dir(lzma) if name.isupper()},
    "zlib.MAX_WBITS": zlib.MAX_WBITS,
    "zlib.DEF_BUF_SIZE": zlib.DEF_BUF_SIZE,
}


class Unbound:
    """What a name is before anything binds it."""


UNBOUND = Unbound()


@dataclass(frozen=True)
class Name:
    """A module or a function of one, by its dotted name."""

    dotted: str


@dataclass(frozen=True)
class Code:
    """What `compile` makes of a source."""

    source: str | bytes


@dataclass
class OwnFile:
    """The script itself, opened or named by a path; reading moves on."""

    data: bytes
    text: bool
    at: int = 0

    def read(self, size: int = -1) -> str | bytes:
        end = len(self.data) if size is None or size < 0 else self.at + size
        part, self.at = self.data[self.at : end], min(end, len(self.data))
        return part.decode("utf-8", "replace") if self.text else part


OPERATORS: Mapping[type[ast.operator], Callable[[Any, Any], Any]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.FloorDiv: operator.floordiv,
    ast.Mod: operator.mod,
    ast.BitOr: operator.or_,
    ast.BitXor: operator.xor,
    ast.BitAnd: operator.and_,
    ast.RShift: operator.rshift,
}


SIGNS: Mapping[type[ast.unaryop], Callable[[int], int]] = {
    ast.USub: operator.neg,
    ast.UAdd: operator.pos,
    ast.Invert: operator.invert,
}


@dataclass
class Evaluator:
    """Values of expressions, by the names bound so far. UnknownValueError, TooLargeError.

    Once names or modules may have been `changed` unseen, no call is worked out any more.
    """

    own: bytes  # the script's own bytes, for those that read themselves
    changed: bool = False
    budget: Budget = field(default_factory=Budget)
    names: dict[str, Any] = field(default_factory=dict)
    journal: list[tuple[str, Any]] = field(default_factory=list)  # what each name was before
    depth: int = 0

    def bind(self, name: str, value: Any) -> None:
        self.journal.append((name, self.names.get(name, UNBOUND)))
        self.names[name] = value

    def undo(self, since: int) -> None:
        """Unbind all that the journal has from there on."""
        while len(self.journal) > since:
            name, before = self.journal.pop()
            if before is UNBOUND:
                del self.names[name]
            else:
                self.names[name] = before

    def value(self, node: ast.expr) -> Any:
        self.budget.step()
        self.depth += 1
        try:
            if self.depth > DEEPEST:
                raise UnknownValueError("it is nested too deeply")
            method = getattr(self, f"_{type(node).__name__.lower()}", None)
            if method is None:
                raise UnknownValueError(f"a {type(node).__name__} is not constant")
            return method(node)
        except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:
            raise UnknownValueError(f"{type(error).__name__}: {error}") from error
        except (lzma.LZMAError, zlib.error, OSError, EOFError, MemoryError) as error:
            raise UnknownValueError(f"its data cannot be unpacked: {error}") from error
        finally:
            self.depth -= 1

    # ---- expressions

    def _constant(self, node: ast.Constant) -> Any:
        return node.value

    def _name(self, node: ast.Name) -> Any:
        if node.id in self.names:
            if self.changed:
                raise UnknownValueError(f"{node.id} may have been changed before")
            return self.names[node.id]
        if node.id == "__file__":
            return OwnFile(self.own, text=False)
        return Name(f"builtins.{node.id}")

    def _namedexpr(self, node: ast.NamedExpr) -> Any:
        found = self.value(node.value)
        self.bind(node.target.id, found)
        return found

    def _tuple(self, node: ast.Tuple) -> Any:
        return tuple(self._items(node.elts))

    def _list(self, node: ast.List) -> Any:
        return self._items(node.elts)

    def _items(self, nodes: list[ast.expr]) -> list[Any]:
        return [self.value(each) for each in nodes]

    def _dict(self, node: ast.Dict) -> Any:
        keys = [key for key in node.keys if key is not None]
        if len(keys) < len(node.keys):
            raise UnknownValueError("a dictionary with another one in it")
        return dict(zip(self._items(keys), self._items(node.values), strict=True))

    def _joinedstr(self, node: ast.JoinedStr) -> str:
        parts = []
        for each in node.values:
            formatted = isinstance(each, ast.FormattedValue)
            if isinstance(each, ast.FormattedValue):
                plain = each.format_spec is None and each.conversion in (-1, ord("s"))
                found = self.value(each.value) if plain else None
            else:
                found = self.value(each)
            if not isinstance(found, str | int) or (formatted and isinstance(found, bool)):
                raise UnknownValueError("a formatted string")
            parts.append(str(found))
        self.budget.take(sum(map(len, parts)))
        return "".join(parts)

    def _unaryop(self, node: ast.UnaryOp) -> Any:
        operand = self.value(node.operand)
        if not isinstance(operand, int):
            raise UnknownValueError("an operation on no number")
        if isinstance(node.op, ast.Not):
            return not operand
        return SIGNS[type(node.op)](operand)

    def _binop(self, node: ast.BinOp) -> Any:
        left, right = self.value(node.left), self.value(node.right)
        kind = type(node.op)
        if kind is ast.LShift and isinstance(left, int) and isinstance(right, int):
            _small(right)
            return _small(left << right)
        if kind not in OPERATORS or (kind is ast.Mod and not isinstance(left, int)):
            raise UnknownValueError("an operation that is not worked out")
        if kind is ast.Mult and not (isinstance(left, int) and isinstance(right, int)):
            self._check_repeated(left, right)
        found = OPERATORS[kind](left, right)
        return _small(found) if isinstance(found, int) else self._sized(found)

    def _check_repeated(self, left: Any, right: Any) -> None:
        times, what = (left, right) if isinstance(left, int) else (right, left)
        if not isinstance(times, int) or len(what) * max(times, 0) > self.budget.bytes:
            raise TooLargeError("it repeats a text too often")

    def _subscript(self, node: ast.Subscript) -> Any:
        container = self.value(node.value)
        if isinstance(container, Name) and container.dotted == "sys.argv":
            # What follows the script's own name is anybody's.
            if not isinstance(node.slice, ast.Slice) and self.value(node.slice) == 0:
                return OwnFile(self.own, text=False)
            raise UnknownValueError("an argument of the script")
        if isinstance(node.slice, ast.Slice):
            ends = [node.slice.lower, node.slice.upper, node.slice.step]
            cut = slice(*[None if each is None else self.value(each) for each in ends])
            return self._sized(container[cut])
        return container[self.value(node.slice)]

    def _attribute(self, node: ast.Attribute) -> Any:
        owner = self.value(node.value)
        if not isinstance(owner, Name):
            raise UnknownValueError(f"the attribute {node.attr}")
        return self._member(owner, node.attr)

    def _member(self, owner: Name, attr: str) -> Any:
        dotted = f"{owner.dotted}.{attr}".removeprefix("builtins.builtins.").replace(
            "builtins.__builtins__", "builtins"
        )
        if dotted.startswith("builtins.bytes."):
            dotted = dotted.removeprefix("builtins.")
        return CONSTANTS.get(dotted, Name(dotted))

    def _listcomp(self, node: ast.ListComp | ast.GeneratorExp) -> list[Any]:
        (loop,) = node.generators
        named = any(isinstance(each, ast.NamedExpr) for each in ast.walk(node))
        if loop.ifs or loop.is_async or named or not isinstance(loop.target, ast.Name):
            raise UnknownValueError("a loop that is not worked out")
        since = len(self.journal)
        made = []
        for item in self.value(loop.iter):
            self.bind(loop.target.id, item)
            made.append(self.value(node.elt))
        self.undo(since)
        return made

    _generatorexp = _listcomp

    # ---- calls

    def _call(self, node: ast.Call) -> Any:
        if isinstance(node.func, ast.Attribute):
            owner = self.value(node.func.value)
            if not isinstance(owner, Name):
                return self._method(owner, node.func.attr, node)
            function: Any = self._member(owner, node.func.attr)
        else:
            function = self.value(node.func)
        if not isinstance(function, Name):
            raise UnknownValueError("a call of what is no function")
        return self._function(function.dotted, node)

    def _arguments(self, node: ast.Call) -> tuple[list[Any], dict[str, Any]]:
        named = {each.arg: self.value(each.value) for each in node.keywords if each.arg}
        return self._items(node.args), named

    def _function(self, dotted: str, node: ast.Call) -> Any:
        if self.changed and dotted != "builtins.compile":
            raise UnknownValueError("what is called may have been changed before")
        args, named = self._arguments(node)
        if dotted in DECOMPRESSORS:
            return DECOMPRESSORS[dotted](*args, **named, budget=self.budget)
        if dotted in DECODERS:
            if dotted in ("builtins.list", "builtins.tuple"):
                self.budget.take(ITEM_BYTES * len(args[0]))
            return self._sized(DECODERS[dotted](*args, **named))
        if f"{dotted}.decompress" in DECOMPRESSORS:
            # A decompressor made first: its settings go with the data.
            return _Made(f"{dotted}.decompress", args, named)
        if dotted in ("builtins.__import__", "importlib.import_module"):
            return _module(args[0])
        if dotted == "builtins.getattr":
            return self._member(args[0], args[1])
        if dotted in ("builtins.bytes", "builtins.bytearray"):
            return self._bytes(args)
        if dotted == "builtins.str":
            found = self._method(args[0], "decode", None, args[1:]) if args[1:] else str(args[0])
            return self._sized(found)
        if dotted == "builtins.map":
            return [self._mapped(args[0], each) for each in args[1]]
        if dotted == "builtins.range":
            return self._range(args)
        if dotted == "builtins.compile":
            return Code(args[0] if args else named["source"])
        if dotted in ("builtins.open", "io.open", "pathlib.Path"):
            return self._opened(dotted, args, named)
        raise UnknownValueError(f"a call of {dotted.removeprefix('builtins.')}")

    def _mapped(self, function: Any, item: Any) -> Any:
        self.budget.step()
        if function not in (Name("builtins.chr"), Name("builtins.ord")):
            raise UnknownValueError("a map that is not worked out")
        return DECODERS[function.dotted](item)

    def _range(self, args: list[Any]) -> list[int]:
        numbers = range(*args)
        if len(numbers) > self.budget.steps:
            raise TooLargeError("it takes too many steps to unpack")
        self.budget.steps -= len(numbers)
        self.budget.take(ITEM_BYTES * len(numbers))
        return list(numbers)

    def _bytes(self, args: list[Any]) -> Any:
        if len(args) == 2:
            return self._sized(args[0].encode(codec(args[1])))
        if not args or isinstance(args[0], int):
            raise UnknownValueError("bytes of nothing")
        return self._sized(bytes(args[0]))

    def _opened(self, dotted: str, args: list[Any], named: dict[str, Any]) -> OwnFile:
        if not args or not isinstance(args[0], OwnFile):
            raise UnknownValueError("a file that is not the script itself")
        mode = str(args[1] if len(args) > 1 else named.get("mode", "r"))
        if set(mode) & set("wax+"):
            raise UnknownValueError("a file that is written")
        return OwnFile(self.own, text=dotted != "pathlib.Path" and "b" not in mode)

    def _method(
        self, owner: Any, name: str, node: ast.Call | None, args: list[Any] | None = None
    ) -> Any:
        found, named = ((args or []), {}) if node is None else self._arguments(node)
        if isinstance(owner, _Made) and name == "decompress":
            settings = owner.named | named
            return DECOMPRESSORS[owner.dotted](*found, *owner.args, **settings, budget=self.budget)
        if isinstance(owner, OwnFile):
            return self._of_file(owner, name, found)
        if not isinstance(owner, str | bytes):
            raise UnknownValueError(f"the method {name}")
        if name in SHRINKING:
            # What is looked through or copied costs its length, what is split a list of it.
            self.budget.take((ITEM_BYTES if "split" in name else 1) * len(owner))
            return getattr(owner, name)(*found, **named)
        if name in ("encode", "decode"):
            encoding = str(found[0] if found else named.get("encoding", "utf-8"))
            errors = str(found[1] if len(found) > 1 else named.get("errors", "strict"))
            return self._sized(getattr(owner, name)(codec(encoding), errors))
        if name == "join":
            items = list(found[0])
            self.budget.take(sum(map(len, items)) + len(owner) * len(items))
            return owner.join(items)
        if name == "replace":
            self.budget.take(len(owner) + owner.count(found[0]) * len(found[1]))
            return owner.replace(*found)
        if name == "translate" and isinstance(owner, bytes):
            return self._sized(owner.translate(*found, **named))
        raise UnknownValueError(f"the method {name}")

    def _of_file(self, owner: OwnFile, name: str, args: list[Any]) -> Any:
        if name in ("read_text", "read_bytes"):
            return self._sized(OwnFile(owner.data, text=name == "read_text").read())
        if name == "read":
            return self._sized(owner.read(*args))
        if name == "readlines":
            return self._sized(owner.read()).splitlines(keepends=True)
        if name == "seek" and len(args) == 1:
            owner.at = int(args[0])
            return owner.at
        if name in ("resolve", "absolute", "close", "__enter__"):
            return owner
        raise UnknownValueError(f"the method {name} of a file")

    def _sized(self, found: Any) -> Any:
        if isinstance(found, str | bytes | list | tuple):
            self.budget.take(len(found))
        return found


@dataclass(frozen=True)
class _Made:
    """A decompressor that has its settings, and waits for data."""

    dotted: str
    args: list[Any]
    named: dict[str, Any]


def _small(number: int) -> int:
    if number.bit_length() > MOST_BITS:
        raise TooLargeError("a number of it is too large")
    return number


def _module(name: Any) -> Name:
    if name not in MODULES:
        raise UnknownValueError(f"the module {name!r}")
    return Name(str(name))
