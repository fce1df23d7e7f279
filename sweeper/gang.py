"""One run on several nodes: a launch on each, of which all end well or all end.

The member on the first node leads: it launches its own share, has the others launch theirs, and
ends all of them when one has ended badly, since its peers would wait for it for ever. What came
of the whole it writes as the attempt's exit file, when every member's own is there. No ray: the
other members are reached by a `Peer`.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import queue
import re
import secrets
import socket
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from sweeper.failure import find_failure
from sweeper.launch import LaunchRequest, Rendezvous, RunningAttempt, write_json
from sweeper.layout import AttemptDir
from sweeper.shipping import RESUMED, Shipment
from sweeper.standby import Standby

STOP_AGAIN_SECONDS = 1.0
# Beyond the grace, what a member's guard may take to say that it is over.
KILL_MARGIN_SECONDS = 5.0
# What comes home of a member that does not see the leader's disk; the rest is rank 0's to write.
PEER_FILES = ("logs/*", "exit*.json", "request*.json", "events.jsonl")
# What a rank says that died of another one's death.
SECONDARY = re.compile(
    r"(?:closed|reset) by (?:the )?(?:remote )?peer|ncclRemoteError|remote process exited|"
    r"Broken pipe|recvValue failed|DistStoreError|Socket Timeout",
    re.IGNORECASE,
)


class MemberLostError(Exception):
    """A member's slot has died; `node` is Ray's name of where it was, `node_lost` if that died."""

    def __init__(self, message: str, node: str = "", node_lost: bool = False) -> None:
        super().__init__(message, node, node_lost)
        self.message, self.node, self.node_lost = message, node, node_lost

    def __str__(self) -> str:
        return self.message


class Peer(Protocol):
    """A slot on another node. All but `tell` block, and raise MemberLostError where it has died."""

    node: str
    gpus: tuple[str, ...]

    def call(self, method: str, *arguments: object) -> Any:
        """Have one of its short methods called; OSError where it does not answer."""

    def run(self, request: LaunchRequest) -> str | None:
        """Have it launch its share and wait for the end; why it was taken for hung."""

    def tell(self, method: str) -> None:
        """Have a method called, without waiting for it."""


@dataclass(frozen=True, kw_only=True)
class End:
    """How a member ended: by its exit file, or by what kept it from writing one."""

    node: int
    facts: dict[str, Any] | None = None
    hung: str | None = None
    error: Exception | None = None

    @property
    def well(self) -> bool:
        return self.facts is not None and self.facts["exit_code"] == 0 and self.error is None


class Gang:
    """A run at work on this host and on those of its peers; used as a RunningAttempt is.

    `wait` may be called from one thread while `stop` and `kill` are called from others.
    """

    def __init__(
        self,
        request: LaunchRequest,
        gpus: Sequence[str],
        peers: Sequence[Peer],
        address: str,
        standby: Standby | None = None,
    ) -> None:
        """Launch on every node. OSError or MemberLostError where one cannot; then none runs."""
        self._attempt = request.attempt
        self._grace = request.grace_seconds
        self._stopping = threading.Event()
        self._ends: queue.Queue[End] = queue.Queue()
        shares = share(request, 1 + len(peers), address, free_port())
        # First here: the files of a script are placed where the others may see them.
        self._own = RunningAttempt(shares[0], gpus, standby)
        self._members: list[_Member] = []
        try:
            for peer, its in zip(peers, shares[1:], strict=True):
                self._members.append(_Member(peer, its))
        except BaseException:
            self._own.kill()
            self._own.wait()
            raise

    def wait(self) -> str | None:
        """Return once nothing of the run is left on any node; why it was ended as hung, if it was.

        Raises MemberLostError when a member died, OSError when one could not be launched.
        """
        for node in range(1 + len(self._members)):
            threading.Thread(target=self._attend, args=(node,), daemon=True).start()
        ends: list[End] = []
        kill_at: float | None = None
        while len(ends) <= len(self._members):
            with contextlib.suppress(queue.Empty):
                ends.append(self._ends.get(timeout=STOP_AGAIN_SECONDS))
            if len(ends) > len(self._members):
                break
            if self._stopping.is_set() or not all(end.well for end in ends):
                # Said again and again: the first word may come before a member has begun.
                self._tell("stop")
                now = time.monotonic()
                kill_at = kill_at or now + self._grace + KILL_MARGIN_SECONDS
                if now >= kill_at:
                    self._tell("kill")
        for error in (end.error for end in ends):
            if error is not None:
                raise error
        self._conclude(ends)
        return next((end.hung for end in ends if end.hung is not None), None)

    def stop(self) -> None:
        """Ask every member to end itself; what is left after the grace is killed."""
        self._stopping.set()
        self._tell("stop")

    def kill(self) -> None:
        """End every member at once."""
        self._stopping.set()
        self._tell("kill")

    def _tell(self, word: str) -> None:
        self._own.stop() if word == "stop" else self._own.kill()
        for member in self._members:
            member.peer.tell(word)

    def _attend(self, node: int) -> None:
        """Wait for a member's end, in a thread of its own."""
        try:
            hung = self._own.wait() if node == 0 else self._members[node - 1].wait()
            facts = read_exit(self._attempt.on(node))
            self._ends.put(End(node=node, hung=hung, facts=facts))
        except Exception as error:
            self._ends.put(End(node=node, error=error))

    def _conclude(self, ends: Sequence[End]) -> None:
        """Write how the whole has ended; not where a member left no word, killed with its guard."""
        if all(end.facts is not None for end in ends):
            names = [None, *(member.peer.node for member in self._members)]
            facts = combine(self._attempt, ends)
            write_json(self._attempt.exit, facts | {"blamed": names[facts["node"]]})


