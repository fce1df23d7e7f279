"""Findings of an audit: each kind in a script that departs from an honest one, not in its twin."""

from __future__ import annotations

import json
import lzma
from pathlib import Path

import pytest

from model.export import human_file
from sweeper.errors import UserError
from sweeper.evidence.audit import AuditReport, as_json, as_table, audit, audit_bytes
from sweeper.evidence.audit_reading import Confidence, Kind, Order
from tests.sweeper.evidence import audit_scripts as scripts
from tests.sweeper.evidence.audit_honest import HONEST

PATH = Path("train_gpt.py")
# What an honest trainer must not be suspected of.
ACCUSATIONS = (
    *(Kind.TEST_TIME_TRAINING, Kind.MULTI_EPOCH_TTT, Kind.SLOT_LIKE, Kind.MIN_OVER_PASSES),
    *(Kind.NGRAM_CACHE, Kind.TARGET_LOOKUP, Kind.VALIDATION_IN_TRAINING, Kind.NETWORK),
    *(Kind.SUBPROCESS, Kind.HIDDEN_EXEC, Kind.UNREADABLE, Kind.UNCOUNTED_CODE),
)


def read(source: str | bytes, path: Path = PATH) -> AuditReport:
    return audit_bytes(source if isinstance(source, bytes) else source.encode(), path)


def kinds(source: str, at_least: Confidence = Confidence.LOW) -> set[Kind]:
    report = read(source)
    return {kind for kind in Kind if report.of(kind, at_least)}


# ---- evaluations


@pytest.mark.parametrize(
    ("evaluation", "kind", "order", "text"),
    [
        (scripts.TTT_SCORE_FIRST, Kind.TEST_TIME_TRAINING, Order.SCORE_FIRST, "loss.backward()"),
        (scripts.TTT_UPDATE_FIRST, Kind.TEST_TIME_TRAINING, Order.UPDATE_FIRST, "loss.backward()"),
        (scripts.TTT_BEFORE_SCORING, Kind.TEST_TIME_TRAINING, Order.UPDATE_FIRST, "backward()"),
        (scripts.TTT_LORA, Kind.TEST_TIME_TRAINING, Order.SCORE_FIRST, "sum().backward()"),
        (scripts.TTT_MINIFIED, Kind.TEST_TIME_TRAINING, Order.SCORE_FIRST, "I.backward()"),
        (scripts.TTT_BEFORE_QUANTISATION, Kind.TEST_TIME_TRAINING, Order.UPDATE_FIRST, "backward"),
        (scripts.TTT_BEFORE_QUANTISATION, Kind.MULTI_EPOCH_TTT, Order.UPDATE_FIRST, "for epoch"),
        (scripts.PPM, Kind.NGRAM_CACHE, Order.SCORE_FIRST, "d[b] = d.get(b, 0) + 1"),
        (scripts.TTT_EPOCHS, Kind.MULTI_EPOCH_TTT, Order.UPDATE_FIRST, "for epoch in range("),
        (scripts.TTT_EPOCHS, Kind.TEST_TIME_TRAINING, Order.UPDATE_FIRST, "loss.backward()"),
        (scripts.SLOT, Kind.SLOT_LIKE, Order.UPDATE_FIRST, "delta = torch.zeros("),
        (scripts.MIN_OVER_PASSES, Kind.MIN_OVER_PASSES, None, "torch.minimum(nll_a, nll_b)"),
        (scripts.NGRAM, Kind.NGRAM_CACHE, Order.SCORE_FIRST, "np.add.at(ctx_table, ctx_key, 1)"),
        (scripts.NGRAM_DICT, Kind.NGRAM_CACHE, Order.UPDATE_FIRST, "self.counts[context]"),
        (scripts.TARGET_LOOKUP, Kind.TARGET_LOOKUP, None, "logits[torch.arange(y.numel()), y]"),
        (scripts.VALIDATION_HESSIANS, Kind.VALIDATION_IN_TRAINING, None, "collect_hessians("),
    ],
)
def test_a_departure_is_found_at_its_line(
    evaluation: str, kind: Kind, order: Order | None, text: str
) -> None:
    source = scripts.with_evaluation(evaluation)
    found = read(source).of(kind, Confidence.HIGH)
    assert found, kind
    assert found[0].order is order
    assert text in found[0].text
    assert text in source.splitlines()[found[0].line - 1]
    assert found[0].why
    assert found[0].question.endswith("?") or found[0].question.endswith(".")


