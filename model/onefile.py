"""A package's modules as one readable file: sources are read as text, nothing is imported.

The file holds what the entry's `if __name__ == "__main__"` block reaches, module by module in the
order of their imports; everything else is left out. It must mean the same as the package did, so
what would change its meaning is refused, naming module and line: two things of one name, work done
at import, names that resolve to nothing, files beside the source.

`if __package__:` inside a function is what only the package does; it is left out.
"""

from __future__ import annotations

import ast
import builtins
import symtable
import sys
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field

# Calls that may make a constant or decorate a definition: they change nothing but their result.
PURE_CALLS = {
    *("abstractmethod", "cache", "cached_property", "classmethod", "contextmanager", "dataclass"),
    *("field", "lru_cache", "overload", "override", "property", "staticmethod", "total_ordering"),
    *("wraps", "no_grad", "inference_mode", "jit", "Struct", "compile", "timedelta", "TypeVar"),
    *("get_type_hints", "frozenset", "set", "tuple", "list", "dict", "float", "int", "range"),
    *("len", "max", "min", "sum", "sorted", "namedtuple", "NewType", "log", "sqrt", "device"),
}
# What finds files or modules beside the source.
BESIDE_NAMES = {"__path__", "__spec__", "__loader__"}
BESIDE_CALLS = {"__import__", "import_module", "run_path", "run_module"}
BESIDE_MODULES = {"importlib.resources", "pkgutil", "runpy"}
LINE_LENGTH = 100


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


def merge(read: Callable[[str], str], entry: str, note: str) -> str:
    """The text of one file with what module `entry` needs; `read` gives a module's source.

    `note` becomes the file's docstring. Raises ExportError.
    """
    modules = read_modules(read, entry)
    kept, imports = reach(modules, entry)
    refuse_clashes(kept, imports)
    for piece in kept:
        refuse_what_lies_beside(piece)
    parts = [f'"""{note}"""\n\nfrom __future__ import annotations\n', _import_block(imports)]
    for module in modules.values():
        pieces = [piece for piece in kept if piece.module == module.name]
        if pieces:
            parts.append(f"\n\n{_header(module)}\n{_joined(pieces)}\n")
    return "".join(parts)


def shaken(text: str) -> str:
    """A file of `merge` again, without what it no longer needs and without comments on top."""
    modules = read_modules(lambda _: text, "file")
    kept, imports = reach(modules, "file")
    return "\n".join(
        [
            "from __future__ import annotations",
            *sorted({statement for entries in imports.values() for statement, _, _ in entries}),
            *(piece.text for piece in kept),
        ]
    )


# ---- reading


def read_modules(read: Callable[[str], str], entry: str) -> dict[str, Module]:
    """The entry and what it imports of its package, imported modules first."""
    modules: dict[str, Module] = {}
    begun: list[str] = []

    def follow(name: str, importer: str, line: int) -> None:
        if name in modules:
            return
        if name in begun:
            raise ExportError(importer, line, f"{' -> '.join([*begun, name])} is a circle")
        begun.append(name)
        try:
            text = read(name)
        except OSError:
            raise ExportError(importer, line, f"there is no module {name}") from None
        module = _Reader(name, text).read()
        for target, at in module.internal.values():
            follow(target, name, at)
        begun.pop()
        modules[name] = module

    follow(entry, entry, 1)
    if modules[entry].main is None:
        raise ExportError(entry, 1, 'the entry has no `if __name__ == "__main__":` block')
    return modules


