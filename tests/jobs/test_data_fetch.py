"""The published export, fetched from a local server that speaks the hub's protocol."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from jobs.data.datadir import DataDir
from jobs.data.errors import DataError
from jobs.data.fetch import Published, _check_room
from model.batches import TrainData
from model.shards import read_shard, train_files, write_shard
from tests.jobs.conftest import assert_refused, run_data
from tests.jobs.hub import COMMIT, Hub, serve

REPO = "someone/an-export"
VOCAB = 512
NAME = f"fineweb10B_sp{VOCAB}"
TRAIN_SHARDS = 4


@pytest.fixture
def hub(sample: Path, tmp_path: Path) -> Iterator[Hub]:
    """An export of four training shards, made of the sample."""
    root = tmp_path / "published"
    shards = root / "exports" / "v1" / "datasets" / NAME
    tokenizers = root / "exports" / "v1" / "tokenizers"
    shards.mkdir(parents=True)
    tokenizers.mkdir()
    shutil.copy(sample / "tokenizers" / f"fineweb_{VOCAB}_bpe.model", tokenizers)
    (tokenizers / "fineweb_9999_bpe.model").write_bytes(b"another's")
    tokens = read_shard(sample / "datasets" / NAME / "fineweb_train_000000.bin")
    write_shard(shards / "fineweb_val_000000.bin", tokens[:5_000])
    for number in range(TRAIN_SHARDS):
        path = shards / f"fineweb_train_{number:06d}.bin"
        write_shard(path, tokens[5_000 * (number + 1) : 5_000 * (number + 2)])
    (shards / "notes.txt").write_text("not a shard")
    with serve(REPO, root) as served:
        yield served


def fetch(
    hub: Hub, out: Path, *more: object, shards: int = 2, **environment: str
) -> subprocess.CompletedProcess[str]:
    defaults = ("--variant", f"sp{VOCAB}", "--repo", REPO, "--prefix", "exports/v1")
    surroundings = {"HF_ENDPOINT": hub.url, "HF_HOME": str(out.parent / "hf"), "HF_TOKEN": ""}
    return run_data(
        "fetch", *defaults, "--train-shards", shards, "--out", out, *more,
        **(surroundings | environment),
    )  # fmt: skip


def published(hub: Hub) -> Path:
    return hub.root / "exports" / "v1" / "datasets" / NAME


def test_an_export_arrives_whole(hub: Hub, tmp_path: Path) -> None:
    out = tmp_path / "größe und platz"
    done = fetch(hub, out)
    assert done.returncode == 0, done.stderr
    assert "4 files fetched" in done.stderr
    names = {"fineweb_val_000000.bin", "fineweb_train_000000.bin", "fineweb_train_000001.bin"}
    assert {path.name for path in (out / "datasets" / NAME).iterdir()} == names | {"dataset.json"}
    for name in names:
        assert (out / "datasets" / NAME / name).read_bytes() == (published(hub) / name).read_bytes()
    description = DataDir(out, VOCAB).described()
    assert description is not None
    assert description["source"] == {
        "kind": "fetched", "repo": REPO, "prefix": "exports/v1", "commit": COMMIT,
    }  # fmt: skip
    assert description["splits"]["train"]["tokens"] == 10_000
    assert [path.name for path in (out / "tokenizers").iterdir()] == ["fineweb_512_bpe.model"]
    assert json.loads((out / "manifest.json").read_text())["datasets"][0]["name"] == NAME
    assert not list(out.glob(".partial*"))


def test_what_is_here_is_not_fetched_again(hub: Hub, tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert fetch(hub, out).returncode == 0
    hub.downloads.clear()
    done = fetch(hub, out)
    assert done.returncode == 0, done.stderr
    assert "is there already" in done.stderr
    assert not hub.downloads
    more = fetch(hub, out, shards=TRAIN_SHARDS)
    assert more.returncode == 0, more.stderr
    assert set(hub.downloads) == {"fineweb_train_000002.bin", "fineweb_train_000003.bin"}
    description = DataDir(out, VOCAB).described()
    assert description is not None
    assert len(description["splits"]["train"]["files"]) == TRAIN_SHARDS


def test_shards_beyond_the_number_asked_for_stay_described(hub: Hub, tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert fetch(hub, out, shards=TRAIN_SHARDS).returncode == 0
    assert fetch(hub, out, shards=1).returncode == 0
    description = DataDir(out, VOCAB).described()
    assert description is not None
    assert len(description["splits"]["train"]["files"]) == TRAIN_SHARDS


def test_a_broken_connection_is_tried_again(hub: Hub, tmp_path: Path) -> None:
    hub.cut_once = {"fineweb_train_000001.bin"}
    done = fetch(hub, tmp_path / "out")
    assert done.returncode == 0, done.stderr
    name = "fineweb_train_000001.bin"
    found = tmp_path / "out" / "datasets" / NAME / name
    assert found.read_bytes() == (published(hub) / name).read_bytes()
    assert hub.downloads[name] == 2


def test_a_cut_fetch_goes_on_with_what_it_lacks(hub: Hub, tmp_path: Path) -> None:
    out = tmp_path / "out"
    hub.damaged = {"fineweb_train_000001.bin"}
    assert_refused(fetch(hub, out), "damaged on the way")
    assert not (out / "datasets" / NAME / "fineweb_train_000001.bin").exists()
    assert DataDir(out, VOCAB).described() is None
    here = {path.name for path in out.rglob("*.bin") if ".partial" not in str(path)}
    hub.damaged.clear()
    hub.downloads.clear()
    done = fetch(hub, out)
    assert done.returncode == 0, done.stderr
    assert here.isdisjoint(hub.downloads)
    assert hub.downloads["fineweb_train_000001.bin"] == 1


def test_shards_of_other_tools_are_adopted_if_they_are_the_published_ones(
    hub: Hub, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    theirs = out / "datasets" / NAME
    theirs.mkdir(parents=True)
    shutil.copy(published(hub) / "fineweb_train_000000.bin", theirs)
    assert fetch(hub, out).returncode == 0
    assert "fineweb_train_000000.bin" not in hub.downloads
    other = tmp_path / "other"
    theirs = other / "datasets" / NAME
    theirs.mkdir(parents=True)
    changed = bytearray((published(hub) / "fineweb_train_000000.bin").read_bytes())
    changed[-1] ^= 1
    (theirs / "fineweb_train_000000.bin").write_bytes(changed)
    assert_refused(fetch(hub, other), "fineweb_train_000000.bin", "remove it to fetch it again")
    assert (theirs / "fineweb_train_000000.bin").read_bytes() == changed


def test_a_data_set_of_ones_own_is_left_alone(hub: Hub, sample: Path, tmp_path: Path) -> None:
    mine = shutil.copytree(sample, tmp_path / "mine")
    assert_refused(fetch(hub, mine), "holds another data set", "--out")
    assert not hub.downloads


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda data: b"\0" * 4 + data[4:], ["expected magic 20240520, found 0"]),
        (lambda data: data[:4] + b"\7" + data[5:], ["expected version 1, found 7"]),
        (lambda data: data[:-2], ["truncated or damaged"]),
        (lambda data: data[:-2] + b"\xff\xff", ["below VOCAB_SIZE 512, found 65535"]),
    ],
)
def test_bad_shards_are_refused(hub: Hub, tmp_path: Path, damage: object, words: list[str]) -> None:
    path = published(hub) / "fineweb_train_000001.bin"
    path.write_bytes(damage(path.read_bytes()))  # type: ignore[operator]
    out = tmp_path / "out"
    assert_refused(fetch(hub, out), "fineweb_train_000001.bin", *words)
    assert not (out / "datasets" / NAME / "fineweb_train_000001.bin").exists()


@pytest.mark.parametrize(
    ("more", "words"),
    [
        (
            ["--repo", "nobody/nothing"],
            ["no such dataset repository", "HF_TOKEN"],
        ),
        (["--revision", "gone"], ["revision gone"]),
        (["--prefix", "elsewhere"], ["no such data set there", "--prefix"]),
        (["--variant", "sp2048"], ["no such data set there", "--variant"]),
        (["--train-shards", 9], ["has 4 training shards, asked for 9"]),
    ],
)
def test_what_is_not_published_is_said(
    hub: Hub, tmp_path: Path, more: list[object], words: list[str]
) -> None:
    assert_refused(fetch(hub, tmp_path / "out", *more), *words)
    assert not hub.downloads


def test_a_private_export_needs_its_token(hub: Hub, tmp_path: Path) -> None:
    hub.token = "hf_secret"
    assert_refused(fetch(hub, tmp_path / "out"), "HF_TOKEN")
    done = fetch(hub, tmp_path / "out", HF_TOKEN="hf_secret")
    assert done.returncode == 0, done.stderr


def test_no_hub_no_traceback(hub: Hub, tmp_path: Path) -> None:
    assert_refused(fetch(hub, tmp_path / "out", HF_ENDPOINT="http://127.0.0.1:9"), REPO)


def test_room_is_looked_for_before_anything_is_downloaded(tmp_path: Path) -> None:
    from huggingface_hub.hf_api import RepoFile

    huge = RepoFile(path="x", size=1 << 60, oid="0")
    files = [Published(remote=huge, place=tmp_path / "x", split="train")]
    with pytest.raises(DataError, match=r"GB to download, .* GB free; make room"):
        _check_room(files, tmp_path)
    _check_room([], tmp_path)


def test_the_trainer_reads_what_was_fetched(hub: Hub, tmp_path: Path) -> None:
    assert fetch(hub, tmp_path / "out").returncode == 0
    data = TrainData(train_files(tmp_path / "out", VOCAB), seq_len=64, seed=1, vocab_size=VOCAB)
    inputs, targets = data.next_batch(4, slice(None))
    assert inputs.shape == (4, 64)
    np.testing.assert_array_equal(inputs[:, 1:], targets[:, :-1])
