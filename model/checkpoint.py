"""A run's state on disk, whole or not at all, and the way back into it.

For runs that are longer than their machine's patience. The file is torch's own format, read with
`weights_only`, so that reading one never executes anything.
"""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path
from typing import Any

import torch

from model.config import Config
from model.fields import ConfigError

CHECKPOINT = "checkpoint.pt"
FORMAT = 1
# What may differ between the run that wrote a checkpoint and the one that goes on from it.
FREE_FIELDS = frozenset(
    {"run_dir", "data_dir", "tokenizer_path", "device", "compile", "attention", "warmup_steps"}
    | {"grad_accum_steps", "train_log_every", "val_loss_every", "val_batch_tokens"}
    | {"checkpoint_seconds", "resume_from", "preset"}
)

State = dict[str, Any]


def save_checkpoint(run_dir: Path, state: State, config: Config, data: str) -> None:
    """Write a checkpoint under a temporary name, flush it to disk, then rename it.

    `data` is the fingerprint of the training data.
    """
    path = run_dir / CHECKPOINT
    partial = path.with_name(path.name + ".partial")
    try:
        with partial.open("wb") as file:
            echo = config.echo()
            torch.save({"format": FORMAT, "config": echo, "data": data, "state": state}, file)
            file.flush()
            os.fsync(file.fileno())
    except BaseException:
        partial.unlink(missing_ok=True)
        raise
    partial.replace(path)


def load_checkpoint(config: Config, data: str) -> State | None:
    """The state to go on from; None where the config asks for none.

    Raises ConfigError when there is no such checkpoint, or when it is of other settings or data:
    going on with them would be neither run.
    """
    if config.resume_from is None:
        return None
    path = Path(config.resume_from)
    path = path / CHECKPOINT if path.is_dir() else path
    try:
        saved = torch.load(path, map_location="cpu", weights_only=True)
        if saved["format"] != FORMAT:
            raise ConfigError(f"RESUME_FROM: {path} has format {saved['format']}, not {FORMAT}")
    except FileNotFoundError:
        raise ConfigError(f"RESUME_FROM: {path}: no such checkpoint") from None
    except ConfigError:
        raise
    except Exception as error:
        # Whatever a damaged or foreign file makes of torch's reader.
        raise ConfigError(
            f"RESUME_FROM: {path} is no checkpoint of this trainer: {error}"
        ) from error
    _check_same(path, saved, config, data)
    return dict(saved["state"])


def _check_same(path: Path, saved: State, config: Config, data: str) -> None:
    if saved["data"] != data:
        raise ConfigError(f"RESUME_FROM: {path} was trained on other data; check DATA_DIR")
    ours = config.echo()
    for field in dataclasses.fields(config):
        name = field.name
        # A setting that an older checkpoint does not know was not there to differ.
        if name not in FREE_FIELDS and saved["config"].get(name, ours[name]) != ours[name]:
            raise ConfigError(
                f"RESUME_FROM: {path} was trained with {name.upper()}="
                f"{saved['config'].get(name)}, this run has {ours[name]}; make them agree, or "
                "start anew"
            )
