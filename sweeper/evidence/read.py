"""Record folders, single logs and whole trees of them, read into records.

A folder's logs may hold more runs than it claims: ablations, starts that broke off, copies. Which
of them count is decided in this order, and said of each that does not:

1. A run without a final score does not count, nor does a copy of another one, nor one that was
   begun anew with the same seed in the same log.
2. Where submission.json lists scores by run, the runs that have them count (and for one whose
   score is another, the run of its seed).
3. Otherwise all count that are left, if each has a seed of its own and the same settings; else
   those whose logs are named alike (train_seed42.log, train_seed314.log). Of several such families
   it is the one that the claimed score is nearest to, without a claim the one with most seeds.

The score is the metric of the highest priority (sweeper/scores.py), unless the record claims
another of its final metrics to the digit, or the caller asks for one.
"""

from __future__ import annotations

import hashlib
import math
import os
import re
import statistics
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from sweeper.errors import UserError
from sweeper.evidence.claims import read_claim, seed_of
from sweeper.evidence.record import Claim, Claimed, LoggedRun, Record
from sweeper.evidence.settings import configuration
from sweeper.logfacts import LogFacts, reasons
from sweeper.logreader import read_runs
from sweeper.scores import HEADLINES, Kind, last_of

LOGS = (".log", ".txt", ".out")
NO_LOGS = re.compile(r"^(?:requirements|readme|license|pip[-_]freeze)", re.IGNORECASE)
SKIPPED = {".git", "__pycache__", ".venv", "node_modules"}
SCRIPT = "train_gpt.py"
CODE = (".py", ".sh", ".cu", ".cpp", ".c", ".so")
SEED_IN_NAME = re.compile(
    r"(?:seed|(?:^|[_-])s|(?:train|log)_)[_-]?(\d{1,10})(?!\d)", re.IGNORECASE
)
ENDS_IN_NUMBER = re.compile(r"(?:_?run)?[_-]?\d+$")
CANONICAL = re.compile(r"^train_seed\d+\.log$")


EXACT = 5  # digits after the point that tell a score from all others


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


def scored(run: LoggedRun, name: str | None) -> LoggedRun:
    """The run with the score of this name as its own; with none where there is no such score."""
    score = next((each for each in run.facts.scores if each.name == name), None)
    if score is None:
        return replace(
            run, val_bpb=None, val_loss=None, val_bpb_text=None, metric=None, headline=None
        )
    return replace(
        run,
        val_bpb=score.val_bpb,
        val_loss=score.val_loss,
        val_bpb_text=score.val_bpb_text,
        metric=score.kind.value,
        headline=score.name,
    )


def with_metric(run: LoggedRun, kind: Kind) -> LoggedRun:
    """The run with its last score of a kind as its own."""
    score = last_of(run.facts.scores, kind)
    return scored(run, None if score is None else score.name)


# ---- which runs count


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


def choose(runs: Sequence[LoggedRun], claim: Claim) -> tuple[list[LoggedRun], str]:
    """The runs, each with the reason why it does not count where it does not; and by what."""
    out: dict[int, str] = {}
    for place, run in enumerate(runs):
        if run.val_bpb is None:
            out[place] = "no final score in the log"
        elif not math.isfinite(run.val_bpb):
            out[place] = f"its score is no finite number: {run.val_bpb_text}"
    _drop_copies(runs, out)
    _drop_superseded(runs, out)
    left = [place for place in range(len(runs)) if place not in out]
    listed = _listed(runs, left, claim)
    if listed is not None:
        why, by = "not among the runs that submission.json lists", "the runs that it lists"
        kept = listed
    else:
        kept, by = _one_family(runs, left, claim)
        why = f"not one of {by}"
    out |= {place: why for place in left if place not in kept}
    judged = [replace(run, excluded=out.get(place)) for place, run in enumerate(runs)]
    return judged, by


def _drop_copies(runs: Sequence[LoggedRun], out: dict[int, str]) -> None:
    """Of the same run in several places one counts: whose name has the seed, else the first."""
    groups: dict[object, list[int]] = {}
    for place, run in enumerate(runs):
        if place not in out:
            groups.setdefault(_identity(run), []).append(place)
    for places in groups.values():
        last = len({runs[place].path for place in places}) == 1
        kept = min(places, key=lambda place: (_plainness(runs[place].path), -place if last else 0))
        for place in places:
            if place != kept:
                out[place] = f"a copy of {runs[kept].label}"


def _plainness(path: Path) -> int:
    """0 for a log by the challenge's own name, 1 for one that names its seed, 2 for others."""
    if CANONICAL.match(path.name):
        return 0
    return 1 if SEED_IN_NAME.search(path.stem) else 2


def _identity(run: LoggedRun) -> object:
    """What two different runs never have in common: all scores, and the time that they took."""
    scores = tuple((score.name, score.val_bpb) for score in run.facts.scores)
    return scores, run.facts.train_time_ms, run.facts.bytes_model, run.facts.steps


