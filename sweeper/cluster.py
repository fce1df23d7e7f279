"""Slots on Ray: the only file that imports ray.

A slot is a persistent actor that holds the CPUs and GPUs of one run (on one node, so that the
actor's own resources do what a placement group would) and takes run after run; a packing slot
holds CPUs alone. Slots end with the driver; their runs end with them (sweeper/guard.py). All of
this is used from one thread.
"""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import os
import secrets
import signal
import socket
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any

import ray
from ray.util.scheduling_strategies import NodeLabelSchedulingStrategy, NotIn

from sweeper.errors import UnreachableError, UserError
from sweeper.launch import LaunchRequest, RunningAttempt
from sweeper.layout import AttemptDir, SweepDir
from sweeper.shipping import Scratch, Shipment
from sweeper.spec import SweepSpec

# A slot answers calls while its run is at work.
SLOT_THREADS = 8
CALL_SECONDS = 30.0
CONNECT_SECONDS = 10.0
JOB_ANSWER_SECONDS = 300.0
TOKEN_ADVICE = (
    "take the head node's (`ray get-auth-token` there) and give it as RAY_AUTH_TOKEN, or in a file "
    "by RAY_AUTH_TOKEN_PATH or at ~/.ray/auth_token, with RAY_AUTH_MODE=token"
)
# So many slots in a row that could not begin are no accident of one host.
MAX_FAILED_OPENINGS = 3


@dataclass(frozen=True, kw_only=True)
class ClusterOptions:
    """Which cluster to use: a running one by its address, else one started on this machine.

    `num_cpus` and `num_gpus` size the local one; by default it has what the machine has.
    """

    address: str | None = None
    num_cpus: int | None = None
    num_gpus: int | None = None


@dataclass(frozen=True, kw_only=True)
class SlotFacts:
    """What a slot knows about its place."""

    host: str
    node: str
    gpus: tuple[str, ...]
    sees_driver_disk: bool


class SlotActor(Scratch):
    """Runs in a Ray worker on the slot's node; one run at a time."""

    def __init__(self) -> None:
        super().__init__()
        self._running: RunningAttempt | None = None

    def describe(self, nonce: str, content: str) -> SlotFacts:
        """Where the slot is, and whether it sees the file that the driver has written."""
        try:
            seen = Path(nonce).read_text() == content
        except OSError:
            seen = False
        context = ray.get_runtime_context()
        return SlotFacts(
            host=socket.gethostname(),
            node=context.get_node_id(),
            gpus=tuple(str(gpu) for gpu in context.get_accelerator_ids().get("GPU", [])),
            sees_driver_disk=seen,
        )

    def run(self, request: LaunchRequest, gpus: tuple[str, ...]) -> str | None:
        """Launch the attempt and return when nothing of it runs any more; why it was ended as hung.

        That is None where it was not.
        """
        if not request.directory:
            raise OSError("no directory with what the run needs could be made on its host")
        self._running = RunningAttempt(request, gpus)
        return self._running.wait()

    def stop(self) -> None:
        """Ask the run at work, if any, to end itself within its grace."""
        if self._running is not None:
            self._running.stop()

    def kill(self) -> None:
        """End the run at work, if any, at once."""
        if self._running is not None:
            self._running.kill()


