"""A Ray cluster of several nodes on one machine, each of which can be killed by itself.

The head has no GPUs, so that it can be the driver's node while runs are elsewhere. Every node has
an address of its own: of the loopback network, or of a network namespace.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import IO

import psutil

from tests.faults.namespaces import Machine
from tests.sweeper.conftest import ROOT, wait_until
from tests.sweeper.ray_helpers import END_SECONDS, Env, Place, free_port, start_node

GPUS_PER_NODE = 8
# A dead node is noticed within two seconds, not within 25; no slower than a person's patience.
QUICK_TO_NOTICE: Env = {
    "RAY_health_check_initial_delay_ms": 1000,
    "RAY_health_check_period_ms": 500,
    "RAY_health_check_timeout_ms": 1500,
    "RAY_health_check_failure_threshold": 3,
    "RAY_gcs_rpc_server_reconnect_timeout_s": 5,
    # By default a node whose cable is cut notices after seven minutes.
    "RAY_grpc_client_keepalive_time_ms": 1000,
    "RAY_grpc_client_keepalive_timeout_ms": 2000,
}
# Answers every line with what each living node has of GPUs and what is free of them.
PROBE = """
import json, sys
import ray
from ray._private.state import available_resources_per_node

ray.init(sys.argv[1], log_to_driver=False, logging_level="CRITICAL")
for _ in sys.stdin:
    free = available_resources_per_node()
    print(json.dumps({
        node["NodeID"]: [
            node["NodeManagerAddress"],
            node["Resources"].get("GPU", 0),
            free.get(node["NodeID"], {}).get("GPU", 0),
        ]
        for node in ray.nodes() if node["Alive"]
    }), flush=True)
