"""Data sets from text: format, order, identity, and what happens to what was there before."""

from __future__ import annotations

import ast
import gzip
import hashlib
import json
import lzma
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import sentencepiece as spm
import zstandard

from jobs.data.build import cut_batches
from jobs.data.datadir import DataDir
from jobs.data.documents import read_documents
from jobs.data.errors import DataError
from jobs.data.stdlib import split_docstrings, stdlib_documents
from model.shards import HEADER_BYTES, read_shard, train_files, val_files
from model.tokens import SPACE, load_token_bytes
from tests.jobs.conftest import ROOT, assert_refused, run_data
from tests.model.conftest import shared_data

TEXT = "the quick brown fox jumps over a lazy dog while naïve größe costs 12 € in 2024"
WORDS = TEXT.split()


def documents(count: int = 40) -> list[str]:
    """Small documents that differ, with enough letters for a tokenizer of 300 pieces."""
    return [
        " ".join(WORDS[(i * j) % len(WORDS)] for j in range(1, 30)) + f" {i}" for i in range(count)
    ]


def write_jsonl(path: Path, texts: list[str]) -> Path:
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    return path


def tokens_of(out: Path, vocab_size: int, split: str) -> np.ndarray:
    files = (val_files if split == "val" else train_files)(out, vocab_size)
    return np.concatenate([read_shard(path, vocab_size) for path in files])


def described(out: Path, vocab_size: int) -> dict[str, object]:
    description = DataDir(out, vocab_size).described()
    assert description is not None
    return description


def contents(root: Path) -> dict[str, bytes]:
    """Every file below a directory but the lock."""
    files = [path for path in root.rglob("*") if path.is_file() and path.name != ".lock"]
    return {path.relative_to(root).as_posix(): path.read_bytes() for path in files}


def test_the_sample_is_the_challenges_format(sample: Path) -> None:
    (val,) = val_files(sample, 512)
    assert val.name == "fineweb_val_000000.bin"
    header = np.frombuffer(val.read_bytes()[:HEADER_BYTES], "<i4")
    tokens = tokens_of(sample, 512, "val")
    assert (header[:3] == [20240520, 1, tokens.size]).all()
    assert not header[3:].any()
    path = sample / "tokenizers" / "fineweb_512_bpe.model"
    load_token_bytes(path, 512)  # byte fallback and a stand-alone U+2581, or it refuses
    processor = spm.SentencePieceProcessor(str(path))
    assert processor.IsByte(processor.PieceToId("<0x41>"))
    assert processor.PieceToId(SPACE) != processor.unk_id()
    manifest = json.loads((sample / "manifest.json").read_text())
    (dataset,) = manifest["datasets"]
    (tokenizer,) = manifest["tokenizers"]
    assert dataset["name"] == "fineweb10B_sp512"
    assert dataset["tokenizer_name"] == tokenizer["name"]
    assert dataset["stats"]["files_train"] == len(train_files(sample, 512))
    assert dataset["stats"]["tokens_val"] == tokens.size
    assert tokenizer["sha256"] == hashlib.sha256(path.read_bytes()).hexdigest()
    assert len(dataset["source"]["corpus_sha256"]) == 64


@pytest.fixture(scope="module")
def texts() -> list[str]:
    return stdlib_documents()


def test_the_samples_documents_are_whole_and_in_order(sample: Path, texts: list[str]) -> None:
    processor = spm.SentencePieceProcessor(str(sample / "tokenizers" / "fineweb_512_bpe.model"))
    ids = [[processor.bos_id(), *processor.EncodeAsIds(text)] for text in texts[:12]]
    np.testing.assert_array_equal(tokens_of(sample, 512, "val"), np.concatenate(ids))
    train = tokens_of(sample, 512, "train")
    first = [processor.bos_id(), *processor.EncodeAsIds(texts[12])]
    np.testing.assert_array_equal(train[: len(first)], first)
    assert (train == processor.bos_id()).sum() == len(texts) - 12


def test_no_text_is_in_two_documents_of_the_sample(texts: list[str]) -> None:
    assert texts == stdlib_documents()
    assert len(set(texts)) == len(texts)


def test_docstrings_are_told_from_the_source() -> None:
    source, code = '"""Doc."""\nx = 1\ndef f():\n    """More."""\n    return x\n', "x = 1"
    prose, rest = split_docstrings(source, ast.parse(source))
    assert prose == "Doc.\n\nMore."
    assert rest == f"{code}\ndef f():\n    return x\n"


