"""A cable that is pulled: the node lives on, but nobody hears of it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import psutil
import pytest

from sweeper.rows import RunState
from tests.faults import namespaces
from tests.faults.aftermath import check_aftermath, survivors
from tests.faults.fleet import Fleet, Node, a_fleet
from tests.faults.namespaces import Machine, Network, a_network
from tests.sweeper.conftest import alive, wait_until
from tests.sweeper.ray_helpers import Driver, Env, Place
from tests.sweeper.sweeps import open_gate, run_states

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("quiet")]

# Nobody takes a cable that is out for a minute for the end.
PATIENT: Env = {
    "RAY_health_check_failure_threshold": 120,
    "RAY_gcs_rpc_server_reconnect_timeout_s": 60,
    "RAY_grpc_client_keepalive_time_ms": 60_000,
    "RAY_grpc_client_keepalive_timeout_ms": 60_000,
}


@pytest.fixture(scope="module")
def network() -> Iterator[Network]:
    reason = namespaces.refusal()
    if reason is not None:
        pytest.skip(reason)
    with a_network(3) as network:
        yield network


@contextmanager
def a_wired_fleet(place: Place, network: Network, env: Env | None = None) -> Iterator[Fleet]:
    """A head without GPUs and two nodes of eight, each behind a cable of its own."""
    head, *others = network.machines
    with a_fleet(place, machine=head, env=env) as fleet:
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


def guard_on(place: Place, fleet: Fleet, node: Node) -> psutil.Process:
    """The guard of the run at work on a node."""
    guards = [run for run in place.runs() if "supervise" in run.cmdline()]
    (guard,) = [guard for guard in guards if fleet.node_of(guard) is node]
    return guard


def test_a_run_behind_a_cut_cable_goes_on_elsewhere_and_dies_there(
    place: Place, network: Network
) -> None:
    with a_wired_fleet(place, network) as fleet:
        driver = drive_in(network, place, fleet, "cut")
        victim, _ = fleet.nodes
        machine, guard = machine_of(network, victim.address), guard_on(place, fleet, victim)
        machine.cut()
        # The node gives up by itself, and its run with it, though nobody can tell it to.
        wait_until(
            lambda: guard.pid not in survivors(place, "cut"), "the run beyond the cut to end"
        )
        open_gate(place.board("cut"))
        assert driver.wait() == 0, driver.said
        check_aftermath(place, fleet, "cut", runs=3, attempts={"finished": 3, "node_lost": 1})
        machine.join()


def test_a_run_that_ends_while_its_cable_is_out_has_finished_when_it_is_back(
    place: Place, network: Network
) -> None:
    with a_wired_fleet(place, network, PATIENT) as fleet:
        driver = drive_in(network, place, fleet, "blink")
        victim, _ = fleet.nodes
        machine, guard = machine_of(network, victim.address), guard_on(place, fleet, victim)
        machine.cut()
        open_gate(place.board("blink"))
        wait_until(lambda: not alive(guard.pid), "the run beyond the cut to end")
        assert RunState.RUNNING in run_states(place.sweep("blink")).values()
        machine.join()
        assert driver.wait() == 0, driver.said
        check_aftermath(place, fleet, "blink", runs=3, attempts={"finished": 3})
