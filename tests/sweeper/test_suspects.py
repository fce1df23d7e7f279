"""Which nodes are at fault: a table of what ended where."""

from __future__ import annotations

import random
from collections.abc import Sequence

import pytest

from sweeper.policy import COUNTED
from sweeper.rows import AttemptState
from sweeper.suspects import End, Suspects

FINISHED, CRASHED, LOST = AttemptState.FINISHED, AttemptState.CRASHED, AttemptState.LOST
STALLED, STOPPED = AttemptState.STALLED, AttemptState.STOPPED
NO_SPACE, USER_ERROR = AttemptState.NO_SPACE, AttemptState.USER_ERROR
NONFINITE = AttemptState.NONFINITE

Ends = Sequence[tuple[str, int, AttemptState]]  # node, trial, how it ended


def seen(ends: Ends) -> Suspects:
    suspects = Suspects()
    for number, (node, trial, state) in enumerate(ends):
        suspects.note(node, End(trial=trial, state=state, message=f"end {number}"))
    return suspects


@pytest.mark.parametrize(
    ("ends", "fault"),
    [
        ([], set()),
        ([("a", 1, CRASHED)], set()),
        # Different trials fail there: it is the node.
        ([("a", 1, CRASHED), ("a", 2, STALLED)], {"a"}),
        ([("a", 3, FINISHED), ("a", 1, LOST), ("a", 2, CRASHED)], {"a"}),
        ([("a", 1, CRASHED), ("a", 3, FINISHED), ("a", 2, CRASHED)], set()),
        ([("a", 1, CRASHED), ("a", 2, CRASHED), ("a", 3, FINISHED)], set()),
        # Seeds of one trial: it may be the trial, until it has finished somewhere.
        ([("a", 1, CRASHED), ("a", 1, CRASHED)], set()),
        ([("a", 1, CRASHED), ("a", 1, CRASHED), ("b", 1, FINISHED)], {"a"}),
        ([("b", 1, FINISHED), ("a", 1, CRASHED), ("a", 1, CRASHED)], {"a"}),
        # It fails wherever it is tried, so no node is to blame for it; nor for two such.
        ([("a", 1, CRASHED), ("b", 1, CRASHED), ("a", 1, CRASHED), ("b", 1, CRASHED)], set()),
        ([("a", 1, CRASHED), ("a", 2, CRASHED), ("b", 1, CRASHED)], set()),
        ([("a", 1, CRASHED), ("b", 1, CRASHED), ("a", 2, CRASHED)], set()),
        # Two bad nodes and a good one.
        (
            [
                *[("a", 1, CRASHED), ("b", 1, CRASHED), ("c", 1, FINISHED)],
                *[("a", 1, CRASHED), ("b", 1, CRASHED)],
            ],
            {"a", "b"},
        ),
        # Settings, a loss that is no number, a full disk: no fault of the node's.
        ([("a", 1, USER_ERROR), ("a", 2, USER_ERROR)], set()),
        ([("a", 1, NONFINITE), ("a", 2, CRASHED)], set()),
        ([("a", 1, NO_SPACE), ("a", 2, NO_SPACE)], set()),
        ([("a", 1, STOPPED), ("a", 2, STOPPED)], set()),
    ],
)
def test_a_node_is_at_fault_for_what_works_elsewhere(ends: Ends, fault: set[str]) -> None:
    assert seen(ends).at_fault() == fault


def test_the_reason_is_the_nodes_own() -> None:
    suspects = seen([("a", 1, CRASHED), ("a", 1, CRASHED), ("b", 1, FINISHED)])
    assert suspects.why("a") == "the last 2 on it failed; the latest: end 1"


def test_one_bad_trial_never_costs_a_node() -> None:
    """Of three trials on three nodes one fails always, in whatever order things end."""
    chance = random.Random(5)
    for _ in range(200):
        suspects = Suspects()
        for _ in range(30):
            trial = chance.randrange(3)
            state = chance.choice(sorted(COUNTED)) if trial == 0 else FINISHED
            suspects.note(chance.choice("abc"), End(trial=trial, state=state))
            assert suspects.at_fault() == set()
