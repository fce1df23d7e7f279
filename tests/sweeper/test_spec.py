"""The specification: what is accepted, and what a person is told about everything else."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from sweeper.errors import SpecError, UserError
from sweeper.settings import MAX_SEED, EnvValue, env_text
from sweeper.spec import Packing, SweepSpec, load_spec
from tests.sweeper.conftest import ROOT, make_spec

HEAD = 'name = "small"\nseeds = [42, 314]\n'
TRIAL = '[[trial]]\nname = "low"\n[trial.env]\nLR = 0.1\n'
OTHER = '[[trial]]\nname = "high"\n[trial.env]\nLR = 0.2\n'


def load(directory: Path, text: str | bytes) -> SweepSpec:
    path = directory / "spec.toml"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return load_spec(path, base=directory)


def complaint(directory: Path, text: str | bytes) -> list[str]:
    """What is said about a bad spec, line by line, less the file's name that each begins with."""
    with pytest.raises(SpecError) as caught:
        load(directory, text)
    lines = str(caught.value).splitlines()
    start = f"{directory / 'spec.toml'}: "
    assert all(line.startswith(start) for line in lines)
    return [line.removeprefix(start) for line in lines]


# ---- what is accepted


@pytest.mark.parametrize("path", sorted((ROOT / "jobs" / "specs").glob("*.toml")), ids=str)
def test_the_specs_that_come_with_the_project_load(path: Path) -> None:
    spec = load_spec(path)
    assert spec.name == path.stem
    assert spec.seeds == (42, 314, 999)
    assert Path(str(spec.env["DATA_DIR"])).is_absolute()


def test_there_are_specs_that_come_with_the_project() -> None:
    names = {path.name for path in (ROOT / "jobs" / "specs").glob("*.toml")}
    assert {"demo.toml", "record_3seed.toml"} <= names


def test_the_least_spec_has_the_records_defaults(tmp_path: Path) -> None:
    spec = load(tmp_path, HEAD + TRIAL)
    assert spec.workload.module == "model.train"
    assert spec.workload.launch == "torchrun"
    assert (spec.resources.gpus_per_run, spec.resources.processes) == (8, 8)
    assert spec.budget.max_bytes == 16_000_000
    assert spec.limits.max_seconds is None
    assert spec.packing is None


def test_an_empty_table_packs_out_of_the_way_by_the_defaults(tmp_path: Path) -> None:
    packing = load(tmp_path, HEAD + "[packing]\n" + TRIAL).packing
    assert packing is not None
    assert (packing.cpus, packing.nice) == (2, 10)


def test_every_key_can_be_set(tmp_path: Path) -> None:
    spec = load(
        tmp_path,
        HEAD
        + '[workload]\nmodule = "train_gpt"\nlaunch = "exec"\n'
        + "[resources]\ngpus_per_run = 2\ncpus_per_run = 3\nprocesses_per_run = 4\n"
        + "max_parallel = 5\n"
        + "[limits]\nmax_seconds = 60\ngrace_seconds = 0\nmax_attempts = 1\n"
        + "[packing]\ncpus = 3\nnice = 19\n"
        + "[budget]\nmax_bytes = 1000\n[env]\nITERATIONS = 6\n"
        + TRIAL
        + OTHER,
    )
    assert (spec.workload.module, spec.workload.launch) == ("train_gpt", "exec")
    assert (spec.resources.processes, spec.resources.max_parallel) == (4, 5)
    assert (spec.limits.max_seconds, spec.limits.grace_seconds) == (60.0, 0.0)
    assert spec.packing == Packing(cpus=3, nice=19)
    assert spec.budget.max_bytes == 1000
    assert [trial.name for trial in spec.trials] == ["low", "high"]


@pytest.mark.parametrize(
    ("gpus", "processes", "ranks"), [(0, None, 1), (1, None, 1), (8, None, 8), (0, 2, 2), (8, 1, 1)]
)
def test_a_run_has_a_rank_per_gpu_unless_said_otherwise(
    gpus: int, processes: int | None, ranks: int
) -> None:
    resources = {"gpus_per_run": gpus, "processes_per_run": processes}
    assert make_spec(resources=resources).resources.processes == ranks


