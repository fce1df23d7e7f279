"""The pictures of a search: what was tried, when, and what it scored. Units are on the axes."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path

from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.markers import CARETUP
from matplotlib.ticker import FuncFormatter, MaxNLocator, PercentFormatter

from sweeper.curves import Curve, curves_of, last_attempts
from sweeper.drawing import (
    COLOURS,
    GREY,
    MARKERS,
    PALE,
    Dot,
    draw_dots,
    draw_lines,
    key,
    label_of,
    write,
)
from sweeper.entries import EntryState
from sweeper.findings import Findings
from sweeper.layout import SweepDir
from sweeper.ledger import Ledger
from sweeper.space import Param
from sweeper.standings import Standing, Standings

WIDTH, HEIGHT, LINE = 3.4, 3.4, 0.17  # of a panel, and of a line of the legend, inches
MOST_TICKS = 7
SPREAD = 0.5  # of the dots of one choice, in distances of choices

Apart = tuple[str, tuple[object, ...]]  # a parameter, and its choices


def write_figures(found: Findings, directory: Path) -> list[Path]:
    """Write every picture of a search as SVG and PNG; returns the files."""
    if not _panels(found):
        return []
    pictures: dict[str, Callable[[], Figure]] = {"history": partial(draw_history, found)}
    for name, param in found.search.space.items():
        if param.value is None and _panels(found, name):
            pictures[f"slice-{name}"] = partial(draw_slice, found, name)
    if any(row.bytes_max is not None for stage in _panels(found) for row in stage.rows):
        pictures["bytes"] = partial(draw_bytes, found)
    if found.importances:
        pictures["importance"] = partial(draw_importances, found)
    return [path for name, draw in pictures.items() for path in write(draw, directory, name)]


def write_curves(sweep: SweepDir, ledger: Ledger) -> list[Path]:
    """Write the losses of every trial's runs as SVG, as far as there are any; returns the files."""
    attempts = last_attempts(ledger)
    seeds: dict[int, list[int]] = {}
    for trial, seed in attempts:
        seeds.setdefault(trial, []).append(seed)
    paths = []
    for trial, some in seeds.items():
        curves = curves_of(sweep, attempts, trial, some)
        # As its directory is called; the seeds and their attempts are below that.
        name = Path(attempts[trial, some[0]].path).parent.parent.name
        if curves:
            draw = partial(draw_curves, curves)
            paths += write(draw, sweep.figures / "losses", name, forms=("svg",))
    return paths


# ---- pictures


def draw_slice(found: Findings, name: str) -> Figure:
    """Scores against one parameter, a panel a stage, told apart by a categorical one."""
    param, apart = found.search.space[name], _apart(found, besides=name)
    stages, off, crossed = _panels(found, name), False, False
    figure, panels = _figure(stages)
    for axes, stage in zip(panels, stages, strict=True):
        rows = [row for row in stage.rows if name in row.entry.params]
        at = {row.entry.number: _place(param, row.entry.params[name], row) for row in rows}
        off |= _draw_rows(found, axes, stage, rows, at, apart)
        for row in rows:
            if not row.evidence and row.state is EntryState.FAILED:
                top, crossed = axes.get_xaxis_transform(), True
                axes.plot(at[row.entry.number], 0.98, "x", color=GREY, transform=top)
        if param.choices is not None:
            axes.set_xticks(range(len(param.choices)), [str(each) for each in param.choices])
            axes.set_xlim(-0.6, len(param.choices) - 0.4)
        else:
            axes.set_xscale("log" if param.log else "linear")
            _span(axes, param)
        axes.set_xlabel(name)
    _finish(figure, panels, stages, _keys(stages, apart, off, crossed=crossed))
    return figure


