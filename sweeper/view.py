"""A sweep as an observer sees it: a snapshot made of the ledger and of the runs' own events.

Anyone may look, from any process, while the sweep runs or long after. Who looks again reads only
what is new: an attempt that has ended is read once.
"""

from __future__ import annotations

import time
from collections import Counter
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from sweeper import pulse
from sweeper.book import Book
from sweeper.eta import Lengths, sweep_seconds_left
from sweeper.layout import AttemptDir, SweepDir
from sweeper.ledger import Ledger
from sweeper.logreader import RunReader
from sweeper.phases import RunProgress, number
from sweeper.pulse import Pulse, Quarantined, SlotPulse
from sweeper.rows import AttemptRow, AttemptState, NoteRow, RunState, StageRow
from sweeper.spec import SweepSpec
from sweeper.stages import Stage

SCHEMA = 1  # of `as_table`
NOTES = 50  # so many of the last
# What a run is between two stages: it waits for what executes the next.
WAITING_PHASES = {Stage.TRAIN: "trained", Stage.PACK: "packed"}


@dataclass(frozen=True, kw_only=True)
class RunView:
    """One run; what is not known is None. All but `gpu_seconds` is of its last attempt.

    `stage` is at work now, `phase` is what the run says it does, or `trained` or `packed` while it
    waits to go on. `val_bpb` is its score, `latest_val_bpb` that of its latest validation on the
    way. `fraction` is its share done (0–1), `seconds` its age, `seconds_left` an estimate.
    `gpu_seconds` are those that all its attempts have reserved, `cost_usd` what they cost.
    `host` and `gpus` are of its latest stage, `path` is the attempt's directory.
    """

    trial: str
    seed: int
    state: RunState
    attempts: int
    stage: Stage | None = None
    phase: str | None = None
    step: int | None = None
    iterations: int | None = None
    train_loss: float | None = None
    latest_val_bpb: float | None = None
    val_bpb: float | None = None
    ms_per_step: float | None = None
    fraction: float = 0.0
    seconds: float | None = None
    seconds_left: float | None = None
    gpu_seconds: float = 0.0
    cost_usd: float | None = None
    host: str | None = None
    gpus: str = ""
    message: str | None = None
    path: str | None = None


@dataclass(frozen=True, kw_only=True)
class DriverView:
    """The driver that is at work, or was the last one: `t` is when it last spoke, Unix seconds."""

    alive: bool
    pid: int | None = None
    host: str | None = None
    started: float | None = None
    t: float | None = None


@dataclass(frozen=True, kw_only=True)
class SearchView:
    """The stage that a search is in: how many configurations it has, and how many are settled.

    `planned` is how many it may have; None where only the budget tells.
    """

    stage: str
    entered: int
    settled: int
    planned: int | None


@dataclass(frozen=True, kw_only=True)
class SweepView:
    """All runs of a sweep, in launch order, and what its driver says of itself.

    `seconds_left` is an estimate, None while there is nothing to go by. `slots`, `paused` (why
    nothing is launched), `quarantined`, `waiting` and `backing_off` (how much of that waits for
    its next try) are empty while no driver is alive. `notes` are the latest. A `search` asks for
    more runs as it goes on; what is left of it nobody knows.
    """

    name: str
    runs: list[RunView]
    seconds_left: float | None
    gpu_seconds: float = 0.0
    cost_usd: float | None = None
    driver: DriverView = DriverView(alive=False)
    slots: tuple[SlotPulse, ...] = ()
    paused: str | None = None
    quarantined: tuple[Quarantined, ...] = ()
    waiting: int = 0
    backing_off: int = 0
    notes: tuple[NoteRow, ...] = ()
    search: SearchView | None = None

    def count(self, state: RunState) -> int:
        return sum(run.state is state for run in self.runs)

    @property
    def over(self) -> bool:
        searching = self.search is not None and self.driver.alive
        return not searching and all(run.state.over for run in self.runs)


def as_table(view: SweepView) -> dict[str, Any]:
    """A view for programs: the fields by their names, with the number of their schema."""
    counts = Counter(run.state for run in view.runs)
    states = {state.value: counts[state] for state in RunState}
    return {"schema": SCHEMA, "over": view.over, "counts": states} | asdict(view)


