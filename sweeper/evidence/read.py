"""Record folders, single logs and whole trees of them, read into records."""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from sweeper.errors import UserError
from sweeper.evidence.choose import (
    PERHAPS_SEED,
    choose,
    claimed_metric,
    scored,
    seed_in_name,
    with_metric,
)
from sweeper.evidence.claims import read_claim
from sweeper.evidence.record import Claim, LoggedRun, Record
from sweeper.logfacts import LogFacts, reasons
from sweeper.logreader import read_runs
from sweeper.scores import Kind

LOGS = (".log", ".txt", ".out")
NO_LOGS = re.compile(r"^(?:requirements|readme|license|pip[-_]freeze)", re.IGNORECASE)
SKIPPED = {".git", "__pycache__", ".venv", "node_modules"}
NOTHING = hashlib.sha256().hexdigest()
LEDGER = "ledger.sqlite"  # is in a sweep's directory
SCRIPT = "train_gpt.py"
CODE = (".py", ".sh", ".cu", ".cpp", ".c", ".so")


def read_record(path: Path, *, metric: Kind | None = None) -> Record:
    """The record in a folder, or of a single log; UserError where there is none."""
    return next(read_records([path], metric=metric, whole=True))


def read_records(
    paths: Iterable[Path],
    *,
    metric: Kind | None = None,
    whole: bool = False,
    may_be_none: bool = False,
    progress: Callable[[int, int], None] = lambda done, of: None,
) -> Iterator[Record]:
    """The records at and below some paths; `whole`: each path is one, whatever is below it.

    UserError where there are none, unless there `may_be_none`.

    `progress` is told how many of how many logs have been read.
    """
    places = [place for path in paths for place in _places(path, whole, may_be_none)]
    done, of = 0, sum(len(logs) for _, logs in places)
    for place, logs in places:
        runs: list[LoggedRun] = []
        for log in logs:
            runs += _read_log(log)
            done += 1
            progress(done, of)
        yield _record(place, runs, metric)


# ---- what there is


def _places(path: Path, whole: bool, may_be_none: bool) -> list[tuple[Path, list[Path]]]:
    """The records at and below a path, each with its logs."""
    if path.is_file():
        return [(path, [path])]
    if not path.is_dir():
        raise UserError(f"{path}: no such file or folder")
    if whole or (path / "submission.json").is_file():
        logs = sorted(_logs(path))
        if not logs and not (path / "submission.json").is_file():
            raise UserError(f"{path}: neither logs ({', '.join(LOGS)}) nor submission.json in it")
        return [(path, logs)]
    found = list(_below(path))
    if not found and not may_be_none:
        raise UserError(f"{path}: no logs ({', '.join(LOGS)}) and no submission.json below it")
    return found


def _below(path: Path) -> Iterator[tuple[Path, list[Path]]]:
    """A folder with a submission.json is a record with all below it; others are by folder.

    Sweeps are passed over: what they have found is in their ledgers (sweeps.py).
    """
    if (path / LEDGER).is_file():
        return
    if (path / "submission.json").is_file():
        yield path, sorted(_logs(path))
        return
    inside = sorted(path.iterdir())
    mine = [each for each in inside if is_log(each) and is_there(each)]
    if mine:
        yield path, mine
    for folder in inside:
        if folder.is_dir() and not folder.is_symlink() and folder.name not in SKIPPED:
            yield from _below(folder)


def _logs(folder: Path) -> Iterator[Path]:
    return (path for path in files_below(folder) if is_log(path))


def files_below(folder: Path) -> Iterator[Path]:
    """The files of a record, but for those of version control and installed packages."""
    for path, folders, files in os.walk(folder):
        folders[:] = sorted(set(folders) - SKIPPED)
        yield from (file for name in sorted(files) if is_there(file := Path(path) / name))


def is_there(path: Path) -> bool:
    """Whether there is a file, or a link to one that is lost; a pipe or device would never end."""
    return path.is_file() or (path.is_symlink() and not path.exists())


def is_log(path: Path) -> bool:
    """Whether a file can be a log, by its name."""
    return path.suffix.lower() in LOGS and not NO_LOGS.match(path.name)


# ---- one log


def _read_log(path: Path) -> list[LoggedRun]:
    """The runs in a file. One that is called a log and holds none is there too, with the reason."""
    try:
        digest = _sha256(path)
    except OSError as error:
        return [LoggedRun(path=path, excluded=f"cannot be read: {error.strerror}")]
    found = [facts for facts in read_runs(path) if _says_something(facts)]
    if not found and (path.suffix == ".log" or seed_in_name(path.stem) is not None):
        empty = digest == NOTHING
        why = "empty" if empty else "no step and no score in it"
        return [LoggedRun(path=path, sha256=digest, excluded=why)]
    runs = []
    for number, facts in enumerate(found, start=1):
        seed, source = _seed(path, facts, alone=len(found) == 1)
        run = LoggedRun(
            path=path,
            number=number,
            of=len(found),
            seed=seed,
            seed_from=source,
            facts=facts,
            missing=reasons(facts),
            sha256=digest,
        )
        runs.append(scored(run, facts.headline))
    return runs


def _seed(path: Path, facts: LogFacts, *, alone: bool) -> tuple[int | None, str | None]:
    """A run's seed and what says it: the log, its name, or what in its name may be one."""
    if facts.seed is not None:
        return facts.seed, "log"
    named = seed_in_name(path.stem) if alone else None
    if named is not None:
        return named, "file name"
    perhaps = PERHAPS_SEED.search(path.stem) if alone else None
    return (int(perhaps[1]), "file name, perhaps") if perhaps else (None, None)


def _says_something(facts: LogFacts) -> bool:
    return bool(facts.scores) or facts.form is not None


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


# ---- a record


def _record(path: Path, runs: Sequence[LoggedRun], metric: Kind | None) -> Record:
    claim = read_claim(path) if path.is_dir() else Claim()
    if metric is not None:
        runs = [with_metric(run, metric) for run in runs]
    judged, chosen_by = choose(runs, claim)
    notes: list[str] = []
    if metric is None:
        judged, notes = claimed_metric(judged, claim)
    if path.is_dir() and not runs:
        notes.append("no log of a run in it")
    record = Record(
        path=path,
        name=path.resolve().name,
        runs=tuple(judged),
        claim=claim,
        chosen_by=chosen_by,
        notes=tuple(notes),
    )
    return _with_files(record) if path.is_dir() else record


def _with_files(record: Record) -> Record:
    """The record of a folder with the other files in it."""
    folder = record.path

    def there(name: str) -> Path | None:
        return folder / name if (folder / name).is_file() else None

    code = [path for path in files_below(folder) if path.suffix in CODE and path.is_file()]
    return replace(
        record,
        script=there(SCRIPT),
        readme=there("README.md"),
        requirements=there("requirements.txt"),
        code=tuple(path for path in code if path != folder / SCRIPT),
    )
