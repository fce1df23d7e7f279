"""Made-up packages: what becomes one file, what is left out of it, and what is refused."""

from __future__ import annotations

import re

import pytest

from model import export
from model.onefile import merge
from model.pieces import ExportError


def one_file(main: str, **modules: str) -> str:
    """The readable file of a made-up package `pkg` whose entry is pkg.main."""
    sources = {"pkg.main": main} | {f"pkg.{name}": text for name, text in modules.items()}

    def read(name: str) -> str:
        if name not in sources:
            raise FileNotFoundError(name)
        return sources[name]

    return merge(read, "pkg.main", "A made-up file.")


GUARD = '\n\nif __name__ == "__main__":\n    main()\n'
USES_ALL = '''"""The entry."""
from __future__ import annotations
import sys
from typing import Any
from .parts import Settings, unused
from pkg.more import double, HINTS

LIMIT: Any = 3  # of everything


def main() -> None:
    # Prints what it knows.
    settings = Settings(count=LIMIT, name="é▁")
    held = [double(value=n) for n in range(settings.count)]
    print(held, settings, HINTS["count"], vars(settings)["name"], file=sys.stdout)
'''
PARTS = '''"""Parts."""
from __future__ import annotations
import json
from dataclasses import dataclass

Count = int


@dataclass(frozen=True, kw_only=True)
class Settings:
    count: Count
    name: str = "x"


def unused() -> str:
    return json.dumps({})
'''
MORE = '''"""More."""
from __future__ import annotations
import typing
from pkg.parts import Settings
try:
    from no_such_library import thing
except ImportError:
    thing = None

HINTS = typing.get_type_hints(Settings)


def double(*, value: int) -> int:
    """Twice."""
    if __package__:
        from pkg.missing import counted

        return counted(value)
    return 2 * value if thing is None else 0


def helper(x: int) -> int: return unused_too(x)
def unused_too(x: int) -> int: return x
'''


def test_what_the_entry_does_not_reach_is_left_out() -> None:
    human = one_file(USES_ALL + GUARD, parts=PARTS, more=MORE)
    for absent in ("unused", "helper", "json", "pkg.missing", "__package__", "from pkg"):
        assert absent not in human, absent
    for present in ("# of everything", "# Prints what it knows.", '"""Twice."""', "# Parts."):
        assert present in human, present
    assert human.count("from __future__ import annotations") == 1
    assert human.index("class Settings") < human.index("HINTS = ") < human.index("def main")
    minified = export.minified(human)
    for absent in ("Any", "Twice", "#", "settings", "value: int"):
        assert absent not in minified, absent


def test_a_registration_is_kept_though_nothing_names_it() -> None:
    main = "from pkg.ops import table\ndef main():\n    print(table)" + GUARD
    ops = "import lib\ntable = {}\n@lib.register('x')\ndef _kept(): pass\ndef _dropped(): pass\n"
    human = one_file(main, ops=ops)
    assert "@lib.register('x')\ndef _kept(): pass" in human
    assert "import lib" in human
    assert "_dropped" not in human


OK = "def main():\n    pass"