class _Member:
    """Another node's share of a run."""

    def __init__(self, peer: Peer, request: LaunchRequest) -> None:
        self.peer = peer
        self._shipment: Shipment | None = None
        attempt = request.attempt
        if _sees(peer, attempt.path):
            # The files of a script are there, placed by the leader.
            code = None if request.script is not None else request.code
            self._request = dataclasses.replace(request, code=code)
            return
        self._shipment = Shipment(attempt, peer.call, only=PEER_FILES)
        checkpoint = attempt.path / RESUMED
        files = {RESUMED: checkpoint} if checkpoint.is_file() else {}
        directory, code = self._shipment.begin(files), request.code
        if code is not None:
            code = self._shipment.send_code(code, request.files)
        self._request = dataclasses.replace(request, directory=directory, code=code, events_from=0)

    def wait(self) -> str | None:
        """Run it to its end, and bring home what is not there yet."""
        hung = self.peer.run(self._request)
        if self._shipment is not None:
            self._shipment.finish()
        return hung


def _sees(peer: Peer, directory: Path) -> bool:
    """Whether a peer sees this directory of the leader's."""
    probe, text = directory / f".{secrets.token_hex(8)}", secrets.token_hex(8)
    probe.write_text(text)
    try:
        return bool(peer.call("sees", str(probe), text))
    finally:
        probe.unlink(missing_ok=True)


def share(request: LaunchRequest, nodes: int, address: str, port: int) -> list[LaunchRequest]:
    """What each node launches of a run; they meet at the first one's address and port."""
    shares = []
    for node in range(nodes):
        meeting = Rendezvous(node=node, nodes=nodes, address=address, port=port)
        shares.append(
            dataclasses.replace(
                request,
                processes=request.processes // nodes,
                cpus=max(1, request.cpus // nodes),
                rendezvous=meeting,
                # Events are rank 0's to write: elsewhere silence is no sign of a hang.
                stall_seconds=request.stall_seconds if node == 0 else 0,
            )
        )
    return shares


def read_exit(attempt: AttemptDir) -> dict[str, Any] | None:
    """What a member's guard has said of its end; None where it has not."""
    try:
        facts = json.loads(attempt.exit.read_bytes())
        return facts if isinstance(facts["exit_code"], int) and "stop_reason" in facts else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def combine(attempt: AttemptDir, ends: Sequence[End]) -> dict[str, Any]:
    """How the whole ended, by its members' ends in the order of their coming.

    Well if all did; else as the first that ended badly by itself, those apart that died of
    another one's death.
    """
    bad = [end for end in ends if not end.well]
    alone = [end for end in bad if end.facts and end.facts["stop_reason"] is None]
    primary = [end for end in alone if not _is_secondary(attempt.on(end.node))]
    by_node = sorted(ends, key=lambda end: end.node)
    chosen = next(iter([*primary, *alone, *bad, *by_node]))
    assert chosen.facts is not None
    facts = [end.facts or {} for end in by_node]
    return chosen.facts | {
        "started": min(fact.get("started", 0.0) for fact in facts),
        "ended": max(fact.get("ended", 0.0) for fact in facts),
        "user_s": sum(fact.get("user_s", 0.0) for fact in facts),
        "system_s": sum(fact.get("system_s", 0.0) for fact in facts),
        "max_rss_kib": max(fact.get("max_rss_kib", 0) for fact in facts),
        "node": chosen.node,
    }


def _is_secondary(attempt: AttemptDir) -> bool:
    return SECONDARY.search(find_failure(attempt).exception or "") is not None


def blamed_node(attempt: AttemptDir) -> str | None:
    """Ray's name of the node whose member made the whole end badly; None where that is the first.

    Or where it cannot be known.
    """
    facts = read_exit(attempt) or {}
    return facts.get("blamed") if facts.get("exit_code") else None


def most_gangs(fits: Sequence[int], nodes: int) -> int:
    """How many gangs of `nodes` different nodes each there is room for.

    `fits` says how many members each node holds. A node has at most one member of a gang, so g
    gangs take at most g of any node's places.
    """
    found = 0
    while sum(min(fit, found + 1) for fit in fits) >= nodes * (found + 1):
        found += 1
    return found


def free_port() -> int:
    """A port of this host at which nobody listens just now."""
    with socket.socket() as server:
        server.bind(("", 0))
        return int(server.getsockname()[1])
