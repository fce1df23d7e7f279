"""What records hold, as a table for people and as rows for programs."""

from __future__ import annotations

import io
import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sweeper.errors import UserError
from sweeper.evidence.record import Claimed, LoggedRun, Record
from sweeper.pace import Interval, stalls
from sweeper.words import finite, shown

if TYPE_CHECKING:
    import pandas as pd

# Facts of a log that are given as they are, in the order of a row's columns.
FACTS = (
    *("prequant_val_bpb", "prequant_val_loss", "quant_val_bpb", "quant_val_loss", "steps"),
    *("iterations", "train_time_ms", "step_avg_ms", "hessian_time_s", "eval_time_s"),
    *("bytes_total", "bytes_code", "bytes_model", "peak_memory_mib", "world_size"),
    *("train_shards", "val_tokens", "stop_reason"),
)
COUNTS = (
    *("steps", "iterations", "bytes_total", "bytes_code", "bytes_model", "world_size"),
    *("train_shards", "val_tokens"),
)
CLAIMS = ("submission.json", "README.md")
# Columns of a table of runs -> their types in pandas, which know missing values.
TYPES = {
    **dict.fromkeys(("record", "path"), "string"),
    **dict.fromkeys(("run_in_file", "runs_in_file", "seed"), "Int64"),
    "seed_from": "string",
    "counted": "boolean",
    "excluded": "string",
    **dict.fromkeys(("val_bpb", "val_loss"), "Float64"),
    **dict.fromkeys(("val_bpb_text", "metric", "headline"), "string"),
    **dict.fromkeys(FACTS, "Float64"),
    **dict.fromkeys(COUNTS, "Int64"),
    **dict.fromkeys(("stop_reason", "log_format", "log_sha256"), "string"),
}
HEADINGS = (
    *("log", "seed", "val_bpb", "metric", "before quant.", "steps", "train s", "Hessians s"),
    *("eval s", "bytes", "MiB", "GPUs", "shards", "val tokens", "counts"),
)
SUMMARY_HEADINGS = (
    *("record", "n", "mean val_bpb", "sample std", "metric", "bytes max", "claimed", "difference"),
)
LEFT = ("log", "metric", "counts", "record")
NONE = "–"
NAMED = 3  # logs that a remark names


def run_fields(run: LoggedRun) -> dict[str, Any]:
    """All that is known of a run; what is not there is None, with a reason in `missing`."""
    facts = run.facts
    return {
        "path": shown(run.path),
        "run_in_file": run.number,
        "runs_in_file": run.of,
        "seed": run.seed,
        "seed_from": run.seed_from,
        "counted": run.counts,
        "excluded": run.excluded,
        "val_bpb": run.val_bpb,
        "val_loss": run.val_loss,
        "val_bpb_text": run.val_bpb_text,
        "metric": run.metric,
        "headline": run.headline,
        **{name: getattr(facts, name) for name in FACTS},
        "log_format": facts.form,
        "log_sha256": run.sha256,
    }


def run_details(run: LoggedRun) -> dict[str, Any]:
    """What is no single value: every final metric, the settings, step times, and why what is not
    there is not.
    """
    slow = stalls(run.facts.intervals)
    return {
        "metrics": [asdict(score) | {"kind": score.kind.value} for score in run.facts.scores],
        "hyperparameters": dict(run.facts.hyperparameters),
        "intervals": [_interval(each) for each in run.facts.intervals],
        "stalls": [_interval(each) for each in slow],
        "lines": dict(run.facts.lines),
        "missing": dict(run.missing),
        "notes": list(run.facts.notes),
    }


def _interval(each: Interval) -> dict[str, float]:
    return {"begin": each.begin, "end": each.end, "ms": each.ms, "step_ms": each.step_ms}


def summary_fields(record: Record) -> dict[str, Any]:
    """A record in single values: over the runs that count, beside what is claimed."""
    summary, claim = record.summary, record.claim
    mean = None if len(record.metrics) > 1 else summary.mean
    std = None if len(record.metrics) > 1 else summary.std
    return {
        "record": shown(Path(record.name)),
        "path": shown(record.path),
        "n": summary.n,
        "seeds": [run.seed for run in record.counted],
        "metric": " and ".join(record.metrics) or None,
        "val_bpb_mean": mean,
        "val_bpb_std": std,
        "val_bpb_std_population": None if mean is None else record.std_population,
        "val_bpb_low": None if mean is None else summary.low,
        "val_bpb_high": None if mean is None else summary.high,
        "bytes_max": record.bytes_max,
        "claimed_val_bpb": _value(claim.val_bpb),
        "claimed_val_bpb_std": _value(claim.val_bpb_std),
        "claimed_bytes": _value(claim.bytes_total),
        "val_bpb_difference": _less(claim.val_bpb, mean),
        "val_bpb_std_difference": _less(claim.val_bpb_std, std),
        "bytes_difference": _less(claim.bytes_total, record.bytes_max),
    }


