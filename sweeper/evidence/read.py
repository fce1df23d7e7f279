"""Record folders, single logs and whole trees of them, read into records."""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from sweeper.errors import UserError
from sweeper.evidence.choose import SEED_IN_NAME, choose, claimed_metric, scored, with_metric
from sweeper.evidence.claims import read_claim
from sweeper.evidence.record import Claim, LoggedRun, Record
from sweeper.logfacts import LogFacts, reasons
from sweeper.logreader import read_runs
from sweeper.scores import Kind

LOGS = (".log", ".txt", ".out")
NO_LOGS = re.compile(r"^(?:requirements|readme|license|pip[-_]freeze)", re.IGNORECASE)
SKIPPED = {".git", "__pycache__", ".venv", "node_modules"}
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
    progress: Callable[[int, int], None] = lambda done, of: None,
) -> Iterator[Record]:
    """The records at and below some paths; `whole`: each path is one, whatever is below it.

    `progress` is told how many of how many logs have been read.
    """
    places = [place for path in paths for place in _places(path, whole)]
    done, of = 0, sum(len(logs) for _, logs in places)
    for place, logs in places:
        runs: list[LoggedRun] = []
        for log in logs:
            runs += _read_log(log)
            done += 1
            progress(done, of)
        yield _record(place, runs, metric)


# ---- what there is


def _places(path: Path, whole: bool) -> list[tuple[Path, list[Path]]]:
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
    if not found:
        raise UserError(f"{path}: no logs ({', '.join(LOGS)}) and no submission.json below it")
    return found


def _below(path: Path) -> Iterator[tuple[Path, list[Path]]]:
    """A folder with a submission.json is a record with all below it; others are by folder."""
    mine = [log for log in sorted(path.iterdir()) if log.is_file() and is_log(log)]
    if (path / "submission.json").is_file():
        yield path, sorted(_logs(path))
        return
    if mine:
        yield path, mine
    for folder in sorted(path.iterdir()):
        if folder.is_dir() and not folder.is_symlink() and folder.name not in SKIPPED:
            yield from _below(folder)


def _logs(folder: Path) -> Iterator[Path]:
    for path, folders, files in os.walk(folder):
        folders[:] = sorted(set(folders) - SKIPPED)
        yield from (log for name in files if is_log(log := Path(path) / name))


def is_log(path: Path) -> bool:
    """Whether a file can be a log, by its name."""
    return path.suffix.lower() in LOGS and not NO_LOGS.match(path.name)


# ---- one log


def _read_log(path: Path) -> list[LoggedRun]:
    """The runs in a file; none where nothing in it is of a run."""
    found = [facts for facts in read_runs(path) if _says_something(facts)]
    digest = _sha256(path)
    of_name = SEED_IN_NAME.findall(path.stem)
    named = int(of_name[-1]) if of_name and len(found) == 1 else None
    runs = []
    for number, facts in enumerate(found, start=1):
        seed, source = facts.seed, "log" if facts.seed is not None else None
        if seed is None and named is not None:
            seed, source = named, "file name"
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


def _says_something(facts: LogFacts) -> bool:
    return bool(facts.scores) or facts.form is not None


def _sha256(path: Path) -> str | None:
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError:
        return None


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

    code = [path for path in sorted(folder.rglob("*")) if path.suffix in CODE and path.is_file()]
    return replace(
        record,
        script=there(SCRIPT),
        readme=there("README.md"),
        requirements=there("requirements.txt"),
        code=tuple(path for path in code if path != folder / SCRIPT),
    )