class _Reader:
    """Takes one module apart."""

    def __init__(self, name: str, text: str) -> None:
        self.package = name.partition(".")[0]
        self.lines: list[str | None] = list(text.splitlines())
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
            case ast.Assign() | ast.AnnAssign() | ast.ClassDef():
                self._refuse_calls(node)
            case ast.FunctionDef() | ast.AsyncFunctionDef():
                pass
            case ast.Try() if _is_optional_import(node):
                pass
            case _:
                what = "only imports, definitions and constants may stand at the top of a module"
                raise self.error(node, f"work at import; {what}")
        self.module.pieces.append(self._piece(node, end))

    def _piece(self, node: ast.stmt, end: int) -> Piece:
        for inner in ast.walk(node):
            if isinstance(inner, ast.Import | ast.ImportFrom) and self._ours(inner) is not None:
                raise self.error(inner, "an import of the package that is not at the top")
        after = node.end_lineno or node.lineno
        lines = [line for line in self.lines[end:after] if line is not None]
        binds, uses = _names("\n".join(lines))
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
        source = self._ours(node)
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

    def _ours(self, node: ast.Import | ast.ImportFrom) -> str | None:
        """The module of our package that a statement imports from, if it is ours."""
        if isinstance(node, ast.ImportFrom):
            above = self.module.name.split(".")[: -node.level or None] if node.level else []
            names = [".".join([*above, *filter(None, [node.module])])]
        else:
            names = [alias.name for alias in node.names]
        ours = [name for name in names if name.partition(".")[0] == self.package]
        return ours[0] if ours else None

    def _refuse_calls(self, node: ast.stmt) -> None:
        """ExportError for a constant or a class body that does more than make a value."""
        body = node.body if isinstance(node, ast.ClassDef) else [node]
        for statement in body:
            match statement:
                case ast.FunctionDef() | ast.AsyncFunctionDef() | ast.Pass():
                    continue
                case ast.Expr(ast.Constant()):
                    continue
                case ast.Assign() | ast.AnnAssign():
                    pass
                case _:
                    raise self.error(statement, "work at import, in the body of a class")
            for call in _calls(statement):
                if not _is_pure(call.func) and not _is_class_name(call.func):
                    what = f"work at import: the call of {ast.unparse(call.func)}"
                    raise self.error(call, f"{what}; do it in a function")

    def error(self, node: ast.stmt | ast.expr, message: str) -> ExportError:
        return ExportError(self.module.name, node.lineno, message)


class _LeavePackageOut(ast.NodeTransformer):
    """Takes `if __package__:` out of functions, out of the tree and out of the lines."""

    def __init__(self, module: str, lines: list[str | None]) -> None:
        self.module = module
        self.lines = lines

    def visit_If(self, node: ast.If) -> ast.If | None:  # noqa: N802 - the name ast wants
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