def _drop_superseded(runs: Sequence[LoggedRun], out: dict[int, str]) -> None:
    """Of several runs of one seed in one log the last counts."""
    last: dict[object, int] = {}
    for place, run in enumerate(runs):
        if place in out or run.of == 1:
            continue
        key = (run.path, run.seed)
        if key in last:
            out[last[key]] = "begun anew later in the same log"
        last[key] = place


def _listed(runs: Sequence[LoggedRun], left: Sequence[int], claim: Claim) -> list[int] | None:
    """The runs that a claim lists by their scores; None where most of them are not there."""
    claimed = {k: c["val_bpb"] for k, c in claim.per_seed.items() if "val_bpb" in c}
    found: dict[str, int] = {}
    for key, score in claimed.items():
        fits = [
            place
            for place in left
            if place not in found.values() and _fits(runs[place], key, score)
        ]
        if fits:
            found[key] = min(fits, key=lambda place: abs(_bpb(runs[place]) - score.value))
    if len(found) * 2 <= len(claimed) or not found:
        return None
    for key in claimed.keys() - found.keys():
        mine = [p for p in left if runs[p].seed == seed_of(key) and p not in found.values()]
        if mine:
            found[key] = min(mine, key=lambda place: abs(_bpb(runs[place]) - claimed[key].value))
    return sorted(found.values())


def _fits(run: LoggedRun, key: str, score: Claimed) -> bool:
    seed = None if key.startswith("run ") else seed_of(key)
    if seed is not None and run.seed is not None and seed != run.seed:
        return False
    return any(score.agrees(each) for each in (_bpb(run), *_finals(run)))


def _finals(run: LoggedRun) -> Iterator[float]:
    return (score.val_bpb for score in run.facts.scores if score.kind in HEADLINES)


def _bpb(run: LoggedRun) -> float:
    assert run.val_bpb is not None
    return run.val_bpb


def _one_family(
    runs: Sequence[LoggedRun], left: Sequence[int], claim: Claim
) -> tuple[list[int], str]:
    """The runs whose logs are named alike; of several such families one.

    Not by their settings: that seeds of one claim ran with different ones is for a reader to see.
    """
    families = _grouped(left, lambda place: _stem(runs[place].path))
    if len(families) <= 1:
        return list(left), "all logs are named alike"
    alike = len(_grouped(left, lambda place: _setting(runs[place]))) == 1
    if alike and len({runs[place].seed for place in left}) == len(left):
        return list(left), "all have the same settings"
    target = _target(runs, left, claim)
    if target is None:
        most = max(families, key=lambda family: len({runs[place].seed for place in family}))
        return most, "the logs named alike that have most seeds"

    def distance(family: Sequence[int]) -> float:
        scores = [_bpb(runs[place]) for place in family]
        return min(abs(each - target) for each in (statistics.fmean(scores), *scores))

    return min(families, key=distance), "the logs named alike that the claimed score is nearest to"


def _target(runs: Sequence[LoggedRun], left: Sequence[int], claim: Claim) -> float | None:
    """The claimed score; a val_loss where it alone is given and is a score that a log has."""
    if claim.val_bpb is not None:
        return claim.val_bpb.value
    loss = claim.val_loss
    if loss is not None and any(loss.agrees(_bpb(runs[place])) for place in left):
        return loss.value
    return None


def _grouped(places: Iterable[int], key: Callable[[int], object]) -> list[list[int]]:
    groups: dict[object, list[int]] = {}
    for place in places:
        groups.setdefault(key(place), []).append(place)
    return list(groups.values())


def _setting(run: LoggedRun) -> object:
    """What runs of one configuration have in common."""
    ratio = run.nats_per_bpb
    tokenizer = None if ratio is None else round(ratio, 2)
    return configuration(run.facts), run.facts.world_size, tokenizer, run.headline


def _stem(path: Path) -> str:
    """A log's name without its seed, or what numbers it."""
    return ENDS_IN_NUMBER.sub("", SEED_IN_NAME.sub("", path.stem)).strip("_-.")


# ---- which metric


def claimed_metric(runs: Sequence[LoggedRun], claim: Claim) -> tuple[list[LoggedRun], list[str]]:
    """The runs with the final metric that the claim is of, where that is another to the digit."""
    counted = [run for run in runs if run.counts]
    if claim.val_bpb is None or not counted or claim.val_bpb.digits < EXACT:
        return list(runs), []
    if any(claim.val_bpb.agrees(each) for each in _means(counted)):
        return list(runs), []
    for kind in HEADLINES:
        others = [with_metric(run, kind) for run in counted]
        if any(run.val_bpb is None for run in others) or others[0].metric == counted[0].metric:
            continue
        if claim.val_bpb.agrees(next(iter(_means(others)))):
            note = (
                f"{claim.val_bpb.where} is {others[0].headline}, not {counted[0].headline}, which "
                "goes before it"
            )
            return [with_metric(run, kind) for run in runs], [note]
    return list(runs), []


def _means(runs: Sequence[LoggedRun]) -> Iterator[float]:
    """The mean of the scores, and each of them: a claim may be of a single run."""
    scores = [_bpb(run) for run in runs]
    yield statistics.fmean(scores)
    yield from scores