@dataclass
class _Known:
    """One run as far as it has been read; `view` is as it was when it last changed."""

    view: RunView
    attempt: AttemptRow | None = None  # the last
    stages: list[StageRow] = field(default_factory=list)  # of that
    progress: RunProgress | None = None  # of that, while it is open
    spent: float = 0.0  # GPU-seconds of the attempts before it

    @property
    def open(self) -> bool:
        return self.attempt is not None and self.attempt.state is AttemptState.LAUNCHED


@dataclass
class Observer:
    """Reads a sweep again and again, from one thread, each time only what is new.

    `slots` is how many runs can be at work at once; None where only the driver's pulse tells.
    """

    sweep: SweepDir
    ledger: Ledger
    slots: int | None = None
    _runs: dict[int, _Known] = field(default_factory=dict)
    _open: set[int] = field(default_factory=set)  # runs with an attempt that has not ended
    _last: int = 0  # the latest attempt
    _lengths: Lengths = field(default_factory=Lengths)
    _driver: DriverView = DriverView(alive=False)
    _usd_per_gpu_second: float | None = None
    _spec: SweepSpec | None = None

    def look(self) -> SweepView:
        """The sweep as it is now."""
        said = pulse.read(self.sweep.pulse)
        self._see_driver(said)
        with self.ledger.snapshot():
            states = self.ledger.run_states()
            if states.keys() != self._runs.keys():
                self._meet_runs()
            self._follow_attempts()
            notes = self.ledger.notes(NOTES)
            search = self._look_at_search()
        runs = [self._view(self._runs[run], state) for run, state in states.items()]
        at_work = said if said is not None and self._driver.alive else None
        slots = () if at_work is None else at_work.slots
        places = self.slots or sum(slot.pool == "runs" for slot in slots)
        gpu_seconds = sum(run.gpu_seconds for run in runs)
        view = SweepView(
            name=self.sweep.name,
            runs=runs,
            seconds_left=(
                sweep_seconds_left(runs, self._lengths, max(1, places)) if search is None else None
            ),
            gpu_seconds=gpu_seconds,
            cost_usd=self._cost(gpu_seconds),
            driver=self._driver,
            notes=tuple(notes),
            search=search,
        )
        if at_work is None:
            return view
        return replace(
            view,
            slots=slots,
            paused=at_work.paused,
            quarantined=at_work.quarantined,
            waiting=at_work.waiting,
            backing_off=at_work.backing_off,
        )

    # ---- what is new

    def _see_driver(self, said: Pulse | None) -> None:
        before, alive = self._driver, pulse.is_alive(self.sweep, said)
        self._driver = DriverView(alive=alive)
        if said is not None:
            self._driver = DriverView(
                alive=alive, pid=said.pid, host=said.host, started=said.started, t=said.t
            )
        if self._spec is None or before.started != self._driver.started:
            # Each driver may come with another price.
            self._spec = self.ledger.spec
            cost = self._spec.cost
            self._usd_per_gpu_second = None if cost is None else cost.usd_per_gpu_hour / 3600

    def _look_at_search(self) -> SearchView | None:
        assert self._spec is not None
        if self._spec.search is None:
            return None
        counts = Book(self.ledger).counts()
        begun = [rung for rung in self._spec.rungs if rung.name in counts]
        rung = begun[-1] if begun else self._spec.rungs[0]
        entered, settled = counts.get(rung.name, (0, 0))
        planned = entered if len(begun) > 1 else rung.trials or self._spec.search.budget.trials
        return SearchView(stage=rung.name, entered=entered, settled=settled, planned=planned)

    def _meet_runs(self) -> None:
        names = {trial.number: trial.name for trial in self.ledger.trials()}
        for run in self.ledger.runs():
            if run.id not in self._runs:
                trial = names[run.trial]
                view = RunView(trial=trial, seed=run.seed, state=RunState.PENDING, attempts=0)
                self._runs[run.id] = _Known(view)

    def _follow_attempts(self) -> None:
        """Read the attempts that are new, and those that had not ended before."""
        stages: dict[int, list[StageRow]] = {}
        for row in self.ledger.stages_since(self._last):
            stages.setdefault(row.attempt, []).append(row)
        new = self.ledger.attempts_since(self._last)
        for run in list(self._open):
            known = self._runs[run]
            assert known.attempt is not None
            identity = known.attempt.id
            self._take(self.ledger.attempt(identity), self.ledger.stages(identity))
        for attempt in new:
            self._last = attempt.id
            self._take(attempt, stages.get(attempt.id, []))

    def _take(self, attempt: AttemptRow, stages: list[StageRow]) -> None:
        """Take in one attempt as it is now: a run's last one so far."""
        known = self._runs[attempt.run]
        if known.attempt is None or known.attempt.id != attempt.id:
            known.spent += sum(row.gpu_seconds for row in known.stages)
            known.progress = None
        # What makes a ledger long is read once, and not kept.
        known.attempt = replace(attempt, traceback=None, result=None)
        known.stages = stages
        if known.progress is None and attempt.result is None:
            directory = AttemptDir(self.sweep.path / attempt.path)
            known.progress = RunProgress(
                RunReader(directory.of(stages[0].stage) if stages else directory)
            )
        if known.open:
            self._open.add(attempt.run)
            return
        self._open.discard(attempt.run)
        known.view = self._ended(known, attempt.result)
        known.progress = None

    def _ended(self, known: _Known, result: dict[str, Any] | None) -> RunView:
        """A run whose last attempt has ended; its state is not told here."""
        attempt = known.attempt
        assert attempt is not None
        facts = self._facts(known)
        if result is not None:
            steps = number(result.get("steps"))
            facts |= {
                "phase": "done",
                "fraction": 1.0,
                "step": None if steps is None else int(steps),
                "val_bpb": number(result.get("val_bpb")),
                "ms_per_step": number(result.get("step_avg_ms")),
            }
            self._lengths.add(known.view.trial, facts["seconds"])
        elif known.progress is not None:
            known.progress.update()
            facts |= known.progress.facts()
        known.view = self._first_view(known)
        return replace(known.view, **facts)

    # ---- what is seen

    def _view(self, known: _Known, state: RunState) -> RunView:
        if not known.open:
            if known.view.state is not state:
                known.view = replace(known.view, state=state)
            if self._usd_per_gpu_second is not None:
                cost = self._cost(known.view.gpu_seconds)
                if known.view.cost_usd != cost:
                    known.view = replace(known.view, cost_usd=cost)
            return known.view
        assert known.progress is not None
        known.progress.update()
        facts = known.progress.facts() | self._facts(known, state)
        phase = _waiting_phase(known.stages)
        if phase is not None:
            facts["phase"] = phase
        if state is RunState.RUNNING:
            facts["seconds_left"] = self._lengths.seconds_left(
                known.view.trial, facts["seconds"], facts["fraction"]
            )
        return replace(self._first_view(known), state=state, **facts)

    def _first_view(self, known: _Known) -> RunView:
        view = known.view
        return RunView(trial=view.trial, seed=view.seed, state=view.state, attempts=view.attempts)

    def _facts(self, known: _Known, state: RunState | None = None) -> dict[str, Any]:
        """What the ledger says of a run and its last attempt."""
        attempt, stages = known.attempt, known.stages
        assert attempt is not None
        latest = stages[-1] if stages else None
        until = self._until()
        # Between two stages a run goes on, but not while its sweep is stopped.
        paused = latest.ended if latest is not None and state is RunState.PENDING else None
        ended = attempt.ended or paused or until
        spent = known.spent + sum(row.gpu_seconds_until(until) for row in stages)
        return {
            "attempts": attempt.number,
            "stage": latest.stage if latest is not None and latest.ended is None else None,
            "seconds": max(0.0, ended - attempt.launched),
            "gpu_seconds": spent,
            "cost_usd": self._cost(spent),
            "host": attempt.host if latest is None else latest.host,
            "gpus": attempt.gpus if latest is None else latest.gpus,
            "message": attempt.message,
            "path": str(self.sweep.path / attempt.path),
        }

    def _until(self) -> float:
        """Until when what has not ended was at work: now, or when its driver died."""
        if self._driver.alive or self._driver.t is None:
            return time.time()
        return self._driver.t

    def _cost(self, gpu_seconds: float) -> float | None:
        price = self._usd_per_gpu_second
        return None if price is None else gpu_seconds * price


def _waiting_phase(stages: list[StageRow]) -> str | None:
    """Which stage an open attempt has behind it while none is at work; None while one is."""
    if any(row.ended is None for row in stages):
        return None
    done = [row.stage for row in stages if row.exit_code == 0]
    return WAITING_PHASES.get(done[-1]) if done else None
