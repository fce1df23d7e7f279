"""What a script needs beside it, as its syntax tree and its audit say; and what is over the limits.

A file that only words name is none that it needs.
"""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from sweeper.evidence.imports import imported, named_in_calls, parsed
from sweeper.evidence.rules import Status
from tests.sweeper.evidence.doctored import (
    ALL,
    CODE_BYTES,
    ONE,
    doctor,
    good_folder,
    judge,
    rewrite,
    rules,
    text_of,
)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A good record to doctor."""
    return good_folder(tmp_path)


def put(folder: Path, script: str, beside: str = "train_real.py") -> None:
    """A script as long as what was counted, and a file of code beside it that was not."""
    (folder / "train_gpt.py").write_text(script + "\n" + "#" * (CODE_BYTES - len(script) - 1))
    (folder / beside).parent.mkdir(exist_ok=True)
    (folder / beside).write_text("import torch\n" + "#" * 8_000)


STUBS = {
    "a text": ('exec(open("payload.txt").read())', "payload.txt"),
    "no suffix": ('exec(open("payload").read())', "payload"),
    "second of two imports": ("import os, train_real\ntrain_real.main()", "train_real.py"),
    "from a package": ("from lib import train\ntrain.main()", "lib/train.py"),
    "by importlib": (
        'import importlib\nimportlib.import_module("train_real").main()',
        "train_real.py",
    ),
    "by runpy": ('import runpy\nrunpy.run_path("train_r" + "eal.py")', "train_real.py"),
    "by glob": ('import glob\nexec(open(glob.glob("*_real.py")[0]).read())', "train_real.py"),
    "in an archive": ('import sys\nsys.path.insert(0, "c.zip")\nimport m', "c.zip"),
    "by a program": ('import os\nos.system("python train_real.py")', "train_real.py"),
}


@pytest.mark.parametrize("case", STUBS)
def test_code_beside_the_script_is_found(folder: Path, case: str) -> None:
    script, beside = STUBS[case]
    put(folder, script, beside)
    found = judge(folder)
    assert rules(found) == {"code-beside"}
    assert Path(beside).name in text_of(found["code-beside"])


WORDS = {
    "a comment": "# unlike train_real.py this is one file\nimport brotli",
    "a docstring": '"""Launch with train_real.py."""\nimport brotli',
    "another name": 'import brotli\nx = open("my_train_real.py")',
    "a message": 'import brotli\nprint("see train_real.py")',
    "an error": 'import brotli\nraise RuntimeError("run train_real.py first")',
    "an import in a text": 'import brotli\nX = """\nimport train_real\n"""',
}


@pytest.mark.parametrize("case", WORDS)
def test_a_file_that_only_words_name_is_not_needed(folder: Path, case: str) -> None:
    put(folder, WORDS[case])
    assert judge(folder)["code-beside"].status is Status.PASS


def test_a_module_from_elsewhere_is_no_file_beside(folder: Path) -> None:
    put(folder, 'import brotli, importlib\nimportlib.import_module("some_kernels")', "plot.py")
    finding = judge(folder)["code-beside"]
    assert finding.status is Status.WARN
    assert "plot.py" not in str(finding.evidence[0])


@pytest.mark.parametrize(
    ("script", "needs"),
    [
        ("import os, zstandard", True),
        ('z = __import__("zstandard")', True),
        ("try:\n    from zstandard import ZstdCompressor\nexcept ImportError:\n    pass", True),
        ('"""\nimport zstandard\n"""', False),
        ("# import zstandard", False),
    ],
)
def test_what_unpacks_is_told_by_the_tree(folder: Path, script: str, needs: bool) -> None:
    (folder / "train_gpt.py").write_text(script + "\n" + "#" * (CODE_BYTES - len(script) - 1))
    found = judge(folder)["compressor"]
    assert ("imports zstandard" in text_of(found)) is needs


def test_imports_and_names_of_a_source() -> None:
    tree = parsed('import a.b, c\nfrom .d import e\nf(open("x/y.txt"), g=f"{h}/z.bin")\n"w.py"\n')
    assert tree is not None
    assert imported(tree) == {"a", "c", "d"}
    assert named_in_calls(tree) == {"x", "y.txt", "z.bin"}
    assert parsed("def (") is None
    deep = parsed("f(" + " + ".join(["'a'"] * 500) + ")")
    assert deep is not None
    assert named_in_calls(deep) == {"a"}


# ---- bytes and data


def test_without_a_total_code_and_model_are_judged(folder: Path) -> None:
    for path in folder.glob(ALL):
        text = re.sub(r"Total submission size int6.*\n", "", path.read_text())
        path.write_text(text)
    assert judge(folder)["artifact-bytes"].status is Status.PASS
    doctor(folder, ONE, "15896402", "15964159")
    rewrite(folder, lambda fields: fields.pop("seed_results"))
    found = judge(folder)
    assert rules(found) == {"artifact-bytes"}
    assert "54,963 over" in text_of(found["artifact-bytes"])


def test_shards_far_above_what_the_tokenizer_makes(folder: Path) -> None:
    doctor(folder, ALL, "train_shards: 26", "train_shards: 500")
    found = judge(folder)
    assert rules(found) == {"train-shards"}
    assert "by SP4096 about 204" in text_of(found["train-shards"])


def test_tokens_of_another_tokenizer(folder: Path) -> None:
    doctor(folder, ALL, "val_tokens: 45516800", "val_tokens: 47851520")
    found = judge(folder)
    assert rules(found) == {"val-tokens"}
    assert "that of SP8192 caseops" in text_of(found["val-tokens"])
    doctor(folder, ALL, "val_tokens: 47851520", "val_tokens: 62021632")
    finding = judge(folder)["val-tokens"]
    assert finding.status is Status.FAIL
    assert "of 206 M bytes, the set has 151.08 M: another text" in text_of(finding)


def test_one_number_in_two_ways_is_one_setting(folder: Path) -> None:
    doctor(folder, ONE, "matrix_lr: 0.02\n", "matrix_lr: 0.020\n")
    assert judge(folder)["one-configuration"].status is Status.PASS
