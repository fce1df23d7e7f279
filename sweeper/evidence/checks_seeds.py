"""The runs: enough different seeds, of one configuration, and none of them chosen by its score."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

from sweeper.evidence.checks_common import claims_by_run
from sweeper.evidence.choose import seed_in_name
from sweeper.evidence.claims import of_another, read_text
from sweeper.evidence.record import LoggedRun, Record
from sweeper.evidence.rules import (
    SEEDS,
    Context,
    Said,
    failed,
    not_said,
    passed,
    rule,
    say,
    unknown,
    warned,
)
from sweeper.evidence.settings import differences
from sweeper.scores import Kind

SAME_RATIO = 1e-3  # by which the nats per BPB of one tokenizer and set may differ
NAMED = 5  # settings, in one line
MEAN_OF = re.compile(
    r"\b(\d{1,2})[- ]seed (?:exact )?(?:mean|average)"
    r"|\b(?:mean|average) (?:of|over) (\d{1,2}) seeds",
    re.IGNORECASE,
)
BEST_OF = (
    re.compile(
        r"\bbest (?P<best>\d{1,2})?\s?(?:seeds |runs )?(?:of|out of|from|among) (?P<of>\d{1,2})\b"
        r"(?= (?:seeds?|runs?)\b)",
        re.IGNORECASE,
    ),
    re.compile(
        r"\b(?:launch|ran|run|train|tri)(?:ed)? (?P<of>\d{1,2}) (?:seeds|runs)\b[^.]{0,60}?"
        r"\bbest(?: (?P<best>\d{1,2})\b)?",
        re.IGNORECASE,
    ),
)
COUNTS = ("num_seeds", "n_seeds", "seed_count", "num_runs", "n_runs")
COPY = "a copy of"  # begins the reason of a run that is another one's copy (read.py)


@rule(
    "seeds-enough",
    "There are at least three runs with different seeds",
    source="Rules: improvement, usually 3 seeds",
    advice="Run the missing seeds, and add their logs.",
)
def seeds_enough(context: Context) -> Iterator[Said]:
    runs = context.record.counted
    seeds = {run.seed for run in runs} - {None}
    unnamed = sum(run.seed is None for run in runs)
    text = f"{len(seeds)} different seed{'s' * (len(seeds) != 1)}"
    if seeds:
        text += f" ({', '.join(str(seed) for seed in sorted(s for s in seeds if s is not None))})"
    if unnamed:
        text += f", {unnamed} without a seed"
    if len(seeds) >= SEEDS:
        yield passed(text)
    elif len(seeds) + unnamed >= SEEDS:
        yield unknown(f"{text}: the logs do not say whether there are {SEEDS}")
    else:
        yield say(context.lenient, f"{text}: {SEEDS} are needed")


@rule(
    "seeds-distinct",
    "No seed is counted twice",
    source="Rules: improvement, usually 3 seeds; Failures: selected seeds",
    advice="Count each seed once: the same seed again is not another sample.",
)
def seeds_distinct(context: Context) -> Iterator[Said]:
    groups: dict[int, list[LoggedRun]] = {}
    for run in context.record.counted:
        if run.seed is None:
            yield not_said(run, "seed", "the seed")
        else:
            groups.setdefault(run.seed, []).append(run)
    for seed, runs in groups.items():
        if len(runs) > 1:
            others = ", ".join(run.label for run in runs[1:])
            yield failed(f"seed {seed}, which {others} has too", runs[0], "seed")
        else:
            yield passed(f"seed {seed}", runs[0], "seed")


@rule(
    "seed-names",
    "A log has the seed that its name says",
    source="Failures: headline ≠ logs",
    advice="Give each log the name of the seed that it ran with, or add the right log.",
)
def seed_names(context: Context) -> Iterator[Said]:
    record, claimed = context.record, context.record.claim.seeds
    for run in record.runs:
        named, said = seed_in_name(run.path.stem), run.facts.seed
        # Of those that do not count only a claimed seed's own log is of interest.
        if not run.counts and (None in (named, said, run.val_bpb) or named not in claimed):
            continue
        if named is None or (run.of > 1 and said is None):
            yield passed("the name says no seed", run)
        elif said is None:
            yield unknown(f"seed {named} by its name; the log says none", run)
        elif said == named:
            yield passed(f"seed {said}", run, "seed")
        else:
            yield failed(f"seed {named} by its name, {said} in the log", run, "seed")


@rule(
    "one-configuration",
    "All runs are of one configuration",
    source="Failures: seeds from different configs",
    advice="Count only runs with the same settings, code and machine; run the others again.",
)
def one_configuration(context: Context) -> Iterator[Said]:
    runs = context.record.counted
    if len(runs) < 2:
        yield unknown(f"{len(runs)} run: nothing to hold against each other")
        return
    first, same = runs[0], True
    for run in runs[1:]:
        for said in _unlike(first, run):
            same = False
            yield said
    if same and any(run.facts.hyperparameters for run in runs):
        settings = len(first.facts.hyperparameters)
        yield passed(f"the same {settings} settings in all {len(runs)} logs")
    elif same:
        yield unknown("the logs echo no settings")


def _unlike(first: LoggedRun, run: LoggedRun) -> Iterator[Said]:
    found = {
        name: values
        for name, values in differences(first.facts, run.facts).items()
        if not _same_number(*values)
    }
    if found and first.facts.hyperparameters and run.facts.hyperparameters:
        beside = {name for name in found if _is_beside(name, first) and _is_beside(name, run)}
        if matter := [name for name in found if name not in beside]:
            yield failed(f"unlike {first.label}: {_named(found, matter)}", run)
        if beside:
            text = f"unlike {first.label}: {_named(found, sorted(beside))}; the score is not of it"
            yield warned(text, run)
    for fact in ("world_size", "iterations", "train_shards"):
        mine, theirs = getattr(first.facts, fact), getattr(run.facts, fact)
        if None not in (mine, theirs) and mine != theirs and fact not in found:
            name = fact.replace("_", " ")
            yield failed(f"{name} {theirs}, in {first.label} {mine}", run, fact)
    ratios = first.nats_per_bpb, run.nats_per_bpb
    if ratios[0] and ratios[1] and not math.isclose(ratios[0], ratios[1], rel_tol=SAME_RATIO):
        text = f"{ratios[1]:.4f} nats a BPB, in {first.label} {ratios[0]:.4f}: another tokenizer"
        yield failed(text, run, "val_bpb")
    codes = first.facts.bytes_code, run.facts.bytes_code
    if None not in codes and codes[0] != codes[1]:
        text = f"{codes[1]:,} bytes of code, in {first.label} {codes[0]:,}: another script"
        yield warned(text, run, "bytes_code")


def _same_number(one: str | None, other: str | None) -> bool:
    """Whether two settings are one number that is written in two ways: 0.02 and 0.020."""
    try:
        return one is not None and other is not None and float(one) == float(other)
    except ValueError:
        return False


def _is_beside(name: str, run: LoggedRun) -> bool:
    """Whether a setting is of a pass that is not the score's: of adaptation that lost to none."""
    return name.startswith("ttt_") and run.metric != Kind.TTT.value


