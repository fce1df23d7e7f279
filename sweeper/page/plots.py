"""The pictures of a page: a panel each, in colours that the page can change for the dark.

A configuration has one colour and one dash wherever it is drawn; names stand in the page beside
the pictures, so that they break and scroll as text does.
"""

from __future__ import annotations

import math
import tempfile
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.markers import CARETRIGHT, CARETUP
from matplotlib.ticker import FuncFormatter, MaxNLocator

from sweeper.drawing import COLOURS, DASHES, GREY, write
from sweeper.page.html import Html, clean
from sweeper.page.svg import inline
from sweeper.page.traces import Points, Trace

WIDTH, HEIGHT = 4.6, 2.7  # of a panel, inches
ROW, AROUND = 0.42, 0.62  # of a configuration's row, and what is above and below all
NAME_LETTERS = 46  # of a name in a picture
FAR = 6.0  # times the middle half: what is off by more is drawn at the edge
SAME = 1e-9  # relative differences of this size are those of rounding
SETTLED = 0.08  # of a run: before that its loss towers above the rest
MOST_LANES = 40
Draw = Callable[[], Figure]
STYLE: Any = {
    "text.parse_math": False,  # a name is no formula
    "figure.facecolor": "none",
    "axes.facecolor": "none",
    "axes.linewidth": 0.6,
    "axes.edgecolor": GREY,
    "xtick.color": GREY,
    "ytick.color": GREY,
    "axes.labelcolor": GREY,
    "xtick.labelsize": 8,
    "ytick.labelsize": 8,
    "axes.labelsize": 8,
}


@dataclass(frozen=True, kw_only=True)
class Series:
    """One configuration in a row of dots: a value a seed, and the 95 % interval of their mean.

    `kind` is its place among those that have a colour of their own; None: it has none.
    """

    name: str
    values: tuple[float, ...]
    low: float | None = None
    high: float | None = None
    kind: int | None = None


@dataclass(frozen=True, kw_only=True)
class Bar:
    """An attempt in time: from `begin` for so many `seconds`; `kind` is finished, failed, other."""

    begin: float
    seconds: float
    kind: str

    @property
    def end(self) -> float:
        return self.begin + self.seconds


def svg(draw: Draw, prefix: str, label: str) -> Html:
    """Draw a picture for a page, in the page's style."""

    def styled() -> Figure:
        mpl.rcParams.update(STYLE)  # until the picture is written; `write` takes it back
        return draw()

    with tempfile.TemporaryDirectory() as directory, warnings.catch_warnings():
        # The browser has other fonts, and glyphs that this one lacks.
        warnings.filterwarnings("ignore", message="Glyph .* missing")
        (path,) = write(styled, Path(directory), "picture", forms=("svg",))
        return inline(path.read_text(encoding="utf-8"), prefix, label)


def draw_dots(series: Sequence[Series], label: str, *, limit: float | None = None) -> Figure:
    """A row a configuration, the first on top: seeds, mean and interval; a line at the limit."""
    figure = Figure(figsize=(WIDTH, AROUND + ROW * len(series)), layout="constrained")
    axes = figure.add_subplot()
    low, high = _span(series, limit)
    for place, each in enumerate(series):
        _draw_row(axes, each, -place, low, high)
    if limit is not None:
        axes.axvline(limit, color="#000000", linestyle="--", linewidth=0.9)
    axes.set_xlim(low, high)
    axes.set_ylim(0.72 - len(series), 0.78)
    axes.set_yticks([])
    axes.spines["left"].set_visible(False)
    axes.set_xlabel(label)
    axes.xaxis.set_major_locator(MaxNLocator(nbins=5))
    if limit is not None or high >= 10_000:
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))
        axes.xaxis.set_major_locator(MaxNLocator(nbins=4))
    return figure


def _draw_row(axes: Axes, each: Series, y: float, low: float, high: float) -> None:
    colour = GREY if each.kind is None else COLOURS[each.kind % len(COLOURS)]
    name = clean(each.name)
    name = name if len(name) <= NAME_LETTERS else name[: NAME_LETTERS - 1] + "…"
    beside = axes.get_yaxis_transform()
    axes.text(0, y + 0.32, name, transform=beside, fontsize=8, va="bottom", ha="left")
    axes.axhline(y, color=GREY, linewidth=0.4, alpha=0.35, zorder=0)
    if each.low is not None and each.high is not None:
        ends = np.clip([each.low, each.high], low, high)
        axes.plot(ends, [y, y], color=colour, linewidth=4, alpha=0.25, solid_capstyle="butt")
    inside = [value for value in each.values if value <= high]
    axes.plot(inside, [y] * len(inside), "o", color=colour, markersize=5, markerfacecolor="none")
    if len(inside) < len(each.values):
        axes.plot([high], [y], marker=CARETRIGHT, color=colour, linestyle="none", clip_on=False)
    elif inside:
        mean = math.fsum(inside) / len(inside)
        axes.plot([mean], [y], "|", color=colour, markersize=13, markeredgewidth=1.8)


