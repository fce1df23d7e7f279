"""A sweep's table for people, in a terminal or as Markdown, with what must be known beside it."""

from __future__ import annotations

import io
import math
from typing import Any

import pandas as pd
from rich.console import Console
from rich.table import Table
from rich.text import Text

from sweeper.spec import SweepSpec

SUBSET = "-subset"  # ends the name of a metric over a part of the validation tokens
NO_FULL_SCORE = "scored on a subset of the validation tokens: not a full score"
AND = " and "  # between the metrics of one trial's runs
HEADINGS = (
    "configuration",
    "n",
    "val_bpb",
    "before quantisation",
    "gap",
    "bytes mean",
    "bytes max",
    "steps",
    "ms/step",
    "train s",
    "eval s",
)
# Only where GPUs are used.
GPU_HEADINGS = ("GPU s", "useful %")


def records(frame: pd.DataFrame) -> list[dict[str, Any]]:
    """A frame's rows for JSON: missing values are None, counts stay whole."""
    return [
        {str(name): _plain(value) for name, value in row.items()}
        for row in frame.to_dict("records")
    ]


def _plain(value: Any) -> Any:
    if isinstance(value, float):
        if math.isnan(value):
            return None
        return int(value) if value.is_integer() and abs(value) >= 1e3 else value
    return value.item() if hasattr(value, "item") else value


def headings(trials: pd.DataFrame) -> tuple[str, ...]:
    """The headings of the table for people."""
    return (*HEADINGS, *GPU_HEADINGS) if _uses_gpus(trials) else HEADINGS


def _uses_gpus(trials: pd.DataFrame) -> bool:
    return bool((trials["gpu_s_reserved_mean"].fillna(0.0) > 0).any())


def rows_for_people(trials: pd.DataFrame) -> list[list[str]]:
    """A row a trial, a cell a heading."""
    gpus = _uses_gpus(trials)
    return [cells(row) + (gpu_cells(row) if gpus else []) for row in records(trials)]


def gpu_cells(row: dict[str, Any]) -> list[str]:
    """GPU-seconds reserved, and the share of them in which the run was computed."""
    reserved, useful = row["gpu_s_reserved_mean"], row["gpu_s_useful_mean"]
    share = 100 * useful / reserved if reserved and useful is not None else None
    return [_number(reserved, ",.0f"), _number(share, ".0f")]


def cells(row: dict[str, Any]) -> list[str]:
    """One trial's row as text, a cell for each of HEADINGS."""
    over = "" if row["within_budget"] in (True, None) else " over!"
    return [
        row["trial"],
        f"{row['n']}/{row['seeds']}",
        _spread(row["val_bpb_mean"], row["val_bpb_std"]),
        _spread(row["prequant_val_bpb_mean"], row["prequant_val_bpb_std"]),
        _number(row["quantisation_gap_mean"], "+.5f"),
        _number(row["bytes_total_mean"], ",.0f"),
        _number(row["bytes_total_max"], ",.0f") + over,
        _number(row["steps_mean"], ",.0f"),
        _number(row["step_avg_ms_mean"], ",.1f"),
        _number(row["train_s_mean"], ",.1f"),
        _number(row["eval_s_mean"], ",.1f"),
    ]


def as_table(trials: pd.DataFrame, runs: pd.DataFrame, spec: SweepSpec) -> str:
    """The table for a terminal, as wide as it needs to be."""
    # A search's trials have as many of them as it took to judge each.
    seeds = "" if spec.search is not None else " " + ", ".join(map(str, spec.seeds))
    table = Table(
        title=f"{spec.name}: val_bpb of the artifact, mean ± sample std over seeds{seeds}",
        title_justify="left",
    )
    for heading in headings(trials):
        first = heading == HEADINGS[0]
        table.add_column(
            _stack(heading),
            justify="left" if first else "right",
            no_wrap=True,
            overflow="ignore",
        )
    for row in rows_for_people(trials):
        # As Text: a name may hold what rich takes for markup.
        table.add_row(*map(Text, row))
    buffer = io.StringIO()
    Console(file=buffer, width=240, color_system=None).print(table)
    lines = [line.rstrip() for line in buffer.getvalue().rstrip().splitlines()]
    return "\n".join([*lines, *_remarks(trials, runs)])


