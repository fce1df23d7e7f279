"""What may explain that a record's score came out otherwise when it was run again.

Looked at in the order in which it would: first what was scored, then what was trained on and with
which settings, then how much training there was.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from sweeper.evidence.publish_runs import recorded_versions
from sweeper.evidence.record import LoggedRun, Record
from sweeper.evidence.settings import differences
from sweeper.layout import SweepDir
from sweeper.scripts import agrees

NAMED = 8  # settings, in a line


@dataclass(frozen=True, kw_only=True)
class Check:
    """One thing that may explain a difference; `same` is None where one side does not say it."""

    name: str
    same: bool | None
    claimed: str
    here: str
    explains: str  # what a difference of it does to the score


def explanations(
    record: Record, sweep: SweepDir, pairs: Sequence[tuple[LoggedRun, LoggedRun]]
) -> Iterator[Check]:
    """What may explain a difference, in the order in which it would.

    `pairs` are the claimed runs with those of the same seeds in the sweep.
    """
    if pairs:
        yield from _of_logs(record, pairs)
    yield _torch(record, sweep)


def _of_logs(record: Record, pairs: Sequence[tuple[LoggedRun, LoggedRun]]) -> Iterator[Check]:
    """What the logs of both tell."""

    def fact(name: str, in_json: str = "") -> list[tuple[Any, Any]]:
        """A fact of both: claimed by the log, or where that does not tell by submission.json."""
        found = []
        for claimed, here in pairs:
            told = record.claim.per_seed.get(str(claimed.seed), {}).get(in_json)
            value = getattr(claimed.facts, name)
            if value is None and told is not None:
                value = told.value
            found.append((value, getattr(here.facts, name)))
        return found

    yield _exact("validation tokens", fact("val_tokens"), "other tokens are scored")
    metrics = [(c.metric, h.metric) for c, h in pairs]
    yield _exact("metric", metrics, "the score is of another kind")
    yield _exact("train shards", fact("train_shards"), "other data are trained on")
    yield _exact("world size", fact("world_size"), "batches are divided and summed another way")
    yield _settings(pairs)
    yield _near("steps", fact("steps", "steps"), 0.01, "there is more training, or less")
    yield _near(
        "ms/step",
        fact("step_avg_ms", "step_avg_ms"),
        0.02,
        "limited time has more steps in it, or fewer",
    )
    yield _near(
        "artifact bytes",
        fact("bytes_total", "artifact_bytes"),
        0.002,
        "quantisation had another budget",
    )


def _torch(record: Record, sweep: SweepDir) -> Check:
    """The last to explain anything: the same sums in another order."""
    claimed = record.claim.fields.get("pytorch_version")
    here = recorded_versions(sweep).get("torch")
    values = [(None if claimed is None else str(claimed), here)]
    return _exact("PyTorch", values, "its kernels round another way")


def _exact(name: str, values: Sequence[tuple[Any, Any]], explains: str) -> Check:
    known = [pair for pair in values if None not in pair]
    same = None if not known else all(claimed == here for claimed, here in known)
    return _check(name, values, same, explains)


def _near(name: str, values: Sequence[tuple[Any, Any]], tolerance: float, explains: str) -> Check:
    """Numbers that are never quite the same: as long as they are within a share of each other."""
    known = [pair for pair in values if None not in pair]
    near = (math.isclose(claimed, here, rel_tol=tolerance) for claimed, here in known)
    return _check(name, values, all(near) if known else None, explains)


def _check(name: str, values: Sequence[tuple[Any, Any]], same: bool | None, explains: str) -> Check:
    claimed, here = ([pair[side] for pair in values] for side in (0, 1))
    return Check(
        name=name, same=same, claimed=_range(claimed), here=_range(here), explains=explains
    )


def _range(values: Sequence[Any]) -> str:
    """One value, or from the least to the largest."""
    known = sorted({value for value in values if value is not None})
    if not known:
        return "not said"
    if len(known) == 1 or isinstance(known[0], str):
        return ", ".join(map(_plain, known))
    return f"{_plain(known[0])} to {_plain(known[-1])}"


def _plain(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:,.1f}"
    return f"{value:,}" if isinstance(value, int) else str(value)


def _settings(pairs: Sequence[tuple[LoggedRun, LoggedRun]]) -> Check:
    """The settings that both logs echo, and echo differently."""
    differing: dict[str, tuple[str, str]] = {}
    both = 0
    for claimed, here in pairs:
        both += len(claimed.facts.hyperparameters.keys() & here.facts.hyperparameters.keys())
        for name, (theirs, ours) in differences(claimed.facts, here.facts).items():
            if theirs is not None and ours is not None and not agrees(theirs, ours):
                differing.setdefault(name, (theirs, ours))
    sides = [
        ", ".join(f"{name} {values[side]}" for name, values in list(differing.items())[:NAMED])
        for side in (0, 1)
    ]
    more = f" and {len(differing) - NAMED} more" if len(differing) > NAMED else ""
    count = f"{both // len(pairs)} echoed by both"
    return Check(
        name="settings",
        same=None if not both else not differing,
        claimed=(sides[0] + more) or (count if both else "not said"),
        here=(sides[1] + more) or (count if both else "not said"),
        explains="it is another configuration",
    )
