"""A rule about the size of the code: whether what is counted is this whole file.

What is neither the length nor the size of the script's own file is to be looked at.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator

from sweeper.evidence.audit_reading import Confidence, Finding, Kind, Reading, calls_in
from sweeper.evidence.flows import Function, names_in, position
from sweeper.evidence.flows_spelling import text_of

CODE_SIZE = re.compile(r"^_*(code_bytes|bytes_code|code_size|csz\w*|n_code_bytes|code_len)$", re.I)
COMPRESSING = re.compile(r"(lzma|zlib|bz2|brotli|gzip|zstandard|zstd)\.(compress|ZstdCompressor)")
SHRINKING = (ast.FloorDiv, ast.Div, ast.Mod, ast.RShift, ast.Sub, ast.Pow, ast.BitAnd)
# Calls that leave a number a number; all others make something else of what they are given.
ROUNDING = frozenset({"int", "round", "abs", "max", "min", "sum", "float", "math.ceil"})
SHORTENING = frozenset({"replace", "strip", "lstrip", "rstrip", "split", "sub", "translate"})
MEASURING = frozenset({"len", "encode", "bytes", "str"})
# By these a script finds itself.
ITSELF = frozenset({"__file__", "argv", "getsource", "getsourcefile", "getfile", "co_filename"})
OF_A_FILE = re.compile(r"(^|\.)(open|Path|getsize|stat)$")
MOST_STEPS = 40

Judgement = tuple[Confidence, str]


def code_sizes(reading: Reading) -> Iterator[Finding]:
    """Sizes of the code that may not be those of the counted file."""
    zeros: dict[str, list[ast.AST]] = {}
    others: set[str] = set()
    for function in reading.program.functions:
        for node, name, value in _given(function):
            if isinstance(value, ast.Constant) and value.value == 0:
                zeros.setdefault(name, []).append(node)
                continue
            others.add(name)
            found = _judge(reading, function, node, value)
            if found is not None:
                yield reading.find(Kind.UNCOUNTED_CODE, node, *found)
    for name, places in zeros.items():
        if name not in others:  # else it is where a count begins
            why = "the size of the code is said to be 0"
            yield reading.find(Kind.UNCOUNTED_CODE, places[0], Confidence.HIGH, why)


def _given(function: Function) -> Iterator[tuple[ast.AST, str, ast.expr]]:
    """Where the size of the code gets a value: the place, the name and the value."""
    for node in function.nodes:
        targets: list[ast.expr] = []
        value = getattr(node, "value", None)
        if isinstance(node, ast.Assign):
            targets = node.targets
        elif isinstance(node, ast.AnnAssign | ast.NamedExpr):
            targets = [node.target]
        elif isinstance(node, ast.AugAssign):
            targets = [node.target]
            value = ast.BinOp(left=node.target, op=node.op, right=node.value)
        elif isinstance(node, ast.keyword) and node.arg is not None:
            targets = [ast.Name(node.arg)]
        elif isinstance(node, ast.Dict):
            for key, each in zip(node.keys, node.values, strict=True):
                if isinstance(key, ast.Constant) and _is_size(str(key.value)):
                    yield each, str(key.value), each
        for target in targets:
            name = getattr(target, "id", getattr(target, "attr", ""))
            if _is_size(name) and isinstance(value, ast.expr):
                yield node, name, value


def _is_size(name: str) -> bool:
    return CODE_SIZE.search(name) is not None


def _judge(
    reading: Reading, function: Function, node: ast.AST, value: ast.expr
) -> Judgement | None:
    if isinstance(value, ast.Constant) and isinstance(value.value, int | float):
        return Confidence.HIGH, "the size of the code is a constant"
    parts = list(_arithmetic(reading, value))
    if any(map(_shrinks, parts)):
        return Confidence.HIGH, "the size of the code is made smaller than it is"
    calls = list(calls_in(ast.walk(value)))
    if any(_shortens(reading, each) for each in [*parts, *calls]):
        return Confidence.MEDIUM, "the code is counted as if it were shorter than this file"
    if any(COMPRESSING.search(reading.program.called(each)) for each in calls):
        packed = "the code is counted as if it were compressed, and this file is not"
        return (Confidence.MEDIUM, packed) if reading.layer.number == 0 else None
    return _of_what(reading, function, node, value)


def _arithmetic(reading: Reading, value: ast.expr) -> Iterator[ast.AST]:
    """The arithmetic of a size, but not what is in its calls."""
    waiting: list[ast.AST] = [value]
    while waiting:
        each = waiting.pop()
        yield each
        if not isinstance(each, ast.Call) or reading.program.called(each) in ROUNDING:
            waiting += ast.iter_child_nodes(each)


def _shrinks(node: ast.AST) -> bool:
    if isinstance(node, ast.Call):
        return isinstance(node.func, ast.Name) and node.func.id == "min"
    if not isinstance(node, ast.BinOp):
        return False
    sides = [each.value for each in (node.left, node.right) if isinstance(each, ast.Constant)]
    less = any(isinstance(each, float) and each < 1 for each in sides)
    return isinstance(node.op, SHRINKING) or (isinstance(node.op, ast.Mult) and less)


def _shortens(reading: Reading, node: ast.AST) -> bool:
    """Whether only a part of a text is counted: len(code[:9000]), len(code.replace(…))."""
    if not isinstance(node, ast.Call):
        return False
    if reading.program.called(node) == "len":
        within = ast.walk(node)
        return any(isinstance(each, ast.Subscript) and _is_cut(each) for each in within)
    return isinstance(node.func, ast.Attribute) and node.func.attr in SHORTENING


def _is_cut(node: ast.Subscript) -> bool:
    return isinstance(node.slice, ast.Slice)


def _of_what(
    reading: Reading, function: Function, node: ast.AST, value: ast.expr
) -> Judgement | None:
    """Whose size it is, as far as names lead; nothing is said where they lead nowhere."""
    texts, files = 0, 0
    waiting, seen = [value], {value}
    for _ in range(MOST_STEPS):
        if not waiting:
            break
        expression = waiting.pop()
        names = names_in(expression)
        if names & ITSELF or (function is not reading.program.top and names & {*function.params}):
            return None
        for each in ast.walk(expression):
            if isinstance(each, ast.Call) and OF_A_FILE.search(reading.program.called(each)):
                files += _is_another(reading, each)
            elif isinstance(each, ast.Name):
                bound = _bound(reading, function, each.id, node)
                if bound is not None and bound not in seen:
                    seen.add(bound)
                    waiting.append(bound)
        written = (getattr(each, "value", None) for each in ast.walk(expression))
        texts += names <= MEASURING and any(isinstance(each, str | bytes) for each in written)
    if files:
        return Confidence.MEDIUM, "the size is that of another file"
    return (Confidence.MEDIUM, "the size is that of a text of its own") if texts else None


def _is_another(reading: Reading, call: ast.Call) -> bool:
    """Whether a file is named that is not the script."""
    text = text_of(call.args[0]) if call.args else None
    own = {"train_gpt.py", reading.path.name if reading.path is not None else ""}
    return text is not None and text.rpartition("/")[2] not in own


def _bound(reading: Reading, function: Function, name: str, node: ast.AST) -> ast.expr | None:
    """What a name was bound to before, in the function or at the top level."""
    places = ((function, position(node)), (reading.program.top, (1 << 30, 0)))
    for where, before in places:
        found = reading.validation.bound_before(name, before, where, whole=True)
        if found is not None:
            return found
    return None
