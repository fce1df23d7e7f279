"""A sweep as an observer sees it: a snapshot made of the ledger and of the runs' own events.

Anyone may look, from any process, while the sweep runs or long after.
"""

from __future__ import annotations

import statistics
import time
from dataclasses import dataclass, field
from typing import Any

from sweeper.contract import Event, EventReader, is_finite
from sweeper.layout import AttemptDir, SweepDir
from sweeper.ledger import AttemptRow, AttemptState, Ledger, RunRow, RunState, StageRow
from sweeper.stages import Stage

# Where a run stands when a phase begins, as a share of its whole; only until one run has ended
# and its real length is known.
PHASE_STARTS = {
    "setup": 0.0,
    "warmup": 0.08,
    "train": 0.12,
    "hessians": 0.7,
    "quantise": 0.75,
    "pack": 0.78,
    "eval": 0.8,
    "done": 1.0,
}
# The same for evaluations, by their metric: where each begins and ends.
EVAL_PARTS = {
    "prequant": (PHASE_STARTS["hessians"], PHASE_STARTS["quantise"]),
    "quant": (PHASE_STARTS["eval"], 0.85),
    "sliding": (0.85, PHASE_STARTS["done"]),
}
# What a run is between two stages: it waits for what executes the next.
WAITING_PHASES = {Stage.TRAIN: "trained", Stage.PACK: "packed"}


@dataclass(frozen=True, kw_only=True)
class RunView:
    """One run: `fraction` is its share done (0–1), `seconds` the age of its last attempt.

    `phase` is what the run says it does, or `trained` or `packed` while it waits to go on.
    """

    trial: str
    seed: int
    state: RunState
    attempts: int
    phase: str | None = None
    step: int | None = None
    iterations: int | None = None
    train_loss: float | None = None
    val_bpb: float | None = None
    fraction: float = 0.0
    seconds: float | None = None
    host: str | None = None
    message: str | None = None
    path: str | None = None


@dataclass(frozen=True, kw_only=True)
class SweepView:
    """All runs of a sweep. `seconds_left` is an estimate, None while there is nothing to go by."""

    name: str
    runs: list[RunView]
    seconds_left: float | None

    def count(self, state: RunState) -> int:
        return sum(run.state is state for run in self.runs)

    @property
    def over(self) -> bool:
        return all(run.state.over for run in self.runs)


@dataclass
class _Progress:
    """What the events of one attempt have said so far."""

    reader: EventReader
    phase: str | None = None
    step: int | None = None
    iterations: int | None = None
    train_loss: float | None = None
    fraction: float = 0.0
    quantised: bool = False  # evaluation is a phase before that, and after

    def update(self) -> None:
        for event in self.reader.read():
            self._take(event)

    def _take(self, event: Event) -> None:
        match event["kind"]:
            case "config":
                config = event.get("config")
                if isinstance(config, dict):
                    self.iterations = _number(config.get("iterations"), int)
            case "phase":
                self.phase = str(event.get("phase"))
                self.quantised = self.quantised or self.phase in ("quantise", "pack")
                if self.phase != "eval" or self.quantised:
                    self._reach(PHASE_STARTS.get(self.phase, 0.0))
            case "eval":
                kind = str(event.get("metric")).removesuffix("-subset")
                begin, end = EVAL_PARTS.get(kind, (0.0, 0.0))
                done = min(1.0, _number(event.get("progress"), float) or 0.0)
                self._reach(begin + done * (end - begin))
            case "step":
                self.step = _number(event.get("step"), int)
                self.train_loss = _number(event.get("train_loss"), float)
                done = _number(event.get("progress"), float) or 0.0
                train, after = PHASE_STARTS["train"], PHASE_STARTS["hessians"]
                self._reach(train + done * (after - train))

    def _reach(self, fraction: float) -> None:
        # Each stage begins with a set-up, and training may be evaluated; a run never goes back.
        self.fraction = max(self.fraction, fraction)


