"""A sweep's trial as a record's folder, ready to be submitted but for what only its author knows.

README.md, submission.json, a log for each seed, the train_gpt.py that really ran with what lies
beside it, and requirements.txt. It is made under another name and renamed: there is a whole folder
or none, and nothing is ever overwritten.
"""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from pathlib import Path

from sweeper.errors import UserError
from sweeper.evidence.compare import Verdict, compare_records
from sweeper.evidence.folder import log_name, readme
from sweeper.evidence.publish_code import REQUIREMENTS, requirements, write_code
from sweeper.evidence.publish_runs import Published, gather
from sweeper.evidence.read import read_record
from sweeper.evidence.record import Record
from sweeper.evidence.submission import submission
from sweeper.evidence.sweeps import read_trial
from sweeper.layout import SweepDir


def publish(
    sweep: SweepDir,
    trial: str,
    out: Path,
    *,
    baseline: Path | Record | None = None,
    allow_missing: bool = False,
) -> Path:
    """Write a trial's record into a new folder and return it.

    With a `baseline`, a record's folder, the README has the comparison with it. UserError where
    the trial is no record (`gather` says when), where its code is not what ran, where no test can
    be made with the baseline, or where `out` is there already.
    """
    _check_out(out)
    published = gather(sweep, trial, allow_missing=allow_missing)
    verdict = _compare(published, baseline)
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        partial = Path(tempfile.mkdtemp(prefix=f".{out.name}.", dir=out.parent))
    except OSError as error:
        raise UserError(f"{out}: cannot be made: {error.strerror}") from error
    try:
        _write(published, verdict, partial)
        os.chmod(partial, 0o755)
        _check_out(out)
        partial.replace(out)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return out


def _check_out(out: Path) -> None:
    """UserError unless nothing is there, or an empty folder."""
    if out.is_dir() and not out.is_symlink() and not any(out.iterdir()):
        return
    if out.exists() or out.is_symlink():
        raise UserError(f"{out}: is there already; nothing is overwritten, give another --out")


def _compare(published: Published, baseline: Path | Record | None) -> Verdict | None:
    if baseline is None:
        return None
    record = baseline if isinstance(baseline, Record) else read_record(baseline)
    return compare_records(read_trial(published.sweep, published.trial.name), record)


def _write(published: Published, verdict: Verdict | None, folder: Path) -> None:
    code = write_code(published, folder)
    for run in published.runs:
        (folder / log_name(run.seed)).write_bytes(run.log_bytes())
    if REQUIREMENTS not in code.files:  # the script may bring its own
        (folder / REQUIREMENTS).write_text(requirements(published, code), encoding="utf-8")
    fields = submission(published)
    text = json.dumps(fields, indent=2, ensure_ascii=False, allow_nan=False)
    (folder / "submission.json").write_text(f"{text}\n", encoding="utf-8")
    (folder / "README.md").write_text(readme(published, code, verdict), encoding="utf-8")
