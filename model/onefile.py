"""A package's modules as one readable file.

The file holds what the entry's `if __name__ == "__main__"` block reaches, module by module in the
order of their imports; everything else is left out. It must mean the same as the package did, so
what would change its meaning is refused, naming module and line: two things of one name, names
that resolve to nothing, files beside the source, and what pieces.py refuses.
"""

from __future__ import annotations

import ast
import builtins
import sys
from collections.abc import Callable, Iterable

from model.pieces import ExportError, Module, Piece, import_of, last_name, take_apart

# What finds files or modules beside the source.
BESIDE_NAMES = {"__path__", "__spec__", "__loader__"}
BESIDE_CALLS = {"__import__", "import_module", "run_path", "run_module"}
BESIDE_MODULES = ("importlib.resources", "pkgutil", "runpy")
LINE_LENGTH = 100


def merge(read: Callable[[str], str], entry: str, note: str) -> str:
    """The text of one file with what module `entry` needs; `read` gives a module's source.

    `note` becomes the file's docstring. Raises ExportError.
    """
    modules = read_modules(read, entry)
    kept, imports = reach(modules, entry)
    refuse_clashes(kept, imports)
    refuse_what_one_file_lacks(kept, imports)
    parts = [f'"""{note}"""\n\nfrom __future__ import annotations\n', _import_block(imports)]
    for module in modules.values():
        pieces = [piece for piece in kept if piece.module == module.name]
        if pieces:
            gap = "\n\n\n" if _is_definition(pieces[0]) else "\n\n"
            parts.append(f"\n\n{_header(module)}{gap}{_joined(pieces)}\n")
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
        module = take_apart(name, text)
        for target, at in module.internal.values():
            follow(target, name, at)
        begun.pop()
        modules[name] = module

    follow(entry, entry, 1)
    if modules[entry].main is None:
        raise ExportError(entry, 1, 'the entry has no `if __name__ == "__main__":` block')
    return modules


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


def refuse_what_one_file_lacks(kept: Iterable[Piece], imports: Imports) -> None:
    """ExportError where code reaches for what lies beside its source, or for names as text."""
    for entries in imports.values():
        for statement, module, line in entries:
            if _is_beside(statement):
                raise ExportError(module, line, f"`{statement}`: one file has nothing beside it")
    for piece in kept:
        for node in ast.walk(piece.node):
            lacking = _lacking(node, piece)
            if lacking is not None:
                assert isinstance(node, ast.expr | ast.stmt)
                what = f"`{ast.unparse(node)}`: {lacking}"
                raise ExportError(piece.module, node.lineno, what)


def _lacking(node: ast.AST, piece: Piece) -> str | None:
    """Why one file cannot hold a node; None: it can."""
    beside = False
    match node:
        case (
            ast.Name("eval" | "exec" | "globals" | "locals" | "__doc__")
            | ast.Attribute(attr="__doc__")
        ):
            return "names and docstrings are lost when the file is minified"
        case ast.Name("__file__"):
            beside = not piece.knows_package
        case ast.Name(name):
            beside = name in BESIDE_NAMES
        case ast.Import() | ast.ImportFrom():
            if import_of(piece.module.partition(".")[0], piece.module, node) is not None:
                return "import from the package at the top of the module"
            beside = _is_beside(ast.unparse(node))
        case ast.Call():
            beside = _reaches_beside(node)
    return "one file has nothing beside it" if beside else None


def _is_beside(statement: str) -> bool:
    return any(module in statement for module in BESIDE_MODULES)


def _reaches_beside(call: ast.Call) -> bool:
    name = last_name(call.func)
    first = call.args[0].value if call.args and isinstance(call.args[0], ast.Constant) else None
    if isinstance(first, str) and (ast.unparse(call.func) == "open" or name == "Path"):
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
    lines = [(0, statement.split()[1], statement) for statement in plain]
    lines += [(1, source, _from_import(source, names)) for source, names in froms.items()]
    groups: dict[bool, list[str]] = {True: [], False: []}  # the standard library comes first
    for _, source, statement in sorted(lines):
        groups[source.partition(".")[0] in sys.stdlib_module_names].append(statement)
    return "".join("\n" + "\n".join(group) + "\n" for group in groups.values() if group)


def _from_import(source: str, names: set[str]) -> str:
    ordered = sorted(names, key=lambda name: (not name.isupper(), not name[0].isupper(), name))
    line = f"from {source} import {', '.join(ordered)}"
    if len(line) <= LINE_LENGTH:
        return line
    return f"from {source} import (\n" + "".join(f"    {name},\n" for name in ordered) + ")"


def _header(module: Module) -> str:
    lines = (module.doc or "").splitlines()
    return "\n".join([f"# ---- {module.name}", *(f"# {line}".rstrip() for line in lines)])


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
