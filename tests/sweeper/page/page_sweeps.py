"""Sweeps for a page to show: a real ledger, and the files that runs leave, without the runs."""

from __future__ import annotations

import re
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

from sweeper.layout import SweepDir
from sweeper.ledger import Ledger
from sweeper.rows import AttemptState, RunRow, RunState
from tests.sweeper.conftest import make_spec, result_facts, write_attempt
from tests.sweeper.kept_searches import events_of, write_log

# What a run's result holds beside the usual; how it stands where it has none.
Outcome = dict[str, Any] | RunState
TAGS = re.compile(r"<[^>]*>")
SCORES = (1.09269834, 1.09269085, 1.09194120)
BROKEN = "the loss is </style></pre><script>window.hit = 1</script> nan ]]>"
SHOUT = "\x1b[31m</pre><script>window.hit = 1</script>\x1b[0m <img src=x onerror=window.hit=1>"


def make_sweep(
    root: Path, outcome: Callable[[str, int], Outcome], name: str = "shown", **changes: Any
) -> SweepDir:
    """A sweep whose runs stand as `outcome` says of a trial's name and a seed."""
    sweep = SweepDir(root / name)
    sweep.path.mkdir(parents=True)
    with closing(Ledger.open_for_writing(sweep.ledger, make_spec(name=name, **changes))) as ledger:
        names = {trial.number: trial.name for trial in ledger.trials()}
        for run in ledger.runs():
            _end(sweep, ledger, run, names[run.trial], outcome(names[run.trial], run.seed))
        ledger.note("pause", f"disk full {SHOUT}")
    return sweep


def _end(sweep: SweepDir, ledger: Ledger, run: RunRow, trial: str, outcome: Outcome) -> None:
    if outcome is RunState.PENDING:
        return
    place = sweep.attempt(run.trial, trial, run.seed, 1)
    path = str(place.path.relative_to(sweep.path))
    attempt = ledger.launched(run, number=1, path=path, host="node-<b>1", gpus="0,1")
    if isinstance(outcome, dict):
        facts = result_facts(seed=run.seed, **outcome)
        write_attempt(place.path, events=events_of(run.seed, facts["val_bpb"]), result=facts)
        write_log(place, run.seed, SHOUT)
        ledger.ended(attempt, AttemptState.FINISHED, RunState.FINISHED, result=facts)
        return
    write_attempt(place.path, exit_code=3, events=events_of(run.seed, None))
    write_log(place, run.seed, SHOUT)
    if outcome is RunState.FAILED:
        reason: dict[str, Any] = {"message": BROKEN, "traceback": f"Traceback\n{SHOUT}"}
        ledger.ended(attempt, AttemptState.NONFINITE, RunState.FAILED, **reason)


def two_trials(trial: str, seed: int) -> Outcome:
    """`low` is ahead of `high` by far; both fit."""
    score = SCORES[(42, 314, 999).index(seed)] + (0.02 if trial == "high" else 0.0)
    return {
        "val_bpb": score,
        "val_loss": 2.3 * score,
        "prequant_val_bpb": score - 0.02,
        "quant_val_bpb": score + 0.005,
        "bytes_total": 15_900_000 + seed,
        "steps": 5_000,
        "step_avg_ms": 110.5,
        "useful_s": 400.0,
    }


def outcome_of(broken: dict[tuple[str, int], Outcome | dict[str, Any]]) -> Any:
    """As `two_trials`, but for some runs."""

    def outcome(trial: str, seed: int) -> Outcome:
        change = broken.get((trial, seed), {})
        usual = two_trials(trial, seed)
        return (
            {**usual, **change} if isinstance(change, dict) and isinstance(usual, dict) else change
        )

    return outcome


def part(text: str, name: str) -> str:
    """One section of a page as a person reads it."""
    found = re.search(f'<section id="{name}".*?</section>', text, re.DOTALL)
    assert found is not None, name
    return " ".join(TAGS.sub(" ", found[0]).replace("\N{NO-BREAK SPACE}", " ").split())
