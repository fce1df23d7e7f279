"""The sweep itself: fill the slots, end what is overdue, take in what ends; one thread.

Any process here may die at any moment. What the ledger says was launched and what lies in the
attempt's directory are enough to go on: a later session (sweeper/session.py) adopts
what finished, ends what still runs, and launches the rest.
"""

from __future__ import annotations

import sqlite3
import time
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

from sweeper.agenda import Agenda, Job
from sweeper.cluster import Cluster
from sweeper.contract import end_events
from sweeper.driver import Interrupts
from sweeper.errors import UserError
from sweeper.layout import AttemptDir, SweepDir
from sweeper.ledger import Ledger
from sweeper.reaping import Tag
from sweeper.room import Room
from sweeper.rows import AttemptState, StageRow
from sweeper.settle import ORPHAN_SECONDS, checkpoint_of
from sweeper.shipping import RESUMED
from sweeper.slots import ANSWER_SECONDS, Pool, Slot
from sweeper.snapshot import Snapshot
from sweeper.spec import SweepSpec
from sweeper.stages import Stage
from sweeper.telling import Teller
from sweeper.verdicts import Verdicts
from sweeper.work import STOP_MARGIN_SECONDS, Work

if TYPE_CHECKING:
    from sweeper.planner import Planner

POLL_SECONDS = 0.5
# How often the cluster is counted anew.
COUNT_SECONDS = 5.0
# How long to wait for another node when the last one that can hold a run is gone.
LOST_NODES_SECONDS = 900.0
# How long a slot may be silent whose run should be over: it is told to end it again and again.
KILLED_SECONDS = 10.0


