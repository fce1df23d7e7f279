"""Runs in stages on a real Ray node: what trains while another packs, and what survives whom."""

from __future__ import annotations

import csv
import hashlib
import json
import os
import signal
from collections.abc import Iterator
from contextlib import closing

import pytest

from sweeper.ledger import Ledger
from sweeper.rows import AttemptState, RunState, StageRow
from sweeper.stages import Stage
from sweeper.view import Observer
from tests.sweeper.conftest import wait_until
from tests.sweeper.fake_train import USEFUL_SECONDS, Board
from tests.sweeper.ray_helpers import (
    Driver,
    Head,
    Place,
    a_head,
)
from tests.sweeper.sweeps import (
    arrival,
    attempt_dir,
    attempt_states,
    attempts,
    check_finished,
    let_pass,
    open_gate,
    run_states,
    stage_rows,
)

TRAIN, PACK, SCORE = Stage.TRAIN, Stage.PACK, Stage.SCORE
ONE_GPU = {"gpus_per_run": 1, "processes_per_run": 1}
BIG = 20 << 20  # more than two chunks of what is copied at once


pytestmark = pytest.mark.usefixtures("quiet")


@pytest.fixture(scope="module")
def head(place: Place) -> Iterator[Head]:
    """Room for one run of one GPU and for its packing beside it, or for three runs without."""
    with a_head(place, cpus=3, gpus=1) as head:
        yield head


def arrived(driver: Driver, board: Board, seed: int, stage: str) -> int:
    """The number of a stage's arrival, once it is at work."""
    wait_until(
        lambda: arrival(board, seed, stage) or driver.process.poll() is not None,
        f"{stage} of seed {seed} to begin",
    )
    number = arrival(board, seed, stage)
    assert number, f"the driver ended too early; it said:\n{driver.said}"
    return number


def taken_in(place: Place, name: str, seed: int, count: int) -> list[StageRow]:
    """The launches of a run, once so many of them have ended by the ledger."""

    def ended() -> list[StageRow]:
        rows = stage_rows(place.sweep(name))["t", seed]
        return [row for row in rows if row.ended is not None]

    wait_until(lambda: len(ended()) >= count, f"{count} stages of seed {seed} to be taken in")
    return ended()


def phases(place: Place, name: str) -> list[tuple[str, str | None]]:
    """State and phase of every run, as an observer in another process sees them."""
    sweep = place.sweep(name)
    with closing(Ledger.open_for_reading(sweep.ledger)) as ledger:
        return [(run.state.value, run.phase) for run in Observer(sweep, ledger).look().runs]


def stages_of(rows: list[StageRow]) -> list[tuple[Stage, int | None]]:
    return [(row.stage, row.exit_code) for row in rows]


def test_the_next_run_trains_while_one_is_packed(place: Place, head: Head) -> None:
    sweep, board = place.sweep("apart"), place.board("apart")
    spec = place.write_spec(
        "apart",
        seeds=(1, 2, 3),
        trials={"t": {}},
        env={"GATED": 1},
        resources=ONE_GPU,
        packing={"cpus": 2, "nice": 3},
    )
    driver = place.drive(spec, "--address", head.address)
    let_pass(board, arrived(driver, board, 1, "train"))
    # There is one GPU. Neither of these two ends before the other has begun.
    packing = arrived(driver, board, 1, "pack")
    training = arrived(driver, board, 2, "train")
    facts = json.loads((board.path / f"arrival-{packing}.json").read_text())
    assert (facts["gpus"], facts["threads"]) == ("", "2")
    assert facts["nice"] >= 3  # an ordinary user's worker of a running Ray is nicer still
    assert phases(place, "apart")[:2] == [("running", "pack"), ("running", "train")]

    # A score goes before a run that has not begun.
    let_pass(board, packing)
    taken_in(place, "apart", seed=1, count=2)
    assert phases(place, "apart") == [
        ("running", "packed"),
        ("running", "train"),
        ("pending", None),
    ]
    let_pass(board, training)
    arrived(driver, board, 1, "score")
    arrived(driver, board, 2, "pack")
    assert not arrival(board, 3, "train")
    open_gate(board)
    assert driver.wait() == 0, driver.said

    check_finished(sweep, runs=3)
    rows = stage_rows(sweep)
    for mine in rows.values():
        assert stages_of(mine) == [(TRAIN, 0), (PACK, 0), (SCORE, 0)]
        assert [row.gpus for row in mine] == ["0", "", "0"]
    (train_1, pack_1, score_1), (train_2, *_), (train_3, *_) = rows.values()
    assert train_1.ended is not None
    assert pack_1.ended is not None
    assert train_1.ended <= train_2.launched < pack_1.ended <= score_1.launched < train_3.launched
    assert board.arrivals() == 9

    (attempt,) = attempts(sweep)["t", 1]
    directory = attempt_dir(sweep, attempt)
    names = {path.name for path in directory.path.iterdir()}
    assert {"exit.train.json", "exit.pack.json", "exit.json"} <= names
    assert not directory.trained_tensors.exists()
    for stage in (TRAIN, PACK, SCORE):
        assert directory.of(stage).stdout.read_text() == "line 0 of seed 1: größer als ß\n"
    kinds = [json.loads(line)["kind"] for line in directory.events.read_text().splitlines()]
    assert kinds == [*("config", "phase", "step"), *("config", "phase") * 2, "phase"]

    # What the GPU was held for, and what of it was of use.
    with sweep.runs_csv.open(newline="") as file:
        numbers = [(row["gpu_s_reserved"], row["gpu_s_useful"]) for row in csv.DictReader(file)]
    for (reserved, useful), (train, _, score) in zip(numbers, rows.values(), strict=True):
        assert float(reserved) == pytest.approx(train.seconds + score.seconds)
        assert float(useful) == USEFUL_SECONDS
    assert "useful %" in driver.stdout.read_text()