@pytest.mark.parametrize(
    ("main", "modules", "message"),
    [
        # Two things of one name
        (
            "from pkg.a import f\nfrom pkg.b import g\ndef main():\n    f(), g()",
            {"a": "N = 1\ndef f():\n    return N", "b": "\nN = 2\ndef g():\n    return N"},
            "pkg.b, line 2: `N` stands for something else in pkg.a, line 1",
        ),
        (
            "from pkg.a import f\nimport json as time\ndef main():\n    f(), time",
            {"a": "import time\ndef f():\n    return time"},
            "pkg.a, line 1: `time` stands for something else in pkg.main, line 2",
        ),
        (
            "from pkg.a import f\ndef json(): pass\ndef main():\n    f(), json()",
            {"a": "import json\ndef f():\n    return json"},
            "pkg.main, line 2: `json` stands for something else in pkg.a, line 1",
        ),
        (
            "import json\ndef json(): pass\ndef main():\n    json()",
            {},
            "pkg.main, line 2: `json` stands for something else in pkg.main, line 1",
        ),
        ("def open(): pass\ndef main():\n    open()", {}, "line 1: `open` would hide a builtin"),
        # Work at import
        (f"print(1)\n{OK}", {}, "pkg.main, line 1: work at import"),
        (f"import os\nos.environ['A'] = '1'\n{OK}", {}, "pkg.main, line 2: work at import"),
        (f"import torch\ntorch.backends.x = 1\n{OK}", {}, "pkg.main, line 2: work at import"),
        (f"import os\nHOME = os.getenv('A')\n{OK}", {}, "line 2: work at import: the call of os.g"),
        (f"def f(x=input()): pass\n{OK}", {}, "line 1: work at import: the call of input"),
        (f"class A:\n    print(1)\n{OK}", {}, "pkg.main, line 2: work at import"),
        (f"class A:\n    x = input()\n{OK}", {}, "line 2: work at import: the call of input"),
        (f"for i in (): pass\n{OK}", {}, "pkg.main, line 1: work at import"),
        (f"if 1:\n    X = 1\n{OK}", {}, "pkg.main, line 1: work at import"),
        (f"try:\n    import a\nexcept OSError:\n    a = None\n{OK}", {}, "line 1: work at import"),
        (f"from pkg.a import X\n{OK}", {"a": "X = 1\nX += 1"}, "pkg.a, line 2: work at import"),
        # Names
        ("def main():\n    return missing", {}, "pkg.main, line 2: `missing` is not defined"),
        ("from pkg.a import x\ndef main():\n    x", {"a": ""}, "line 3: `x` is not defined"),
        (
            "import json\nfrom pkg.a import f\ndef main():\n    json, f()",
            {"a": "def f():\n    return json"},
            "pkg.a, line 2: `json` is not defined",
        ),
        ("def main(x: Missing): pass", {}, "pkg.main, line 1: `Missing` is not defined"),
        # Forms of import
        (f"import pkg.a\n{OK}", {"a": ""}, "pkg.main, line 1: one file has no modules"),
        (f"import pkg.a as b\n{OK}", {"a": ""}, "pkg.main, line 1: one file has no modules"),
        (f"from pkg import a\n{OK}", {"a": ""}, "pkg.main, line 1: one file has no modules"),
        (f"from . import a\n{OK}", {"a": ""}, "pkg.main, line 1: one file has no modules"),
        (f"from pkg.a import x as y\n{OK}", {"a": ""}, "`x` must be imported under its own name"),
        (f"from pkg.a import *\n{OK}", {"a": ""}, "`*` must be imported under its own name"),
        (f"from os import *\n{OK}", {}, "pkg.main, line 1: `import *` hides"),
        (f"from pkg.b import x\n{OK}", {}, "pkg.main, line 1: there is no module pkg.b"),
        (
            "def main():\n    from pkg.a import x",
            {"a": ""},
            "line 2: `from pkg.a import x`: import",
        ),
        (f"from pkg.a import x\n{OK}", {"a": "from pkg.main import x"}, "is a circle"),
        (f"from __future__ import division\n{OK}", {}, "only annotations may be imported"),
        # Beside the source
        (
            "def main():\n    open('words.txt')",
            {},
            "line 2: `open('words.txt')`: one file has noth",
        ),
        ("from pathlib import Path\ndef main():\n    Path('a/b')", {}, "`Path('a/b')`: one file"),
        ("def main():\n    return __file__", {}, "pkg.main, line 2: `__file__`: one file"),
        (
            "import importlib\ndef main():\n    importlib.import_module('x')",
            {},
            "line 3: `importlib.import_module('x')`: one file has nothing beside it",
        ),
        (
            "from importlib.resources import files\ndef main():\n    files('x')",
            {},
            "line 1: `from importlib.resources import files`: one file",
        ),
        # Text
        ("def main():\n    eval('1')", {}, "pkg.main, line 2: `eval`: names and docstrings"),
        (
            "def main():\n    print(main.__doc__)",
            {},
            "line 2: `main.__doc__`: names and docstrings",
        ),
        # Shapes
        ("def main(): pass; pass\nX = 1; Y = 2", {}, "pkg.main, line 2: two statements share"),
        ("def main(:", {}, "pkg.main, line 1: syntax error"),
        (
            "def main():\n    if __package__:\n        return 1\n    else:\n        return 2",
            {},
            "pkg.main, line 2: `if __package__:` must have no else",
        ),
        ("def main():\n    if __package__:\n        pass", {}, "line 1: nothing is left without"),
    ],
)
def test_what_would_change_its_meaning_is_refused(
    main: str, modules: dict[str, str], message: str
) -> None:
    with pytest.raises(ExportError) as caught:
        one_file(main + GUARD, **modules)
    assert message in str(caught.value)
    assert re.match(r"pkg\.\w+, line \d+: ", str(caught.value))


def test_an_entry_that_runs_nothing_is_refused() -> None:
    with pytest.raises(ExportError, match=r"pkg\.main, line 1: the entry has no `if __name__"):
        one_file(OK)