def test_an_honest_trainer_is_not_suspected() -> None:
    assert read(HONEST).findings == ()


def test_several_epochs_after_the_score_are_not_several_passes() -> None:
    source = scripts.with_evaluation(scripts.TTT_SCORE_FIRST)
    assert "range(args.ttt_epochs)" in source
    assert not read(source).of(Kind.MULTI_EPOCH_TTT)


def test_a_cache_that_is_filled_before_it_is_read() -> None:
    update = (
        "        np.add.at(ctx_table, ctx_key, 1)\n        np.add.at(full_table, full_key, 1)\n"
    )
    late = scripts.NGRAM.replace(update, "")
    early = late.replace("        counts = ctx_table", update + "        counts = ctx_table")
    (found,) = read(scripts.with_evaluation(early)).of(Kind.NGRAM_CACHE)
    assert found.order is Order.UPDATE_FIRST


def test_a_key_that_holds_the_target_is_asked_about() -> None:
    found = read(scripts.with_evaluation(scripts.NGRAM)).of(Kind.TARGET_LOOKUP)
    assert [each.confidence for each in found] == [Confidence.MEDIUM]
    assert "full_table[full_key]" in found[0].text


def test_an_embedding_of_the_target_in_the_model() -> None:
    seen = "logits = self.forward_logits(input_ids)\n"
    leak = seen.replace("input_ids)", "input_ids) + self.tok_emb(target_ids).mean()")
    assert Kind.TARGET_LOOKUP in kinds(HONEST.replace(seen, leak), Confidence.HIGH)


def test_an_update_that_is_left_to_a_helper() -> None:
    helper = """
def train_step(model, opt, x, y):
    loss = model(x, y)
    loss.backward()
    opt.step()


def eval_with_help(args, model, val_tokens, base_bytes_lut, device):
    opt = torch.optim.SGD(model.parameters(), lr=0.1)
    for start in range(0, val_tokens.numel() - 1025, 1024):
        local = val_tokens[start : start + 1025]
        train_step(model, opt, local[:-1][None], local[1:][None])
    return eval_val_sliding(args, model, val_tokens, base_bytes_lut, device)
"""
    report = read(scripts.with_evaluation(helper))
    assert any("train_step(" in each.text for each in report.of(Kind.TEST_TIME_TRAINING))
    # The same helper on training batches is what training is.
    trains = helper[: helper.index("def eval_with_help")]
    source = scripts.with_evaluation(trains).replace(
        "        loss = model(x, y)\n        loss.backward()\n        for opt in optimizers:\n"
        "            opt.step()\n            opt.zero_grad(set_to_none=True)\n",
        "        train_step(model, optimizers[0], x, y)\n",
    )
    assert "train_step(model, optimizers[0]" in source
    assert read(source).findings == ()


def test_a_chosen_checkpoint() -> None:
    logged = 'print(f"step:{step}'
    chosen = "if val_bpb < best_bpb:\n                best_bpb = val_bpb\n            " + logged
    report = read(HONEST.replace(logged, chosen, 1))
    assert [each.kind for each in report.findings] == [Kind.MIN_OVER_PASSES]


# ---- training


@pytest.mark.parametrize(
    ("honest", "instead"),
    [
        ("(args.train_files, args.seed", "(args.val_files, args.seed"),
        ('"fineweb_train_*.bin"', '"fineweb_*.bin"'),
        ('"fineweb_train_*.bin"', '"fineweb_val_*.bin"'),
        ("batches = [train_loader.next_batch(args.train_batch_tokens, args.train_seq_len)[0]]",
         "batches = [val_tokens[:1024][None]]"),
        ("loss = model(x, y)\n        loss.b",
         "loss = model(val_tokens[None, :64], val_tokens[None, 1:65])\n        loss.b"),
    ],
)  # fmt: skip
def test_validation_data_in_training(honest: str, instead: str) -> None:
    assert honest in HONEST
    found = kinds(HONEST.replace(honest, instead, 1), Confidence.MEDIUM)
    assert found == {Kind.VALIDATION_IN_TRAINING}


def test_a_loader_in_which_no_seed_has_a_part() -> None:
    shuffled = "        random.Random(seed).shuffle(self.files)\n"
    source = HONEST.replace(shuffled, "").replace("pattern: str, seed: int", "pattern: str")
    source = source.replace("TokenStream(pattern, seed)", "TokenStream(pattern)")
    source = source.replace("(args.train_files, args.seed,", "(args.train_files,")
    assert kinds(source) == {Kind.SEED_NOT_IN_DATA}


