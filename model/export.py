"""The package as one file: a readable one, and the one that is counted.

    python -m model.export --out train_gpt.py

The counted file holds the readable one (`train_gpt_human.py` beside it) minified and compressed,
behind a few lines that unpack and run it. Both run without the package, alone or under torchrun.
The same sources give the same bytes, whatever their path, the time or the hash seed.
"""

from __future__ import annotations

import argparse
import ast
import functools
import lzma
import re
import sys
from pathlib import Path

import python_minifier
from python_minifier import RemoveAnnotationsOptions

from model.onefile import merge, shaken
from model.pieces import ExportError

FOLDER = Path(__file__).parent
ENTRY = "model.train"
NOTE = """The training recipe as one file: PRESET=tiny torchrun --standalone train_gpt.py

Written by `sweeper export-script` from the package `model`, where changes belong."""
# The unpacked source starts below the loader's own lines, so that no traceback shows a line of
# the loader for one of the source; linecache shows the right ones, and inspect finds them there.
LOADER = """#coding:latin-1
import linecache,lzma
S='{body}'
S=lzma.decompress(S.encode("latin-1")).decode()
linecache.cache[__file__]=0,None,S.splitlines(1),__file__
exec(compile(S,__file__,"exec"))
"""
# Every byte is a character of Latin-1; these would end or change the string that holds them.
ESCAPES = {"\\": r"\\", "'": r"\'", "\n": r"\n", "\r": r"\r", "\0": r"\0"}


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
    bare = shaken(ast.unparse(_Bare().visit(ast.parse(human))))
    return python_minifier.minify(
        bare,
        remove_annotations=RemoveAnnotationsOptions(remove_class_attribute_annotations=False),
        remove_literal_statements=True,
        hoist_literals=False,  # repeated strings cost nothing once compressed
        rename_globals=False,
    )


class _Bare(ast.NodeTransformer):
    """Drops the annotations that nothing reads: all but those of class bodies."""

    def visit_arg(self, node: ast.arg) -> ast.arg:
        node.annotation = None
        return node

    def visit_FunctionDef(self, node: ast.FunctionDef) -> ast.FunctionDef:
        node.returns = None
        self.generic_visit(node)
        return node

    def visit_ClassDef(self, node: ast.ClassDef) -> ast.ClassDef:
        node.body = [n if isinstance(n, ast.AnnAssign) else self.visit(n) for n in node.body]
        return node

    def visit_AnnAssign(self, node: ast.AnnAssign) -> ast.stmt:
        if node.value is None:
            return node
        return ast.copy_location(ast.Assign([node.target], self.visit(node.value)), node)

    def visit_Call(self, node: ast.Call) -> ast.expr:
        self.generic_visit(node)
        if isinstance(node.func, ast.Name) and node.func.id == "vars" and len(node.args) == 1:
            # The same thing, but `vars` would keep the minifier from renaming locals.
            return ast.Attribute(node.args[0], "__dict__", ast.Load())
        return node


def counted_file(human: str) -> bytes:
    """The file that is counted: minified, compressed, and what unpacks it."""
    source = "\n" * LOADER.count("\n") + minified(human)
    return LOADER.format(body=quoted(_compress(source.encode()))).encode("latin-1")


def quoted(data: bytes) -> str:
    """Bytes as the inside of a string in Latin-1: 2 % more of them, where base85 has 25 %."""
    # A zero before a digit is written in full, for \\01 is another byte.
    parts = re.split(r"\0(?=[0-7])", data.decode("latin-1"))
    return r"\x00".join("".join(ESCAPES.get(c, c) for c in part) for part in parts)


def _compress(data: bytes) -> bytes:
    """LZMA in its oldest container, which has the shortest header and says its own settings."""
    settings = {
        "id": lzma.FILTER_LZMA1,
        "preset": 9 | lzma.PRESET_EXTREME,
        "lc": 3,
        "lp": 0,
        "pb": 0,  # text has no alignment
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
