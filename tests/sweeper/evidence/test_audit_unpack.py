"""Wrapped scripts: every common form is unpacked, none is executed, and bombs do no harm."""

from __future__ import annotations

import base64
import bz2
import gzip
import lzma
import sys
import zlib
from collections.abc import Callable
from pathlib import Path

import brotli
import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from sweeper.evidence.unpack import MOST_LAYERS, Unpacked, unpack
from sweeper.evidence.unpack_codecs import MOST_BYTES, TooLargeError
from sweeper.evidence.unpack_values import Evaluator
from tests.sweeper.evidence.audit_scripts import exported

# Were any of it executed, the test would fail.
SOURCE = "import math\nraise SystemExit('executed')\n" + "x = math.pi  # and so on\n" * 20
DATA = SOURCE.encode()
RAW = [{"id": lzma.FILTER_LZMA2, "preset": 9}]


def b85(data: bytes) -> str:
    return base64.b85encode(data).decode()


def public_form() -> str:
    packed = b85(lzma.compress(DATA, format=lzma.FORMAT_RAW, filters=RAW))
    filters = '[{"id":L.FILTER_LZMA2}]'
    return (
        "import lzma as L,base64 as B\n"
        f'exec(L.decompress(B.b85decode("{packed}"),format=L.FORMAT_RAW,filters={filters}))\n'
    )


def own_file() -> str:
    head = "import zlib,base64\nexec(zlib.decompress(base64.b64decode(open(__file__).read()"
    return head + f'.split("#"+"!")[1])))\n#!{base64.b64encode(zlib.compress(DATA)).decode()}'


def seeking() -> str:
    head = "import base64\nf=open(__file__,'rb');f.seek({at})\nexec(base64.b64decode(f.read()))\n#"
    at = len(head.format(at=100))
    return head.format(at=f"{at:03}".lstrip("0").rjust(3)) + base64.b64encode(DATA).decode()


FORMS: dict[str, Callable[[], str]] = {
    "lzma raw": public_form,
    "own file": own_file,
    "seek": seeking,
    "lzma": lambda: f"import lzma\nexec(lzma.decompress({lzma.compress(DATA)!r}))",
    "zlib": lambda: f"from zlib import decompress as d\nexec(d({zlib.compress(DATA)!r}).decode())",
    "bz2": lambda: f"import bz2\nexec(bz2.decompress({bz2.compress(DATA)!r}))",
    "gzip": lambda: f"import gzip\nexec(gzip.decompress({gzip.compress(DATA)!r}))",
    "brotli": lambda: f"import brotli\nexec(brotli.decompress({brotli.compress(DATA)!r}))",
    "zstd": lambda: (
        "import zstandard as z\n"
        f"exec(z.ZstdDecompressor().decompress({zstandard.compress(DATA)!r}).decode())"
    ),
    "decompressor": lambda: (
        f"import zlib\nexec(zlib.decompressobj(-15).decompress({zlib.compress(DATA, wbits=-15)!r}))"
    ),
    "compile": lambda: f"exec(compile({SOURCE!r}, __file__, 'exec'))",
    "eval": lambda: f"eval(compile({DATA!r}, '', 'exec'))",
    "bytes": lambda: f"exec(bytes({list(DATA)!r}).decode('utf-8'))",
    "hex": lambda: f"S='{DATA.hex()}'\nexec(bytes.fromhex(S))",
    "xor": lambda: f"exec(bytes(b ^ 7 for b in {bytes(b ^ 7 for b in DATA)!r}))",
    "chr": lambda: f"exec(''.join(map(chr, {[*map(ord, SOURCE)]})))",
    "reversed": lambda: f"exec({SOURCE[::-1]!r}[::-1])",
    "joined": lambda: f"p={[SOURCE[:9], SOURCE[9:]]!r}\nq=''\nq+=p[0]\nq=q+p[1]\nexec(q)",
    "replaced": lambda: f"exec({SOURCE.replace('math', '@@')!r}.replace('@@', 'math'))",
    "renamed": lambda: f"import zlib\ne, d = exec, zlib.decompress\ne(d({zlib.compress(DATA)!r}))",
    "imported": lambda: (
        f"getattr(__import__('builtins'), 'ex'+'ec')(__import__('zlib')"
        f".decompress({zlib.compress(DATA)!r}))"
    ),
    "function": lambda: f"def go():\n    s = {SOURCE!r}\n    exec(s, globals())\ngo()",
    "guarded": lambda: (
        "try:\n    import zlib\n    if True:\n"
        f"        exec(zlib.decompress({zlib.compress(DATA)!r}))\n"
        "except Exception:\n    pass"
    ),
    "written": lambda: (
        "import zlib, runpy\n"
        f"open('/tmp/x.py', 'wb').write(zlib.decompress({zlib.compress(DATA)!r}))\n"
        "runpy.run_path('/tmp/x.py')"
    ),
    "with": lambda: (
        "import base64\nwith open(__file__) as f:\n    s = f.read()\n"
        f"exec(base64.b64decode(s.rpartition('#')[2]))\n#{base64.b64encode(DATA).decode()}"
    ),
}


