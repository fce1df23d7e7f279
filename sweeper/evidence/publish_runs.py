"""What of a sweep's trial is to be published: its finished runs, and those that are left out."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from sweeper.adapters import LogFacts, parse
from sweeper.errors import UserError
from sweeper.evidence.sweeps import find_trial, rank0_logs
from sweeper.layout import AttemptDir, SweepDir
from sweeper.ledger import Ledger
from sweeper.logreader import Lines
from sweeper.redact import find_secret, secret_values
from sweeper.rows import AttemptRow, AttemptState, RunRow, RunState, TrialRow
from sweeper.spec import SweepSpec
from sweeper.stats import Summary, summarise

# Scores in logs have 8 digits; half of the last one, and what a float adds to it.
ROUNDING = 0.5 + 1e-6


@dataclass(frozen=True, kw_only=True)
class FinishedRun:
    """One seed: its result, and the log that says the same.

    `logs` are what rank 0 printed, a file for each stage in their order; `facts` are of all.
    """

    seed: int
    result: Mapping[str, Any]
    facts: LogFacts
    logs: tuple[Path, ...]
    attempt: AttemptRow
    directory: AttemptDir

    @property
    def val_bpb(self) -> float:
        """The score with the digits that the log gives: what anyone can check."""
        assert self.facts.val_bpb is not None
        return self.facts.val_bpb

    @property
    def val_loss(self) -> float:
        assert self.facts.val_loss is not None
        return self.facts.val_loss

    @property
    def metric(self) -> str:
        """Of the result, which says as well where only a part of the tokens was scored."""
        return str(self.result["metric"])

    def known(self, name: str) -> Any:
        """A fact by its name in results and logs; None where neither says it."""
        value = getattr(self.facts, name, None)
        return self.result.get(name) if value is None else value

    def log_bytes(self) -> bytes:
        """What rank 0 printed, byte for byte; stages one after the other."""
        parts = [path.read_bytes() for path in self.logs]
        whole = [part if part.endswith(b"\n") else part + b"\n" for part in parts[:-1]]
        return b"".join([*whole, *parts[-1:]])


@dataclass(frozen=True, kw_only=True)
class LeftOut:
    """A seed of the trial that is not in the record's mean, and why."""

    seed: int
    why: str


@dataclass(frozen=True, kw_only=True)
class Published:
    """A trial as it is to be published."""

    sweep: SweepDir
    spec: SweepSpec
    trial: TrialRow
    runs: tuple[FinishedRun, ...]
    left_out: tuple[LeftOut, ...]
    versions: Mapping[str, str]  # of packages, as the sweep recorded them

    @cached_property
    def summary(self) -> Summary:
        return summarise([run.val_bpb for run in self.runs])

    @cached_property
    def loss_summary(self) -> Summary:
        return summarise([run.val_loss for run in self.runs])

    @property
    def seeds(self) -> tuple[int, ...]:
        return tuple(run.seed for run in self.runs)

    @property
    def secrets(self) -> frozenset[str]:
        return secrets_of(self.spec)

    @property
    def config(self) -> dict[str, Any]:
        """The settings that all runs echo alike, by lower-case name."""
        first, *others = [dict(run.result.get("config") or {}) for run in self.runs]
        return {
            name: value
            for name, value in first.items()
            if all(other.get(name, other) == value for other in others)
        }

    @property
    def nats_per_bpb(self) -> float:
        """val_loss / val_bpb: ln 2 × bytes per token."""
        return self.runs[0].val_loss / self.runs[0].val_bpb

    def largest(self, name: str) -> float | None:
        """The largest of a fact over the runs; None where one of them does not say it."""
        values = [run.known(name) for run in self.runs]
        return max(values) if all(value is not None for value in values) else None

    def shared(self, name: str) -> Any:
        """A fact that all runs have alike; None where they differ, or one does not say it."""
        values = [run.known(name) for run in self.runs]
        return values[0] if all(value == values[0] for value in values) else None


def gather(sweep: SweepDir, trial: str, *, allow_missing: bool = False) -> Published:
    """A trial's finished runs with all that is known of them.

    UserError where there is no such trial or sweep; where a seed is not finished, unless
    `allow_missing`; where the runs are of several metrics or versions of the code; or where log
    and result differ.
    """
    with closing(Ledger.open_for_reading(sweep.ledger)) as ledger, ledger.snapshot():
        row = find_trial(ledger, sweep.name, trial)
        states = [run for run in ledger.runs() if run.trial == row.number]
        chosen = _chosen_by(ledger.spec, states)
        finished, left = [], []
        for run in states:
            attempt = _last(ledger.attempts(run.id))
            why = chosen.get(run.seed) or _unfinished(run, attempt)
            if why is not None or attempt is None:
                left.append((run, LeftOut(seed=run.seed, why=why or "not started")))
            else:
                finished.append(_read_run(sweep, ledger, run, attempt))
        published = Published(
            sweep=sweep,
            spec=ledger.spec,
            trial=row,
            runs=tuple(finished),
            left_out=tuple(out for _, out in left),
            versions=recorded_versions(sweep),
        )
    missing = [out for run, out in left if run.seed not in chosen]
    _check(published, missing, allow_missing)
    return published


