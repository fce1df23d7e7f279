"""Slots on real Ray nodes, with logical GPUs: what fits, what does not, and what comes home."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
from collections.abc import Iterator
from itertools import combinations, pairwise

import pytest

from sweeper.contract import EventReader
from sweeper.rows import RunState
from tests.sweeper.conftest import ROOT, wait_until
from tests.sweeper.ray_helpers import (
    Head,
    Place,
    a_head,
    free_port,
)
from tests.sweeper.sweeps import (
    attempt_dir,
    attempts,
    check_finished,
    most_at_once,
    open_gate,
    run_states,
    stays,
)

BIG = 20 << 20  # more than two chunks of what is copied at once


pytestmark = pytest.mark.usefixtures("quiet")


@pytest.fixture(scope="module")
def head(place: Place) -> Iterator[Head]:
    with a_head(place, cpus=2, gpus=8) as head:
        yield head


def test_eight_gpus_hold_one_run_of_eight_at_a_time(place: Place, head: Head) -> None:
    spec = place.write_spec(
        "eight", seeds=(1, 2, 3), trials={"t": {}}, resources={"gpus_per_run": 8}
    )
    driver = place.drive(spec, "--address", head.address)
    assert driver.wait() == 0, driver.said
    check_finished(place.sweep("eight"), runs=3)
    found = stays(place.board("eight"))
    assert [stay.gpus for stay in found] == [set("01234567")] * 3
    assert most_at_once(found) == 1


def test_sixteen_gpus_hold_two_runs_of_eight_on_gpus_of_their_own(place: Place) -> None:
    # In pairs: a run ends only when another has arrived beside it.
    spec = place.write_spec(
        "sixteen",
        seeds=(1, 2, 3, 4),
        trials={"t": {}},
        env={"PAIRED": 1},
        resources={"gpus_per_run": 8},
    )
    driver = place.drive(spec, "--num-gpus", "16", "--num-cpus", "4")
    assert driver.wait() == 0, driver.said
    check_finished(place.sweep("sixteen"), runs=4)
    found = stays(place.board("sixteen"))
    assert most_at_once(found) == 2
    for stay in found:
        assert len(stay.gpus) == 8
        assert stay.gpus <= {str(number) for number in range(16)}
    for one, other in combinations(found, 2):
        assert not (one.overlaps(other) and one.gpus & other.gpus)


def test_two_cpus_hold_two_runs_of_one_and_see_no_gpu(place: Place, head: Head) -> None:
    spec = place.write_spec("cpus", seeds=(1, 2, 3, 4), trials={"t": {}}, env={"PAIRED": 1})
    driver = place.drive(spec, "--address", head.address)
    assert driver.wait() == 0, driver.said
    check_finished(place.sweep("cpus"), runs=4)
    found = stays(place.board("cpus"))
    assert most_at_once(found) == 2
    # Empty, not unset: unset would show the run every GPU of the machine.
    assert {stay.facts["gpus"] for stay in found} == {""}
    # On one machine there is nothing to bring home: the runs work where the sweep is kept.
    assert all(stay.facts["directory"].startswith(str(place.root)) for stay in found)


def test_max_parallel_holds_runs_back(place: Place, head: Head) -> None:
    spec = place.write_spec(
        "narrow", seeds=(1, 2, 3), trials={"t": {}}, resources={"max_parallel": 1}
    )
    driver = place.drive(spec, "--address", head.address)
    assert driver.wait() == 0, driver.said
    check_finished(place.sweep("narrow"), runs=3)
    rows = [row for rows in attempts(place.sweep("narrow")).values() for row in rows]
    for earlier, later in pairwise(rows):
        assert earlier.ended is not None
        assert later.launched >= earlier.ended


@pytest.mark.parametrize(
    ("resources", "asked", "has"),
    [
        ({"gpus_per_run": 9}, "9 GPU, 1 CPU", "8 GPU, 2 CPU"),
        ({"gpus_per_run": 1, "cpus_per_run": 3}, "1 GPU, 3 CPU", "8 GPU, 2 CPU"),
        ({"cpus_per_run": 3}, "3 CPU", "2 CPU"),
    ],
)
def test_an_impossible_request_is_refused_with_what_the_cluster_has(
    place: Place, head: Head, resources: dict[str, int], asked: str, has: str
) -> None:
    name = f"impossible-{asked.replace(', ', '-').replace(' ', '-')}"
    spec = place.write_spec(name, seeds=(1,), trials={"t": {}}, resources=resources)
    driver = place.drive(spec, "--address", head.address)
    assert driver.wait() == 2
    error = driver.stderr.read_text().splitlines()[-1]
    assert error.startswith("error: ")
    assert f"asks for {asked} on one node" in error
    assert f"has {has}. Lower" in error
    assert run_states(place.sweep(name)) == {("t", 1): RunState.PENDING}
    assert attempts(place.sweep(name)) == {("t", 1): []}


def test_everything_comes_home_byte_for_byte_from_a_node_with_another_disk(
    place: Place, head: Head
) -> None:
    sweep, board = place.sweep("far"), place.board("far")
    spec = place.write_spec(
        "far",
        seeds=(7,),
        trials={"good": {"ARTIFACT_BYTES": BIG, "NOISE_LINES": 5_000}, "bad": {"FAULT": "crash"}},
        env={"GATED": 1},
        resources={"processes_per_run": 2},
        limits={"max_attempts": 1},
        launch="torchrun",
    )
    # What the driver writes there cannot be read back: the slot must take it for another disk.
    sweep.path.mkdir(parents=True)
    sweep.nonce.symlink_to("/dev/null")
    driver = place.drive(spec, "--address", head.address)
    driver.wait_for_arrivals(2)
    rows = {trial: row for (trial, _), (row,) in attempts(sweep).items()}
    good, bad = attempt_dir(sweep, rows["good"]), attempt_dir(sweep, rows["bad"])
    wait_until(
        lambda: [event["kind"] for event in EventReader(good.events).read()][-1:] == ["step"],
        "the run's events to come home while it works",
    )
    assert not good.request.exists()
    open_gate(board)
    assert driver.wait() == 1, driver.said

    assert run_states(sweep) == {("good", 7): RunState.FINISHED, ("bad", 7): RunState.FAILED}
    request = json.loads(good.request.read_text())
    assert request["directory"].startswith(str(place.scratch))
    result = json.loads(good.result.read_text())
    artifact = (good.path / result["artifact"]).read_bytes()
    assert len(artifact) == BIG
    assert hashlib.sha256(artifact).hexdigest() == result["artifact_sha256"]
    kinds = [json.loads(line)["kind"] for line in good.events.read_text().splitlines()]
    assert kinds == ["config", "phase", "step", "phase"]
    (log,) = good.rank_logs(0, "stdout")
    lines = log.read_text().splitlines()
    assert lines == [f"line {line} of seed 7: größer als ß" for line in range(5_000)]
    (log,) = good.rank_logs(1, "stdout")
    assert log.read_text() == "rank 1 has nothing to do\n"
    # The failed run can be judged as if it had been here.
    (lost,) = attempts(sweep)["bad", 7]
    assert lost.message == "RuntimeError: crashed as asked (rank 0 ended with exit code 1)"
    assert "RuntimeError: crashed as asked" in str(lost.traceback)
    assert "RuntimeError: crashed as asked" in bad.rank_logs(0, "stderr")[0].read_text()

    assert not list(sweep.path.rglob("*.partial"))
    assert not list(place.scratch.glob("sweeper-*"))


def test_an_address_where_nothing_answers_is_refused_at_once(place: Place) -> None:
    spec = place.write_spec("nobody", seeds=(1,), trials={"t": {}})
    address = f"127.0.0.1:{free_port()}"
    driver = place.drive(spec, "--address", address)
    assert driver.wait() == 2
    error = driver.stderr.read_text().splitlines()[-1]
    assert error.startswith(f"error: no Ray cluster answers at {address}: ")


@pytest.mark.parametrize(
    ("env", "says"),
    [
        ({"RAY_AUTH_TOKEN_PATH": "/nowhere"}, "/nowhere"),
        ({"RAY_AUTH_TOKEN": "0" * 64}, "asks for a token, or for another"),
        (
            {"RAY_AUTH_MODE": "disabled", "RAY_AUTH_TOKEN_PATH": "/dev/null"},
            "asks for a token, or for another",
        ),
    ],
)
def test_a_cluster_is_not_joined_without_its_token(
    place: Place, head: Head, env: dict[str, object], says: str
) -> None:
    spec = place.write_spec("stranger", seeds=(1,), trials={"t": {}})
    driver = place.drive(spec, "--address", head.address, env=env)
    assert driver.wait() == 2
    # One line of progress, and this: none of Ray's warnings.
    _, error = driver.stderr.read_text().splitlines()
    assert error.startswith("error: ")
    assert says in error
    assert "RAY_AUTH_TOKEN_PATH" in error  # and how it is given


def test_a_cluster_that_runs_already_is_not_resized(place: Place, head: Head) -> None:
    spec = place.write_spec("resized", seeds=(1,), trials={"t": {}})
    driver = place.drive(spec, "--address", head.address, "--num-gpus", "16")
    assert driver.wait() == 2
    assert "error: --num-cpus and --num-gpus size a local cluster" in driver.stderr.read_text()


# As where the nodes lack this project: the class cannot be made there.
BROKEN_SLOTS = """
import sys
from sweeper import cluster
from sweeper.cli import main