@pytest.mark.parametrize("form", FORMS)
def test_a_wrapped_source_is_unpacked(form: str) -> None:
    found = unpack(FORMS[form]().encode())
    assert found.layers[-1].source == SOURCE, found.problems
    assert found.layers[-1].tree is not None
    assert not found.problems


def test_a_layer_says_where_it_comes_from() -> None:
    found = unpack(public_form().encode())
    inner = found.layers[1]
    assert (inner.parent, inner.at, inner.bytes) == (0, 2, len(DATA))
    assert inner.how == "exec at line 2 of layer 0"
    assert inner.lines[0] == "import math"
    assert found.wrapped


def test_our_own_export_is_unpacked() -> None:
    found = unpack(exported())
    assert [each.encoding for each in found.layers] == ["iso-8859-1", "text"]
    assert "class GPT(nn.Module)" in found.layers[1].source
    assert not found.problems


def test_layers_within_layers_up_to_so_many() -> None:
    def wrapped(source: str, times: int) -> str:
        for _ in range(times):
            source = f"import zlib\nexec(zlib.decompress({zlib.compress(source.encode())!r}))"
        return source

    assert unpack(wrapped(SOURCE, 4).encode()).layers[-1].source == SOURCE
    deep = unpack(wrapped(SOURCE, MOST_LAYERS + 2).encode())
    assert len(deep.layers) == MOST_LAYERS
    assert f"more than {MOST_LAYERS} layers" in deep.problems[-1].why


@pytest.mark.parametrize(
    ("source", "why"),
    [
        ("exec(open('other.py').read())", "a file that is not the script itself"),
        ("import os\nexec(os.environ['CODE'])", "TypeError"),
        ("exec(input())", "a call of input"),
        ("import marshal\nexec(marshal.loads(b'x'))", "a call of marshal.loads"),
        ("def run(s):\n    exec(s)\n", "no text"),
        ("for s in ['a']:\n    exec(s)\n", "no text"),
        ("import zlib\nexec(zlib.decompress(b'no data'))", "cannot be unpacked"),
        ("import urllib.request as u\nexec(u.urlopen('http://x').read())", ""),
        ("import zlib\nexec(zlib.decompress(" + repr(zlib.compress(DATA)[:-9]) + "))", "cut off"),
    ],
)
def test_what_is_not_constant_is_a_problem_with_its_line(source: str, why: str) -> None:
    found = unpack(source.encode())
    assert len(found.layers) == 1
    assert [each.line for each in found.problems] == [1 + source.rstrip().count("\n")]
    assert why in found.problems[0].why


@pytest.mark.parametrize(
    "change",
    [
        "for S in other():\n    pass",
        "if other():\n    S = other()",
        "def change():\n    global S\n    S = other()\nchange()",
        "import zlib\nzlib.decompress = other\nS = zlib.decompress(b'x')",
        "def exec(s):\n    other(s)",
        "S = other()",
        "while True:\n    S += other()",
        "try:\n    S = other()\nfinally:\n    pass",
        "with other() as S:\n    pass",
    ],
)
def test_a_name_that_may_have_changed_is_not_taken_for_its_first_value(change: str) -> None:
    found = unpack(f"S = {SOURCE!r}\n{change}\nexec(S)\n".encode())
    assert all(each.source != SOURCE for each in found.layers)