def _span(series: Sequence[Series], limit: float | None) -> tuple[float, float]:
    """From the least to the greatest value, without those far off on the worse side."""
    values = [value for each in series for value in each.values]
    quarter, rest = np.quantile(values, [0.25, 0.75])
    edge = float(rest + FAR * (rest - quarter)) if rest > quarter else max(values)
    low, high = min(values), max(value for value in values if value <= edge)
    room = high - low
    if room <= SAME * abs(high):
        room = abs(high) * 1e-3 or 1.0
    lows = [each.low for each in series if each.low is not None]
    highs = [each.high for each in series if each.high is not None]
    # Of few seeds an interval may be many times as wide as the seeds are apart.
    low, high = (
        max(min([low, *lows]), low - 1.5 * room),
        min(max([high, *highs]), high + 1.5 * room),
    )
    if limit is not None:
        low, high = min(low, limit), max(high, limit)
    margin = 0.06 * max(high - low, room)
    return float(low - margin), float(high + margin)


# ---- over the steps


def draw_lines(
    traces: Sequence[Trace],
    kinds: Mapping[str, int],
    points: Callable[[Trace], Points],
    label: str,
    *,
    settle: bool = True,
) -> Figure:
    """A line a run over its steps, and a dotted one where recurrence begins.

    With `settle` without the first steps, which tower above the rest.
    """
    figure, axes = _panel(label)
    for trace in traces:
        line = points(trace)
        if settle:
            line = tuple(point for point in line if point[0] >= SETTLED * line[-1][0])
        if not line:
            continue
        kind = kinds[trace.trial]
        axes.plot(
            *np.transpose(line),
            color=COLOURS[kind % len(COLOURS)],
            linestyle=DASHES[kind % len(DASHES)],
            linewidth=1.0,
            alpha=0.8,
            marker="." if len(line) < 12 else None,
        )
    axes.set_xlim(left=0)
    _mark_onsets(axes, traces, kinds)
    return figure


def _panel(label: str) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(WIDTH, HEIGHT), layout="constrained")
    axes = figure.add_subplot()
    axes.set_xlabel("step")
    axes.set_ylabel(label)
    axes.xaxis.set_major_locator(MaxNLocator(nbins=6, integer=True))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda step, _: f"{step:,.0f}"))
    axes.yaxis.set_major_locator(MaxNLocator(nbins=5))
    return figure, axes


def _mark_onsets(axes: Axes, traces: Sequence[Trace], kinds: Mapping[str, int]) -> None:
    """Where layers begin to run again; those of one step are one line."""
    steps: dict[int, set[str]] = {}
    for trace in traces:
        for step in trace.onsets:
            steps.setdefault(step, set()).add(trace.trial)
    for step, names in steps.items():
        kind = min(kinds[name] for name in names)
        colour = GREY if len(names) > 1 else COLOURS[kind % len(COLOURS)]
        axes.axvline(step, color=colour, linestyle=":", linewidth=1.1)
    if steps:
        first = min(steps)
        beside = axes.get_xaxis_transform()
        axes.text(first, 1.0, " recurrence", transform=beside, fontsize=7, color=GREY, va="bottom")


def draw_times(traces: Sequence[Trace], kinds: Mapping[str, int]) -> Figure:
    """Time a step, between one report and the next; what is far longer, at the upper edge."""
    figure, axes = _panel("ms per step, between reports")
    usual = [trace.usual_ms for trace in traces if trace.usual_ms is not None]
    times = [each.step_ms for trace in traces for each in trace.intervals]
    top = min(max(times), 2.2 * max(usual)) if usual else max(times)
    for trace in traces:
        if not trace.intervals:
            continue
        colour = COLOURS[kinds[trace.trial] % len(COLOURS)]
        ends, slow = _times(trace, top)
        axes.plot(*np.transpose(ends), color=colour, linewidth=0.9, alpha=0.75)
        if slow:
            axes.plot(slow, [top] * len(slow), marker=CARETUP, color=colour, linestyle="none")
    axes.set_ylim(0, 1.08 * top)
    _mark_onsets(axes, traces, kinds)
    return figure


def _times(trace: Trace, top: float) -> tuple[list[tuple[int, float]], list[int]]:
    """The line of a run, as the longest of neighbours; and the steps where it is over the top."""
    size = math.ceil(len(trace.intervals) / 240)
    some = [trace.intervals[n : n + size] for n in range(0, len(trace.intervals), size)]
    longest = [max(group, key=lambda each: each.step_ms) for group in some]
    line = [(each.end, min(each.step_ms, top)) for each in longest]
    return line, [each.end for each in longest if each.step_ms > top]


# ---- over time


def draw_lanes(lanes: Sequence[Sequence[Bar]], unit: str, scale: float) -> Figure:
    """Attempts as bars, those at work at once above each other; `scale` is a unit in seconds."""
    shown = lanes[:MOST_LANES]
    figure = Figure(figsize=(WIDTH, 0.7 + 0.2 * max(2, len(shown))), layout="constrained")
    axes = figure.add_subplot()
    kinds = {"finished": (COLOURS[0], 0.55), "failed": (COLOURS[1], 0.9), "other": (GREY, 0.4)}
    for place, lane in enumerate(shown):
        for kind, (colour, alpha) in kinds.items():
            spans = [(b.begin / scale, b.seconds / scale) for b in lane if b.kind == kind]
            if spans:
                options: Any = {"facecolors": colour, "edgecolors": "none", "alpha": alpha}
                axes.broken_barh(spans, (-place - 0.36, 0.72), **options)
    axes.set_yticks([])
    axes.spines["left"].set_visible(False)
    axes.set_ylim(0.5 - max(2, len(shown)), 0.6)
    axes.set_xlim(left=0)
    axes.xaxis.set_major_locator(MaxNLocator(nbins=6))
    axes.set_xlabel(f"{unit} since the sweep's first launch")
    return figure
