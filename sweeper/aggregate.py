"""A sweep's ledger as tables: one row a run, one row a trial; as text, Markdown, CSV and JSON.

A trial's numbers are over its finished seeds; `n` and `seeds` say how many of how many there
are, so that a missing seed is never dropped in silence.
"""

from __future__ import annotations

import json
import statistics
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import pandas as pd

from sweeper.layout import SweepDir
from sweeper.ledger import Ledger
from sweeper.rows import AttemptRow, RunRow, RunState
from sweeper.standings import read_standings, stages_of_runs
from sweeper.stats import Summary, summarise
from sweeper.tables import AND, as_markdown, as_table, records

Result = dict[str, Any]


def _named(name: str, scale: float = 1.0) -> Callable[[Result], float | None]:
    def measure(result: Result) -> float | None:
        value = result.get(name)
        return None if value is None else value / scale if scale != 1.0 else value

    return measure


def _gap(result: Result) -> float | None:
    """Both by plain windows, so that the gap holds quantisation and nothing else."""
    after, before = result.get("quant_val_bpb"), result.get("prequant_val_bpb")
    return None if after is None or before is None else after - before


# Column of the runs' table -> how it is computed from a result; None where that does not say it.
MEASURES: dict[str, Callable[[Result], float | None]] = {
    "val_bpb": _named("val_bpb"),
    "prequant_val_bpb": _named("prequant_val_bpb"),
    "quant_val_bpb": _named("quant_val_bpb"),
    "quantisation_gap": _gap,
    "val_loss": _named("val_loss"),
    "bytes_total": _named("bytes_total"),
    "bytes_code": _named("bytes_code"),
    "bytes_model": _named("bytes_model"),
    "steps": _named("steps"),
    "step_avg_ms": _named("step_avg_ms"),
    "train_s": _named("train_time_ms", 1000),
    "eval_s": _named("eval_time_s"),
}
# What has no mean over runs of different metrics: one may score a part of what another does.
SCORES = ("val_bpb", "prequant_val_bpb", "quant_val_bpb", "quantisation_gap", "val_loss")
GPU_SECONDS = ("gpu_s_reserved", "gpu_s_useful")
# A run whose steps take so much longer than others' do has had less training in its time.
SLOW = 1.05
FEWEST = 3  # of which there is a median worth the name
ON_FRESH = ", fresh seeds"  # ends the name of a search's trial where these are apart
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
    cost = ledger.spec.cost
    price = None if cost is None else cost.usd_per_gpu_hour
    rows = []
    for run in ledger.runs():
        mine = attempts.get(run.id, [])
        gpu_seconds = sum(reserved.get(attempt.id, 0.0) for attempt in mine)
        row = _run_row(run, trials[run.trial], mine, gpu_seconds)
        rows.append(row | {"cost_usd": None if price is None else gpu_seconds / 3600 * price})
    _mark_slow(rows)
    if ledger.spec.search is not None:
        stages = stages_of_runs(read_standings(ledger))
        rows = [{"stage": stages.get((row["trial"], row["seed"]))} | row for row in rows]
    return pd.DataFrame(rows) if rows else _no_runs()


def _no_runs() -> pd.DataFrame:
    """The table of a search that has not asked for a run yet."""
    run = RunRow(id=0, trial=0, seed=0, state=RunState.PENDING)
    row = _run_row(run, "", [], 0.0) | {"stage": None, "slow": None, "cost_usd": None}
    return pd.DataFrame([row]).iloc[:0]


