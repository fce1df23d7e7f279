"""What is sent to a cluster and what comes home from it, on this side of the wire."""

from __future__ import annotations

import contextlib
import json
import os
import random
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest

from jobs.sweep import with_defaults
from sweeper import cli
from sweeper.cli_jobs import address_from
from sweeper.errors import UserError
from sweeper.layout import SweepDir
from sweeper.ledger import Ledger
from sweeper.outbox import LEDGER, Piece, Request, results, send
from sweeper.pull import PARTIAL, Target, pull, safe
from sweeper.spec import load_spec
from sweeper.submit import JobRow, Submission, check_size, choose_id, content_hash, stage
from tests.sweeper.conftest import wait_until

SPEC = """
name = "sent"
seeds = [1]
[workload]
{workload}
[env]
{env}
[[trial]]
name = "t"
"""
ROW = JobRow(
    id="sent-1",
    sweep="sent",
    root="~/sweeper-runs",
    python="python",
    status="RUNNING",
    started=1.0,
    ended=None,
    exit_code=None,
    message="",
)


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The directory that commands are started in; its name is hostile on purpose."""
    here = tmp_path / "hier und dort"
    here.mkdir()
    monkeypatch.chdir(here)
    return here


def staged(target: Path, workload: str = "", env: str = "", **given: str) -> Path:
    """A spec's sent directory."""
    spec = Path("spec in use.toml")
    spec.write_text(SPEC.format(workload=workload, env=env))
    submission = Submission(spec=spec, env=given)
    target.mkdir()
    stage(load_spec(spec, env=given), submission, target)
    return target


# ---- what is sent


