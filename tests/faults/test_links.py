"""A cable that is pulled: the node lives on, but nobody hears of it."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.faults import namespaces
from tests.faults.aftermath import check_aftermath, survivors
from tests.faults.fleet import Fleet, a_fleet
from tests.faults.namespaces import Machine, Network, a_network
from tests.sweeper.conftest import wait_until
from tests.sweeper.ray_helpers import Driver, Place
from tests.sweeper.sweeps import open_gate

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("quiet")]


@pytest.fixture(scope="module")
def network() -> Iterator[Network]:
    reason = namespaces.refusal()
    if reason is not None:
        pytest.skip(reason)
    with a_network(3) as network:
        yield network


@pytest.fixture(scope="module")
def fleet(place: Place, network: Network) -> Iterator[Fleet]:
    """A head without GPUs and two nodes of eight, each behind a cable of its own."""
    head, *others = network.machines
    with a_fleet(place, machine=head) as fleet:
        for machine in others:
            fleet.add_node(machine=machine)
        yield fleet


def machine_of(network: Network, address: str) -> Machine:
    return next(machine for machine in network.machines if machine.address == address)


def drive_in(network: Network, place: Place, fleet: Fleet, name: str) -> Driver:
    """A driver on a machine of its own, with three gated runs of which two are at work."""
    spec = place.write_spec(
        name,
        seeds=(1, 2, 3),
        trials={"t": {}},
        env={"GATED": 1},
        resources={"gpus_per_run": 8},
        limits={"backoff_seconds": 0.1},
    )
    prefix = network.machines[0].prefix
    driver = place.drive(spec, "--address", fleet.address, prefix=prefix)
    driver.wait_for_arrivals(2)
    return driver


def test_a_run_behind_a_cut_cable_goes_on_elsewhere_and_dies_there(
    place: Place, fleet: Fleet, network: Network
) -> None:
    driver = drive_in(network, place, fleet, "cut")
    victim, _ = fleet.nodes
    machine = machine_of(network, victim.address)
    (guard,) = [
        run for run in place.runs() if "supervise" in run.cmdline() and fleet.node_of(run) is victim
    ]
    board = place.board("cut")
    machine.cut()
    # The node gives up by itself, and its run with it, though nobody can tell it to.
    wait_until(lambda: guard.pid not in survivors(place, "cut"), "the run beyond the cut to end")
    open_gate(board)
    assert driver.wait() == 0, driver.said
    check_aftermath(place, fleet, "cut", runs=3, attempts={"finished": 3, "node_lost": 1})


def test_a_cable_that_is_out_for_a_moment_costs_nothing(
    place: Place, fleet: Fleet, network: Network
) -> None:
    for machine in network.machines:
        machine.join()
    fleet.repair(2, machines=network.machines[1:])
    driver = drive_in(network, place, fleet, "blink")
    machine = network.machines[2]
    machine.cut()
    machine.join()
    open_gate(place.board("blink"))
    assert driver.wait() == 0, driver.said
    check_aftermath(place, fleet, "blink", runs=3, attempts={"finished": 3})
