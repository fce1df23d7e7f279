"""What a script may do so that an audit does not see it; and honest code that looks alike."""

from __future__ import annotations

import bz2
import gzip
import zlib
from base64 import b85encode
from pathlib import Path

import pytest

from sweeper.evidence.audit import audit_bytes
from sweeper.evidence.audit_reading import Confidence, Kind
from sweeper.evidence.unpack import unpack

GOOD = "import torch\nprint('honest')\n"
OTHER = "import socket\nsocket.socket()\n"
PACKED = b85encode(zlib.compress(OTHER.encode())).decode()
HIDDEN = f"import zlib, base64\nS = zlib.decompress(base64.b85decode({PACKED!r})).decode()\n"


def kinds(source: str, at_least: Confidence = Confidence.MEDIUM) -> set[Kind]:
    report = audit_bytes(source.encode(), Path("train_gpt.py"))
    return {each.kind for each in report.findings if report.of(each.kind, at_least)}


# ---- executed by another name


@pytest.mark.parametrize(
    "line",
    [
        *(
            "[exec][0](S)",
            "{'a': exec}['a'](S)",
            "(exec if 1 else print)(S)",
            "list(map(exec, [S]))",
        ),
        *("@exec\n@(lambda f: S)\ndef x(): pass", "import functools\nfunctools.partial(exec, S)()"),
        *(
            "for e in [exec]: e(S)",
            "class A:\n    e = exec\nA.e(S)",
            "def f(s, e=exec): e(s)\nf(S)",
        ),
        *("def f(): return exec\nf()(S)", "(lambda: exec)()(S)", "exec.__call__(S)"),
        "import sys\nsys.modules['builtins'].exec(S)",
        "import operator, builtins\noperator.attrgetter('exec')(builtins)(S)",
        "def f(): pass\nf.__code__ = compile(S, '', 'exec')\nf()",
        "import types\ntypes.FunctionType(compile(S, '', 'exec'), {})()",
        *(
            "import code\ncode.InteractiveInterpreter().runcode(S)",
            "import timeit\ntimeit.timeit(S)",
        ),
        *(
            "import cProfile\ncProfile.run(S)",
            "import ctypes\nctypes.pythonapi.PyRun_SimpleString(S)",
        ),
    ],
)
def test_what_is_executed_otherwise_is_found(line: str) -> None:
    assert Kind.HIDDEN_EXEC in kinds(f"{HIDDEN}{line}\n", Confidence.HIGH)


@pytest.mark.parametrize(
    "lines",
    [
        f"S = {GOOD!r}\nglobals().update(S={OTHER!r})\nexec(S)",
        f"S = {GOOD!r}\nglobals()['S'] = {OTHER!r}\nexec(S)",
        f"import zlib\nsetattr(zlib, 'decompress', print)\nexec(zlib.decompress({PACKED!r}))",
        f"S = {GOOD!r}\nmatch {OTHER!r}:\n    case S: pass\nexec(S)",
        f"S = {GOOD!r}\n[S := {OTHER!r} for _ in [0]]\nexec(S)",
        f"D = {{'a': {OTHER!r}}}\nexec({{'a': {GOOD!r}, **D}}['a'])",
        "import sys\nexec(open(sys.argv[1]).read())",
        f"S = {GOOD!r}\nexec(f'{{S!r}}')",
    ],
)
def test_what_may_not_be_what_it_seems_is_not_taken_for_it(lines: str) -> None:
    found = unpack(lines.encode())
    assert found.problems
    assert all(layer.source != GOOD for layer in found.layers)


@pytest.mark.parametrize("codec", ["gzip", "bz2"])
def test_all_parts_of_packed_data_are_unpacked(codec: str) -> None:
    module = {"gzip": gzip, "bz2": bz2}[codec]
    data = module.compress(GOOD.encode()) + module.compress(OTHER.encode())
    found = unpack(f"import {codec}\nexec({codec}.decompress({data!r}))\n".encode())
    assert found.layers[-1].source == GOOD + OTHER


@pytest.mark.parametrize(("index", "source"), [("~0", OTHER), ("not 1", GOOD), ("+1", OTHER)])
def test_numbers_are_worked_out_as_python_does(index: str, source: str) -> None:
    found = unpack(f"exec([{GOOD!r}, {OTHER!r}][{index}])\n".encode())
    assert found.layers[-1].source == source


@pytest.mark.parametrize(
    "line",
    [
        *("model.eval()", "setattr(self, 'x', 1)", "cursor = model.exec", "eval_loss = 1"),
        "def eval(x): return x\nprint(eval(1))\nkept = [eval]",
        "torch.compile(model)",
    ],
)
def test_honest_code_that_looks_alike_is_not_accused(line: str) -> None:
    assert Kind.HIDDEN_EXEC not in kinds(f"import torch\n{line}\n", Confidence.LOW)


