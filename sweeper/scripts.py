"""The result of a script that knows no contract: from its log, and from the files that it left.

What the log says of sizes is checked against the disk, and what is measured there counts.
"""

from __future__ import annotations

import hashlib
import json
import math
import posixpath
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from sweeper.adapters import LogFacts
from sweeper.contract import SCHEMA, same_value
from sweeper.errors import ContractError
from sweeper.layout import AttemptDir
from sweeper.logreader import find_logs, read_log

# Where a packed model is looked for, the likeliest first.
ARTIFACTS = ("final_model.*.ptz", "*.int6.ptz", "*.int8.ptz", "*.ptz", "**/*.ptz")
# Of a result as the contract has it, what a log may say as well, by the same name.
FROM_LOG = (
    *("seed", "metric", "val_bpb", "val_loss", "prequant_val_bpb", "prequant_val_loss"),
    *("quant_val_bpb", "quant_val_loss", "steps", "train_time_ms", "step_avg_ms", "eval_time_s"),
    *("peak_memory_mib", "train_shards", "val_tokens", "world_size", "stop_reason"),
)
# What another log of the run may say in its place: not scores, which are of one, nor sizes.
FILLED = (
    *("seed", "steps", "train_time_ms", "step_avg_ms", "peak_memory_mib", "train_shards"),
    *("val_tokens", "world_size", "stop_reason", "hyperparameters", "form"),
)
# What a log never says.
UNKNOWN = (
    *("hessian_time_s", "quantise_time_s", "pack_time_s", "codec", "val_bytes", "model_params"),
    *("resumed_from_step", "attention", "compute_dtype", "versions", "data", "useful_s"),
)


class NonFiniteError(ContractError):
    """The score of a run is no number."""


def script_of(attempt: AttemptDir) -> dict[str, Any] | None:
    """What was launched, if that was a script; None for a module, or where nothing says it."""
    try:
        request = json.loads(attempt.request.read_bytes())
        return request if request.get("script") else None
    except (OSError, ValueError, AttributeError):
        return None


def read_attempt(attempt: AttemptDir) -> LogFacts:
    """What all logs of a run say; where one has no final score, the next may fill its gaps."""
    facts, *others = [read_log(path) for path in find_logs(attempt)] or [LogFacts()]
    for more in others:
        if facts.metric is None:
            facts, more = more, facts
        gaps = {name: getattr(more, name) for name in FILLED if getattr(facts, name) in (None, {})}
        facts = replace(facts, **gaps)
    return facts


def log_result(
    attempt: AttemptDir, request: Mapping[str, Any], facts: LogFacts, overrides: Mapping[str, str]
) -> dict[str, Any]:
    """The result of a finished script, in the contract's names; None for what nothing says.

    ContractError where there is no score, or where log and disk disagree.
    """
    if facts.val_bpb is None or facts.val_loss is None:
        raise ContractError("its log has no final score (val_loss and val_bpb of the final model)")
    if not (math.isfinite(facts.val_bpb) and math.isfinite(facts.val_loss)):
        raise NonFiniteError(f"{facts.headline}: val_bpb is {facts.val_bpb}, not finite")
    _check_total(facts)
    artifact = find_artifact(attempt.path, request["files"], facts.bytes_model)
    model = None if artifact is None else artifact.stat().st_size
    code = code_bytes(attempt.path, request, facts)
    return {
        "schema": SCHEMA,
        "status": "finished",
        "adapter": facts.form or "log",
        "headline": facts.headline,
        **{name: getattr(facts, name) for name in FROM_LOG},
        **dict.fromkeys(UNKNOWN),
        "bytes_model": model,
        "bytes_code": code,
        "bytes_total": None if model is None else model + code,
        "artifact": None if artifact is None else str(artifact.relative_to(attempt.path)),
        "artifact_sha256": None if artifact is None else _sha256(artifact),
        "config": facts.hyperparameters,
        "stages": "whole",
        "unconfirmed": unconfirmed(facts, overrides),
    }


def _check_total(facts: LogFacts) -> None:
    model, code, total = facts.bytes_model, facts.bytes_code, facts.bytes_total
    if model is None or code is None or total is None or total == model + code:
        return
    raise ContractError(
        f"the log's sizes do not add up: {model} bytes of model, {code} of code, in all {total}"
    )