def _stack(heading: str) -> str:
    return heading.replace(" ", "\n", 1) if heading.startswith(("before", "bytes")) else heading


def as_markdown(trials: pd.DataFrame, runs: pd.DataFrame) -> str:
    names = headings(trials)
    sides = [":--", *["--:"] * (len(names) - 1)]
    rows = [list(names), sides, *rows_for_people(trials)]
    lines = ["| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in rows]
    return "\n".join([*lines, *(f"\n{remark}" for remark in _remarks(trials, runs))])


def _remarks(trials: pd.DataFrame, runs: pd.DataFrame) -> list[str]:
    """What a reader must know before believing the table."""
    missing = trials[trials["n"] < trials["seeds"]]
    incomplete = [
        f"{row['trial']}: {row['n']} of {row['seeds']} seeds finished, {row['failed']} failed; "
        "not to be compared yet"
        for row in records(missing)
    ]
    resumed = [
        f"{row['trial']}: {row['resumed']} of {row['n']} runs were interrupted and resumed"
        for row in records(trials[trials["resumed"] > 0])
    ]
    mixed = [
        f"{row['trial']}: its runs are of {row['codes']} versions of the code, so not of one "
        "configuration"
        for row in records(trials[trials["codes"] > 1])
    ]
    unconfirmed = [
        f"{row['trial']}: its logs do not say whether the script took {row['unconfirmed']}"
        for row in records(trials[trials["unconfirmed"] != ""])
    ]
    return [
        *(*incomplete, *resumed, *mixed, *unconfirmed, *_metric_remarks(trials)),
        *(*_slow_remarks(runs), *_cost(runs)),
    ]


def _slow_remarks(runs: pd.DataFrame) -> list[str]:
    """Which runs had slower steps, and where: with limited time their scores suffer from it."""
    return [
        f"{row['trial']}, seed {row['seed']}: {100 * row['slow']:.0f} % slower steps than the "
        f"median, on {row['host']}"
        for row in records(runs[runs["slow"].notna()])
    ]


def _cost(runs: pd.DataFrame) -> list[str]:
    """What the sweep has cost so far, where its spec has a price."""
    if not runs["cost_usd"].notna().any():
        return []
    hours = runs["gpu_s_reserved"].sum() / 3600
    return [f"cost: ${runs['cost_usd'].sum():,.2f} for {hours:,.2f} GPU-hours reserved"]


def _metric_remarks(trials: pd.DataFrame) -> list[str]:
    """Which scores are of different kinds, or of less than the whole."""
    kinds: dict[str, list[str]] = {}
    for row in records(trials[trials["metric"].notna()]):
        kinds.setdefault(row["metric"], []).append(row["trial"])
    mixed = [
        f"{trial}: its runs are scored by different metrics ({kind}), so they have no mean"
        for kind, names in kinds.items()
        for trial in names
        if AND in kind
    ]
    apart = "; ".join(f"{kind}: {', '.join(names)}" for kind, names in kinds.items())
    between = f"trials are scored by different metrics, not to be compared: {apart}"
    partial = [
        f"{', '.join(names)}: {NO_FULL_SCORE}"
        for kind, names in kinds.items()
        if any(metric.endswith(SUBSET) for metric in kind.split(AND))
    ]
    return [*mixed, *([between] if len(kinds) > 1 else []), *partial]


def _spread(mean: float | None, std: float | None) -> str:
    if mean is None:
        return "–"
    return f"{mean:.5f}" if std is None else f"{mean:.5f} ± {std:.5f}"


def _number(value: float | None, form: str) -> str:
    return "–" if value is None else format(value, form)