# ---- other programs, and the network


@pytest.mark.parametrize(
    "lines",
    [
        *("import os as o\ns = o.system\ns('curl x')", "__import__('os').system('curl x')"),
        *("import torch\ntorch.os.system('x')", "import pathlib\npathlib.os.system('x')"),
        *(
            "import subprocess as sp\nrun = sp.run\nrun(['x'])",
            "import os\ngetattr(os, 'sys' + 'tem')(1)",
        ),
        "import asyncio\nasyncio.create_subprocess_shell('x')",
    ],
)
def test_a_program_that_is_started_by_another_name(lines: str) -> None:
    assert Kind.SUBPROCESS in kinds(lines)


def test_the_network_by_other_names() -> None:
    asked = "import importlib\nm = importlib.import_module('socket')\nm.create_connection(('x', 1))"
    assert Kind.NETWORK in kinds(asked)
    meeting = "import torch.distributed as dist\ndist.TCPStore({host}, 80)"
    assert Kind.NETWORK in kinds(meeting.format(host="'1.2.3.4'"))
    assert Kind.NETWORK not in kinds(meeting.format(host="'127.0.0.1'"))


@pytest.mark.parametrize(
    ("value", "counted"),
    [
        *(("len(code.encode())", True), ("len(code.encode()) // 3", False)),
        *(("os.path.getsize('tiny_stub.py')", False), ("os.path.getsize(__file__)", True)),
        ("len(open(__file__).read().encode()) - 9000", False),
    ],
)
def test_a_size_that_is_not_of_the_whole_script(value: str, counted: bool) -> None:
    source = f"import os\ncode = open(__file__).read()\ncode_bytes = {value}\n"
    assert (Kind.UNCOUNTED_CODE not in kinds(source)) is counted


# ---- scores


EVALUATION = (
    "import torch\nimport torch.nn.functional as F\ndef eval_val(model, val_tokens, {names}):\n"
)


@pytest.mark.parametrize(
    ("line", "found"),
    [
        *(("bpb_a if bpb_a < bpb_b else bpb_b", True), ("sorted([bpb_a, bpb_b])[0]", True)),
        *(("torch.where(nll1 < nll2, nll1, nll2)", True), ("nll1.minimum(nll2)", True)),
        *(("torch.stack([nll1, nll2]).min(0).values", True), ("nll1.clamp(max=nll2)", True)),
        *(("torch.amin(torch.stack([nll1, nll2]), 0)", True), ("loss.clamp(max=10)", False)),
        *(("torch.where(mask, nll1, 0)", False), ("losses[0] if losses else 0", False)),
    ],
)
def test_the_lower_of_two_scores(line: str, found: bool) -> None:
    names = "bpb_a, bpb_b, nll1, nll2, loss, losses, mask"
    source = f"{EVALUATION.format(names=names)}    x = {line}\n    return x\n"
    assert (Kind.MIN_OVER_PASSES in kinds(source)) is found


@pytest.mark.parametrize(
    ("line", "found"),
    [
        ("logits = logits + 5 * F.one_hot(y, 9)", True),
        ("logits = logits.scatter(-1, y[:, None], 9.0)", True),
        ("logits = logits + bias", False),
    ],
)
def test_a_prediction_that_knows_its_target(line: str, found: bool) -> None:
    source = EVALUATION.format(names="bias")
    source += "    x, y = val_tokens[:-1], val_tokens[1:]\n    logits = model(x)\n"
    source += f"    {line}\n    return F.cross_entropy(logits, y)\n"
    assert (Kind.TARGET_LOOKUP in kinds(source, Confidence.HIGH)) is found


def test_a_gradient_written_by_hand_is_no_lookup() -> None:
    source = (
        "import torch\nclass Fused(torch.autograd.Function):\n"
        "    @staticmethod\n    def forward(ctx, logits, targets):\n"
        "        probs = logits.softmax(-1)\n"
        "        probs[torch.arange(targets.numel()), targets] -= 1.0\n        return probs\n"
    )
    assert Kind.TARGET_LOOKUP not in kinds(source, Confidence.HIGH)


# ---- scripts that are there to be slow, or large


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
    import tracemalloc

    tracemalloc.start()
    unpack(source.encode())
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 400 << 20


def test_an_empty_file_is_not_praised() -> None:
    report = audit_bytes(b"\n", Path("train_gpt.py"))
    assert [each.kind for each in report.findings] == [Kind.UNREADABLE]
