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
GOOD_PACKED = zlib.compress(GOOD.encode())
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
        *("from timeit import timeit as t\nt(S)", "import cProfile\ncProfile.Profile().run(S)"),
        *(
            "import builtins as b\nq = vars(b)\nq['exec'](S)",
            "import torch.jit as j\nj.CompilationUnit(S)",
        ),
        *("def f(): pass\nsetattr(f, '__code__', S)", "F = type(lambda: 0)\nF(S, {})"),
        "import builtins\nvars(builtins).get('ex' + 'ec')(S)",
        "import importlib.util as u\nu.spec_from_loader('x', None).loader.exec_module(S)",
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
        f"import zlib\nz = zlib\nz.decompress = print\nexec(zlib.decompress({GOOD_PACKED!r}))",
        "import zlib\ndef f(model): setattr(model, 'decompress', print)\n"
        f"f(zlib)\nexec(zlib.decompress({GOOD_PACKED!r}))",
        "import zlib\nfrom sys import modules as m\nm['zlib'] = print\n"
        f"exec(zlib.decompress({GOOD_PACKED!r}))",
        f"S = {GOOD!r}\nexec(f'{{S!r}}')",
        f"S = {GOOD!r}\nfrom settings import *\nexec(S)",
        *(
            f"E = {OTHER!r}\nS = {GOOD!r}\n{line}"
            for line in (
                *("(lambda S: exec(S))(E)", "[exec(S) for S in [E]]", "list(exec(S) for S in [E])"),
                *("f = lambda a, S=E: exec(S)\nf(0)", "def f(S): exec(S)\nf(E)"),
                *("def f(): exec(S)\nS = E\nf()", "f = lambda: exec(S)\nS = E\nf()"),
                *(
                    "g = (exec(S) for _ in [0])\nS = E\nlist(g)",
                    "[exec(S) for x in [1] if (S := E)]",
                ),
                "class A:\n    def f(self): exec(S)\nS = E\nA().f()",
            )
        ),
    ],
)
def test_what_may_not_be_what_it_seems_is_not_taken_for_it(lines: str) -> None:
    found = unpack(lines.encode())
    assert found.problems
    assert all(layer.source != GOOD for layer in found.layers)


def test_what_is_compiled_is_read() -> None:
    found = unpack(f"c = compile({OTHER!r}, 'x', 'exec')\nrun(c)\n".encode())
    assert [each.source for each in found.layers[1:]] == [OTHER]


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
        "def build(m, compile=True, eval=False):\n    return torch.compile(m) if compile else m",
        "from torch import compile\nkept = [compile]\nmodel = compile(kept)",
        "import builtins\ndef print(*what): builtins.print(*what, flush=True)",
        "import timeit\ndef f(): pass\ntimeit.timeit(f)\ngetattr(torch, 'ones')(2)",
        "try: pass\nexcept Exception as error: print(type(error).__name__)\ndef error(): pass",
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
    assert Kind.NETWORK in kinds("import torch\nload = torch.hub.load_state_dict_from_url\n[load]")
    assert Kind.NETWORK in kinds("import torch.distributed as d\nd.socket.create_connection(1)")
    assert Kind.NETWORK not in kinds("class A:\n    def f(self): self.requests.append(1)")
    meeting = "import torch.distributed as dist\ndist.TCPStore({host}, 80)"
    assert Kind.NETWORK in kinds(meeting.format(host="'1.2.3.4'"))
    assert Kind.NETWORK not in kinds(meeting.format(host="'127.0.0.1'"))


@pytest.mark.parametrize(
    ("value", "counted"),
    [
        *(("len(code.encode())", True), ("len(code.encode()) // 3", False)),
        *(("os.path.getsize('tiny_stub.py')", False), ("os.path.getsize(__file__)", True)),
        ("len(open(__file__).read().encode()) - 9000", False),
        *(("int(len(code) * 0.3)", False), ("min(len(code), 9000)", False)),
        *(("len(code[:9000])", False), ("len(code.replace(' ', ''))", False)),
        *(("len(other.encode())", False), ("len('x' * 100)", False), ("0", False)),
        *(("len(given)", True), ("len(own.encode())", True), ("os.stat(__file__).st_size", True)),
    ],
)
def test_a_size_that_is_not_of_the_whole_script(value: str, counted: bool) -> None:
    source = "import os\ncode = open(__file__).read()\nother = open('stub.py').read()\n"
    source += "own = open('train_gpt.py', encoding='utf-8').read()\n"
    source += f"def main(given):\n    code_bytes = {value}\n"
    assert (Kind.UNCOUNTED_CODE not in kinds(source)) is counted


@pytest.mark.parametrize(
    ("lines", "counted"),
    [
        *(("code_bytes: int = 4000", False), ("report(code_bytes=4000)", False)),
        *(("facts = {'code_bytes': 4000}", False), ("code_bytes -= 9000", False)),
        ("code_bytes = 0\nif main:\n    code_bytes = len(open(__file__).read())", True),
        ("code_bytes = len(open(__file__).read())\nreport(code_bytes=code_bytes)", True),
    ],
)
def test_wherever_a_size_is_said(lines: str, counted: bool) -> None:
    assert (Kind.UNCOUNTED_CODE not in kinds(f"{lines}\n")) is counted


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
        *(("a if a < b else b", True), ("min(a, b)", True), ("min(a for a in bpb_a)", True)),
        *(("min(eval_val(model, v) for v in mask)", True), ("torch.where(c < d, c, d)", True)),
        *(("c if mask else d", False), ("min(c.numel(), 8)", False), ("min(mask, 1024)", False)),
    ],
)
def test_the_lower_of_two_scores(line: str, found: bool) -> None:
    names = "bpb_a, bpb_b, nll1, nll2, loss, losses, mask"
    source = EVALUATION.format(names=names)
    source += "    a, b = eval_val(model, mask), eval_val(model, None)\n"
    source += "    c = F.cross_entropy(model(mask), mask)\n    d = F.cross_entropy(mask, mask)\n"
    source += f"    x = {line}\n    return x\n"
    assert (Kind.MIN_OVER_PASSES in kinds(source)) is found


