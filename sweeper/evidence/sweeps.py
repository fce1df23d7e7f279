"""A sweep's trial as a record: what its runs say, by their results and by their logs.

All seeds of the trial are in it. Those that have not finished do not count, and why is said; nor,
of a search's trial that was run on fresh seeds, do the seeds that it was chosen by.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

from sweeper.adapters import parse
from sweeper.errors import UserError
from sweeper.evidence.record import LoggedRun, Record
from sweeper.layout import SweepDir
from sweeper.ledger import Ledger
from sweeper.logfacts import reasons
from sweeper.logreader import Lines, find_logs, read_log
from sweeper.logs import launches
from sweeper.rows import AttemptRow, RunRow, RunState, TrialRow
from sweeper.stages import Stage

# Facts that a result has more exactly than the log, or that only it has.
FROM_RESULT = (
    *("seed", "prequant_val_bpb", "prequant_val_loss", "quant_val_bpb", "quant_val_loss"),
    *("steps", "train_time_ms", "step_avg_ms", "hessian_time_s", "peak_memory_mib"),
    *("bytes_total", "bytes_code", "bytes_model", "train_shards", "val_tokens", "world_size"),
    "stop_reason",
)


def read_trial(sweep: SweepDir, trial: str | None = None) -> Record:
    """A trial as a record, by its name or number; UserError where there is none, or several."""
    with closing(Ledger.open_for_reading(sweep.ledger)) as ledger, ledger.snapshot():
        chosen = find_trial(ledger, sweep.name, trial)
        return record_of(ledger, sweep, chosen)


def find_trial(ledger: Ledger, sweep: str, wanted: str | None) -> TrialRow:
    """The trial that is meant: by its name, its number, the beginning of its name; or the only one.

    Of a search with none named it is the winner. UserError with the trials that there are.
    """
    trials = ledger.trials()
    if wanted is None:
        winner = _winner(ledger)
        found = [each for each in trials if winner is None or each.name == winner]
    else:
        found = (
            [each for each in trials if each.name == wanted]
            or [each for each in trials if str(each.number) == wanted]
            or [each for each in trials if each.name.startswith(wanted)]
        )
    if len(found) == 1:
        return found[0]
    listed = ", ".join(f"{each.number} ({each.name})" for each in trials[:20])
    more = f", and {len(trials) - 20} more" if len(trials) > 20 else ""
    if wanted is None:
        raise UserError(f"{sweep} has several trials; say which: {sweep}/TRIAL of {listed}{more}")
    what = f"no trial {wanted!r}" if not found else f"{wanted!r} may be several trials"
    raise UserError(f"{sweep}: {what}; there are {listed}{more}")


def _winner(ledger: Ledger) -> str | None:
    if ledger.spec.search is None:
        return None
    from sweeper.findings import find

    winner = find(ledger).winner
    return None if winner is None else winner.name


def record_of(ledger: Ledger, sweep: SweepDir, trial: TrialRow) -> Record:
    """A trial's runs as a record; read while nobody changes the ledger."""
    rows = [row for row in ledger.runs() if row.trial == trial.number]
    fresh = ledger.spec.fresh_seeds
    confirmed = any(row.seed in fresh and row.state is RunState.FINISHED for row in rows)
    runs = []
    for row in rows:
        attempts = ledger.attempts(run=row.id)
        run = _run(sweep, ledger, row, attempts)
        if confirmed and run.counts and row.seed not in fresh:
            run = replace(run, excluded="a seed that the trial was chosen by, not a fresh one")
        runs.append(run)
    return Record(
        path=sweep.path,
        name=f"{sweep.name}/{trial.name}",
        runs=tuple(runs),
        chosen_by="its fresh seeds" if confirmed else "all its seeds that have finished",
        notes=tuple(_notes(runs, ledger, rows)),
    )


def rank0_logs(sweep: SweepDir, ledger: Ledger, attempt: AttemptRow) -> tuple[Path, ...]:
    """The log of each stage's last launch: the one with the final score, else what tells most."""
    found: dict[Stage, Path] = {}
    for launch in launches(sweep, ledger, attempt):
        logs = find_logs(launch.directory)
        scored = (path for path in logs if len(logs) == 1 or read_log(path).metric is not None)
        best = next(scored, next(iter(logs), None))
        if best is not None:
            found[launch.stage] = best
    return tuple(found.values())


def _run(sweep: SweepDir, ledger: Ledger, row: RunRow, attempts: Sequence[AttemptRow]) -> LoggedRun:
    if not attempts:
        return LoggedRun(
            path=sweep.path,
            name=f"seed {row.seed}",
            seed=row.seed,
            seed_from="ledger",
            excluded="it has not begun",
        )
    last = attempts[-1]
    logs = rank0_logs(sweep, ledger, last)
    facts = parse(line for path in logs for line in Lines(path).read(whole=True))
    if len(logs) > 1:  # of stages: a line's number says nothing where it is not known of which
        scores = tuple(replace(score, line=None) for score in facts.scores)
        facts = replace(facts, lines={}, scores=scores)
    result = last.result if row.state is RunState.FINISHED else None
    run = LoggedRun(
        path=logs[-1] if logs else sweep.path / last.path,
        name=f"seed {row.seed}",
        seed=row.seed,
        seed_from="ledger",
        facts=facts,
        missing=reasons(facts),
        excluded=None if result is not None else _why_not(row, last),
    )
    return run if result is None else with_result(run, result)


def with_result(run: LoggedRun, result: dict[str, Any]) -> LoggedRun:
    """The run with what its result says, which goes before what its log says."""
    known = {name: result[name] for name in FROM_RESULT if result.get(name) is not None}
    facts = replace(run.facts, **known)
    if facts.eval_time_s is None and result.get("eval_time_s") is not None:
        facts = replace(facts, eval_time_s=result["eval_time_s"])
    return replace(
        run,
        facts=facts,
        val_bpb=result["val_bpb"],
        val_loss=result.get("val_loss"),
        val_bpb_text=repr(result["val_bpb"]),
        metric=result["metric"],
        headline=result.get("headline") or run.facts.headline,
        missing={name: why for name, why in run.missing.items() if getattr(facts, name) is None},
    )


def _why_not(row: RunRow, last: AttemptRow) -> str:
    message = f": {last.message}" if last.message else ""
    return f"{row.state.value}{message}" if row.state.over else "it has not finished yet"


def _notes(runs: Sequence[LoggedRun], ledger: Ledger, rows: Sequence[RunRow]) -> list[str]:
    """What is to be known before the runs are taken as of one configuration."""
    finished = [
        attempts[-1]
        for row in rows
        if row.state is RunState.FINISHED and (attempts := ledger.attempts(run=row.id))
    ]
    notes = []
    codes = {attempt.code for attempt in finished}
    if len(codes) > 1:
        notes.append(f"its runs are of {len(codes)} versions of the code")
    resumed = [a for a in finished if a.result and a.result.get("resumed_from_step")]
    if resumed:
        notes.append(f"{len(resumed)} of its runs were interrupted and resumed")
    return notes


def is_sweep(path: Path) -> bool:
    """Whether a folder is a sweep's."""
    try:
        return SweepDir(path).ledger.is_file()
    except OSError:  # a name that no file can have
        return False


def read_trials(sweep: SweepDir) -> list[Record]:
    """All trials of a sweep as records, in their order."""
    with closing(Ledger.open_for_reading(sweep.ledger)) as ledger, ledger.snapshot():
        return [record_of(ledger, sweep, trial) for trial in ledger.trials()]
