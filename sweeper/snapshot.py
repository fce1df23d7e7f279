"""The code of a sweep, copied once: editing a file while the sweep runs changes nothing of it.

<sweep>/code/<hash>/…   one version of the code, as a run sees it
             code.json  which of them the sweep uses
A module's snapshot holds its whole top-level package and goes first on PYTHONPATH; a script's holds
the script and what is to lie beside it, and is copied into the directory of every attempt.
"""

from __future__ import annotations

import difflib
import hashlib
import importlib.util
import json
import os
import re
import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from sweeper.errors import SpecError, UserError
from sweeper.layout import SweepDir
from sweeper.settings import env_text
from sweeper.spec import SweepSpec, Workload

# More than this beside a package's code is data that it should be told the place of.
MOST_DATA_BYTES = 32 << 20
IGNORED = {"__pycache__", ".git", ".mypy_cache", ".ruff_cache", ".pytest_cache"}
# Names in an attempt's directory that a script's files may not have.
TAKEN = {"logs", "events.jsonl", "result.json", "exit.json", "request.json"}
READS_ENVIRONMENT = re.compile(r"\benviron\b|\bgetenv\b")
# By a name that is made elsewhere: perhaps from that of a field.
READS_BY_FIELD = re.compile(r"(?:environ\.get\(|environ\[|getenv\(|\bin os\.environ)\s*[^\"'\s]")
UPPER_NAME = re.compile(r"""["']([A-Z][A-Z0-9_]+)["']""")


@dataclass(frozen=True, kw_only=True)
class Snapshot:
    """One version of a sweep's code; `path` holds `files`, by their names in it."""

    path: Path
    sha256: str
    files: tuple[str, ...]

    @property
    def short(self) -> str:
        return self.sha256[:12]


def sources(workload: Workload) -> dict[str, Path]:
    """The files that a workload is made of, by their names in a snapshot.

    Empty where a module cannot be found from here; SpecError where a script or a file beside it is
    missing, or cannot lie where it would have to.
    """
    if workload.script is None:
        return package_files(workload.module.split(".", maxsplit=1)[0])
    found: dict[str, Path] = {}
    for key, text in [("script", workload.script), *(("include", t) for t in workload.include)]:
        path = Path(text)
        files = _below(path) if path.is_dir() and key == "include" else {path.name: path}
        for name, file in files.items():
            if not file.is_file():
                raise SpecError(f"workload.{key}: there is no file {file}")
            if name in found or name.split("/", maxsplit=1)[0] in TAKEN:
                raise SpecError(f"workload.{key}: {file} cannot lie in a run's directory as {name}")
            found[name] = file
    return found


def package_files(name: str) -> dict[str, Path]:
    """The files of a top-level package or module, by their names on a path for imports."""
    try:
        found = importlib.util.find_spec(name)  # looks, imports nothing
    except (ImportError, ValueError):
        return {}
    if found is None:
        return {}
    if found.submodule_search_locations is None:
        path = Path(found.origin or "")
        return {path.name: path} if path.suffix == ".py" else {}
    files: dict[str, Path] = {}
    for package in map(Path, found.submodule_search_locations):
        files |= {name: path for name, path in _below(package).items() if name not in files}
    return files


def _below(directory: Path) -> dict[str, Path]:
    """The files below a directory, by their names beside it."""
    files = {
        path.relative_to(directory.parent).as_posix(): path
        for path in sorted(directory.rglob("*"))
        if path.is_file() and not IGNORED.intersection(path.relative_to(directory).parts)
    }
    data = sum(path.stat().st_size for path in files.values() if path.suffix != ".py")
    if data <= MOST_DATA_BYTES:
        return files
    return {name: path for name, path in files.items() if path.suffix == ".py"}


