"""The code that a trial really ran, as the train_gpt.py of its record."""

from __future__ import annotations

import ast
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

from sweeper.errors import UserError
from sweeper.evidence.commands import SCRIPT
from sweeper.evidence.publish_runs import FinishedRun, Published
from sweeper.evidence.unpack import unpack
from sweeper.snapshot import IGNORED, hash_files, read_recorded

EXPORT_SECONDS = 300.0
# What a record's folder holds besides code.
TAKEN = {"README.md", "submission.json", SCRIPT}
# Recorded with every sweep, but of the sweeper, not of what it runs.
NOT_OF_A_RUN = {"python", "ray", "optuna"}
REQUIREMENTS = "requirements.txt"


@dataclass(frozen=True, kw_only=True)
class Imports:
    """Top-level modules that are imported, the standard library's left out."""

    needed: frozenset[str] = frozenset()
    optional: frozenset[str] = frozenset()  # only where they are there


@dataclass(frozen=True, kw_only=True)
class Code:
    """What was written of the code: all files by their names, and what they import."""

    sha256: str
    files: tuple[str, ...]
    imports: Imports
    exported: str | None = None  # the module that made one file of a package


def write_code(published: Published, folder: Path) -> Code:
    """Write the code that all runs have executed into a record's folder.

    UserError where the sweep's copy of it is gone or changed, where it cannot be made one file, or
    where that is not what the runs have counted.
    """
    sha256 = published.runs[0].attempt.code
    snapshot, names = _find_snapshot(published, sha256)
    assert sha256 is not None
    work = published.spec.workload
    if work.script is None:
        return _export(published, snapshot, names, sha256, folder)
    main = Path(work.script).name
    for name in names:
        target = SCRIPT if name == main else name
        if name != main and name in TAKEN:
            raise UserError(
                f"workload.include: {name} cannot lie in a record's folder by that name"
            )
        (folder / target).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(snapshot / name, folder / target)
    for run in published.runs:
        _check_copies(run, snapshot, names)
    files = tuple(sorted(SCRIPT if name == main else name for name in names))
    own = {Path(name).parts[0].removesuffix(".py") for name in files}
    python = [folder / name for name in files if name.endswith(".py")]
    return Code(sha256=sha256, files=files, imports=_imports(python, own))


def _find_snapshot(published: Published, sha256: str | None) -> tuple[Path, list[str]]:
    """The sweep's copy of one version of its code, held against the hash that the ledger has."""
    sweep = published.sweep
    if sha256 is None:
        raise UserError(
            f"{sweep.path}: the sweep kept no copy of its code, so what ran cannot be published"
        )
    recorded = read_recorded(sweep)
    if recorded is not None and recorded.sha256 == sha256:
        return recorded.path, list(recorded.files)
    path = sweep.path / "code" / sha256[:12]  # of an earlier version, or one that is not whole
    names = sorted(
        file.relative_to(path).as_posix()
        for file in path.rglob("*")
        if file.is_file() and not IGNORED.intersection(file.relative_to(path).parts)
    )
    found = hash_files({name: path / name for name in names})
    if found != sha256:
        state = f"its hash is {found[:12]} now" if names else "it is gone"
        raise UserError(
            f"{path}: not the code that ran any more: {state}, the ledger has {sha256[:12]}; "
            "bring the sweep's own copy back"
        )
    return path, names


def _check_copies(run: FinishedRun, snapshot: Path, names: Iterable[str]) -> None:
    """UserError where the copy that a run executed is not the sweep's."""
    for name in names:
        copy = run.directory.path / name
        if copy.is_file() and copy.read_bytes() != (snapshot / name).read_bytes():
            raise UserError(
                f"seed {run.seed}: {copy} differs from the sweep's copy {snapshot / name}; what "
                "ran is not known"
            )


def _export(
    published: Published, snapshot: Path, names: Sequence[str], sha256: str, folder: Path
) -> Code:
    """Let the package that ran make one file of itself."""
    package = published.spec.workload.module.partition(".")[0]
    module = f"{package}.export"
    if f"{package}/export.py" not in names:
        raise UserError(
            f"workload {published.spec.workload.module}: it cannot be published as one "
            f"{SCRIPT}, because it has no {package}/export.py that makes it"
        )
    with tempfile.TemporaryDirectory(prefix="sweeper-export-") as scratch:
        out = Path(scratch) / SCRIPT
        _run_export(module, snapshot, out)
        script = out.read_bytes()
        _check_size(published.runs, module, len(script))
        imports = _imports([out], {package})
    (folder / SCRIPT).write_bytes(script)
    return Code(sha256=sha256, files=(SCRIPT,), imports=imports, exported=module)


