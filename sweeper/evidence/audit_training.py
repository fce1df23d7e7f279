"""Rules about training: what validation data reach, what a seed reaches, what a switch turns on.

Each is a function from a layer's reading to findings.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator

from sweeper.evidence.audit_reading import (
    VAL_TEXT,
    Confidence,
    Finding,
    Kind,
    Reading,
    calls_in,
)
from sweeper.evidence.flows import EVALUATION, Function, names_in

CALIBRATING = re.compile(
    r"hessian|gptq|calib|awq|quanti[sz]e|sensitiv|fisher|imatrix|act_stats", re.I
)
TRAINING_DATA = re.compile(
    r"^_*train_(files?|data|loader|tokens|pattern|glob|set|stream|shards)", re.I
)
CALIBRATION_DATA = re.compile(r"^_*calib\w*_(tok|data|loader|set|batch|seqs|inputs)|^calib_", re.I)
ALL_SHARDS = re.compile(r"fineweb_\*|fineweb\w*_\*_\*\.bin|fineweb[^_]*\*\.bin")
LOADERS = re.compile(r"load|dataset|data|stream|batch|shard", re.I)
RANDOM = re.compile(
    r"seed|generator|default_rng|(^|_)rng(_|$)|randperm|shuffle|permut|randint", re.I
)
SWITCHES = re.compile(
    r"(^|_)(TTT|NGRAM|N_GRAM|SLOT|CACHE|PPM|MIXER|HEDGE|LOOKUP|ORACLE|TEST_TIME|ADAPT)(_|$)", re.I
)
OFF = ("0", "false", "no", "off", "none", "", "0.0")


def validation_in_training(reading: Reading) -> Iterator[Finding]:
    """Validation tokens that are given to training or calibration, or taken for training data.

    Losses of them that are trained on are found by audit_scoring.py.
    """
    holds = reading.validation.holds
    for function in reading.program.functions:
        for node in function.nodes:
            if isinstance(node, ast.Call):
                yield from _calibrates(reading, function, node)
            elif isinstance(node, ast.Assign | ast.AnnAssign) and node.value is not None:
                targets = node.targets if isinstance(node, ast.Assign) else [node.target]
                named = [each for target in targets for each in names_in(target)]
                what = _purpose(named)
                if what is not None and holds(node.value, function):
                    why = f"{what} are made of validation data"
                    yield reading.find(Kind.VALIDATION_IN_TRAINING, node, Confidence.HIGH, why)
            elif _matches_all(node):
                why = "a pattern that matches shards of training and of validation"
                yield reading.find(Kind.VALIDATION_IN_TRAINING, node, Confidence.MEDIUM, why)


def _matches_all(node: ast.AST) -> bool:
    text = node.value if isinstance(node, ast.Constant) else None
    return isinstance(text, str) and bool(ALL_SHARDS.search(text)) and not VAL_TEXT.search(text)


def _purpose(names: list[str]) -> str | None:
    if any(TRAINING_DATA.search(each) for each in names):
        return "training data"
    return "calibration data" if any(CALIBRATION_DATA.search(each) for each in names) else None


def _calibrates(reading: Reading, function: Function, node: ast.Call) -> Iterator[Finding]:
    last = reading.program.called(node).rpartition(".")[2]
    if not CALIBRATING.search(last) or EVALUATION.search(last):
        return
    values = [*node.args, *[each.value for each in node.keywords]]
    if any(reading.validation.holds_there(each, function) for each in values):
        why = f"{last} is given validation tokens"
        yield reading.find(Kind.VALIDATION_IN_TRAINING, node, Confidence.HIGH, why)


def seed_not_in_data(reading: Reading) -> Iterator[Finding]:
    """A loader of training data in whose order no seed has a part."""
    loaders = [
        each
        for each in reading.program.functions
        if each.owner is not None
        and LOADERS.search(each.owner)
        and each.name in ("next_batch", "__next__", "__iter__", "take", "get_batch")
    ] or [
        each
        for each in reading.program.functions
        if re.search(r"(data|batch)_?(generator|loader|iter)|get_batch|next_batch", each.name)
    ]
    if not loaders:
        return
    owners = {each.owner for each in loaders if each.owner is not None}
    parts = [each for each in reading.program.functions if each in loaders or each.owner in owners]
    for part in reading.program.reached(parts):
        if any(RANDOM.search(each) for node in [part.node] for each in names_in(node)):
            return
    if any(_is_seeded(reading, call, owners) for call in calls_in(reading.program.nodes)):
        return
    why = "no seed, generator or shuffle is in the loader: seeds change initial weights, not the "
    why += "order of the data"
    yield reading.find(Kind.SEED_NOT_IN_DATA, loaders[0].node, Confidence.MEDIUM, why)


def _is_seeded(reading: Reading, call: ast.Call, owners: set[str]) -> bool:
    if reading.program.called(call) not in owners:
        return False
    values = [*call.args, *[each.value for each in call.keywords]]
    return any(RANDOM.search(name) for each in values for name in names_in(each))


def eval_switches(reading: Reading) -> Iterator[Finding]:
    """Environment settings that change how a model is scored, by their names."""
    for node, name, default in settings_of(reading):
        if not SWITCHES.search(name) or re.search(r"COMPIL|INDUCTOR|TRITON|HF_|KV_?CACHE", name):
            continue
        flag = default is not None and default.strip("'\"").lower() in (*OFF, "1", "true", "yes")
        if not flag:
            continue
        on = default is not None and default.strip("'\"").lower() not in OFF
        confidence = Confidence.MEDIUM if on else Confidence.LOW
        why = f"{name} changes the evaluation, and is {'on' if on else 'off'} unless it is set"
        yield reading.find(Kind.EVAL_SWITCH, node, confidence, why)


def settings_of(reading: Reading) -> Iterator[tuple[ast.AST, str, str | None]]:
    """The environment variables that a source reads, with their defaults as they stand."""
    for node in reading.program.nodes:
        if isinstance(node, ast.Call):
            called = reading.program.called(node)
            constant = node.args[0] if node.args else None
            if not called.endswith(("environ.get", "getenv", "environ.setdefault")):
                continue
            if isinstance(constant, ast.Constant) and isinstance(constant.value, str):
                default = node.args[1] if len(node.args) > 1 else None
                yield node, constant.value, None if default is None else _short(default)
        elif isinstance(node, ast.Subscript) and isinstance(node.slice, ast.Constant):
            key = node.slice.value
            if isinstance(key, str) and reading.program.dotted(node.value).endswith("os.environ"):
                yield node, key, None


def _short(node: ast.expr) -> str:
    if isinstance(node, ast.Constant):
        return repr(node.value)[:80]
    try:
        return ast.unparse(node)[:80]
    except RecursionError:
        return "…"
