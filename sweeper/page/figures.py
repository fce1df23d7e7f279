"""The pictures of a page with what they show in words; which of them there is something for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING

from sweeper.page.facts import Facts, Group
from sweeper.page.html import Html, join, section, tag
from sweeper.page.parts import LEVEL, plural
from sweeper.rows import AttemptState
from sweeper.stats import summarise

if TYPE_CHECKING:
    from sweeper.findings import Findings
    from sweeper.page.plots import Bar, Draw

MOST_ROWS = 16  # configurations in a picture
DASHES = ("", "5 2", "1.2 1.6", "5 2 1.2 2")


class Album:
    """Puts pictures into a page; each has a number of its own, so that their ids differ."""

    def __init__(self) -> None:
        self._count = 0

    def figure(self, draw: Draw, title: str, text: str, *, broad: bool = False) -> Html:
        from sweeper.page.plots import svg

        self._count += 1
        picture = svg(draw, f"p{self._count}", f"{title}. {text}")
        if broad:
            facts = {"class_": "wide", "role": "region", "tabindex": "0", "aria_label": title}
            picture = tag("div", picture, **facts)
        caption = tag("figcaption", tag("b", title), f". {text}")
        return tag("figure", caption, picture, class_="plot broad" if broad else "plot")


def figures(page: Facts) -> Html:
    """All pictures that there is something for."""
    album = Album()
    kinds = {name: place for place, name in enumerate(page.traced)}
    return join([_search(page, album), _seeds(page, album, kinds), _training(page, album, kinds)])


# ---- seeds


def _seeds(page: Facts, album: Album, kinds: Mapping[str, int]) -> Html:
    """Scores, sizes and gaps, a dot a seed."""
    groups = [group for group in page.ranked if group.mean is not None]
    if page.found is not None:
        groups = _of_last_stage(page, groups)
    metric = groups[0].row["metric"] if groups else None
    others = [group for group in groups if group.row["metric"] != metric]
    groups = [group for group in groups if group.row["metric"] == metric]
    if not groups:
        return Html("")
    shown = groups[:MOST_ROWS]
    left = len(groups) - len(shown)
    which = f" The best {len(shown)} of {len(groups)}." if left > 0 else ""
    which += f" Only what is scored by {metric}." if others else ""
    dot = f"○ a seed, | their mean, the band its {LEVEL} interval by Student's t."
    parts = [_rows(album, shown, kinds, "val_bpb", "Score", dot + which)]
    if any(group.values("bytes_total") for group in shown):
        text = f"Artifacts against the budget of {page.budget:,} bytes, the dashed line.{which}"
        parts.append(_rows(album, shown, kinds, "bytes_total", "Bytes", text, page.budget))
    if any(group.values("quantisation_gap") for group in shown):
        text = f"What quantisation costs: after less before, both on plain windows.{which}"
        parts.append(_rows(album, shown, kinds, "quantisation_gap", "Quantisation gap", text))
    if any(group.values("step_avg_ms") for group in shown):
        text = f"The mean of each run: less time a step is more of them before a cap.{which}"
        parts.append(_rows(album, shown, kinds, "step_avg_ms", "Milliseconds per step", text))
    return section("seeds", "Seed by seed", tag("div", join(parts), class_="plots"))


UNITS = {
    "val_bpb": "val_bpb (bits per byte)",
    "bytes_total": "bytes",
    "quantisation_gap": "gap (bits per byte)",
    "step_avg_ms": "ms per step",
}


def _rows(
    album: Album,
    groups: Sequence[Group],
    kinds: Mapping[str, int],
    measure: str,
    title: str,
    text: str,
    limit: float | None = None,
) -> Html:
    from sweeper.page.plots import Series, draw_dots

    series = []
    for group in groups:
        values = tuple(group.values(measure))
        summary = summarise(values)
        bounds = (summary.low, summary.high) if measure == "val_bpb" else (None, None)
        kind = kinds.get(group.trial)
        if values:
            low, high = bounds
            series.append(Series(name=group.name, values=values, low=low, high=high, kind=kind))
    return album.figure(partial(draw_dots, series, UNITS[measure], limit=limit), title, text)


def _of_last_stage(page: Facts, groups: Sequence[Group]) -> list[Group]:
    """Of a search only those of its last stage: others ran at other settings."""
    assert page.found is not None
    table = page.found.confirming or page.found.choosing
    if table is None:
        return []
    names = {rival.name for rival in table.rivals}
    mine = [group for group in groups if group.trial in names]
    fresh = [group for group in mine if group.row.get("fresh")]
    return fresh or mine


# ---- training


def _training(page: Facts, album: Album, kinds: Mapping[str, int]) -> Html:
    """Curves of the best few configurations."""
    parts = [*_curves(page, album, kinds), *_time(page, album)]
    if not parts:
        return Html("")
    about = _which(page) + _legend(kinds) if page.traces else ""
    return section("training", "Training", about, tag("div", join(parts), class_="plots"))


def _curves(page: Facts, album: Album, kinds: Mapping[str, int]) -> list[Html]:
    from sweeper.page.plots import SETTLED, draw_lines, draw_times

    traces, parts = page.traces, []
    lines = partial(draw_lines, traces, kinds)
    if any(trace.losses for trace in traces):
        text = f"Without the first {100 * SETTLED:.0f} % of the steps, which tower above the rest."
        draw = partial(lines, lambda trace: trace.losses, "training loss (nats per token)")
        parts.append(album.figure(draw, "Loss", text))
    if any(trace.rates for trace in traces):
        text = "The multiplier of every learning rate."
        draw = partial(lines, lambda trace: trace.rates, "multiplier", settle=False)
        parts.append(album.figure(draw, "Learning rate", text))
    if any(len(trace.validations) > 1 for trace in traces):
        text = "Plain windows, before quantisation; from where the loss begins."
        draw = partial(lines, lambda trace: trace.validations, "bits per byte")
        parts.append(album.figure(draw, "Validation on the way", text))
    if any(trace.intervals for trace in traces):
        text = "Each interval by itself, not the mean so far; ▲ is above the scale."
        draw = partial(draw_times, traces, kinds)
        parts.append(album.figure(draw, "Step time", text))
    return parts


def _which(page: Facts) -> Html:
    """Whose curves are there, and whose are not."""
    count = len({group.trial for group in page.groups})
    text = "A line a run; the seeds of a configuration share its colour and dash."
    if len(page.traced) < count:
        text += (
            f" The first {plural(len(page.traced), 'configuration')} of {count}, the best first."
        )
    if any(trace.onsets for trace in page.traces):
        text += f" {_onsets(page)}"
    return tag("p", text, class_="note")


def _onsets(page: Facts) -> str:
    steps = sorted({step for trace in page.traces for step in trace.onsets})
    shown = ", ".join(f"{step:,}" for step in steps[:8]) + ("…" if len(steps) > 8 else "")
    return f"Dotted: layers begin to run again (step {shown})."


def _legend(kinds: Mapping[str, int]) -> Html:
    from sweeper.drawing import COLOURS

    items = []
    for name, kind in kinds.items():
        line = tag(
            "line",
            **{"x1": 0, "x2": 28, "y1": 5, "y2": 5, "stroke-width": 2.4},
            stroke=COLOURS[kind % len(COLOURS)].lower(),
            stroke_dasharray=DASHES[kind % len(DASHES)] or None,
        )
        swatch = tag("svg", line, viewBox="0 0 28 10", aria_hidden="true")
        items.append(tag("li", swatch, tag("span", name)))
    return tag("ul", join(items), class_="legend plot")


# ---- time


def _time(page: Facts, album: Album) -> list[Html]:
    """When the attempts were at work, side by side."""
    lanes = lanes_of(page)
    if not lanes:
        return []
    from sweeper.page.plots import MOST_LANES, draw_lanes

    longest = max(bar.begin + bar.seconds for lane in lanes for bar in lane)
    unit, scale = ("hours", 3600.0) if longest > 10_800 else ("minutes", 60.0)
    text = "A bar an attempt, those at work at the same time above each other; "
    text += "blue finished, orange failed, grey anything else."
    if len(lanes) > MOST_LANES:
        text += f" The first {MOST_LANES} of {len(lanes)} that were at work at once."
    draw = partial(draw_lanes, lanes, unit, scale)
    return [album.figure(draw, "When runs were at work", text)]


def lanes_of(page: Facts) -> list[list[Bar]]:
    """Attempts by when they were at work: each goes into the first lane that is free."""
    from sweeper.page.plots import Bar

    attempts = sorted(page.attempts, key=lambda attempt: attempt.launched)
    if not attempts:
        return []
    first = attempts[0].launched
    good, neutral = (
        {AttemptState.FINISHED},
        {
            AttemptState.LAUNCHED,
            AttemptState.STOPPED,
            AttemptState.PRUNED,
        },
    )
    lanes: list[list[Bar]] = []
    for attempt in attempts:
        kind = "finished" if attempt.state in good else "failed"
        kind = "other" if attempt.state in neutral else kind
        ended = page.now if attempt.ended is None else attempt.ended
        begin = attempt.launched - first
        bar = Bar(begin=begin, seconds=max(0.0, ended - attempt.launched), kind=kind)
        free = next((lane for lane in lanes if lane[-1].end <= begin), None)
        if free is None:
            lanes.append([bar])
        else:
            free.append(bar)
    return lanes


# ---- searches


def _search(page: Facts, album: Album) -> Html:
    """The pictures that the report of a search has, a panel a stage."""
    if page.found is None:
        return Html("")
    titles = {
        "history": ("What was tried, when", "Every configuration when its last seed ended."),
        "bytes": ("Score and bytes", "Against the largest artifact of its seeds."),
        "importance": ("What matters", "Shares of each setting, by two measures."),
    }
    parts = []
    for name, draw in pictures_of(page.found).items():
        of = name.removeprefix("slice-")
        title, text = titles.get(name, (of, f"Scores against {of}, a panel a stage."))
        parts.append(album.figure(draw, title, text, broad=name != "importance"))
    return section("pictures", "The search in pictures", tag("div", join(parts), class_="plots"))


def pictures_of(found: Findings) -> dict[str, Draw]:
    """The pictures of a search that there is something for, by their names."""
    from sweeper.figures import draw_bytes, draw_history, draw_importances, draw_slice

    rows = [row for stage in found.stages for row in stage.rows if row.evidence]
    if not rows:
        return {}
    pictures: dict[str, Draw] = {"history": partial(draw_history, found)}
    for name, param in found.search.space.items():
        if param.value is None and any(name in row.entry.params for row in rows):
            pictures[f"slice-{name}"] = partial(draw_slice, found, name)
    if any(row.bytes_max is not None for row in rows):
        pictures["bytes"] = partial(draw_bytes, found)
    if found.importances:
        pictures["importance"] = partial(draw_importances, found)
    return pictures
