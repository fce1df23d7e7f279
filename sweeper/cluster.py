"""Slots on Ray: the only file that imports ray.

A slot is a persistent actor that holds the CPUs and GPUs of one run and takes run after run; a
packing slot holds CPUs alone. On one node the actor's own resources do what a placement group
would; a slot of several nodes is a group with an actor on each, the first of which leads
(sweeper/gang.py). Slots end with the driver; their runs end with them (sweeper/guard.py). All of
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
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any

import ray
from ray.util.placement_group import placement_group, remove_placement_group
from ray.util.scheduling_strategies import (
    NodeLabelSchedulingStrategy,
    NotIn,
    PlacementGroupSchedulingStrategy,
)

from sweeper.address import CONNECT_SECONDS, why_silent
from sweeper.errors import UnreachableError, UserError
from sweeper.gang import Gang, MemberLostError, blamed_node, most_gangs
from sweeper.launch import LaunchRequest, RunningAttempt
from sweeper.layout import AttemptDir, SweepDir
from sweeper.shipping import Scratch, Shipment
from sweeper.spec import SweepSpec

# A slot answers calls while its run is at work.
SLOT_THREADS = 8
CALL_SECONDS = 30.0
JOB_ANSWER_SECONDS = 300.0
TOKEN_ADVICE = (
    "take the head node's (`ray get-auth-token` there) and give it as RAY_AUTH_TOKEN, or in a file "
    "by RAY_AUTH_TOKEN_PATH or at ~/.ray/auth_token, with RAY_AUTH_MODE=token"
)
ACCELERATOR = "accelerator_type:"  # before a type, as a resource of the nodes that have it
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
    """What a slot knows about its place; of several nodes, `node` is that of the one that leads."""

    host: str
    node: str
    gpus: tuple[str, ...]
    sees_driver_disk: bool
    peers: tuple[SlotFacts, ...] = ()

    @property
    def nodes(self) -> tuple[str, ...]:
        return (self.node, *(peer.node for peer in self.peers))


class SlotActor(Scratch):
    """Runs in a Ray worker on the slot's node; one run at a time. With peers it leads them."""

    def __init__(self, peers: Sequence[Any] = ()) -> None:
        super().__init__()
        self._actors = peers
        self._peers: list[_Peer] = []
        self._gpus: tuple[str, ...] = ()
        self._running: RunningAttempt | Gang | None = None

    def describe(self, nonce: str, content: str) -> SlotFacts:
        """Where the slot is, and whether it sees the file that the driver has written.

        Raises MemberLostError when a peer cannot begin.
        """
        context = ray.get_runtime_context()
        self._gpus = tuple(str(gpu) for gpu in context.get_accelerator_ids().get("GPU", []))
        own = SlotFacts(
            host=socket.gethostname(),
            node=context.get_node_id(),
            gpus=self._gpus,
            sees_driver_disk=self.sees(nonce, content),
        )
        if not self._actors:
            return own
        self._peers = [_Peer(actor) for actor in self._actors]
        facts = [own, *(peer.describe(nonce, content) for peer in self._peers)]
        return SlotFacts(
            host=", ".join(fact.host for fact in facts),
            node=own.node,
            gpus=tuple(gpu for fact in facts for gpu in fact.gpus),
            sees_driver_disk=all(fact.sees_driver_disk for fact in facts),
            peers=tuple(facts[1:]),
        )

    def sees(self, path: str, content: str) -> bool:
        """Whether a file is there, and is the one that is meant."""
        try:
            return Path(path).read_text() == content
        except OSError:
            return False

    def run(self, request: LaunchRequest, gpus: tuple[str, ...]) -> str | None:
        """Launch the attempt and return when nothing of it runs any more; why it was ended as hung.

        That is None where it was not.
        """
        if not request.directory:
            raise OSError("no directory with what the run needs could be made on its host")
        if self._peers:
            address = ray.util.get_node_ip_address()
            self._running = Gang(request, self._gpus, self._peers, address)
        else:
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


