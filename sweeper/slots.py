"""The slots of a sweep as its driver sees them: what each works on, which have died; no ray.

A slot works in a process of its own, its `Remote`; what that is made of only sweeper/cluster.py
knows. All of this is used from one thread. What takes time because a slot has another disk is
done in a thread of that slot's run, so that a node that does not answer keeps nobody waiting.
"""

from __future__ import annotations

import contextlib
import dataclasses
import math
import sys
import threading
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, InvalidStateError
from concurrent.futures import wait as wait_for_futures
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Protocol, TypeVar

from sweeper.capacity import Demand, Node
from sweeper.disk import NO_ROOM
from sweeper.errors import UserError
from sweeper.gang import MemberLostError, blamed_node
from sweeper.launch import LaunchRequest
from sweeper.layout import AttemptDir
from sweeper.shipping import Shipment

T = TypeVar("T")
# A slot that does not answer for so long, though its node is said to live, is given up; and how
# often one at work is asked. Ray itself takes a minute to tell that a node is dead.
ANSWER_SECONDS = 120.0
ASK_SECONDS = 15.0
FOLLOW_SECONDS = 0.5
ROOM_SECONDS = 0.5  # how often room is looked for, for files that are to come home
NOTHING_SECONDS = 0.05  # how long to wait where there is nothing to wait for
# So many slots in a row that could not begin are no accident of one host.
MAX_FAILED_OPENINGS = 3


class SlotDiedError(Exception):
    """The process of a slot is gone; `node_died` where that is known to be why."""

    def __init__(self, message: str, *, node_died: bool = False) -> None:
        super().__init__(message)
        self.node_died = node_died


class Remote(Protocol):
    """The process of a slot. It may be called from any thread; nothing here waits."""

    def call(self, method: str, *arguments: object) -> Future[Any]:
        """Have a method called. What fails comes as OSError, MemberLostError or SlotDiedError."""

    def tell(self, method: str) -> None:
        """Have a method called whose answer is of no interest."""

    def end(self) -> None:
        """End it, with all that it runs; with its peers, where there are any."""


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


