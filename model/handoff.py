"""What one stage of a run leaves for the next, where each is a process of its own.

`STAGE=train` leaves trained.pt (tensors) and trained.json, `STAGE=pack` the artifact and
packed.json, all in RUN_DIR and by rename. The JSON comes last and vouches for the other file by its
checksum, so that what is missing, damaged or of another run is refused. It holds those fields of
the result that the stage knows. Tensors are read with `weights_only`: nothing is executed.
"""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from model.calibrate import Sensitivity
from model.config import Config
from model.fields import convert
from model.gpt import GPT
from model.recurrence import Loop
from model.report import write_by_rename, write_json

TRAINED_TENSORS = "trained.pt"
TRAINED = "trained.json"
PACKED = "packed.json"
HANDOFF_SCHEMA = 1
# What the next stage reads of each, besides what it hands on.
VOUCHED = {
    "trained": {"trained_sha256", "config", "data", "attention", "compute_dtype", "bytes_code"},
    "packed": {"trained_sha256", "artifact", "artifact_sha256"},
}
# Where a stage finds its files; every other setting is that of the training.
PLACES = ("run_dir", "data_dir", "tokenizer_path")

StageName = Literal["all", "train", "pack", "score"]
Facts = dict[str, Any]  # fields of the result, as far as they are known


class HandoffError(ValueError):
    """What an earlier stage should have left is missing, damaged or of another run."""


@dataclass(frozen=True, kw_only=True)
class TrainedModel:
    """What packing needs: the EMA weights with the loop that training ended with, Hessians and
    sensitivities by parameter name, and what training knows of the result.
    """

    model: GPT
    hessians: dict[str, Tensor]
    sensitivities: dict[str, Sensitivity]
    facts: Facts


def stage_of(environ: Mapping[str, str]) -> StageName:
    """The stage that an environment asks for. Raises ConfigError."""
    stage: StageName = convert("stage", environ.get("STAGE", "all"), StageName)
    return stage


def save_trained(run_dir: Path, trained: TrainedModel) -> None:
    """Write what packing needs, and after it what is known of the result."""
    # Moved once, what query, key and value share stays one tensor and is stored once.
    moved = {hessian: hessian.cpu() for hessian in trained.hessians.values()}
    buffer = io.BytesIO()
    torch.save(
        {
            "weights": {name: value.cpu() for name, value in trained.model.state_dict().items()},
            "hessians": {name: moved[hessian] for name, hessian in trained.hessians.items()},
            "sensitivities": {
                name: (s.rows.cpu(), s.cols.cpu()) for name, s in trained.sensitivities.items()
            },
            "loop": tuple(trained.model.loop),
        },
        buffer,
    )
    data = buffer.getbuffer()
    write_by_rename(run_dir / TRAINED_TENSORS, data)
    _write_facts(run_dir / TRAINED, "trained", hashlib.sha256(data).hexdigest(), trained.facts)


def read_trained(run_dir: Path, config: Config) -> tuple[Facts, str]:
    """What training knows of the result, and the checksum of its tensors.

    Raises HandoffError where there is none, or where it is of other settings than these.
    """
    path = run_dir / TRAINED
    facts, checksum = _read_facts(path, "trained", "train")
    for name, ours in config.echo().items():
        theirs = facts["config"].get(name)
        if name not in PLACES and theirs != ours:
            raise HandoffError(
                f"{path}: trained with {name.upper()}={theirs}, this stage has {ours}; give all "
                "stages of a run the same settings"
            )
    return facts, checksum


def load_trained(run_dir: Path, config: Config, facts: Facts, checksum: str) -> TrainedModel:
    """The tensors that `read_trained` vouches for, on the CPU. Raises HandoffError."""
    path = run_dir / TRAINED_TENSORS
    saved = torch.load(
        io.BytesIO(_read_checked(path, checksum, "train")), map_location="cpu", weights_only=True
    )
    with torch.device("meta"):
        model = GPT(config)
    model.load_state_dict(saved["weights"], assign=True)
    model.set_loop(Loop(*saved["loop"]))
    sensitivities = {
        name: Sensitivity(rows=rows, cols=cols)
        for name, (rows, cols) in saved["sensitivities"].items()
    }
    return TrainedModel(
        model=model, hessians=saved["hessians"], sensitivities=sensitivities, facts=facts
    )


def save_packed(run_dir: Path, facts: Facts, checksum: str) -> None:
    """Write what packing the tensors of `checksum` knows of the result."""
    _write_facts(run_dir / PACKED, "packed", checksum, facts)


def is_packed(run_dir: Path, checksum: str) -> bool:
    """Whether the tensors of `checksum` are packed already, and the artifact is whole."""
    try:
        read_artifact(run_dir, read_packed(run_dir, checksum))
    except HandoffError:
        return False
    return True


def drop_tensors(run_dir: Path) -> None:
    """Remove what is large, and of no use once the artifact is there."""
    (run_dir / TRAINED_TENSORS).unlink(missing_ok=True)


def read_packed(run_dir: Path, checksum: str) -> Facts:
    """What `save_packed` wrote for these tensors. Raises HandoffError."""
    path = run_dir / PACKED
    facts, of = _read_facts(path, "packed", "pack")
    if of != checksum:
        raise HandoffError(f"{path}: of another training; run STAGE=pack again")
    return facts


def read_artifact(run_dir: Path, packed: Facts) -> bytes:
    """The artifact that `read_packed` vouches for. Raises HandoffError."""
    return _read_checked(run_dir / packed["artifact"], packed["artifact_sha256"], "train")


def _write_facts(path: Path, status: str, checksum: str, facts: Facts) -> None:
    envelope = {"schema": HANDOFF_SCHEMA, "status": status, "trained_sha256": checksum}
    write_json(path, envelope | facts)


def _read_facts(path: Path, status: str, stage: StageName) -> tuple[Facts, str]:
    """The facts of a stage's JSON, and the checksum of the tensors that they go with."""
    facts = _json_object(_read(path, stage))
    found = facts.pop("schema", None), facts.pop("status", None)
    if found != (HANDOFF_SCHEMA, status) or not VOUCHED[status] <= facts.keys():
        raise HandoffError(f"{path}: damaged, or of another version; run STAGE={stage} again")
    return facts, facts.pop("trained_sha256")


def _json_object(data: bytes) -> Facts:
    """The object that a JSON text holds; empty where it holds none."""
    try:
        found = json.loads(data)
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}


def _read_checked(path: Path, checksum: str, stage: StageName) -> bytes:
    data = _read(path, stage)
    if hashlib.sha256(data).hexdigest() != checksum:
        raise HandoffError(f"{path}: damaged, or of another run; run STAGE={stage} again")
    return data


def _read(path: Path, stage: StageName) -> bytes:
    """A file that `stage` has left."""
    try:
        return path.read_bytes()
    except FileNotFoundError:
        raise HandoffError(f"{path}: missing; run STAGE={stage} before this stage") from None
