"""What the user asks for: a TOML file becomes a validated, frozen `SweepSpec`.

Relative paths inside `[env]` (values that name a path: `DATA_DIR`, `*_PATH`) are taken from the
directory that the command is started in, since a run works in a directory of its own.
"""

from __future__ import annotations

import difflib
import hashlib
import json
import re
import tomllib
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, Field, ValidationError, model_validator
from pydantic_core import ErrorDetails

from sweeper.errors import SpecError
from sweeper.search import Budget, Pruner, Racing, Rung, Search, check_rungs, default_rungs
from sweeper.settings import PATH_NAME, RESERVED, Env, Seed, Table, env_text
from sweeper.space import Param, check_point

# What a search calls the trials that it has chosen itself.
SEARCHED_NAME = re.compile(r"t\d+(-.*)?")
DIRECTORY_NAME = r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$"


class Workload(Table):
    """What a run executes: a module that keeps the process contract, or any script.

    A script runs from a copy in the run's own directory, with the files of `include` beside it;
    what it knows of the contract is used, the rest is read from its log and its files.
    """

    module: str = Field("model.train", pattern=r"^[A-Za-z_][\w.]*$")
    script: str | None = Field(None, min_length=1)
    include: tuple[str, ...] = Field((), strict=False)
    arguments: tuple[str, ...] = Field((), strict=False)
    launch: Literal["torchrun", "exec"] = "torchrun"

    @model_validator(mode="after")
    def _check(self) -> Workload:
        # Its default is no choice: a spec that was kept says it beside the script.
        if self.script is not None and self.module != Workload.model_fields["module"].default:
            raise ValueError("workload: give either script or module, not both")
        if self.include and self.script is None:
            raise ValueError("workload.include: only for a script; a module brings its package")
        return self


class Resources(Table):
    """What one run holds while it works, over all of its nodes."""

    gpus_per_run: int = Field(8, ge=0)
    cpus_per_run: int = Field(1, ge=1)
    processes_per_run: int | None = Field(None, ge=1)
    nodes_per_run: int = Field(1, ge=1)
    accelerator: str | None = Field(None, min_length=1)  # as Ray names the type: H100, A100
    max_parallel: int | None = Field(None, ge=1)

    @property
    def processes(self) -> int:
        """Ranks of a run: one per GPU unless said otherwise, one per node at least."""
        return self.processes_per_run or max(self.nodes_per_run, self.gpus_per_run)

    @model_validator(mode="after")
    def _check(self) -> Resources:
        nodes = self.nodes_per_run
        for name in ("gpus_per_run", "cpus_per_run", "processes_per_run"):
            amount = getattr(self, name)
            if amount is not None and amount % nodes:
                raise ValueError(
                    f"resources.{name}: {amount} cannot be shared out evenly over nodes_per_run = "
                    f"{nodes}"
                )
        return self


class Limits(Table):
    """How long things may take, in seconds, and how often they are tried.

    `stall_seconds`: without an event and without growth of a log for so long, a run is taken for
    hung; 0 waits for ever; by default it depends on the phase (sweeper/stall.py).
    """

    max_seconds: float | None = Field(None, gt=0)
    stall_seconds: float | None = Field(None, ge=0)
    grace_seconds: float = Field(10.0, ge=0)
    max_attempts: int = Field(2, ge=1)
    backoff_seconds: float = Field(5.0, ge=0)  # before the second attempt; doubled for each further


class Packing(Table):
    """What packs a trained model, out of the GPUs' way; without it a run does all in its slot."""

    cpus: int = Field(2, ge=1)
    nice: int = Field(10, ge=0, le=19)


class ByteBudget(Table):
    """What an artifact may weigh."""

    max_bytes: int = Field(16_000_000, gt=0)


class Disk(Table):
    """What is kept on the sweep's disk, and how much room there has to be on it.

    `remove` are files of a run, by patterns, that go once it has finished; `reserve_bytes` stay
    free beside what a run is expected to write.
    """

    remove: tuple[str, ...] = Field(("checkpoint.pt",), strict=False)
    reserve_bytes: int = Field(256 << 20, ge=0)


class Storage(Table):
    """Where the results go as well, as soon as a run is over: a path or any fsspec URL."""

    url: str = Field(min_length=1)


class Cost(Table):
    """What a GPU costs, so that a sweep can say what it has cost."""

    usd_per_gpu_hour: float = Field(gt=0)


class TrialSpec(Table):
    """One set of hyperparameters."""

    # It stands in tables and on terminals: no line breaks, no control characters.
    name: str = Field(min_length=1, max_length=80, pattern=r"^[^\p{Cc}]*$")
    env: Env = Field({})


