"""The sweep itself: fill the slots, take in what ends, write the ledger; one thread.

Any process here may die at any moment. What the ledger says was launched and what lies in the
attempt's directory are enough to go on: `run_sweep` with the same spec adopts what finished,
ends what still runs, and launches the rest.
"""

from __future__ import annotations

import secrets
import time
from contextlib import closing
from dataclasses import dataclass, field, replace

from sweeper.agenda import Job, waiting_jobs
from sweeper.cluster import Cluster, ClusterOptions, Pool, Slot
from sweeper.contract import EventReader, end_events
from sweeper.driver import Interrupts, hold
from sweeper.judge import judge, wrong_settings
from sweeper.launch import LaunchRequest, Tag
from sweeper.layout import AttemptDir, SweepDir
from sweeper.ledger import AttemptState, Ledger, RunRow, RunState, StageRow, TrialRow
from sweeper.policy import after_attempt, seconds_left
from sweeper.progress import Progress
from sweeper.provenance import describe_code, record_spec
from sweeper.settle import can_go_on, record_end, record_stage, recover
from sweeper.spec import SweepSpec
from sweeper.stages import Stage
from sweeper.view import Observer, SweepView

POLL_SECONDS = 0.5
# Beyond its grace, what a stopped run's guard and its slot may take to say that it is over.
STOP_MARGIN_SECONDS = 15.0


@dataclass(eq=False)
class _Work:
    """A stage of a run in a slot, or the whole run."""

    run: RunRow
    launch: StageRow
    directory: AttemptDir
    overrides: dict[str, str]
    deadline: float | None
    events: EventReader
    confirmed: bool = False  # its echo has been seen, and is as asked
    ending: AttemptState | None = None  # what it is being stopped for
    reason: str | None = None
    kill_at: float | None = None