def draw_history(found: Findings) -> Figure:
    """Every configuration when its last seed ended, and the best so far, stage by stage."""
    stages, apart, off = _panels(found), _apart(found), False
    # A run that counts in several stages is one.
    ends = {
        (row.name, seed): end
        for stage in stages
        for row in stage.rows
        for seed, end in row.ended.items()
    }
    figure, panels = _figure(stages)
    for axes, stage in zip(panels, stages, strict=True):
        at = {
            row.entry.number: float(sum(end <= max(row.ended.values()) for end in ends.values()))
            for row in _scored(stage)
        }
        off |= _draw_rows(found, axes, stage, stage.rows, at, apart)
        if not stage.rung.fresh:  # whose first was the best before
            _draw_best(axes, stage, at)
        axes.set_xlabel("runs finished since the search began")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=6))
    best = key("best so far, of those with all their seeds", color=GREY, marker="", linestyle="-")
    _finish(figure, panels, stages, [*_keys(stages, apart, off), best])
    return figure


def draw_bytes(found: Findings) -> Figure:
    """Scores against the largest artifact, with the budget, and what nothing smaller beats."""
    apart, off = _apart(found), False
    stages = [
        stage for stage in _panels(found) if any(row.bytes_max is not None for row in stage.rows)
    ]
    figure, panels = _figure(stages)
    for axes, stage in zip(panels, stages, strict=True):
        sized = {row.entry.number: float(row.bytes_max) for row in stage.rows if row.bytes_max}
        rows = [row for row in stage.rows if row.entry.number in sized]
        off |= _draw_rows(found, axes, stage, rows, sized, apart, _score(stage))
        _draw_front(axes, stage, sized)
        axes.axvline(stage.max_bytes, color="black", linestyle="--", linewidth=1)
        axes.set_xlabel("artifact, the largest of its seeds (bytes)")
        axes.xaxis.set_major_locator(MaxNLocator(nbins=4))
        axes.xaxis.set_major_formatter(FuncFormatter(lambda size, _: f"{size:,.0f}"))
        axes.tick_params(axis="x", labelrotation=15)
    budget = f"budget, {stages[0].max_bytes:,} bytes"
    lines = [
        key("nothing smaller is better", color=GREY, marker="", linestyle="-"),
        key(budget, color="black", marker="", linestyle="--"),
    ]
    _finish(figure, panels, stages, [*_keys(stages, apart, off), *lines], _score(stages[0]))
    return figure


def draw_importances(found: Findings) -> Figure:
    """How much each parameter matters, by the surrogate and by where the best lie."""
    names = list(found.importances)[::-1]
    measures = {
        "of the variance that the surrogate sees": [found.importances[n].variance for n in names],
        "of what tells the best from the rest": [found.importances[n].best for n in names],
    }
    figure = Figure(figsize=(5.5, 1.4 + 0.45 * len(names)), layout="constrained")
    axes = figure.add_subplot()
    for number, (label, shares) in enumerate(measures.items()):
        places = [place + 0.18 - 0.36 * number for place in range(len(names))]
        colour = COLOURS[0] if number == 0 else "none"
        bars = axes.barh(
            places, shares, 0.32, label=label, color=colour, edgecolor=COLOURS[0], linewidth=1
        )
        axes.bar_label(bars, [f"{100 * share:.0f} %" for share in shares], padding=3, fontsize=7)
    axes.set_yticks(range(len(names)), names)
    axes.set_xlim(0, 1.15 * max(max(shares) for shares in measures.values()))
    axes.xaxis.set_major_formatter(PercentFormatter(1.0, symbol=" %"))
    axes.set_xlabel(f"share (stage {found.importance_of})")
    figure.legend(loc="outside lower center")
    return figure


