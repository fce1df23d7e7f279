"""What a source imports, and which files it names where it uses them, by its syntax tree."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator

# Calls whose texts are for people to read.
TELLS = re.compile(
    r"print|log\d*|info|debug|warn(?:ing)?|add_argument|ArgumentParser|\w*(?:Error|Exit|Exception)"
)
IMPORTERS = ("import_module", "__import__")
BETWEEN_NAMES = re.compile(r"""[\s"'=;:,()<>|&/\\]+""")


def parsed(source: str) -> ast.Module | None:
    """The tree of a source; None where it has none."""
    try:
        return ast.parse(source)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return None


def imported(tree: ast.AST) -> frozenset[str]:
    """The top-level names of all modules that are imported, by a statement or by a name in text."""
    return frozenset(name.partition(".")[0] for name in _imported(tree))


def _imported(tree: ast.AST) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module
        elif isinstance(node, ast.ImportFrom):  # from . import name
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.Call) and called(node) in IMPORTERS and node.args:
            first = node.args[0]
            if isinstance(first, ast.Constant) and isinstance(first.value, str):
                yield first.value.lstrip(".")


def called(call: ast.Call) -> str:
    """The last part of what is called: `run_path` of runpy.run_path; empty where it has no name."""
    return getattr(call.func, "attr", None) or getattr(call.func, "id", None) or ""


def named_in_calls(tree: ast.AST) -> frozenset[str]:
    """The words of all texts that are given to calls, split as paths and commands are.

    Not those that are only told to people, nor comments and docstrings.
    """
    words: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and TELLS.fullmatch(called(node)) is None:
            for given in (*node.args, *(each.value for each in node.keywords)):
                for text in _texts(given):
                    words.update(BETWEEN_NAMES.split(text))
    return frozenset(words - {""})


def on_the_path(tree: ast.AST) -> frozenset[str]:
    """The words of what is put on sys.path: folders and archives that modules are looked for in."""
    words: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and called(node) in ("insert", "append", "extend"):
            owner = getattr(node.func, "value", None)
            if isinstance(owner, ast.Attribute) and owner.attr == "path":
                words.update(
                    w for g in node.args for t in _texts(g) for w in BETWEEN_NAMES.split(t)
                )
    return frozenset(words - {""})


def _texts(node: ast.AST) -> Iterator[str]:
    """The texts below a node, but not those that calls in it are given; however deep it is."""
    left = [node]
    while left:
        each = left.pop()
        if isinstance(each, ast.Constant) and isinstance(each.value, str):
            yield each.value
        elif not isinstance(each, ast.Call):
            left.extend(ast.iter_child_nodes(each))