def hash_files(files: Mapping[str, Path]) -> str:
    """One hash over names and contents."""
    digest = hashlib.sha256()
    for name, path in sorted(files.items()):
        digest.update(name.encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()


def take(workload: Workload, sweep: SweepDir) -> Snapshot | None:
    """Copy today's code into the sweep, where this version is not there yet.

    None where there is nothing to copy: the workload is only on the nodes. It is made under
    another name and renamed, and the hash is of what was copied, not of what may change meanwhile.
    """
    files = sources(workload)
    if not files:
        return None
    root = sweep.path / "code"
    root.mkdir(parents=True, exist_ok=True)
    partial = Path(tempfile.mkdtemp(prefix=".taking-", dir=root))
    try:
        for name, source in files.items():
            (partial / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(source, partial / name)
        sha256 = hash_files({name: partial / name for name in files})
        snapshot = Snapshot(path=root / sha256[:12], sha256=sha256, files=tuple(sorted(files)))
        if not snapshot.path.exists():
            os.chmod(partial, 0o755)
            partial.replace(snapshot.path)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return snapshot


def choose(
    recorded: Snapshot | None, today: Snapshot | None, *, finished: bool, update: bool
) -> tuple[Snapshot | None, str | None]:
    """The code that a sweep goes on with, and what to tell about it.

    It keeps what it has begun with as long as runs have finished with that, unless it is told to
    take today's for what is left.
    """
    if recorded is None or today is None:
        return today or recorded, None
    if recorded.sha256 == today.sha256:
        return recorded, None
    if not finished:
        return today, None
    if update:
        return today, f"what is left runs today's code ({today.short}), not {recorded.short}"
    return recorded, (
        f"the code has changed since; the sweep keeps what it began with ({recorded.short}); "
        f"`--update-code` takes today's ({today.short}) for what is left"
    )


def check(spec: SweepSpec, sweep: SweepDir) -> str | None:
    """SpecError where the code of a sweep is nowhere, or does not know a setting it is to take.

    To be asked before anything of the sweep is written down. Returns what to tell, if anything.
    """
    try:
        files = sources(spec.workload)
    except SpecError:
        recorded = read_recorded(sweep)
        if recorded is None:
            raise
        files = {name: recorded.path / name for name in recorded.files}
    return check_overrides(spec, files)


def prepare(
    workload: Workload, sweep: SweepDir, *, finished: bool, update: bool = False
) -> tuple[Snapshot | None, str | None]:
    """The code that a sweep is to run now, kept in the sweep, and what to tell about it.

    Raises SpecError where the code is nowhere, UserError where it cannot be kept.
    """
    recorded = read_recorded(sweep)
    try:
        today = take(workload, sweep)
    except SpecError:
        if recorded is None or update or not finished:
            raise
        today = None  # the script is gone, the copy is not
    except OSError as error:
        raise UserError(f"{sweep.path}: the code cannot be kept there: {error}") from error
    chosen, note = choose(recorded, today, finished=finished, update=update)
    if chosen is not None and chosen != recorded:
        _record(sweep, chosen)
    return chosen, note


def read_recorded(sweep: SweepDir) -> Snapshot | None:
    """The code that the sweep has used so far, where it is still whole."""
    try:
        facts = json.loads((sweep.path / "code" / "code.json").read_bytes())
        files = tuple(map(str, facts["files"]))
        path = sweep.path / "code" / str(facts["sha256"])[:12]
        whole = hash_files({name: path / name for name in files}) == facts["sha256"]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return Snapshot(path=path, sha256=str(facts["sha256"]), files=files) if whole else None


def _record(sweep: SweepDir, snapshot: Snapshot) -> None:
    facts = asdict(snapshot)
    del facts["path"]  # a sweep may be moved
    partial = sweep.path / "code" / "code.json.partial"
    partial.write_text(json.dumps(facts, indent=1))
    partial.replace(partial.with_suffix(""))


def launch_facts(spec: SweepSpec, snapshot: Snapshot | None) -> dict[str, Any]:
    """What a launch is to be told of the workload: fields of a LaunchRequest."""
    work = spec.workload
    return {
        "script": None if work.script is None else Path(work.script).name,
        "arguments": work.arguments,
        "code": None if snapshot is None else str(snapshot.path),
        "files": () if snapshot is None else snapshot.files,
        "process_env": {name: env_text(value) for name, value in spec.process_env.items()},
    }


def check_overrides(spec: SweepSpec, files: Mapping[str, Path]) -> str | None:
    """SpecError where a script's sources nowhere have the name of a setting that it is to take.

    A script does not echo all its settings, so a misspelt one could go unseen. Returns what to
    tell where that cannot be checked: the sources read no environment, as packed ones do not.
    """
    if spec.workload.script is None:
        return None
    name = Path(spec.workload.script).name
    read = [path for file, path in files.items() if file == name or path.suffix == ".py"]
    text = "\n".join(path.read_text("utf-8", errors="replace") for path in read)
    if not READS_ENVIRONMENT.search(text):
        return f"{name} reads no environment that can be seen, so no setting is checked"
    known = set(re.findall(r"\b[A-Z][A-Z0-9_]*\b", text))
    likely = set(UPPER_NAME.findall(text))
    if READS_BY_FIELD.search(text):
        known |= {name.upper() for name in re.findall(r"\b[a-z][a-z0-9_]*\b", text)}
        likely = known
    for setting in ["SEED", *spec.setting_names()]:
        if setting not in known:
            close = difflib.get_close_matches(setting, sorted(likely), n=1)
            hint = f"; did you mean {close[0]}?" if close else ""
            raise SpecError(f"{setting}: {name} does not know this setting{hint}")
    return None