@pytest.mark.parametrize(("default", "confidence"), [("1", "medium"), ("0", "low")])
def test_a_switch_of_the_evaluation(default: str, confidence: str) -> None:
    switch = f'    ttt = bool(int(os.environ.get("TTT_ENABLED", "{default}")))\n    seed ='
    report = read(HONEST.replace("    seed =", switch, 1))
    assert [(each.kind, each.confidence) for each in report.findings] == [
        (Kind.EVAL_SWITCH, confidence)
    ]
    assert report.facts.environment["TTT_ENABLED"] == f"'{default}'"


# ---- the world around


@pytest.mark.parametrize(
    ("line", "kind", "confidence"),
    [
        ("import socket", Kind.NETWORK, "medium"),
        ("import requests as r; r.get('http://a')", Kind.NETWORK, "high"),
        ("from urllib.request import urlopen; urlopen('http://a')", Kind.NETWORK, "high"),
        ("from huggingface_hub import hf_hub_download as h; h('a', 'b')", Kind.NETWORK, "high"),
        ("import subprocess; subprocess.run(['git', 'clone', 'a'])", Kind.NETWORK, "high"),
        ("import subprocess; subprocess.run(['pip', 'install', 'a'])", Kind.SUBPROCESS, "high"),
        ("import subprocess as s; s.run(['nvidia-smi'], check=False)", Kind.SUBPROCESS, "low"),
        ("os.system('true')", Kind.SUBPROCESS, "high"),
        ("os.execv('/bin/sh', [])", Kind.SUBPROCESS, "high"),
        ("torch.load('/dev/shm/weights.pt')", Kind.READS_OUTSIDE, "high"),
        ("open(os.path.expanduser('~/x'), 'rb')", Kind.READS_OUTSIDE, "high"),
        ("np.load('table.npy')", Kind.READS_OUTSIDE, "medium"),
        ("Path('../side.bin').read_bytes()", Kind.READS_OUTSIDE, "high"),
        ("import helpers", Kind.UNCOUNTED_CODE, "medium"),
        ("from . import helpers", Kind.UNCOUNTED_CODE, "high"),
        ("import runpy; runpy.run_path('main.py')", Kind.UNCOUNTED_CODE, "high"),
        ("sys.path.insert(0, 'lib')", Kind.UNCOUNTED_CODE, "medium"),
        ("Path('side.py').write_text(code)", Kind.UNCOUNTED_CODE, "medium"),
        ("code_bytes = 74", Kind.UNCOUNTED_CODE, "high"),
        ("code_bytes = len(zlib.compress(code.encode()))", Kind.UNCOUNTED_CODE, "medium"),
        ("exec(open('main.py').read())", Kind.HIDDEN_EXEC, "high"),
        ("globals()['ex' + 'ec'](code)", Kind.HIDDEN_EXEC, "medium"),
        ("import marshal; f = marshal.loads(b'')", Kind.HIDDEN_EXEC, "high"),
    ],
)
def test_the_world_around(line: str, kind: Kind, confidence: str) -> None:
    source = HONEST.replace("class Hyper", f"{line}\n\n\nclass Hyper", 1)
    found = [each for each in read(source).findings if each.kind is kind]
    assert found, line
    assert max(found, key=lambda each: each.confidence == confidence).confidence == confidence
    assert line.split(";")[0][:40] in found[0].text


@pytest.mark.parametrize(
    "line",
    [
        "from urllib.parse import urlparse",
        "import flash_attn_interface, sentencepiece as spm",
        "from torch.utils.data import DataLoader",
        "tokens = np.fromfile(Hyperparameters.data_path + '/x.bin')",
        "table = Path(os.environ['TOKENIZER_PATH']).read_bytes()",
        "torch.save({}, 'my.pt'); state = torch.load('my.pt')",
        "log = open('logs/run.txt', 'a')",
        "code_bytes = Path(__file__).stat().st_size",
        "code_bytes = len(open(__file__, 'rb').read())",
        "n = min(1024, 2048)",
        "torch.compile(GPT)",
    ],
)
def test_what_is_usual_is_not_suspected(line: str) -> None:
    source = HONEST.replace("def main() -> None:", f"{line}\n\n\ndef main() -> None:", 1)
    assert [each.why for each in read(source).findings] == []