class _Peer:
    """A slot's member on another node, as the one that leads reaches it."""

    def __init__(self, actor: Any) -> None:
        self._actor = actor
        self.node = ""
        self.gpus: tuple[str, ...] = ()

    def describe(self, nonce: str, content: str) -> SlotFacts:
        """Where it is, once it has begun."""
        facts: SlotFacts = self._answer("describe", (nonce, content), None)
        self.node, self.gpus = facts.node, facts.gpus
        return facts

    def call(self, method: str, *arguments: object) -> Any:
        return self._answer(method, arguments, CALL_SECONDS)

    def run(self, request: LaunchRequest) -> str | None:
        hung: str | None = self._answer("run", (request, self.gpus), None)
        return hung

    def tell(self, method: str) -> None:
        getattr(self._actor, method).remote()

    def _answer(self, method: str, arguments: Sequence[object], timeout: float | None) -> Any:
        try:
            return ray.get(getattr(self._actor, method).remote(*arguments), timeout=timeout)
        except ray.exceptions.RayTaskError as error:
            raise OSError(str(error.cause)) from None
        except ray.exceptions.GetTimeoutError as error:
            raise OSError(f"a node of the run does not answer: {error}") from None
        except ray.exceptions.RayError as error:
            lost = _is_node_lost(self.node, error)
            raise MemberLostError(_last_line(error), self.node, lost) from None


@dataclass(eq=False)
class Slot:
    """The driver's end of one slot. `facts` is None until Ray has found a place for it.

    One of several nodes has `peers` beside its actor, in the places of a `group`.
    """

    actor: Any
    opening: Any
    peers: Sequence[Any] = ()
    group: Any = None
    attempt: AttemptDir | None = None  # that it works on, or has
    blamed: str | None = None  # the node at fault for the last end, where it is known
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

    @property
    def nodes(self) -> tuple[str, ...]:
        """All the nodes that it is on."""
        return () if self.facts is None else self.facts.nodes

    def start(self, request: LaunchRequest, attempt: AttemptDir) -> None:
        """Begin a run or a stage of it; its files appear in the attempt's directory as it works."""
        assert self.idle
        assert self.facts is not None
        attempt.path.mkdir(parents=True, exist_ok=True)
        self.shipment, self.failure, self.hung = None, None, None
        self.attempt, self.blamed = attempt, None
        directory = str(attempt.path)
        if not self.facts.sees_driver_disk:
            self.shipment = Shipment(attempt, self._call, follow_logs=request.script is not None)
            try:
                directory = self.shipment.begin()
                if request.code is not None:
                    code = self.shipment.send_code(request.code, request.files)
                    request = dataclasses.replace(request, code=code)
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
        if self.peers and self.attempt is not None:
            self.blamed = blamed_node(self.attempt)

    def close(self) -> None:
        for actor in (self.actor, *self.peers):
            with contextlib.suppress(ray.exceptions.RayError):
                ray.kill(actor)
        if self.group is not None:
            with contextlib.suppress(ray.exceptions.RayError):
                remove_placement_group(self.group)

    def _call(self, method: str, *arguments: object) -> Any:
        return ray.get(getattr(self.actor, method).remote(*arguments), timeout=CALL_SECONDS)