def _value(claim: Claimed | None) -> float | None:
    return None if claim is None else claim.value


def _less(claim: Claimed | None, found: float | None) -> float | None:
    """By how much a claim is above what the logs say."""
    return None if claim is None or found is None else claim.value - found


def record_fields(record: Record) -> dict[str, Any]:
    """A record as an object of JSON."""
    claim = record.claim
    return {
        **summary_fields(record),
        "chosen_by": record.chosen_by,
        "notes": list(record.notes),
        "claims": {
            "error": claim.error,
            "val_bpb": _claim(claim.val_bpb),
            "val_loss": _claim(claim.val_loss),
            "val_bpb_std": _claim(claim.val_bpb_std),
            "bytes_total": _claim(claim.bytes_total),
            "bytes_code": _claim(claim.bytes_code),
            "seeds": list(claim.seeds),
            "per_seed": {
                key: {fact: each.value for fact, each in facts.items()}
                for key, facts in claim.per_seed.items()
            },
            "readme": [_claim(each) for each in claim.readme],
        },
        "runs": [run_fields(run) | run_details(run) for run in record.runs],
    }


def _claim(claim: Claimed | None) -> dict[str, Any] | None:
    return None if claim is None else {"value": claim.value, "where": claim.where}


# ---- for programs


def as_json(records: Iterable[Record]) -> str:
    return json.dumps(finite([record_fields(record) for record in records]), indent=1)


def rows(records: Iterable[Record]) -> list[dict[str, Any]]:
    """A row a run, with the name of its record."""
    return [
        {"record": shown(Path(record.name))} | run_fields(run)
        for record in records
        for run in record.runs
    ]


def _frame(records: Iterable[Record]) -> pd.DataFrame:
    """The rows; each column has the same type whatever is in it, so that tables can be joined."""
    import pandas as pd

    frame = pd.DataFrame(finite(rows(records)), columns=list(TYPES))
    return frame.astype(TYPES)


def as_csv(records: Iterable[Record]) -> str:
    return str(_frame(records).to_csv(index=False)).rstrip("\n")


def as_parquet(records: Iterable[Record]) -> bytes:
    buffer = io.BytesIO()
    _frame(records).to_parquet(buffer, index=False)
    return buffer.getvalue()


def check_out(out: Path, records: Iterable[Record]) -> None:
    """UserError where a file would be written over one that it was made from."""
    kept = list(records)
    read = {run.path.resolve() for record in kept for run in record.runs}
    read |= {record.path.resolve() / name for record in kept for name in CLAIMS}
    if out.resolve() in read:
        raise UserError(f"{out}: is one of the files that were read; name another with --out")


# ---- for people


def as_text(records: Sequence[Record], form: str) -> str:
    """The records in a form that is text: each one's table, and of several one more of all."""
    if form in ("json", "csv"):
        return as_json(records) if form == "json" else as_csv(records)
    markdown = form == "markdown"
    tables = [as_markdown(record) if markdown else as_table(record) for record in records]
    if len(records) > 1:
        table = [SUMMARY_HEADINGS, *map(_summary_cells, records)]
        title = f"{len(records)} records, {sum(len(record.runs) for record in records)} runs"
        tables.append(_markdown(title, table) if markdown else _rich(title, table))
    return "\n\n".join(tables)


def _summary_cells(record: Record) -> tuple[str, ...]:
    fields = summary_fields(record)
    difference = fields["val_bpb_difference"]
    return (
        *(record.name, str(fields["n"]), _text(fields["val_bpb_mean"], ".6f")),
        *(_text(fields["val_bpb_std"], ".6f"), fields["metric"] or NONE),
        *(_text(fields["bytes_max"], ",d"), _text(fields["claimed_val_bpb"])),
        # Without a sign of its own for nothing.
        NONE if difference is None else f"{round(difference, 6) + 0.0:+.6f}",
    )