@dataclass(eq=False)
class Slot:
    """The driver's end of one slot. `facts` is None until Ray has found a place for it."""

    actor: Any
    opening: Any
    facts: SlotFacts | None = None
    shipment: Shipment | None = None  # None where the slot sees the driver's disk
    running: Any = None
    failure: str | None = None  # why the last run could not be launched, or its slot was lost
    node_lost: bool = False  # it was lost with its whole node
    hung: str | None = None  # why the last run was taken for hung

    @property
    def idle(self) -> bool:
        return self.facts is not None and self.running is None

    @property
    def node(self) -> str:
        """Ray's name of the node that it is on; empty while it waits for a place."""
        return "" if self.facts is None else self.facts.node

    def start(self, request: LaunchRequest, attempt: AttemptDir) -> None:
        """Begin a run or a stage of it; its files appear in the attempt's directory as it works."""
        assert self.idle
        assert self.facts is not None
        attempt.path.mkdir(parents=True, exist_ok=True)
        self.shipment, self.failure, self.hung = None, None, None
        directory = str(attempt.path)
        if not self.facts.sees_driver_disk:
            self.shipment = Shipment(attempt, self._call)
            try:
                directory = self.shipment.begin()
            except (OSError, ray.exceptions.RayError):
                # No space at one end, or it has died since: the call below fails, and says so.
                directory = ""
            # On its own disk the stage's events are the first.
            request = dataclasses.replace(request, events_from=0)
        request = dataclasses.replace(request, directory=directory)
        self.running = self.actor.run.remote(request, self.facts.gpus)

    def stop(self) -> None:
        self.actor.stop.remote()

    def kill(self) -> None:
        self.actor.kill.remote()

    def follow(self) -> None:
        """Bring what the run has written since to the driver's disk, where it is not there yet."""
        if self.running is not None and self.shipment is not None:
            with contextlib.suppress(OSError, ray.exceptions.RayError):
                self.shipment.follow()

    def collect(self) -> None:
        """Bring all files home after the run, where they are not there yet."""
        if self.shipment is not None:
            self.shipment.finish()

    def close(self) -> None:
        with contextlib.suppress(ray.exceptions.RayError):
            ray.kill(self.actor)

    def _call(self, method: str, *arguments: object) -> Any:
        return ray.get(getattr(self.actor, method).remote(*arguments), timeout=CALL_SECONDS)


