"""Ways to execute a text that are no plain call of exec: by another name, through what holds it.

What is executed that way is not worked out, only found: by the syntax tree, with its line.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Collection, Iterator

EXECUTING = ("exec", "eval")
# Calls that run a text or code, by the end of what is called.
RUNNERS = re.compile(
    r"(?:^|\.)(?:InteractiveInterpreter|InteractiveConsole|FunctionType|CodeType|PyRun_\w+"
    r"|get_code|source_to_code|exec_code|runsource|runcode)$"
    r"|(?:^|\.)(?:timeit\.(?:timeit|repeat|Timer)|c?Profile\.run(?:ctx)?|code\.interact)$"
)
# Names that one of these functions is asked for by, in getattr, attrgetter and their like.
ASKING = frozenset({"getattr", "attrgetter", "methodcaller", "itemgetter", "__getattribute__"})
# What changes names behind a reader's back.
CHANGING = re.compile(r"(?:^|\.)(?:setattr|__setattr__|__setitem__|delattr)$")
TABLES = re.compile(r"^(?:globals|locals|vars)\(.*\)|__dict__$|^sys\.modules\b|__builtins__")


def other_ways(tree: ast.Module, own: Collection[str]) -> Iterator[tuple[int, str]]:
    """The lines that execute something otherwise than by a plain call, each with why.

    `own` are the names that the source defines itself: its own function `eval` is no danger.
    """
    seen = {id(node.func) for node in ast.walk(tree) if isinstance(node, ast.Call)}
    names = {name for name in EXECUTING if name not in own}
    for value, name in _renamings(tree):
        if isinstance(value, ast.Name) and value.id in names:
            seen.add(id(value))
            names.add(name)
    for node in ast.walk(tree):
        why, line = None, getattr(node, "lineno", 1)
        if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Load):
            if node.id in names and id(node) not in seen:
                why = f"{node.id}, which is not called here but may be anywhere"
        elif isinstance(node, ast.Attribute):
            why = _attribute(node)
        elif isinstance(node, ast.Call):
            why = _call(node)
        if why is not None:
            yield line, why


def _renamings(tree: ast.Module) -> Iterator[tuple[ast.expr, str]]:
    """What is given another name by a plain assignment, which a reader of calls follows."""
    in_classes = {
        id(statement)
        for node in ast.walk(tree)
        if isinstance(node, ast.ClassDef)
        for statement in node.body
    }
    for node in ast.walk(tree):
        if not isinstance(node, ast.Assign) or id(node) in in_classes:
            continue
        for target in node.targets:
            several = isinstance(target, ast.Tuple) and isinstance(node.value, ast.Tuple)
            targets = target.elts if isinstance(target, ast.Tuple) and several else [target]
            values = (
                node.value.elts if isinstance(node.value, ast.Tuple) and several else [node.value]
            )
            for name, value in zip(targets, values, strict=False):
                if isinstance(name, ast.Name):
                    yield value, name.id


def _attribute(node: ast.Attribute) -> str | None:
    if node.attr == "__code__" and isinstance(node.ctx, ast.Store):
        return "a function whose code is replaced"
    # A network's own eval() is no danger; that of the builtins is.
    builtins = "builtins" in ast.unparse(node.value)
    if node.attr == "exec" or (node.attr == "eval" and builtins):
        return f"{node.attr} of {ast.unparse(node.value)[:60]}" if builtins else None
    return None


def _call(node: ast.Call) -> str | None:
    name = ast.unparse(node.func)[-120:]
    first = node.args[0] if node.args else None
    if RUNNERS.search(name) and not isinstance(first, ast.Lambda):
        return f"a call of {name[:60]}"
    if name.rpartition(".")[2] in ASKING:
        texts = [each.value for each in node.args if isinstance(each, ast.Constant)]
        if set(texts) & {*EXECUTING, "__code__", "__call__", "compile"}:
            return f"{name[:60]} of {', '.join(map(repr, texts))[:60]}"
    made = isinstance(node.func, ast.Call) and ast.unparse(node.func).startswith("type(lambda")
    return "a function made of code" if made else None


def changes_names(node: ast.AST) -> bool:
    """Whether a part of a statement may bind names, or change modules, that nothing shows."""
    if isinstance(node, ast.Call):
        if CHANGING.search(ast.unparse(node.func)):
            return not _of_an_object(node)
        if not isinstance(node.func, ast.Attribute):
            return False
        updating = node.func.attr in ("update", "setdefault", "pop")
        return updating and TABLES.search(ast.unparse(node.func.value)) is not None
    if not isinstance(node, ast.Subscript) or isinstance(node.ctx, ast.Load):
        return False
    return TABLES.search(ast.unparse(node.value)) is not None


def _of_an_object(node: ast.Call) -> bool:
    """Whether what is set is an attribute of an object of the script: self, a network, a tensor."""
    first = node.args[0] if node.args else None
    while isinstance(first, ast.Attribute | ast.Subscript):
        first = first.value
    return isinstance(first, ast.Name) and first.id in ("self", "cls", "model", "module", "args")
