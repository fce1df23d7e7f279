"""What becomes of a run, and of a node, when an attempt has ended: pure, tested as a table.

| an attempt ended                       | counted | then                                          |
|----------------------------------------|---------|-----------------------------------------------|
| finished                               | –       | the run is finished                           |
| crashed, lost (its slot was killed),   | yes     | again after a pause, on another node if there |
| stalled (hung, and was killed)         |         | is one, until `max_attempts` have failed      |
| node lost or preempted                 | no      | again, at once, up to MAX_FREE times          |
| no space left on its disk              | no      | as above, but after a pause and elsewhere     |
| stopped                                | no      | again when the sweep goes on                  |
| pruned by a search                     | –       | the run is given up                           |
| settings, loss not finite, memory,     | –       | the run has failed: it would only fail again  |
| result broken, time over               |         |                                               |
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

from sweeper.rows import AttemptState, RunState, StageRow

# What may go better another time, and is the fault of the run or of its place.
COUNTED = frozenset({AttemptState.CRASHED, AttemptState.LOST, AttemptState.STALLED})
# What is the fault of neither.
FREE = frozenset({AttemptState.NODE_LOST, AttemptState.NO_SPACE})
# Nothing is for ever: so often a run of one session begins again free of charge.
MAX_FREE = 20
MAX_BACKOFF_SECONDS = 300.0


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """A run's next state; if it is tried again, after how long and whether elsewhere."""

    state: RunState
    wait_seconds: float = 0.0
    elsewhere: bool = False


def after_attempt(
    ends: Sequence[AttemptState], *, max_attempts: int, backoff_seconds: float = 0.0
) -> Verdict:
    """What becomes of a run, given how its attempts of this session ended, the latest last."""
    latest = ends[-1]
    if latest is AttemptState.FINISHED:
        return Verdict(state=RunState.FINISHED)
    if latest is AttemptState.STOPPED:
        return Verdict(state=RunState.PENDING)
    if latest is AttemptState.PRUNED:
        return Verdict(state=RunState.PRUNED)
    counted = sum(end in COUNTED for end in ends)
    if latest in COUNTED:
        more, before = counted < max_attempts, counted - 1
    else:
        free = sum(end in FREE for end in ends)
        more, before = latest in FREE and free <= MAX_FREE, free - 1
    if not more:
        return Verdict(state=RunState.FAILED)
    if latest is AttemptState.NODE_LOST:
        return Verdict(state=RunState.PENDING)
    wait = min(MAX_BACKOFF_SECONDS, backoff_seconds * 2**before)
    return Verdict(state=RunState.PENDING, wait_seconds=wait, elsewhere=True)


def may_quarantine(
    node: str, nodes: Collection[str], quarantined: Mapping[str, object], needed: int = 1
) -> bool:
    """Whether a node can be spared: never where all would wait for ever for the nodes of a run."""
    left = set(nodes) - {node} - quarantined.keys()
    return node not in quarantined and len(left) >= needed


def seconds_left(limit: float | None, launches: Sequence[StageRow]) -> float | None:
    """What an attempt may still take, given its launches so far; None where there is no limit.

    Its stages at work count together, not what lies between them.
    """
    return None if limit is None else limit - sum(row.seconds for row in launches)
