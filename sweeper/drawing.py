"""How the pictures of a sweep are drawn: colours, shapes, files.

The colours are Okabe and Ito's, which most kinds of colour blindness tell apart; shapes, dashes and
fillings say the same in print. Text stays text in SVG.
"""

from __future__ import annotations

import io
import threading
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.markers import CARETDOWN, CARETUP

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
MARKERS = ("o", "s", "^", "D", "v", "P", "X")
DASHES = ("-", "--", ":", "-.")
GREY = "#777777"
STYLE: Any = {
    "font.size": 9,
    "svg.fonttype": "none",
    "svg.hashsalt": "sweeper",  # the same file every time
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titlesize": 9,
    "axes.titlelocation": "left",
    "axes.formatter.useoffset": False,
    "legend.fontsize": 8,
    "legend.frameon": False,
    "savefig.dpi": 150,
}
UNITS = {
    **dict.fromkeys(("val_bpb", "prequant_val_bpb", "quant_val_bpb"), "bits per byte"),
    **dict.fromkeys(("val_loss", "prequant_val_loss", "quant_val_loss"), "nats per token"),
    **dict.fromkeys(("bytes_total", "bytes_code", "bytes_model"), "bytes"),
    **dict.fromkeys(("step_avg_ms", "train_time_ms"), "ms"),
    "eval_time_s": "s",
    "peak_memory_mib": "MiB",
}
PALE = 0.35
# What is worse than three quarters of all by more than so many times the middle half is drawn at
# the edge: else one configuration that went astray would flatten the others.
FAR = 4.0
FEWEST = 5  # of which there is a middle half worth the name
_LOCK = threading.Lock()  # matplotlib's settings are everybody's


@dataclass(frozen=True, kw_only=True)
class Dot:
    """A configuration in a panel; `kind` chooses colour and shape, `error` is half of its bar."""

    x: float
    y: float
    error: float = 0.0
    kind: int = 0
    hollow: bool = False
    pale: bool = False


def label_of(objective: str) -> str:
    """An axis's label, with its unit."""
    unit = UNITS.get(objective)
    return objective if unit is None else f"{objective} ({unit})"


def write(
    draw: Callable[[], Figure], directory: Path, name: str, forms: Iterable[str] = ("svg", "png")
) -> list[Path]:
    """Draw a picture into a file of each form, by rename; returns their paths."""
    directory.mkdir(parents=True, exist_ok=True)
    paths = []
    with _LOCK, mpl.rc_context(STYLE):
        figure = draw()
        figure.draw_without_rendering()
        figure.set_layout_engine("none")  # once is enough
        for form in forms:
            path, partial = directory / f"{name}.{form}", directory / f".{name}.partial"
            metadata = {"Date": None} if form == "svg" else {"Software": None}
            figure.savefig(partial, format=form, metadata=metadata)
            partial.replace(path)
            paths.append(path)
    return paths


def as_png(draw: Callable[[], Figure]) -> bytes:
    """Draw a picture as the bytes of a PNG."""
    buffer = io.BytesIO()
    with _LOCK, mpl.rc_context(STYLE):
        draw().savefig(buffer, format="png")
    return buffer.getvalue()


def draw_dots(axes: Axes, dots: Sequence[Dot], sign: float = 1.0) -> bool:
    """Dots with their bars; whether some were so far off that they are drawn at the edge.

    `sign` · y is larger for worse ones; only on that side are any off.
    """
    edge = _edge([sign * dot.y for dot in dots])
    near: dict[tuple[int, bool, bool], list[Dot]] = {}
    off: dict[int, list[Dot]] = {}
    for dot in dots:
        if edge is not None and sign * dot.y > edge:
            off.setdefault(dot.kind, []).append(dot)
        else:
            near.setdefault((dot.kind, dot.hollow, dot.pale), []).append(dot)
    for (kind, hollow, pale), some in near.items():
        colour = COLOURS[kind % len(COLOURS)]
        axes.errorbar(
            [dot.x for dot in some],
            [dot.y for dot in some],
            yerr=[dot.error for dot in some],
            fmt=MARKERS[kind % len(MARKERS)],
            markersize=5.5,
            color=colour,
            markerfacecolor="none" if hollow else colour,
            elinewidth=1,
            alpha=PALE if pale else 1.0,
            zorder=2 if pale else 3,
        )
    for kind, some in off.items():
        caret, colour = CARETUP if sign > 0 else CARETDOWN, COLOURS[kind % len(COLOURS)]
        places = [dot.x for dot in some], [sign * (edge or 0.0)] * len(some)
        axes.plot(*places, marker=caret, color=colour, alpha=PALE, linestyle="none")
    return bool(off)


def _edge(values: Sequence[float]) -> float | None:
    """Where what lies far off is drawn; None where nothing does."""
    if len(values) < FEWEST:
        return None
    quarter, rest = np.quantile(values, [0.25, 0.75])
    edge = float(rest + FAR * (rest - quarter))
    return edge if max(values) > edge > quarter else None


def draw_lines(axes: Axes, lines: Sequence[tuple[str, Sequence[tuple[int, float]]]]) -> None:
    """Lines over steps, as many as there are seeds."""
    for number, (label, points) in enumerate(lines):
        axes.plot(
            *np.transpose(points),
            color=COLOURS[number % len(COLOURS)],
            linestyle=DASHES[number % len(DASHES)],
            linewidth=1.2,
            marker="." if len(points) < 20 else None,
            label=label,
        )
    later = [value for _, points in lines for _, value in points[len(points) // 10 :]]
    if max(value for _, points in lines for _, value in points) > 1.5 * max(later):
        axes.set_ylim(top=1.1 * max(later))  # the first steps are not what is looked for
    axes.set_xlabel("step")
    axes.legend()


def key(label: str, *, kind: int = 0, **options: object) -> Artist:
    """A mark and what it means, for a legend."""
    facts: dict[str, object] = {
        "color": COLOURS[kind % len(COLOURS)],
        "marker": MARKERS[kind % len(MARKERS)],
        "linestyle": "none",
        "markersize": 5.5,
    }
    return Line2D([], [], label=label, **(facts | options))  # type: ignore[arg-type]
