"""A module taken apart into its top-level statements, for making one file of many.

The source is read as text and nothing is imported. What a file of many modules cannot keep is
refused here: work done at import, and imports that would need a second module.

`if __package__:` inside a function is what only the package does; it is left out.
"""

from __future__ import annotations

import ast
import symtable
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import cast

# Calls that may make a constant or decorate a definition: they change nothing but their result.
PURE_CALLS = {
    *("abstractmethod", "cache", "cached_property", "classmethod", "contextmanager", "dataclass"),
    *("field", "lru_cache", "overload", "override", "property", "staticmethod", "total_ordering"),
    *("wraps", "no_grad", "inference_mode", "jit", "Struct", "compile", "timedelta", "TypeVar"),
    *("get_type_hints", "frozenset", "set", "tuple", "list", "dict", "float", "int", "range"),
    *("len", "max", "min", "sum", "sorted", "namedtuple", "NewType", "log", "sqrt", "device"),
}


class ExportError(ValueError):
    """A package cannot become one file; the message names the module and the line."""

    def __init__(self, module: str, line: int, message: str) -> None:
        super().__init__(f"{module}, line {line}: {message}")


@dataclass(kw_only=True)
class Piece:
    """One top-level statement: its text with the comments above it, what it binds and uses."""

    module: str
    line: int
    node: ast.stmt
    text: str
    binds: set[str]
    uses: set[str]
    always: bool = False  # it is there for what it does to others: a registration
    knows_package: bool = False  # it has an `if __package__:`, so `__file__` is the one file


@dataclass(kw_only=True)
class Module:
    """A source, taken apart. Imports are by the local name that they bind."""

    name: str
    doc: str | None = None
    pieces: list[Piece] = field(default_factory=list)
    main: Piece | None = None
    external: dict[str, list[tuple[str, int]]] = field(default_factory=dict)  # statements, lines
    internal: dict[str, tuple[str, int]] = field(default_factory=dict)  # module, line


def take_apart(name: str, text: str) -> Module:
    """The pieces and imports of a module's source. Raises ExportError."""
    return _Reader(name, text).read()


class _Reader:
    def __init__(self, name: str, text: str) -> None:
        self.package = name.partition(".")[0]
        self.lines: list[str | None] = list(text.split("\n"))
        self.module = Module(name=name)
        try:
            self.tree = ast.parse(text)
        except SyntaxError as error:
            raise ExportError(name, error.lineno or 1, f"syntax error: {error.msg}") from None

    def read(self) -> Module:
        _LeavePackageOut(self.module.name, self.lines).visit(self.tree)
        self.module.doc = ast.get_docstring(self.tree)
        end = 0
        for node in self.tree.body:
            start, after = _first_line(node), node.end_lineno or node.lineno
            if start <= end:
                raise self.error(node, "two statements share a line")
            self._statement(node, end)
            end = after
        return self.module

    def _statement(self, node: ast.stmt, end: int) -> None:
        match node:
            case ast.Expr(ast.Constant(str())):
                return
            case ast.ImportFrom(module="__future__"):
                if [alias.name for alias in node.names] != ["annotations"]:
                    raise self.error(node, "of __future__ only annotations may be imported")
                return
            case ast.Import() | ast.ImportFrom():
                self._import(node)
                return
            case ast.If() if _is_main_guard(node):
                self.module.main = self._piece(node, end)
                return
            case ast.Try() if _is_optional_import(node):
                pass
            case _:
                self._refuse_work(node)
        self.module.pieces.append(self._piece(node, end))

    def _piece(self, node: ast.stmt, end: int) -> Piece:
        after = node.end_lineno or node.lineno
        lines = [line for line in self.lines[end:after] if line is not None]
        try:
            binds, uses = _names("\n".join(lines))
        except SyntaxError:
            raise self.error(node, "nothing is left without its `if __package__:`") from None
        return Piece(
            module=self.module.name,
            line=node.lineno,
            node=node,
            text="\n".join(lines),
            binds=binds,
            uses=uses,
            always=any(not _is_pure(call) for call in getattr(node, "decorator_list", ())),
            knows_package=None in self.lines[end:after],
        )

    def _import(self, node: ast.Import | ast.ImportFrom) -> None:
        source = import_of(self.package, self.module.name, node)
        for alias in node.names:
            if source is not None:
                self._import_ours(node, source, alias)
                continue
            if alias.name == "*":
                raise self.error(node, "`import *` hides which names it brings")
            rename = f" as {alias.asname}" if alias.asname else ""
            if isinstance(node, ast.Import):
                statement = f"import {alias.name}{rename}"
                name = alias.asname or alias.name.partition(".")[0]
            else:
                statement = f"from {node.module} import {alias.name}{rename}"
                name = alias.asname or alias.name
            self.module.external.setdefault(name, []).append((statement, node.lineno))

    def _import_ours(
        self, node: ast.Import | ast.ImportFrom, source: str, alias: ast.alias
    ) -> None:
        if isinstance(node, ast.Import) or source == self.package:
            raise self.error(
                node, f"one file has no modules: write `from {self.package}.module import name`"
            )
        if alias.asname or alias.name == "*":
            raise self.error(node, f"`{alias.name}` must be imported under its own name")
        self.module.internal[alias.name] = (source, node.lineno)

    def _refuse_work(self, node: ast.stmt) -> None:
        """ExportError for a statement that does more at import than give names to values."""
        made: list[ast.expr | None] = []
        match node:
            case ast.FunctionDef() | ast.AsyncFunctionDef():
                made = [*node.args.defaults, *node.args.kw_defaults]
            case ast.ClassDef():
                made = [*node.bases, *(keyword.value for keyword in node.keywords)]
                for statement in node.body:
                    if not isinstance(statement, ast.Pass) and not _is_text(statement):
                        self._refuse_work(statement)
            case ast.Assign() | ast.AnnAssign() if _gives_names(node):
                made = [node.value]
            case _:
                what = "only imports, definitions and constants may stand at the top of a module"
                raise self.error(node, f"work at import; {what}")
        for call in (call for value in made if value is not None for call in _calls(value)):
            if not _is_pure(call.func) and not last_name(call.func)[:1].isupper():
                what = f"work at import: the call of {ast.unparse(call.func)}"
                raise self.error(call, f"{what}; do it in a function")

    def error(self, node: ast.stmt | ast.expr, message: str) -> ExportError:
        return ExportError(self.module.name, node.lineno, message)