@dataclass(eq=False)
class Slot:
    """The driver's end of one slot. `facts` is None until a place has been found for it."""

    remote: Remote
    opening: Future[SlotFacts]
    facts: SlotFacts | None = None
    attempt: AttemptDir | None = None  # that it works on, or has
    running: Future[str | None] | None = None  # ends as the run does; why that was ended as hung
    hung: str | None = None  # why the last run was taken for hung
    blamed: str | None = None  # the node at fault for the last end, where it is known
    failure: str | None = None  # why the last run could not be launched, or its slot was lost
    died: bool = False
    node_lost: bool = False  # it died with its whole node, or that of a peer
    waits: str | None = None  # for what the files of a run that is over wait, on their way home
    _hurried: threading.Event = field(default_factory=threading.Event)
    _given_up: threading.Event = field(default_factory=threading.Event)
    _asked: Future[Any] | None = None
    _asked_at: float = -math.inf  # by the monotonic clock

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

    @property
    def leaves_orphan(self) -> bool:
        """Whether it has died and its last run may yet end well, where the driver sees it."""
        facts = self.facts
        return self.died and facts is not None and facts.sees_driver_disk and not facts.peers

    def shares_gpus(self, other: Slot) -> bool:
        """Whether it holds GPUs that another holds, or has held."""
        mine, its = (set() if x.facts is None else set(x.facts.gpus) for x in (self, other))
        return self.node == other.node and not mine.isdisjoint(its)

    def start(
        self, request: LaunchRequest, attempt: AttemptDir, files: Mapping[str, Path] | None = None
    ) -> None:
        """Begin a run or a stage of it; its files appear in the attempt's directory as it works.

        `files` are what else it needs, by their names in its directory; for a slot with a disk of
        its own. Raises nothing: what fails is the run's end.
        """
        assert self.idle
        assert self.facts is not None
        self.failure, self.hung, self.blamed = None, None, None
        self.attempt = attempt
        self._hurried.clear()
        try:
            attempt.path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            self.running = Future()
            self.running.set_exception(error)
            return
        if self.facts.sees_driver_disk:
            request = dataclasses.replace(request, directory=str(attempt.path))
            self.running = self.remote.call("run", request, self.facts.gpus)
        else:
            run = partial(self._run_far, self.facts.gpus, request, attempt, files or {})
            self.running = in_thread(run)

    def stop(self) -> None:
        """Ask the run at work, if any, to end itself within its grace."""
        self.remote.tell("stop")

    def kill(self) -> None:
        """End the run at work, if any, at once; files that wait for room are given up."""
        self._hurried.set()
        self.remote.tell("kill")

    def check(self, now: float, patience: float = ANSWER_SECONDS) -> None:
        """Ask now and then whether it lives; give it up where that has had no answer for long."""
        if self.running is None or self.running.done():
            self._asked = None
        elif self._asked is None or self._asked.done():
            if now >= self._asked_at + ASK_SECONDS:
                self._asked_at, self._asked = now, self.remote.call("ping")
        elif now >= self._asked_at + patience:
            self.give_up(f"it has not answered for {now - self._asked_at:.0f} s")

    def give_up(self, why: str) -> None:
        """End it and its run, whether or not that can be seen to have worked."""
        self._given_up.set()
        self.close()
        if self.running is not None:
            conclude(self.running, SlotDiedError(why))

    def close(self) -> None:
        self.remote.end()

    def _run_far(
        self,
        gpus: tuple[str, ...],
        request: LaunchRequest,
        attempt: AttemptDir,
        files: Mapping[str, Path],
    ) -> str | None:
        """Have a run made on another disk, from its first file there to its last one here."""
        shipment = Shipment(attempt, self._answer, follow_logs=request.script is not None)
        directory, code = shipment.begin(files), request.code
        if code is not None:
            code = shipment.send_code(code, request.files)
        # On its own disk the stage's events are the first.
        request = dataclasses.replace(request, directory=directory, code=code, events_from=0)
        running = self.remote.call("run", request, gpus)
        while not wait_for_futures([running], FOLLOW_SECONDS).done:
            with contextlib.suppress(OSError, SlotDiedError):
                shipment.follow()
        try:
            hung: str | None = running.result()
        except MemberLostError:
            # The leader is well, and may hold what the others have brought to it.
            with contextlib.suppress(OSError, SlotDiedError):
                shipment.finish()
            raise
        self._bring_home(shipment)
        return hung

    def _bring_home(self, shipment: Shipment) -> None:
        """Fetch all that the run has left; where the driver's disk is full, once there is room."""
        try:
            while True:
                try:
                    return shipment.finish()
                except OSError as error:
                    why = f"its files cannot be brought home: {error}"
                    if error.errno not in NO_ROOM or self._hurried.is_set():
                        raise OSError(why) from error
                    self.waits = f"a run is over, {why}; make room there"
                    self._hurried.wait(ROOM_SECONDS)
        finally:
            self.waits = None

    def _answer(self, method: str, *arguments: object) -> Any:
        if self._given_up.is_set():
            raise SlotDiedError("it was given up")
        try:
            return self.remote.call(method, *arguments).result(ANSWER_SECONDS)
        except TimeoutError:
            raise SlotDiedError(f"it has not answered for {ANSWER_SECONDS:g} s") from None


def in_thread(work: Callable[[], T]) -> Future[T]:
    """Do something in a thread of its own, which does not hold up the process's end."""
    future: Future[T] = Future()

    def do() -> None:
        try:
            conclude(future, work())
        except BaseException as error:
            conclude(future, error)

    threading.Thread(target=do, daemon=True).start()
    return future


def conclude(future: Future[T], end: T | BaseException) -> None:
    """Set what a future has come to, unless that is known by now: its slot was given up."""
    with contextlib.suppress(InvalidStateError):
        if isinstance(end, BaseException):
            future.set_exception(end)
        else:
            future.set_result(end)