class SweepSpec(Table):
    """A whole sweep: every trial is run once per seed.

    With a `search` more trials are chosen while it runs, and those listed are tried first; its
    `rungs` say which of them get which seeds.
    """

    name: str = Field(pattern=DIRECTORY_NAME)
    seeds: tuple[Seed, ...] = Field(min_length=1, strict=False)
    metric: Literal["val_bpb"] = "val_bpb"
    workload: Workload = Workload()
    resources: Resources = Resources()
    limits: Limits = Limits()
    packing: Packing | None = None
    budget: ByteBudget = ByteBudget()
    disk: Disk = Disk()
    storage: Storage | None = None
    cost: Cost | None = None
    env: Env = Field({})
    process_env: Env = Field(
        {}
    )  # for the processes, not settings of the run: NCCL_DEBUG and the like
    search: Search | None = None
    stages: tuple[Rung, ...] = Field((), alias="stage", strict=False)
    trials: tuple[TrialSpec, ...] = Field((), alias="trial", strict=False)

    @model_validator(mode="after")
    def _check(self) -> SweepSpec:
        repeated = [seed for seed, count in Counter(self.seeds).items() if count > 1]
        if repeated:
            raise ValueError(f"seeds: {repeated[0]} stands twice; every seed runs once")
        if self.search is None and not self.trials:
            raise ValueError("trial: at least one table headed [[trial]] is needed")
        names = Counter(trial.name for trial in self.trials)
        for name, count in names.items():
            if count > 1:
                raise ValueError(f"trial: two trials are called {name!r}; name them apart")
        nodes = self.resources.nodes_per_run
        if nodes > 1 and self.workload.launch == "exec":
            raise ValueError(
                "workload.launch: exec starts one process on one node; with "
                f"resources.nodes_per_run = {nodes} it has to be torchrun"
            )
        both = sorted(self.process_env.keys() & self.env.keys())
        if both:
            raise ValueError(f"process_env: {both[0]} stands under [env] as well")
        tables = [("env", self.env), ("process_env", self.process_env)]
        for where, env in [*tables, *((f"trial {t.name!r}", t.env) for t in self.trials)]:
            for name in RESERVED.keys() & env.keys():
                raise ValueError(f"{where}: {name} is set by the sweeper; use {RESERVED[name]}")
        self._check_trials_differ()
        self._check_search()
        return self

    def _check_search(self) -> None:
        if self.search is None:
            if self.stages:
                raise ValueError("stage: stages are of a search; give [search] as well")
            return
        check_rungs(self.rungs, self.seeds, self.search)
        for name in self.search.space.keys() & self.env.keys():
            raise ValueError(f"search.space: {name} stands under [env] as well")
        if self.search.budget.usd is not None and self.cost is None:
            raise ValueError("search.budget.usd: give cost.usd_per_gpu_hour, or it has no meaning")
        timed = self.search.budget.usd is not None or self.search.budget.gpu_hours is not None
        if timed and not self.resources.gpus_per_run:
            raise ValueError("search.budget: without GPUs there is only `runs` to count")
        for trial in self.trials:
            if SEARCHED_NAME.fullmatch(trial.name):
                raise ValueError(f"trial: {trial.name!r} is how a search names its own trials")
            try:
                check_point(self.search.space, trial.env)
            except ValueError as error:
                raise ValueError(f"trial {trial.name!r}: {error}") from None

    @property
    def rungs(self) -> tuple[Rung, ...]:
        """The stages of a search, those that it has when none are given as well."""
        if self.stages or self.search is None:
            return self.stages
        return default_rungs(self.search, self.seeds)

    @property
    def fresh_seeds(self) -> frozenset[int]:
        """The seeds of a search that choose nothing: those that its result is on."""
        rungs = (rung for rung in self.rungs if rung.fresh)
        return frozenset(seed for rung in rungs for seed in rung.seeds_of(self.seeds))

    def _check_trials_differ(self) -> None:
        seen: dict[str, str] = {}
        for trial in self.trials:
            same = seen.setdefault(self.config_hash(trial), trial.name)
            if same != trial.name:
                raise ValueError(f"trial: {same!r} and {trial.name!r} have the same env")

    def setting_names(self) -> list[str]:
        """Every setting that some run is given."""
        tables = [self.env, *(trial.env for trial in self.trials), *(r.env for r in self.stages)]
        searched = () if self.search is None else self.search.space
        return sorted({name for table in [*tables, searched] for name in table})

    def trial_env(self, trial: TrialSpec) -> dict[str, str]:
        """A trial's hyperparameters as environment strings, its own over the common ones."""
        return {name: env_text(value) for name, value in sorted((self.env | trial.env).items())}

    def config_hash(self, trial: TrialSpec) -> str:
        """Identity of a trial: what it executes and with which hyperparameters."""
        # Added later, so left out where they are not used: sweeps made before keep their identity.
        work = self.workload
        workload: dict[str, Any] = {"module": work.module, "launch": work.launch}
        if work.script is not None:
            workload["script"] = [Path(file).name for file in (work.script, *work.include)]
        if work.arguments:
            workload["arguments"] = work.arguments
        facts = {"env": self.trial_env(trial), "workload": workload}
        return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:12]


