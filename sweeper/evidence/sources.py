"""What a person may name where a record is wanted: a folder, a log, a sweep, or a trial of one."""

from __future__ import annotations

from pathlib import Path

from sweeper.errors import UserError
from sweeper.evidence.read import read_record
from sweeper.evidence.record import Record
from sweeper.evidence.sweeps import is_sweep, read_trial
from sweeper.layout import SweepDir
from sweeper.scores import Kind


def read_source(text: str, root: Path, *, metric: Kind | None = None) -> Record:
    """The record that is meant; UserError where there is none of that name.

    A path goes before a sweep's name below `root`. A trial is NAME/TRIAL: by its name, its number
    or the beginning of its name; a search without one is its winner. A trial's seeds are scored by
    the metric that they were run with, so that `metric` is for logs alone.
    """
    path = Path(text)
    if path.exists() and not is_sweep(path):
        return read_record(path, metric=metric)
    found = find_sweep(text, root)
    if found is None:
        raise UserError(
            f"{text}: no folder, log, or sweep in {root}; give a path, NAME or NAME/TRIAL"
        )
    if metric is not None:
        raise UserError(f"{text}: --metric is for logs; a sweep's runs have one metric each")
    return read_trial(*found)


def find_sweep(text: str, root: Path) -> tuple[SweepDir, str | None] | None:
    """The sweep that is meant and its trial, where one is named; None where there is no sweep."""
    name, slash, trial = text.partition("/")
    options: list[tuple[Path, str | None]] = [(Path(text), None), (root / text, None)]
    if slash:
        options.append((root / name, trial))
    for path, wanted in options:
        if is_sweep(path):
            return SweepDir(path), wanted or None
    return None
