"""Nodes that die while runs are at work on them, and the head with its control service."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import psutil
import pytest

from sweeper.ledger import Ledger
from tests.faults.aftermath import check_aftermath
from tests.faults.fleet import QUICK_TO_NOTICE, Fleet, Node, a_fleet
from tests.sweeper.conftest import wait_until
from tests.sweeper.ray_helpers import Place
from tests.sweeper.sweeps import open_gate

pytestmark = pytest.mark.usefixtures("quiet")


@pytest.fixture(scope="module")
def damaged(place: Place) -> Iterator[Fleet]:
    """What the tests before have left of a head and its nodes."""
    with a_fleet(place) as fleet:
        yield fleet


@pytest.fixture
def fleet(damaged: Fleet) -> Fleet:
    """A head without GPUs and two nodes of eight."""
    damaged.repair(2)
    return damaged


def write_spec(place: Place, name: str, *, seeds: int, gpus: int) -> Path:
    return place.write_spec(
        name,
        seeds=tuple(range(1, seeds + 1)),
        trials={"t": {}},
        env={"GATED": 1},
        resources={"gpus_per_run": gpus},
        limits={"backoff_seconds": 0.1},
    )


def runs_on(place: Place, fleet: Fleet, node: Node) -> list[psutil.Process]:
    """The guards of the runs at work on a node."""
    guards = [run for run in place.runs() if "supervise" in run.cmdline()]
    return [guard for guard in guards if fleet.node_of(guard) is node]


def test_a_node_that_dies_costs_its_runs_a_try_and_nobody_else(place: Place, fleet: Fleet) -> None:
    spec, board = write_spec(place, "nodeless", seeds=5, gpus=4), place.board("nodeless")
    driver = place.drive(spec, "--address", fleet.address)
    driver.wait_for_arrivals(4)
    assert [len(runs_on(place, fleet, node)) for node in fleet.nodes] == [2, 2]
    victim = fleet.nodes[0]
    victim.kill_raylet()
    wait_until(lambda: len(place.runs()) == 4, "the dead node's runs to end")
    open_gate(board)
    assert driver.wait() == 0, driver.said
    check_aftermath(place, fleet, "nodeless", runs=5, attempts={"finished": 5, "node_lost": 2})


def test_a_node_on_which_all_runs_fail_takes_no_more(place: Place, fleet: Fleet) -> None:
    fleet.nodes.pop().end()
    broken = fleet.add_node(env={"NODE_IS_BROKEN": 1})
    spec = place.write_spec(
        "broken",
        seeds=(1,),
        # Of different trials, or it might be the trial that fails.
        trials={
            name: {"FAULT": "crash on a broken node", "ITERATIONS": number}
            for number, name in enumerate("abcdef", 1)
        },
        resources={"gpus_per_run": 8},
        limits={"backoff_seconds": 0.1},
    )
    driver = place.drive(spec, "--address", fleet.address)
    assert driver.wait() == 0, driver.said
    check_aftermath(place, fleet, "broken", runs=6, attempts={"finished": 6, "crashed": 2})
    with closing(Ledger.open_for_reading(place.sweep("broken").ledger)) as ledger:
        (note,) = [note for note in ledger.notes() if note.kind == "quarantine"]
    assert "the last 2 on it failed" in note.text
    broken.end()


def test_a_trial_that_fails_everywhere_costs_no_node(place: Place, fleet: Fleet) -> None:
    spec = place.write_spec(
        "spoilt",
        seeds=(1, 2, 3),
        trials={"good": {}, "bad": {"FAULT": "crash"}, "worse": {"FAULT": "crash", "SLEEP_MS": 1}},
        resources={"gpus_per_run": 8},
        limits={"backoff_seconds": 0.1},
    )
    driver = place.drive(spec, "--address", fleet.address)
    assert driver.wait() == 1, driver.said
    check_aftermath(
        *(place, fleet, "spoilt"), runs=9, finished=3, attempts={"finished": 3, "crashed": 12}
    )
    # Where a node was suspected for a time, it has been cleared.
    with closing(Ledger.open_for_reading(place.sweep("spoilt").ledger)) as ledger:
        notes = [note.text for note in ledger.notes() if note.kind == "quarantine"]
    assert all("again" in last for last in notes[-1:])


@pytest.mark.slow
def test_a_node_that_comes_while_the_sweep_waits_is_used(place: Place, fleet: Fleet) -> None:
    spec, board = write_spec(place, "growing", seeds=3, gpus=8), place.board("growing")
    driver = place.drive(spec, "--address", fleet.address)
    driver.wait_for_arrivals(2)
    fleet.add_node()
    driver.wait_for_arrivals(3)
    open_gate(board)
    assert driver.wait() == 0, driver.said
    check_aftermath(place, fleet, "growing", runs=3, attempts={"finished": 3})


@pytest.mark.slow
def test_a_sweep_goes_on_by_itself_when_its_head_is_back(place: Place, fleet: Fleet) -> None:
    spec, board = write_spec(place, "headless", seeds=4, gpus=8), place.board("headless")
    open_gate(board, 1)
    driver = place.drive(spec, "--address", fleet.address, env=QUICK_TO_NOTICE)
    driver.wait_for_arrivals(3)
    fleet.head.part("gcs_server").kill()
    wait_until(lambda: "waiting for" in driver.stderr.read_text(), "the driver to notice")
    wait_until(lambda: not place.runs(), "the runs to end without their driver")
    fleet.restart_head()
    fleet.repair(2)
    open_gate(board)
    assert driver.wait() == 0, driver.said
    check_aftermath(place, fleet, "headless", runs=4, attempts={"finished": 4, "lost": 2})
