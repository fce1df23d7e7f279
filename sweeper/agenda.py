"""What waits for a slot, and in which order; in memory: a long sweep is as quick as a short one.

It is filled from the ledger once; after that the loop says what has been launched and what ended.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Collection
from dataclasses import dataclass, field, replace

from sweeper.judge import next_stage
from sweeper.layout import AttemptDir, SweepDir
from sweeper.ledger import Ledger
from sweeper.rows import AttemptRow, AttemptState, RunRow, RunState
from sweeper.stages import Stage

Place = tuple[str, ...]  # the nodes of a slot


@dataclass(frozen=True, kw_only=True)
class Job:
    """A run, or the next stage of an attempt at it that has begun.

    It is not launched before the monotonic clock says `not_before`, nor on a node of `avoid` while
    there are others.
    """

    run: RunRow
    stage: Stage
    attempt: AttemptRow | None = None
    not_before: float = -math.inf
    avoid: frozenset[str] = frozenset()

    @property
    def order(self) -> tuple[bool, int]:
        """What has begun goes before what has not, else in launch order."""
        return self.attempt is None, self.run.id


@dataclass(eq=False)
class Agenda:
    """The runs of a sweep that are not over; a run that has not begun begins with stage `first`."""

    sweep: SweepDir
    first: Stage
    runs: dict[int, RunRow]  # all that are not over
    attempts: dict[int, int]  # run -> number of its latest attempt
    _fresh: list[int] = field(default_factory=list)  # a heap of runs that nothing is special about
    _special: dict[int, Job] = field(default_factory=dict)  # by run

    @classmethod
    def of(cls, ledger: Ledger, sweep: SweepDir, first: Stage) -> Agenda:
        """All that is left to do, as the ledger has it; nothing is at work."""
        runs = {run.id: run for run in ledger.runs() if not run.state.over}
        agenda = cls(sweep, first, runs, ledger.attempt_numbers())
        begun = {row.run: row for row in ledger.attempts(state=AttemptState.LAUNCHED)}
        for run in runs.values():
            agenda.add(run.id, attempt=begun.get(run.id))
        return agenda

    def add(
        self,
        run: int,
        *,
        attempt: AttemptRow | None = None,
        not_before: float = -math.inf,
        avoid: Collection[str] = (),
    ) -> None:
        """Let a run wait for a slot, from its beginning or for the next stage of its attempt."""
        row = self.runs[run] = replace(self.runs[run], state=RunState.PENDING)
        stage = self.first
        if attempt is not None:
            stage = next_stage(AttemptDir(self.sweep.path / attempt.path))
        job = Job(
            run=row, stage=stage, attempt=attempt, not_before=not_before, avoid=frozenset(avoid)
        )
        if job == Job(run=row, stage=self.first):
            heapq.heappush(self._fresh, run)
        else:
            self._special[run] = job

    def meet(self, run: RunRow) -> None:
        """Take up a run that has not been there before."""
        self.runs[run.id] = run
        self.add(run.id)

    def over(self, run: int) -> None:
        """Forget a run that nothing more will happen to."""
        del self.runs[run]

    @property
    def done(self) -> bool:
        """Whether every run is over."""
        return not self.runs

    def waiting(self, in_slot: bool) -> int:
        """How many jobs wait for a slot of runs, or for one of packing."""
        special = sum(job.stage.in_slot is in_slot for job in self._special.values())
        return special + len(self._fresh) * (self.first.in_slot is in_slot)

    def delayed(self, now: float) -> int:
        """How many of them wait for a later time."""
        return sum(job.not_before > now for job in self._special.values())

    def take(
        self, *, in_slot: bool, place: Place, places: Collection[Place], now: float
    ) -> Job | None:
        """The first job for a slot of this kind at a place, which waits no more; None without one.

        `places` are all at which there are slots of the kind: a job avoids a node only where there
        is a place without one that it avoids.
        """
        jobs = [
            job
            for job in self._special.values()
            if job.stage.in_slot is in_slot
            and job.not_before <= now
            and (
                job.avoid.isdisjoint(place)
                or not any(job.avoid.isdisjoint(other) for other in places)
            )
        ]
        if self._fresh and self.first.in_slot is in_slot:
            jobs.append(Job(run=self.runs[self._fresh[0]], stage=self.first))
        if not jobs:
            return None
        job = min(jobs, key=lambda job: job.order)
        if self._special.pop(job.run.id, None) is None:
            heapq.heappop(self._fresh)
        self.attempts[job.run.id] = self.attempts.get(job.run.id, 0) + (job.attempt is None)
        return job
