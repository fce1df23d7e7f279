"""What the ledger holds, a row at a time: trials, runs, attempts, stages and notes."""

from __future__ import annotations

import enum
from dataclasses import dataclass
from typing import Any

from sweeper.stages import Stage


class RunState(enum.StrEnum):
    PENDING = "pending"
    RUNNING = "running"
    FINISHED = "finished"
    FAILED = "failed"
    PRUNED = "pruned"  # given up: a search has seen enough of its trial

    @property
    def over(self) -> bool:
        """Whether nothing more will happen to the run."""
        return self in (RunState.FINISHED, RunState.FAILED, RunState.PRUNED)


class AttemptState(enum.StrEnum):
    """How an attempt ended; LAUNCHED while it has not."""

    LAUNCHED = "launched"
    FINISHED = "finished"
    USER_ERROR = "user_error"
    NONFINITE = "nonfinite"
    OUT_OF_MEMORY = "out_of_memory"
    BAD_RESULT = "bad_result"
    CRASHED = "crashed"
    TIMED_OUT = "timed_out"
    STOPPED = "stopped"
    PRUNED = "pruned"
    LOST = "lost"
    STALLED = "stalled"
    NODE_LOST = "node_lost"
    NO_SPACE = "no_space"


@dataclass(frozen=True, kw_only=True)
class TrialRow:
    """One set of hyperparameters."""

    number: int
    name: str
    config_hash: str
    env: dict[str, str]


@dataclass(frozen=True, kw_only=True)
class RunRow:
    """One seed of a trial."""

    id: int
    trial: int
    seed: int
    state: RunState


@dataclass(frozen=True, kw_only=True)
class AttemptRow:
    """One try at a run, all its stages; times in Unix seconds.

    `code` is the hash of what it executes, `host` and `gpus` are where it began.
    """

    id: int
    run: int
    number: int
    state: AttemptState
    path: str
    host: str
    gpus: str
    code: str | None
    launched: float
    ended: float | None
    exit_code: int | None
    message: str | None
    traceback: str | None
    result: dict[str, Any] | None


@dataclass(frozen=True, kw_only=True)
class StageRow:
    """One launch of a stage of an attempt; a whole run is one of stage `all`. Unix seconds.

    Its events are those from byte `events_from` of the attempt's on.
    """

    id: int
    attempt: int
    stage: Stage
    host: str
    gpus: str
    launched: float
    ended: float | None
    exit_code: int | None
    message: str | None
    events_from: int

    @property
    def seconds(self) -> float:
        """How long it was at work; 0 until it has ended."""
        return 0.0 if self.ended is None else max(0.0, self.ended - self.launched)

    @property
    def gpu_seconds(self) -> float:
        """What it has reserved; 0 until it has ended."""
        return 0.0 if self.ended is None else self.gpu_seconds_until(self.ended)

    def gpu_seconds_until(self, t: float) -> float:
        """What it has reserved until it ended, or until a time where it had not."""
        seconds = max(0.0, (self.ended or t) - self.launched)
        return seconds * len([gpu for gpu in self.gpus.split(",") if gpu])


@dataclass(frozen=True, kw_only=True)
class NoteRow:
    """What has happened to a sweep beside its runs: `kind` is quarantine, pause, stall, …"""

    t: float
    kind: str
    text: str
