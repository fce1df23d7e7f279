"""What a log has said so far, each with its line, and the facts that follow from it."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator
from dataclasses import replace
from typing import Any

from sweeper.logfacts import LogFacts
from sweeper.pace import Pace
from sweeper.scores import (
    Kind,
    Score,
    before_quantisation,
    headline,
    last_of,
    later,
    name_score,
    same_pass,
    timed_passes,
)

MOST_SCORES = 200
MOST_SETTINGS = 1_000
MOST_PASSES = 50
LONGEST_SETTING = 500

# Fact -> the names that it may have been seen by, the one that counts first. A setting's name has
# a space before it.
SAID = {
    "seed": ("seed", " seed"),
    "train_time_ms": ("train_time_ms",),
    "hessian_time_s": ("hessian_time_s",),
    "peak_memory_mib": ("peak_memory_mib",),
    "world_size": ("world_size", " world_size"),
    "train_shards": ("train_shards", " train_shards"),
    "val_tokens": ("val_tokens", " val_tokens"),
    "train_path": (" train_files", "data_path", " data_path", " datasets_dir", "dataset"),
    "val_path": (" val_files", "val_path"),
    "bytes_code": ("code_packed", "code_plain"),
}
BOTH = ("val_bpb", "val_loss")
# What only a run's end says; and what is said after training alone, the sizes of the code being
# what some say before it.
OF_THE_END = ("stop_reason", "stopped_at", "trained", "total_eval_time_s")
ENDING = (
    *("peak_memory_mib", "raw_model", "bytes_model", "hessian_time_s", "calibration_data_s"),
    *OF_THE_END,
)
AFTER_TRAINING = ("peak_memory_mib", "raw_model", "bytes_model", "code_plain", "code_packed")
WHOLE_NUMBERS = frozenset(("seed", "world_size", "train_shards", "val_tokens"))


class Seen:
    """Values by name. Its memory is bounded: it keeps what counts, not what has been said."""

    def __init__(self) -> None:
        self.form: str | None = None
        self.settings: dict[str, str] = {}
        self.pace = Pace()
        self._values: dict[str, tuple[Any, int]] = {}
        self._scores: dict[str, Score] = {}
        self._passes: dict[str, tuple[float, int]] = {}
        # Scores that others have taken the place of, for the time of their passes; beyond some,
        # the time alone. By a name that was scored anew: how often, and where first and last.
        self._replaced: list[Score] = []
        self._replaced_s = 0.0
        self._since = 0  # the line from which on passes are of this training
        self._anew: dict[str, tuple[int, int, int]] = {}

    def copy(self) -> Seen:
        """What has been said up to here, whatever is said from here on."""
        other = Seen()
        for name, value in vars(self).items():
            setattr(other, name, copy.copy(value))
        return other

    @property
    def seed(self) -> int | None:
        seed: int | None = self._said("seed", SAID["seed"])[0]
        return seed

    @property
    def steps(self) -> int | None:
        """How many steps were trained; None where training has not ended."""
        steps: int | None = self._ending()["steps"][0]
        return steps

    def keep(self, name: str, value: Any, line: int, *, first: bool = False) -> None:
        """A value and where it was said; with `first` an earlier one stays."""
        if not first or name not in self._values:
            self._values[name] = value, line

    def forget(self, name: str) -> None:
        self._values.pop(name, None)

    def get(self, name: str) -> Any:
        """The value of a name; None where none was seen."""
        return self._values.get(name, (None, 0))[0]

    def set(self, name: str, value: str, line: int) -> None:
        """A setting; the first counts, as later ones may be of something else."""
        if name not in self.settings and len(self.settings) < MOST_SETTINGS:
            self.settings[name] = value[:LONGEST_SETTING]
            self.keep(" " + name, value[:LONGEST_SETTING], line, first=True)

    def score(self, score: Score) -> Score:
        """A score, which is then the last one; what counts of it and of earlier ones."""
        earlier = self._scores.pop(score.name, None)
        if earlier is not None:
            if not same_pass(earlier, score):
                self._replace(earlier)
                self._score_anew(earlier, score)
            score = later(earlier, score)
        elif len(self._scores) >= MOST_SCORES:
            self._replace(self._scores.pop(next(iter(self._scores))))
        self._scores[score.name] = score
        return score

    def _replace(self, score: Score) -> None:
        if score.eval_time_s is None or score.kind is Kind.PREQUANT or self._is_old(score):
            return
        self._replaced.append(score)
        if len(self._replaced) > MOST_PASSES:
            self._replaced_s += self._replaced.pop(0).eval_time_s or 0.0

    def _score_anew(self, earlier: Score, score: Score) -> None:
        timed = earlier.eval_time_s is not None or score.eval_time_s is not None
        known = score.name in self._anew or len(self._anew) < MOST_PASSES
        if timed and known and score.kind is not Kind.PREQUANT and not self._is_old(earlier):
            times, first, _ = self._anew.get(score.name, (1, earlier.line or 0, 0))
            self._anew[score.name] = times + 1, first, score.line or 0

    def _is_old(self, score: Score) -> bool:
        return (score.line or 0) < self._since

    def train_again(self, line: int) -> None:
        """Training goes on from an earlier step: what was evaluated before is of no time here."""
        self._since, self._replaced_s = line, 0.0
        self._replaced.clear()
        self._anew.clear()

    def begin_training(self) -> None:
        """Training begins: what looked like its end before that was not of this run's.

        It may stand in the source of the script, or be of a start that broke off.
        """
        self.train_again(0)
        self._scores.clear()
        self._passes.clear()
        for name in OF_THE_END:
            self.forget(name)

    def ending(self) -> bool:
        """Whether it says anything that comes after training only."""
        said = self._scores or self._passes
        return bool(said) or not self._values.keys().isdisjoint(ENDING)

    def complete(self, name: str, val_loss: float, text: str, line: int) -> None:
        """The val_loss of a score whose val_bpb was said before."""
        if name in self._scores:
            score = self._scores[name]
            self._scores[name] = replace(score, val_loss=val_loss, val_loss_text=text)
            self.keep(f"val_loss of {name}", val_loss, line)

    def passed(self, name: str, seconds: float, line: int) -> None:
        """A pass that is timed and has no score of its own."""
        if name in self._passes or len(self._passes) < MOST_PASSES:
            self._passes[name] = seconds, line

    # ---- the facts

    def facts(self) -> LogFacts:
        """What follows from it."""
        found: dict[str, tuple[Any, int | None]] = {
            **{fact: self._said(fact, names) for fact, names in SAID.items()},
            **self._sizes(),
            **self._ending(),
            **self._of_scores(),
        }
        values = {fact: value for fact, (value, _) in found.items()}
        lines = {fact: line for fact, (value, line) in found.items() if value is not None and line}
        scores = tuple(self._scores.values())
        head = headline(scores)
        return LogFacts(
            form=self.form,
            metric=None if head is None else head.kind.value,
            headline=None if head is None else head.name,
            scores=scores,
            last_step=self.get("step"),
            iterations=self.get("iterations"),
            step_avg_ms=self._step_avg(values["train_time_ms"], values["steps"]),
            code_compressed=self.get("code_packed") is not None,
            hyperparameters=dict(self.settings),
            intervals=self.pace.intervals,
            lines=lines,
            notes=tuple(self._notes()),
            untaken={fact: why for fact, why in self._untaken() if values[fact] is None},
            **values,
        )

    def _said(self, fact: str, names: Iterable[str]) -> tuple[Any, int | None]:
        for name in names:
            value, line = self._values.get(name, (None, 0))
            if name.startswith(" ") and fact in WHOLE_NUMBERS:
                value = as_int(value)
            if value is not None:
                return value, line
        return None, None

    def _sizes(self) -> dict[str, tuple[Any, int | None]]:
        """The bytes that count: of the packed model, and of all that is submitted.

        A total without a name is of the uncompressed model, unless it adds up; an artifact is the
        model where that is not said apart.
        """
        model, total = self._values.get("bytes_model"), self._values.get("total")
        code = self._said("bytes_code", SAID["bytes_code"])[0]
        unnamed, artifact = self._values.get("total_unnamed"), self._values.get("artifact")
        adds_up = model and unnamed and code is not None and unnamed[0] == model[0] + code
        if total is None and adds_up:
            total = unnamed
        if model is None:
            model = artifact
        elif total is None:
            total = artifact
        return {"bytes_model": model or (None, None), "bytes_total": total or (None, None)}

    def _ending(self) -> dict[str, tuple[Any, int | None]]:
        """How many steps were trained, and why no more."""
        steps: tuple[Any, int | None] = (None, None)
        last = self._values.get("step")
        if "stopped_at" in self._values:
            steps = self._values["stopped_at"]
        elif last is not None:
            # The last validation comes at the end. Prose has none, but says when training is over.
            over = 0 < last[0] == self.get("val_step") and self._after_training()
            if over or last[0] == self.get("iterations") or "trained" in self._values:
                steps = last
        reason: tuple[Any, int | None] = self._values.get("stop_reason", (None, None))
        if reason[0] is None and steps[0] and steps[0] == self.get("iterations"):
            reason = "iterations", steps[1]
        return {"steps": steps, "stop_reason": reason}

    def _after_training(self) -> bool:
        """Whether it says anything of what follows training: a log may be cut off before."""
        return bool(self._scores) or not self._values.keys().isdisjoint(AFTER_TRAINING)

    def _of_scores(self) -> dict[str, tuple[Any, int | None]]:
        scores = list(self._scores.values())
        named = {
            "": headline(scores),
            "prequant_": before_quantisation(scores),
            "quant_": last_of(scores, Kind.QUANT),
        }
        found: dict[str, tuple[Any, int | None]] = {"eval_time_s": self._eval_time(scores)}
        for name, score in named.items():
            if score is None:
                last = self._last_validation() if name == "prequant_" and scores else {}
                found |= {f"{name}{fact}": last.get(fact, (None, None)) for fact in BOTH}
                continue
            apart = self._values.get(f"val_loss of {score.name}", (None, score.line))[1]
            found[f"{name}val_bpb"] = score.val_bpb, score.line
            found[f"{name}val_loss"] = score.val_loss, apart
        return found

    def _last_validation(self) -> dict[str, tuple[Any, int | None]]:
        """What the last validation says where it came at the end, and of the very weights that were
        quantised: nothing was averaged after it.
        """
        if self.get("val_step") != self.get("step") or "averaged" in self._values:
            return {}
        return {fact: self._values.get(f"step_{fact}", (None, None)) for fact in BOTH}

    def _eval_time(self, scores: list[Score]) -> tuple[float | None, int | None]:
        """The time of all passes: as the log sums it, else the sum, by the line of the last one.

        A pass that has no score of its own is part of one of its kind that takes longer.
        """
        if "total_eval_time_s" in self._values:
            return self._values["total_eval_time_s"]
        passes = timed_passes([*self._replaced, *scores])
        timed = [(each.eval_time_s or 0.0, each.line or 0) for each in passes]
        for name, (seconds, line) in self._passes.items():
            kind = name_score(name)[1]
            if all(each.kind is not kind or (each.eval_time_s or 0.0) < seconds for each in passes):
                timed.append((seconds, line))
        if not timed:
            return None, None
        total = self._replaced_s + sum(seconds for seconds, _ in timed)
        return total, max(line for _, line in timed)

    def _notes(self) -> Iterator[str]:
        for name, (times, first, last) in self._anew.items():
            often = "twice" if times == 2 else f"{times} times"
            yield (
                f"`{name}` was scored {often}, each time otherwise, first in line {first}: "
                f"that of line {last} counts, and the time of all"
            )

    def _step_avg(self, spent: float | None, steps: int | None) -> float | None:
        ended = "trained" not in self._values or "stopped_at" in self._values
        if spent and steps and ended:
            return spent / steps
        average: float | None = self.get("step_avg_ms")
        return average

    def _untaken(self) -> Iterator[tuple[str, str]]:
        """Why what lines speak of is not known all the same."""
        sizes = {name: value for name, (value, _) in self._sizes().items()}
        unnamed, artifact = self._values.get("total_unnamed"), self._values.get("artifact")
        if sizes["bytes_total"] is None and artifact is not None:
            yield "bytes_total", f"line {artifact[1]} (`Artifact`) does not say whether code is in"
        elif sizes["bytes_total"] is None and unnamed is not None:
            yield (
                "bytes_total",
                f"the total without a name (line {unnamed[1]}: {unnamed[0]}) is not model + code: "
                "it is of the uncompressed model",
            )
        if "raw_model" in self._values:
            yield "bytes_model", "only the uncompressed model has a size"
        if "calibration_data_s" in self._values:
            value, line = self._values["calibration_data_s"]
            yield "hessian_time_s", f"line {line} times the calibration data ({value} s) alone"
        if "minutes" in self._values:
            line = self._values["minutes"][1]
            yield "train_time_ms", f"timed in tenths of a minute alone (line {line})"
        bpb, line = self._values.get("step_val_bpb", (None, 0))
        if bpb is not None:
            yield (
                "prequant_val_bpb",
                "no score of the model before quantisation has a name; the last validation in "
                f"training (line {line}: {bpb}) is not of the weights that were quantised",
            )


def as_int(text: object) -> int | None:
    """A setting as a whole number; None where it is none, or longer than any that is meant."""
    if isinstance(text, str) and text.isdecimal() and len(text) < 20:
        return int(text)
    return None