def load_spec(
    path: Path, base: Path | None = None, env: Mapping[str, str] | None = None
) -> SweepSpec:
    """Read and validate a specification, with more settings for all trials in `env`.

    Relative paths in it are taken from `base` (default: the current directory). Raises SpecError
    naming file, key, what was found and what is allowed.
    """
    try:
        table = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise SpecError(f"{path}: cannot be read: {error.strerror}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise SpecError(f"{path}: not valid TOML: {error}") from error
    if env and isinstance(table.setdefault("env", {}), dict):
        table["env"] |= env
    try:
        spec = SweepSpec.model_validate(table)
    except ValidationError as error:
        lines = [f"{path}: {_explain(detail)}" for detail in error.errors() if not _follows(detail)]
        raise SpecError("\n".join(dict.fromkeys(lines))) from None
    for trial in spec.trials:
        for name in trial.env.keys() & (env or {}).keys():
            raise SpecError(f"--env {name}: trial {trial.name!r} of {path} sets it itself")
    return resolve_paths(spec, base or Path.cwd())


def resolve_paths(spec: SweepSpec, base: Path) -> SweepSpec:
    """The spec with absolute paths in place of relative ones."""

    def absolute(path: str) -> str:
        return str((base / path).absolute())

    def resolve(env: Env) -> Env:
        return {
            name: absolute(value)
            if PATH_NAME.fullmatch(name) and isinstance(value, str) and value not in ("", "none")
            else value
            for name, value in env.items()
        }

    trials = tuple(t.model_copy(update={"env": resolve(t.env)}) for t in spec.trials)
    work = spec.workload
    if work.script is not None:
        files = {"script": absolute(work.script), "include": tuple(map(absolute, work.include))}
        work = work.model_copy(update=files)
    stages = tuple(rung.model_copy(update={"env": resolve(rung.env)}) for rung in spec.stages)
    updated = {"env": resolve(spec.env), "trials": trials, "stages": stages, "workload": work}
    return spec.model_copy(update=updated)


def _explain(detail: ErrorDetails) -> str:
    """One pydantic error as a sentence with key, what was found and what is allowed."""
    where = [part for part in detail["loc"] if part not in ("bool", "int", "float", "str")]
    key = ".".join(str(part) for part in where)
    if detail["type"] == "value_error":
        said = str(detail["ctx"]["error"])
        # A parameter does not know what it is called.
        return f"{key}: {said}" if key.startswith("search.space.") else said
    if detail["type"] == "extra_forbidden":
        return f"{key}: unknown key{_suggest(where)}"
    if detail["type"] == "missing":
        return f"{key}: is missing"
    found = f"found {json.dumps(detail['input'], default=str)}"
    if where[-1] == "[key]" and detail["type"] == "string_pattern_mismatch":
        return f"{key.removesuffix('.[key]')}: environment names are upper case, like WARMDOWN_FRAC"
    if len(where) > 1 and where[-2] == "env":
        return f"{key}: expected text, a finite number or true/false, {found}"
    if key == "name":
        return f"name: it names a directory: letters, digits, '.', '_', '-', at most 64; {found}"
    if key == "seeds" and detail["type"] == "too_short":
        return "seeds: at least one seed is needed, for example [42, 314, 999]"
    if key == "trial" and detail["type"] in ("too_short", "tuple_type"):
        return f"trial: at least one table headed [[trial]] is needed, {found}"
    if detail["type"] == "tuple_type":
        return f"{key}: expected a list, {found}"
    if detail["type"] in ("model_type", "dict_type"):
        return f"{key}: expected a table, {found}"
    if where[0] == "trial" and where[-1] == "name" and detail["type"] == "string_pattern_mismatch":
        return f"{key}: line breaks and control characters are not allowed, {found}"
    return f"{key}: {detail['msg'][0].lower()}{detail['msg'][1:]}, {found}"


def _follows(detail: ErrorDetails) -> bool:
    """Whether an error only follows from others: a list is "too short" once bad items are out."""
    return detail["type"] == "too_short" and bool(detail["input"])


def _suggest(where: list[Any]) -> str:
    """The allowed keys beside an unknown one, the closest first."""
    tables: dict[str, type[BaseModel]] = {
        "workload": Workload,
        "resources": Resources,
        "limits": Limits,
        "packing": Packing,
        "budget": ByteBudget,
        "disk": Disk,
        "storage": Storage,
        "cost": Cost,
        "trial": TrialSpec,
        "stage": Rung,
        "search": Search,
        "search.budget": Budget,
        "search.racing": Racing,
        "search.pruner": Pruner,
        "search.space": Param,
    }
    table: type[BaseModel] = SweepSpec
    if len(where) > 1:
        path = f"{where[0]}.{where[1]}" if len(where) > 2 else str(where[0])
        table = tables.get(path, tables.get(str(where[0]), SweepSpec))
    allowed = [field.alias or name for name, field in table.model_fields.items()]
    close = difflib.get_close_matches(str(where[-1]), allowed, n=1)
    hint = f"; did you mean {close[0]}?" if close else ""
    return f"{hint} (allowed: {', '.join(allowed)})"
