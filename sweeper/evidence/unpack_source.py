"""Sources read as text and as syntax trees, whatever they are made of."""

from __future__ import annotations

import ast
import io
import tokenize
import warnings

MOST_SOURCE = 2 << 20  # bytes of a source that is parsed; a wrapper's data are not source
DEEPEST_SOURCE, MOST_NODES = 200, 400_000  # of its syntax tree


def parse(source: str) -> ast.Module:
    """A syntax tree, without a word on stderr. ValueError where it is no Python or too large."""
    if len(source) > MOST_SOURCE:
        raise ValueError(f"its source is larger than {MOST_SOURCE >> 20} MiB")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            tree = ast.parse(source)
    except SyntaxError as error:
        raise ValueError(f"no Python of this version: line {error.lineno}: {error.msg}") from error
    except (RecursionError, MemoryError) as error:
        raise ValueError("nested too deeply, or too large, to be read") from error
    _check_shape(tree)
    return tree


def _check_shape(tree: ast.Module) -> None:
    """Refuse what is there to be slow to read: ValueError."""
    waiting: list[tuple[ast.AST, int]] = [(tree, 0)]
    nodes = 0
    while waiting:
        node, depth = waiting.pop()
        nodes += 1
        if nodes > MOST_NODES:
            raise ValueError(f"it has more than {MOST_NODES:,} parts")
        if depth > DEEPEST_SOURCE:
            raise ValueError("nested too deeply to be read")
        # A long sum is nested, and plain for all that.
        deeper = depth + (not isinstance(node, ast.BinOp | ast.UnaryOp | ast.BoolOp))
        waiting += [(child, deeper) for child in ast.iter_child_nodes(node)]


def decode(data: bytes) -> tuple[str, str]:
    """A source as text, by the encoding that it declares, and that encoding's name."""
    try:
        encoding, _ = tokenize.detect_encoding(io.BytesIO(data).readline)
        return data.decode(encoding), encoding
    except (SyntaxError, LookupError, ValueError):
        return data.decode("latin-1"), "unknown"


def says_anything(tree: ast.Module) -> bool:
    """Whether there is more in it than texts that nothing is done with."""
    return not all(
        isinstance(each, ast.Expr) and isinstance(each.value, ast.Constant) for each in tree.body
    )