def test_made_once_then_found(sample: Path) -> None:
    before = contents(sample)
    done = run_data("sample", "--vocab-size", 512, "--out", sample)
    assert done.returncode == 0, done.stderr
    assert "is there already" in done.stderr
    assert contents(sample) == before


@pytest.mark.parametrize("workers", [1, 3])
def test_the_number_of_processes_changes_nothing(tmp_path: Path, workers: int) -> None:
    docs = write_jsonl(tmp_path / "docs.jsonl", documents())
    common = ("prepare", docs, "--vocab-size", 300)
    one = run_data(*common, "--workers", 1, "--out", tmp_path / "one")
    other = run_data(*common, "--workers", workers, "--out", tmp_path / "other")
    assert one.returncode == other.returncode == 0, one.stderr + other.stderr
    assert contents(tmp_path / "one") == contents(tmp_path / "other")


COMPRESSORS: dict[str, Callable[[bytes], bytes]] = {
    "": bytes,
    ".gz": gzip.compress,
    ".xz": lzma.compress,
    ".zst": zstandard.ZstdCompressor().compress,
}


@pytest.mark.parametrize("suffix", COMPRESSORS)
def test_documents_come_out_of_every_wrapping(tmp_path: Path, suffix: str) -> None:
    texts = ["first – größe", "second\nwith two lines", "   ", "third\ud800"]
    lines = "".join(json.dumps({"body": text}) + "\n" for text in texts) + "\n"
    path = tmp_path / f"docs.jsonl{suffix}"
    path.write_bytes(COMPRESSORS[suffix](lines.encode()))
    found = list(read_documents([path], text_key="body"))
    assert found == ["first – größe", "second\nwith two lines", "third?"]
    text = tmp_path / f"book.txt{suffix}"
    text.write_bytes(COMPRESSORS[suffix](b"one<|end|>two<|end|>"))
    assert list(read_documents([text])) == ["one<|end|>two<|end|>"]
    assert list(read_documents([text, text], separator="<|end|>")) == ["one", "two"] * 2


@pytest.mark.parametrize(
    ("name", "data", "complaint"),
    [
        ("a.jsonl", b'{"text": "fine"}\n{"text": ', r"a\.jsonl:2: not JSON"),
        ("a.jsonl", b'{"body": "x"}', r"a\.jsonl:1: no text under 'text' \(its keys: body\)"),
        ("a.jsonl", b'{"text": 7}', r"a\.jsonl:1: no text under 'text'"),
        ("a.jsonl", b"[1]", r"a\.jsonl:1: .*not an object"),
        ("a.txt", b"\xff\xfe", r"a\.txt: not UTF-8"),
        ("a.txt.gz", b"not gzip", r"a\.txt\.gz: cannot be unpacked"),
        (
            "a.txt.gz",
            gzip.compress(b"whole" * 1000, mtime=0)[:-9],
            r"a\.txt\.gz: cannot be unpacked",
        ),
        ("a.txt.xz", b"not xz", r"a\.txt\.xz: cannot be unpacked"),
        ("a.txt.xz", lzma.compress(b"whole" * 1000)[:-9], r"a\.txt\.xz: cannot be unpacked"),
        ("a.txt.zst", b"not zstd", r"a\.txt\.zst: cannot be unpacked"),
        ("missing.txt", None, r"missing\.txt: cannot be read: No such file"),
    ],
)
def test_unusable_files_are_named(
    tmp_path: Path, name: str, data: bytes | None, complaint: str
) -> None:
    path = tmp_path / name
    if data is not None:
        path.write_bytes(data)
    with pytest.raises(DataError, match=complaint):
        list(read_documents([path]))


def test_batches_keep_order_and_part_the_splits() -> None:
    texts = [str(i) * 300_000 for i in range(10)]
    batches = list(cut_batches(texts, 3))
    assert [text for batch in batches for text in batch.texts] == texts
    assert [text for batch in batches if batch.split == "val" for text in batch.texts] == texts[:3]
    assert all(batch.bytes == sum(map(len, batch.texts)) for batch in batches)
    assert len(batches) > 2


