"""The submission.json of a trial: the fields in public use, with what its runs say.

What nobody but its author knows begins with FILL_IN, and a validator finds it by that.
"""

from __future__ import annotations

import statistics
from datetime import UTC, datetime
from typing import Any

from sweeper.evidence.folder_config import technique
from sweeper.evidence.publish_runs import FinishedRun, Published
from sweeper.evidence.record import FILL_IN
from sweeper.evidence.rules import BUDGET, LIMIT_S, SEEDS, TOLERANCE_S

DIGITS = 8
RECORD_TRACK, OTHER_TRACK = "10min_16mb", "non_record_16mb"


def submission(published: Published) -> dict[str, Any]:
    """All fields that are known; sizes in bytes, the scores' digits are those of the logs."""
    scores, losses = published.summary, published.loss_summary
    sizes = [run.known("bytes_total") for run in published.runs]
    known_sizes = [size for size in sizes if size is not None]
    config = published.config
    whole = len(known_sizes) == len(sizes)
    return {
        "author": f"{FILL_IN} the author's name",
        "github_id": f"{FILL_IN} the author's name on GitHub",
        "name": f"{FILL_IN} the record's name",
        "blurb": f"{FILL_IN} what is new in it, in a sentence or two",
        "date": ended(published).date().isoformat(),
        "track": track(published),
        "val_bpb": _rounded(scores.mean),
        "val_loss": _rounded(losses.mean),
        "val_bpb_std": _rounded(scores.std),
        "val_loss_std": _rounded(losses.std),
        "seeds": list(published.seeds),
        "seed_results": {str(run.seed): _of_run(run) for run in published.runs},
        "bytes_total": max(known_sizes) if whole else None,
        "bytes_code": published.largest("bytes_code"),
        "artifact_bytes_mean": round(statistics.fmean(known_sizes)) if whole else None,
        "artifact_bytes_max": max(known_sizes) if whole else None,
        "hardware": hardware(published),
        "pytorch_version": pytorch_version(published),
        "technique_summary": technique(config) or f"{FILL_IN} the technique in a line",
        "compliance": compliance(published),
    }


def _of_run(run: FinishedRun) -> dict[str, Any]:
    return {
        "val_bpb": run.val_bpb,
        "val_loss": run.val_loss,
        "artifact_bytes": run.known("bytes_total"),
        "steps": run.known("steps"),
        "step_avg_ms": _rounded(run.known("step_avg_ms"), 2),
        "eval_time_s": _rounded(run.known("eval_time_s"), 3),
    }


def ended(published: Published) -> datetime:
    """When the last of the runs ended."""
    times = [run.attempt.ended or run.attempt.launched for run in published.runs]
    return datetime.fromtimestamp(max(times), UTC)


def hardware(published: Published) -> str:
    """What the runs trained on, as their results or the spec name it."""
    resources = published.spec.resources
    device = published.shared("device")
    if not resources.gpus_per_run:
        return str(device or "cpu")
    kind = device or resources.accelerator or f"GPU ({FILL_IN} of which kind)"
    return f"{resources.gpus_per_run}x {kind}"


def pytorch_version(published: Published) -> str | None:
    of_runs = published.shared("versions")
    version = of_runs.get("torch") if isinstance(of_runs, dict) else None
    return version or published.versions.get("torch")


def train_seconds(run: FinishedRun) -> float | None:
    """Training and what the rules count with it, the Hessians."""
    spent = run.known("train_time_ms")
    return None if spent is None else spent / 1000 + (run.known("hessian_time_s") or 0.0)


def compliance(published: Published) -> dict[str, bool | str]:
    """What the runs' own numbers say of the rules; the others are for a person to vouch for."""
    by_hand = f"{FILL_IN} true or false"
    checks = {
        "train_under_600s": _at_most([train_seconds(r) for r in published.runs], LIMIT_S),
        # Strictly below it, in whole bytes.
        "artifact_under_16mb": _at_most(
            [run.known("bytes_total") for run in published.runs], BUDGET - 1
        ),
        "eval_under_600s": _at_most([run.known("eval_time_s") for run in published.runs], LIMIT_S),
    }
    return {
        **{name: by_hand if value is None else value for name, value in checks.items()},
        "three_seeds": len(published.runs) >= SEEDS,
        "causality": by_hand,
        "normalized_distribution": by_hand,
        "score_before_update": by_hand,
        "single_pass": by_hand,
    }


def _at_most(values: list[float | None], limit: float) -> bool | None:
    """Whether no value is above a limit; None where one of them is not known."""
    known = [value for value in values if value is not None]
    if any(value > limit for value in known):
        return False
    return True if len(known) == len(values) else None


def track(published: Published) -> str:
    """The record's track where times, hardware and bytes are those of its rules.

    What training is over by less than a second is for a reviewer to judge.
    """
    checks = compliance(published)
    spent = [train_seconds(run) for run in published.runs]
    within = _at_most(spent, LIMIT_S + TOLERANCE_S) is True and all(
        checks[name] is True for name in ("eval_under_600s", "artifact_under_16mb")
    )
    h100 = "H100" in hardware(published) and published.spec.resources.gpus_per_run == 8
    return RECORD_TRACK if within and h100 else OTHER_TRACK


def _rounded(value: float | None, digits: int = DIGITS) -> float | None:
    return None if value is None else round(value, digits)