@dataclass(eq=False)
class Pool:
    """The slots of one kind, in which `who` works; `asked` is what each holds, by Ray's names."""

    who: str
    asked: dict[str, int]
    advice: str  # what to lower where there is no room for one
    nonce: tuple[str, str]  # a file of the driver's and its content
    most: int = sys.maxsize  # slots that it may have
    slots: list[Slot] = field(default_factory=list)
    quarantined: dict[str, str] = field(default_factory=dict)  # node -> host, shared by all pools
    _failed_openings: int = 0
    _works: int | None = None  # slots that could begin, where others could not
    _alive: frozenset[str] = frozenset()

    @property
    def opening(self) -> bool:
        """Whether a slot waits for its place."""
        return any(slot.facts is None for slot in self.slots)

    @property
    def nodes(self) -> set[str]:
        """The nodes on which there are slots."""
        return {slot.node for slot in self.slots if slot.facts is not None}

    def capacity(self) -> int:
        """How many slots the cluster's nodes hold at once, were nothing else on them.

        Nodes in quarantine do not count. Raises UserError when there is room for none.
        """
        nodes = [node for node in ray.nodes() if node["Alive"]]
        alive = frozenset(node["NodeID"] for node in nodes)
        if alive != self._alive:
            # What could not begin before may begin on the nodes of today.
            self._alive, self._works, self._failed_openings = alive, None, 0
        fits = [
            min(int(node["Resources"].get(name, 0) // n) for name, n in self.asked.items())
            for node in nodes
            if node["NodeID"] not in self.quarantined
        ]
        if sum(fits) > 0:
            return sum(fits) if self._works is None else min(sum(fits), self._works)
        if not nodes:
            raise UserError("the cluster has lost its nodes; run the sweep again to go on")
        has = [
            f"{node['NodeManagerHostname']} has "
            + ", ".join(f"{node['Resources'].get(name, 0):g} {name}" for name in self.asked)
            for node in nodes
        ]
        wants = ", ".join(f"{amount} {name}" for name, amount in self.asked.items())
        raise UserError(
            f"{self.who} asks for {wants} on one node; {'; '.join(has)}. Lower {self.advice} in "
            "the spec, or give --address of a larger cluster"
        )

    def open(self, count: int) -> None:
        """Have `count` slots in all, or the most; they are idle once Ray has found their places."""
        remote = ray.remote(
            num_cpus=self.asked.get("CPU", 0),
            num_gpus=self.asked.get("GPU", 0),
            max_concurrency=SLOT_THREADS,
            max_restarts=0,
            **self._where(),
        )(SlotActor)
        while len(self.slots) < min(count, self.most):
            actor = remote.remote()
            self.slots.append(Slot(actor=actor, opening=actor.describe.remote(*self.nonce)))

    def _where(self) -> dict[str, Any]:
        """Options that keep a slot off the nodes in quarantine."""
        if not self.quarantined:
            return {}
        off = NotIn(*self.quarantined)
        strategy = NodeLabelSchedulingStrategy(hard={"ray.io/node-id": off})
        return {"scheduling_strategy": strategy}

    def shrink(self, count: int) -> None:
        """Give idle or waiting slots back until at most `count` are left."""
        spare = [slot for slot in self.slots if slot.running is None][: len(self.slots) - count]
        for slot in spare:
            slot.close()
            self.slots.remove(slot)

    def leave(self, node: str) -> None:
        """Close the idle slots on a node."""
        for slot in [slot for slot in self.slots if slot.node == node and slot.running is None]:
            slot.close()
            self.slots.remove(slot)

    def settle(self, slot: Slot, future: Any) -> bool:
        """Take in what a slot's future says; whether a run has ended."""
        ended = slot.running is not None
        try:
            answer = ray.get(future)
            if ended:
                slot.hung = answer
                slot.collect()
            else:
                slot.facts, self._failed_openings = answer, 0
        except ray.exceptions.RayTaskError as error:
            # The slot is well, the launch was not: no space left, or no such program.
            slot.failure = str(error.cause)
        except OSError as error:
            slot.failure = f"its files cannot be brought home: {error}"
        except ray.exceptions.RayError as error:
            slot.node_lost = _is_node_lost(slot.node, error)
            what = "node" if slot.node_lost else "slot"
            slot.failure = f"its {what} was lost: {_last_line(error)}"
            slot.close()
            self.slots.remove(slot)
            if not ended:
                self._count_failed_opening(error)
        slot.running = None
        if slot.node in self.quarantined:
            self.leave(slot.node)
        return ended

    def _count_failed_opening(self, error: Exception) -> None:
        self._failed_openings += 1
        if self._failed_openings < MAX_FAILED_OPENINGS:
            return
        if any(slot.facts is not None for slot in self.slots):
            # Some node is unfit; the slots that work elsewhere go on without it.
            self.most = self._works = len(self.slots)
        else:
            raise UserError(
                f"Ray cannot start a slot on this cluster: {_last_line(error)}. Its nodes need "
                "this project and Python environment, and room for one more process"
            ) from error


class Cluster:
    """A connection to Ray with the slots of one sweep; use as a context manager.

    `runs` are the slots that hold a run's GPUs; `packing` those of the spec's [packing], else the
    same.
    """

    def __init__(self, spec: SweepSpec, options: ClusterOptions, sweep: SweepDir) -> None:
        self._options = options
        self._sweep = sweep
        self._nonce = secrets.token_hex(16)
        nonce = (str(sweep.nonce), self._nonce)
        asked = {"GPU": spec.resources.gpus_per_run, "CPU": spec.resources.cpus_per_run}
        self.runs = Pool(
            *("a run", {name: amount for name, amount in asked.items() if amount > 0}),
            *("resources.gpus_per_run or resources.cpus_per_run", nonce),
        )
        self.packing = self.runs
        if spec.packing is not None:
            self.packing = Pool("packing", {"CPU": spec.packing.cpus}, "packing.cpus", nonce)
            self.packing.quarantined = self.runs.quarantined

    @property
    def pools(self) -> list[Pool]:
        """The different ones."""
        return list(dict.fromkeys([self.runs, self.packing]))

    @property
    def slots(self) -> list[Slot]:
        return [slot for pool in self.pools for slot in pool.slots]

    def __enter__(self) -> Cluster:
        with _kept_sigterm():
            self._connect()
        self._sweep.nonce.write_text(self._nonce)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Close the slots (nothing of theirs runs on) and leave the cluster."""
        for slot in self.slots:
            slot.close()
        ray.shutdown()
        self._sweep.nonce.unlink(missing_ok=True)

    @property
    def quarantined(self) -> dict[str, str]:
        """The nodes that take no more runs, and their hosts."""
        return self.runs.quarantined

    def usable_nodes(self) -> set[str]:
        """The nodes with slots that take runs."""
        return {node for pool in self.pools for node in pool.nodes} - self.quarantined.keys()

    def quarantine(self, node: str) -> str:
        """Let a node take no more runs: its slots are closed once idle. Returns its host's name."""
        hosts = [slot.facts.host for slot in self.slots if slot.facts and slot.node == node]
        self.quarantined[node] = hosts[0] if hosts else node[:12]
        for pool in self.pools:
            pool.leave(node)
        return self.quarantined[node]

    def wait(self, seconds: float) -> list[Slot]:
        """The slots whose runs have ended, as soon as there is one, at the latest after `seconds`.

        Their files are on the driver's disk by then, unless the slot has died: such a slot is
        no longer in its pool. Raises UserError when no slot can begin on this cluster.
        """
        futures = {
            slot.running if slot.facts else slot.opening: (pool, slot)
            for pool in self.pools
            for slot in pool.slots
        }
        waited = [future for future in futures if future is not None]
        ready, _ = ray.wait(waited, num_returns=1, timeout=seconds) if waited else ([], [])
        # Others may have become ready too; one more look takes them all.
        ready, _ = ray.wait(waited, num_returns=len(waited), timeout=0) if ready else ([], [])
        ended = []
        for future in ready:
            pool, slot = futures[future]
            if pool.settle(slot, future):
                ended.append(slot)
        return ended

    def _connect(self) -> None:
        """Join the cluster, or start one on this machine that ends with this process."""
        options = self._options
        address = options.address or os.environ.get("RAY_ADDRESS")
        quiet: dict[str, Any] = {"log_to_driver": False, "logging_level": "ERROR"}
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        if address is None:
            # Ray's workers are nice 15, which an ordinary user's process cannot undo.
            os.environ.setdefault("RAY_worker_niceness", "0")
            ray.init(
                "local",
                num_cpus=options.num_cpus,
                num_gpus=options.num_gpus,
                include_dashboard=False,
                **quiet,
            )
            return
        if options.num_cpus is not None or options.num_gpus is not None:
            raise UserError(f"--num-cpus and --num-gpus size a local cluster, not {address}")
        _check_answers(address)
        try:
            ray.init(address, **quiet)
        except (ConnectionError, RuntimeError, ValueError, ray.exceptions.RayError) as error:
            raise UserError(f"no Ray cluster answers at {address}: {_last_line(error)}") from error


def _is_node_lost(node: str, error: ray.exceptions.RayError) -> bool:
    """Whether a slot that has died went with its whole node."""
    if getattr(error, "preempted", False) or "node has died" in str(error):
        return True
    alive = {facts["NodeID"]: facts["Alive"] for facts in ray.nodes()}
    return bool(node) and not alive.get(node, False)


@contextmanager
def _kept_sigterm() -> Iterator[None]:
    """Keep this process's handler of SIGTERM, which `ray.init` replaces by one that just exits."""
    handler = signal.getsignal(signal.SIGTERM)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, handler)


def _check_answers(address: str) -> None:
    """UserError when nothing listens at host:port; Ray would try for many minutes, deaf to ^C."""
    host, _, port = address.rpartition("://")[2].rpartition(":")
    if not host or not port.isdecimal():
        return  # a word that Ray knows, such as "auto"
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=CONNECT_SECONDS).close()
    except (OSError, OverflowError) as error:
        raise UserError(f"no Ray cluster answers at {address}: {error}") from error