def test_a_module_that_lies_beside_the_script(tmp_path: Path) -> None:
    script = tmp_path / "train_gpt.py"
    script.write_text("import helpers\nimport zlib\n", encoding="utf-8")
    for name in ("helpers.py", "zlib.py"):  # the second goes before Python's own
        (tmp_path / name).write_text("x = 1\n", encoding="utf-8")
    found = audit(script).of(Kind.UNCOUNTED_CODE, Confidence.HIGH)
    assert [each.line for each in found] == [1, 2]


# ---- wrapped files, our own export


def test_lines_are_those_of_the_unpacked_source() -> None:
    source = scripts.with_evaluation(scripts.TTT_UPDATE_FIRST)
    packed = f"import lzma\nexec(lzma.decompress({lzma.compress(source.encode())!r}))\n"
    plain, wrapped = read(source), read(packed)
    assert [(each.kind, each.line, each.text) for each in wrapped.findings] == [
        (each.kind, each.line, each.text) for each in plain.findings
    ]
    assert {each.layer for each in wrapped.findings} == {1}
    assert wrapped.bytes == len(packed)
    assert f"line {plain.findings[0].line} of the unpacked source" in as_table(wrapped)


@pytest.mark.parametrize("counted", [True, False], ids=["counted", "readable"])
def test_our_own_recipe_is_not_suspected(counted: bool) -> None:
    data = scripts.exported() if counted else human_file().encode()
    report = read(data)
    assert report.facts.wrapped is counted
    assert report.facts.minified is counted
    assert report.facts.functions > 250
    suspected = [each for kind in ACCUSATIONS for each in report.of(kind, Confidence.MEDIUM)]
    assert suspected == []


# ---- reports


def test_a_report_begins_and_ends_with_what_it_is() -> None:
    report = read(scripts.with_evaluation(scripts.TTT_UPDATE_FIRST))
    first, *_, last = as_table(report).splitlines()
    for line in (first, last):
        assert "a triage, not a verdict" in line
        assert f"a person must look at line {report.findings[0].line}" in line
    assert "proves nothing" in as_table(read(HONEST))


def test_a_report_for_programs() -> None:
    report = read(scripts.with_evaluation(scripts.SLOT))
    body = json.loads(json.dumps(as_json(report)))
    assert body["kind"] == "audit"
    assert body["bytes"] == report.bytes
    assert [each["kind"] for each in body["findings"]] == [str(e.kind) for e in report.findings]
    assert body["facts"]["environment"]["SEED"] == "1337"
    assert "torch" in body["facts"]["imports"]
    assert "eval_val_slot" in body["facts"]["evaluating"]
    lines = [each["line"] for each in body["findings"]]
    assert lines == sorted(lines)


def test_what_is_shown_cannot_command_a_terminal() -> None:
    source = "import socket  # \x1b[2J\x07 hidden\nos.environ.get('\\x1b[31mSEED', 1)\n"
    table = as_table(read(source + "import os\nos.environ.get('\\x1b[31mSEED', '\\x1b')\n"))
    assert "\x1b" not in table
    assert "\x07" not in table


@pytest.mark.parametrize(
    ("data", "why"),
    [
        (b"(" * 100_000, ""),
        (b"def f(:\n", "line 1"),
        (b"x = '" + b"a" * (5 << 20) + b"'\n", "larger than"),
    ],
)
def test_what_cannot_be_read_is_said(data: bytes, why: str) -> None:
    (found,) = read(data).findings
    assert (found.kind, found.confidence) == (Kind.UNREADABLE, Confidence.HIGH)
    assert why in found.why


def test_an_encoding_that_hides_code() -> None:
    report = read(b"# coding: utf-7\nx = 1 # +AAo-import socket\n")
    assert {Kind.HIDDEN_EXEC, Kind.NETWORK} <= {each.kind for each in report.findings}


def test_deep_expressions_do_no_harm() -> None:
    assert read("x = " + "+".join(["a"] * 900) + "\ny = " + "-" * 150 + "1\n").findings == ()


def test_no_script_is_the_users_error(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no such file"):
        audit(tmp_path / "none.py")
    with pytest.raises(UserError, match=r"a folder.*train_gpt\.py"):
        audit(tmp_path)
    large = tmp_path / "large.py"
    with large.open("wb") as file:
        file.truncate(40 << 20)
    with pytest.raises(UserError, match="larger"):
        audit(large)
