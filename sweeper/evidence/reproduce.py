"""A published record to be run again: its folder becomes a sweep of its script over its seeds.

The settings are those of the command in its README, so far as the script knows them. The sweep is
one like any other: it is in the ledger, and a second call goes on with it.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from sweeper.errors import UserError
from sweeper.evidence.commands import (
    RunCommand,
    listed_settings,
    not_understood,
    read_commands,
)
from sweeper.evidence.read import is_log
from sweeper.evidence.record import LoggedRun, Record
from sweeper.evidence.unpack import unpack
from sweeper.layout import SweepDir
from sweeper.ledger import Ledger
from sweeper.scripts import agrees
from sweeper.settings import PATH_NAME, RESERVED, env_text
from sweeper.snapshot import READS_BY_FIELD, READS_ENVIRONMENT, TAKEN, read_recorded
from sweeper.spec import SweepSpec, resolve_paths

TRIAL = "as published"
PREFIX = "reproduce-"
MOST_NAME = 64  # characters of a sweep's name
USUAL_RANKS = 8
# Of a record's folder, what its script does not need.
NO_CODE = re.compile(r"readme.*|submission\.json|license.*|requirements.*|\..*", re.IGNORECASE)
# Set for the processes, and read by libraries: no settings of a script.
OF_PROCESSES = re.compile(
    r"(?:OMP|MKL|OPENBLAS|NCCL|TORCH|PYTORCH|TORCHINDUCTOR|TRITON|PYTHON|HF|TOKENIZERS|GLOO|WANDB)"
    r"_\w+|PYTHON\w+"
)
# The sweep decides these: GPUs and places are those of its slots.
OF_THE_SWEEP = {*RESERVED, "CUDA_VISIBLE_DEVICES", "PATH", "HOME", "PYTHONPATH", "PWD"}
SETTING = re.compile(r"[A-Z][A-Z0-9_]*")
THREADS = "OMP_NUM_THREADS"


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What is to be run, and where; `notes` are what to tell before it is.

    For `run_sweep` with `extend`: seeds may have come to a sweep that is there already.
    """

    spec: SweepSpec
    sweep: SweepDir
    text: str  # the spec as TOML
    notes: tuple[str, ...]


def plan(
    record: Record,
    root: Path,
    *,
    seeds: Sequence[int] | None = None,
    env: Mapping[str, str] | None = None,
    gpus_per_run: int | None = None,
    cpus_per_run: int | None = None,
    processes_per_run: int | None = None,
    max_parallel: int | None = None,
    accelerator: str | None = None,
    max_seconds: float | None = None,
) -> Plan:
    """The sweep that runs a record's seeds again, below a root of sweeps.

    Seeds are those that the record counts; `env` goes over its README's settings. GPUs are as many
    as in its command, or its logs; 0 runs as many processes on CPUs. What was begun keeps what it
    was given. UserError without a script or seeds, or where the sweep is of another script.
    """
    chosen = _chosen(record, seeds)
    sweep = SweepDir(root / sweep_name(record))
    earlier, env = _earlier(record, sweep), env or {}
    if earlier is None:
        table, notes = _first(record, gpus_per_run, processes_per_run)
    else:
        table, notes = _again(earlier, sweep, env)
    table |= {"name": sweep.name, "seeds": list(dict.fromkeys([*table["seeds"], *chosen]))}
    _add(
        table,
        "resources",
        gpus_per_run=gpus_per_run,
        cpus_per_run=cpus_per_run,
        processes_per_run=processes_per_run,
        max_parallel=max_parallel,
        accelerator=accelerator,
    )
    _add(table, "env", **env)
    _add(table, "limits", max_seconds=max_seconds)
    spec = _validated(table)
    return Plan(spec=spec, sweep=sweep, text=_as_toml(spec), notes=(*notes, *_missing_paths(spec)))


def _chosen(record: Record, seeds: Sequence[int] | None) -> Sequence[int]:
    """The seeds to run; UserError where there are none, or nothing to run them with."""
    if record.script is None:
        raise UserError(f"{record.path}: no train_gpt.py in it, so there is nothing to run")
    chosen = seeds or [run.seed for run in record.counted if run.seed is not None]
    if not chosen:
        raise UserError(f"{record.path}: no log of it tells its seed; name them with --seeds")
    return chosen


def _first(
    record: Record, gpus: int | None, processes: int | None
) -> tuple[dict[str, Any], list[str]]:
    """The spec of a first call but for its seeds, and what to tell of it."""
    command, said = choose_command(record)
    table, notes = _table(record, command)
    table |= {"seeds": [], "resources": _resources(record, command, gpus, processes)}
    return table, [said, *notes]