"""


@dataclass(eq=False)
class Node:
    """One node: the process that holds it, and its address."""

    name: str
    address: str
    process: subprocess.Popen[bytes]
    prefix: Sequence[str] = ()

    def part(self, name: str) -> psutil.Process:
        """Its raylet, or its gcs_server."""
        children = psutil.Process(self.process.pid).children(recursive=True)
        (found,) = [child for child in children if child.name() == name]
        return found

    def kill_raylet(self) -> None:
        """As a machine dies for Ray: its raylet is gone at once, and what it started after it."""
        self.part("raylet").kill()
        self.end()

    def end(self) -> None:
        if self.process.poll() is None:
            self.process.terminate()
        try:
            self.process.wait(END_SECONDS)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()


@dataclass(eq=False)
class Fleet:
    """A head and nodes with GPUs; `head` and `nodes` may be killed and started again."""

    place: Place
    port: int
    env: Env
    head: Node
    nodes: list[Node] = field(default_factory=list)
    _probe: subprocess.Popen[str] | None = None
    _started: int = 0

    @property
    def address(self) -> str:
        return f"{self.head.address}:{self.port}"

    def add_node(
        self,
        *,
        cpus: int = 2,
        gpus: int = GPUS_PER_NODE,
        machine: Machine | None = None,
        env: Env | None = None,
    ) -> Node:
        """One more node, up and known to the head; on the machine that is given, or on this."""
        self._started += 1
        name = f"node{self._started}"
        address = machine.address if machine else f"127.0.0.{1 + self._started}"
        prefix = machine.prefix if machine else ()
        process = start_node(
            self.place,
            name,
            cpus=cpus,
            gpus=gpus,
            options=[f"--address={self.address}", f"--node-ip-address={address}"],
            env=dict(self.env) | dict(env or {}),
            prefix=prefix,
        )
        node = Node(name, address, process, prefix)
        self.nodes.append(node)
        return node

    def repair(self, count: int, machines: Sequence[Machine] = ()) -> None:
        """Have so many nodes beside the head, whatever the last test has done to them."""
        taken = {node.address for node in self.nodes if node.process.poll() is None}
        free = [machine for machine in machines if machine.address not in taken]
        if self.head.process.poll() is not None:
            self.restart_head()
        for node in [node for node in self.nodes if node.process.poll() is not None]:
            self.nodes.remove(node)
        while len(self.nodes) > count:
            self.nodes.pop().end()
        while len(self.nodes) < count:
            self.add_node(machine=free.pop() if free else None)
        wait_until(lambda: len(self.gpus()) == count + 1, f"the cluster to have {count} nodes")

    def restart_head(self) -> None:
        """A head at the same address, after the first has ended, with all its nodes."""
        self.end_probe()
        for node in [*self.nodes, self.head]:
            node.end()
        self.nodes.clear()
        self.head = start_head(
            self.place, self.port, env=self.env, address=self.head.address, prefix=self.head.prefix
        )

    def gpus(self) -> dict[str, tuple[float, float]]:
        """Address of each living node -> its GPUs, and how many are free."""
        if self._probe is None or self._probe.poll() is not None:
            self._probe = subprocess.Popen(
                [*self.head.prefix, sys.executable, "-c", PROBE, self.address],
                cwd=ROOT,
                env=self.place.env,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                text=True,
            )
        assert self._probe.stdin is not None
        assert self._probe.stdout is not None
        print(file=self._probe.stdin, flush=True)
        # Ray itself prints there too, as when a node dies.
        answer = next((line for line in self._probe.stdout if line.startswith("{")), "")
        assert answer, "the probe has died"
        return {address: (has, free) for address, has, free in json.loads(answer).values()}

    def busy_gpus(self) -> float:
        """How many GPUs of living nodes are not free."""
        return sum(has - free for has, free in self.gpus().values())

    def node_of(self, process: psutil.Process) -> Node:
        """The node that a process was started by."""
        parents = {parent.pid for parent in process.parents()}
        (node,) = [node for node in [self.head, *self.nodes] if node.process.pid in parents]
        return node

    def end_probe(self) -> None:
        if self._probe is not None:
            self._probe.kill()
            self._probe.wait()
            for stream in (self._probe.stdin, self._probe.stdout):
                _close(stream)
            self._probe = None


def _close(stream: IO[str] | None) -> None:
    if stream is not None:
        with contextlib.suppress(OSError):
            stream.close()


def start_head(
    place: Place,
    port: int,
    *,
    env: Env,
    address: str = "127.0.0.1",
    prefix: Sequence[str] = (),
    gpus: int = 0,
    cpus: int = 0,
) -> Node:
    options = [
        *("--head", f"--port={port}", f"--temp-dir={place.path / 'ray'}"),
        *(f"--node-ip-address={address}", "--include-dashboard=false"),
        f"--ray-client-server-port={free_port()}",
    ]
    process = start_node(
        place, "head", cpus=cpus, gpus=gpus, options=options, env=env, prefix=prefix
    )
    return Node("head", address, process, prefix)


@contextmanager
def a_fleet(
    place: Place,
    *,
    nodes: int = 0,
    cpus: int = 2,
    head_gpus: int = 0,
    env: Env | None = None,
    machine: Machine | None = None,
) -> Iterator[Fleet]:
    """A head and so many nodes of eight GPUs for the time of a `with` block."""
    env = dict(QUICK_TO_NOTICE) | dict(env or {})
    port = free_port()
    head = start_head(
        place,
        port,
        env=env,
        gpus=head_gpus,
        cpus=cpus if head_gpus else 0,
        address=machine.address if machine else "127.0.0.1",
        prefix=machine.prefix if machine else (),
    )
    fleet = Fleet(place, port, env, head)
    try:
        for _ in range(nodes):
            fleet.add_node(cpus=cpus)
        yield fleet
    finally:
        fleet.end_probe()
        for node in [*fleet.nodes, fleet.head]:
            node.end()


def freeze(process: psutil.Process) -> None:
    os.kill(process.pid, signal.SIGSTOP)


def kill_all(processes: Sequence[psutil.Process]) -> None:
    """SIGKILL, all before any of them can say what it thinks of it."""
    for process in processes:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()
