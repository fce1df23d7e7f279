"""Runs of several nodes on real Ray nodes of one machine, by real torchrun."""

from __future__ import annotations

import contextlib
import json
import re
import subprocess
from collections.abc import Iterator, Sequence
from pathlib import Path

import psutil
import pytest

from tests.faults.aftermath import check_aftermath
from tests.faults.fleet import Fleet, Node, a_fleet
from tests.sweeper.conftest import wait_until
from tests.sweeper.ray_helpers import Env, Place, start_node
from tests.sweeper.sweeps import attempt_dir, attempts, most_at_once, open_gate, stays

pytestmark = [pytest.mark.usefixtures("quiet"), pytest.mark.slow]

PAIR: dict[str, object] = {
    "gpus_per_run": 2,
    "nodes_per_run": 2,
    "processes_per_run": 2,
    "cpus_per_run": 2,
}

# A script that all ranks of both nodes have to be in.
ALL_REDUCE = """
import os, torch, torch.distributed as dist
dist.init_process_group("gloo")
rank, world = dist.get_rank(), dist.get_world_size()
assert os.environ["LOCAL_WORLD_SIZE"] == "1" and world == 2
total = torch.tensor([float(rank + 1)])
dist.all_reduce(total)
if rank == 1 and os.environ.get("BREAK"):
    raise RuntimeError("rank 1 breaks")
if os.environ.get("BREAK"):
    dist.barrier()  # for ever, were it not stopped
if rank == 0:
    print(f"seed:{os.environ['SEED']} all reduced: {total.item():g}")
    open("final_model.int8.ptz", "wb").write(b"x" * 100)
    print("Serialized model int8+zlib: 100 bytes")
    print("Total submission size int8+zlib: 200 bytes")
    print("step:1/1 train_loss:3.0 train_time:10ms step_avg:10.00ms")
    print("final_int8_zlib_roundtrip_exact val_loss:2.50000000 val_bpb:1.20000000")
dist.destroy_process_group()
"""
REDUCE_SPEC = """
name = "reduce"
seeds = [7]
[workload]
script = "reduce.py"
[resources]
gpus_per_run = 2
nodes_per_run = 2
cpus_per_run = 2
[limits]
grace_seconds = 2.0
max_attempts = 1
[[trial]]
name = "good"
[[trial]]
name = "broken"
[trial.env]
BREAK = 1
"""


@pytest.fixture(scope="module")
def fleet(place: Place) -> Iterator[Fleet]:
    """A head without GPUs and two nodes of eight."""
    with a_fleet(place, nodes=2, cpus=4) as fleet:
        yield fleet


def test_two_nodes_are_one_torchrun_and_two_runs_have_their_own_gpus(
    place: Place, fleet: Fleet
) -> None:
    spec = place.write_spec(
        "pairs",
        seeds=(1, 2),
        trials={"t": {}},
        env={"PAIRED": 1, "PEERS": 1},
        resources=PAIR | {"gpus_per_run": 8},
        launch="torchrun",
    )
    driver = place.drive(spec, "--address", fleet.address)
    assert driver.wait() == 0, driver.said
    sweep = place.sweep("pairs")
    check_aftermath(place, fleet, "pairs", runs=2, attempts={"finished": 2})
    found = stays(place.board("pairs"))
    assert most_at_once(found) == 2
    assert not found[0].gpus & found[1].gpus
    (row,) = attempts(sweep)["t", 1]
    directory = attempt_dir(sweep, row)
    asked = [json.loads(directory.on(node).request.read_text()) for node in (0, 1)]
    assert [len(one["gpus"]) for one in asked] == [4, 4]
    assert (row.gpus or "").count(",") == 7
    assert (directory.logs / "node1" / "stdout.log").exists()
    ends = [json.loads(directory.on(node).exit.read_text()) for node in (0, 1)]
    assert [end["exit_code"] for end in ends] == [0, 0]
    echo = json.loads(directory.events.read_text().splitlines()[0])
    assert echo["world_size"] == 2


def test_ranks_of_two_nodes_reduce_and_break_together(place: Place, fleet: Fleet) -> None:
    (place.path / "reduce.py").write_text(ALL_REDUCE)
    spec = place.path / "reduce.toml"
    spec.write_text(REDUCE_SPEC.replace("reduce.py", str(place.path / "reduce.py")))
    driver = place.drive(spec, "--address", fleet.address)
    assert driver.wait() == 1, driver.said
    check_aftermath(
        place, fleet, "reduce", runs=2, finished=1, attempts={"finished": 1, "crashed": 1}
    )
    sweep = place.sweep("reduce")
    (good,), (bad,) = attempts(sweep)["good", 7], attempts(sweep)["broken", 7]
    (log,) = attempt_dir(sweep, good).rank_logs(0, "stdout")
    assert "seed:7 all reduced: 3" in log.read_text()
    # Rank 0 waits in a barrier; what is said is what rank 1 died of.
    assert bad.message is not None
    assert bad.message.startswith("node 1: RuntimeError: rank 1 breaks (")
    assert bad.traceback is not None
    assert "in <module>" in bad.traceback