def draw_curves(curves: Sequence[Curve]) -> Figure:
    """Training loss and validations of a trial's runs, a line a seed."""
    losses = [(curve.label, curve.losses) for curve in curves if curve.losses]
    scores = [(curve.label, curve.validations) for curve in curves if curve.validations]
    panels = [
        (lines, label)
        for lines, label in (
            (losses, "training loss (nats per token)"),
            (scores, "validation on the way (bits per byte)"),
        )
        if lines
    ]
    if not panels:
        figure = Figure(figsize=(4.2, 1.0))
        figure.text(0.5, 0.5, "no step yet", ha="center", va="center")
        return figure
    figure = Figure(figsize=(4.2 * len(panels), 3.0), layout="constrained")
    places = figure.subplots(1, len(panels), squeeze=False)[0]
    for axes, (lines, label) in zip(places, panels, strict=True):
        draw_lines(axes, lines)
        axes.set_ylabel(label)
    return figure


# ---- parts


def _panels(found: Findings, name: str | None = None) -> list[Standings]:
    """The stages with scores, of a parameter where one is named."""
    return [
        stage
        for stage in found.stages
        if any(name is None or name in row.entry.params for row in _scored(stage))
    ]


def _scored(stage: Standings) -> list[Standing]:
    return [row for row in stage.rows if row.evidence]


def _score(stage: Standings) -> int:
    """The objective to be drawn against bytes: the first that is none itself."""
    return next((n for n, name in enumerate(stage.objectives) if not name.startswith("bytes")), 0)


def _apart(found: Findings, besides: str | None = None) -> Apart | None:
    """The parameter that dots are told apart by: the first one with a few choices."""
    for name, param in found.search.space.items():
        if name != besides and param.choices is not None and len(param.choices) <= len(MARKERS):
            return name, param.choices
    return None


def _place(param: Param, value: object, row: Standing) -> float:
    """Where a value stands on its axis; dots of one choice, or of one step, beside each other."""
    aside = row.entry.number * 0.618 % 1 - 0.5
    if param.choices is not None:
        return [*map(repr, param.choices)].index(repr(value)) + SPREAD * aside
    assert isinstance(value, int | float)
    return float(value) + (0.0 if param.step is None else SPREAD * float(param.step) * aside)


def _span(axes: Axes, param: Param) -> None:
    """The whole range of a parameter, so that the panels and what was not tried can be compared."""
    assert param.low is not None
    assert param.high is not None
    if param.log:
        margin = (param.high / param.low) ** 0.04
        axes.set_xlim(param.low / margin, param.high * margin)
    else:
        margin = max(0.04 * (param.high - param.low), 0.6 * SPREAD * float(param.step or 0))
        axes.set_xlim(param.low - margin, param.high + margin)
        axes.xaxis.set_major_locator(MaxNLocator(nbins=6, integer=param.is_int))
        values = param.lattice()
        if values is not None and len(values) <= MOST_TICKS:
            axes.set_xticks(values)


def _figure(stages: Sequence[Standings]) -> tuple[Figure, list[Axes]]:
    """A panel a stage. Those of the same settings share a scale; short runs score otherwise."""
    figure = Figure(figsize=(0.8 + WIDTH * len(stages), HEIGHT), layout="constrained")
    panels = list(figure.subplots(1, len(stages), squeeze=False)[0])
    for number, stage in enumerate(stages):
        alike = [s.rung.env == stage.rung.env and s.objectives == stage.objectives for s in stages]
        if (first := alike.index(True)) < number:
            panels[number].sharey(panels[first])
    return figure, panels


def _draw_rows(
    found: Findings,
    axes: Axes,
    stage: Standings,
    rows: Sequence[Standing],
    at: Mapping[int, float],
    apart: Apart | None,
    objective: int = 0,
) -> bool:
    """The configurations of a stage that have scores, each at its place; as `draw_dots`."""
    dots = []
    for row in rows:
        mean = row.summary(objective).mean
        if mean is None:
            continue
        sigma = found.sigmas[stage.rung.name] if objective == 0 else 0.0
        choice = None if apart is None else row.entry.params.get(apart[0])
        dots.append(
            Dot(
                x=at[row.entry.number],
                y=mean,
                error=sigma / math.sqrt(len(row.evidence)),
                kind=apart[1].index(choice) if apart is not None and choice in apart[1] else 0,
                hollow=stage.feasible(row) is False,
                pale=row.state is not EntryState.COMPLETE,
            )
        )
    return draw_dots(axes, dots, stage.signs[objective])


