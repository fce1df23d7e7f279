"""What a sweep was made of, kept beside its results so that it can be repeated."""

from __future__ import annotations

import importlib.metadata
import json
import platform
import subprocess
from pathlib import Path
from typing import Any

from sweeper.layout import SweepDir
from sweeper.snapshot import Snapshot
from sweeper.spec import SweepSpec, Workload

PACKAGES = ("torch", "ray", "numpy", "brotli", "sentencepiece", "optuna")
PROJECT = Path(__file__).resolve().parent.parent


def record_spec(
    sweep: SweepDir,
    spec: SweepSpec,
    spec_text: str,
    snapshot: Snapshot | None = None,
    *,
    again: bool = False,
) -> None:
    """Write the spec as given and as understood, with code and versions; once, or `again`."""
    if sweep.resolved_spec.exists() and not again:
        return
    sweep.spec.write_text(spec_text)
    facts = {
        "spec": spec.model_dump(mode="json", by_alias=True),
        "code": describe_code(spec.workload, snapshot),
        "versions": describe_versions(),
    }
    partial = sweep.resolved_spec.with_suffix(".partial")
    partial.write_text(json.dumps(facts, indent=1))
    partial.replace(sweep.resolved_spec)


def describe_code(workload: Workload, snapshot: Snapshot | None) -> dict[str, Any]:
    """What a sweep executes, the hash over its files, and the state of git, if any.

    The hash is None where the workload cannot be found from here.
    """
    commit = _git("rev-parse", "HEAD")
    changed = _git("status", "--porcelain")
    return {
        "workload": workload.script or workload.module,
        "sha256": None if snapshot is None else snapshot.sha256,
        "files": [] if snapshot is None else list(snapshot.files),
        "git_commit": commit or None,
        "git_dirty": bool(changed) if commit else None,
    }


def describe_versions() -> dict[str, str]:
    """Python's version and those of the packages that results may depend on."""
    versions = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return versions


def _git(*arguments: str) -> str | None:
    """Output of a git command on the project; None where there is no git or no repository."""
    try:
        done = subprocess.run(
            ["git", "-C", str(PROJECT), *arguments],
            capture_output=True,
            text=True,
            check=True,
            timeout=20,
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()