def test_shards_are_full_but_for_the_last(tmp_path: Path) -> None:
    docs = write_jsonl(tmp_path / "docs.jsonl", documents())
    out = tmp_path / "out"
    done = run_data(
        "prepare", docs, "--vocab-size", 300, "--out", out, "--shard-tokens", 1_000,
        "--val-documents", 4,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    sizes = [read_shard(path, 300).size for path in train_files(out, 300)]
    assert len(sizes) > 1
    assert sizes[:-1] == [1_000] * (len(sizes) - 1)
    assert 0 < sizes[-1] <= 1_000
    bos = spm.SentencePieceProcessor(str(out / "tokenizers" / "fineweb_300_bpe.model")).bos_id()
    assert (tokens_of(out, 300, "val") == bos).sum() == 4
    assert (tokens_of(out, 300, "train") == bos).sum() == 36


def test_a_given_tokenizer_gives_the_fields_tokens(tmp_path: Path) -> None:
    tokenizer = shared_data("tokenizers/fineweb_1024_bpe.model")
    corpus = shared_data("corpus/docs.jsonl.xz")
    golden = json.loads(shared_data("golden/metrics.json").read_text())["byte_accounting"][0]
    out = tmp_path / "out"
    done = run_data(
        "prepare", corpus, "--vocab-size", 1024, "--tokenizer", tokenizer, "--out", out,
        "--val-documents", 40,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    tokens = tokens_of(out, 1024, "val")
    assert tokens.size == golden["tokens"]
    table = load_token_bytes(out / "tokenizers" / "fineweb_1024_bpe.model", 1024)
    assert table.count(tokens.astype(np.int64)) == golden["bytes"]
    assert described(out, 1024)["source"]["documents"] == 2124  # type: ignore[index]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--vocab-size", 60_000], ["no tokenizer of 60000 pieces", "another --vocab-size"]),
        (
            ["--vocab-size", 300, "--val-documents", 40],
            ["--val-documents 40: must be from 1 to 39"],
        ),
        (["--vocab-size", 300, "--tokenizer", "absent.model"], ["absent.model: no such tokenizer"]),
        (["--vocab-size", 300, "--text-key", "body"], ["docs.jsonl:1: no text under 'body'"]),
    ],
)
def test_impossible_requests_leave_nothing(
    tmp_path: Path, arguments: list[object], words: list[str]
) -> None:
    docs = write_jsonl(tmp_path / "docs.jsonl", documents())
    out = tmp_path / "out"
    assert_refused(run_data("prepare", docs, "--out", out, *arguments), *words)
    assert not (out / "datasets").exists()
    assert not (out / "tokenizers").exists()


def test_one_document_is_too_few(tmp_path: Path) -> None:
    text = tmp_path / "book.txt"
    text.write_text("\n".join(documents()))
    done = run_data("prepare", text, "--vocab-size", 300, "--out", tmp_path / "out")
    assert_refused(done, "1 documents found", "--separator")


def test_another_data_set_is_not_overwritten_unless_asked(tmp_path: Path) -> None:
    first = write_jsonl(tmp_path / "first.jsonl", documents())
    second = write_jsonl(tmp_path / "second.jsonl", documents()[::-1])
    out = tmp_path / "out"
    common = ("--vocab-size", 300, "--out", out)
    assert run_data("prepare", first, *common).returncode == 0
    before = contents(out)
    assert_refused(run_data("prepare", second, *common), "fineweb10B_sp300", "--replace")
    assert contents(out) == before
    assert run_data("prepare", second, *common, "--replace").returncode == 0
    assert contents(out).keys() == before.keys()
    assert contents(out) != before


def test_data_that_nobody_has_described_is_not_overwritten(tmp_path: Path) -> None:
    out = tmp_path / "out"
    theirs = out / "datasets" / "fineweb10B_sp300"
    theirs.mkdir(parents=True)
    (theirs / "fineweb_train_000000.bin").write_bytes(b"precious")
    docs = write_jsonl(tmp_path / "docs.jsonl", documents())
    assert_refused(run_data("prepare", docs, "--vocab-size", 300, "--out", out), "--replace")
    assert (theirs / "fineweb_train_000000.bin").read_bytes() == b"precious"