def _named(found: Mapping[str, tuple[str | None, str | None]], names: Sequence[str]) -> str:
    named = [f"{name} {found[name][0]} and {found[name][1]}" for name in names[:NAMED]]
    more = f", and {len(names) - NAMED} more" if len(names) > NAMED else ""
    return "; ".join(named) + more


@rule(
    "selection",
    "The runs that count are all that there are",
    source="Failures: selected seeds",
    advice="Count every finished run of the configuration, or say why one does not count.",
)
def selection(context: Context) -> Iterator[Said]:
    record = context.record
    for run in record.excluded:
        reason = run.excluded or ""
        if run.val_bpb is None or reason.startswith(COPY):
            yield passed(f"does not count: {reason}", run)
        else:
            yield warned(f"seed {run.seed}, {run.val_bpb:.5f}, does not count: {reason}", run)
    counted = {run.seed for run in record.counted} | {
        seed_in_name(run.path.stem) for run in record.counted
    }
    named = set(record.claim.seeds)
    lost = [seed for seed in record.claim.seeds if seed not in counted]
    unclear = any(run.seed is None for run in record.counted)
    if lost and unclear and len(record.counted) >= len(named):
        yield unknown(f"seeds {_list(lost)} are claimed; logs without a seed may be theirs")
    elif lost and unclear:
        text = f"{len(named)} seeds are claimed ({_list(list(record.claim.seeds))})"
        yield failed(f"{text}, {_logs(len(record.counted))}, and not all say their seed")
    elif lost:
        yield failed(f"no log that counts for the claimed seeds {_list(lost)}")
    rows = len(record.claim.per_seed)
    if not lost and rows > len(record.counted):
        yield failed(f"{rows} runs are claimed, {_logs(len(record.counted))}")
    yield from _more_than_counted(record)
    unclaimed = [run for run in record.counted if named and run.seed not in named]
    if not lost:
        for run in unclaimed:
            yield warned(f"seed {run.seed} is not among those claimed", run, "seed")
    yield passed(f"{len(record.counted)} runs count: {record.chosen_by}")


