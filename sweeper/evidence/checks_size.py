"""Bytes: the artifact below its budget, everything counted, and the claims as the logs have it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from sweeper.evidence.checks_common import claims_by_run, runs_of
from sweeper.evidence.claims import BYTES_CODE, BYTES_TOTAL, unread
from sweeper.evidence.readme import read_readme
from sweeper.evidence.record import Claimed, LoggedRun, Record
from sweeper.evidence.rules import (
    BUDGET,
    Context,
    Said,
    failed,
    not_said,
    passed,
    rule,
    unknown,
    warned,
)

MB = 1_000_000
LEAST_CLAIMED = 1_000  # bytes: no artifact is smaller, and none has so many megabytes


@rule(
    "artifact-bytes",
    "Code and model are below 16,000,000 bytes in every run",
    source="Rules: artifact",
    advice="Make the artifact smaller: it must be strictly below 16,000,000 bytes for each seed.",
)
def artifact_bytes(context: Context) -> Iterator[Said]:
    for run in context.record.counted:
        total, model, code = run.facts.bytes_total, run.facts.bytes_model, run.facts.bytes_code
        if total is not None:
            yield _budget(total, "bytes", run, "bytes_total")
        elif model is not None and code is not None:
            what = "bytes of model and code, without a total in the log"
            yield _budget(model + code, what, run, "bytes_model")
        elif model is not None and model >= BUDGET:
            yield _budget(model, "bytes of the model alone", run, "bytes_model")
        else:
            yield not_said(run, "bytes_total", "the artifact's size")
    for _, claims, _ in claims_by_run(context.record):
        if (claim := claims.get("artifact_bytes")) is not None and _size(claim) >= BUDGET:
            yield _budget(_size(claim), "bytes claimed", claim)
    claim = context.record.claim.bytes_total
    if claim is not None and _size(claim) >= BUDGET:
        yield _budget(_size(claim), "bytes claimed", claim)


def _size(claim: Claimed) -> int:
    """A claim in bytes; what is below a thousand is in megabytes."""
    return round(claim.value * (MB if 0 < claim.value < LEAST_CLAIMED else 1))


def _unit(claim: Claimed) -> int:
    """What the last digit of a claim that is not 0 stands for, in bytes."""
    if 0 < claim.value < LEAST_CLAIMED:
        return int(max(MB // 10**claim.digits, 1))
    size = str(int(claim.value))
    return int(10 ** (len(size) - len(size.rstrip("0"))))


def _budget(size: int, what: str, place: LoggedRun | Claimed, fact: str = "") -> Said:
    room = BUDGET - size
    if room <= 0:
        return failed(f"{size:,} {what}: {-room:,} over what is allowed", place, fact)
    return passed(f"{size:,} {what}, {room:,} to spare", place, fact)


@rule(
    "bytes-add-up",
    "Code and model add up to the total that is logged",
    source="Rules: artifact",
    advice="Say in each log what was counted: the total must be code + compressed model.",
)
def bytes_add_up(context: Context) -> Iterator[Said]:
    for run in context.record.counted:
        code, model, total = run.facts.bytes_code, run.facts.bytes_model, run.facts.bytes_total
        if total is None or code is None or model is None:
            missing = [
                n
                for n in ("bytes_total", "bytes_code", "bytes_model")
                if getattr(run.facts, n) is None
            ]
            yield not_said(run, missing[0], " and ".join(missing).replace("bytes_", ""))
        elif code + model == total:
            yield passed(f"{code:,} + {model:,} = {total:,}", run, "bytes_total")
        else:
            off = total - code - model
            text = f"code {code:,} + model {model:,} is not {total:,}: {off:+,} bytes"
            yield failed(text, run, "bytes_total")


@rule(
    "bytes-claimed",
    "The bytes claimed are those of the logs, code included",
    source="Failures: bytes",
    advice="Claim the largest total that a log of the counted runs gives, code included.",
)
def bytes_claimed(context: Context) -> Iterator[Said]:
    record = context.record
    if (claim := record.claim.bytes_total) is not None:
        yield _claimed_total(claim, record.counted)
    for key, claims, runs in claims_by_run(record):
        mine = claims.get("artifact_bytes")
        if mine is not None and runs:
            yield _claimed_of_a_run(mine, key, runs)
    of_readme = read_readme(record.readme, record.claim.seeds or _seeds(record)).sizes
    for seed, size in of_readme.items():
        if runs := runs_of(record, seed):
            yield _claimed_of_a_run(size, f"seed {seed}", runs)
    code = record.claim.bytes_code
    logged = {run.facts.bytes_code for run in record.counted} - {None}
    if code is not None and logged and int(code.value) not in logged:
        text = f"{int(code.value):,} bytes of code claimed, the logs say {_numbers(logged)}"
        yield warned(text, code)
    if claim is None and not any("artifact_bytes" in c for c in record.claim.per_seed.values()):
        names = unread(record.claim.fields, "bytes|size", (*BYTES_TOTAL, *BYTES_CODE))
        yield unknown("no size is claimed" + (f"; not read: {', '.join(names)}" if names else ""))


def _seeds(record: Record) -> tuple[int, ...]:
    return tuple(run.seed for run in record.counted if run.seed is not None)


def _claimed_total(claim: Claimed, runs: Sequence[LoggedRun]) -> Said:
    totals = [run.facts.bytes_total for run in runs]
    models = {run.facts.bytes_model for run in runs if run.facts.bytes_model is not None}
    known, size = [total for total in totals if total is not None], _size(claim)
    if size in models and size not in known:
        largest = f"; the largest logged total is {max(known):,}" if known else ""
        return failed(f"{size:,} bytes are those of the model alone{largest}", claim)
    if not known:
        return unknown(f"{size:,} bytes claimed, and no log gives a total", claim)
    if size == max(known):
        return passed(f"{size:,} bytes, the largest total of the logs", claim)
    if size in known:
        return warned(f"{size:,} bytes are not the largest total, {max(known):,}", claim)
    return _against(claim, max(known), "the largest total")


def _claimed_of_a_run(claim: Claimed, key: str, runs: Sequence[LoggedRun]) -> Said:
    size = _size(claim)
    totals = {run.facts.bytes_total for run in runs} - {None}
    if size in totals:
        return passed(f"{size:,} bytes, as logged", claim)
    if size in {run.facts.bytes_model for run in runs}:
        more = f"; its log's total is {_numbers(totals)}" if totals else ""
        status = failed if totals else warned
        return status(f"{size:,} bytes are those of the model alone{more}", claim)
    if not totals:
        return unknown(f"{size:,} bytes claimed, and no log of {key} gives a total", claim)
    return _against(claim, max(total for total in totals if total is not None), "the log's total")


def _against(claim: Claimed, logged: int, what: str) -> Said:
    """A claim that no log has: too little is wrong, too much harmless, a round one rounded."""
    size = _size(claim)
    text = f"{size:,} bytes claimed, {what} is {logged:,} ({size - logged:+,})"
    if size >= logged or abs(size - logged) < _unit(claim):
        return warned(text, claim)
    return failed(text, claim)


def _numbers(sizes: set[int] | set[int | None]) -> str:
    return ", ".join(f"{size:,}" for size in sorted(size for size in sizes if size is not None))