def _chosen_by(spec: SweepSpec, runs: Sequence[RunRow]) -> dict[int, str]:
    """Of a search whose winner was run on fresh seeds: the seeds that it was chosen by."""
    fresh = spec.fresh_seeds
    if not any(run.seed in fresh and run.state is RunState.FINISHED for run in runs):
        return {}
    why = "the search chose the configuration by this seed; the fresh seeds are the result"
    return {run.seed: why for run in runs if run.seed not in fresh}


def _last(attempts: Sequence[AttemptRow]) -> AttemptRow | None:
    return attempts[-1] if attempts else None


def _unfinished(run: RunRow, attempt: AttemptRow | None) -> str | None:
    """Why a run is not finished; None where it is."""
    if run.state is RunState.FINISHED:
        return None
    said = attempt.message if attempt is not None and run.state is RunState.FAILED else None
    return f"{run.state.value}: {said}" if said else run.state.value


def _read_run(sweep: SweepDir, ledger: Ledger, run: RunRow, attempt: AttemptRow) -> FinishedRun:
    assert attempt.state is AttemptState.FINISHED
    assert attempt.result is not None
    logs = rank0_logs(sweep, ledger, attempt)
    where = f"seed {run.seed}: {sweep.path / attempt.path}"
    if not logs:
        raise UserError(f"{where}: no log of rank 0 there; a record needs one for each seed")
    facts = parse(line for path in logs for line in Lines(path).read(whole=True))
    found = FinishedRun(
        seed=run.seed,
        result=attempt.result,
        facts=facts,
        logs=logs,
        attempt=attempt,
        directory=AttemptDir(sweep.path / attempt.path),
    )
    _check_log(found, where)
    _check_secrets(found, secrets_of(ledger.spec))
    return found


def secrets_of(spec: SweepSpec) -> frozenset[str]:
    """The values of a sweep's secret settings."""
    tables = [spec.env, spec.process_env, *(trial.env for trial in spec.trials)]
    return frozenset(value for table in tables for value in secret_values(table))


def _check_secrets(run: FinishedRun, secrets: Collection[str]) -> None:
    """UserError where a log, which is published as it is, holds what nobody should read."""
    for path in run.logs:
        for number, line in enumerate(Lines(path).read(whole=True), start=1):
            found = find_secret(line, secrets)
            if found is not None:
                raise UserError(
                    f"{path}:{number}: {found} stands there, and logs are published as they are; "
                    "take it out of the log, and change the secret"
                )


def _check_log(run: FinishedRun, where: str) -> None:
    """UserError unless the log says the score that the result has."""
    for name in ("val_bpb", "val_loss"):
        logged, counted = getattr(run.facts, name), run.result.get(name)
        if logged is None:
            raise UserError(
                f"{where}: its log has no final {name}, so nobody could check the record"
            )
        digits = next(
            (score.digits for score in run.facts.scores if score.name == run.facts.headline), 8
        )
        if counted is None or not abs(logged - counted) <= ROUNDING * 10.0**-digits:
            raise UserError(f"{where}: its log says {name} {logged}, its result {counted}")


def _check(published: Published, missing: Sequence[LeftOut], allow_missing: bool) -> None:
    """UserError where the runs are no record together."""
    runs, name = published.runs, published.trial.name
    if not runs:
        raise UserError(f"trial {name!r}: no seed of it has finished; there is nothing to publish")
    if missing and not allow_missing:
        listed = "; ".join(f"seed {out.seed}: {out.why}" for out in missing)
        raise UserError(
            f"trial {name!r}: not all of its seeds have finished ({listed}). Finish them with "
            f"`sweeper resume {published.sweep.name}`, or give --allow-missing: the record then "
            "says which are missing"
        )
    for what, of in (("metric", _metrics(runs)), ("version of the code", _codes(runs))):
        if len(of) > 1:
            parts = "; ".join(f"{value}: seeds {seeds}" for value, seeds in of.items())
            raise UserError(
                f"trial {name!r}: its runs have more than one {what}, and so no mean ({parts})"
            )


def _metrics(runs: Sequence[FinishedRun]) -> dict[str, str]:
    return _seeds_by((run.seed, run.metric) for run in runs)


def _codes(runs: Sequence[FinishedRun]) -> dict[str, str]:
    return _seeds_by((run.seed, (run.attempt.code or "unknown")[:12]) for run in runs)


def _seeds_by(pairs: Iterator[tuple[int, str]]) -> dict[str, str]:
    found: dict[str, list[int]] = {}
    for seed, value in pairs:
        found.setdefault(value, []).append(seed)
    return {value: ", ".join(map(str, seeds)) for value, seeds in found.items()}


def recorded_versions(sweep: SweepDir) -> dict[str, str]:
    """The versions that the sweep recorded when it began; none where that is lost."""
    try:
        facts = json.loads(sweep.resolved_spec.read_bytes())["versions"]
        return {str(name): str(version) for name, version in facts.items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return {}
