"""What becomes of a run when an attempt has ended: pure decisions, tested as a table."""

from __future__ import annotations

from collections.abc import Sequence

from sweeper.ledger import AttemptState, RunState, StageRow

# What may go better another time. Everything else would only fail again.
RETRIED = frozenset({AttemptState.CRASHED, AttemptState.LOST})


def after_attempt(ends: Sequence[AttemptState], *, max_attempts: int) -> RunState:
    """The run's next state, given how its attempts of this session ended, the latest last.

    A crashed or lost run is tried again until `max_attempts` have failed; a stopped one waits
    for the sweep to go on; one that failed by its own doing (bad settings, a loss that is no
    number, too little memory, a broken result, too slow) is over.
    """
    latest = ends[-1]
    if latest is AttemptState.FINISHED:
        return RunState.FINISHED
    if latest is AttemptState.STOPPED:
        return RunState.PENDING
    failures = sum(end in RETRIED for end in ends)
    return RunState.PENDING if latest in RETRIED and failures < max_attempts else RunState.FAILED


def seconds_left(limit: float | None, launches: Sequence[StageRow]) -> float | None:
    """What an attempt may still take, given its launches so far; None where there is no limit.

    Its stages at work count together, not what lies between them.
    """
    return None if limit is None else limit - sum(row.seconds for row in launches)
