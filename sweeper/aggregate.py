"""A sweep's ledger as tables: one row a run, one row a trial; as text, Markdown, CSV and JSON.

A trial's numbers are over its finished seeds; `n` and `seeds` say how many of how many there
are, so that a missing seed is never dropped in silence.
"""

from __future__ import annotations

import io
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
from rich.console import Console
from rich.table import Table
from rich.text import Text

from sweeper.layout import SweepDir
from sweeper.ledger import AttemptRow, Ledger, RunRow, RunState
from sweeper.stats import Summary, summarise

# Column of the runs' table -> how it is computed from a result.
MEASURES: dict[str, Callable[[dict[str, Any]], float]] = {
    "val_bpb": lambda r: r["val_bpb"],
    "prequant_val_bpb": lambda r: r["prequant_val_bpb"],
    "quant_val_bpb": lambda r: r["quant_val_bpb"],
    # Both by plain windows, so that the gap holds quantisation and nothing else.
    "quantisation_gap": lambda r: r["quant_val_bpb"] - r["prequant_val_bpb"],
    "val_loss": lambda r: r["val_loss"],
    "bytes_total": lambda r: r["bytes_total"],
    "bytes_code": lambda r: r["bytes_code"],
    "bytes_model": lambda r: r["bytes_model"],
    "steps": lambda r: r["steps"],
    "step_avg_ms": lambda r: r["step_avg_ms"],
    "train_s": lambda r: r["train_time_ms"] / 1000,
    "eval_s": lambda r: r["eval_time_s"],
}
# What has no mean over runs of different metrics: one may score a part of what another does.
SCORES = ("val_bpb", "prequant_val_bpb", "quant_val_bpb", "quantisation_gap", "val_loss")
GPU_SECONDS = ("gpu_s_reserved", "gpu_s_useful")
SUBSET = "-subset"  # ends the name of a metric over a part of the validation tokens
NO_FULL_SCORE = "scored on a subset of the validation tokens: not a full score"
AND = " and "  # between the metrics of one trial's runs
FORMATS = ("table", "markdown", "json", "csv")


def runs_frame(ledger: Ledger) -> pd.DataFrame:
    """One row a run, in launch order; measures are missing where a run has not finished."""
    trials = {trial.number: trial.name for trial in ledger.trials()}
    attempts: dict[int, list[AttemptRow]] = {}
    for attempt in ledger.attempts():
        attempts.setdefault(attempt.run, []).append(attempt)
    reserved: dict[int, float] = {}
    for stage in ledger.stages():
        reserved[stage.attempt] = reserved.get(stage.attempt, 0.0) + stage.gpu_seconds
    rows = []
    for run in ledger.runs():
        mine = attempts.get(run.id, [])
        gpu_seconds = sum(reserved.get(attempt.id, 0.0) for attempt in mine)
        rows.append(_run_row(run, trials[run.trial], mine, gpu_seconds))
    return pd.DataFrame(rows)


def _run_row(
    run: RunRow, trial: str, attempts: list[AttemptRow], gpu_seconds: float
) -> dict[str, Any]:
    last = attempts[-1] if attempts else None
    result = last.result if last is not None and run.state is RunState.FINISHED else None
    measures = {name: None if result is None else get(result) for name, get in MEASURES.items()}
    return {
        "trial": trial,
        "seed": run.seed,
        "state": run.state.value,
        "attempts": len(attempts),
        "metric": None if result is None else result["metric"],
        **measures,
        # All attempts: a retry holds the GPUs as well.
        "gpu_s_reserved": gpu_seconds,
        "gpu_s_useful": None if result is None or last is None else _useful(last, result),
        "resumed_from_step": None if result is None else result.get("resumed_from_step"),
        "stop_reason": None if result is None else result.get("stop_reason"),
        "message": None if last is None else last.message,
        "code": None if last is None else last.code,
        "host": None if last is None else last.host,
        "gpus": None if last is None else last.gpus,
        "path": None if last is None else last.path,
    }


def _useful(attempt: AttemptRow, result: dict[str, Any]) -> float | None:
    """GPU-seconds in which a run was computed; None where its result is too old to say."""
    seconds = result.get("useful_s")
    gpus = len([gpu for gpu in attempt.gpus.split(",") if gpu])
    return gpus * float(seconds) if isinstance(seconds, int | float) else None