def _again(
    earlier: SweepSpec, sweep: SweepDir, env: Mapping[str, str]
) -> tuple[dict[str, Any], list[str]]:
    """The spec of an earlier call; UserError for a setting that it would have to change."""
    kept = {name: env_text(value) for name, value in earlier.env.items()}
    changed = {n: text for n, text in env.items() if n in kept and not agrees(text, kept[n])}
    new = sorted(env.keys() - kept.keys())
    if changed or new:
        told = [f"{n}={kept[n]}" for n in changed] + [f"without {n}" for n in new]
        raise UserError(
            f"{sweep.path}: was begun with {', '.join(told)}, and all its seeds are to have the "
            "same settings; give another --root, or move that folder away"
        )
    settings = ", ".join(f"{name}={text}" for name, text in sorted(kept.items())) or "none"
    note = f"goes on with {sweep.path}, and with the settings of its beginning: {settings}"
    return earlier.model_dump(mode="json", by_alias=True, exclude_unset=True), [note]


def _add(table: dict[str, Any], key: str, /, **values: Any) -> None:
    """Put values over those of a table in a table; what is None is left as it was."""
    given = {name: value for name, value in values.items() if value is not None}
    table[key] = {**(table.get(key) or {}), **given}


def sweep_name(record: Record) -> str:
    """The name of the sweep that runs a record again: of its folder's."""
    slug = re.sub(r"[^A-Za-z0-9._-]+", "-", record.path.resolve().name).strip("-.")
    return f"{PREFIX}{slug or 'record'}"[:MOST_NAME].rstrip("-.")


def _validated(table: Mapping[str, Any]) -> SweepSpec:
    try:
        return resolve_paths(SweepSpec.model_validate(table), Path.cwd())
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        raise UserError(f"{where}: {first['msg']}, found {first['input']!r}") from None


def _earlier(record: Record, sweep: SweepDir) -> SweepSpec | None:
    """The spec of what an earlier call has begun; UserError where that was of another script."""
    if not sweep.ledger.is_file():
        return None
    code = read_recorded(sweep)
    assert record.script is not None
    if code is not None:
        kept = code.path / record.script.name
        if not kept.is_file() or kept.read_bytes() != record.script.read_bytes():
            raise UserError(
                f"{sweep.path}: runs another train_gpt.py than {record.script}; move that sweep "
                "away, or give another --root"
            )
    with closing(Ledger.open_for_reading(sweep.ledger)) as ledger:
        return ledger.spec


# ---- what the README says


def choose_command(record: Record) -> tuple[RunCommand | None, str]:
    """The command of the README that the record's logs confirm most, and what to tell of it.

    A README may have others beside it: of a baseline, of ablations.
    """
    if record.readme is None:
        return None, "no README.md: the script's own defaults, and what --env sets"
    text = record.readme.read_text(encoding="utf-8", errors="replace")
    commands = read_commands(text)
    if not commands:
        lines = not_understood(text)
        said = (
            f"README.md:{', '.join(map(str, lines))} may run train_gpt.py and is not understood"
            if lines
            else "README.md has no command that runs train_gpt.py"
        )
        return None, f"{said}: the script's own defaults, and what --env sets"
    listed = listed_settings(text)
    # Some list their settings in a block of its own, beside a command without any.
    whole = [replace(command, env={**listed, **command.env}) for command in commands]
    best = min([*commands, *whole], key=lambda command: _doubts(command, record.counted))
    return best, "; ".join(_about(best, commands, listed, record))


def _about(
    best: RunCommand, commands: Sequence[RunCommand], listed: Mapping[str, str], record: Record
) -> Iterator[str]:
    """What to tell of the command that is taken."""
    count = len({(*sorted(_settings(c).items()), c.processes) for c in commands})
    others = f", one of {count} with different settings" if count > 1 else ""
    beside = listed.keys() - OF_THE_SWEEP
    with_them = beside and beside <= best.env.keys()
    yield f"the command in README.md:{best.line}{others}" + (
        ", with the settings that are listed beside it" if with_them else ""
    )
    wrong = _doubts(best, record.counted)[0]
    if wrong:
        yield f"its logs contradict {wrong} of its settings"
    if not with_them and (more := sorted(beside - best.env.keys())):
        yield f"README.md lists settings that the command does not set: {', '.join(more)}"


def _settings(command: RunCommand) -> dict[str, str]:
    return {n: text for n, text in command.env.items() if n not in OF_THE_SWEEP}


def _doubts(command: RunCommand, runs: Iterable[LoggedRun]) -> tuple[int, int]:
    """In how many settings the logs contradict a command, and less how many they confirm."""
    wrong: set[str] = set()
    right: set[str] = set()
    for run in runs:
        ranks, asked_ranks = run.facts.world_size, command.processes
        if ranks is not None and asked_ranks is not None:
            (right if ranks == asked_ranks else wrong).add("--nproc_per_node")
        for name, asked in _settings(command).items():
            found = run.facts.hyperparameters.get(name.lower())
            if found is not None and not PATH_NAME.fullmatch(name):
                (right if agrees(asked, found) else wrong).add(name)
    return len(wrong), -len(right)


