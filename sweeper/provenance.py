"""What a sweep was made of, kept beside its results so that it can be repeated."""

from __future__ import annotations

import hashlib
import importlib.metadata
import importlib.util
import json
import platform
import subprocess
from pathlib import Path
from typing import Any

from sweeper.layout import SweepDir
from sweeper.spec import SweepSpec

PACKAGES = ("torch", "ray", "numpy", "brotli", "sentencepiece", "optuna")
PROJECT = Path(__file__).resolve().parent.parent


def record_spec(sweep: SweepDir, spec: SweepSpec, spec_text: str) -> None:
    """Write the spec as given and as understood, with code and versions, once per sweep."""
    if sweep.resolved_spec.exists():
        return
    sweep.spec.write_text(spec_text)
    facts = {
        "spec": spec.model_dump(mode="json", by_alias=True),
        "code": describe_code(spec.workload.module),
        "versions": describe_versions(),
    }
    partial = sweep.resolved_spec.with_suffix(".partial")
    partial.write_text(json.dumps(facts, indent=1))
    partial.replace(sweep.resolved_spec)


def describe_code(module: str) -> dict[str, Any]:
    """Hash over the sources of the workload's package, and the state of git, if any.

    The hash is None where the workload cannot be found from here.
    """
    sources = _sources(module.split(".", maxsplit=1)[0])
    digest = hashlib.sha256()
    for name, path in sorted(sources.items()):
        digest.update(name.encode() + b"\0" + path.read_bytes())
    commit = _git("rev-parse", "HEAD")
    changed = _git("status", "--porcelain")
    return {
        "workload": module,
        "sha256": digest.hexdigest() if sources else None,
        "git_commit": commit or None,
        "git_dirty": bool(changed) if commit else None,
    }


def _sources(name: str) -> dict[str, Path]:
    """The source files of a top-level package or module, by their names in it."""
    found = importlib.util.find_spec(name)  # looks, imports nothing
    if found is None:
        return {}
    if found.submodule_search_locations is None:
        path = Path(found.origin or "")
        return {path.name: path} if path.suffix == ".py" else {}
    return {
        path.relative_to(package).as_posix(): path
        for package in map(Path, found.submodule_search_locations)
        for path in package.glob("**/*.py")
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