def _last_line(error: Exception) -> str:
    """What an error of Ray comes down to: many hold a whole traceback as text."""
    return (str(error).strip().splitlines() or [type(error).__name__])[-1].strip().rstrip(".")


def job_client(address: str) -> Any:
    """Ray's client of the job server at a dashboard's URL; each request has its time.

    What keeps it from its work is a UserError in one line: a token that is lacking or refused, a
    server that is none of Ray's; UnreachableError where nothing answers.
    """
    import requests
    from ray.job_submission import JobSubmissionClient

    class Client(JobSubmissionClient):  # type: ignore[misc]  # ray is not typed
        def _do_request(self, *arguments: Any, **options: Any) -> Any:
            limits = {"timeout": (CONNECT_SECONDS, JOB_ANSWER_SECONDS)}
            try:
                return super()._do_request(*arguments, **(limits | options))
            except ray.exceptions.AuthenticationError as error:
                refused = "refuses the token" if "failed" in error.message else "asks for a token"
                raise UserError(f"{address} {refused}; {TOKEN_ADVICE}") from None
            except requests.RequestException as error:
                raise UnreachableError(f"{address} does not answer: {_last_line(error)}") from error

    _check_answers(address)
    logging.getLogger("ray").setLevel(logging.ERROR)
    # Ray would take these over what is given.
    given = {name: os.environ.pop(name, None) for name in ("RAY_API_SERVER_ADDRESS", "RAY_ADDRESS")}
    try:
        return Client(address)
    except (RuntimeError, KeyError, TypeError) as error:
        raise UserError(f"{address} is no dashboard of Ray: {_last_line(error)}") from error
    finally:
        os.environ.update({name: text for name, text in given.items() if text is not None})
