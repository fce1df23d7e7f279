"""The facts of a run read from the log of a script that knows no contract.

Two formats cover nearly all public logs: A (`step:1/20000 train_loss:6.9370 …`) and B
(`1/20000 train_loss: 6.9370 …`, settings under `Hyperparameters:`). Some tell the same in prose,
or sum it up at the end. What a log does not say is None, never guessed. Nothing in a log can make
the reading fail: it may be cut off, binary, of another encoding, or hold the source of its own
script.

How a line says its fact is in sweeper/loglines.py; which of the final metrics is the headline,
sweeper/scores.py decides.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import replace

from sweeper import loglines
from sweeper.contract import Event, is_finite
from sweeper.logfacts import LogFacts, reasons
from sweeper.loglines import Rule, number
from sweeper.pace import Interval, stalls
from sweeper.scores import Kind, Score, name_score
from sweeper.seen import Seen

__all__ = [
    "Interval",
    "LogFacts",
    "LogParser",
    "Score",
    "parse",
    "parse_runs",
    "reasons",
    "runs_of",
    "stalls",
]

MOST_RUNS = 1_000


class LogParser:
    """Takes a log line by line; what it has seen so far are its `facts`.

    Its memory is bounded whatever it is given: it keeps facts, not lines. `step` is the last one
    that it has seen.
    """

    def __init__(self) -> None:
        self.seen = Seen()
        self._line = 0
        self.step = 0
        self._trained_step = 0
        self._started = False  # whether it has seen the first step, or one before it
        self._training = False
        self._block: str | None = None  # of settings, or of a summary
        self._phase: str | None = None

    @property
    def trained(self) -> bool:
        """Whether it has seen more of training than its first step."""
        return self.step > 1

    @property
    def started(self) -> bool:
        """Whether it has seen where training starts: step 0 or 1."""
        return self._started

    @property
    def training(self) -> bool:
        """Whether it has seen a step of training: its loss, or a validation after the start's."""
        return self._training

    def feed(self, line: str, number: int | None = None) -> list[Event]:
        """Take in one line, the next or that of a number; what it says as events.

        They are as `events.jsonl` would hold them.
        """
        return self.take(loglines.strip(line), self._line + 1 if number is None else number)

    def take(self, text: str | None, line: int) -> list[Event]:
        """Take in a line of the log, the n-th, as `loglines.strip` leaves it."""
        self._line = line
        if text is None:
            return []
        if self._block is not None:
            ended = self._take_of_block(text)
            if ended is None:
                return []
            return ended + (self._take(text) if text else [])
        return self._take(text) if text else []

    def _take(self, text: str) -> list[Event]:
        if text[0] in " \t":
            return []
        if text[0] in "sS0123456789" and (step := loglines.step(text)) is not None:
            return self._take_step(text, step)
        if text == "Hyperparameters:":
            self._block, self.seen.form = "settings", self.seen.form or "log-b"
            return self._enter("setup")
        if text == "---" and self.trained:
            self._block = "summary"
            return []
        if "bpb" in text or "BPB" in text:
            scored = self._take_score(text)
            if scored is not None:
                return scored
        return self._take_facts(text)

    # ---- blocks

    def _take_of_block(self, text: str) -> list[Event] | None:
        """Take in a line of the block; where it is none, leave the block, with what that says."""
        if self._block == "settings":
            if (setting := loglines.SETTING.match(text)) is not None:
                self.seen.set(setting[1].lower(), setting[2].strip(), self._line)
                return None
            self._block = None
            config = dict(self.seen.settings)
            return [{"kind": "config", "adapter": self.seen.form, "config": config}]
        if (told := loglines.SUMMARY_LINE.match(text)) is not None:
            self._take_summary(told[1], told[2])
            return None
        self._block = None
        return []

    def _take_summary(self, name: str, text: str) -> None:
        """A line of a summary; what has been said in passing is more exact."""
        if re.fullmatch(loglines.NUMBER, text) is None:
            return
        if name == "val_bpb":
            self._score("summary", Kind.SUMMARY, None, text, None)
        elif name == "val_loss":
            self.seen.complete("summary", number(text), text, self._line)
        elif name in loglines.OF_SUMMARY:
            fact, read = loglines.OF_SUMMARY[name]
            value = read(text)
            if value is not None:
                self.seen.keep(fact, value, self._line, first=True)

    # ---- training

    def _take_step(self, text: str, match: re.Match[str]) -> list[Event]:
        seen, step, line = self.seen, int(match[1]), self._line
        if seen.form is None:
            seen.form = loglines.FORMS[match.re]
        if match[2]:
            seen.keep("iterations", int(match[2]), line)
        values = {name: number(value) for name, value in loglines.LOSS.findall(text)}
        self._train(step, "val_loss" in values)
        seen.keep("step", step, line)
        spent, exact = self._clock(text, step)
        if (average := loglines.STEP_AVG.search(text)) is not None and step > 0:
            seen.keep("step_avg_ms", float(average[1]), line)
        if "val_loss" in values:
            seen.keep("val_step", step, line)
            seen.keep("step_val_bpb", values.get("val_bpb"), line)
            seen.keep("step_val_loss", values["val_loss"], line)
            seen.forget("averaged")
            # Format B times in tenths of a minute: good for progress, not a fact.
            if exact and spent is not None:
                seen.keep("train_time_ms", spent, line)
            fields = {"val_loss": values["val_loss"], "val_bpb": values.get("val_bpb")}
            return [{"kind": "val", "step": step, **fields, "metric": "plain"}]
        event = {
            "kind": "step",
            "step": step,
            "iterations": seen.get("iterations"),
            "train_loss": values.get("train_loss", values.get("loss")),
            "train_time_ms": spent,
            "step_avg_ms": seen.get("step_avg_ms"),
            "progress": self._progress(step, spent),
        }
        return [*self._enter("train"), event]

    def _train(self, step: int, validates: bool) -> None:
        """Note how far training is, and where it begins, also where it begins again."""
        if not validates:
            if step <= self._trained_step:
                self.seen.train_again(self._line)
            self._trained_step = step
        if not self._training and (not validates or (self._started and step > 1)):
            self._training = True
            self.seen.begin_training()
        self._started = self._started or step <= 1
        self.step = step

    def _clock(self, text: str, step: int) -> tuple[float | None, bool]:
        """The training time that a step's line states, in ms, and whether to a second at least.

        Minutes are too coarse for the time between steps; there the tokens per second tell, which
        count from the start.
        """
        found = loglines.TIME.search(text)
        if found is None:
            return None, False
        unit = found[2] or found[4]
        spent = float(found[1] or found[3]) * loglines.MILLISECONDS[unit]
        if unit != "m":
            self.seen.pace.at(step, spent)
            return spent, True
        self.seen.keep("minutes", spent, self._line)
        rate = loglines.TOKENS_A_SECOND.search(text)
        tokens = _as_float(self.seen.settings.get("train_batch_tokens"))
        if rate is not None and tokens and float(rate[1]) > 0:
            self.seen.pace.at(step, 1000.0 * step * tokens / float(rate[1]))
        return spent, False

    def _progress(self, step: int, spent: float | None) -> float:
        """The share of the training budget that is used, of its steps or of its time."""
        parts = [step / max(1, int(self.seen.get("iterations") or step or 1))]
        limit = _as_float(self.seen.settings.get("max_wallclock_seconds"))
        if spent is not None and limit:
            parts.append(spent / 1000 / limit)
        return min(1.0, max(parts))

    # ---- scores

    def _take_score(self, text: str) -> list[Event] | None:
        """A line with a final metric; None where it has none."""
        found = loglines.score(text)
        if found is None:
            return None
        name, kind = name_score(found.name)
        if kind is None:
            return []
        timed = loglines.PASS_TIME.search(text)
        seconds = None
        if timed is not None:
            seconds = float(timed[1]) * loglines.MILLISECONDS[timed[2]] / 1000
        return self._score(name, kind, found.val_loss, found.val_bpb, seconds)

    def _score(
        self, name: str, kind: Kind, loss: str | None, bpb: str, seconds: float | None
    ) -> list[Event]:
        score = self.seen.score(
            Score(
                name=name,
                kind=kind,
                val_loss=None if loss is None else number(loss),
                val_bpb=number(bpb),
                eval_time_s=seconds,
                digits=loglines.decimals(bpb),
                val_loss_text=loss,
                val_bpb_text=bpb,
                line=self._line,
            )
        )
        event = {"kind": "val", "val_loss": score.val_loss, "val_bpb": score.val_bpb}
        step = self.seen.get("step")
        return [event | {"step": step, "metric": kind.value, "eval_time_s": score.eval_time_s}]

    # ---- all else

    def _take_facts(self, text: str) -> list[Event]:
        events: list[Event] = []
        for rule in loglines.RULES.get(text[:4], ()):
            events += self._follow(rule, text)
        if ", total: " in text:
            for rule in loglines.MODEL_AND_TOTAL:
                events += self._follow(rule, text)
        for word, rule in loglines.SOMEWHERE:
            if word in text:
                self._follow(rule, text)
        if ":done elapsed=" in text and (done := loglines.UNSCORED_PASS.match(text)) is not None:
            self.seen.passed(done[1], float(done[2]), self._line)
        if self.step == 0:
            if self.seen.form != "log-b" and ":" in text:
                self._take_pairs(text)
        elif loglines.AVERAGED.search(text) is not None:
            self.seen.keep("averaged", True, self._line)
        return events

    def _follow(self, rule: Rule, text: str) -> list[Event]:
        found = rule.pattern.match(text)
        # A seed after training is one of something else.
        if found is None or (rule.name == "seed" and self.step > 0):
            return []
        if rule.forgets is not None:
            self.seen.forget(rule.forgets)
        self.seen.keep(rule.name, rule.read(found[1]), self._line, first=rule.first)
        return [] if rule.phase is None else self._enter(rule.phase)

    def _take_pairs(self, text: str) -> None:
        """The settings that format A prints as `name:value name:value`, the seed among others."""
        words = text.split()
        pairs = [loglines.TOKEN.fullmatch(word) for word in words if ":" in word]
        alone = len(pairs) == len(words) and all(pairs)
        for pair in pairs:
            if pair is None:
                continue
            if pair[1] == "seed" and pair[2].isdecimal() and len(pair[2]) < 20:
                self.seen.keep("seed", int(pair[2]), self._line, first=True)
            if alone:
                self.seen.set(pair[1].lower(), pair[2], self._line)

    def _enter(self, phase: str) -> list[Event]:
        if phase == self._phase:
            return []
        self._phase = phase
        return [{"kind": "phase", "phase": phase}]

    def facts(self) -> LogFacts:
        """What the lines so far say."""
        return self.seen.facts()