def find_artifact(directory: Path, sources: list[str], stated: int | None) -> Path | None:
    """The packed model among a run's files: of the size that the log states, else the newest.

    None where neither log nor disk knows of one; ContractError where only the log does.
    """
    found: dict[Path, None] = {}
    for pattern in ARTIFACTS:
        newest = sorted(directory.glob(pattern), key=lambda path: path.stat().st_mtime)
        found |= dict.fromkeys(path for path in reversed(newest) if path.is_file())
    if stated is None:
        return next(iter(found), None)
    others = [path for path in _files(directory, sources) if path not in found]
    for path in [*found, *others]:
        if path.stat().st_size == stated:
            return path
    sizes = ", ".join(f"{path.name} has {path.stat().st_size}" for path in found)
    raise ContractError(
        f"the log says that the packed model has {stated} bytes, on disk "
        + (f"{sizes}" if sizes else "there is no such file in the run's directory")
    )


def _files(directory: Path, sources: list[str]) -> Iterator[Path]:
    """What a run has written beside its logs."""
    for path in sorted(directory.rglob("*")):
        name = path.relative_to(directory).as_posix()
        if path.is_file() and not name.startswith("logs/") and name not in sources:
            yield path


def code_bytes(directory: Path, request: Mapping[str, Any], facts: LogFacts) -> int:
    """What the code counts: as the log states for it compressed, else the script as it was copied.

    Python files beside the script are needed as well, and count. ContractError where the log
    states another size for the script.
    """
    stated = facts.bytes_code
    if facts.code_compressed and stated is not None:
        return stated
    script = directory / str(request["script"])
    try:
        text = script.read_bytes()
        others = [directory / name for name in request["files"] if name != request["script"]]
        beside: int = sum(path.stat().st_size for path in others if path.suffix == ".py")
    except OSError as error:
        raise ContractError(f"{script.name}: its copy cannot be read ({error})") from error
    # A script that reads itself as text sees its line ends as one character.
    known = {len(text), len(text) + beside, len(text.replace(b"\r\n", b"\n"))}
    if stated is not None and stated not in known:
        raise ContractError(f"{script.name}: has {len(text)} bytes on disk, the log says {stated}")
    return len(text) + beside


def wrong_setting(
    facts: LogFacts, overrides: Mapping[str, str], inherited: Iterable[str] = ()
) -> str | None:
    """How a script's settings, as far as its log echoes them, differ from what was asked.

    Only format B lists settings as they came in; format A says what became of them, under names
    that may be those of others: there a value can confirm a setting, but not refute it.
    """
    for name, asked in overrides.items():
        found = _echoed(facts, name)
        refutes = facts.form == "log-b" or name == "SEED"
        if found is not None and refutes and not agrees(asked, found):
            return f"{name}: asked for {asked!r}, the log says {found!r}"
    for name in inherited:
        if name.isupper() and name.lower() in facts.hyperparameters and name not in overrides:
            return (
                f"{name}: the run takes it from the environment that it was started in, not from "
                "the spec; unset it there, or give it under [env]"
            )
    return None


def unconfirmed(facts: LogFacts, overrides: Mapping[str, str]) -> list[str]:
    """The overrides that the log does not confirm."""
    return [
        name
        for name, asked in overrides.items()
        if (found := _echoed(facts, name)) is None or not agrees(asked, found)
    ]


def _echoed(facts: LogFacts, name: str) -> str | None:
    if name == "SEED" and facts.seed is not None:
        return str(facts.seed)
    return facts.hyperparameters.get(name.lower())


def agrees(asked: str, echoed: str) -> bool:
    """Whether a log's text can stand for a setting: rounded, a path another way, True for 1."""
    text = echoed.strip()
    if text in ("True", "False"):
        return same_value(asked, text == "True")
    if text == "None":
        return same_value(asked, None)
    if text[:1] in "([" and text[-1:] in ")]":
        text = text[1:-1].strip().rstrip(",")  # of a list or a tuple
    if same_value(asked, text):
        return True
    try:
        wanted, found = float(asked), float(text)
    except ValueError:
        return "/" in asked and posixpath.normpath(asked) == posixpath.normpath(text)
    digits = len(text.partition(".")[2]) if "e" not in text.lower() else None
    if digits is None:
        return math.isclose(wanted, found, rel_tol=1e-6)
    return abs(wanted - found) <= 0.5000001 * 10**-digits if digits else wanted == found


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