def trials_frame(ledger: Ledger) -> pd.DataFrame:
    """One row a trial, in the spec's order: n, mean, sample std and 95 % t-interval by measure."""
    runs = runs_frame(ledger)
    budget = ledger.spec.budget.max_bytes
    rows = []
    for trial in ledger.trials():
        mine = runs[runs["trial"] == trial.name]
        finished = mine[mine["state"] == RunState.FINISHED.value]
        row: dict[str, Any] = {
            "trial": trial.name,
            "n": len(finished),
            "seeds": len(mine),
            "failed": int((mine["state"] == RunState.FAILED.value).sum()),
            "resumed": int(finished["resumed_from_step"].notna().sum()),
            "codes": int(finished["code"].nunique()),
        }
        metrics = sorted(set(finished["metric"]))
        row["metric"] = AND.join(metrics) or None
        for name in MEASURES:
            mixed = name in SCORES and len(metrics) > 1
            values = [] if mixed else [float(value) for value in finished[name]]
            row |= _columns(name, summarise(values))
        for name in GPU_SECONDS:
            unknown = finished.empty or finished[name].isna().any()
            row[f"{name}_mean"] = None if unknown else float(finished[name].mean())
        largest = None if finished.empty else int(finished["bytes_total"].max())
        fits = None if largest is None else largest <= budget
        rows.append(row | {"bytes_total_max": largest, "within_budget": fits})
    return pd.DataFrame(rows)


def _columns(name: str, summary: Summary) -> dict[str, float | None]:
    columns = {f"{name}_mean": summary.mean, f"{name}_std": summary.std}
    if name == "val_bpb":
        columns |= {"val_bpb_low95": summary.low, "val_bpb_high95": summary.high}
    return columns


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


def report(sweep: SweepDir, form: str) -> str:
    """A sweep's results as text in one of FORMATS; UserError when there is no such sweep."""
    ledger = Ledger.open_for_reading(sweep.ledger)
    try:
        match form:
            case "json":
                return json.dumps(as_json(ledger), indent=1, allow_nan=False)
            case "csv":
                return trials_frame(ledger).to_csv(index=False).rstrip("\n")
            case "markdown":
                return as_markdown(trials_frame(ledger))
        return as_table(trials_frame(ledger), ledger)
    finally:
        ledger.close()


def as_json(ledger: Ledger) -> dict[str, Any]:
    spec = ledger.spec
    return {
        "sweep": spec.name,
        "uid": ledger.uid,
        "metric": spec.metric,
        "seeds": list(spec.seeds),
        "budget_bytes": spec.budget.max_bytes,
        "trials": records(trials_frame(ledger)),
        "runs": records(runs_frame(ledger)),
    }


def write_report(sweep: SweepDir) -> list[Path]:
    """Write report.csv (trials), runs.csv and report.json by rename; returns their paths."""
    ledger = Ledger.open_for_reading(sweep.ledger)
    try:
        texts = {
            sweep.report_csv: trials_frame(ledger).to_csv(index=False),
            sweep.runs_csv: runs_frame(ledger).to_csv(index=False),
            sweep.report_json: json.dumps(as_json(ledger), indent=1, allow_nan=False),
        }
    finally:
        ledger.close()
    for path, text in texts.items():
        partial = path.with_name(path.name + ".partial")
        partial.write_text(text)
        partial.replace(path)
    return list(texts)


# ---- for people

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


def as_table(trials: pd.DataFrame, ledger: Ledger) -> str:
    """The table for a terminal, as wide as it needs to be."""
    spec = ledger.spec
    table = Table(
        title=f"{spec.name}: val_bpb of the artifact, mean ± sample std over seeds "
        + ", ".join(map(str, spec.seeds)),
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
    return "\n".join([*lines, *_remarks(trials)])


def _stack(heading: str) -> str:
    return heading.replace(" ", "\n", 1) if heading.startswith(("before", "bytes")) else heading


def as_markdown(trials: pd.DataFrame) -> str:
    names = headings(trials)
    sides = [":--", *["--:"] * (len(names) - 1)]
    rows = [list(names), sides, *rows_for_people(trials)]
    lines = ["| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in rows]
    return "\n".join([*lines, *(f"\n{remark}" for remark in _remarks(trials))])


def _remarks(trials: pd.DataFrame) -> list[str]:
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
    return [*incomplete, *resumed, *mixed, *_metric_remarks(trials)]


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