@pytest.mark.parametrize("victim", ["rank", "guard", "actor"])
def test_all_of_a_run_ends_when_a_part_of_it_dies_on_either_node(
    place: Place, fleet: Fleet, victim: str
) -> None:
    name = f"without-{victim}"
    spec = place.write_spec(
        name,
        seeds=(1,),
        trials={"t": {}},
        env={"GATED": 1, "PEERS": 1},
        resources=PAIR,
        limits={"backoff_seconds": 0.1, "grace_seconds": 2.0},
        launch="torchrun",
    )
    driver = place.drive(spec, "--address", fleet.address)
    driver.wait_for_arrivals(1)
    wait_until(lambda: len(ranks(place)) == 2, "both ranks to be at work")
    first = {process.pid for process in place.runs()}
    (other,) = [rank for rank in ranks(place) if rank.environ()["RANK"] == "1"]
    part_of(other, victim).kill()
    wait_until(lambda: not first & {process.pid for process in place.runs()}, "all of it to end")
    driver.wait_for_arrivals(2)
    open_gate(place.board(name))
    assert driver.wait() == 0, driver.said
    end = "lost" if victim in ("guard", "actor") else "crashed"
    check_aftermath(place, fleet, name, runs=1, attempts={end: 1, "finished": 1})


def ranks(place: Place) -> list[psutil.Process]:
    """The rank processes of all runs."""
    found = []
    for process in place.runs():
        with contextlib.suppress(psutil.Error):
            if "RANK" in process.environ() and "fake_train" in process.cmdline():
                found.append(process)
    return found


def part_of(rank: psutil.Process, what: str) -> psutil.Process:
    """A process that a rank was started by: torchrun, its guard, the slot."""
    line = [rank, *rank.parents()]
    return line[["rank", "torchrun", "guard", "actor"].index(what)]


def test_a_node_that_dies_ends_its_runs_on_the_other_and_they_wait_for_a_new_one(
    place: Place, fleet: Fleet
) -> None:
    spec = place.write_spec(
        "widowed",
        seeds=(1,),
        trials={"t": {}},
        env={"GATED": 1, "PEERS": 1},
        resources=PAIR | {"gpus_per_run": 16},
        limits={"backoff_seconds": 0.1, "grace_seconds": 2.0},
        launch="torchrun",
    )
    driver = place.drive(spec, "--address", fleet.address)
    driver.wait_for_arrivals(1)
    wait_until(lambda: len(ranks(place)) == 2, "both ranks to be at work")
    (other,) = [rank for rank in ranks(place) if rank.environ()["RANK"] == "1"]
    victim = fleet.node_of(other)
    fleet.nodes.remove(victim)
    fleet.add_node(cpus=4)
    victim.kill_raylet()
    driver.wait_for_arrivals(2)
    open_gate(place.board("widowed"))
    assert driver.wait() == 0, driver.said
    check_aftermath(place, fleet, "widowed", runs=1, attempts={"node_lost": 1, "finished": 1})


# A node whose processes see neither the sweeps nor the temporary files of any other.
HIDE = 'mount -t tmpfs none "$1" && mount -t tmpfs none "$2" && shift 2 && exec "$@"'


def test_everything_comes_home_from_nodes_that_share_no_disk(place: Place) -> None:
    place.root.mkdir(exist_ok=True)
    hidden = ["unshare", "--mount", "bash", "-c", HIDE, "hide", str(place.root), str(place.scratch)]
    if subprocess.run([*hidden, "true"], capture_output=True).returncode != 0:
        pytest.skip("mount namespaces are not allowed here")
    spec = place.write_spec(
        "apart",
        seeds=(1,),
        trials={"t": {}},
        env={"PEERS": 1, "GATED": 1},
        resources=PAIR,
        launch="torchrun",
    )
    open_gate(place.board("apart"))
    with a_fleet(place) as fleet:
        for _ in range(2):
            add_node(fleet, prefix=hidden)
        driver = place.drive(spec, "--address", fleet.address)
        # The other rank stays until it sees a result, which on its own disk it never does.
        driver.wait_for_arrivals(1)
        wait_until(lambda: len(ranks(place)) == 1, "rank 0 to end")
        (row,) = attempts(place.sweep("apart"))["t", 1]
        (rank,) = ranks(place)
        Path(f"/proc/{rank.pid}/cwd/result.json").touch()
        assert driver.wait() == 0, driver.said
        check_aftermath(place, fleet, "apart", runs=1, attempts={"finished": 1})
        directory = attempt_dir(place.sweep("apart"), row)
        assert json.loads(directory.exit.read_text())["exit_code"] == 0
        for node in (0, 1):
            asked = json.loads(directory.on(node).request.read_text())
            assert asked["directory"].startswith(str(place.scratch))
            assert directory.on(node).exit.exists()
            assert (directory.on(node).logs / "stdout.log").exists()
        (log,) = directory.on(1).rank_logs(0, "stdout")
        assert log.read_text() == "rank 1 has nothing to do\n"
        echoes = directory.events.read_text().count('"kind": "config"')
        assert echoes == 1