def _run_export(module: str, snapshot: Path, out: Path) -> None:
    # First on the path, as it was for the runs: today's package would be another one.
    first = {"PYTHONPATH": str(snapshot), "PYTHONDONTWRITEBYTECODE": "1"}
    try:
        done = subprocess.run(
            [sys.executable, "-m", module, "--out", str(out)],
            cwd=snapshot,
            env=os.environ | first,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=EXPORT_SECONDS,
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise UserError(f"{module}: not done after {EXPORT_SECONDS:.0f} s") from None
    if done.returncode != 0 or not out.is_file():
        said = done.stderr.strip().splitlines()
        raise UserError(f"{module} of {snapshot} failed: {said[-1] if said else done.returncode}")


def _check_size(runs: Iterable[FinishedRun], module: str, size: int) -> None:
    for run in runs:
        counted = run.result.get("bytes_code")
        if counted != size:
            raise UserError(
                f"{module} makes {size} bytes of the code that ran, but seed {run.seed} counted "
                f"{counted}: another python-minifier or Python is installed here than there; "
                "publish where the sweep ran"
            )


# ---- what it needs


def _imports(paths: Iterable[Path], own: Iterable[str]) -> Imports:
    """What sources import, packed ones as well; their own modules are left out."""
    needed: set[str] = set()
    every: set[str] = set()
    for path in paths:
        for layer in unpack(path.read_bytes()).layers:
            if layer.tree is not None:
                every |= set(_names(layer.tree, guarded=True))
                needed |= set(_names(layer.tree, guarded=False))
    outside = {*own, *sys.stdlib_module_names}
    return Imports(needed=frozenset(needed - outside), optional=frozenset(every - needed - outside))


def _names(node: ast.AST, *, guarded: bool) -> Iterator[str]:
    """The top-level names of the imports below a node; those that may fail only if `guarded`."""
    if isinstance(node, ast.Import):
        yield from (alias.name.partition(".")[0] for alias in node.names)
    elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
        yield node.module.partition(".")[0]
    for field, value in ast.iter_fields(node):
        # What a `try` begins with may fail; what follows it is there for that.
        if isinstance(node, ast.Try) and field != "finalbody" and node.handlers and not guarded:
            continue
        for child in value if isinstance(value, list) else [value]:
            if isinstance(child, ast.AST):
                yield from _names(child, guarded=guarded)


def requirements(published: Published, code: Code) -> str:
    """What the code needs, with the versions that ran, in the form of requirements.txt.

    Of a script that cannot be looked into, what the sweep has recorded.
    """
    distributions = metadata.packages_distributions()
    recorded = {**published.versions, **_versions_of_runs(published)}

    def named(modules: Iterable[str]) -> set[str]:
        return {distributions.get(name, [name])[0] for name in modules}

    needed, optional = named(code.imports.needed), named(code.imports.optional)
    if "torch" not in needed:
        needed |= recorded.keys() - NOT_OF_A_RUN
    lines = [f"# Python {recorded['python']}"] if "python" in recorded else []
    lines += [_requirement(name, recorded) for name in sorted(needed)]
    lines += [_requirement(name, recorded, needed=False) for name in sorted(optional - needed)]
    return "\n".join([*lines, ""])


def _versions_of_runs(published: Published) -> dict[str, str]:
    versions = published.shared("versions")
    if not isinstance(versions, dict):
        return {}
    return {str(name): str(version) for name, version in versions.items()}


def _requirement(name: str, recorded: Mapping[str, str], *, needed: bool = True) -> str:
    version, note = recorded.get(name), ""
    if version is None:
        try:
            version, note = metadata.version(name), "as it is installed where this was written"
        except metadata.PackageNotFoundError:
            if needed:
                return f"# FILL IN: {name} is imported; its version is not known here"
            return f"# {name} is used where it is installed; here it is not"
    public, _, local = version.partition("+")
    # Builds for one machine are not on the index by their whole name.
    note = f"{version} ran" if local else note
    return f"{name}=={public}" + (f"  # {note}" if note else "")