class _LeavePackageOut(ast.NodeTransformer):
    """Takes `if __package__:` out of functions, out of the tree and out of the lines."""

    def __init__(self, module: str, lines: list[str | None]) -> None:
        self.module = module
        self.lines = lines

    def visit_If(self, node: ast.If) -> ast.If | None:
        if not (isinstance(node.test, ast.Name) and node.test.id == "__package__"):
            self.generic_visit(node)
            return node
        if node.orelse:
            raise ExportError(self.module, node.lineno, "`if __package__:` must have no else")
        for line in range(node.lineno, (node.end_lineno or node.lineno) + 1):
            self.lines[line - 1] = None
        return None


def _first_line(node: ast.stmt) -> int:
    decorators: list[ast.expr] = getattr(node, "decorator_list", [])
    return min([node.lineno, *(decorator.lineno for decorator in decorators)])


def _is_main_guard(node: ast.If) -> bool:
    return ast.unparse(node.test) == "__name__ == '__main__'" and not node.orelse


def _is_optional_import(node: ast.Try) -> bool:
    """`try: import x` with `except ImportError: x = None`, and nothing more."""
    handled = [statement for handler in node.handlers for statement in handler.body]
    return (
        all(isinstance(statement, ast.Import | ast.ImportFrom) for statement in node.body)
        and all(
            isinstance(handler.type, ast.Name)
            and handler.type.id in ("ImportError", "ModuleNotFoundError")
            for handler in node.handlers
        )
        and all(
            isinstance(statement, ast.Import | ast.ImportFrom | ast.Pass)
            or (isinstance(statement, ast.Assign) and isinstance(statement.value, ast.Constant))
            for statement in handled
        )
        and not node.orelse
        and not node.finalbody
    )


def import_of(package: str, module: str, node: ast.Import | ast.ImportFrom) -> str | None:
    """The module of `package` that a statement in `module` imports from; None: a library's."""
    if isinstance(node, ast.ImportFrom):
        above = module.split(".")[: -node.level] if node.level else []
        names = [".".join([*above, *filter(None, [node.module])])]
    else:
        names = [alias.name for alias in node.names]
    return next((name for name in names if name.partition(".")[0] == package), None)


def _is_text(node: ast.stmt) -> bool:
    return isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)


def _gives_names(node: ast.Assign | ast.AnnAssign) -> bool:
    """Whether an assignment gives names, and changes nothing that exists."""
    targets = node.targets if isinstance(node, ast.Assign) else [node.target]
    kinds = (ast.Name, ast.Tuple, ast.Store)
    return all(isinstance(part, kinds) for target in targets for part in ast.walk(target))


def _calls(node: ast.expr) -> Iterator[ast.Call]:
    """Calls that happen when an expression is evaluated: not those inside a lambda."""
    if isinstance(node, ast.Call):
        yield node
    if not isinstance(node, ast.Lambda):
        for child in ast.iter_child_nodes(node):
            yield from _calls(cast(ast.expr, child))


def _is_pure(function: ast.expr) -> bool:
    return last_name(function.func if isinstance(function, ast.Call) else function) in PURE_CALLS


def last_name(expression: ast.expr) -> str:
    if isinstance(expression, ast.Attribute):
        return expression.attr
    return expression.id if isinstance(expression, ast.Name) else ""


def _names(text: str) -> tuple[set[str], set[str]]:
    """What a top-level statement binds, and the global names that it uses at any depth.

    Annotations count as uses, because `from __future__ import annotations` is not in `text`.
    """
    binds, uses = set(), set()
    tables = [symtable.symtable(text, "", "exec")]
    while tables:
        table = tables.pop()
        tables.extend(table.get_children())
        for symbol in table.get_symbols():
            if table.get_type() == "module" and (symbol.is_assigned() or symbol.is_imported()):
                binds.add(symbol.get_name())
            elif symbol.is_global():
                uses.add(symbol.get_name())
    return binds, uses - binds
