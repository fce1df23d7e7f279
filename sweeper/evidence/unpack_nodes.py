"""Parts of statements, as a reader of wrappers goes through them."""

from __future__ import annotations

import ast
from collections.abc import Collection, Iterable, Iterator

from sweeper.evidence.flows_spelling import spelled


def is_exec(call: ast.Call) -> bool:
    return isinstance(call.func, ast.Name) and call.func.id in ("exec", "eval")


def blocks(statement: ast.stmt) -> Iterator[list[ast.stmt]]:
    """The blocks of statements in a statement."""
    for name in ("body", "orelse", "finalbody"):
        block = getattr(statement, name, None)
        if isinstance(block, list):
            yield block
    for handler in getattr(statement, "handlers", []):
        yield handler.body
    for case in getattr(statement, "cases", []):
        yield case.body


def own_nodes(
    statement: ast.stmt, rebound: Collection[str] = ()
) -> list[tuple[ast.AST, frozenset[str]]]:
    """The nodes of a statement but those of the statements in it, a call's parts before it.

    Each with the names that mean something else there: a lambda's, a comprehension's, such as the
    statement itself binds by the way, and of what runs later all that are `rebound`.
    """
    stack: list[tuple[ast.AST, frozenset[str]]] = [(statement, frozenset())]
    found: list[tuple[ast.AST, frozenset[str]]] = []
    while stack:
        node, names = stack.pop()
        found.append((node, names))
        inner = names | set(_own_names(node, rebound))
        stack += [(each, inner) for each in ast.iter_child_nodes(node) if not _is_inner(each)]
    bound = {each.target.id for each, _ in found if isinstance(each, ast.NamedExpr)}
    return [(node, names | bound) for node, names in reversed(found)]


def _own_names(node: ast.AST, rebound: Collection[str]) -> Iterator[str]:
    if isinstance(node, ast.Lambda):
        yield from (each.arg for each in ast.walk(node.args) if isinstance(each, ast.arg))
    elif isinstance(node, ast.ListComp | ast.SetComp | ast.DictComp | ast.GeneratorExp):
        yield from (name for loop in node.generators for name in names_in_target(loop.target))
    if isinstance(node, ast.Lambda | ast.GeneratorExp):
        yield from changed_later([node], rebound)


def changed_later(parts: Iterable[ast.AST], rebound: Collection[str]) -> set[str]:
    """The names in what runs later that may be bound to something else by then."""
    named = (each for part in parts for each in ast.walk(part) if isinstance(each, ast.Name))
    return {each.id for each in named if each.id in rebound}


def asked_by_name(nodes: list[ast.AST]) -> Iterator[int]:
    """The names of which no more is asked than one of their parts, or whether they are there."""
    for node in nodes:
        if isinstance(node, ast.Attribute):
            yield id(node.value)
        elif isinstance(node, ast.Compare):
            yield from (id(each) for each in (node.left, *node.comparators))
        elif isinstance(node, ast.Call) and spelled(node.func) in ("getattr", "hasattr"):
            yield from (id(each) for each in node.args)
        elif isinstance(node, ast.Name) and not isinstance(node.ctx, ast.Load):
            yield id(node)


def _is_inner(node: ast.AST) -> bool:
    return isinstance(node, ast.stmt | ast.excepthandler | ast.match_case)


def names_in_target(target: ast.expr) -> Iterator[str]:
    for node in ast.walk(target):
        if isinstance(node, ast.Name):
            yield node.id