@dataclass(eq=False)
class Pool:
    """The slots of one kind: how many there may be, and which there are."""

    demand: Demand  # of each
    begin: Callable[[Collection[str]], Slot]  # a new slot, off the nodes that are named
    look: Callable[[], Sequence[Node]]  # the living nodes of the cluster
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
    def places(self) -> set[tuple[str, ...]]:
        """Where there are slots: the nodes of each."""
        return {slot.nodes for slot in self.slots if slot.facts is not None}

    def capacity(self) -> int:
        """How many slots the cluster holds at once, were nothing else on it.

        Raises UserError when there is room for none.
        """
        nodes = self.look()
        alive = frozenset(node["NodeID"] for node in nodes)
        if alive != self._alive:
            # What could not begin before may begin on the nodes of today.
            self._alive, self._works, self._failed_openings = alive, None, 0
        count = self.demand.room(nodes, self.quarantined)
        return count if self._works is None else min(count, self._works)

    def open(self, count: int) -> None:
        """Have `count` slots in all, or the most; they are idle once their places are found."""
        while len(self.slots) < min(count, self.most):
            self.slots.append(self.begin(self.quarantined))

    def shrink(self, count: int) -> None:
        """Give idle or waiting slots back until at most `count` are left."""
        spare = [slot for slot in self.slots if slot.running is None][: len(self.slots) - count]
        for slot in spare:
            self._close(slot)

    def leave(self, node: str) -> None:
        """Close the idle slots on a node."""
        for slot in [slot for slot in self.slots if node in slot.nodes and slot.running is None]:
            self._close(slot)

    def _close(self, slot: Slot) -> None:
        slot.close()
        self.slots.remove(slot)

    def settle(self, slot: Slot) -> bool:
        """Take in what has come of a slot's opening, or of its run; whether that was a run.

        A slot that has died is no longer in the pool then.
        """
        running, slot.running = slot.running, None
        try:
            if running is None:
                slot.facts, self._failed_openings = slot.opening.result(), 0
            else:
                slot.hung = running.result()
                if slot.facts is not None and slot.facts.peers and slot.attempt is not None:
                    slot.blamed = blamed_node(slot.attempt)
        except MemberLostError as error:
            slot.blamed = error.node or None
            self._lose(slot, error, error.node_lost)
        except SlotDiedError as error:
            self._lose(slot, error, error.node_died or self._has_lost(slot.node))
        except OSError as error:
            # The slot is well, the launch was not: no space left, or no such program.
            slot.failure = str(error)
            if running is None:
                self._lose(slot, error, node_lost=False)
        for node in self.quarantined.keys() & set(slot.nodes):
            self.leave(node)
        return running is not None

    def _has_lost(self, node: str) -> bool:
        return bool(node) and all(facts["NodeID"] != node for facts in self.look())

    def _lose(self, slot: Slot, error: Exception, node_lost: bool) -> None:
        """Do without a slot that has died, or a member of it."""
        slot.died, slot.node_lost = True, node_lost
        slot.failure = f"its {'node' if node_lost else 'slot'} was lost: {error}"
        self._close(slot)
        if slot.facts is None:
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
                f"Ray cannot start a slot on this cluster: {error}. Its nodes need "
                "this project and Python environment, and room for one more process"
            ) from error


def settle_first(pools: Sequence[Pool], seconds: float) -> list[Slot]:
    """The slots whose runs have ended, as soon as there is one, at the latest after `seconds`.

    Their files are on the driver's disk by then, unless the slot has died. Raises UserError when
    no slot can begin on this cluster.
    """
    futures: dict[Future[Any], tuple[Pool, Slot]] = {}
    for pool in pools:
        for slot in pool.slots:
            future = slot.running if slot.facts is not None else slot.opening
            if future is not None:
                futures[future] = (pool, slot)
    if not futures:
        time.sleep(min(seconds, NOTHING_SECONDS))
    done = wait_for_futures(futures, seconds, FIRST_COMPLETED).done
    return [slot for future, (pool, slot) in futures.items() if future in done if pool.settle(slot)]