def test_a_truncated_shard_is_made_anew(tmp_path: Path) -> None:
    docs = write_jsonl(tmp_path / "docs.jsonl", documents())
    common = ("prepare", docs, "--vocab-size", 300, "--out", tmp_path / "out")
    assert run_data(*common).returncode == 0
    before = contents(tmp_path / "out")
    (shard,) = train_files(tmp_path / "out", 300)
    shard.write_bytes(shard.read_bytes()[:-2])
    assert_refused(run_data(*common), "--replace")
    assert run_data(*common, "--replace").returncode == 0
    assert contents(tmp_path / "out") == before


def test_a_killed_build_leaves_nothing_in_the_way(tmp_path: Path) -> None:
    docs = write_jsonl(tmp_path / "docs.jsonl", documents(3_000) * 10)
    out = tmp_path / "out"
    arguments = ["prepare", str(docs), "--vocab-size", "330", "--out", str(out)]
    process = subprocess.Popen(
        [sys.executable, "-m", "jobs.data", *arguments],
        cwd=ROOT,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    deadline = time.monotonic() + 120
    while not (out / ".partial-fineweb10B_sp330").exists():
        assert process.poll() is None, "it ended before it could be killed"
        assert time.monotonic() < deadline
        time.sleep(0.005)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    assert not (out / "datasets").exists()
    done = run_data(*arguments)
    assert done.returncode == 0, done.stderr
    assert not list(out.glob(".partial*"))
    assert tokens_of(out, 330, "train").size > 10_000


def test_documents_that_can_be_read_only_once_are_refused(tmp_path: Path) -> None:
    docs = write_jsonl(tmp_path / "docs.jsonl", documents())
    first = run_data("prepare", docs, "--vocab-size", 300, "--out", tmp_path / "first")
    assert first.returncode == 0, first.stderr
    tokenizer = tmp_path / "first" / "tokenizers" / "fineweb_300_bpe.model"
    out = tmp_path / "out"
    command = ["prepare", "/dev/stdin", "--vocab-size", "300", "--tokenizer", str(tokenizer)]
    done = subprocess.run(
        [sys.executable, "-m", "jobs.data", *command, "--separator", "\n", "--out", str(out)],
        cwd=ROOT,
        input=docs.read_text(),
        capture_output=True,
        text=True,
        check=False,
    )
    assert_refused(done, "the documents changed while they were read (40 at first, then 0)")
    assert not (out / "datasets").exists()


def test_a_build_killed_between_its_two_renames_is_made_anew(tmp_path: Path) -> None:
    docs = write_jsonl(tmp_path / "docs.jsonl", documents())
    common = ("prepare", docs, "--vocab-size", 300, "--out", tmp_path / "out")
    assert run_data(*common).returncode == 0
    before = contents(tmp_path / "out")
    shutil.rmtree(tmp_path / "out" / "datasets")
    done = run_data(*common)
    assert done.returncode == 0, done.stderr
    assert contents(tmp_path / "out") == before


def test_a_tokenizer_of_somebody_elses_is_not_overwritten(tmp_path: Path) -> None:
    docs = write_jsonl(tmp_path / "docs.jsonl", documents())
    theirs = tmp_path / "out" / "tokenizers" / "fineweb_300_bpe.model"
    theirs.parent.mkdir(parents=True)
    theirs.write_bytes(b"precious")
    done = run_data("prepare", docs, "--vocab-size", 300, "--out", tmp_path / "out")
    assert_refused(done, "fineweb_300_bpe.model", "--replace")
    assert theirs.read_bytes() == b"precious"


def test_two_vocabularies_share_a_directory(tmp_path: Path) -> None:
    docs = write_jsonl(tmp_path / "docs.jsonl", documents())
    for vocab_size in (300, 310):
        done = run_data("prepare", docs, "--vocab-size", vocab_size, "--out", tmp_path / "out")
        assert done.returncode == 0, done.stderr
    manifest = json.loads((tmp_path / "out" / "manifest.json").read_text())
    assert [entry["vocab_size"] for entry in manifest["datasets"]] == [300, 310]
    assert len(manifest["tokenizers"]) == 2


def test_only_one_may_change_a_directory(tmp_path: Path) -> None:
    docs = write_jsonl(tmp_path / "docs.jsonl", documents())
    out = tmp_path / "out"
    with DataDir(out, 300).hold():
        assert_refused(
            run_data("prepare", docs, "--vocab-size", 300, "--out", out), "another `sweeper data`"
        )
