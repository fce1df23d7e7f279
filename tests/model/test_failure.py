"""How a rank ends when it cannot go on: told apart, said once, and without waiting for peers."""

from __future__ import annotations

import errno
import json
import resource
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist

from model.artifact import ArtifactError
from model.failure import (
    EXIT_CRASH,
    EXIT_NONFINITE,
    EXIT_OOM,
    EXIT_STOPPED,
    EXIT_USER,
    NonFiniteLossError,
    classify,
)
from model.fields import ConfigError
from model.handoff import HandoffError
from model.report import write_by_rename
from tests.model.conftest import ROOT, train_command, train_environment


@pytest.mark.parametrize(
    ("error", "code", "exit_code"),
    [
        (ConfigError("x"), "user", EXIT_USER),
        (ArtifactError("x"), "user", EXIT_USER),
        (HandoffError("x"), "user", EXIT_USER),
        (NonFiniteLossError(3, float("nan")), "nonfinite", EXIT_NONFINITE),
        (torch.OutOfMemoryError("x"), "oom", EXIT_OOM),
        (MemoryError(), "oom", EXIT_OOM),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried"), "oom", EXIT_OOM),
        (OSError(errno.ENOSPC, "No space left on device"), "user", EXIT_USER),
        (OSError(errno.EACCES, "Permission denied"), "crash", EXIT_CRASH),
        (dist.DistBackendError("NCCL error"), "peer", EXIT_CRASH),
        (RuntimeError("NCCL error"), "crash", EXIT_CRASH),  # alone there is no peer
        (ValueError("x"), "crash", EXIT_CRASH),
    ],
)
def test_errors_are_told_apart(error: Exception, code: str, exit_code: int) -> None:
    assert classify(error)[:2] == (code, exit_code)


def run_limited(
    data: Path, run_dir: Path, limit: int, amount: int, processes: int = 1, **settings: object
) -> subprocess.CompletedProcess[str]:
    """The trainer with a resource limit of the system."""
    return subprocess.run(
        train_command(processes),
        cwd=ROOT,
        env=train_environment(data, run_dir, **settings),
        preexec_fn=lambda: resource.setrlimit(limit, (amount, amount)),
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
    )


def errors_in(run_dir: Path) -> list[dict[str, Any]]:
    events = [json.loads(line) for line in (run_dir / "events.jsonl").read_text().splitlines()]
    return [event for event in events if event["kind"] == "error"]


@pytest.mark.parametrize("processes", [pytest.param(1, marks=pytest.mark.slow), 2])
def test_no_room_for_the_artifact(data_dir: Path, tmp_path: Path, processes: int) -> None:
    run_dir = tmp_path / "run"
    done = run_limited(data_dir, run_dir, resource.RLIMIT_FSIZE, 40_000, processes)
    assert done.returncode == (EXIT_USER if processes == 1 else 1), done.stderr
    (error,) = [event for event in errors_in(run_dir) if event["code"] != "peer"]
    assert (error["code"], error["rank"]) == ("user", 0)
    assert "final_model.int6.ptz" in error["message"]
    assert "make room on that disk" in error["message"]
    assert not list(run_dir.glob("*.partial"))
    assert not (run_dir / "final_model.int6.ptz").exists()
    assert not (run_dir / "result.json").exists()


def test_what_all_ranks_run_into_is_said_once(data_dir: Path, tmp_path: Path) -> None:
    run_dir = tmp_path / "run"
    done = run_limited(
        data_dir, run_dir, resource.RLIMIT_CORE, 0, processes=2, tokenizer_path="missing.model"
    )
    assert done.returncode == 1
    (error,) = errors_in(run_dir)
    assert error["code"] == "user"
    assert "missing.model: no such tokenizer" in error["message"]


@pytest.mark.slow
def test_no_memory_for_the_batch(data_dir: Path, tmp_path: Path) -> None:
    run_dir = tmp_path / "run"
    done = run_limited(
        data_dir, run_dir, resource.RLIMIT_AS, 6 << 30, train_batch_tokens=2**21,
        grad_accum_steps=1, warmup_steps=0,
    )  # fmt: skip
    assert done.returncode == EXIT_OOM, done.stderr
    (error,) = errors_in(run_dir)
    assert error["code"] == "oom"
    assert "raise GRAD_ACCUM_STEPS" in error["message"]


def test_a_failed_write_leaves_nothing(tmp_path: Path) -> None:
    target = tmp_path / "there"
    write_by_rename(target, b"whole")
    blocked = tmp_path / "file" / "under a file"
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match="under a file"):
        write_by_rename(blocked, b"data")
    with pytest.raises(TypeError):  # as what is no OSError, like a request to stop
        write_by_rename(target, "text")  # type: ignore[arg-type]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "there"]


STUCK = """
import sys, time
from datetime import timedelta
import torch.distributed as dist
from model.failure import EXIT_STOPPED, StopRequest, StopSignal
from model.train import leave
stop = StopSignal()
stop.install()
rank, patience = int(sys.argv[1]), timedelta(minutes=30)
dist.init_process_group("gloo", sys.argv[2], timeout=patience, rank=rank, world_size=2)
try:
    print("ready", flush=True)
    if rank == 1:
        time.sleep(600)
    dist.barrier()
except StopRequest:
    leave(EXIT_STOPPED)
"""


def test_a_rank_stuck_in_a_collective_ends_when_told_to(tmp_path: Path) -> None:
    meeting = f"file://{tmp_path}/meeting"
    ranks = [
        subprocess.Popen(
            [sys.executable, "-c", STUCK, str(rank), meeting], cwd=ROOT, stdout=subprocess.PIPE
        )
        for rank in range(2)
    ]
    try:
        for process in ranks:
            assert process.stdout is not None
            assert process.stdout.readline() == b"ready\n"
        ranks[0].send_signal(signal.SIGTERM)
        # Inside the barrier the watch ends it; the request itself does, where it is not there yet.
        assert ranks[0].wait(timeout=60) == EXIT_STOPPED
        assert ranks[1].poll() is None
    finally:
        for process in ranks:
            process.kill()
            process.communicate()
