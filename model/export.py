"""The package as one file: a readable one, and the one that is counted.

    python -m model.export --out train_gpt.py

The counted file holds the readable one (`train_gpt_human.py` beside it) minified and compressed,
behind a few lines that unpack and run it. Both run without the package, alone or under torchrun.
The same sources give the same bytes, whatever their path, the time or the hash seed.
"""

from __future__ import annotations

import argparse
import ast
import base64
import functools
import lzma
import sys
from pathlib import Path

import python_minifier
from python_minifier import RemoveAnnotationsOptions

from model.onefile import ExportError, merge, shaken

FOLDER = Path(__file__).parent
ENTRY = "model.train"
NOTE = """The training recipe as one file: PRESET=tiny torchrun --standalone train_gpt.py

Written by `sweeper export-script` from the package `model`, where changes belong."""
# The unpacked source starts below the loader's own lines, so that no traceback shows a line of
# the loader for one of the source; linecache shows the right ones, and inspect finds them there.
LOADER = """import base64,linecache,lzma
S="{body}"
S=lzma.decompress(base64.b85decode(S)).decode()
linecache.cache[__file__]=0,None,S.splitlines(1),__file__
exec(compile(S,__file__,"exec"))
"""


def read_source(name: str) -> str:
    """The source of a module of this package."""
    return (FOLDER.parent / f"{name.replace('.', '/')}.py").read_text(encoding="utf-8")


def human_file() -> str:
    """The readable file. Raises ExportError."""
    return merge(read_source, ENTRY, NOTE)


def minified(human: str) -> str:
    """A file's source as short as it gets while every name that the outside sees is kept.

    Classes, methods, attributes, fields and functions keep their names: state dicts, settings,
    events and tracebacks are made of them. Annotations stay where dataclasses read them.
    """
    bare = shaken(ast.unparse(_WithoutAnnotations().visit(ast.parse(human))))
    return python_minifier.minify(
        bare,
        remove_annotations=RemoveAnnotationsOptions(remove_class_attribute_annotations=False),
        remove_literal_statements=True,
        hoist_literals=False,  # repeated strings cost nothing once compressed
        rename_globals=False,
    )


class _WithoutAnnotations(ast.NodeTransformer):
    """Drops the annotations that nothing reads: all but those of class bodies."""

    def visit_arg(self, node: ast.arg) -> ast.arg:
        node.annotation = None
        return node

    def visit_FunctionDef(self, node: ast.FunctionDef) -> ast.FunctionDef:  # noqa: N802
        node.returns = None
        self.generic_visit(node)
        return node

    def visit_ClassDef(self, node: ast.ClassDef) -> ast.ClassDef:  # noqa: N802
        node.body = [n if isinstance(n, ast.AnnAssign) else self.visit(n) for n in node.body]
        return node

    def visit_AnnAssign(self, node: ast.AnnAssign) -> ast.stmt:  # noqa: N802
        if node.value is None:
            return node
        return ast.copy_location(ast.Assign([node.target], node.value), node)


def counted_file(human: str) -> bytes:
    """The file that is counted: minified, compressed, and what unpacks it."""
    source = "\n" * LOADER.count("\n") + minified(human)
    packed = min((_compress(source.encode(), context) for context in range(5)), key=len)
    return LOADER.format(body=base64.b85encode(packed).decode()).encode()


def _compress(data: bytes, context_bits: int) -> bytes:
    """LZMA in its oldest container, which has the shortest header and says its own settings."""
    settings = {
        "id": lzma.FILTER_LZMA1,
        "preset": 9 | lzma.PRESET_EXTREME,
        "lc": context_bits,
        "lp": 0,
        "pb": 0,
        "nice_len": 273,
        "depth": 1000,
    }
    return lzma.compress(data, format=lzma.FORMAT_ALONE, filters=[settings])


@functools.cache
def counted_bytes() -> int:
    """Size of the counted file of this package as it is on disk. Raises ExportError."""
    return len(counted_file(human_file()))


def main() -> int:
    """Write both files; prints what they weigh."""
    parser = argparse.ArgumentParser(
        prog="sweeper export-script",
        description="Write the recipe as one file, minified and compressed, and a readable one "
        "(NAME_human.py) beside it.",
    )
    parser.add_argument("--out", type=Path, default=Path("train_gpt.py"), metavar="FILE.py")
    out: Path = parser.parse_args().out
    readable = out.with_name(f"{out.stem}_human{out.suffix}")
    try:
        human = human_file()
        counted = counted_file(human)
        out.parent.mkdir(parents=True, exist_ok=True)
        readable.write_text(human, encoding="utf-8")
        out.write_bytes(counted)
    except (ExportError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(f"{out}: {len(counted):,} bytes, counted")
    print(f"{readable}: {len(human.encode()):,} bytes, to read")
    return 0


if __name__ == "__main__":
    sys.exit(main())
