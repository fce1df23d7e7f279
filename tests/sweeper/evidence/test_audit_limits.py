"""Scripts that are there to be slow or large to read, and such as have nothing in them."""

from __future__ import annotations

import tracemalloc
import zlib
from pathlib import Path

import pytest

from sweeper.evidence import audit as triage
from sweeper.evidence.audit import as_table, audit, audit_bytes
from sweeper.evidence.audit_child import limited
from sweeper.evidence.audit_reading import Kind
from sweeper.evidence.unpack import unpack


@pytest.mark.parametrize(
    "source",
    [
        "x = [range(400000) for i in range(300)]\n",
        f"import zlib\nS = zlib.decompress({zlib.compress(b'a' * (20 << 20))!r})\n"
        "x = [S.swapcase() for i in range(1000)]\ny = [S.count(b'a') for i in range(1000)]\n",
        f"import zlib\nS = zlib.decompress({zlib.compress(b'a' * (20 << 20))!r}).decode()\n"
        f"x = f'{'{S}' * 400}'\n",
        "x = (" + "1+" * 20_000 + "1)\n",
    ],
)
def test_a_bomb_costs_little(source: str) -> None:
    tracemalloc.start()
    unpack(source.encode())
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 400 << 20


@pytest.mark.parametrize("depth", [100, 190, 450, 1500])
@pytest.mark.parametrize(
    ("begin", "middle", "end"),
    [
        *(("if a: pass\n", "elif a: pass\n", ""), ("x = a", ".b", ""), ("x = a", ".b()", "")),
        *(("a", ".b", " = 1"), ("x = a", "[0]", ""), ("x = ", "lambda: ", "1")),
        ("import os\nx = os.environ.get('A', 1", " + 1", ")"),
        ("def eval_val(m, val_tokens):\n    loss", ".b()", ".backward()\n    t += m(val_tokens)"),
        ("def eval_val(m, val_tokens):\n    table", "[val_tokens]", " += 1"),
    ],
)
def test_no_depth_does_harm(begin: str, middle: str, end: str, depth: int) -> None:
    assert audit_bytes(f"{begin}{middle * depth}{end}\n".encode(), Path("x.py")).layers


def test_too_many_parts_are_not_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sweeper.evidence.unpack_source.MOST_NODES", 1_000)
    assert not unpack(b"x = [" + b"1," * 900 + b"]\n").problems
    found = unpack(b"x = [" + b"1," * 1_100 + b"]\n")
    assert ["parts" in each.why for each in found.problems] == [True]


@pytest.mark.parametrize("work", ["[0 for _ in iter(int, 1)]", "bytes(4 << 30)"])
def test_what_takes_too_much_is_ended(work: str) -> None:
    assert limited(f"run = lambda data: {work}", [], b"", cpu_seconds=1) is None


def test_what_fails_otherwise_is_not_taken_for_that() -> None:
    assert limited("run = lambda data, x: data + x.encode()", ["!"], b"read") == b"read!"
    with pytest.raises(RuntimeError, match="ZeroDivisionError"):
        limited("run = lambda data: 1 / 0", [], b"")


def test_a_script_that_cannot_be_read_in_time_is_a_finding(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    script = tmp_path / "train_gpt.py"
    script.write_text("import torch\n")
    report = audit(script)
    assert (report.path, report.findings, report.facts.imports) == (script, (), ("torch",))
    assert [each.source for each in report.layers] == ["import torch\n"]
    monkeypatch.setattr(triage, "limited", lambda *_: None)
    report = audit(script)
    assert [each.kind for each in report.findings] == [Kind.UNREADABLE]
    assert "more than 15 s" in as_table(report)


@pytest.mark.parametrize("data", [b"", b"\n", b"# nothing\n", b'"""Only words."""\n'])
def test_an_empty_file_is_not_praised(data: bytes) -> None:
    report = audit_bytes(data, Path("train_gpt.py"))
    assert [each.kind for each in report.findings] == [Kind.UNREADABLE]