@dataclass(eq=False)
class Loop:
    """One driver's work on a sweep, from a recovered ledger to nothing left to do."""

    spec: SweepSpec
    sweep: SweepDir
    ledger: Ledger
    cluster: Cluster
    progress: Progress
    observer: Observer
    interrupts: Interrupts
    session: str
    code: str | None = None  # hash of what the runs execute
    _work: dict[Slot, _Work] = field(default_factory=dict)
    _ends: dict[int, list[AttemptState]] = field(default_factory=dict)
    _dead: set[int] = field(default_factory=set)
    _told: bool = False

    def run(self) -> None:
        """Return when every run is over, or, after an interrupt, when nothing is at work."""
        runs, packing = self.cluster.runs, self.cluster.packing
        runs.most = self.observer.slots = self._slots_wanted(runs.capacity())
        if packing is not runs:
            packing.most = packing.capacity()
        runs.open(runs.most)
        while self._goes_on():
            if not self.interrupts.count:
                self._fill()
            for slot in self.cluster.wait(POLL_SECONDS):
                self._settle(slot)
            for slot in self._work:
                slot.follow()
            self._check_echoes()
            self._end_overdue()
            self.progress.update(self.observer.look())
        if self.interrupts.count:
            self.ledger.pause()
        self.progress.update(self.observer.look())

    def _goes_on(self) -> bool:
        if self.interrupts.count:
            return bool(self._work)
        return any(not run.state.over for run in self.ledger.runs())

    def _slots_wanted(self, capacity: int) -> int:
        left = sum(not run.state.over for run in self.ledger.runs())
        most = self.spec.resources.max_parallel
        return min(capacity, left) if most is None else min(capacity, left, most)

    def _fill(self) -> None:
        """Give every idle slot what waits for one of its kind; spare slots go back."""
        jobs = waiting_jobs(
            self.ledger,
            self.sweep,
            at_work={work.run.id for work in self._work.values()},
            first=Stage.ALL if self.spec.packing is None else Stage.TRAIN,
        )
        for pool in self.cluster.pools:
            waiting = [job for job in jobs if self._pool(job.stage) is pool]
            for slot in [slot for slot in pool.slots if slot.idle]:
                if waiting:
                    self._launch(waiting.pop(0), slot)
            needed = sum(slot in self._work for slot in pool.slots) + len(waiting)
            if len(pool.slots) > needed:
                pool.shrink(max(needed, self._kept(pool)))
            elif needed > len(pool.slots):
                # A slot may have died, or was given back; another takes its place.
                pool.open(needed)
        if not self._work:
            # Every slot waits for a place: is there still a node that can ever give it one?
            for pool in {self._pool(job.stage) for job in jobs}:
                pool.capacity()

    def _pool(self, stage: Stage) -> Pool:
        """The slots that a stage works in."""
        return self.cluster.runs if stage.in_slot else self.cluster.packing

    def _kept(self, pool: Pool) -> int:
        """How many slots to keep though nothing waits for them: packing's, while models train.

        Not where a run waits for a place: it may be just theirs.
        """
        if pool is self.cluster.runs or self.cluster.runs.opening:
            return 0
        trains = any(work.launch.stage is Stage.TRAIN for work in self._work.values())
        return len(pool.slots) if trains else 0

    def _launch(self, job: Job, slot: Slot) -> None:
        """Write down that a run, or a stage of it, is launched, then launch it."""
        assert slot.facts is not None
        trial = self._trial(job.run)
        directory, rows = self._record_launch(job, trial, slot)
        limits = self.spec.limits
        overrides = trial.env | {"SEED": str(job.run.seed)}
        request = LaunchRequest(
            tag=Tag(sweep=self.ledger.uid, session=self.session, launch=rows[-1].id),
            directory=str(directory.path),
            module=self.spec.workload.module,
            launch=self.spec.workload.launch,
            processes=self.spec.resources.processes,
            cpus=self.spec.resources.cpus_per_run,
            grace_seconds=limits.grace_seconds,
            env=overrides,
            stage=job.stage,
            number=directory.number,
            dead=frozenset(self._dead),
        )
        if job.stage is Stage.PACK:
            request = self._alone(request)
        left = seconds_left(limits.max_seconds, rows)
        deadline = None if left is None else time.monotonic() + left
        events = EventReader(directory.events, rows[-1].events_from)
        self._work[slot] = _Work(job.run, rows[-1], directory, overrides, deadline, events)
        slot.start(request, directory)

    def _record_launch(
        self, job: Job, trial: TrialRow, slot: Slot
    ) -> tuple[AttemptDir, list[StageRow]]:
        """The directory of what is launched, and all the attempt's launches, this one last."""
        assert slot.facts is not None
        host, gpus = slot.facts.host, ",".join(slot.facts.gpus)
        if job.attempt is None:
            number = len(self.ledger.attempts(job.run.id)) + 1
            directory = self.sweep.attempt(trial.number, trial.name, job.run.seed, number)
            path = str(directory.path.relative_to(self.sweep.path))
            attempt = self.ledger.launched(
                job.run,
                number=number,
                path=path,
                host=host,
                gpus=gpus,
                code=self.code,
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

    def _alone(self, request: LaunchRequest) -> LaunchRequest:
        """The request for one process on processors alone."""
        request = replace(request, launch="exec", processes=1)
        packing = self.spec.packing
        return (
            request if packing is None else replace(request, cpus=packing.cpus, nice=packing.nice)
        )

    def _settle(self, slot: Slot) -> None:
        """Judge what has ended and write down what becomes of the run."""
        work = self._work.pop(slot)
        self._dead.add(work.launch.id)
        outcome = judge(work.directory, work.overrides, work.launch.events_from)
        attempt = work.launch.attempt
        if outcome.state is AttemptState.LAUNCHED:
            record_stage(self.ledger, attempt, work.directory, outcome)
            return
        if outcome.state is not AttemptState.FINISHED and work.ending is not None:
            message = work.reason or outcome.message
            outcome = replace(outcome, state=work.ending, message=message)
        elif outcome.state is AttemptState.LOST and slot.failure is not None:
            outcome = replace(outcome, message=slot.failure)
        ends = self._ends.setdefault(work.run.id, [])
        ends.append(outcome.state)
        run_state = after_attempt(ends, max_attempts=self.spec.limits.max_attempts)
        if run_state is RunState.PENDING and can_go_on(work.directory):
            record_stage(self.ledger, attempt, work.directory, outcome)
        else:
            record_end(self.ledger, attempt, work.directory, outcome, run_state)

    def _check_echoes(self) -> None:
        """Stop runs that took other settings than they were asked to, before they cost more."""
        for work in self._work.values():
            if work.confirmed or work.ending is not None:
                continue
            echoes = [event for event in work.events.read() if event["kind"] == "config"]
            if echoes:
                work.confirmed = True
                work.reason = wrong_settings(work.directory, work.overrides, echoes)
                if work.reason is not None:
                    work.ending = AttemptState.USER_ERROR

    def _end_overdue(self) -> None:
        """Stop runs that have had their time, and all runs after an interrupt."""
        now = time.monotonic()
        for slot, work in self._work.items():
            if work.ending is None:
                if self.interrupts.count:
                    self._tell_stopping()
                    work.ending = AttemptState.STOPPED
                elif work.deadline is not None and now >= work.deadline:
                    work.ending = AttemptState.TIMED_OUT
                    limit = self.spec.limits.max_seconds
                    work.reason = f"took longer than limits.max_seconds = {limit:g}"
                else:
                    continue
            if work.kill_at is None:
                work.kill_at = now + self.spec.limits.grace_seconds + STOP_MARGIN_SECONDS
            # Said again and again: the first word may come before the run has begun.
            slot.stop()
            if self.interrupts.count > 1 or now >= work.kill_at:
                slot.kill()

    def _tell_stopping(self) -> None:
        if not self._told:
            grace = self.spec.limits.grace_seconds
            self.progress.note(
                f"stopping: the runs have {grace:g} s to end; interrupt again to end them at once"
            )
        self._told = True

    def _trial(self, run: RunRow) -> TrialRow:
        return self.ledger.trials()[run.trial]


def run_sweep(
    spec: SweepSpec, sweep: SweepDir, options: ClusterOptions, *, spec_text: str, progress: Progress
) -> SweepView:
    """Run what is left of a sweep and return how it stands.

    Raises UserError when another driver holds the sweep, when its ledger is of another spec, or
    when no node of the cluster can hold a run. On SIGINT or SIGTERM the runs at work are stopped
    within their grace and wait for the next call; then KeyboardInterrupt is raised.
    """
    with hold(sweep), closing(Ledger.open_for_writing(sweep.ledger, spec)) as ledger:
        record_spec(sweep, spec, spec_text)
        session = secrets.token_hex(8)
        recover(sweep, ledger, session)
        ledger.reopen_failed()
        observer = Observer(sweep, ledger)
        if observer.look().over:
            return observer.look()
        with Interrupts().catch() as interrupts, progress.show():
            progress.update(observer.look())
            with Cluster(spec, options, sweep) as cluster:
                loop = Loop(spec, sweep, ledger, cluster, progress, observer, interrupts, session)
                loop.code = describe_code(spec.workload.module)["sha256"]
                loop.run()
        if interrupts.count:
            raise KeyboardInterrupt
        return observer.look()
