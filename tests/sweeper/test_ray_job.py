"""A sweep as a Ray job, as on a cluster: submitted from a copy of the project, with a token."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from sweeper.ledger import AttemptState, RunState
from tests.sweeper.conftest import ROOT, wait_until
from tests.sweeper.ray_helpers import (
    Head,
    Place,
    a_head,
    attempts,
    check_finished,
    most_at_once,
    open_gate,
    run_states,
    stays,
)

# What a job needs of the project; the tests, the data and .git would only be uploaded.
PARTS = ("sweeper", "jobs", "model")


pytestmark = pytest.mark.usefixtures("quiet")


@pytest.fixture(scope="module")
def head(place: Place) -> Iterator[Head]:
    with a_head(place, cpus=2, gpus=8, dashboard=True) as head:
        yield head


@pytest.fixture(scope="module")
def project(place: Place) -> Path:
    """A minimal copy of the project, with the workload in it; specs are put beside it."""
    project = place.path / "project"
    for part in PARTS:
        ignored = shutil.ignore_patterns("__pycache__")
        shutil.copytree(ROOT / part, project / part, ignore=ignored)
    # Moved, not copied: the runs must find it by what the job has brought with it.
    shutil.move(place.path / "modules" / "fake_train.py", project)
    return project


def job(place: Place, head: Head, *arguments: str, **env: str) -> subprocess.CompletedProcess[str]:
    """A `ray job` command to its end."""
    command = [str(Path(sys.executable).with_name("ray")), "job", *arguments]
    return subprocess.run(
        command,
        cwd=place.path,
        env=place.env | {"RAY_ADDRESS": head.dashboard} | env,
        capture_output=True,
        text=True,
        timeout=180,
        check=False,
    )


def submit(
    place: Place, head: Head, project: Path, spec: Path, *options: str, **env: str
) -> subprocess.CompletedProcess[str]:
    shutil.copy(spec, project)
    entrypoint = [sys.executable, "-m", "jobs.sweep", spec.name, "--root", str(place.root)]
    working_dir = ("--working-dir", str(project))
    return job(place, head, "submit", *working_dir, *options, "--", *entrypoint, **env)


def status(place: Place, head: Head, submission: str) -> str:
    done = job(place, head, "status", submission)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


def test_a_sweep_runs_as_a_job_whose_entrypoint_holds_no_gpu(
    place: Place, head: Head, project: Path
) -> None:
    # All eight GPUs are the runs' own: an entrypoint that held one would leave too few.
    spec = place.write_spec("job", seeds=(1, 2, 3), trials={"t": {}}, resources={"gpus_per_run": 8})
    done = submit(place, head, project, spec, "--submission-id", "job")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "'job' succeeded" in done.stdout + done.stderr
    sweep = place.sweep("job")
    check_finished(sweep, runs=3)
    assert sweep.report_csv.is_file()
    found = stays(place.board("job"))
    assert [stay.gpus for stay in found] == [set("01234567")] * 3
    assert most_at_once(found) == 1
    # They ran from what was submitted, as Ray had unpacked it.
    assert all("/working_dir_files/" in stay.facts["module"] for stay in found)

    # An id is taken once: a job that is submitted twice by mistake runs once.
    twice = submit(place, head, project, spec, "--submission-id", "job")
    assert twice.returncode != 0
    assert "already exists" in twice.stdout + twice.stderr


@pytest.mark.parametrize("token", ["missing", "wrong"])
def test_no_job_is_taken_without_the_token(
    place: Place, head: Head, project: Path, token: str
) -> None:
    name = f"intruder-{token}"
    spec = place.write_spec(name, seeds=(1,), trials={"t": {}})
    env = {"RAY_AUTH_MODE": "disabled", "RAY_AUTH_TOKEN_PATH": os.devnull}
    if token == "wrong":
        wrong = place.path / "wrong-token"
        wrong.write_text("0" * 64)
        env = {"RAY_AUTH_TOKEN_PATH": str(wrong)}
    done = submit(place, head, project, spec, **env)
    assert done.returncode != 0
    assert "authentication" in (done.stdout + done.stderr).lower()
    assert not place.sweep(name).path.exists()
    assert name not in job(place, head, "list").stdout


def test_a_job_that_is_stopped_leaves_nothing_and_goes_on_as_another(
    place: Place, head: Head, project: Path
) -> None:
    sweep, board = place.sweep("halted"), place.board("halted")
    spec = place.write_spec(
        "halted",
        seeds=(1, 2, 3),
        trials={"t": {}},
        env={"GATED": 1},
        resources={"gpus_per_run": 8},
    )
    open_gate(board, 1)
    done = submit(place, head, project, spec, "--no-wait", "--submission-id", "first")
    assert done.returncode == 0, done.stdout + done.stderr
    wait_until(lambda: board.arrivals() == 2, "the second run to arrive")
    stopped = job(place, head, "stop", "first")
    assert stopped.returncode == 0, stopped.stdout + stopped.stderr
    assert "'first' was stopped" in status(place, head, "first")
    wait_until(lambda: not place.runs(), "the stopped job's runs to end")

    open_gate(board)
    again = submit(place, head, project, spec, "--submission-id", "second")
    assert again.returncode == 0, again.stdout + again.stderr
    check_finished(sweep, runs=3)
    ends = {seed: [row.state for row in rows] for (_, seed), rows in attempts(sweep).items()}
    assert ends[1] == ends[3] == [AttemptState.FINISHED]
    # Stopped in time, or lost: Ray gives a job three seconds.
    assert len(ends[2]) == 2
    assert ends[2][0] in (AttemptState.STOPPED, AttemptState.LOST)
    assert set(run_states(sweep).values()) == {RunState.FINISHED}