@pytest.mark.parametrize(
    ("line", "found"),
    [
        ("logits = logits + 5 * F.one_hot(y, 9)", True),
        ("logits = logits.scatter(-1, y[:, None], 9.0)", True),
        ("logits = logits + bias", False),
        ("hint = F.one_hot(y, 9).float()\n    logits += 5 * hint", True),
        ("hit = (logits.argmax(-1) == y).float()\n    logits = logits * (1 + hit)", True),
        ("logits = torch.where(torch.arange(9) == y[:, None], 9.0, logits)", True),
        ("logits = logits.masked_fill(y[:, None] == torch.arange(9), 9.0)", True),
        ("hits = (logits.argmax(-1) == y).float().mean()", False),
        ("logits = torch.where(bias > 0, logits, 0.0) * (y != 1).any()", False),
        ("nll = -(logits * (torch.arange(9) == y[:, None])).sum(-1)", False),
    ],
)
def test_a_prediction_that_knows_its_target(line: str, found: bool) -> None:
    source = EVALUATION.format(names="bias")
    source += "    x, y = val_tokens[:-1], val_tokens[1:]\n    logits = model(x)\n"
    source += f"    {line}\n    return F.cross_entropy(logits, y)\n"
    assert (Kind.TARGET_LOOKUP in kinds(source, Confidence.HIGH)) is found


def test_inputs_that_are_the_targets() -> None:
    source = EVALUATION.format(names="bias")
    source += "    x = val_tokens[{start}:].long().to('cuda')\n    y = val_tokens[1:].long()\n"
    source += "    return F.cross_entropy(model(x), y)\n"
    assert Kind.TARGET_LOOKUP in kinds(source.format(start=1))
    assert Kind.TARGET_LOOKUP not in kinds(source.format(start=0))


@pytest.mark.parametrize(
    ("given", "found"),
    [
        *(("is_causal=False", True), ("is_causal=self.training", True)),
        *(("is_causal=True", False), ("is_causal=False, attn_mask=mask", False)),
        ("is_causal=False, attn_mask=None", True),
    ],
)
def test_attention_that_sees_what_follows(given: str, found: bool) -> None:
    source = "import torch.nn.functional as F\nclass Attention:\n    def forward(self, q, k, v):\n"
    source += f"        return F.scaled_dot_product_attention(q, k, v, {given})\n"
    assert (Kind.TARGET_LOOKUP in kinds(source)) is found


LEARNING = """import functools, torch
def upd(net, opt, c):
    net(c).backward()
    opt.step()
go = lambda net, opt, c: (net(c).backward(), opt.step())
class Holder:
    def __init__(self): self.upd = upd
OPS = {"u": upd}
def eval_val(args, net, val_tokens):
    opt, total = torch.optim.SGD(net.parameters(), lr=1.0), 0.0
    for c in val_tokens.split(1000):
        LINE
        with torch.no_grad(): total += net(c)
    return total
"""


@pytest.mark.parametrize(
    "line",
    [
        *("upd(net, opt, c)", "OPS['u'](net, opt, c)", "[upd][0](net, opt, c)", "go(net, opt, c)"),
        *("functools.partial(upd, net, opt)(c)", "u = functools.partial(upd, net); u(opt, c)"),
        *("other = upd; other(net, opt, c)", "h = Holder(); h.upd(net, opt, c)"),
        *("b = net(c).backward; b(); opt.step()", "torch.Tensor.backward(net(c)); opt.step()"),
        "getattr(net(c), 'back' + 'ward')(); getattr(opt, 'step')()",
    ],
)
def test_learning_from_what_is_scored_by_another_name(line: str) -> None:
    assert Kind.TEST_TIME_TRAINING in kinds(LEARNING.replace("LINE", line), Confidence.HIGH)
    # What no validation tokens reach is training.
    assert Kind.TEST_TIME_TRAINING not in kinds(LEARNING.replace("LINE", "pass"))


def test_a_table_in_a_class_with_a_plain_name() -> None:
    source = """import math
class Helper:
    def __init__(self): self.d = {}
    def see(self, k, t): self.d[k] = {**self.d.get(k, {}), t: 1}
    def ask(self, k, t): return self.d.get(k, {}).get(t, 0)
def eval_val(args, net, val_tokens):
    h, total, toks = Helper(), 0.0, val_tokens.tolist()
    for i in range(2, len(toks)):
        h.see(toks[i - 1], toks[i])
        total -= math.log(h.ask(toks[i - 1], toks[i]) + 0.1)
    return total
"""
    assert Kind.NGRAM_CACHE in kinds(source)
    assert Kind.NGRAM_CACHE not in kinds(source.replace("h.see(toks[i - 1], toks[i])", "pass"))


def test_a_gradient_written_by_hand_is_no_lookup() -> None:
    source = (
        "import torch\nclass Fused(torch.autograd.Function):\n"
        "    @staticmethod\n    def forward(ctx, logits, targets):\n"
        "        probs = logits.softmax(-1)\n"
        "        probs[torch.arange(targets.numel()), targets] -= 1.0\n        return probs\n"
    )
    assert Kind.TARGET_LOOKUP not in kinds(source, Confidence.HIGH)