def _rich(title: str, rows: Sequence[Sequence[str]]) -> str:
    """A table for a terminal, as wide as it needs to be."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(title=Text(title), title_justify="left")
    for heading in rows[0]:
        left = heading in LEFT
        table.add_column(
            heading, justify="left" if left else "right", no_wrap=heading not in ("counts",)
        )
    for row in rows[1:]:
        # As Text: a name may hold what rich takes for markup.
        table.add_row(*map(Text, row))
    buffer = io.StringIO()
    Console(file=buffer, width=220, color_system=None).print(table)
    return "\n".join(line.rstrip() for line in buffer.getvalue().rstrip().splitlines())


def _markdown(title: str, rows: Sequence[Sequence[str]]) -> str:
    sides = [":--" if heading in LEFT else "--:" for heading in rows[0]]
    table = [
        "| " + " | ".join(" ".join(cell.replace("|", "\\|").split()) for cell in row) + " |"
        for row in (rows[0], sides, *rows[1:])
    ]
    return "\n".join([f"### {title}", "", *table])


def as_table(record: Record) -> str:
    """A record for a terminal."""
    table = [HEADINGS, *map(_cells, record.runs)]
    return "\n".join([_rich(record.name, table), *remarks(record)])


def as_markdown(record: Record) -> str:
    table = [HEADINGS, *map(_cells, record.runs)]
    lines = [_markdown(record.name, table), "", *(f"- {each}" for each in remarks(record))]
    return "\n".join(lines)


def _cells(run: LoggedRun) -> tuple[str, ...]:
    facts = run.facts
    return (
        *(run.label, _text(run.seed), run.val_bpb_text or NONE, run.metric or NONE),
        *(_text(facts.prequant_val_bpb), _text(facts.steps, ",d")),
        *(_seconds(facts.train_time_ms, 1000), _seconds(facts.hessian_time_s)),
        *(_seconds(facts.eval_time_s), _text(facts.bytes_total, ",d")),
        *(_text(facts.peak_memory_mib, ",.0f"), _text(facts.world_size)),
        *(_text(facts.train_shards), _text(facts.val_tokens, ",d"), run.excluded or "yes"),
    )


def _text(value: float | None, form: str = "") -> str:
    return NONE if value is None else format(value, form)


def _seconds(value: float | None, scale: float = 1) -> str:
    return NONE if value is None else f"{value / scale:,.1f}"


def remarks(record: Record) -> list[str]:
    """What a table of a record is read with: the mean, what is claimed, what is missing."""
    return [
        *_means(record),
        *_claims(record),
        *record.notes,
        *(f"{run.label}: {note}" for run in record.counted for note in run.facts.notes),
        *_stall_remarks(record.counted),
        *_missing(record.counted),
    ]


def _means(record: Record) -> Iterator[str]:
    summary = record.summary
    if summary.mean is None:
        yield "no run in it has a final score"
        return
    if len(record.metrics) > 1:
        yield f"its runs are scored by {' and '.join(record.metrics)}, which have no mean"
        return
    spread = "" if summary.std is None else f" ± {summary.std:.8f} (sample)"
    also = "" if summary.std is None else f", {record.std_population:.8f} (population)"
    largest = "" if record.bytes_max is None else f"; largest artifact {record.bytes_max:,d} bytes"
    yield f"val_bpb {summary.mean:.8f}{spread}{also}, n = {summary.n}{largest}"
    if record.excluded:
        yield f"what counts: {record.chosen_by}"


def _claims(record: Record) -> Iterator[str]:
    claim, summary = record.claim, summary_fields(record)
    if claim.error is not None:
        yield f"submission.json cannot be read: {claim.error}"
    for name, each, difference in (
        ("val_bpb", claim.val_bpb, summary["val_bpb_difference"]),
        ("std", claim.val_bpb_std, summary["val_bpb_std_difference"]),
        ("bytes", claim.bytes_total, summary["bytes_difference"]),
    ):
        if each is None:
            continue
        beside = "" if difference is None else f", {_beside(difference, name)}"
        yield f"claimed {name} {each.text}{beside} ({each.where})"


def _beside(difference: float, name: str) -> str:
    if name == "bytes":
        return f"{difference:+,.0f} from the logs" if difference else "as in the logs"
    return "as in the logs" if abs(difference) < 5e-9 else f"{difference:+.8f} from the logs"


def _stall_remarks(runs: Sequence[LoggedRun]) -> Iterator[str]:
    for run in runs:
        slow = stalls(run.facts.intervals)
        if slow:
            worst = max(slow, key=lambda each: each.step_ms)
            yield (
                f"{run.label}: {len(slow)} stall{'s' * (len(slow) > 1)}, the worst at steps "
                f"{worst.begin} to {worst.end} with {worst.step_ms:,.0f} ms a step"
            )


def _missing(runs: Sequence[LoggedRun]) -> Iterator[str]:
    """Each reason once, with the logs that it is true of."""
    reasons: dict[tuple[str, str], list[str]] = {}
    for run in runs:
        for name, why in run.missing.items():
            reasons.setdefault((name, why), []).append(run.label)
    for (name, why), labels in reasons.items():
        all_of_them = len(labels) == len(runs)
        more = f" and {len(labels) - NAMED} more" if len(labels) > NAMED else ""
        where = "" if all_of_them else f" ({', '.join(labels[:NAMED])}{more})"
        yield f"not known: {name}{where}: {why}"