def _mark_slow(rows: list[dict[str, Any]]) -> None:
    """Say of every run with a step time how much slower it was than the median, where it was.

    Its score depends on that where the time is limited. It is held against the runs of its trial
    where enough of them have finished, else against the sweep's.
    """
    by_trial: dict[str, list[float]] = {}
    for row in rows:
        row["slow"] = None
        if row["step_avg_ms"] is not None:
            by_trial.setdefault(row["trial"], []).append(row["step_avg_ms"])
    everywhere = [time for times in by_trial.values() for time in times]
    for row in rows:
        mine = by_trial.get(row["trial"], [])
        others = mine if len(mine) >= FEWEST else everywhere
        if row["step_avg_ms"] is None or len(others) < FEWEST:
            continue
        usual = statistics.median(others)
        if usual > 0 and row["step_avg_ms"] > SLOW * usual:
            row["slow"] = row["step_avg_ms"] / usual - 1


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
        "unconfirmed": None if result is None else ", ".join(result.get("unconfirmed") or ()),
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
    """One row a trial, in the spec's order: n, mean, sample std and 95 % t-interval by measure.

    Of a search a trial has a second one where it was run on fresh seeds: what these say is the
    result, and a mean with those that it was chosen by would not be.
    """
    runs, spec = runs_frame(ledger), ledger.spec
    on_fresh = runs["seed"].isin(spec.fresh_seeds)
    rows = []
    for trial in ledger.trials():
        mine = runs["trial"] == trial.name
        for kind, part in ((False, runs[mine & ~on_fresh]), (True, runs[mine & on_fresh])):
            if len(part) or (spec.search is None and not kind):
                row = _trial_row(trial.name, part, spec.budget.max_bytes)
                rows.append(row if spec.search is None else row | {"fresh": kind})
    return pd.DataFrame(rows) if rows else pd.DataFrame([_trial_row("", runs, 0)]).iloc[:0]


def _for_people(trials: pd.DataFrame) -> pd.DataFrame:
    """With names that tell a trial's fresh seeds from those that it was chosen by."""
    if "fresh" not in trials:
        return trials
    return trials.assign(trial=trials["trial"] + trials["fresh"].map({True: ON_FRESH, False: ""}))


def _trial_row(name: str, mine: pd.DataFrame, budget: int) -> dict[str, Any]:
    finished = mine[mine["state"] == RunState.FINISHED.value]
    row: dict[str, Any] = {
        "trial": name,
        "n": len(finished),
        "seeds": len(mine),
        "failed": int((mine["state"] == RunState.FAILED.value).sum()),
        "resumed": int(finished["resumed_from_step"].notna().sum()),
        "codes": int(finished["code"].nunique()),
    }
    metrics = sorted(set(finished["metric"]))
    row["metric"] = AND.join(metrics) or None
    for measure in MEASURES:
        mixed = measure in SCORES and len(metrics) > 1
        # A mean over the runs that happen to say it would be of other runs than the score's.
        unknown = mixed or finished[measure].isna().any()
        values = [] if unknown else [float(value) for value in finished[measure]]
        row |= _columns(measure, summarise(values))
    for measure in GPU_SECONDS:
        unknown = finished.empty or finished[measure].isna().any()
        row[f"{measure}_mean"] = None if unknown else float(finished[measure].mean())
    sizes = finished["bytes_total"]
    largest = None if finished.empty or sizes.isna().any() else int(sizes.max())
    fits = None if largest is None else largest <= budget
    row |= {"bytes_total_max": largest, "within_budget": fits}
    row["slow"] = int(mine["slow"].notna().sum())
    priced = mine["cost_usd"].notna().any()
    row["cost_usd"] = float(mine["cost_usd"].sum()) if priced else None
    unsure = [each for text in finished["unconfirmed"] for each in text.split(", ") if each]
    return row | {"unconfirmed": ", ".join(sorted(set(unsure)))}


def _columns(name: str, summary: Summary) -> dict[str, float | None]:
    columns = {f"{name}_mean": summary.mean, f"{name}_std": summary.std}
    if name == "val_bpb":
        columns |= {"val_bpb_low95": summary.low, "val_bpb_high95": summary.high}
    return columns


@contextmanager
def _looked_at(sweep: SweepDir) -> Iterator[Ledger]:
    """A sweep's ledger as it is at one moment, whatever its driver does."""
    with closing(Ledger.open_for_reading(sweep.ledger)) as ledger, ledger.snapshot():
        yield ledger


