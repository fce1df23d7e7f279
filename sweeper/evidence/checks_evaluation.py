"""The conditions C1 to C4 that an evaluation must meet, as far as a reader without a GPU can tell.

What they read is the static audit of the script (a triage, not a verdict: it warns, and never
fails) and what the logs and claims say of techniques that have broken a condition before.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

from sweeper.evidence.claims import read_text
from sweeper.evidence.record import LoggedRun
from sweeper.evidence.rules import (
    Context,
    Said,
    Status,
    passed,
    rule,
    say,
    unknown,
    warned,
)
from sweeper.logreader import Lines
from sweeper.scores import Kind

# The audit's kinds of findings, by the condition that they may break.
CAUSAL = ("target_lookup", "validation_in_training")
DISTRIBUTION = ("ngram_cache", "slot_like")
SCORE_FIRST = ("test_time_training", "multi_epoch_ttt", "eval_switch")
ONE_PASS = ("min_over_passes",)
CLOSED = ("network", "subprocess", "reads_outside", "uncounted_code", "hidden_exec", "unreadable")
# The setting that turns a technique off, by the audit's kind.
SWITCHES = {
    "test_time_training": "ttt_enabled",
    "multi_epoch_ttt": "ttt_enabled",
    "slot_like": "slot_enabled",
}
OFF = ("false", "0", "no")
WEAK = "low"  # confidence of findings that are no more than a hint
MOST = 6  # findings shown of a condition

# What claims and logs say of the score -> what a reviewer must see.
HINTS = (
    (
        re.compile(r"\bmin[-_ ]?nll\b|best[-_ ]epoch|epoch selection|min(?:imum)? over", re.I),
        "a minimum over passes or epochs: C4 forbids it",
    ),
    (
        re.compile(r"multi[-_ ]?epoch|ttt_epochs[\"': =]+(?:[2-9]|\d\d)", re.I),
        "several epochs of adaptation: each token's score must be fixed before the first",
    ),
    (
        re.compile(r"two[-_ ]pass|2[-_ ]pass|rescor", re.I),
        "several passes: every token is scored once, from left to right",
    ),
    (
        re.compile(r"adaptation on validation data|before sliding[- ]window scoring", re.I),
        "trains on the validation text and scores it afterwards: C3 forbids it",
    ),
    (
        re.compile(r"\bslot_enabled[\"': =]+(?:true|1)\b", re.I),
        "SLOT: what it optimises on is scored",
    ),
)
# A technique that a text says was not used, as far as the next stop.
DENIED = re.compile(
    r"\b(?:no|not|without|never|neither|nor|none of|isn't|doesn't|don't)\b[^.,;:|!?]*",
    re.IGNORECASE,
)
CALIBRATES_ON_VALIDATION = re.compile(
    r"^(?:quant_calib|gptq|awq|calib\w*)\b.*\bval(?:_tail|idation)?\b"
)
ADAPTS = {
    Kind.TTT: "test-time training: show that each token is scored before any update on it (C3), "
    "and once (C4)",
    Kind.MIXED: "a mixture: show that it is one normalised distribution over the whole alphabet, "
    "fixed before the token is seen (C2), from what came before it alone (C1)",
}


def _condition(context: Context, kinds: Sequence[str], holds: str) -> Iterator[Said]:
    """What the audit has found that may break a condition: a warning, with the script's lines."""
    if context.audit is None:
        yield unknown(context.audit_note or "no train_gpt.py to audit")
        return
    found = [each for each in context.audit if str(each.kind) in kinds]
    for each in found[:MOST]:
        status = Status.UNKNOWN if str(each.confidence) == WEAK else Status.WARN
        text = f"{each.kind} ({each.confidence}): {each.why}: {each.text.strip()}"
        if each.layer:
            text = f"line {each.line} of the unpacked source: {text}"
        if (switch := _off(str(each.kind), context)) is not None:
            status, text = Status.PASS, f"{text} — {switch} is off in all logs"
        yield say(status, text, context.record.script, 0 if each.layer else each.line)
    if len(found) > MOST:
        yield warned(f"and {len(found) - MOST} more: `sweeper audit` lists them")
    if not found:
        yield passed(f"the audit found nothing against it: {holds}", context.record.script)


