"""Which nodes are at fault for what fails on them, by how everything of this session has ended."""

from __future__ import annotations

from collections import defaultdict, deque
from dataclasses import dataclass

from sweeper.policy import COUNTED
from sweeper.rows import AttemptState

# So many failures in a row may be the node's.
NODE_FAILURES = 2


@dataclass(frozen=True, kw_only=True)
class End:
    """How an attempt at a run of a trial ended on a node."""

    trial: int
    state: AttemptState
    message: str | None = None


class Suspects:
    """What is known of the nodes; a long sweep is as quick to judge as a short one.

    A node is at fault when the latest NODE_FAILURES ends on it are failures that count, and it is
    not the trial that fails. The trial fails where it has failed on another node too and has never
    finished; and where all the node's failures are of one trial that has never finished, nobody
    can say yet. So a node that was taken for bad may be cleared later, by an end elsewhere.
    """

    def __init__(self) -> None:
        self._ends: defaultdict[str, deque[End]] = defaultdict(lambda: deque(maxlen=NODE_FAILURES))
        self._failed: defaultdict[int, set[str]] = defaultdict(set)  # trial -> nodes
        self._finished: set[int] = set()  # trials

    def note(self, node: str, end: End) -> None:
        """Take in one more end."""
        self._ends[node].append(end)
        if end.state in COUNTED:
            self._failed[end.trial].add(node)
        elif end.state is AttemptState.FINISHED:
            self._finished.add(end.trial)

    def at_fault(self) -> set[str]:
        """The nodes that are to take no more runs, as far as is known today."""
        return {node for node, ends in self._ends.items() if self._is_at_fault(node, ends)}

    def why(self, node: str) -> str:
        """The reason, as a sentence."""
        return f"the last {NODE_FAILURES} on it failed; the latest: {self._ends[node][-1].message}"

    def _is_at_fault(self, node: str, ends: deque[End]) -> bool:
        if len(ends) < NODE_FAILURES or not all(self._may_be_nodes(node, end) for end in ends):
            return False
        trials = {end.trial for end in ends}
        return len(trials) > 1 or not trials.isdisjoint(self._finished)

    def _may_be_nodes(self, node: str, end: End) -> bool:
        """Whether a failure can be put down to the node that it was on."""
        if end.state not in COUNTED:
            return False
        return end.trial in self._finished or self._failed[end.trial] <= {node}
