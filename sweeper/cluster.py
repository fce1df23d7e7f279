"""Slots on Ray: the only file that imports ray.

A slot is a persistent actor that holds the CPUs and GPUs of one run and takes run after run; a
packing slot holds CPUs alone. On one node the actor's own resources do what a placement group
would; a slot of several nodes is a group with an actor on each, the first of which leads
(sweeper/gang.py). Slots end with the driver; their runs end with them (sweeper/guard.py). What
the driver does with them is in sweeper/slots.py.
"""

from __future__ import annotations

import contextlib
import logging
import os
import secrets
import signal
import socket
from collections.abc import Collection, Iterator, Mapping, Sequence
from concurrent.futures import Future
from concurrent.futures import wait as wait_for_futures
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
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

from sweeper.address import CONNECT_SECONDS, host_and_port, why_silent
from sweeper.capacity import ACCELERATOR, Demand, Node
from sweeper.errors import UnreachableError, UserError
from sweeper.gang import Gang, MemberLostError
from sweeper.launch import LaunchRequest, RunningAttempt
from sweeper.layout import SweepDir
from sweeper.shipping import Scratch
from sweeper.slots import Pool, Slot, SlotDiedError, SlotFacts, conclude, settle_first
from sweeper.spec import SweepSpec
from sweeper.standby import Standby

# A slot answers calls while its run is at work.
SLOT_THREADS = 8
CALL_SECONDS = 30.0
JOB_ANSWER_SECONDS = 300.0
# How long the calls to a slot that is closed may take to say so, before Ray is left.
CLOSE_SECONDS = 1.0
# How long a driver does without its cluster's head before Ray ends it; Ray's own default is 60 s.
HEAD_LOST_NAME, HEAD_LOST_SECONDS = "RAY_gcs_rpc_server_reconnect_timeout_s", 10
TOKEN_ADVICE = (
    "take the head node's (`ray get-auth-token` there) and give it as RAY_AUTH_TOKEN, or in a file "
    "by RAY_AUTH_TOKEN_PATH or at ~/.ray/auth_token, with RAY_AUTH_MODE=token"
)


@dataclass(frozen=True, kw_only=True)
class ClusterOptions:
    """Which cluster to use: a running one by its address, else one started on this machine.

    `num_cpus` and `num_gpus` size the local one; by default it has what the machine has.
    """

    address: str | None = None
    num_cpus: int | None = None
    num_gpus: int | None = None


class SlotActor(Scratch):
    """Runs in a Ray worker on the slot's node; one run at a time. With peers it leads them."""

    def __init__(self, peers: Sequence[Any] = ()) -> None:
        super().__init__()
        self._actors = peers
        self._peers: list[_Peer] = []
        self._gpus: tuple[str, ...] = ()
        self._running: RunningAttempt | Gang | None = None
        self._standby = Standby()

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

    def ping(self) -> None:
        """Be there to be asked."""

    def run(self, request: LaunchRequest, gpus: tuple[str, ...]) -> str | None:
        """Launch the attempt and return when nothing of it runs any more; why it was ended as hung.

        That is None where it was not.
        """
        if self._peers:
            address = ray.util.get_node_ip_address()
            self._running = Gang(request, self._gpus, self._peers, address, self._standby)
        else:
            self._running = RunningAttempt(request, gpus, self._standby)
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
            lost = _says_node_died(error) or _is_gone(self.node)
            raise MemberLostError(_last_line(error), self.node, lost) from None


class _Remote:
    """The process of a slot, as the driver reaches it (sweeper/slots.py)."""

    def __init__(self, actor: Any, peers: Sequence[Any] = (), group: Any = None) -> None:
        self._actor = actor
        self._peers = peers
        self._group = group

    def call(self, method: str, *arguments: object) -> Future[Any]:
        answer: Future[Any] = Future()
        called = getattr(self._actor, method).remote(*arguments).future()
        called.add_done_callback(partial(_pass_on, answer))
        return answer

    def tell(self, method: str) -> None:
        getattr(self._actor, method).remote()

    def end(self) -> None:
        for actor in (self._actor, *self._peers):
            with contextlib.suppress(ray.exceptions.RayError):
                ray.kill(actor)
        if self._group is not None:
            with contextlib.suppress(ray.exceptions.RayError):
                remove_placement_group(self._group)


def _pass_on(answer: Future[Any], called: Future[Any]) -> None:
    """Give on what a call came to, its failure in words that need no Ray."""
    error = called.exception()
    if error is None:
        conclude(answer, called.result())
    elif not isinstance(error, ray.exceptions.RayTaskError):
        conclude(answer, SlotDiedError(_last_line(error), node_died=_says_node_died(error)))
    elif isinstance(error.cause, OSError | MemberLostError):
        conclude(answer, error.cause)
    else:
        conclude(answer, OSError(f"{type(error.cause).__name__}: {error.cause}"))


@dataclass(frozen=True)
class _Opener:
    """Begins slots of one kind; each says whether it sees the file of the driver's `nonce`."""

    demand: Demand
    nonce: tuple[str, str]  # the file and its content

    def __call__(self, off: Collection[str]) -> Slot:
        """A slot off these nodes, which waits for its place."""
        amounts, span = self.demand.amounts, self.demand.span
        remote = ray.remote(
            num_cpus=amounts.get("CPU", 0),
            num_gpus=amounts.get("GPU", 0),
            accelerator_type=self.demand.accelerator,
            max_concurrency=SLOT_THREADS,
            max_restarts=0,
        )(SlotActor)
        reached = self._lead(remote, off) if span > 1 else _Remote(_alone(remote, off))
        return Slot(reached, opening=reached.call("describe", *self.nonce))

    def _lead(self, remote: Any, off: Collection[str]) -> _Remote:
        """A slot of several nodes: it gets all its places at once, or waits for them."""
        span = self.demand.span
        bundle: dict[str, float] = dict(self.demand.amounts)
        if self.demand.accelerator is not None:
            # As Ray's own option asks for.
            bundle[f"{ACCELERATOR}{self.demand.accelerator}"] = 0.001
        group = placement_group(
            [bundle] * span,
            strategy="STRICT_SPREAD",
            bundle_label_selector=[{"ray.io/node-id": f"!in({','.join(off)})"}] * span
            if off
            else None,
        )
        places = [PlacementGroupSchedulingStrategy(group, index) for index in range(span)]
        peers = [remote.options(scheduling_strategy=place).remote() for place in places[1:]]
        return _Remote(remote.options(scheduling_strategy=places[0]).remote(peers), peers, group)


