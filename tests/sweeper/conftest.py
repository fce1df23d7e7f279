"""A small spec, a finished run's files, a trainer that only keeps the contract, and waiting."""

from __future__ import annotations

import json
import os
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil
import pytest

from sweeper.layout import AttemptDir, SweepDir
from sweeper.ledger import Ledger
from sweeper.rows import AttemptState, RunRow, RunState
from sweeper.spec import SweepSpec

if TYPE_CHECKING:
    from tests.sweeper.ray_helpers import Place

ROOT = Path(__file__).parents[2]
PATIENCE_SECONDS = 120.0
MARK = "SWEEPER_TEST"

# The writing half of the contract, without torch: it starts in some 30 ms.
TRAINER_HEAD = """
import json, os, signal, subprocess, sys, time, traceback
from pathlib import Path

RUN_DIR = Path(os.environ["RUN_DIR"])
RANK = int(os.environ.get("RANK", "0"))
KNOWN = ("SEED", "LR", "ITERATIONS")


def event(kind, **fields):
    with open(RUN_DIR / "events.jsonl", "a") as file:
        file.write(json.dumps({"t": time.time(), "kind": kind} | fields) + "\\n")


def config():
    event("config", config={name.lower(): os.environ.get(name) for name in KNOWN})


def forever():
    while True:
        time.sleep(1)


def result(**changes):
    (RUN_DIR / "final_model.int6.ptz").write_bytes(b"x" * 100)
    facts = {
        "schema": 1, "status": "finished", "metric": "sliding", "seed": int(os.environ["SEED"]),
        "val_bpb": 1.1, "val_loss": 2.5, "prequant_val_bpb": 1.09, "quant_val_bpb": 1.12,
        "steps": 6, "train_time_ms": 60.0, "step_avg_ms": 10.0, "eval_time_s": 0.1,
        "bytes_total": 150, "bytes_code": 50, "bytes_model": 100,
        "artifact": "final_model.int6.ptz", "stop_reason": "iterations",
    } | changes
    partial = RUN_DIR / "result.json.partial"
    partial.write_text(json.dumps(facts))
    partial.replace(RUN_DIR / "result.json")

"""
FINISHES = "if RANK == 0:\n    config()\n    result()\n"


def write_module(directory: Path, name: str, body: str) -> str:
    """A workload module that keeps the contract as `body` says; its name, for a spec."""
    directory.mkdir(parents=True, exist_ok=True)
    (directory / f"{name}.py").write_text(TRAINER_HEAD + body)
    return name


def spec_table(**changes: Any) -> dict[str, Any]:
    """A valid spec as TOML would give it: two trials, three seeds, no GPU."""
    return {
        "name": "small",
        "seeds": [42, 314, 999],
        "resources": {"gpus_per_run": 0},
        "env": {"ITERATIONS": 6},
        "trial": [
            {"name": "low", "env": {"LR": 0.1}},
            {"name": "high", "env": {"LR": 0.2}},
        ],
    } | changes


def make_spec(**changes: Any) -> SweepSpec:
    """A valid spec, with some keys changed."""
    return SweepSpec.model_validate(spec_table(**changes))


def result_facts(**changes: Any) -> dict[str, Any]:
    """What a finished run's result.json holds."""
    return {
        "schema": 1,
        "status": "finished",
        "seed": 42,
        "metric": "sliding",
        "val_bpb": 1.1,
        "val_loss": 2.5,
        "prequant_val_bpb": 1.09,
        "quant_val_bpb": 1.12,
        "steps": 6,
        "train_time_ms": 60.0,
        "step_avg_ms": 10.0,
        "eval_time_s": 0.1,
        "bytes_total": 150,
        "bytes_code": 50,
        "bytes_model": 100,
        "artifact": "final_model.int6.ptz",
        "stop_reason": "iterations",
    } | changes


def write_attempt(
    directory: Path,
    *,
    exit_code: int = 0,
    stop_reason: str | None = None,
    events: list[dict[str, Any]] | None = None,
    result: dict[str, Any] | None = None,
    artifact: bytes = b"x" * 100,
) -> AttemptDir:
    """What an attempt leaves behind, written here instead of by processes."""
    attempt = AttemptDir(directory)
    attempt.logs.mkdir(parents=True)
    config = {"kind": "config", "t": 1.0, "config": {"seed": 42, "lr": 0.1}}
    lines = [json.dumps(event) for event in ([config] if events is None else events)]
    attempt.events.write_text("".join(f"{line}\n" for line in lines))
    attempt.exit.write_text(json.dumps({"exit_code": exit_code, "stop_reason": stop_reason}))
    (directory / "final_model.int6.ptz").write_bytes(artifact)
    if result is not None:
        attempt.result.write_text(json.dumps(result))
    return attempt


def wait_until(holds: Callable[[], object], what: str, seconds: float = PATIENCE_SECONDS) -> None:
    """Return as soon as something holds; fail when it never does."""
    deadline = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < deadline, f"waited in vain: {what}"
        time.sleep(0.02)


def alive(pid: int) -> bool:
    """Whether a process runs; one that has ended and was not collected yet does not."""
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def marked(mark: str) -> list[psutil.Process]:
    """The processes that were started with this mark in their environment."""
    found = []
    for process in psutil.process_iter():
        try:
            if process.environ().get(MARK) == mark and alive(process.pid):
                found.append(process)
        except (psutil.Error, OSError):
            continue
    return found


@pytest.fixture
def nothing_left(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """Marks every process that the test starts, and fails the test when one outlives it."""
    mark = f"{os.getpid()}-{uuid.uuid4().hex}"
    monkeypatch.setenv(MARK, mark)
    yield mark
    left = marked(mark)
    named = [f"{process.pid} {process.name()}" for process in left if alive(process.pid)]
    for process in left:
        process.kill()
    assert not named, f"still running after the test: {named}"


@pytest.fixture
def sweep(tmp_path: Path) -> SweepDir:
    sweep = SweepDir(tmp_path / "sweep")
    sweep.path.mkdir()
    return sweep


@pytest.fixture
def ledger(sweep: SweepDir) -> Iterator[Ledger]:
    ledger = Ledger.open_for_writing(sweep.ledger, make_spec())
    yield ledger
    ledger.close()


@pytest.fixture(scope="module")
def place() -> Iterator[Place]:
    """Where the sweeps of one module's tests are."""
    from tests.sweeper.ray_helpers import a_place  # which takes its waiting from here

    with a_place() as place:
        yield place


@pytest.fixture
def quiet(place: Place) -> Iterator[None]:
    """After the test nothing of its sweeps runs any more."""
    yield
    place.check_quiet()


def finish_run(
    ledger: Ledger, run: RunRow, number: int, outcome: tuple[float, int] | None
) -> tuple[RunState, dict[str, Any] | None, str | None]:
    """Record an attempt at a run that ends at once: with a score and its bytes, or by failing."""
    attempt = ledger.launched(run, number=number, path="none", host="here", gpus="0,1")
    if outcome is None:
        ledger.ended(attempt, AttemptState.NONFINITE, RunState.FAILED, message="loss is nan")
        return RunState.FAILED, None, "loss is nan"
    score, size = outcome
    result = {
        "metric": "sliding",
        "val_bpb": score,
        "val_loss": 2.3 * score,
        "bytes_total": size,
        "steps": 5_000,
    }
    ledger.ended(attempt, AttemptState.FINISHED, RunState.FINISHED, result=result)
    return RunState.FINISHED, result, None