def test_a_trials_own_env_wins_over_the_common_one(tmp_path: Path) -> None:
    spec = load(tmp_path, HEAD + "[env]\nLR = 9\nITERATIONS = 6\n" + TRIAL + OTHER)
    assert [spec.trial_env(trial) for trial in spec.trials] == [
        {"ITERATIONS": "6", "LR": "0.1"},
        {"ITERATIONS": "6", "LR": "0.2"},
    ]


def test_a_spec_cannot_be_changed() -> None:
    spec = make_spec()
    with pytest.raises(ValidationError, match="frozen"):
        spec.seeds = (1,)  # type: ignore[misc]


def test_text_of_any_language_is_read(tmp_path: Path) -> None:
    spec = load(tmp_path, HEAD + '[[trial]]\nname = "größe 日本 🙂"\n')
    assert spec.trials[0].name == "größe 日本 🙂"


# ---- what is refused

BAD: list[tuple[str, str, str]] = [
    ("unknown key", "seed = 1\n" + HEAD + TRIAL, "seed: unknown key; did you mean seeds?"),
    (
        "unknown key, nothing close",
        "zzz = 1\n" + HEAD + TRIAL,
        "zzz: unknown key (allowed: name, seeds, metric, workload, resources, limits, packing, "
        "budget, disk, storage, cost, env, process_env, search, stage, trial)",
    ),
    (
        "unknown nested key",
        HEAD + "[limits]\nmax_second = 3\n" + TRIAL,
        "limits.max_second: unknown key; did you mean max_seconds? (allowed: max_seconds,"
        " stall_seconds, grace_seconds, max_attempts, backoff_seconds)",
    ),
    (
        "unknown key of a trial",
        HEAD + '[[trial]]\nname = "low"\nenvs = 1\n',
        "trial.0.envs: unknown key; did you mean env? (allowed: name, env)",
    ),
    ("no name", "seeds = [1]\n" + TRIAL, "name: is missing"),
    ("no seeds", 'name = "small"\n' + TRIAL, "seeds: is missing"),
    ("no trial", HEAD, "trial: at least one table headed [[trial]] is needed"),
    (
        "wrong type",
        HEAD + '[resources]\ngpus_per_run = "two"\n' + TRIAL,
        'resources.gpus_per_run: input should be a valid integer, found "two"',
    ),
    (
        "half a byte",
        HEAD + "[budget]\nmax_bytes = 1.5\n" + TRIAL,
        "budget.max_bytes: input should be a valid integer, found 1.5",
    ),
    (
        "true is no number",
        HEAD + "[limits]\nmax_attempts = true\n" + TRIAL,
        "limits.max_attempts: input should be a valid integer, found true",
    ),
    (
        "out of range",
        HEAD + "[limits]\nmax_seconds = -3\n" + TRIAL,
        "limits.max_seconds: input should be greater than 0, found -3",
    ),
    (
        "a limit that is no number",
        HEAD + "[limits]\nmax_seconds = nan\n" + TRIAL,
        "limits.max_seconds: input should be a finite number, found NaN",
    ),
    (
        "unknown choice",
        HEAD + '[workload]\nlaunch = "mpi"\n' + TRIAL,
        "workload.launch: input should be 'torchrun' or 'exec', found \"mpi\"",
    ),
    (
        "a shell line for a module",
        HEAD + '[workload]\nmodule = "x; rm -r y"\n' + TRIAL,
        "workload.module: string should match pattern",
    ),
    ("no table", "limits = 3\n" + HEAD + TRIAL, "limits: expected a table, found 3"),
    (
        "empty seeds",
        'name = "small"\nseeds = []\n' + TRIAL,
        "seeds: at least one seed is needed, for example [42, 314, 999]",
    ),
    (
        "duplicate seeds",
        'name = "small"\nseeds = [1, 2, 1]\n' + TRIAL,
        "seeds: 1 stands twice; every seed runs once",
    ),
    (
        "negative seed",
        'name = "small"\nseeds = [-1]\n' + TRIAL,
        "seeds.0: input should be greater than or equal to 0, found -1",
    ),
    (
        "a seed too large to be kept",
        f'name = "small"\nseeds = [{2**63}]\n' + TRIAL,
        f"seeds.0: input should be less than or equal to {MAX_SEED}, found {2**63}",
    ),
    (
        "half a seed",
        'name = "small"\nseeds = [1, 1.5]\n' + TRIAL,
        "seeds.1: input should be a valid integer, found 1.5",
    ),
    ("one seed, no list", 'name = "small"\nseeds = 42\n' + TRIAL, "seeds: expected a list, found"),
    ("bad name", 'name = "a/b"\nseeds = [1]\n' + TRIAL, "name: it names a directory: letters"),
    ("hidden name", 'name = ".."\nseeds = [1]\n' + TRIAL, "name: it names a directory: letters"),
    ("long name", f'name = "{"x" * 65}"\nseeds = [1]\n' + TRIAL, "name: it names a directory"),
    ("name with a break", 'name = "a\\n"\nseeds = [1]\n' + TRIAL, "name: it names a directory"),
    ("name is no text", "name = 3\nseeds = [1]\n" + TRIAL, "name: it names a directory: letters"),
    ("empty trial name", HEAD + '[[trial]]\nname = ""\n', "trial.0.name: string should have"),
    (
        "trial name with a break",
        HEAD + '[[trial]]\nname = "a\\nb"\n',
        'trial.0.name: line breaks and control characters are not allowed, found "a\\nb"',
    ),
    (
        "duplicate trial names",
        HEAD + TRIAL + TRIAL,
        "trial: two trials are called 'low'; name them apart",
    ),
    (
        "same env",
        HEAD + TRIAL + '[[trial]]\nname = "again"\n[trial.env]\nLR = 0.1\n',
        "trial: 'low' and 'again' have the same env",
    ),
    (
        "same env in other words",
        HEAD + "[env]\nLR = 0.1\n" + TRIAL + '[[trial]]\nname = "again"\n',
        "trial: 'low' and 'again' have the same env",
    ),
    (
        "one trial, no list",
        HEAD + '[trial]\nname = "low"\n',
        "trial: at least one table headed [[trial]] is needed, found",
    ),
    ("no trial in the list", "trial = []\n" + HEAD, "trial: at least one table headed [[trial]]"),
    (
        "a stage",
        HEAD + "[env]\nSTAGE = 'pack'\n" + TRIAL,
        "env: STAGE is set by the sweeper; use [p",
    ),
    ("no packer", HEAD + "[packing]\ncpus = 0\n" + TRIAL, "packing.cpus: input should be greater"),
    (
        "too nice",
        HEAD + "[packing]\nnice = 20\n" + TRIAL,
        "packing.nice: input should be less than",
    ),
    (
        "hurry",
        HEAD + "[packing]\nnice = -1\n" + TRIAL,
        "packing.nice: input should be greater than",
    ),
    (
        "odd packing",
        HEAD + "[packing]\ngpus = 1\n" + TRIAL,
        "packing.gpus: unknown key; did you mean cpus? (a",
    ),
    ("packing is no table", "packing = 2\n" + HEAD + TRIAL, "packing: expected a table, found 2"),
    ("reserved", HEAD + "[env]\nSEED = 1\n" + TRIAL, "env: SEED is set by the sweeper"),
    (
        "reserved, in a trial",
        HEAD + TRIAL + 'RUN_DIR = "x"\n',
        "trial 'low': RUN_DIR is set by the sweeper",
    ),
    (
        "lower-case env",
        HEAD + "[env]\nlr = 1\n" + TRIAL,
        "env.lr: environment names are upper case, like WARMDOWN_FRAC",
    ),
    (
        "lower-case env of a trial",
        HEAD + TRIAL + "Lr = 1\n",
        "trial.0.env.Lr: environment names are upper case, like WARMDOWN_FRAC",
    ),
    (
        "env list",
        HEAD + "[env]\nLAYERS = [4, 5]\n" + TRIAL,
        "env.LAYERS: expected text, a finite number or true/false, found [4, 5]",
    ),
    (
        "env date",
        HEAD + "[env]\nDAY = 2026-01-01\n" + TRIAL,
        'env.DAY: expected text, a finite number or true/false, found "2026-01-01"',
    ),
    (
        "env NaN",
        HEAD + "[env]\nLR = nan\n" + TRIAL,
        "env.LR: expected text, a finite number or true/false, found NaN",
    ),
    (
        "env infinity",
        HEAD + TRIAL + "WD = -inf\n",
        "trial.0.env.WD: expected text, a finite number or true/false, found -Infinity",
    ),
    ("no TOML", "name = small\n", "not valid TOML: Invalid value (at line 1, column 8)"),
    ("a key twice", HEAD + HEAD + TRIAL, "not valid TOML: Cannot overwrite a value"),
]