def _calls(node: ast.AST) -> Iterator[ast.Call]:
    """Calls that happen when a statement is executed: not those inside a lambda."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.Call):
            yield child
        if not isinstance(child, ast.Lambda):
            yield from _calls(child)


def _is_pure(function: ast.expr) -> bool:
    return _last_name(function.func if isinstance(function, ast.Call) else function) in PURE_CALLS


def _is_class_name(function: ast.expr) -> bool:
    return _last_name(function)[:1].isupper()


def _last_name(expression: ast.expr) -> str:
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


# ---- what the entry needs


Imports = dict[str, list[tuple[str, str, int]]]  # name -> statement, module, line


def reach(modules: dict[str, Module], entry: str) -> tuple[list[Piece], Imports]:
    """The pieces that the entry needs, in order, and the imports of libraries."""
    imports: Imports = {}
    main = modules[entry].main
    assert main is not None
    found: list[Piece] = [main, *(p for m in modules.values() for p in m.pieces if p.always)]
    kept: set[int] = set()
    while found:
        piece = found.pop()
        if id(piece) in kept:
            continue
        kept.add(id(piece))
        for name in sorted(piece.uses):
            found += _resolve(modules, piece, name, modules[piece.module], imports)
    ordered = [p for m in modules.values() for p in m.pieces if id(p) in kept]
    return [*ordered, main], imports


def _resolve(
    modules: dict[str, Module], user: Piece, name: str, module: Module, imports: Imports
) -> list[Piece]:
    """The pieces that a name stands for in a module; an import is noted, a builtin is neither."""
    pieces = [piece for piece in module.pieces if name in piece.binds]
    for statement, line in module.external.get(name, ()):
        entry = (statement, module.name, line)
        if entry not in imports.setdefault(name, []):
            imports[name].append(entry)
    if name in module.internal:
        return pieces + _resolve(modules, user, name, modules[module.internal[name][0]], imports)
    if not pieces and name not in module.external and not _is_builtin(name):
        lines = (n.lineno for n in ast.walk(user.node) if isinstance(n, ast.Name) and n.id == name)
        raise ExportError(user.module, next(lines, user.line), f"`{name}` is not defined")
    return pieces


def _is_builtin(name: str) -> bool:
    return hasattr(builtins, name) or name in ("__file__", "__name__")


def refuse_clashes(kept: Iterable[Piece], imports: Imports) -> None:
    """ExportError where one name would stand for two things."""
    owners: dict[str, tuple[str, int]] = {}  # name -> module, line
    for name, entries in imports.items():
        # `import a.b` and `import a.c` bind the same `a`.
        kinds = {_binding(statement): (module, line) for statement, module, line in entries}
        first, *others = kinds.values()
        if others:
            raise _clash(name, others[0], first)
        owners[name] = first
    for piece in kept:
        here = (piece.module, piece.line)
        for name in sorted(piece.binds):
            if hasattr(builtins, name):
                raise ExportError(*here, f"`{name}` would hide a builtin from every module")
            there = owners.setdefault(name, here)
            if name in imports or there[0] != piece.module:
                raise _clash(name, here, there)


def _binding(statement: str) -> str:
    plain = statement.startswith("import ") and " as " not in statement
    return statement.partition(".")[0] if plain else statement


def _clash(name: str, here: tuple[str, int], there: tuple[str, int]) -> ExportError:
    return ExportError(*here, f"`{name}` stands for something else in {there[0]}, line {there[1]}")


def refuse_what_lies_beside(piece: Piece) -> None:
    """ExportError where a piece reaches for files or modules that would lie beside the source."""
    for node in ast.walk(piece.node):
        if isinstance(node, ast.Name):
            beside = node.id in BESIDE_NAMES or (node.id == "__file__" and not piece.knows_package)
        else:
            beside = isinstance(node, ast.Call) and _reaches_beside(node)
        if beside:
            assert isinstance(node, ast.expr)
            what = f"`{ast.unparse(node)}`: one file has nothing beside it"
            raise ExportError(piece.module, node.lineno, what)


def _reaches_beside(call: ast.Call) -> bool:
    name = _last_name(call.func)
    first = call.args[0].value if call.args and isinstance(call.args[0], ast.Constant) else None
    if name in ("open", "Path") and isinstance(first, str):
        return first not in ("", ".") and not first.startswith("/")
    return name in BESIDE_CALLS


# ---- writing


def _import_block(imports: Imports) -> str:
    """The imports of libraries as ruff would sort them."""
    plain: set[str] = set()
    froms: dict[str, set[str]] = {}
    for entries in imports.values():
        for statement, _, _ in entries:
            if statement.startswith("import "):
                plain.add(statement)
            else:
                source, _, name = statement.removeprefix("from ").partition(" import ")
                froms.setdefault(source, set()).add(name)
    lines = {(0, statement.split()[1]): statement for statement in plain}
    lines |= {(1, source): _from_import(source, names) for source, names in froms.items()}
    groups: dict[bool, list[str]] = {False: [], True: []}  # ours last: not the standard library's
    for (_, source), statement in sorted(lines.items()):
        groups[source.partition(".")[0] not in sys.stdlib_module_names].append(statement)
    return "".join("\n" + "\n".join(group) + "\n" for group in groups.values() if group)


def _from_import(source: str, names: set[str]) -> str:
    ordered = sorted(names, key=lambda name: (not name.isupper(), not name[0].isupper(), name))
    line = f"from {source} import {', '.join(ordered)}"
    if len(line) <= LINE_LENGTH:
        return line
    return f"from {source} import (\n" + "".join(f"    {name},\n" for name in ordered) + ")"


def _header(module: Module) -> str:
    lines = (module.doc or "").splitlines()
    return "\n".join([f"# ---- {module.name}", *(f"# {line}".rstrip() for line in lines)]) + "\n"


def _joined(pieces: list[Piece]) -> str:
    """Pieces one after another, with two blank lines around every definition."""
    parts = []
    for number, piece in enumerate(pieces):
        text = piece.text.strip("\n")
        blank = len(piece.text) - len(piece.text.lstrip("\n"))
        if number and (_is_definition(pieces[number - 1]) or _is_definition(piece)):
            blank = 2
        parts.append("\n" * (blank if number else 0) + text)
    return "\n".join(parts)


def _is_definition(piece: Piece) -> bool:
    return isinstance(piece.node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef)
