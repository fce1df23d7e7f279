"""How far a run is, by what its events have said so far."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from sweeper.contract import Event, is_finite
from sweeper.logreader import RunReader

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


@dataclass
class RunProgress:
    """What one attempt has said so far; `update` takes in what is new.

    `ms_per_step` is by the run's own clock, over all its steps; `latest_val_bpb` is of its latest
    validation, whatever its metric.
    """

    reader: RunReader
    phase: str | None = None
    step: int | None = None
    iterations: int | None = None
    train_loss: float | None = None
    latest_val_bpb: float | None = None
    ms_per_step: float | None = None
    fraction: float = 0.0
    quantised: bool = False  # evaluation is a phase before that, and after

    def update(self) -> None:
        for event in self.reader.read():
            self._take(event)

    def facts(self) -> dict[str, Any]:
        """What is known, by the names of a run's view."""
        return {
            "phase": self.phase,
            "step": self.step,
            "iterations": self.iterations,
            "train_loss": self.train_loss,
            "latest_val_bpb": self.latest_val_bpb,
            "ms_per_step": self.ms_per_step,
            "fraction": self.fraction,
        }

    def _take(self, event: Event) -> None:
        match event["kind"]:
            case "config":
                config = event.get("config")
                if isinstance(config, dict):
                    self.iterations = _count(config.get("iterations"))
            case "phase":
                self.phase = str(event.get("phase"))
                self.quantised = self.quantised or self.phase in ("quantise", "pack")
                if self.phase != "eval" or self.quantised:
                    self._reach(PHASE_STARTS.get(self.phase, 0.0))
            case "eval":
                kind = str(event.get("metric")).removesuffix("-subset")
                begin, end = EVAL_PARTS.get(kind, (0.0, 0.0))
                done = min(1.0, number(event.get("progress")) or 0.0)
                self._reach(begin + done * (end - begin))
            case "val":
                self.latest_val_bpb = number(event.get("val_bpb")) or self.latest_val_bpb
            case "step":
                self._take_step(event)

    def _take_step(self, event: Event) -> None:
        self.step = _count(event.get("step"))
        self.train_loss = number(event.get("train_loss"))
        average, total = number(event.get("step_avg_ms")), number(event.get("train_time_ms"))
        if average is None and total is not None and self.step:
            average = total / self.step
        self.ms_per_step = average if average is not None else self.ms_per_step
        done = number(event.get("progress")) or 0.0
        train, after = PHASE_STARTS["train"], PHASE_STARTS["hessians"]
        self._reach(train + done * (after - train))

    def _reach(self, fraction: float) -> None:
        # Each stage begins with a set-up, and training may be evaluated; a run never goes back.
        self.fraction = max(self.fraction, fraction)


def number(value: object) -> float | None:
    """A finite number from an event or a result; None for anything else."""
    usable = isinstance(value, int | float) and not isinstance(value, bool) and is_finite(value)
    return float(value) if usable and isinstance(value, int | float) else None


def _count(value: object) -> int | None:
    """The same as a whole number; scripts' settings come as text."""
    if isinstance(value, str) and value.isascii() and value.isdecimal() and len(value) < 16:
        return int(value)
    found = number(value)
    return None if found is None else int(found)