def _table(record: Record, command: RunCommand | None) -> tuple[dict[str, Any], list[str]]:
    """The spec of a first call but for its seeds and resources, and what to tell of it."""
    assert record.script is not None
    include = list(beside(record))
    below = [file for path in include for file in (path.rglob("*.py") if path.is_dir() else [path])]
    texts = [record.script, *(path for path in below if path.suffix == ".py")]
    known = _known_names(texts)
    notes = []
    if known is None:
        notes.append(f"{record.script.name} is packed: whether it knows the settings is not seen")
    env, process_env = {}, {}
    left_out = []
    for name, value in ({} if command is None else command.env).items():
        if name in OF_THE_SWEEP:
            continue
        if OF_PROCESSES.fullmatch(name):
            process_env[name] = value
        elif SETTING.fullmatch(name) and (known is None or name in known):
            env[name] = value
        else:
            left_out.append(name)
    if left_out:
        notes.append(f"left out, since the script does not know them: {', '.join(left_out)}")
    table = {
        "workload": {
            "script": str(record.script.absolute()),
            "include": [str(path.absolute()) for path in include],
            "arguments": [] if command is None else list(command.arguments),
            "launch": "torchrun" if command is None else command.launch,
        },
        "disk": {"remove": ["final_model.pt", "checkpoint.pt"]},
        "env": env,
        "process_env": process_env,
        "trial": [{"name": TRIAL, "env": {}}],
    }
    return table, notes


def beside(record: Record) -> Iterator[Path]:
    """What lies beside the script and is named in it; all code where it cannot be looked into."""
    assert record.script is not None
    text = _source(record.script)
    packed = not READS_ENVIRONMENT.search(text)
    for path in sorted(record.script.parent.iterdir()):
        if path == record.script or path.name in TAKEN or NO_CODE.fullmatch(path.name):
            continue
        if path.is_file() and is_log(path):
            continue
        word = path.stem if path.suffix == ".py" or path.is_dir() else path.name
        named = re.search(rf"(?<!\w){re.escape(word)}(?!\w)", text) is not None
        if named or (packed and path in record.code):
            yield path


def _known_names(files: Iterable[Path]) -> set[str] | None:
    """The settings that the sources may read; None where they cannot be looked into."""
    text = "\n".join(path.read_text(encoding="utf-8", errors="replace") for path in files)
    packed = not READS_ENVIRONMENT.search(text)
    if packed:
        text = "\n".join(map(_source, files))
        if not READS_ENVIRONMENT.search(text):
            return None
    known = set(re.findall(r"\b[A-Z][A-Z0-9_]*\b", text))
    # A minified source has names of its own for the environment.
    if packed or READS_BY_FIELD.search(text):
        known |= {name.upper() for name in re.findall(r"\b[a-z][a-z0-9_]*\b", text)}
    return known


def _source(path: Path) -> str:
    """All that a file executes, behind whatever it is wrapped in."""
    return "\n".join(layer.source for layer in unpack(path.read_bytes()).layers)


def _resources(
    record: Record, command: RunCommand | None, gpus: int | None, processes: int | None
) -> dict[str, Any]:
    """GPUs and processes of a run: as asked, else as in the command, else as in the logs."""
    worlds = [run.facts.world_size for run in record.counted if run.facts.world_size]
    said = None if command is None else command.processes
    ranks = processes or gpus or said or (worlds[0] if worlds else USUAL_RANKS)
    env = {} if command is None else command.env
    on_cpus = env.get("CUDA_VISIBLE_DEVICES") == "" or env.get("DEVICE") == "cpu"
    if gpus is None:
        gpus = 0 if on_cpus else ranks
    threads = env.get(THREADS, "")
    cpus = int(threads) * ranks if threads.isdecimal() and int(threads) else ranks
    resources: dict[str, Any] = {"gpus_per_run": gpus, "cpus_per_run": cpus}
    return resources if ranks == max(1, gpus) else resources | {"processes_per_run": ranks}


def _missing_paths(spec: SweepSpec) -> Iterator[str]:
    """Places that are not there: on a cluster they may be on its nodes."""
    for name, value in sorted(spec.env.items()):
        if PATH_NAME.fullmatch(name) and isinstance(value, str) and value.startswith("/"):
            pattern = Path(value)
            there = pattern.exists() or any(pattern.parent.glob(pattern.name))
            if not there:
                yield f"{name}: {value} is not here; --env {name}=… says where it is"


# ---- the spec as text


def _as_toml(spec: SweepSpec) -> str:
    """A spec as TOML, so far as it says something."""
    said = spec.model_dump(mode="json", by_alias=True, exclude_unset=True, exclude_none=True)
    table = {key: value for key, value in said.items() if value not in ([], {})}
    trials = table.pop("trial")
    tables = {key: value for key, value in table.items() if isinstance(value, dict)}
    lines = [_assign(key, value) for key, value in table.items() if key not in tables]
    for key, values in tables.items():
        lines += ["", f"[{key}]", *(_assign(name, value) for name, value in values.items())]
    for trial in trials:
        lines += ["", "[[trial]]", _assign("name", trial["name"])]
    return "\n".join([*lines, ""])


def _assign(key: str, value: object) -> str:
    # A JSON text, number, boolean or list is TOML as well.
    return f"{key} = {json.dumps(value)}"