def report(sweep: SweepDir, form: str) -> str:
    """A sweep's results as text in one of FORMATS; UserError when there is no such sweep."""
    with _looked_at(sweep) as ledger:
        match form:
            case "json":
                return json.dumps(as_json(ledger), indent=1, allow_nan=False)
            case "csv":
                return trials_frame(ledger).to_csv(index=False).rstrip("\n")
            case "markdown":
                text = as_markdown(_for_people(trials_frame(ledger)), runs_frame(ledger))
                return _with_search(ledger, text, markdown=True)
        text = as_table(_for_people(trials_frame(ledger)), runs_frame(ledger), ledger.spec)
        return _with_search(ledger, text, markdown=False)


def _with_search(ledger: Ledger, text: str, *, markdown: bool) -> str:
    """What a search has found beside the table: before it on a page, after it in a terminal."""
    if ledger.spec.search is None:
        return text
    from sweeper import search_tables  # the surrogate and optuna take two seconds
    from sweeper.findings import find

    found = find(ledger)
    if markdown:
        return f"{search_tables.as_markdown(found)}\n\n## All configurations\n\n{text}"
    return f"{text}\n\n{search_tables.as_text(found)}"


def _search_json(ledger: Ledger) -> dict[str, Any]:
    if ledger.spec.search is None:
        return {}
    from sweeper.findings import as_json as search_json
    from sweeper.findings import find

    return {"search": search_json(find(ledger))}


def as_json(ledger: Ledger) -> dict[str, Any]:
    spec = ledger.spec
    return {
        "sweep": spec.name,
        "uid": ledger.uid,
        "metric": spec.metric,
        "seeds": list(spec.seeds),
        "budget_bytes": spec.budget.max_bytes,
        "cost_usd": None if spec.cost is None else float(runs_frame(ledger)["cost_usd"].sum()),
        "trials": records(trials_frame(ledger)),
        "runs": records(runs_frame(ledger)),
        **_search_json(ledger),
    }


def write_report(sweep: SweepDir) -> list[Path]:
    """Write report.csv (trials), runs.csv and report.json by rename; returns their paths.

    Of a search its pictures and report.md as well.
    """
    with _looked_at(sweep) as ledger:
        texts = {
            sweep.report_csv: trials_frame(ledger).to_csv(index=False),
            sweep.runs_csv: runs_frame(ledger).to_csv(index=False),
            sweep.report_json: json.dumps(as_json(ledger), indent=1, allow_nan=False),
        }
        pictures = _pictures(sweep, ledger)
        if ledger.spec.search is not None:
            text = as_markdown(_for_people(trials_frame(ledger)), runs_frame(ledger))
            text = _with_search(ledger, text, markdown=True)
            texts[sweep.report_md] = text + _links(sweep, pictures)
    for path, text in texts.items():
        partial = path.with_name(path.name + ".partial")
        partial.write_text(text)
        partial.replace(path)
    return [*texts, *pictures]


def write_pictures(sweep: SweepDir) -> list[Path]:
    """Write the pictures of a search, and of each trial's losses of any sweep; the files."""
    from sweeper.figures import write_curves

    with _looked_at(sweep) as ledger:
        return [*_pictures(sweep, ledger), *write_curves(sweep, ledger)]


def _pictures(sweep: SweepDir, ledger: Ledger) -> list[Path]:
    if ledger.spec.search is None:
        return []
    from sweeper.figures import write_figures
    from sweeper.findings import find

    return write_figures(find(ledger), sweep.figures)


def _links(sweep: SweepDir, pictures: list[Path]) -> str:
    """The pictures, for the end of a page that lies in the sweep's directory."""
    shown = [path.relative_to(sweep.path) for path in pictures if path.suffix == ".svg"]
    lines = [f"![{path.stem}]({path.as_posix()})" for path in shown]
    return "\n\n".join(["", "## Pictures", *lines, ""]) if lines else "\n"
