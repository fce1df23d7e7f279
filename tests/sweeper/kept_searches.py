"""Searches whose runs leave the files of real ones: events, logs, a result, an artifact."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sweeper.layout import AttemptDir
from sweeper.rows import AttemptState, RunRow, RunState
from sweeper.spec import SweepSpec
from tests.sweeper.conftest import result_facts, write_attempt
from tests.sweeper.searches import Outcome, Play, bowl, playing

STEPS = 5_000


@dataclass
class KeptPlay(Play):
    """As `Play`, and every run writes what a trainer would have."""

    def end(self, run: RunRow, outcome: tuple[float, int] | None) -> None:
        number = self.ledger.attempt_numbers().get(run.id, 0) + 1
        trial = next(trial for trial in self.ledger.trials() if trial.number == run.trial)
        place = self.sweep.attempt(trial.number, trial.name, run.seed, number)
        path = str(place.path.relative_to(self.sweep.path))
        attempt = self.ledger.launched(run, number=number, path=path, host="here", gpus="0,1")
        if outcome is None:
            write_attempt(place.path, exit_code=3, events=events_of(run.seed, None))
            write_log(place, run.seed, "loss is nan")
            self.ledger.ended(
                attempt, AttemptState.NONFINITE, RunState.FAILED, message="loss is nan"
            )
            self.planner.over(run, RunState.FAILED, None, "loss is nan")
            return
        score, size = outcome
        result = result_facts(seed=run.seed, val_bpb=score, bytes_total=size, steps=STEPS)
        write_attempt(place.path, events=events_of(run.seed, score), result=result)
        write_log(place, run.seed, f"val_bpb {score:.5f}")
        self.ledger.ended(attempt, AttemptState.FINISHED, RunState.FINISHED, result=result)
        self.planner.over(run, RunState.FINISHED, result, None)


def events_of(seed: int, score: float | None) -> list[dict[str, Any]]:
    """A loss that falls to where the score says; without a score it breaks off."""
    end = 1.1 if score is None else score
    events: list[dict[str, Any]] = [{"kind": "config", "t": 1.0, "config": {"seed": seed}}]
    for step in range(100, (STEPS if score is not None else 1000) + 1, 100):
        loss = 2.3 * end + 4 * math.exp(-step / 400) + 0.02 * math.sin(seed + step)
        events.append({"kind": "step", "t": 1.0 + step, "step": step, "train_loss": loss})
        if step % 1000 == 0:
            bpb = loss / 2.3
            events.append(
                {"kind": "val", "t": 1.0 + step, "step": step, "metric": "plain", "val_bpb": bpb}
            )
    return events


def write_log(place: AttemptDir, seed: int, last: str) -> None:
    """The first rank's standard output, where torchrun lays it."""
    log = place.logs / "ranks" / "none" / "attempt_0" / "0" / "stdout.log"
    log.parent.mkdir(parents=True)
    log.write_text(f"seed {seed}\n{last}\n")


@contextmanager
def keeping(spec: SweepSpec, root: Path, outcome: Outcome = bowl) -> Iterator[KeptPlay]:
    """As `playing`, with the files."""
    with playing(spec, root, outcome) as play:
        yield KeptPlay(play.spec, play.sweep, play.ledger, play.planner, play.outcome, play.notes)
