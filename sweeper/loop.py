"""The sweep itself: fill the slots, take in what ends, write the ledger; one thread.

Any process here may die at any moment. What the ledger says was launched and what lies in the
attempt's directory are enough to go on: `run_sweep` with the same spec adopts what finished,
ends what still runs, and launches the rest.
"""

from __future__ import annotations

import fcntl
import os
import secrets
import signal
import socket
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, field

from sweeper.cluster import Cluster, ClusterOptions, Slot
from sweeper.contract import EventReader
from sweeper.errors import UserError
from sweeper.launch import (
    LaunchRequest,
    Outcome,
    Tag,
    judge,
    reap_leftovers,
    wrong_settings,
)
from sweeper.layout import AttemptDir, SweepDir
from sweeper.ledger import AttemptState, Ledger, RunRow, RunState, TrialRow
from sweeper.policy import after_attempt
from sweeper.progress import Progress
from sweeper.provenance import describe_code, record_spec
from sweeper.spec import SweepSpec
from sweeper.view import Observer, SweepView

POLL_SECONDS = 0.5
# Beyond its grace, what a stopped run's guard and its slot may take to say that it is over.
STOP_MARGIN_SECONDS = 15.0


class Interrupts:
    """SIGINT and SIGTERM as a count: one asks the sweep to stop, two stop it at once."""

    def __init__(self) -> None:
        self.count = 0
        self.signal: int | None = None

    @contextmanager
    def catch(self) -> Iterator[Interrupts]:
        """Handle the signals here for the time of a `with` block, in the main thread."""
        before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
        for number in before:
            signal.signal(number, self._receive)
        try:
            yield self
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _receive(self, number: int, _frame: object) -> None:
        self.count += 1
        self.signal = number


@dataclass(eq=False)
class _Work:
    """A run in a slot."""

    run: RunRow
    attempt: int
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
        slots = self._slots_wanted(self.cluster.capacity())
        self.cluster.open_slots(slots)
        self.observer.slots = slots
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
        """Give every idle slot a run that waits; spare slots go back to the cluster."""
        runs = self.ledger.runs()
        waiting = [run for run in runs if run.state is RunState.PENDING]
        for slot in [slot for slot in self.cluster.slots if slot.idle]:
            if waiting:
                self._launch(waiting.pop(0), slot)
        needed = len(self._work) + len(waiting)
        if len(self.cluster.slots) > needed:
            self.cluster.close_slots(needed)
        elif needed > len(self.cluster.slots):
            # A slot may have died; another takes its place.
            self.cluster.open_slots(min(needed, self.observer.slots))
        if not self._work:
            # Every slot waits for a place: is there still a node that can ever give it one?
            self.cluster.capacity()

    def _launch(self, run: RunRow, slot: Slot) -> None:
        """Write down that the run is launched, then launch it."""
        assert slot.facts is not None
        trial = self._trial(run)
        number = len(self.ledger.attempts(run.id)) + 1
        directory = self.sweep.attempt(trial.number, trial.name, run.seed, number)
        attempt = self.ledger.launched(
            run,
            number=number,
            path=str(directory.path.relative_to(self.sweep.path)),
            host=slot.facts.host,
            gpus=",".join(slot.facts.gpus),
            code=self.code,
        )
        limits, resources = self.spec.limits, self.spec.resources
        overrides = trial.env | {"SEED": str(run.seed)}
        request = LaunchRequest(
            tag=Tag(sweep=self.ledger.uid, session=self.session, attempt=attempt),
            directory=str(directory.path),
            module=self.spec.workload.module,
            launch=self.spec.workload.launch,
            processes=resources.processes,
            cpus=resources.cpus_per_run,
            grace_seconds=limits.grace_seconds,
            env=overrides,
            dead=frozenset(self._dead),
        )
        deadline = None if limits.max_seconds is None else time.monotonic() + limits.max_seconds
        events = EventReader(directory.events)
        self._work[slot] = _Work(run, attempt, directory, overrides, deadline, events)
        slot.start(request, directory)

    def _settle(self, slot: Slot) -> None:
        """Judge a run that has ended and write down what becomes of it."""
        work = self._work.pop(slot)
        self._dead.add(work.attempt)
        outcome = judge(work.directory, work.overrides)
        state, message = outcome.state, outcome.message
        if state is not AttemptState.FINISHED and work.ending is not None:
            state, message = work.ending, work.reason or message
        elif state is AttemptState.LOST and slot.failure is not None:
            message = slot.failure
        ends = self._ends.setdefault(work.run.id, [])
        ends.append(state)
        record_end(
            self.ledger,
            work.attempt,
            Outcome(**(vars(outcome) | {"state": state, "message": message})),
            after_attempt(ends, max_attempts=self.spec.limits.max_attempts),
        )

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
            with Cluster(spec.resources, options, sweep) as cluster:
                loop = Loop(spec, sweep, ledger, cluster, progress, observer, interrupts, session)
                loop.code = describe_code(spec.workload.module)["sha256"]
                loop.run()
        if interrupts.count:
            raise KeyboardInterrupt
        return observer.look()


@contextmanager
def hold(sweep: SweepDir) -> Iterator[None]:
    """Be the one driver of a sweep, whose directory is made here.

    Raises UserError when there is another driver, or when nothing can be written there.
    """
    try:
        sweep.path.mkdir(parents=True, exist_ok=True)
        file = sweep.lock.open("a+")
    except OSError as error:
        raise UserError(f"{sweep.path}: cannot be written to: {error.strerror}") from error
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            raise UserError(
                f"sweep {sweep.name!r} is being run already, by {file.read().strip()}; "
                f"look at it with `sweeper status {sweep.name}`"
            ) from None
        file.truncate(0)
        file.write(f"process {os.getpid()} on {socket.gethostname()}")
        file.flush()
        yield


def recover(sweep: SweepDir, ledger: Ledger, session: str) -> None:
    """Settle what an earlier driver left open: adopt what finished, end what still runs."""
    reap_leftovers(Tag(sweep=ledger.uid, session=session, attempt=0))
    trials = ledger.trials()
    runs = {run.id: run for run in ledger.runs()}
    for attempt in ledger.attempts():
        if attempt.state is not AttemptState.LAUNCHED:
            continue
        run = runs[attempt.run]
        overrides = trials[run.trial].env | {"SEED": str(run.seed)}
        outcome = judge(AttemptDir(sweep.path / attempt.path), overrides)
        if outcome.state is not AttemptState.FINISHED:
            outcome = Outcome(
                state=AttemptState.LOST, message="the sweep's driver ended before the run did"
            )
        record_end(ledger, attempt.id, outcome, _recovered_state(outcome))


def _recovered_state(outcome: Outcome) -> RunState:
    finished = outcome.state is AttemptState.FINISHED
    return RunState.FINISHED if finished else RunState.PENDING


def record_end(ledger: Ledger, attempt: int, outcome: Outcome, run_state: RunState) -> None:
    """Write an attempt's outcome to the ledger."""
    ledger.ended(
        attempt,
        outcome.state,
        run_state,
        exit_code=outcome.exit_code,
        message=outcome.message,
        traceback=outcome.traceback,
        result=outcome.result,
    )