@dataclass(eq=False)
class Loop:
    """One driver's work on a sweep, from a recovered ledger to nothing left to do."""

    spec: SweepSpec
    sweep: SweepDir
    ledger: Ledger
    cluster: Cluster
    teller: Teller
    interrupts: Interrupts
    session: str
    stop_seconds: float | None = None  # what there is after an interrupt; None: the runs' grace
    snapshot: Snapshot | None = None  # of the code; None where it is only on the nodes
    planner: Planner | None = None  # of a search, which asks for runs while it goes on
    _work: dict[Slot, Work] = field(default_factory=dict)
    _orphans: dict[Slot, float] = field(default_factory=dict)  # dead, at work -> until when
    _dead: set[int] = field(default_factory=set)
    _stop_by: float | None = None  # by the monotonic clock, after an interrupt
    _lost_since: float | None = None  # since when no node can hold a run
    _told: bool = False
    _next_count: float = 0.0

    def __post_init__(self) -> None:
        first = Stage.ALL if self.spec.packing is None else Stage.TRAIN
        self.agenda = Agenda.of(self.ledger, self.sweep, first)
        self.trials = {trial.number: trial for trial in self.ledger.trials()}
        self.uid = self.ledger.uid
        self.ledger.on_no_room = self._wait_for_room
        self._room = Room(self.sweep.path, self.spec.disk.reserve_bytes)
        self._verdicts = Verdicts(
            *(self.spec, self.ledger, self.cluster, self.teller, self.agenda, self._room),
            planner=self.planner,
        )

    def run(self) -> None:
        """Return when every run is over, or, after an interrupt, when nothing is at work."""
        self.cluster.runs.most = 0
        if self.agenda.attempts:
            # It has run before: where its cluster has just come back, the nodes will follow.
            self._count_again()
        else:
            self._count_slots()
        self.cluster.runs.open(self.cluster.runs.most)
        while self._goes_on():
            if not self.interrupts.count:
                self._plan()
                self._fill()
            for slot in self.cluster.wait(POLL_SECONDS):
                if slot.leaves_orphan:
                    self._orphans[slot] = time.monotonic() + ORPHAN_SECONDS
                else:
                    self._settle(slot)
            self._settle_orphans()
            for work in self._work.values():
                work.check_echo()
                self._prune(work)
            self._end_overdue()
            self.teller.look(self.cluster, self._work, self.agenda)
        if self.interrupts.count:
            self.ledger.pause()
        self.teller.look(self.cluster, self._work, self.agenda, now=True)

    def _goes_on(self) -> bool:
        # An orphan stays open in the ledger, for the next driver to look at.
        at_work = bool(self._work.keys() - self._orphans.keys())
        if self.interrupts.count:
            return at_work
        return not self.agenda.done or self._searches

    # ---- a search

    @property
    def _searches(self) -> bool:
        """Whether more runs may be asked for than are known."""
        return self.planner is not None and not self.planner.done

    def _plan(self) -> None:
        """Ask the search for the runs that there are slots for, and no sooner."""
        if self.planner is None:
            return
        slots = self.cluster.runs.slots
        taken = sum(slot in self._work for slot in slots) + self.agenda.waiting(True)
        while taken < self.cluster.runs.most and (run := self.planner.next_run()) is not None:
            if run.trial not in self.trials:
                self.trials[run.trial] = self.ledger.trial(run.trial)
            self.agenda.meet(run)
            taken += 1

    def _prune(self, work: Work) -> None:
        """Give a run up whose validations on the way say that others are better."""
        if self.planner is None or work.validations is None or work.ending is not None:
            return
        for place, value in work.validations.read():
            reason = self.planner.report(work.run, place, value)
            if reason is not None:
                work.end(AttemptState.PRUNED, reason)
                return

    # ---- slots

    def _count_slots(self) -> None:
        """How many slots there may be: the cluster's nodes come and go."""
        self._next_count = time.monotonic() + COUNT_SECONDS
        runs, packing = self.cluster.runs, self.cluster.packing
        wanted = [runs.capacity()]
        if not self._searches:
            wanted.append(len(self.agenda.runs))
        if self.spec.resources.max_parallel is not None:
            wanted.append(self.spec.resources.max_parallel)
        runs.most = min(wanted)
        self.teller.observer.slots = max(1, runs.most)
        if packing is not runs:
            packing.most = packing.capacity()

    def _count_again(self) -> None:
        """As `_count_slots`; where the last node is gone, wait a while for another to come."""
        try:
            self._count_slots()
        except UserError as error:
            now = time.monotonic()
            if self._lost_since is None:
                self._lost_since = now
                self.teller.progress.note(f"waiting for a node: {error}")
            # What is at work may still end well.
            if not self._work and now - self._lost_since >= LOST_NODES_SECONDS:
                raise
        else:
            self._lost_since = None

    def _fill(self) -> None:
        """Give every idle slot what waits for one of its kind; spare slots go back."""
        now = time.monotonic()
        if now >= self._next_count:
            self._count_again()
        if self._is_short_of_room():
            return
        for pool in self.cluster.pools:
            places = pool.places
            for slot in [slot for slot in pool.slots if slot.idle and not self._is_haunted(slot)]:
                for in_slot in self._kinds(pool):
                    job = self.agenda.take(
                        in_slot=in_slot, place=slot.nodes, places=places, now=now
                    )
                    if job is not None:
                        self._launch(job, slot)
                        break
            waiting = sum(self.agenda.waiting(in_slot) for in_slot in self._kinds(pool))
            needed = sum(slot in self._work for slot in pool.slots) + waiting
            if len(pool.slots) > needed:
                pool.shrink(max(needed, self._kept(pool)))
            elif needed > len(pool.slots):
                # A slot may have died, or was given back; another takes its place.
                pool.open(needed)

    def _is_haunted(self, slot: Slot) -> bool:
        """Whether a run is still at work on its GPUs that has lost the slot before it."""
        return any(slot.shares_gpus(orphan) for orphan in self._orphans)

    def _kinds(self, pool: Pool) -> tuple[bool, ...]:
        """Which jobs a pool takes: those of a run's slot, of packing, or both."""
        if self.cluster.packing is self.cluster.runs:
            return (True, False)
        return (pool is self.cluster.runs,)

    def _kept(self, pool: Pool) -> int:
        """How many slots to keep though nothing waits for them: packing's, while models train.

        Not where a run waits for a place: it may be just theirs.
        """
        if pool is self.cluster.runs:
            # A search may want them again in a moment.
            return len(pool.slots) if self._searches and not self.cluster.packing.opening else 0
        if self.cluster.runs.opening:
            return 0
        trains = any(work.launch.stage is Stage.TRAIN for work in self._work.values())
        return len(pool.slots) if trains else 0

    # ---- room on the disk

    def _is_short_of_room(self) -> bool:
        """Whether the next run must wait for room on the sweep's disk; said once."""
        short = next((slot.waits for slot in self._work if slot.waits is not None), None)
        if short is None:
            if not (self.agenda.waiting(True) or self.agenda.waiting(False)):
                return False
            short = self._room.shortage(len(self._work))
        self.teller.pause(short)
        return short is not None

    def _wait_for_room(self, error: sqlite3.OperationalError) -> None:
        """The ledger cannot be written: wait, so that nothing that has happened is lost."""
        if self.interrupts.count > 1:
            raise UserError(f"{self.sweep.ledger}: {error}; make room, then go on") from error
        self._room.full_at = time.time()
        self.teller.pause(
            f"{self.sweep.ledger}: {error}; make room there (interrupt twice to give up)"
        )
        time.sleep(POLL_SECONDS)

    # ---- launches

    def _launch(self, job: Job, slot: Slot) -> None:
        """Write down that a run, or a stage of it, is launched, then launch it."""
        directory, rows = self._record_launch(job, slot)
        tag = Tag(sweep=self.uid, session=self.session, launch=rows[-1].id)
        trial = self.trials[job.run.trial]
        work = Work.of(self.spec, tag, job.run, trial, directory, rows, slot.node, self.snapshot)
        work.request = replace(work.request, dead=frozenset(self._dead))
        files: dict[str, Path] = {}
        if job.attempt is None and self.agenda.attempts[job.run.id] > 1:
            files = self._go_on_from_checkpoint(work, slot)
        self._work[slot] = work
        slot.start(work.request, directory, files)

    def _go_on_from_checkpoint(self, work: Work, slot: Slot) -> dict[str, Path]:
        """Let a new attempt begin where an earlier one was, if that is known on this disk.

        Returns what a slot with a disk of its own needs for it.
        """
        assert slot.facts is not None
        path = checkpoint_of(self.sweep, self.ledger.attempts(work.run.id)[:-1])
        if path is None:
            return {}
        shared = slot.facts.sees_driver_disk
        env = {**work.request.env, "RESUME_FROM": str(path) if shared else RESUMED}
        work.request = replace(work.request, env=env)
        return {} if shared else {RESUMED: path}

    def _record_launch(self, job: Job, slot: Slot) -> tuple[AttemptDir, list[StageRow]]:
        """The directory of what is launched, and all the attempt's launches, this one last."""
        assert slot.facts is not None
        host, gpus = slot.facts.host, ",".join(slot.facts.gpus)
        if job.attempt is None:
            number = self.agenda.attempts[job.run.id]
            trial = self.trials[job.run.trial]
            directory = self.sweep.attempt(trial.number, trial.name, job.run.seed, number)
            attempt = self.ledger.launched(
                job.run,
                number=number,
                path=str(directory.path.relative_to(self.sweep.path)),
                host=host,
                gpus=gpus,
                code=None if self.snapshot is None else self.snapshot.sha256,
                stage=job.stage,
            )
            return directory.of(job.stage), self.ledger.stages(attempt)
        earlier = [row for row in self.ledger.stages(job.attempt.id) if row.stage is job.stage]
        directory = AttemptDir(self.sweep.path / job.attempt.path)
        directory = directory.of(job.stage, len(earlier) + 1)
        directory.forget_end()
        begins = end_events(directory.events)
        self.ledger.stage_launched(job.attempt, job.stage, host=host, gpus=gpus, events_from=begins)
        return directory, self.ledger.stages(job.attempt.id)

    # ---- ends

    def _settle(self, slot: Slot) -> None:
        """Take in that nothing of a run is at work in its slot any more."""
        work = self._work.pop(slot)
        self._dead.add(work.launch.id)
        self._verdicts.settle(work, slot)

    def _settle_orphans(self) -> None:
        """Judge runs whose slot has died once they have ended, or have had the time to.

        Some come to a good end in it: those are not to be run again.
        """
        now = time.monotonic()
        for slot, until in list(self._orphans.items()):
            if now >= until or self._work[slot].directory.exit.exists():
                del self._orphans[slot]
                self._settle(slot)

    def _end_overdue(self) -> None:
        """Stop runs that have had their time, and all runs after an interrupt."""
        now = time.monotonic()
        if self.interrupts.count and self.stop_seconds is not None and self._stop_by is None:
            self._stop_by = now + self.stop_seconds
        for slot, work in self._work.items():
            if slot.waits is None:
                work.check_time(now, self.spec.limits.max_seconds)
            if self.interrupts.count and work.ending is None:
                self._tell_stopping()
                work.end(AttemptState.STOPPED)
            if slot in self._orphans:
                continue
            if work.ending is None:
                slot.check(now)
                continue
            if work.kill_at is None:
                work.kill_at = now + self.spec.limits.grace_seconds + STOP_MARGIN_SECONDS
            if self._stop_by is not None:
                work.kill_at = min(work.kill_at, self._stop_by)
            # Said again and again: the first word may come before the run has begun.
            slot.stop()
            killed = self.interrupts.count > 1 or now >= work.kill_at
            if killed:
                slot.kill()
            slot.check(now, KILLED_SECONDS if killed else ANSWER_SECONDS)

    def _tell_stopping(self) -> None:
        if not self._told:
            grace = self.spec.limits.grace_seconds
            if self.stop_seconds is not None:
                grace = min(grace, self.stop_seconds)
            self.teller.progress.note(
                f"stopping: the runs have {grace:g} s to end; interrupt again to end them at once"
            )
        self._told = True
