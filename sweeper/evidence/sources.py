"""What a person may name where a record is wanted: a folder, a log, a sweep, or a trial of one."""

from __future__ import annotations

import os
from pathlib import Path

from sweeper.errors import UserError
from sweeper.evidence.read import SKIPPED, read_record
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
    if _exists(path) and not is_sweep(path):
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
    """The sweep that is meant and its trial, where one is named; None where there is no sweep.

    The longest beginning of the text that is a sweep's name or path; what follows is the trial.
    """
    parts = text.rstrip("/").split("/")
    for count in range(len(parts), 0, -1):
        name, trial = "/".join(parts[:count]), "/".join(parts[count:])
        for path in (Path(name or "/"), root / name) if name else ():
            if is_sweep(path):
                return SweepDir(path), trial or None
    return None


def sweeps_below(path: Path) -> list[SweepDir]:
    """The sweeps in a tree of folders."""
    found = []
    for folder, folders, _ in os.walk(path):
        folders[:] = sorted(set(folders) - SKIPPED)
        if is_sweep(Path(folder)):
            found.append(SweepDir(Path(folder)))
            folders.clear()
    return found


def _exists(path: Path) -> bool:
    try:
        return path.exists()
    except OSError:  # a name that no file can have
        return False