@pytest.mark.parametrize(("text", "message"), [row[1:] for row in BAD], ids=[row[0] for row in BAD])
def test_a_bad_spec_is_told_file_key_and_what_is_allowed(
    tmp_path: Path, text: str, message: str
) -> None:
    # One mistake, one line: nothing that only follows from it.
    (line,) = complaint(tmp_path, text)
    assert line.startswith(message)


def test_all_mistakes_are_told_at_once(tmp_path: Path) -> None:
    lines = complaint(tmp_path, "seed = 1\n" + HEAD + "[limits]\nmax_attempts = 0\n" + TRIAL)
    assert [line.partition(":")[0] for line in lines] == ["limits.max_attempts", "seed"]


def test_a_file_that_is_not_text_is_told_so(tmp_path: Path) -> None:
    (line,) = complaint(tmp_path, HEAD.encode() + b'[env]\nX = "gr\xf6\xdfe"\n')
    assert line.startswith("not valid TOML: 'utf-8' codec can't decode byte 0xf6")


@pytest.mark.parametrize("name", ["missing.toml", "."])
def test_a_file_that_cannot_be_read_is_told_so(tmp_path: Path, name: str) -> None:
    with pytest.raises(SpecError, match=r"cannot be read: (No such file|Is a directory)") as caught:
        load_spec(tmp_path / name)
    assert str(tmp_path) in str(caught.value)
    assert isinstance(caught.value, UserError)


