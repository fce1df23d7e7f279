"""Names as they are meant: what imports bring in, and what is said in a roundabout way.

Nothing here recurses, so that no source is too deep for it.
"""

from __future__ import annotations

import ast
from collections import Counter
from collections.abc import Iterable, Iterator

MOST_PARTS = 8  # of a name that is spelled
MOST_TEXT = 200  # characters of a text that is put together


def names_of(tree: ast.Module) -> dict[str, str]:
    """What imports bring in, by the names that they get: {"F": "torch.nn.functional"}.

    With what is given another name once, and in no other way: `run = subprocess.run`.
    """
    nodes = list(ast.walk(tree))
    found = dict(_imported(nodes))
    renamed = [
        (target.id, node.value)
        for node in nodes
        if isinstance(node, ast.Assign)
        for target in node.targets
        if isinstance(target, ast.Name)
    ]
    bound = Counter(bindings(nodes))
    for name, value in renamed:
        dotted = _dotted(value, found)
        if dotted is not None and bound[name] == 1:
            found[name] = dotted
    return found


def _imported(nodes: Iterable[ast.AST]) -> Iterator[tuple[str, str]]:
    for node in nodes:
        if isinstance(node, ast.Import):
            for alias in node.names:
                top = alias.name.partition(".")[0]
                yield alias.asname or top, alias.name if alias.asname else top
        elif isinstance(node, ast.ImportFrom):
            module = "." * node.level + (node.module or "")
            for alias in node.names:
                yield alias.asname or alias.name, f"{module}.{alias.name}"


def bindings(nodes: Iterable[ast.AST]) -> Iterator[str]:
    """Every name as often as something binds it."""
    for node in nodes:
        if isinstance(node, ast.Name) and not isinstance(node.ctx, ast.Load):
            yield node.id
        elif isinstance(node, ast.arg):
            yield node.arg
        elif isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            yield node.name
        elif isinstance(node, ast.alias):
            yield node.asname or node.name.partition(".")[0]


def _dotted(node: ast.expr, imported: dict[str, str]) -> str | None:
    parts: list[str] = []
    while isinstance(node, ast.Attribute) and len(parts) < MOST_PARTS:
        parts.append(node.attr)
        node = node.value
    if not isinstance(node, ast.Name) or node.id not in imported:
        return None
    return ".".join([imported[node.id], *reversed(parts)])


# ---- what is looked up by a text


def spell_out(tree: ast.Module) -> None:
    """Put x.backward where a tree has getattr(x, "back" + "ward"), so that rules need not know."""
    for parent in reversed(list(ast.walk(tree))):
        for field, value in ast.iter_fields(parent):
            if isinstance(value, list):
                value[:] = [_attribute(each) or each for each in value]
            elif isinstance(value, ast.AST):
                setattr(parent, field, _attribute(value) or value)


def _attribute(node: object) -> ast.Attribute | None:
    if not isinstance(node, ast.Call) or node.keywords:
        return None
    if isinstance(node.func, ast.Name) and node.func.id == "getattr" and len(node.args) == 2:
        owner, name = node.args
    elif (
        isinstance(node.func, ast.Attribute)
        and node.func.attr in ("__getattribute__", "__getattr__")
        and len(node.args) == 1
    ):
        owner, name = node.func.value, node.args[0]
    else:
        return None
    text = text_of(name)
    if text is None or not text.isidentifier():
        return None
    return ast.copy_location(ast.Attribute(value=owner, attr=text, ctx=ast.Load()), node)


def text_of(node: ast.expr) -> str | None:
    """A text that is written out, in one piece or several; None for all else."""
    waiting, parts, length = [node], [], 0
    while waiting:
        each = waiting.pop()
        if isinstance(each, ast.BinOp) and isinstance(each.op, ast.Add):
            waiting += [each.right, each.left]
        elif isinstance(each, ast.JoinedStr):
            waiting += reversed(each.values)
        elif isinstance(each, ast.Constant) and isinstance(each.value, str):
            parts.append(each.value)
            length += len(each.value)
        else:
            return None
        if length > MOST_TEXT or len(waiting) > MOST_TEXT:
            return None
    return "".join(parts)


def spelled(node: ast.AST, imported: dict[str, str] | None = None) -> str:
    """An expression of names as text, its last parts: cProfile.Profile().run, sys.modules['os'].

    Arguments are left out but for a single text; what is no name begins with "…".
    """
    parts: list[str] = []
    for _ in range(MOST_PARTS):
        if isinstance(node, ast.Attribute):
            parts.append(f".{node.attr}")
            node = node.value
        elif isinstance(node, ast.Call):
            text = text_of(node.args[0]) if len(node.args) == 1 else None
            parts.append("()" if text is None else f"({text[:60]!r})")
            node = node.func
        elif isinstance(node, ast.Subscript):
            text = text_of(node.slice)
            parts.append("[]" if text is None else f"[{text[:60]!r}]")
            node = node.value
        else:
            break
    first = "…"
    if isinstance(node, ast.Name):
        first = (imported or {}).get(node.id, node.id)
    return "".join([first, *reversed(parts)])