class SlotActor(cluster.SlotActor):
    def __init__(self):
        raise ImportError("no project here")

cluster.SlotActor = SlotActor
sys.exit(main(sys.argv[1:]))
"""
# As where one node has it: the first actor of all is well, none after it.
ONE_GOOD_SLOT = """
import os, sys
from sweeper import cluster
from sweeper.cli import main

class SlotActor(cluster.SlotActor):
    def __init__(self):
        os.close(os.open(os.environ["CLAIM"], os.O_CREAT | os.O_EXCL))
        super().__init__()

cluster.SlotActor = SlotActor
sys.exit(main(sys.argv[1:]))
"""


@pytest.mark.slow  # in short in test_slots.py
def test_slots_that_cannot_begin_leave_the_others_alone(place: Place) -> None:
    spec = place.write_spec("half", seeds=(1, 2, 3), trials={"t": {}})
    arguments = ["run", str(spec), "--root", str(place.root), "--num-cpus", "3"]
    done = subprocess.run(
        [sys.executable, "-c", ONE_GOOD_SLOT, *arguments],
        cwd=ROOT,
        env=place.env | {"CLAIM": str(place.scratch / "claimed")},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    check_finished(place.sweep("half"), 3)


def test_slots_that_cannot_begin_end_the_sweep_with_the_reason(place: Place, head: Head) -> None:
    spec = place.write_spec("broken", seeds=(1,), trials={"t": {}})
    arguments = ["run", str(spec), "--root", str(place.root), "--address", head.address]
    done = subprocess.run(
        [sys.executable, "-c", BROKEN_SLOTS, *arguments],
        cwd=ROOT,
        env=place.env,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 2, done.stderr
    error = done.stderr.splitlines()[-1]
    assert error.startswith("error: Ray cannot start a slot on this cluster: ")
    assert "no project here" in error
    assert attempts(place.sweep("broken")) == {("t", 1): []}