FAULTS: dict[str, dict[str, object]] = {
    "pack once": {"STAGE_FAULT": "pack crash once"},
    "score once": {"STAGE_FAULT": "score crash once"},
    "train once": {"STAGE_FAULT": "train crash once"},
    "pack": {"STAGE_FAULT": "pack crash"},
    "damaged": {"STAGE_FAULT": "pack user error"},
    "whole": {"STAGE_FAULT": "train know no stages"},
    "deaf": {"STAGE_FAULT": "score deaf to settings", "ITERATIONS": 5},
    "nothing": {"STAGE_FAULT": "train no result"},
}
GOOD: list[tuple[Stage, int | None]] = [(TRAIN, 0), (PACK, 0), (SCORE, 0)]
# Trial -> how its attempts ended, and its launches over all of them.
ENDS: dict[str, tuple[list[str], list[tuple[Stage, int | None]]]] = {
    "pack once": (["finished"], [(TRAIN, 0), (PACK, 1), (PACK, 0), (SCORE, 0)]),
    "score once": (["finished"], [(TRAIN, 0), (PACK, 0), (SCORE, 1), (SCORE, 0)]),
    "train once": (["crashed", "finished"], [(TRAIN, 1), *GOOD]),
    "pack": (["crashed"], [(TRAIN, 0), (PACK, 1), (PACK, 1)]),
    "damaged": (["user_error"], [(TRAIN, 0), (PACK, 2)]),
    "whole": (["finished"], [(TRAIN, 0)]),
    "deaf": (["user_error"], GOOD),
    "nothing": (["bad_result"], [(TRAIN, 0)]),
}


def test_a_failed_stage_is_repeated_where_that_may_help_and_no_more(
    place: Place, head: Head
) -> None:
    sweep = place.sweep("faulty")
    spec = place.write_spec(
        "faulty", seeds=(1,), trials=FAULTS, packing={"cpus": 1}, limits={"max_attempts": 2}
    )
    driver = place.drive(spec, "--address", head.address)
    assert driver.wait() == 1, driver.said
    ends, launches = attempt_states(sweep), stage_rows(sweep)
    for trial, (states, stages) in ENDS.items():
        assert ends[trial, 1] == states, trial
        found = stages_of(launches[trial, 1])
        if trial == "deaf" and found[-1] == (SCORE, -signal.SIGTERM):
            # Its echo was seen before its end, and it was stopped.
            found[-1] = (SCORE, 0)
        assert found == stages, trial
    for (trial, _), state in run_states(sweep).items():
        finished = ENDS[trial][0][-1] == "finished"
        assert state is (RunState.FINISHED if finished else RunState.FAILED)
    (row,) = attempts(sweep)["nothing", 1]
    assert row.message == (
        "trained.json: missing, though the stage ended well; if the workload cannot run in stages, "
        "leave [packing] out of the spec"
    )
    # Each launch is told by its own words and no other's.
    (row,) = attempts(sweep)["pack once", 1]
    directory = attempt_dir(sweep, row)
    assert "crashed as asked" not in directory.of(PACK, 2).stderr.read_text()
    assert "crashed the first time" in directory.of(PACK).stderr.read_text()
    assert not list(sweep.path.rglob("trained.pt"))
    # Without GPUs there is nothing to say of them.
    assert "useful" not in driver.stdout.read_text()