def _draw_best(axes: Axes, stage: Standings, at: Mapping[int, float]) -> None:
    sign, rows = stage.signs[0], [row for row in _scored(stage) if stage.eligible(row)]
    best: list[tuple[float, float]] = []
    for row in sorted(rows, key=lambda row: at[row.entry.number]):
        mean = row.summary().mean or 0.0
        if not best or sign * mean < sign * best[-1][1]:
            best.append((at[row.entry.number], mean))
    if best:
        best.append((max(at.values()), best[-1][1]))
        axes.step(*zip(*best, strict=True), where="post", color=GREY, linewidth=1, zorder=1)


def _draw_front(axes: Axes, stage: Standings, sized: Mapping[int, float]) -> None:
    """From the smallest on, whatever is better than all that is smaller."""
    score = _score(stage)
    sign = stage.signs[score]
    front: list[tuple[float, float]] = []
    for row in sorted(stage.rows, key=lambda row: sized.get(row.entry.number, math.inf)):
        mean = row.summary(score).mean
        if row.entry.number not in sized or mean is None or row.state is not EntryState.COMPLETE:
            continue
        if not front or sign * mean < sign * front[-1][1]:
            front.append((sized[row.entry.number], mean))
    if front:
        front.append((max(sized.values()), front[-1][1]))
        axes.step(*zip(*front, strict=True), where="post", color=GREY, linewidth=1, zorder=1)


def _keys(
    stages: Sequence[Standings], apart: Apart | None, off: bool, *, crossed: bool = False
) -> list[Artist]:
    """What the marks mean that are in the picture; `crossed` where failed ones are."""
    rows = [(stage, row) for stage in stages for row in stage.rows]
    keys = []
    if apart is not None:
        keys = [key(f"{apart[0]}={each}", kind=n) for n, each in enumerate(apart[1])]
    if any(stage.feasible(row) is False for stage, row in rows):
        keys.append(key("too large", color=GREY, marker="o", markerfacecolor="none"))
    if any(row.evidence and row.state is not EntryState.COMPLETE for _, row in rows):
        keys.append(key("pruned, failed or not over", color=GREY, marker="o", alpha=PALE))
    if off:
        keys.append(key("off the scale", color=GREY, marker=CARETUP, alpha=PALE))
    if crossed:
        keys.append(key("failed", color=GREY, marker="x"))
    keys.append(key("± σ/√n, σ pooled in the stage", color=GREY, marker="|", markersize=9))
    return keys


def _finish(
    figure: Figure,
    panels: Sequence[Axes],
    stages: Sequence[Standings],
    keys: Sequence[Artist],
    objective: int = 0,
) -> None:
    """Titles, labels and the legend."""
    for axes, stage in zip(panels, stages, strict=True):
        seeds = len(stage.seeds)
        kind = "fresh seed" if stage.rung.fresh else "seed"
        title = f"{stage.rung.name}: {seeds} {kind}{'' if seeds == 1 else 's'}"
        settings = ", ".join(f"{name}={value}" for name, value in stage.rung.env.items())
        axes.set_title(f"{title}, {settings}" if settings else title)
    labels = [label_of(stage.objectives[objective]) for stage in stages]
    for axes, label, before in zip(panels, labels, [None, *labels], strict=False):
        if label != before:
            axes.set_ylabel(label)
    columns = min(len(keys), len(stages), 3)
    figure.set_figheight(HEIGHT + LINE * math.ceil(len(keys) / columns))
    figure.legend(handles=list(keys), loc="outside lower center", ncols=columns)
