"""Files to a slot and home from it: whole, in order, and added to where they grow."""

from __future__ import annotations

import os
import random
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import pytest

from sweeper.layout import AttemptDir
from sweeper.shipping import CHUNK_BYTES, RESUMED, Scratch, Shipment
from sweeper.stages import Stage
from tests.sweeper.conftest import ROOT


@pytest.fixture
def scratch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Scratch:
    """A slot's end on this host, its directories below the test's own."""
    (tmp_path / "host").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "host"))
    return Scratch()


def ship(
    scratch: Scratch,
    attempt: AttemptDir,
    log: list[str] | None = None,
    *,
    follow_logs: bool = False,
) -> Shipment:
    """A shipment that calls the slot's end without a cluster between."""

    def call(method: str, *arguments: Any) -> Any:
        if log is not None and method == "read" and arguments[1] == 0:
            log.append(arguments[0])
        return getattr(scratch, method)(*arguments)

    return Shipment(attempt, call, follow_logs=follow_logs)


def test_a_stage_gets_what_it_needs_and_only_what_is_new_comes_home(
    tmp_path: Path, scratch: Scratch
) -> None:
    attempt = AttemptDir(tmp_path / "größe und platz").of(Stage.PACK)
    attempt.path.mkdir()
    tensors = random.Random(1).randbytes(2 * CHUNK_BYTES + 1)
    attempt.trained_tensors.write_bytes(tensors)
    attempt.trained.write_text("facts")
    attempt.events.write_text("of training\n")
    read: list[str] = []
    shipment = ship(scratch, attempt, read)
    far = AttemptDir(Path(shipment.begin())).of(Stage.PACK)
    assert sorted(path.name for path in far.path.iterdir()) == ["trained.json", "trained.pt"]
    assert far.trained_tensors.read_bytes() == tensors

    far.events.write_text("of packing\n")
    shipment.follow()
    assert attempt.events.read_text() == "of training\nof packing\n"
    with far.events.open("a") as file:
        file.write("its end\n")
    far.trained_tensors.unlink()
    far.logs.mkdir(parents=True)
    far.stdout.write_text("said")
    for path, text in ((far.exit, "0"), (far.packed, "packed"), (far.artifact, "artifact")):
        path.write_text(text)
    shipment.finish()
    assert attempt.events.read_text() == "of training\nof packing\nits end\n"
    assert attempt.stdout.read_text() == "said"
    assert attempt.trained.read_text() == "facts"
    # What vouches for others comes after them, and the word of the end last of all.
    assert read[-2:] == ["packed.json", "exit.pack.json"]
    assert "trained.json" not in read
    assert not list(attempt.path.rglob("*.partial"))
    assert not far.path.exists()


def test_a_launch_after_one_that_broke_off_begins_with_a_clean_directory(
    tmp_path: Path, scratch: Scratch
) -> None:
    attempt = AttemptDir(tmp_path / "a").of(Stage.SCORE)
    attempt.path.mkdir()
    for path in (attempt.trained, attempt.packed):
        path.write_text("facts")
    with pytest.raises(FileNotFoundError):  # there is no artifact
        ship(scratch, attempt).begin()
    attempt.artifact.write_text("artifact")
    far = Path(ship(scratch, attempt).begin())
    assert {path.read_text() for path in far.iterdir()} == {"facts", "artifact"}
    assert list((tmp_path / "host").iterdir()) == [far]
    scratch.drop_scratch()
    scratch.drop_scratch()
    assert not list((tmp_path / "host").iterdir())


def test_what_a_killed_slot_has_left_is_removed_by_the_next(
    tmp_path: Path, scratch: Scratch
) -> None:
    code = (
        "import sys; from sweeper.shipping import Scratch; scratch = Scratch();"
        "scratch.make_scratch(); scratch.append('file', b'x'); print(flush=True); sys.stdin.read()"
    )
    env = os.environ | {"TMPDIR": str(tmp_path / "host")}
    with subprocess.Popen(
        [sys.executable, "-c", code],
        env=env,
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    ) as other:
        assert other.stdout is not None
        other.stdout.readline()
        (its,) = (tmp_path / "host").iterdir()
        first = Path(scratch.make_scratch())
        assert (its / "file").exists()
        other.kill()
    second = Path(scratch.make_scratch())
    assert {*(tmp_path / "host").iterdir()} == {second}
    assert first != second