def _number(value: Any, kind: type) -> Any:
    """A finite number from an event, as `kind`; None for anything else."""
    usable = isinstance(value, int | float) and not isinstance(value, bool) and is_finite(value)
    return kind(value) if usable else None


@dataclass
class Observer:
    """Reads a sweep again and again, each time only what is new of its events."""

    sweep: SweepDir
    ledger: Ledger
    slots: int = 1
    _progress: dict[int, _Progress] = field(default_factory=dict)

    def look(self) -> SweepView:
        """The sweep as it is now."""
        trials = {trial.number: trial.name for trial in self.ledger.trials()}
        last: dict[int, AttemptRow] = {row.run: row for row in self.ledger.attempts()}
        stages: dict[int, list[StageRow]] = {}
        for row in self.ledger.stages():
            stages.setdefault(row.attempt, []).append(row)
        runs = []
        for run in self.ledger.runs():
            facts: dict[str, Any] = {"trial": trials[run.trial], "seed": run.seed}
            if run.id in last:
                facts |= self._describe(run, last[run.id], stages.get(last[run.id].id, []))
            runs.append(RunView(state=run.state, **({"attempts": 0} | facts)))
        return SweepView(
            name=self.sweep.name,
            runs=runs,
            seconds_left=estimate_seconds_left(runs, self.slots),
        )

    def _describe(self, run: RunRow, attempt: AttemptRow, stages: list[StageRow]) -> dict[str, Any]:
        # Between two stages a run goes on, but not while its sweep is stopped.
        paused = stages[-1].ended if stages and run.state is RunState.PENDING else None
        ended = attempt.ended or paused or time.time()
        facts: dict[str, Any] = {
            "attempts": attempt.number,
            "seconds": max(0.0, ended - attempt.launched),
            "host": attempt.host,
            "message": attempt.message,
            "path": str(self.sweep.path / attempt.path),
        }
        if attempt.result is not None:
            done = {"fraction": 1.0, "phase": "done", "step": attempt.result.get("steps")}
            return facts | done | {"val_bpb": attempt.result.get("val_bpb")}
        progress = self._progress.get(attempt.id)
        if progress is None:
            events = AttemptDir(self.sweep.path / attempt.path).events
            progress = self._progress[attempt.id] = _Progress(EventReader(events))
        progress.update()
        return facts | {
            "phase": _waiting_phase(attempt, stages) or progress.phase,
            "step": progress.step,
            "iterations": progress.iterations,
            "train_loss": progress.train_loss,
            "fraction": progress.fraction,
        }


def _waiting_phase(attempt: AttemptRow, stages: list[StageRow]) -> str | None:
    """Which stage an attempt has behind it while none is at work; None for any other attempt."""
    at_work = any(row.ended is None for row in stages)
    if attempt.state is not AttemptState.LAUNCHED or at_work:
        return None
    done = [row.stage for row in stages if row.exit_code == 0]
    return WAITING_PHASES.get(done[-1]) if done else None


def estimate_seconds_left(runs: list[RunView], slots: int) -> float | None:
    """Time until the last run ends, by the length of those that have; None without a clue."""
    ended = [run.seconds for run in runs if run.state is RunState.FINISHED and run.seconds]
    running = [run for run in runs if run.state is RunState.RUNNING and run.seconds is not None]
    if not ended:
        known = [r.seconds / r.fraction for r in running if r.fraction > 0.15 and r.seconds]
        if not known:
            return None
        ended = known
    length = statistics.median(ended)
    left = [max(0.0, length - (run.seconds or 0.0)) for run in running]
    waiting = sum(run.state is RunState.PENDING for run in runs)
    # The slots take the waiting runs one after the other, whichever is free first.
    free = sorted((left + [0.0] * slots)[: max(slots, len(left))])
    for _ in range(waiting):
        free[0] += length
        free.sort()
    return free[-1]
