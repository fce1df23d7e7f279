"""Ways to execute a text that are no plain call of exec: by another name, through what holds it.

What is executed that way is not worked out, only found: by the syntax tree, with its line.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Collection, Iterator

from sweeper.evidence.flows_spelling import spelled, text_of

EXECUTING = ("exec", "eval")
# Calls that run a text or code, by the end of what is called.
RUNNERS = re.compile(
    r"(?:^|\.)(?:InteractiveInterpreter|InteractiveConsole|FunctionType|CodeType|PyRun_\w+"
    r"|get_code|source_to_code|exec_code|exec_module|load_module|spec_from_loader|runsource"
    r"|runcode|CompilationUnit)$"
    r"|(?:^|\.)(?:code\.interact|(?:pdb|bdb|doctest)\.run\w*)$"
)
# Calls that run a text, or a function that they are given.
TIMERS = re.compile(
    r"(?:^|\.)(?:timeit\.(?:timeit|repeat|Timer)|c?Profile(?:\(\))?\.run(?:ctx)?"
    r"|Trace\(\)\.run(?:ctx|func)?)$"
)
# Names that one of these functions is asked for by, in getattr, attrgetter and their like.
ASKING = frozenset(
    {"getattr", "attrgetter", "methodcaller", "itemgetter", "__getattribute__", "setattr"}
)
# What changes names behind a reader's back.
CHANGING = re.compile(r"(?:^|\.)(?:setattr|__setattr__|__setitem__|delattr)$")
TABLES = re.compile(
    r"^(?:globals|locals|vars)\(|__dict__$|^sys\.modules\b|\('sys'\)\.modules|__builtins__"
)
BUILTINS = re.compile(r"^(?:builtins|__builtins__)$|[\[(]'(?:builtins|__builtins__)'[\])]$")
HANDED_ON = "the builtins, which are handed on: what is taken out of them is not seen"


def other_ways(
    tree: ast.Module, imported: dict[str, str], own: Collection[str]
) -> Iterator[tuple[int, str]]:
    """The lines that execute something otherwise than by a plain call, each with why.

    `imported` are the names that imports bring in; `own` those of functions and classes that the
    source defines itself: its own function `eval` is no danger.
    """
    nodes = list(ast.walk(tree))
    parents = {id(child): node for node in nodes for child in ast.iter_child_nodes(node)}
    seen = {id(node.func) for node in nodes if isinstance(node, ast.Call)}
    seen |= set(_parameters(nodes))
    names = {name for name in EXECUTING if name not in own}
    names |= {name for name, dotted in imported.items() if dotted in _DOTTED}
    if "compile" not in {*own, *imported, *_bound(nodes)}:
        names.add("compile")
    for value, name in _renamings(tree):
        if isinstance(value, ast.Name) and value.id in names:
            seen.add(id(value))
            names.add(name)
    for node in nodes:
        why = None
        if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Load) and node.id in names:
            if id(node) not in seen:
                why = f"{node.id}, which is not called here but may be anywhere"
        elif isinstance(node, ast.Attribute):
            why = _attribute(node, imported, own)
        elif isinstance(node, ast.Call) and not _asks_plainly(node, seen, imported):
            why = _call(node, imported, own)
            # type(error) may only be printed.
            if _is_type(node, own) and isinstance(parents[id(node)], ast.Assign | ast.Call):
                why = "a function made of code"
        if why is None and isinstance(node, ast.expr):
            parent = parents.get(id(node))
            if not _asks_plainly(parent, seen, imported):
                why = _handed_on(node, parent, imported)
        if why is not None:
            yield getattr(node, "lineno", 1), why


_DOTTED = frozenset(f"builtins.{name}" for name in EXECUTING)


def _parameters(nodes: list[ast.AST]) -> Iterator[int]:
    """The names in a function that its own parameters bind: `if compile:`."""
    for node in nodes:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            given = {each.arg for each in ast.walk(node.args) if isinstance(each, ast.arg)}
            if given & {*EXECUTING, "compile"}:
                body = [node.body] if isinstance(node, ast.Lambda) else node.body
                for each in (inner for part in body for inner in ast.walk(part)):
                    if isinstance(each, ast.Name) and each.id in given:
                        yield id(each)


def _bound(nodes: list[ast.AST]) -> Iterator[str]:
    for node in nodes:
        if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            yield node.id


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


def _attribute(node: ast.Attribute, imported: dict[str, str], own: Collection[str]) -> str | None:
    if node.attr == "__code__" and isinstance(node.ctx, ast.Store):
        return "a function whose code is replaced"
    if node.attr == "__class__" and _is_function(node.value, own):
        return "a function made of code"
    if node.attr not in EXECUTING:
        return None
    # A network's own eval() is no danger; that of the builtins is.
    owner = spelled(node.value, imported)
    taken = re.match(r"(?:globals|locals|vars)\(", owner) and node.attr == "exec"
    return f"{node.attr} of {owner[:60]}" if taken or "builtins" in owner else None


def _call(node: ast.Call, imported: dict[str, str], own: Collection[str]) -> str | None:
    name = spelled(node.func, imported)
    first = node.args[0] if node.args else None
    if RUNNERS.search(name) or (TIMERS.search(name) and not _is_function(first, own)):
        return f"a call of {name[:60]}"
    last = name.rpartition(".")[2]
    if last in ASKING:
        texts = [text for text in map(text_of, node.args) if text is not None]
        wanted = {"__code__"} if last == "setattr" else {*EXECUTING, "__code__", "compile"}
        if set(texts) & wanted:
            return f"{name[:60]} of {', '.join(map(repr, texts))[:60]}"
    return None


def _is_type(node: ast.Call, own: Collection[str]) -> bool:
    """type(function), which makes functions of code."""
    plain = isinstance(node.func, ast.Name) and node.func.id == "type" and len(node.args) == 1
    return plain and _is_function(node.args[0], own)


def _asks_plainly(node: ast.AST | None, seen: set[int], imported: dict[str, str]) -> bool:
    """getattr(builtins, "exec")(…), which a reader of calls follows."""
    return (
        isinstance(node, ast.Call)
        and id(node) in seen
        and spelled(node.func, imported) == "getattr"
        and len(node.args) == 2
        and text_of(node.args[1]) is not None
        and BUILTINS.search(spelled(node.args[0], imported)) is not None
    )


def _is_function(node: ast.expr | None, own: Collection[str]) -> bool:
    return isinstance(node, ast.Lambda) or (isinstance(node, ast.Name) and node.id in own)


def _handed_on(node: ast.expr, parent: ast.AST | None, imported: dict[str, str]) -> str | None:
    """Builtins that are not asked for one of them by its name."""
    if not isinstance(node, ast.Name | ast.Attribute | ast.Call | ast.Subscript):
        return None
    if not isinstance(getattr(node, "ctx", ast.Load()), ast.Load):
        return None
    if not BUILTINS.search(spelled(node, imported)):
        return None
    by_name = isinstance(parent, ast.Attribute) and parent.attr != "__dict__"
    renamed = isinstance(parent, ast.Assign) and isinstance(parent.targets[0], ast.Name)
    if renamed and isinstance(parent, ast.Assign):
        renamed = imported.get(getattr(parent.targets[0], "id", "")) == "builtins"
    return None if by_name or renamed else HANDED_ON


def changes_names(node: ast.AST, imported: dict[str, str]) -> bool:
    """Whether a part of a statement may bind names, or change modules, that nothing shows."""
    if isinstance(node, ast.Call):
        if CHANGING.search(spelled(node.func, imported)):
            return not _of_an_object(node)
        if not isinstance(node.func, ast.Attribute):
            return False
        updating = node.func.attr in ("update", "setdefault", "pop")
        return updating and TABLES.search(spelled(node.func.value, imported)) is not None
    if not isinstance(node, ast.Subscript) or isinstance(node.ctx, ast.Load):
        return False
    return TABLES.search(spelled(node.value, imported)) is not None


def _of_an_object(node: ast.Call) -> bool:
    """Whether what is set is an attribute of an object of the script: self, a network, a tensor."""
    first = node.args[0] if node.args else None
    while isinstance(first, ast.Attribute | ast.Subscript):
        first = first.value
    return isinstance(first, ast.Name) and first.id in ("self", "cls", "model", "module", "args")