# ---- paths


def test_relative_paths_are_taken_from_the_base(tmp_path: Path) -> None:
    spec = load(
        tmp_path,
        HEAD
        + '[env]\nDATA_DIR = "da ta"\nTOKENIZER_PATH = "t/x.model"\nSHAPE = "linear"\n'
        + 'CACHE_DIR = "/absolute"\nSOME_PATH = 3\n'
        + '[[trial]]\nname = "a"\n[trial.env]\nDATA_DIR = "../other"\n',
    )
    assert spec.env == {
        "DATA_DIR": str(tmp_path / "da ta"),
        "TOKENIZER_PATH": str(tmp_path / "t/x.model"),
        "SHAPE": "linear",
        "CACHE_DIR": "/absolute",
        "SOME_PATH": 3,
    }
    assert Path(str(spec.trials[0].env["DATA_DIR"])) == tmp_path / "../other"


def test_the_base_is_where_the_command_is_started(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec_dir, here = tmp_path / "specs", tmp_path / "here"
    spec_dir.mkdir()
    here.mkdir()
    (spec_dir / "x.toml").write_text(HEAD + '[env]\nDATA_DIR = "data"\n' + TRIAL)
    monkeypatch.chdir(here)
    assert load_spec(spec_dir / "x.toml").env["DATA_DIR"] == str(here / "data")


# ---- what a run is told, and what makes a trial itself


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (True, "1"),
        (False, "0"),
        (3000, "3000"),
        (0.667, "0.667"),
        (0.0, "0.0"),
        (1e-8, "1e-08"),
        ("4,5", "4,5"),
        ("", ""),
    ],
)
def test_values_become_the_fields_own_text(value: EnvValue, text: str) -> None:
    assert env_text(value) == text


@given(st.floats(allow_nan=False, allow_infinity=False))
def test_a_number_loses_nothing_on_the_way(value: float) -> None:
    assert float(env_text(value)) == value


def test_a_trials_identity_is_what_it_executes_and_with_what() -> None:
    spec = make_spec()
    first, second = (spec.config_hash(trial) for trial in spec.trials)
    assert first != second
    assert [spec.config_hash(trial) for trial in make_spec().trials] == [first, second]
    # Known once and for all: a ledger of last year must still be recognised.
    assert first == "3b542d15c1a2"


