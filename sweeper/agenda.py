"""What waits for a slot, and in which order; read anew from the ledger and the directories."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

from sweeper.judge import next_stage
from sweeper.layout import AttemptDir, SweepDir
from sweeper.ledger import AttemptRow, AttemptState, Ledger, RunRow
from sweeper.stages import Stage


@dataclass(frozen=True, kw_only=True)
class Job:
    """A run, or the next stage of an attempt at it that has begun."""

    run: RunRow
    stage: Stage
    attempt: AttemptRow | None = None


def waiting_jobs(
    ledger: Ledger, sweep: SweepDir, *, at_work: Collection[int], first: Stage
) -> list[Job]:
    """All that could be launched now: what has begun before what has not, in launch order.

    `at_work` are the runs in a slot; a run that has not begun begins with the stage `first`.
    """
    begun = {row.run: row for row in ledger.attempts() if row.state is AttemptState.LAUNCHED}
    left = [run for run in ledger.runs() if not run.state.over and run.id not in at_work]
    jobs = []
    for run in left:
        attempt = begun.get(run.id)
        if attempt is not None:
            stage = next_stage(AttemptDir(sweep.path / attempt.path))
            jobs.append(Job(run=run, stage=stage, attempt=attempt))
    return jobs + [Job(run=run, stage=first) for run in left if run.id not in begun]
