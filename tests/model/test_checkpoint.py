"""Interrupted training goes on as if nothing had happened, or says why it cannot."""

from __future__ import annotations

import json
import os
import pickle
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from model.checkpoint import load_checkpoint, save_checkpoint
from model.config import Config
from model.failure import EXIT_STOPPED, EXIT_USER
from model.fields import ConfigError
from tests.model.conftest import (
    ROOT,
    Finished,
    Train,
    run_trainer,
    train_command,
    train_environment,
)

EVERY_STEP = 1e-9


def events_of(run_dir: Path) -> list[dict[str, Any]]:
    path = run_dir / "events.jsonl"
    lines = path.read_text().splitlines() if path.exists() else []
    return [json.loads(line) for line in lines]


def interrupt(
    data: Path, run_dir: Path, number: int, *, step: int, processes: int = 1, **settings: object
) -> int:
    """Start the trainer and send it a signal once it has made so many steps."""
    process = subprocess.Popen(
        train_command(processes),
        cwd=ROOT,
        env=train_environment(data, run_dir, checkpoint_seconds=EVERY_STEP, **settings),
        stdout=subprocess.DEVNULL,
        stderr=(run_dir.parent / "stderr.log").open("w"),
        start_new_session=True,
    )
    deadline = time.monotonic() + 120
    while not any(event.get("step", 0) >= step for event in events_of(run_dir)):
        assert process.poll() is None, (run_dir.parent / "stderr.log").read_text()
        assert time.monotonic() < deadline
        time.sleep(0.01)
    os.killpg(process.pid, number) if number == signal.SIGKILL else process.send_signal(number)
    return process.wait(timeout=120)


def losses(*runs: Path | Finished) -> dict[int, float]:
    """Loss by step; where steps were done twice, that of the later run."""
    by_step: dict[int, float] = {}
    for run in runs:
        events = run.events if isinstance(run, Finished) else events_of(run)
        by_step |= {e["step"]: e["train_loss"] for e in events if e["kind"] == "step"}
    return by_step


# Long enough that the signal comes before the end.
LONG: dict[str, Any] = {"iterations": 80, "train_log_every": 1, "recur_start_step": 40}


@pytest.fixture(scope="module")
def whole(data_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Finished:
    return run_trainer(data_dir, tmp_path_factory.mktemp("whole") / "run", **LONG)


@pytest.fixture(scope="module")
def stopped(data_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that was asked to stop after a few steps, and did."""
    run_dir = tmp_path_factory.mktemp("stopped") / "run"
    assert interrupt(data_dir, run_dir, signal.SIGTERM, step=5, **LONG) == EXIT_STOPPED
    assert [e["kind"] for e in events_of(run_dir)][-2:] == ["checkpoint", "stopped"]
    return run_dir


def check_resumed(first: Path, second: Finished, whole: Finished) -> None:
    assert second.returncode == 0, second.stderr
    assert losses(first, second) == losses(whole)
    for name in ("artifact_sha256", "val_bpb", "steps"):
        assert second.result[name] == whole.result[name]
    assert 0 < second.result["resumed_from_step"] < 80
    assert whole.result["resumed_from_step"] is None
    assert any("resumed from step" in e["message"] for e in second.of_kind("warning"))


def test_a_resumed_run_is_the_uninterrupted_one(
    train: Train, stopped: Path, whole: Finished
) -> None:
    check_resumed(stopped, train("second", resume_from=stopped, **LONG), whole)


@pytest.mark.slow
def test_so_is_one_whose_first_half_was_killed(
    train: Train, data_dir: Path, tmp_path: Path, whole: Finished
) -> None:
    first = tmp_path / "first"
    assert interrupt(data_dir, first, signal.SIGKILL, step=5, **LONG) == -signal.SIGKILL
    check_resumed(first, train("second", resume_from=first, **LONG), whole)


@pytest.mark.slow
def test_ranks_resume_together(train: Train, data_dir: Path, tmp_path: Path) -> None:
    settings: dict[str, Any] = {"iterations": 60, "train_log_every": 1}
    interrupt(data_dir, tmp_path / "first", signal.SIGTERM, step=4, processes=2, **settings)
    whole = train("whole", processes=2, **settings)
    second = train("second", processes=2, resume_from=tmp_path / "first", **settings)
    assert second.returncode == 0, second.stderr
    assert losses(tmp_path / "first", second) == losses(whole)


def test_no_checkpoint_unless_asked(whole: Finished) -> None:
    assert not (whole.run_dir / "checkpoint.pt").exists()
    assert not whole.of_kind("checkpoint")


def test_a_checkpoint_of_another_run_is_refused(train: Train, stopped: Path) -> None:
    other = train("other", resume_from=stopped, seed=2, **LONG)
    assert other.returncode == EXIT_USER
    (error,) = other.of_kind("error")
    assert "trained with SEED=1337, this run has 2" in error["message"]
    assert not (other.run_dir / "result.json").exists()


def test_other_data_are_refused(tmp_path: Path) -> None:
    save_checkpoint(tmp_path, {}, Config(), "data A")
    assert load_checkpoint(Config(resume_from=str(tmp_path)), "data A") == {}
    with pytest.raises(ConfigError, match="trained on other data"):
        load_checkpoint(Config(resume_from=str(tmp_path)), "data B")


class Bomb:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.system, ("echo executed",)


@pytest.mark.parametrize(
    "content",
    [None, b"", b"rubbish", pickle.dumps({"state": Bomb()}, protocol=2), b"PK\3\4" + bytes(100)],
)
def test_no_checkpoint_no_traceback(
    tmp_path: Path, content: bytes | None, capfd: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "checkpoint.pt"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ConfigError, match=r"RESUME_FROM: .*no (such )?checkpoint"):
        load_checkpoint(Config(resume_from=str(tmp_path)), "data")
    assert "executed" not in capfd.readouterr().out


def test_a_failed_save_keeps_the_last_checkpoint(tmp_path: Path) -> None:
    save_checkpoint(tmp_path, {"step": 1}, Config(), "data")
    with pytest.raises(Exception, match="pickle"):
        save_checkpoint(tmp_path, {"step": lambda: 0}, Config(), "data")
    assert load_checkpoint(Config(resume_from=str(tmp_path)), "data") == {"step": 1}
    assert not list(tmp_path.glob("*.partial"))


def test_state_survives_bit_for_bit(tmp_path: Path) -> None:
    state = {"a": torch.randn(5), "b": [torch.randn(2).bfloat16()], "step": 3, "seconds": 0.1}
    save_checkpoint(tmp_path, state, Config(), "data")
    found = load_checkpoint(Config(resume_from=str(tmp_path)), "data")
    assert found is not None
    assert torch.equal(found["a"], state["a"])  # type: ignore[arg-type]
    assert torch.equal(found["b"][0], state["b"][0])  # type: ignore[index]
    assert (found["step"], found["seconds"]) == (3, 0.1)