def _alone(remote: Any, off: Collection[str]) -> Any:
    """The actor of a slot of one node."""
    if not off:
        return remote.remote()
    strategy = NodeLabelSchedulingStrategy(hard={"ray.io/node-id": NotIn(*off)})
    return remote.options(scheduling_strategy=strategy).remote()


class Cluster:
    """A connection to Ray with the slots of one sweep; use as a context manager.

    `runs` are the slots that hold a run's GPUs; `packing` those of the spec's [packing], else the
    same.
    """

    def __init__(self, spec: SweepSpec, options: ClusterOptions, sweep: SweepDir) -> None:
        self._options = options
        self._sweep = sweep
        self._nonce = secrets.token_hex(16)
        self.runs = self._pool(Demand.of_run(spec.resources))
        self.packing = self.runs
        if spec.packing is not None:
            self.packing = self._pool(Demand.of_packing(spec.packing))
            self.packing.quarantined = self.runs.quarantined

    def _pool(self, demand: Demand) -> Pool:
        opener = _Opener(demand, (str(self._sweep.nonce), self._nonce))
        return Pool(demand, begin=opener, look=_living_nodes)

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
        running = [slot.running for slot in self.slots if slot.running is not None]
        for slot in self.slots:
            slot.close()
        # Threads that wait for a slot's answer must not be left waiting in a Ray that is gone.
        wait_for_futures(running, CLOSE_SECONDS)
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

    def release(self, node: str) -> str:
        """Let a node take runs again that was in quarantine. Returns its host's name."""
        return self.quarantined.pop(node)

    def wait(self, seconds: float) -> list[Slot]:
        """The slots whose runs have ended; as `settle_first` has it."""
        return settle_first(self.pools, seconds)

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
        os.environ.setdefault(HEAD_LOST_NAME, str(HEAD_LOST_SECONDS))
        if options.num_cpus is not None or options.num_gpus is not None:
            raise UserError(f"--num-cpus and --num-gpus size a local cluster, not {address}")
        _check_answers(address)
        _check_token(address)
        try:
            ray.init(address, **quiet)
        except (ConnectionError, RuntimeError, ValueError, ray.exceptions.RayError) as error:
            raise UserError(f"no Ray cluster answers at {address}: {_last_line(error)}") from error


def _living_nodes() -> list[Node]:
    return [node for node in ray.nodes() if node["Alive"]]


def _is_gone(node: str) -> bool:
    return bool(node) and all(facts["NodeID"] != node for facts in _living_nodes())


def _says_node_died(error: BaseException) -> bool:
    return bool(getattr(error, "preempted", False)) or "node has died" in str(error)


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


def _check_token(address: str) -> None:
    """UserError when the cluster at host:port wants another token than there is here.

    Ray itself would warn of it for 20 s and then say that nothing answers.
    """
    import grpc
    from ray._private.grpc_utils import init_grpc_channel
    from ray.core.generated.gcs_service_pb2 import GetClusterIdRequest
    from ray.core.generated.gcs_service_pb2_grpc import NodeInfoGcsServiceStub

    place = host_and_port(address)
    if place is None or "://" in address:
        return
    try:
        with init_grpc_channel(address) as channel:
            NodeInfoGcsServiceStub(channel).GetClusterId(
                GetClusterIdRequest(), timeout=CONNECT_SECONDS
            )
    except ray.exceptions.AuthenticationError as error:
        raise UserError(f"{_what_lacks(error)}; {TOKEN_ADVICE}") from None
    except grpc.RpcError as error:
        if error.code() is grpc.StatusCode.UNAUTHENTICATED:
            raise UserError(f"{address} asks for a token, or for another; {TOKEN_ADVICE}") from None
        # Whatever else it is, Ray says when it is asked.


def _what_lacks(error: Any) -> str:
    """The token that was named and is not there, from Ray's long words."""
    return str(error.message).partition(". ")[0]


def _last_line(error: BaseException) -> str:
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

        def _raise_error(self, answer: Any) -> None:
            if answer.status_code == 404:
                # A head that was started again knows none of the jobs before.
                text = answer.text.rstrip(".")
                raise UserError(f"{address}: {text}; submit its sweep again, and it goes on")
            super()._raise_error(answer)

    _check_answers(address)
    sdk = "dashboard.modules"
    for name in (f"{sdk}.dashboard_sdk", f"{sdk}.job.sdk", "_private.runtime_env.packaging"):
        logging.getLogger(f"ray.{name}").setLevel(logging.ERROR)  # they tell of every upload
    # Ray would take these over what is given.
    given = {name: os.environ.pop(name, None) for name in ("RAY_API_SERVER_ADDRESS", "RAY_ADDRESS")}
    try:
        return Client(address)
    except ray.exceptions.AuthenticationError as error:  # there is no such file as was named
        raise UserError(f"{_what_lacks(error)}; {TOKEN_ADVICE}") from None
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
