"""A corpus that is on every machine with Python: the standard library's own words.

Documents are the topics of Python's reference, the docstrings of each module, and its source
without them, so that no text stands in two documents and none of it is in both splits. The
library differs between Python versions; the corpus hash in `dataset.json` tells them apart.
"""

from __future__ import annotations

import ast
import hashlib
import re
import sysconfig
import tokenize
from collections.abc import Iterator
from pathlib import Path

from jobs.data.errors import DataError

# Not text of the library's own: installed packages, tests, tables of characters and of topics,
# and how this very interpreter was built.
LEFT_OUT = frozenset(
    {"__pycache__", "dist-packages", "encodings", "idle_test", "pydoc_data", "site-packages"}
    | {"test", "tests"}
)
BUILD_FACTS = re.compile(r"_sysconfigdata|config-\d")
MIN_CHARACTERS = 200
STATEMENTS = (ast.stmt, ast.excepthandler, ast.match_case)

Documented = ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef


def stdlib_documents() -> list[str]:
    """All documents, in an order that mixes their kinds and is the same on every machine."""
    documents: dict[str, str] = {}
    for name, text in [*_topics(), *_modules(Path(sysconfig.get_path("stdlib")))]:
        if len(text) >= MIN_CHARACTERS and text not in documents:
            documents[text] = name
    if not documents:
        raise DataError(
            "this Python comes without the sources of its standard library; give documents of "
            "your own to `sweeper data prepare`"
        )
    return sorted(documents, key=lambda text: hashlib.sha256(documents[text].encode()).digest())


def _topics() -> Iterator[tuple[str, str]]:
    """Python's language reference, as far as `help()` has it; some distributions leave it out."""
    try:
        from pydoc_data.topics import topics
    except ImportError:
        return
    for name, text in topics.items():
        yield f"topic/{name}", text


def _modules(root: Path) -> Iterator[tuple[str, str]]:
    for path in sorted(root.rglob("*.py")):
        place = path.relative_to(root)
        if BUILD_FACTS.match(place.parts[0]) or not LEFT_OUT.isdisjoint(place.parts):
            continue
        try:
            with tokenize.open(path) as file:
                source = file.read()
            tree = ast.parse(source)
        except (OSError, SyntaxError, UnicodeDecodeError, ValueError):
            continue  # templates and broken files are no text to learn from
        prose, code = split_docstrings(source, tree)
        yield f"docstrings/{place.as_posix()}", prose
        yield f"source/{place.as_posix()}", code


def split_docstrings(source: str, tree: ast.Module) -> tuple[str, str]:
    """A module's docstrings, one after another, and its source without their lines."""
    prose: list[str] = []
    removed: set[int] = set()
    for node in _documented(tree):
        text = ast.get_docstring(node)
        if text:
            prose.append(text)
            first = node.body[0]
            removed.update(range(first.lineno, (first.end_lineno or first.lineno) + 1))
    lines = source.splitlines(keepends=True)
    code = "".join(line for number, line in enumerate(lines, 1) if number not in removed)
    return "\n\n".join(prose), code


def _documented(tree: ast.Module) -> Iterator[Documented]:
    """Everything in a module that may have a docstring, in the order of the source."""
    waiting: list[ast.AST] = [tree]
    while waiting:
        node = waiting.pop()
        if isinstance(node, Documented):
            yield node
        # Expressions hold no docstrings, and are most of a tree.
        inner = [child for child in ast.iter_child_nodes(node) if isinstance(child, STATEMENTS)]
        waiting.extend(reversed(inner))