@dataclass(eq=False)
class Pool:
    """The slots of one kind, in which `who` works; `asked` is what each holds, by Ray's names.

    That is on each of `span` nodes, which have to be of a type where an `accelerator` is named.
    """

    who: str
    asked: dict[str, int]
    advice: str  # what to lower where there is no room for one
    nonce: tuple[str, str]  # a file of the driver's and its content
    most: int = sys.maxsize  # slots that it may have
    slots: list[Slot] = field(default_factory=list)
    quarantined: dict[str, str] = field(default_factory=dict)  # node -> host, shared by all pools
    span: int = 1
    accelerator: str | None = None
    _failed_openings: int = 0
    _works: int | None = None  # slots that could begin, where others could not
    _alive: frozenset[str] = frozenset()

    @property
    def opening(self) -> bool:
        """Whether a slot waits for its place."""
        return any(slot.facts is None for slot in self.slots)

    @property
    def nodes(self) -> set[str]:
        """The nodes on which there are slots; of those of several nodes, the ones that lead."""
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
        fits = [self._fit(node) for node in nodes if node["NodeID"] not in self.quarantined]
        count = sum(fits) if self.span == 1 else most_gangs(fits, self.span)
        if count > 0:
            return count if self._works is None else min(count, self._works)
        if not nodes:
            raise UserError("the cluster has lost its nodes; run the sweep again to go on")
        raise UserError(self._refusal(nodes))

    def _fit(self, node: dict[str, Any]) -> int:
        """How many members of slots a node holds."""
        if self.accelerator is not None and self.accelerator not in _accelerators(node):
            return 0
        has = node["Resources"]
        return min(int(has.get(name, 0) // amount) for name, amount in self.asked.items())

    def _refusal(self, nodes: list[dict[str, Any]]) -> str:
        """Why there is no room for a slot: what it asks for, and what there is."""
        wants = ", ".join(f"{amount} {name}" for name, amount in self.asked.items())
        where = "on one node" if self.span == 1 else f"on each of {self.span} nodes"
        names = list(self.asked)
        if self.accelerator is not None:
            wants += f" of type {self.accelerator}"
        has = []
        for node in nodes:
            there = ", ".join(f"{node['Resources'].get(name, 0):g} {name}" for name in names)
            if self.accelerator is not None:
                there += f" of type {' or '.join(_accelerators(node)) or 'unknown'}"
            has.append(f"{node['NodeManagerHostname']} has {there}")
        return (
            f"{self.who} asks for {wants} {where}; {'; '.join(has)}. Lower {self.advice} in "
            "the spec, or give --address of a larger cluster"
        )

    def open(self, count: int) -> None:
        """Have `count` slots in all, or the most; they are idle once Ray has found their places."""
        remote = ray.remote(
            num_cpus=self.asked.get("CPU", 0),
            num_gpus=self.asked.get("GPU", 0),
            accelerator_type=self.accelerator,
            max_concurrency=SLOT_THREADS,
            max_restarts=0,
        )(SlotActor)
        while len(self.slots) < min(count, self.most):
            if self.span > 1:
                self.slots.append(self._open_gang(remote))
                continue
            actor = remote.options(**self._where()).remote()
            self.slots.append(Slot(actor=actor, opening=actor.describe.remote(*self.nonce)))

    def _open_gang(self, remote: Any) -> Slot:
        """A slot of several nodes: it gets all its places at once, or waits for them."""
        bundle: dict[str, float] = dict(self.asked)
        if self.accelerator is not None:
            bundle[f"{ACCELERATOR}{self.accelerator}"] = 0.001  # as Ray's own option asks for
        off = {"ray.io/node-id": f"!in({','.join(self.quarantined)})"} if self.quarantined else {}
        group = placement_group(
            [bundle] * self.span,
            strategy="STRICT_SPREAD",
            bundle_label_selector=[off] * self.span if off else None,
        )
        places = [PlacementGroupSchedulingStrategy(group, index) for index in range(self.span)]
        peers = [remote.options(scheduling_strategy=place).remote() for place in places[1:]]
        actor = remote.options(scheduling_strategy=places[0]).remote(peers)
        opening = actor.describe.remote(*self.nonce)
        return Slot(actor=actor, opening=opening, peers=peers, group=group)

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
        for slot in [slot for slot in self.slots if node in slot.nodes and slot.running is None]:
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
            if isinstance(error.cause, MemberLostError):
                # The leader is well, and may hold what the others have brought to it.
                with contextlib.suppress(OSError, ray.exceptions.RayError):
                    slot.collect()
                slot.blamed = error.cause.node or None
                self._lose(slot, error.cause, error.cause.node_lost)
            else:
                # The slot is well, the launch was not: no space left, or no such program.
                slot.failure = str(error.cause)
        except OSError as error:
            slot.failure = f"its files cannot be brought home: {error}"
        except ray.exceptions.RayError as error:
            self._lose(slot, error, _is_node_lost(slot.node, error))
        slot.running = None
        for node in self.quarantined.keys() & set(slot.nodes):
            self.leave(node)
        return ended

    def _lose(self, slot: Slot, error: Exception, node_lost: bool) -> None:
        """Do without a slot that has died, or a member of it."""
        slot.node_lost = node_lost
        what = "node" if node_lost else "slot"
        slot.failure = f"its {what} was lost: {_last_line(error)}"
        slot.close()
        self.slots.remove(slot)
        if slot.running is None:
            self._count_failed_opening(error)

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
        resources = spec.resources
        nodes = resources.nodes_per_run
        asked = {"GPU": resources.gpus_per_run // nodes, "CPU": resources.cpus_per_run // nodes}
        advice = "resources.gpus_per_run or resources.cpus_per_run"
        self.runs = Pool(
            *("a run", {name: amount for name, amount in asked.items() if amount > 0}),
            *(advice if nodes == 1 else f"{advice} or resources.nodes_per_run", nonce),
            span=nodes,
            accelerator=resources.accelerator,
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
        return {node for slot in self.slots for node in slot.nodes} - self.quarantined.keys()

    def quarantine(self, node: str) -> str:
        """Let a node take no more runs: its slots are closed once idle. Returns its host's name."""
        hosts = {facts["NodeID"]: facts["NodeManagerHostname"] for facts in ray.nodes()}
        self.quarantined[node] = hosts.get(node, node[:12])
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


def _accelerators(node: dict[str, Any]) -> list[str]:
    """The types of accelerators that a node has."""
    names = [name for name in node["Resources"] if name.startswith(ACCELERATOR)]
    return sorted(name.removeprefix(ACCELERATOR) for name in names)


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
    silent = why_silent(address)
    if silent is not None:
        raise UserError(f"no Ray cluster answers at {address}: {silent}")


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
    sdk = "dashboard.modules"
    for name in (f"{sdk}.dashboard_sdk", f"{sdk}.job.sdk", "_private.runtime_env.packaging"):
        logging.getLogger(f"ray.{name}").setLevel(logging.ERROR)  # they tell of every upload
    # Ray would take these over what is given.
    given = {name: os.environ.pop(name, None) for name in ("RAY_API_SERVER_ADDRESS", "RAY_ADDRESS")}
    try:
        return Client(address)
    except ray.exceptions.AuthenticationError as error:  # there is no such file as was named
        lacking = error.message.partition(". ")[0]
        raise UserError(f"{lacking}; {TOKEN_ADVICE}") from None
    except (RuntimeError, KeyError, TypeError) as error:
        raise UserError(f"{address} is no dashboard of Ray: {_last_line(error)}") from error
    finally:
        os.environ.update({name: text for name, text in given.items() if text is not None})


class Gauges:
    """Numbers on the Prometheus endpoint of the node that this process is connected to.

    `names` are those there may be, each with what it says and the names of its tags. Ray passes
    numbers on every 10 s; one that is not told again is gone soon after.
    """

    def __init__(self, names: Mapping[str, tuple[str, tuple[str, ...]]]) -> None:
        from ray.util.metrics import Gauge

        self._gauges = {name: Gauge(name, says, tags) for name, (says, tags) in names.items()}

    def set(self, name: str, tags: Mapping[str, str], value: float) -> None:
        """Tell a number."""
        self._gauges[name].set(value, tags={key: str(text) for key, text in tags.items()})