def test_methods_called_eval_are_not_executed() -> None:
    assert not unpack(b"import torch\nmodel.eval()\nre.compile('x')\ndf.eval('a')\n").problems


ZEROS = bytes(MOST_BYTES + 1)


@pytest.mark.parametrize(
    "source",
    [
        f"import zlib\nexec(zlib.decompress({zlib.compress(ZEROS)!r}))",
        f"import lzma\nexec(lzma.decompress({lzma.compress(ZEROS, preset=0)!r}))",
        f"import bz2\nexec(bz2.decompress({bz2.compress(ZEROS)!r}))",
        f"import brotli\nexec(brotli.decompress({brotli.compress(ZEROS, quality=1)!r}))",
        f"import zstandard\nexec(zstandard.decompress({zstandard.compress(ZEROS)!r}))",
        "exec('x' * 10**12)",
        "exec(('x' * 10**6).replace('x', 'y' * 10**6))",
        "exec(('x' * 10**7).join(['a'] * 1000))",
        "exec(chr(1 << 10**9))",
        "exec(''.join([chr(120) for i in range(10**9)]))",
        "exec((b'x ' * 10**7).split())",
        "import lzma\nexec(lzma.decompress(b'', format=lzma.FORMAT_RAW, "
        "filters=[{'id': lzma.FILTER_LZMA2, 'dict_size': 1 << 32}]))",
    ],
    ids=[
        "zlib",
        "lzma",
        "bz2",
        "brotli",
        "zstd",
        "times",
        "replace",
        "join",
        "shift",
        "loop",
        "split",
        "dictionary",
    ],
)
def test_a_bomb_is_a_problem(source: str) -> None:
    found = unpack(source.encode())
    assert len(found.layers) == 1
    assert found.problems[0].call == "exec"


def test_all_that_is_unpacked_shares_one_budget() -> None:
    evaluator = Evaluator(own=b"")
    evaluator.budget.bytes = 1_000
    evaluator.budget.take(600)
    with pytest.raises(TooLargeError):
        evaluator.budget.take(600)


@pytest.mark.parametrize(
    "data",
    [
        b"(" * 100_000,
        b"x = " + b"-" * 50_000 + b"1",
        b"x = " + b"+".join([b"a"] * 20_000),
        b"a" + b".b" * 20_000,
        b"def f(:\n",
        b"\0\0\0",
        b"\xff\xfe\xfa",
        b"# coding: no-such-thing\nx = 1\n",
        b"x = 1\n" * 1_000_000,
        b"",
    ],
    ids=[
        "parentheses",
        "minus",
        "sum",
        "attributes",
        "syntax",
        "nulls",
        "bytes",
        "coding",
        "size",
        "empty",
    ],
)
def test_what_is_no_readable_python_does_no_harm(data: bytes) -> None:
    found: Unpacked = unpack(data)
    assert len(found.layers) == 1
    assert found.layers[0].tree is not None or found.problems


@settings(max_examples=40)
@given(st.binary(max_size=300))
def test_any_bytes_are_taken(data: bytes) -> None:
    assert unpack(data).bytes == len(data)
    assert unpack(b"exec(" + repr(data).encode() + b")").layers


def test_nothing_is_imported_or_opened(tmp_path: Path) -> None:
    name = "a_module_of_the_script"
    (tmp_path / f"{name}.py").write_text("raise SystemExit")
    marker = tmp_path / "opened"
    source = f"import sys; sys.path.insert(0, {str(tmp_path)!r})\nimport {name}\n"
    source += f"exec(open({str(marker)!r}, 'w').read())\n__import__({name!r})\n"
    unpack(source.encode())
    assert name not in sys.modules
    assert not marker.exists()