def _off(kind: str, context: Context) -> str | None:
    """The setting by which no run that counts had a technique on, as all their logs say."""
    switch = SWITCHES.get(kind)
    if switch is None or not context.record.counted:
        return None
    for run in context.record.counted:
        settings = run.facts.hyperparameters
        values = [value for name, value in settings.items() if name.endswith(switch)]
        if not values or any(value.lower() not in OFF for value in values):
            return None
    return switch


@rule(
    "causal",
    "C1: a prediction depends only on the artifact and earlier tokens",
    source="Rules: evaluation conditions, C1",
    advice="Read the lines: no target may reach its own prediction, nor training see validation.",
)
def causal(context: Context) -> Iterator[Said]:
    yield from _condition(context, CAUSAL, "no target reaches its prediction")


@rule(
    "distribution",
    "C2: one full normalised distribution, fixed before the token is seen",
    source="Rules: evaluation conditions, C2",
    advice="Read the lines: probabilities must sum to 1 over the alphabet, whatever the target is.",
)
def distribution(context: Context) -> Iterator[Said]:
    yield from _condition(context, DISTRIBUTION, "no cache, no logits optimised at evaluation")


@rule(
    "score-first",
    "C3: a token's score is fixed before any update that depends on it",
    source="Rules: evaluation conditions, C3",
    advice="Read the lines: score, then update; never the score of a later epoch.",
)
def score_first(context: Context) -> Iterator[Said]:
    yield from _condition(context, SCORE_FIRST, "no training at evaluation")
    for path in dict.fromkeys(run.path for run in context.record.counted):
        for number, line in enumerate(Lines(path).read(whole=True), start=1):
            if CALIBRATES_ON_VALIDATION.match(line):
                text = f"calibrates on validation tokens: {line.strip()[:100]}"
                yield warned(text, path, number)
                break


@rule(
    "one-pass",
    "C4: one pass from left to right, every token scored once, no minimum",
    source="Rules: evaluation conditions, C4",
    advice="Read the lines: of several passes or epochs the first score of a token counts.",
)
def one_pass(context: Context) -> Iterator[Said]:
    yield from _condition(context, ONE_PASS, "no minimum over passes")


@rule(
    "closed",
    "Evaluation needs no network, no other files and no hidden code",
    source="Rules: artifact, everything needed included; no network",
    advice="Read the lines: what they reach must be in the artifact and counted.",
)
def closed(context: Context) -> Iterator[Said]:
    yield from _condition(context, CLOSED, "no network, no other programs, no other files")


@rule(
    "technique",
    "The score is of a kind that meets C1 to C4 without further proof",
    source="Rules: evaluation conditions; Failures: train-then-score, minimum over passes",
    advice="Show in README.md and in the code how each named technique meets the conditions.",
)
def technique(context: Context) -> Iterator[Said]:
    record = context.record
    for run in record.counted:
        yield _of_a_run(run)
    for path in (record.claim.path, record.readme):
        for number, line in enumerate(read_text(path).splitlines(), start=1):
            line = DENIED.sub("", line)
            why = next((why for pattern, why in HINTS if pattern.search(line)), None)
            if path is not None and why is not None:
                yield warned(why, path, number)


def _of_a_run(run: LoggedRun) -> Said:
    why = next((why for kind, why in ADAPTS.items() if run.metric == kind.value), None)
    if run.metric is None:
        return unknown("no final score", run)
    if why is not None:
        return warned(f"{run.headline}: {why}", run, "val_bpb")
    epochs = run.facts.hyperparameters.get("ttt_epochs", "0")
    enabled = run.facts.hyperparameters.get("ttt_enabled", "False").lower() in ("true", "1")
    if enabled and epochs.isdecimal() and int(epochs) > 0:
        return warned(f"TTT_ENABLED with {epochs} epochs, and the score is {run.headline}", run)
    return passed(f"{run.headline}: of the kind {run.metric}", run, "val_bpb")
