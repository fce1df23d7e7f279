"""What there is after a fault and the sweep's end, counted; the same checks for every fault."""

from __future__ import annotations

import contextlib
import json
import os
import random
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import psutil

from sweeper.layout import SweepDir
from sweeper.rows import AttemptRow, AttemptState, RunState
from tests.faults.fleet import Fleet
from tests.sweeper.conftest import alive, wait_until
from tests.sweeper.ray_helpers import Place
from tests.sweeper.sweeps import Run, attempt_dir, attempts, run_states

# What Ray may take to notice that a slot is gone.
SETTLE_SECONDS = 60.0


@dataclass(frozen=True, kw_only=True)
class Aftermath:
    """How a sweep ended, in numbers."""

    runs: int
    finished: int
    attempts: Mapping[str, int]  # how many ended in which state
    duplicates: Sequence[str] = ()  # runs with more than one result
    survivors: Sequence[int] = ()  # processes of its runs
    busy_gpus: float = 0.0  # of all living nodes


def check_aftermath(
    place: Place,
    fleet: Fleet | None,
    name: str,
    *,
    runs: int,
    attempts: Mapping[str, int],
    finished: int | None = None,
    sweep: SweepDir | None = None,
) -> None:
    """A sweep that is over left exactly this: no result twice, no process, no GPU that is not free.

    All runs have finished unless it is said how many; without a fleet, no GPUs are looked at.
    """
    sweep = sweep or place.sweep(name)
    wait_until(lambda: not survivors(place, name), f"processes of {name} to end", SETTLE_SECONDS)
    if fleet is not None:
        wait_until(lambda: not fleet.busy_gpus(), f"GPUs to be free after {name}", SETTLE_SECONDS)
    found = Aftermath(
        runs=len(run_states(sweep)),
        finished=list(run_states(sweep).values()).count(RunState.FINISHED),
        attempts=attempt_counts(sweep),
        duplicates=tuple(duplicates(sweep)),
        survivors=tuple(survivors(place, name)),
        busy_gpus=0.0 if fleet is None else fleet.busy_gpus(),
    )
    wanted = Aftermath(
        runs=runs, finished=runs if finished is None else finished, attempts=dict(attempts)
    )
    assert found == wanted, "\n".join([f"{found}", f"instead of {wanted}", *_troubles(sweep)])


def _troubles(sweep: SweepDir) -> list[str]:
    """A line for each run that did not simply finish."""
    return [
        f"{run}: " + "; ".join(f"{row.state}, {(row.message or '-')[:80]}" for row in rows)
        for run, rows in _all(sweep)
        if [row.state for row in rows] != [AttemptState.FINISHED]
    ]


def seeded() -> random.Random:
    """What a test's chance is; its seed is printed, and FAULTS_SEED gives it again."""
    seed = int(os.environ.get("FAULTS_SEED", time.time_ns() % 1_000_000))
    print(f"FAULTS_SEED={seed}")
    return random.Random(seed)


def attempt_counts(sweep: SweepDir) -> dict[str, int]:
    """How many attempts ended in which state."""
    return dict(Counter(row.state.value for _, rows in _all(sweep) for row in rows))


def duplicates(sweep: SweepDir) -> list[str]:
    """The runs with more than one result: in the ledger, or whole ones in their directories."""
    found = []
    for run, rows in _all(sweep):
        in_ledger = [row.number for row in rows if row.state is AttemptState.FINISHED]
        on_disk = [row.number for row in rows if _has_result(attempt_dir(sweep, row).path)]
        if len(in_ledger) > 1 or len(on_disk) > 1:
            found.append(f"{run}: attempts {in_ledger} in the ledger, {on_disk} on disk")
    return found


def survivors(place: Place, name: str) -> list[int]:
    """Processes of a sweep's runs, with those that they have started to outlive them."""
    found = [run.pid for run in place.runs() if f"/{name}/" in _directory(run)]
    for path in place.board(name).path.glob("lingerer*"):
        text = path.read_text()
        if text and alive(int(text)):
            found.append(int(text))
    return found


def _directory(run: psutil.Process) -> str:
    with contextlib.suppress(psutil.Error):
        return run.environ().get("RUN_DIR", "")
    return ""


def _all(sweep: SweepDir) -> list[tuple[Run, list[AttemptRow]]]:
    return sorted(attempts(sweep).items())


def _has_result(directory: Path) -> bool:
    """Whether an attempt came to a good end by what its processes wrote."""
    try:
        ended = json.loads((directory / "exit.json").read_text())
        result = json.loads((directory / "result.json").read_text())
    except (OSError, ValueError):
        return False
    return bool(ended["exit_code"] == 0 and result["status"] == "finished")
