"""A good record's folder to doctor, what is found in it, and real folders read once."""

from __future__ import annotations

import functools
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from sweeper.evidence.read import read_record
from sweeper.evidence.record import Record
from sweeper.evidence.rules import Finding, Status
from sweeper.evidence.validate import validate

SHARED = Path(__file__).parents[4] / "shared" / "data" / "logs"
GOOD = "pr1395__2026-04-06_SP4096_LinearLR_DepthRecurrence_1.0924"
BEFORE = "main__2026-03-25_ValCalib_GPTQ_XSA_BigramHash3072"
MERGED = "main__2026-04-04_SP4096_DepthRecurrence_ParallelResid_MuonEqR"

SCRIPT = '''"""A stand-in for the script of the runs; never run here."""
import brotli
import torch


def main():
    torch.manual_seed(42)


if __name__ == "__main__":
    main()
'''
README = """# SP4096 + linear warmdown

**val_bpb: 1.0924** (3-seed mean, std 0.0004)

| seed | val_bpb |
| :-- | --: |
| 42 | 1.09269834 |
| 314 | 1.09269085 |
| 999 | 1.09194120 |
| **Mean** | **1.09244346** |

Reproduce: `SEED=42 torchrun --standalone --nproc_per_node=8 train_gpt.py`
"""
CODE_BYTES = 90_804
ALL, ONE = "train_seed*.log", "train_seed42.log"


@functools.cache
def real(name: str) -> Record:
    if not SHARED.exists():
        pytest.skip("reference data logs is not here")
    return read_record(SHARED / name)


@functools.cache
def found_in(name: str) -> dict[str, Finding]:
    return {finding.rule: finding for finding in validate(real(name))}


def names() -> list[str]:
    """The real folders, where they are at hand."""
    return sorted(path.parent.name for path in SHARED.glob("*/truth.json"))


def good_folder(below: Path) -> Path:
    """A real record's logs and claims, with the files that were not kept written anew."""
    if not SHARED.exists():
        pytest.skip("reference data logs is not here")
    folder = below / "2026-04-06_SP4096_LinearLR"
    shutil.copytree(SHARED / GOOD, folder, ignore=shutil.ignore_patterns("truth.json"))
    (folder / "README.md").write_text(README)
    (folder / "requirements.txt").write_text("torch\nbrotli>=1.1\n")
    (folder / "train_gpt.py").write_text(SCRIPT + "#" * (CODE_BYTES - len(SCRIPT)))
    return folder


def doctor(folder: Path, pattern: str, old: str, new: str) -> None:
    """Change a text in the files of a pattern, in each of which it must be."""
    paths = sorted(folder.glob(pattern))
    assert paths
    for path in paths:
        text = path.read_text()
        assert old in text, f"{old!r} is not in {path.name}"
        path.write_text(text.replace(old, new))


def rewrite(folder: Path, change: Callable[[dict[str, Any]], None]) -> None:
    path = folder / "submission.json"
    fields = json.loads(path.read_text())
    change(fields)
    path.write_text(json.dumps(fields))


def judge(folder: Path, **options: Any) -> dict[str, Finding]:
    return {finding.rule: finding for finding in validate(read_record(folder), **options)}


def rules(findings: dict[str, Finding], status: Status = Status.FAIL) -> set[str]:
    return {name for name, finding in findings.items() if finding.status is status}


def text_of(finding: Finding) -> str:
    return "\n".join(map(str, finding.evidence))


def claimed(key: str, value: object) -> Callable[[dict[str, Any]], None]:
    return lambda fields: fields.update({key: value})


def seed_claim(seed: str, key: str, value: object) -> Callable[[dict[str, Any]], None]:
    return lambda fields: fields["seed_results"][seed].update({key: value})