def test_a_checkpoint_goes_along_and_only_a_newer_one_comes_home(
    tmp_path: Path, scratch: Scratch
) -> None:
    earlier, attempt = tmp_path / "1" / "checkpoint.pt", AttemptDir(tmp_path / "2")
    for directory in (earlier.parent, attempt.path):
        directory.mkdir()
    earlier.write_text("of step 5")
    shipment = ship(scratch, attempt)
    far = Path(shipment.begin({RESUMED: earlier}))
    assert (far / RESUMED).read_text() == "of step 5"
    assert list(attempt.path.iterdir()) == []
    (far / "checkpoint.pt").write_text("of step 9")
    shipment.finish()
    assert [path.name for path in attempt.path.iterdir()] == ["checkpoint.pt"]
    assert (attempt.path / "checkpoint.pt").read_text() == "of step 9"


def test_a_way_home_that_broke_off_is_gone_again_without_a_trace(
    tmp_path: Path, scratch: Scratch
) -> None:
    attempt = AttemptDir(tmp_path / "a")
    attempt.path.mkdir()
    attempt.events.write_text("of training\n")
    answers = [1]  # how many calls are still answered

    def call(method: str, *arguments: Any) -> Any:
        answers[0] -= 1
        if answers[0] < 0:
            raise OSError("no answer")
        return getattr(scratch, method)(*arguments)

    shipment = Shipment(attempt, call)
    far = Path(shipment.begin())
    large = random.Random(1).randbytes(2 * CHUNK_BYTES + 1)
    contents = {"final_model.int6.ptz": large, "events.jsonl": b"of scoring\n", "exit.json": b"0"}
    for name, content in contents.items():
        (far / name).write_bytes(content)
    failures = 0
    for answers[0] in range(1, 100):
        try:
            shipment.finish()
            break
        except OSError:
            failures += 1
    assert failures > 3
    contents["events.jsonl"] = b"of training\nof scoring\n"
    assert {path.name: path.read_bytes() for path in attempt.path.iterdir()} == contents


def test_the_code_goes_to_the_slot_and_does_not_come_home(tmp_path: Path, scratch: Scratch) -> None:
    code = tmp_path / "code"
    for name in ("model/train.py", "model/data/table.json"):
        (code / name).parent.mkdir(parents=True, exist_ok=True)
        (code / name).write_text(name)
    (code / "model" / "not of it").write_text("")
    attempt = AttemptDir(tmp_path / "a")
    attempt.path.mkdir()
    shipment = ship(scratch, attempt)
    far = Path(shipment.begin())
    there = Path(shipment.send_code(str(code), ("model/train.py", "model/data/table.json")))
    assert (there / "model" / "data" / "table.json").read_text() == "model/data/table.json"
    assert not (there / "model" / "not of it").exists()
    (far / "train_gpt.py").write_text("a script's copy")
    shipment.finish()
    assert [path.name for path in attempt.path.iterdir()] == ["train_gpt.py"]
    assert not there.exists()


@pytest.mark.parametrize("follow_logs", [True, False])
def test_what_a_script_says_comes_home_while_it_works(
    tmp_path: Path, scratch: Scratch, follow_logs: bool
) -> None:
    attempt = AttemptDir(tmp_path / "a")
    attempt.path.mkdir()
    shipment = ship(scratch, attempt, follow_logs=follow_logs)
    far = AttemptDir(Path(shipment.begin()))
    ranks = [far.logs / "ranks" / "x" / "attempt_0" / str(rank) for rank in (0, 1)]
    for directory in ranks:
        directory.mkdir(parents=True)
        (directory / "stdout.log").write_text("first\n")
    shipment.follow()
    assert [len(attempt.rank_logs(rank, "stdout")) for rank in (0, 1)] == [follow_logs, 0]
    with (ranks[0] / "stdout.log").open("a") as file:
        file.write("second\n")
    shipment.follow()
    shipment.finish()
    for rank, said in ((0, "first\nsecond\n"), (1, "first\n")):
        (log,) = attempt.rank_logs(rank, "stdout")
        assert log.read_text() == said