@pytest.mark.parametrize(
    ("resources", "error"),
    [
        (
            PAIR | {"gpus_per_run": 18},
            "asks for 9 GPU, 1 CPU on each of 2 nodes; .* has 8 GPU, 4 CPU.* Lower "
            r"resources\.gpus_per_run or resources\.cpus_per_run or resources\.nodes_per_run",
        ),
        (
            {"gpus_per_run": 3, "cpus_per_run": 3, "nodes_per_run": 3},
            "asks for 1 GPU, 1 CPU on each of 3 nodes; ",
        ),
        (
            {"gpus_per_run": 1, "accelerator": "H100"},
            "asks for 1 GPU, 1 CPU of type H100 on one node; .* has 8 GPU, 4 CPU of type unknown",
        ),
    ],
)
def test_what_no_node_can_give_is_refused_at_once(
    place: Place, fleet: Fleet, resources: Env, error: str
) -> None:
    name = f"impossible-{abs(hash(error))}"
    spec = place.write_spec(
        name, seeds=(1,), trials={"t": {}}, resources=resources, launch="torchrun"
    )
    driver = place.drive(spec, "--address", fleet.address)
    assert driver.wait() == 2
    assert re.search(error, driver.stderr.read_text().splitlines()[-1]), driver.said
    assert attempts(place.sweep(name)) == {("t", 1): []}


def test_runs_go_where_their_accelerator_is(place: Place, fleet: Fleet) -> None:
    node = add_node(fleet, gpus=2, options=['--resources={"accelerator_type:H100": 1}'])
    try:
        spec = place.write_spec(
            "typed",
            seeds=(1, 2, 3),
            trials={"t": {}},
            env={"GATED": 1},
            resources={"gpus_per_run": 1, "accelerator": "H100"},
        )
        driver = place.drive(spec, "--address", fleet.address)
        # Two of three: the others' sixteen GPUs are of no use to them.
        driver.wait_for_arrivals(2)
        assert {fleet_node(place, node)} == {2}
        open_gate(place.board("typed"))
        assert driver.wait() == 0, driver.said
        assert most_at_once(stays(place.board("typed"))) <= 2
        check_aftermath(place, fleet, "typed", runs=3, attempts={"finished": 3})
    finally:
        node.end()
        fleet.nodes.remove(node)


def add_node(
    fleet: Fleet, *, gpus: int = 8, options: Sequence[str] = (), prefix: Sequence[str] = ()
) -> Node:
    """One more node of a fleet, of another kind than the others."""
    address = f"127.0.1.{1 + len(fleet.nodes)}"
    options = [f"--address={fleet.address}", f"--node-ip-address={address}", *options]
    name = f"node-{address}"
    place, env = fleet.place, fleet.env
    process = start_node(place, name, cpus=2, gpus=gpus, options=options, env=env, prefix=prefix)
    fleet.nodes.append(Node(name, address, process, prefix))
    return fleet.nodes[-1]


def fleet_node(place: Place, node: Node) -> int:
    """How many runs are at work on a node."""
    guards = [run for run in place.runs() if "supervise" in run.cmdline()]
    return sum(node.process.pid in {p.pid for p in guard.parents()} for guard in guards)


def test_a_node_of_eight_holds_eight_runs_of_one(place: Place, fleet: Fleet) -> None:
    spec = place.write_spec(
        "small",
        seeds=tuple(range(1, 9)),
        trials={"t": {}},
        env={"GATED": 1},
        resources={"gpus_per_run": 1},
    )
    driver = place.drive(spec, "--address", fleet.address)
    driver.wait_for_arrivals(8)
    open_gate(place.board("small"))
    assert driver.wait() == 0, driver.said
    check_aftermath(place, fleet, "small", runs=8, attempts={"finished": 8})
    rows = [row for rows in attempts(place.sweep("small")).values() for row in rows]
    assert all(row.gpus in tuple("01234567") for row in rows)
    assert most_at_once(stays(place.board("small"))) == 8