def parse(lines: Iterable[str]) -> LogFacts:
    """What a log of one run says."""
    parser = LogParser()
    for line in lines:
        parser.feed(line)
    return parser.facts()


def parse_runs(lines: Iterable[str]) -> list[LogFacts]:
    """What a log says that may hold several runs, one after the other, in their order.

    Of more than a thousand the rest is not read, and the last one notes it.
    """
    return runs_of(enumerate(lines, start=1))


def runs_of(lines: Iterable[tuple[int, str]]) -> list[LogFacts]:
    """The same, of lines with their numbers."""
    runs = Runs()
    for place, line in lines:
        runs.feed(line, place)
        if runs.full:
            break
    return runs.facts()


class Runs:
    """Takes a log line by line that may hold several runs, and tells where one ends.

    A line as scripts begin with may come again after training, where data is opened again to
    calibrate or to adapt. It begins another run only where training follows; till that is known,
    what comes is taken in as of both.
    """

    def __init__(self) -> None:
        self._found: list[LogFacts] = []
        self._run = LogParser()
        self._begun: set[str] = set()  # what has been said of the beginnings of a run
        # What may be another run, from which line on, and what the run had said before it.
        self._next: LogParser | None = None
        self._from = 0
        self._before = Seen()

    @property
    def full(self) -> bool:
        """Whether there are more runs than are read."""
        return len(self._found) == MOST_RUNS

    def feed(self, line: str, number: int) -> None:
        text = loglines.strip(line)
        if text and (begun := loglines.begins(text)) is not None:
            self._may_begin(begun, number)
        if self._next is not None:
            self._next.take(text, number)
            if self._next.training:
                following, self._next = self._next, None
                if self._is_another(following):
                    self._end(following)
                    return
            elif text and self._goes_back(text):
                return
        self._run.take(text, number)

    def _may_begin(self, begun: str, number: int) -> None:
        again = begun in self._begun and begun not in loglines.STEPS_BEGIN
        self._begun.add(begun)
        if self._next is None:
            # A start that broke off before training leaves its beginning alone.
            if not (self._run.trained or again):
                return
        elif not self._next.seen.ending():
            return
        self._next, self._from, self._before = LogParser(), number, self._run.seen.copy()

    def _is_another(self, following: LogParser) -> bool:
        """Whether what trains now is another run, not the same one resumed or adapted."""
        seeds = {self._before.seed, following.seen.seed} - {None}
        if len(seeds) == 2 or not self._run.trained:
            return len(seeds) == 2
        back = following.step < self._run.step or following.started
        return back or self._before.steps is not None

    def _end(self, following: LogParser) -> None:
        before = self._before.facts()
        self._run, self._begun = following, set()
        # Of a start that broke off before its first step there is nothing to tell.
        if before.last_step is not None:
            self._found.append(before)
        if self.full:
            note = f"the log goes on after {MOST_RUNS:,} runs, from line {self._from:,}: not read"
            self._found[-1] = replace(before, notes=(*before.notes, note))

    def _goes_back(self, text: str) -> bool:
        """Whether a line is of a step before the last: a validation that is not the run's."""
        step = loglines.step(text) if text[0] in "sS0123456789" else None
        return step is not None and int(step[1]) < self._run.step

    def facts(self) -> list[LogFacts]:
        """What the lines so far say, run by run."""
        return self._found if self.full else [*self._found, self._run.facts()]


def _as_float(text: str | None) -> float | None:
    try:
        value = float(text or "nan")
    except ValueError:
        return None
    return value if is_finite(value) else None