def _logs(count: int) -> str:
    return f"{count} log{'s' * (count != 1)} count{'s' * (count == 1)}"


def _more_than_counted(record: Record) -> Iterator[Said]:
    """Where the record's own words or numbers say that there were more runs than count."""
    count, path = len(record.counted), record.claim.path
    for name, words in record.claim.fields.items():
        if isinstance(words, str):
            for said, text in _confessed(words, count, opening=True):
                yield said(f"{name}: {text}", path, 0)
        elif name in COUNTS and type(words) is int and words > count:
            yield failed(f"{name} {words}, {_logs(count)}", path)
    opening = True
    for number, line in enumerate(read_text(record.readme).splitlines(), start=1):
        opening = opening and not line.startswith("##")
        for said, text in _confessed(line, count, opening=opening):
            yield said(text, record.readme, number)


def _confessed(
    words: str, count: int, *, opening: bool
) -> Iterator[tuple[Callable[[str, Path | None, int], Said], str]]:
    """What a text says of runs that were not counted; a mean further below may be another's."""
    if opening:
        for mean in MEAN_OF.finditer(words):
            many = mean[1] or mean[2]
            if int(many) > count:
                said = warned if of_another(words[: mean.start()]) else failed
                yield said, f"a mean of {many} seeds, {_logs(count)}"
    for pattern in BEST_OF:
        if (found := pattern.search(words)) is not None:
            best, of = int(found["best"] or 1), int(found["of"])
            if best < of and of > count:
                yield failed, f"the best {best} of {of} runs: {found[0]}"
                break


def _list(seeds: list[int]) -> str:
    return ", ".join(map(str, seeds))


@rule(
    "copies",
    "No two logs are of the same run",
    source="Failures: selected seeds",
    advice="Remove the copy: each run is counted once.",
)
def copies(context: Context) -> Iterator[Said]:
    record = context.record
    alone = [run for run in record.counted if run.of == 1]
    hashes = Counter(run.sha256 or run.label for run in alone)
    for run in record.excluded:
        if (run.excluded or "").startswith(COPY):
            kept = next((o for o in record.counted if run.excluded == f"{COPY} {o.label}"), None)
            own = (run.facts.seed, seed_in_name(run.path.stem), kept.facts.seed if kept else None)
            seeds = {seed for seed in own if seed is not None}
            text = f"{run.excluded}, and does not count"
            if len(seeds) > 1:
                yield failed(f"{text}; the same run under the seeds {_list(sorted(seeds))}", run)
            else:
                yield passed(text, run)
    for run in alone:
        twins = [o.label for o in record.counted if o is not run and _same_run(o, run)]
        if hashes[run.sha256 or run.label] > 1 or twins:
            yield failed(f"the same run as {', '.join(twins) or 'another log'}", run)
    if len(record.counted) > 1:
        yield passed(f"{len(record.counted)} logs of different runs count")


def _same_run(one: LoggedRun, other: LoggedRun) -> bool:
    """Whether what no two runs have in common is equal: the time to the millisecond, all digits."""
    mine, theirs = one.facts, other.facts
    if mine.train_time_ms is None or one.val_bpb is None:
        return False
    return (mine.train_time_ms, one.val_bpb, mine.bytes_model) == (
        theirs.train_time_ms,
        other.val_bpb,
        theirs.bytes_model,
    )


@rule(
    "claimed-runs",
    "Steps and times claimed are those of the logs",
    source="Failures: headline ≠ logs, stale log of another model",
    advice="Add the log of the run that the claim is of, or claim what this one says.",
)
def claimed_runs(context: Context) -> Iterator[Said]:
    held = 0
    for key, claims, runs in claims_by_run(context.record):
        for name, fact in (("steps", "steps"), ("step_avg_ms", "step_avg_ms")):
            claim = claims.get(name)
            logged = [getattr(run.facts, fact) for run in runs]
            known = [value for value in logged if value is not None]
            if claim is None or not known:
                continue
            held += 1
            near = min(known, key=lambda value: abs(value - claim.value))
            off = abs(near - claim.value) / max(abs(near), 1e-9)
            text = f"{name.replace('_', ' ')} {claim.text} for {key}, the log says {near:g}"
            if claim.agrees(near) or off < 2e-3:
                yield passed(text, claim)
            else:
                yield (warned if off < 0.02 else failed)(text, claim)
    if not held:
        yield unknown("no steps are claimed that a log could confirm")