def test_stages_go_on_where_no_disk_is_shared_and_there_is_room_for_one_thing_at_a_time(
    place: Place, head: Head
) -> None:
    sweep, board = place.sweep("far"), place.board("far")
    spec = place.write_spec(
        "far",
        seeds=(1, 2),
        trials={"t": {}},
        env={"GATED": 1, "TRAINED_BYTES": BIG},
        packing={"cpus": 3},
    )
    # What the driver writes there cannot be read back: the slot must take it for another disk.
    sweep.path.mkdir(parents=True)
    sweep.nonce.symlink_to("/dev/null")
    driver = place.drive(spec, "--address", head.address)
    let_pass(board, arrived(driver, board, 1, "train"))
    arrived(driver, board, 2, "train")
    # Packing takes all three processors: it waits until nothing trains any more.
    taken_in(place, "far", seed=1, count=1)
    assert phases(place, "far")[0] == ("running", "trained")
    open_gate(board)
    assert driver.wait() == 0, driver.said
    check_finished(sweep, runs=2)
    assert board.arrivals() == 6
    for run, rows in attempts(sweep).items():
        assert stages_of(stage_rows(sweep)[run]) == GOOD
        directory = attempt_dir(sweep, rows[0])
        assert rows[0].result is not None
        found = hashlib.sha256(directory.artifact.read_bytes()).hexdigest()
        assert found == rows[0].result["artifact_sha256"]
        kinds = [json.loads(line)["kind"] for line in directory.events.read_text().splitlines()]
        assert kinds == [*("config", "phase", "step"), *("config", "phase") * 2, "phase"]
        assert directory.of(TRAIN).exit.is_file()
        assert directory.of(PACK).exit.is_file()
    assert not list(sweep.path.rglob("trained.pt"))
    assert not list(sweep.path.rglob("*.partial"))
    assert not list(place.scratch.glob("sweeper-*"))


def test_stages_that_ended_survive_the_death_of_the_driver(place: Place, head: Head) -> None:
    sweep, board = place.sweep("killed"), place.board("killed")
    spec = place.write_spec(
        "killed",
        seeds=(1, 2),
        trials={"t": {}},
        env={"GATED": 1},
        resources=ONE_GPU,
        packing={"cpus": 2},
    )
    driver = place.drive(spec, "--address", head.address)
    let_pass(board, arrived(driver, board, 1, "train"))
    arrived(driver, board, 1, "pack")
    training = arrived(driver, board, 2, "train")
    # The driver does not see that one stage ends, and dies while another is at work.
    os.killpg(driver.process.pid, signal.SIGSTOP)  # what keeps it as well
    let_pass(board, training)
    (row,) = attempts(sweep)["t", 2]
    end = attempt_dir(sweep, row).of(TRAIN).exit
    wait_until(end.is_file, "the training to end without its driver")
    driver.kill()
    wait_until(lambda: not place.runs(), "what was at work to end with its driver")
    open_gate(board)
    again = place.drive(spec, "--address", head.address)
    assert again.wait() == 0, again.said
    check_finished(sweep, runs=2)
    assert set(map(tuple, attempt_states(sweep).values())) == {("finished",)}
    launches = stage_rows(sweep)
    assert stages_of(launches["t", 1]) == [(TRAIN, 0), (PACK, None), (PACK, 0), (SCORE, 0)]
    assert stages_of(launches["t", 2]) == GOOD
    # The time until the next driver came is nobody's.
    assert launches["t", 2][0].ended == json.loads(end.read_text())["ended"]


def test_an_interrupt_keeps_what_is_trained_and_its_time_counts(place: Place, head: Head) -> None:
    def spec_with(**limits: float) -> Driver:
        spec = place.write_spec(
            "stopped",
            seeds=(1,),
            trials={"t": {}},
            env={"GATED": 1},
            packing={"cpus": 1},
            limits=limits,
        )
        return place.drive(spec, "--address", head.address)

    sweep, board = place.sweep("stopped"), place.board("stopped")
    driver = spec_with()
    let_pass(board, arrived(driver, board, 1, "train"))
    arrived(driver, board, 1, "pack")
    driver.interrupt()
    assert driver.wait() == 130, driver.said
    assert run_states(sweep) == {("t", 1): RunState.PENDING}
    assert attempt_states(sweep) == {("t", 1): [AttemptState.LAUNCHED]}
    assert phases(place, "stopped") == [("pending", "trained")]

    # Less than training has taken: nothing is left for the rest.
    (train, pack) = stage_rows(sweep)["t", 1]
    assert (train.exit_code, pack.exit_code) == (0, 75)
    driver = spec_with(max_seconds=train.seconds / 2)
    assert driver.wait() == 1, driver.said
    (row,) = attempts(sweep)["t", 1]
    assert row.state is AttemptState.TIMED_OUT
    assert [launch.stage for launch in stage_rows(sweep)["t", 1]] == [TRAIN, PACK, PACK]
    assert not attempt_dir(sweep, row).trained_tensors.exists()


def test_packing_that_no_node_can_hold_is_refused_at_once(place: Place, head: Head) -> None:
    spec = place.write_spec("wide", seeds=(1,), trials={"t": {}}, packing={"cpus": 4})
    driver = place.drive(spec, "--address", head.address)
    assert driver.wait() == 2
    error = driver.stderr.read_text().splitlines()[-1]
    assert error.startswith("error: packing asks for 4 CPU on one node; ")
    assert "has 3 CPU. Lower packing.cpus in the spec" in error
    assert attempts(place.sweep("wide")) == {("t", 1): []}