@pytest.mark.parametrize(
    "changes",
    [
        {"env": {"ITERATIONS": 7}},
        {"env": {"ITERATIONS": 6, "EXTRA": 1}},
        {"env": {}},
        {"workload": {"module": "other"}},
        {"workload": {"launch": "exec"}},
        {"trial": [{"name": "low", "env": {"LR": 0.11}}]},
        {"trial": [{"name": "low", "env": {"LRS": 0.1}}]},
    ],
)
def test_whatever_changes_a_run_changes_the_identity(changes: dict[str, Any]) -> None:
    before, after = make_spec(), make_spec(**changes)
    assert before.config_hash(before.trials[0]) != after.config_hash(after.trials[0])


@pytest.mark.parametrize(
    "changes",
    [
        {"name": "other"},
        {"seeds": [1]},
        {"limits": {"max_seconds": 5}},
        {"resources": {"gpus_per_run": 8}},
        {"budget": {"max_bytes": 1}},
        {"trial": [{"name": "renamed", "env": {"LR": 0.1}}]},
        {"trial": [{"name": "low", "env": {"LR": "0.1"}}]},
        {"env": {}, "trial": [{"name": "low", "env": {"ITERATIONS": 6, "LR": 0.1}}]},
    ],
)
def test_what_no_run_sees_leaves_the_identity(changes: dict[str, Any]) -> None:
    before, after = make_spec(), make_spec(**changes)
    assert before.config_hash(before.trials[0]) == after.config_hash(after.trials[0])


ENV_NAMES = st.from_regex(r"[A-Z][A-Z0-9_]{0,8}", fullmatch=True).filter(
    lambda name: name not in ("SEED", "RUN_DIR")
)
ENV_VALUES = (
    st.booleans()
    | st.integers(-(2**80), 2**80)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=20)
)
ENVS = st.dictionaries(ENV_NAMES, ENV_VALUES, max_size=4)


@given(
    seeds=st.lists(st.integers(0, MAX_SEED), min_size=1, max_size=4, unique=True),
    env=ENVS,
    trial_env=ENVS,
    seconds=st.none() | st.floats(0.001, 1e6),
)
def test_a_spec_comes_back_from_json_as_it_was(
    seeds: list[int], env: dict[str, Any], trial_env: dict[str, Any], seconds: float | None
) -> None:
    spec = make_spec(
        seeds=seeds,
        env=env,
        limits={"max_seconds": seconds},
        trial=[{"name": "only", "env": trial_env}],
    )
    again = SweepSpec.model_validate_json(spec.model_dump_json(by_alias=True))
    assert again == spec
    assert again.trial_env(again.trials[0]) == spec.trial_env(spec.trials[0])
    assert SweepSpec.model_validate(spec.model_dump(by_alias=True)) == spec


def test_settings_from_the_command_line_join_those_for_all_trials(tmp_path: Path) -> None:
    path = tmp_path / "spec.toml"
    path.write_text(
        'name = "s"\nseeds = [1]\n[[trial]]\nname = "a"\n[trial.env]\nLR = 0.1\n'
        '[[trial]]\nname = "b"\n'
    )
    spec = load_spec(path, env={"DATA_DIR": "/data", "STEPS": "3"})
    assert spec.trial_env(spec.trials[0]) == {"DATA_DIR": "/data", "LR": "0.1", "STEPS": "3"}
    with pytest.raises(SpecError, match=r"--env LR: trial 'a' of .* sets it itself"):
        load_spec(path, env={"LR": "0.2"})
    with pytest.raises(SpecError, match="SEED is set by the sweeper"):
        load_spec(path, env={"SEED": "2"})


def test_a_path_that_is_none_stays_none(tmp_path: Path) -> None:
    path = tmp_path / "spec.toml"
    path.write_text(
        'name = "s"\nseeds = [1]\n[env]\nTOKENIZER_PATH = "none"\nRESUME_FROM = "old"\n'
        '[[trial]]\nname = "a"\n'
    )
    spec = load_spec(path, base=tmp_path)
    assert spec.env == {"TOKENIZER_PATH": "none", "RESUME_FROM": str(tmp_path / "old")}
