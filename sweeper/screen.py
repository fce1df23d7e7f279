"""A sweep on one screen: how it stands, its slots, its runs, what has failed, what happened.

Everything that does not fit is counted, never left out in silence; busy and failed runs go first.
"""

from __future__ import annotations

import re
import time
from collections import Counter
from collections.abc import Iterable, Sequence

from rich.console import Group
from rich.text import Text

from sweeper.columns import run_lines
from sweeper.pulse import SlotPulse, SlotState
from sweeper.rows import NoteRow, RunState
from sweeper.stages import Stage
from sweeper.view import RunView, SearchView, SweepView
from sweeper.words import clock, first_line, shorten_gpus

# Of a screen's height: how much at most each part beside the runs' table takes, and its least.
PART, LEAST_PART = 6, 2
LEAST_TABLE = 3
SHOWN_LOSSES = 4
DAY_SECONDS = 86_400
SECONDS_PER_HOUR = 3_600
SLOT_ORDER = [SlotState.BUSY, SlotState.IDLE, SlotState.OPENING]


def render(view: SweepView, width: int | None = None, height: int | None = None) -> Group:
    """The sweep as a picture of so many columns and lines, as far as it is possible.

    Without `width` nothing is cut off, without `height` nothing is left out.
    """
    part = None if height is None else max(LEAST_PART, height // PART)
    above = [*_headlines(view, part), *_first(_host_lines(view.slots), part, "hosts")]
    below = _first(_failures(view.runs), part, "failures")
    below += [_note(note) for note in view.notes[-(part or len(view.notes)) :]]
    rows = None
    if height is not None:
        # The table has a heading, one run at least, and what is not shown.
        room = height - LEAST_TABLE
        above = above[: max(1, room)]
        below = below[: max(0, room - len(above))]
        rows = max(1, height - len(above) - len(below) - 1)
    lines = [*above, *_runs(view.runs, width, rows), *below]
    for line in lines:
        line.no_wrap, line.overflow = width is not None, "ellipsis"
    return Group(*lines)


def _runs(runs: Sequence[RunView], width: int | None, rows: int | None) -> list[Text]:
    """The runs, or as many as there are rows for; and what the others are."""
    if rows is None or len(runs) <= rows:
        return run_lines(runs, width)
    shown = most_telling(runs, max(1, rows - 1))
    seen = {(run.trial, run.seed) for run in shown}
    others = Counter(run.state for run in runs if (run.trial, run.seed) not in seen)
    words = [f"{others[state]} {state}" for state in RunState if others[state]]
    rest = Text(f"… and {others.total()} more: {', '.join(words)}", "dim")
    return [*run_lines(shown, width), *([rest] if rows > 1 else [])]


def most_telling(runs: Sequence[RunView], count: int) -> list[RunView]:
    """So many runs: the busy and the failed first, then what is tried again, then the latest."""
    by_state = {state: [run for run in runs if run.state is state] for state in RunState}
    # However many are at work, failures are seen.
    room = max(1, count - min(len(by_state[RunState.FAILED]), max(1, count // 4)))
    waiting = by_state[RunState.PENDING]
    ordered = [
        *by_state[RunState.RUNNING][:room],
        *by_state[RunState.FAILED],
        *(run for run in waiting if run.attempts),
        *reversed(by_state[RunState.FINISHED]),
        *(run for run in waiting if not run.attempts),
    ]
    return ordered[:count]


def _first(lines: Sequence[Text], count: int | None, what: str) -> list[Text]:
    """So many of the lines; the last one says how many there are beside."""
    if count is None or len(lines) <= count:
        return list(lines)
    left_out = len(lines) - count + 1
    return [*lines[: count - 1], Text(f"… and {left_out} more {what}", "dim")]


# ---- how it stands


def _headlines(view: SweepView, part: int | None) -> list[Text]:
    said = [Text(line, "bold yellow") for line in headlines(view)]
    lines = [Text(_describe_runs(view), "bold"), Text(_describe_means(view))]
    return [*(line for line in lines if line), *_first(said, part, "such lines")]


def headlines(view: SweepView) -> list[str]:
    """What is to be known of a sweep beside its runs, a line each; nothing while all is well."""
    if not view.driver.alive:
        gone = f"no driver is running; `sweeper resume {view.name}` goes on"
        return [] if view.over else [gone]
    paused = [] if view.paused is None else [f"paused: {view.paused}"]
    out = [f"{node.host} takes no more runs: {first_line(node.why)}" for node in view.quarantined]
    return paused + out


def _describe_runs(view: SweepView) -> str:
    """Runs by state, and the time left."""
    finished, failed = view.count(RunState.FINISHED), view.count(RunState.FAILED)
    if view.search is None:
        parts = [f"{view.name}: {finished}/{len(view.runs)} runs done"]
    else:
        parts = [f"{view.name}: {_describe_search(view.search)}, {finished} runs done"]
    if failed:
        parts.append(f"{failed} failed")
    if pruned := view.count(RunState.PRUNED):
        parts.append(f"{pruned} given up")
    parts.append(f"{view.count(RunState.RUNNING)} running")
    if not view.over and view.search is None:
        left = view.seconds_left
        parts.append("time left unknown yet" if left is None else f"about {clock(left)} left")
    return ", ".join(parts)


def _describe_search(search: SearchView) -> str:
    """Where a search is: configurations that are settled, of how many."""
    of = f"{search.planned}" if search.planned is not None else f"{search.entered} so far"
    return f"{search.stage}, {search.settled} of {of} settled"


def _describe_means(view: SweepView) -> str:
    """What the sweep has cost, and what its driver does."""
    parts = [_describe_cost(view)]
    states = Counter(slot.state for slot in view.slots)
    slots = ", ".join(f"{states[state]} {state}" for state in SLOT_ORDER if states[state])
    parts.append(f"slots: {slots}" if slots else "")
    later = f", {view.backing_off} of them later" if view.backing_off else ""
    parts.append(f"{view.waiting} waiting{later}" if view.waiting else "")
    if view.driver.alive:
        parts.append(f"driver: process {view.driver.pid} on {view.driver.host}")
    return "; ".join(part for part in parts if part)


def _describe_cost(view: SweepView) -> str:
    hours = f"{view.gpu_seconds / SECONDS_PER_HOUR:.2f} GPU hours" if view.gpu_seconds else ""
    cost = "" if view.cost_usd is None else f"${view.cost_usd:,.2f}"
    return ", ".join(part for part in (hours, cost) if part)


def summarise(view: SweepView) -> str:
    """The sweep in one line: runs by state, time left, losses, what it has cost."""
    parts = [_describe_runs(view)]
    losses = [run.train_loss for run in view.runs if run.state is RunState.RUNNING]
    known = [loss for loss in losses if loss is not None]
    if 0 < len(known) <= SHOWN_LOSSES:
        parts.append("loss " + " ".join(f"{loss:.3f}" for loss in known))
    parts.append(_describe_cost(view))
    return ", ".join(part for part in parts if part)


# ---- slots


def _host_lines(slots: Iterable[SlotPulse]) -> list[Text]:
    """A line a host: what its GPUs do."""
    hosts: dict[str, list[SlotPulse]] = {}
    for slot in slots:
        if slot.host is not None:
            hosts.setdefault(slot.host, []).append(slot)
    widest = max(map(len, hosts), default=0)
    lines = []
    for host, here in sorted(hosts.items()):
        line = Text(f"{host:{widest}}  ", "blue")
        for number, slot in enumerate(sorted(here, key=_gpu_order)):
            line.append(" · " if number else "", "dim")
            line.append(f"{describe_slot(slot)}", "" if slot.trial else "dim")
        lines.append(line)
    return lines


def describe_slot(slot: SlotPulse) -> str:
    """One slot in a few words: its GPUs and the run on them."""
    words = [shorten_gpus(slot.gpus)] if slot.gpus else []
    words.append(slot.state if slot.trial is None else f"{slot.trial}/{slot.seed}")
    if slot.stage not in (None, Stage.ALL):
        words.append(str(slot.stage))
    return " ".join(words)


def _gpu_order(slot: SlotPulse) -> tuple[str, int, str]:
    first = re.match(r"\d+", slot.gpus)
    return slot.pool, int(first[0]) if first else -1, slot.gpus


# ---- what went wrong, and what happened


def _failures(runs: Iterable[RunView]) -> list[Text]:
    """A line for each run that has failed or waits to be tried again, and why."""
    lines = []
    for run in runs:
        failed = run.state is RunState.FAILED
        if failed or (run.state is RunState.PENDING and run.message):
            words = "failed" if failed else "waits for its next try"
            why = first_line(run.message or "no reason is recorded")
            text = f"{run.trial}/{run.seed} {words} (attempt {run.attempts}): {why}"
            lines.append((not failed, Text(text, "red" if failed else "yellow")))
    return [line for _, line in sorted(lines, key=lambda item: item[0])]


def _note(note: NoteRow) -> Text:
    far = abs(time.time() - note.t) > DAY_SECONDS
    when = time.strftime("%Y-%m-%d %H:%M" if far else "%H:%M:%S", time.localtime(note.t))
    return Text(f"{when}  {note.kind}: {first_line(note.text)}", "dim")