def test_what_is_needed_is_sent_and_nothing_else(tmp_path: Path) -> None:
    sent = staged(tmp_path / "sent", env='DATA_DIR = "/data"')
    assert {path.name for path in sent.iterdir()} == {
        *("sweeper", "jobs", "model", "pyproject.toml", "spec.toml")
    }
    assert not [path for path in sent.rglob("*") if path.suffix in (".pyc", ".sqlite", ".bin")]
    assert sum(path.stat().st_size for path in sent.rglob("*")) < 3_000_000
    # The job's command line works with that alone, far from the project.
    done = subprocess.run(
        [sys.executable, "-m", "jobs.sweep", "nowhere.toml", "--root", "~/x"],
        cwd=sent,
        env={name: text for name, text in os.environ.items() if name != "PYTHONPATH"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stderr.count("\n")) == (2, 1), done.stderr
    assert "nowhere.toml: cannot be read" in done.stderr


def test_a_module_of_ones_own_is_sent_and_an_installed_one_is_not(
    tmp_path: Path, here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(here))
    (here / "my_trainer").mkdir()
    (here / "my_trainer" / "train.py").touch()
    sent = staged(tmp_path / "package", 'module = "my_trainer.train"')
    assert (sent / "my_trainer" / "train.py").is_file()
    assert not (sent / "model").exists()

    (here / "one_file.py").touch()
    assert (staged(tmp_path / "module", 'module = "one_file"') / "one_file.py").is_file()
    assert not (staged(tmp_path / "library", 'module = "numpy.version"') / "numpy").exists()


@pytest.mark.parametrize("quote", ['"', "'"])
def test_a_script_is_sent_with_what_belongs_to_it(tmp_path: Path, here: Path, quote: str) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (here / "train_gpt.py").write_text("print(1)")
    (elsewhere / "helper.py").write_text("print(2)")
    files = f"script = {quote}./train_gpt.py{quote}\n"
    sent = staged(tmp_path / "sent", f"{files}include = [{quote}{elsewhere}/helper.py{quote}]")
    os.chdir(sent)
    work = load_spec(Path("spec.toml")).workload
    assert [Path(str(path)).read_text() for path in (work.script, *work.include)] == [
        *("print(1)", "print(2)")
    ]
    assert not (sent / "model").exists()


@pytest.mark.parametrize(
    ("workload", "env", "says"),
    [
        ("", 'DATA_DIR = "data"', "--env DATA_DIR=/data"),
        ("", 'TOKENIZER_PATH = "a/b.model"', "TOKENIZER_PATH = 'a/b.model' is a path from here"),
        ("", '\n[storage]\nurl = "results"', "storage.url = 'results' is a path from here"),
        ('script = "nowhere.py"', "", "there is no file .*nowhere.py"),
        ('script = "reads.py"', "LRR = 1", "did you mean LR"),
        ('script = "train\\u005fgpt.py"', "", "as plain quoted text"),
    ],
)
def test_what_would_not_be_there_is_said_before_anything_is_sent(
    tmp_path: Path, here: Path, workload: str, env: str, says: str
) -> None:
    (here / "train_gpt.py").touch()
    (here / "reads.py").write_text("import os; os.environ['SEED'], os.environ['LR']")
    with pytest.raises(UserError, match=says):
        staged(tmp_path / "sent", workload, env)


def test_a_setting_on_the_command_line_stands_for_the_specs_own(tmp_path: Path) -> None:
    staged(tmp_path / "sent", env='DATA_DIR = "data"', DATA_DIR="/data")
    with pytest.raises(UserError, match="DATA_DIR = 'mine'"):
        staged(tmp_path / "other", DATA_DIR="mine")


@pytest.mark.parametrize(
    ("root", "lasts"),
    [("/data/runs", True), ("~/runs", True), ("~", True), ("runs", False), ("~runs", False)],
)
def test_a_sweep_is_kept_outside_of_its_job(here: Path, root: str, lasts: bool) -> None:
    spec = here / "spec.toml"
    spec.write_text(SPEC.format(workload="", env=""))
    target = here / "sent"
    target.mkdir()
    submission = Submission(spec=spec, env={}, root=root)
    with contextlib.nullcontext() if lasts else pytest.raises(UserError, match=f"--root {root}: "):
        stage(load_spec(spec), submission, target)


def test_what_is_too_large_is_named(tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    for name, size in (("small", 10), ("sub/large", 3 << 20), ("larger", 5 << 20)):
        (tmp_path / name).write_bytes(bytes(size))
    check_size(tmp_path, most=9 << 20)
    with pytest.raises(UserError, match=r"larger \(5.0 MiB\), sub/large \(3.0 MiB\), small"):
        check_size(tmp_path, most=8 << 20)


# ---- under which name


def test_the_name_follows_from_all_that_is_sent(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("one")
    first = content_hash(tmp_path, "python -m jobs.sweep")
    os.utime(tmp_path / "file", (1, 1))
    assert content_hash(tmp_path, "python -m jobs.sweep") == first
    hashes = {first, content_hash(tmp_path, "python3 -m jobs.sweep")}
    (tmp_path / "file").write_text("two")
    hashes.add(content_hash(tmp_path, "python -m jobs.sweep"))
    (tmp_path / "file").rename(tmp_path / "other")
    hashes.add(content_hash(tmp_path, "python -m jobs.sweep"))
    assert len(hashes) == 4


def test_a_job_that_broke_off_has_a_successor_and_others_have_not() -> None:
    def rows(*states: str) -> list[JobRow]:
        names = ["s", "s-2", "s-3"][: len(states)]
        return [replace(ROW, id=n, status=state) for n, state in zip(names, states, strict=True)]

    assert choose_id("s", []) == "s"
    assert choose_id("s", [ROW]) == "s"
    assert choose_id("s", rows("FAILED")) == "s-2"
    assert choose_id("s", rows("STOPPED", "FAILED")) == "s-3"
    for state in ("RUNNING", "PENDING"):
        with pytest.raises(UserError, match=r"job s-2 is at work.*jobs logs s-2 --follow"):
            choose_id("s", rows("STOPPED", state))
    with pytest.raises(UserError, match=r"job s has done just this.*jobs pull s"):
        choose_id("s", rows("SUCCEEDED"))


def test_the_address_is_that_of_a_dashboard(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RAY_ADDRESS", "RAY_API_SERVER_ADDRESS"):
        monkeypatch.delenv(name, raising=False)
    assert address_from("head:8265") == "http://head:8265"
    with pytest.raises(UserError, match="--address http://HEAD:8265"):
        address_from(None)
    with pytest.raises(UserError, match="dashboard"):
        address_from("ray://head:10001")
    monkeypatch.setenv("RAY_ADDRESS", "head:6379")
    with pytest.raises(UserError):
        address_from(None)
    monkeypatch.setenv("RAY_API_SERVER_ADDRESS", "https://head/")
    assert address_from(None) == "https://head"
    assert address_from("http://other:1") == "http://other:1"


def test_a_job_has_half_of_what_ray_gives_it_to_end_its_runs_in() -> None:
    home = str(Path.home() / "x")
    assert with_defaults(["s.toml", "--root", "~/x"], {}) == [
        *("run", "--stop-seconds", "1.5", "s.toml", "--root", home)
    ]
    assert with_defaults([], {"RAY_JOB_STOP_WAIT_TIME_S": "20"})[2] == "10.0"


# ---- what comes home


@pytest.fixture
def far(tmp_path: Path) -> Iterator[SweepDir]:
    """A sweep as it lies on a cluster, its ledger open for writing."""
    sweep = SweepDir(tmp_path / "far" / "sent")
    place = sweep.path / "attempts" / "000-t" / "seed1" / "1"
    (place / "logs").mkdir(parents=True)
    (place / "result.json").write_text("{}")
    (place / "logs" / "größe.log").write_text("line\n" * 1000)
    (place / "empty").touch()
    (place / "artifact.ptz").write_bytes(random.Random(0).randbytes(200_000))
    for name in ("checkpoint.pt", "trained.pt", "result.json.partial"):
        (place / name).write_bytes(b"large")
    sweep.lock.touch()
    (place / "link").symlink_to("/etc/passwd")
    Path("spec.toml").write_text(SPEC.format(workload="", env=""))
    with closing(Ledger.open_for_writing(sweep.ledger, load_spec(Path("spec.toml")))):
        yield sweep


def answer(far: SweepDir, target: Target, most: int = 1 << 20) -> list[dict[str, Any]]:
    """What is said on a request, by way of text."""
    request = Request(root=str(far.path.parent), sweep=far.name, have=target.have(), most=most)
    request = Request(**json.loads(json.dumps(asdict(request))))
    return [json.loads(json.dumps(said)) for said in send(request)]


def bring(far: SweepDir, target: Target, most: int = 1 << 20) -> list[str]:
    """All that is lacking, brought in as many rounds as it takes; the pieces' paths."""
    came = []
    left = 1
    while left:
        *pieces, last = answer(far, target, most)
        for facts in pieces:
            target.take(Piece(**facts))
            came.append(facts["path"])
        left = last["left"]
    target.finish()
    return came


def check_same(far: SweepDir, target: Target) -> None:
    assert set(results(target.path)) == set(results(far.path))
    for name in results(far.path):
        assert (target.path / name).read_bytes() == (far.path / name).read_bytes(), name
    assert not list(target.path.rglob(f"*{PARTIAL}"))


def test_results_come_in_parts_and_only_what_is_lacking(
    far: SweepDir, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sweeper.outbox.BLOCK", 30_000)
    target = Target(tmp_path / "near" / "sent")
    came = bring(far, target, most=50_000)
    check_same(far, target)
    assert came[-1] == LEDGER  # after all that it tells of
    assert came.count("attempts/000-t/seed1/1/artifact.ptz") == 7
    assert not {"checkpoint.pt", "trained.pt", "lock", "link"} & {
        path.name for path in target.path.rglob("*")
    }
    with closing(Ledger.open_for_reading(target.ledger)) as ledger:
        assert len(ledger.runs()) == 1
    assert bring(far, Target(target.path)) == []


def test_what_has_grown_or_changed_is_sent_again(far: SweepDir, tmp_path: Path) -> None:
    target = Target(tmp_path / "near" / "sent")
    bring(far, target)
    place = far.path / "attempts" / "000-t" / "seed1" / "1"
    with (place / "logs" / "größe.log").open("a") as log:
        log.write("more")
    (place / "artifact.ptz").write_bytes(random.Random(1).randbytes(200_000))
    (place / "result.json").write_text("")
    (place / "new").touch()
    *pieces, _ = answer(far, target)
    sent = {Path(piece["path"]).name: piece["end"] - piece["start"] for piece in pieces}
    assert sent == {"größe.log": 4, "artifact.ptz": 200_000, "result.json": 0, "new": 0}
    bring(far, target)
    check_same(far, target)


def test_a_file_that_is_replaced_between_two_parts_comes_whole(
    far: SweepDir, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sweeper.outbox.BLOCK", 30_000)
    target = Target(tmp_path / "near" / "sent")
    for facts in answer(far, target, most=50_000)[:-1]:
        target.take(Piece(**facts))
    assert list(target.path.rglob(f"*{PARTIAL}"))
    artifact = far.path / "attempts" / "000-t" / "seed1" / "1" / "artifact.ptz"
    artifact.write_bytes(random.Random(1).randbytes(150_000))
    bring(far, target, most=50_000)
    check_same(far, target)


def test_a_sweep_of_ones_own_is_not_overwritten(far: SweepDir, tmp_path: Path) -> None:
    target = Target(tmp_path / "near" / "sent")
    target.check()
    bring(far, target)
    target.check()
    with closing(Ledger.open_for_reading(target.ledger)) as ledger:
        ledger.runs()
    target.check()  # it was only looked at
    with closing(Ledger.open_for_writing(target.ledger, load_spec(Path("spec.toml")))) as ledger:
        ledger.note("pause", "it goes on here")
        with pytest.raises(UserError, match="went on here; give another --out"):
            target.check()
    with pytest.raises(UserError, match="went on here"):
        target.check()
    mine = Target(tmp_path / "mine")
    mine.path.mkdir()
    mine.ledger.write_bytes(far.ledger.read_bytes())
    with pytest.raises(UserError, match="was not pulled"):
        mine.check()


def test_an_answer_that_is_damaged_is_not_taken(tmp_path: Path) -> None:
    piece = Piece.pack("a", b"content", start=0, size=7)
    assert piece.unpack() == b"content"
    other = Piece.pack("a", b"CONTENT", start=0, size=7)
    for data in (other.data, piece.data[:-8], "!", ""):
        with pytest.raises(ValueError, match=r".*"):
            replace(piece, data=data).unpack()


@pytest.mark.parametrize("name", ["/etc/passwd", "../x", "a/../../x", ""])
def test_a_path_that_leads_out_is_refused(name: str) -> None:
    with pytest.raises(UserError, match="nothing is written there"):
        safe(name)


@pytest.mark.parametrize("name", ["/etc", "..", "../mine", "", "a/b", "sent\n"])
def test_a_sweep_whose_name_leads_elsewhere_is_not_asked_for(tmp_path: Path, name: str) -> None:
    told: list[str] = []  # to the cluster, which has no client here: it would be an AttributeError
    with pytest.raises(UserError, match=r"calls its sweep .*, which is no name of one"):
        pull(None, replace(ROW, sweep=name), tmp_path / "near", told.append)
    assert not told
    assert not (tmp_path / "near").exists()


def test_what_is_sent_leaves_the_log_when_the_sender_is_told_to_end(
    far: SweepDir, tmp_path: Path
) -> None:
    request = Request(root=str(far.path.parent), sweep="sent", have={}, most=1 << 20)
    (tmp_path / "request.json").write_text(json.dumps(asdict(request)))
    log = tmp_path / "log"
    with log.open("a") as file:
        sender = subprocess.Popen(
            [sys.executable, "-m", "sweeper.outbox", str(tmp_path / "request.json")],
            cwd=cli.__file__.rpartition("/sweeper/")[0],
            stdout=file,
        )
    try:
        wait_until(lambda: '"left": 0' in log.read_text(), "the answer")
        sender.terminate()
        assert sender.wait(30) == 0
    finally:
        sender.kill()
    assert log.read_text() == ""


def test_a_sweep_that_is_not_there_is_said(tmp_path: Path) -> None:
    request = Request(root=str(tmp_path), sweep="absent", have={}, most=1)
    (said,) = send(request)
    assert "there is no sweep 'absent'" in said["error"]
