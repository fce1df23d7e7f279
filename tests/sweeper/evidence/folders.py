"""Record folders for tests: real ones where they are here, and right ones written to be spoilt."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from sweeper.evidence.read import read_record
from sweeper.evidence.record import Record

SHARED = Path(__file__).parents[4] / "shared" / "data" / "logs"
RECORD = "pr1395__"  # the record that the recipe is of
EARLIER = "main__2026-03-25"  # the one that it beat
SCORES = {42: 1.09269834, 314: 1.09269085, 999: 1.09194120}


def real(prefix: str) -> Path:
    """A real folder, by the beginning of its name; skips the test where there are none."""
    if not SHARED.is_dir():
        pytest.skip("reference data logs is not here")
    return next(path for path in sorted(SHARED.iterdir()) if path.name.startswith(prefix))


def all_real() -> list[Path]:
    """All real folders; skips the test where there are none."""
    if not SHARED.is_dir():
        pytest.skip("reference data logs is not here")
    return sorted(path.parent for path in SHARED.glob("*/truth.json"))


def truth_of(folder: Path) -> dict[str, Any]:
    """What a person has found in a real folder."""
    truth: dict[str, Any] = json.loads((folder / "truth.json").read_text())
    return truth


@cache
def read_real(prefix: str) -> Record:
    """A real folder, read once."""
    return read_record(real(prefix))


def copy_real(prefix: str, to: Path) -> Path:
    """A copy of a real folder that may be spoilt, without what a person says of it."""
    folder = to / real(prefix).name
    shutil.copytree(real(prefix), folder, ignore=shutil.ignore_patterns("truth.json"))
    for path in folder.iterdir():
        path.chmod(0o644)
    folder.chmod(0o755)
    return folder


def log_text(seed: int, val_bpb: float, **changes: Any) -> str:
    """A short log in format B, as the recipe's record has it."""
    facts: dict[str, Any] = {
        "ratio": 2.3007,
        "code": 24_000,
        "model": 15_960_000,
        "steps": 5_400,
        "settings": {"iterations": 20_000, "num_layers": 11},
        "train_shards": 80,
        "val_tokens": 45_508_608,
        "end": "",
    } | changes
    settings = {"seed": seed, "world_size": 8} | facts["settings"]
    lines = ["Hyperparameters:", *(f"  {name}: {value}" for name, value in settings.items())]
    lines += [f"train_shards: {facts['train_shards']}", f"val_tokens: {facts['val_tokens']}"]
    lines += [
        "1/20000 train_loss: 8.3 train_time: 0.0m tok/s: 7000000",
        f"{facts['steps']}/20000 val_loss: 2.53 val_bpb: 1.0980",
        f"stopping_early: wallclock_cap train_time: 590050ms step: {facts['steps']}/20000",
        "peak memory allocated: 30120 MiB reserved: 30154 MiB",
        "GPTQ:collected 66 Hessians in 9.8s",
        "pre-quantization post-ema val_loss:2.5239 val_bpb:1.0970 eval_time:2019ms",
        f"Serialized model int6+brotli: {facts['model']} bytes",
        f"Code size: {facts['code']} bytes",
        f"Total submission size int6+brotli: {facts['model'] + facts['code']} bytes",
        f"final_int6_roundtrip val_loss:2.55 val_bpb:{val_bpb + 0.015:.8f} eval_time:7700ms",
        f"final_int6_sliding_window val_loss:{val_bpb * facts['ratio']:.8f} "
        f"val_bpb:{val_bpb:.8f} eval_time:76573ms",
    ]
    return "\n".join(lines) + f"\n{facts['end']}"


def write_folder(
    path: Path,
    scores: Mapping[int, float] = SCORES,
    claim: Mapping[str, Any] | None = None,
    **changes: Any,
) -> Path:
    """A right folder: a log a seed, and a submission.json where there is a claim."""
    path.mkdir(parents=True)
    for seed, score in scores.items():
        (path / f"train_seed{seed}.log").write_text(log_text(seed, score, **changes))
    if claim is not None:
        (path / "submission.json").write_text(json.dumps(claim))
    return path
