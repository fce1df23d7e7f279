"""The code of a sweep: copied once and whole, and changed by nothing but a decision."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from sweeper.errors import SpecError, UserError
from sweeper.launch import place_files
from sweeper.layout import SweepDir
from sweeper.snapshot import (
    Snapshot,
    check,
    check_overrides,
    choose,
    hash_files,
    launch_facts,
    prepare,
    read_recorded,
    sources,
    take,
)
from sweeper.spec import SweepSpec, Workload
from tests.sweeper.conftest import make_spec

SCRIPT = """
import os
SEED, ITERATIONS, LR = (os.environ.get(name) for name in ("SEED", "ITERATIONS", "LR"))
"""


@pytest.fixture
def script(tmp_path: Path) -> Path:
    path = tmp_path / "größe und platz" / "train_gpt.py"
    path.parent.mkdir()
    path.write_text(SCRIPT)
    return path


def of(script: Path, *include: Path) -> Workload:
    return Workload(script=str(script), include=tuple(map(str, include)))


def spec_of(script: Path, **env: object) -> SweepSpec:
    return make_spec(
        workload={"script": str(script)}, env=env, trial=[{"name": "one", "env": {"LR": 0.1}}]
    )


def test_a_script_and_what_lies_beside_it_are_copied(sweep: SweepDir, script: Path) -> None:
    kernels = script.with_name("kernels")
    (kernels / "__pycache__").mkdir(parents=True)
    (kernels / "__pycache__" / "a.pyc").write_text("x")
    (kernels / "a.cu").write_text("kernel")
    helper = script.with_name("helper.py")
    helper.write_text("x = 1")
    snapshot = take(of(script, helper, kernels), sweep)
    assert snapshot is not None
    assert snapshot.files == ("helper.py", "kernels/a.cu", "train_gpt.py")
    assert snapshot.path == sweep.path / "code" / snapshot.short
    assert (snapshot.path / "kernels" / "a.cu").read_text() == "kernel"
    assert hash_files({name: snapshot.path / name for name in snapshot.files}) == snapshot.sha256
    assert take(of(script, helper, kernels), sweep) == snapshot
    assert [path.name for path in (sweep.path / "code").iterdir()] == [snapshot.short]
    script.write_text(SCRIPT + "# changed\n")
    changed = take(of(script, helper, kernels), sweep)
    assert changed is not None
    assert changed.sha256 != snapshot.sha256
    assert (snapshot.path / "train_gpt.py").read_text() == SCRIPT


def test_a_modules_package_is_copied_whole(
    tmp_path: Path, sweep: SweepDir, monkeypatch: pytest.MonkeyPatch
) -> None:
    package = tmp_path / "a_workload"
    (package / "deep").mkdir(parents=True)
    for name in ("__init__.py", "train.py", "deep/__init__.py", "table.json"):
        (package / name).write_text("1")
    monkeypatch.syspath_prepend(tmp_path)
    snapshot = take(Workload(module="a_workload.train"), sweep)
    assert snapshot is not None
    assert snapshot.files == tuple(
        f"a_workload/{name}"
        for name in ("__init__.py", "deep/__init__.py", "table.json", "train.py")
    )


def test_the_recipes_own_package_can_be_copied(sweep: SweepDir) -> None:
    snapshot = take(Workload(), sweep)
    assert snapshot is not None
    assert "model/train.py" in snapshot.files
    assert all(name.startswith("model/") for name in snapshot.files)


def test_what_is_only_on_the_nodes_is_not_copied(sweep: SweepDir) -> None:
    assert take(Workload(module="no_such_package.train"), sweep) is None
    assert not (sweep.path / "code").exists()
    assert prepare(Workload(module="no_such_package"), sweep, finished=True) == (None, None)


def test_a_torn_copy_is_never_taken_for_one(
    sweep: SweepDir, script: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("shutil.copy2", full)
        with pytest.raises(UserError, match="No space left"):
            prepare(of(script), sweep, finished=False)
    assert list((sweep.path / "code").iterdir()) == []


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (("missing.py",), r"workload.include: there is no file .*missing.py"),
        (("other/train_gpt.py",), "cannot lie in a run's directory as train_gpt.py"),
        (("logs",), "cannot lie in a run's directory as logs/"),
        (("events.jsonl",), "cannot lie in a run's directory as events.jsonl"),
    ],
)
def test_files_that_cannot_lie_beside_a_script_are_refused(
    script: Path, names: tuple[str, ...], message: str
) -> None:
    for name in ("other/train_gpt.py", "logs/a.txt", "events.jsonl"):
        path = script.with_name("x").parent / name
        path.parent.mkdir(exist_ok=True)
        path.write_text("")
    with pytest.raises(SpecError, match=message):
        sources(of(script, *(script.parent / name for name in names)))
    with pytest.raises(SpecError, match=r"workload.script: there is no file .*none.py"):
        sources(of(script.with_name("none.py")))


# ---- which code


def version(name: str) -> Snapshot:
    return Snapshot(path=Path(name), sha256=name * 64, files=())


@pytest.mark.parametrize(
    ("recorded", "today", "finished", "update", "chosen", "said"),
    [
        (None, "a", False, False, "a", ""),
        (None, "a", True, False, "a", ""),
        ("a", None, True, False, "a", ""),
        (None, None, True, False, None, ""),
        ("a", "a", True, True, "a", ""),
        ("a", "b", False, False, "b", ""),
        ("a", "b", True, False, "a", "keeps what it began with (aaaaaaaaaaaa)"),
        ("a", "b", True, True, "b", "today's code (bbbbbbbbbbbb)"),
    ],
)
def test_the_code_changes_only_while_nothing_has_finished_or_when_asked(
    recorded: str | None,
    today: str | None,
    finished: bool,
    update: bool,
    chosen: str | None,
    said: str,
) -> None:
    found, note = choose(
        version(recorded) if recorded else None,
        version(today) if today else None,
        finished=finished,
        update=update,
    )
    assert (found and found.path.name) == chosen
    assert said in (note or "")
    assert (note is None) == (said == "")


def test_a_sweep_keeps_its_code(sweep: SweepDir, script: Path) -> None:
    first, note = prepare(of(script), sweep, finished=False)
    assert first is not None
    assert note is None
    assert read_recorded(sweep) == first
    script.write_text(SCRIPT + "# an edit\n")
    kept, note = prepare(of(script), sweep, finished=True)
    assert kept == first
    assert note is not None
    assert f"({first.short}); `--update-code` takes today's" in note
    script.unlink()
    assert prepare(of(script), sweep, finished=True) == (first, None)
    with pytest.raises(SpecError, match="there is no file"):
        prepare(of(script), sweep, finished=True, update=True)
    script.write_text(SCRIPT + "# another\n")
    updated, _ = prepare(of(script), sweep, finished=True, update=True)
    assert updated not in (None, first)
    assert read_recorded(sweep) == updated
    # A copy that somebody has edited is no longer what the sweep began with.
    assert updated is not None
    (updated.path / "train_gpt.py").write_text("edited")
    assert read_recorded(sweep) is None


# ---- what a run gets


def test_a_run_gets_copies_of_its_own(sweep: SweepDir, script: Path, tmp_path: Path) -> None:
    spec = make_spec(
        workload={"script": str(script), "arguments": ["--fast"]},
        process_env={"NCCL_DEBUG": "INFO", "NCCL_P2P_DISABLE": True},
    )
    snapshot = take(spec.workload, sweep)
    facts = launch_facts(spec, snapshot)
    assert (facts["script"], facts["arguments"]) == ("train_gpt.py", ("--fast",))
    assert facts["process_env"] == {"NCCL_DEBUG": "INFO", "NCCL_P2P_DISABLE": "1"}
    json.dumps(facts)
    (Path(facts["code"]) / "train_gpt.py").chmod(0o555)
    for _ in range(2):
        place_files(Path(facts["code"]), facts["files"], tmp_path)
    assert (tmp_path / "train_gpt.py").stat().st_mode & 0o777 == 0o755
    assert (tmp_path / "train_gpt.py").read_text() == SCRIPT


# ---- settings


@pytest.mark.parametrize(
    ("env", "message"),
    [
        ({"ITERATION": 3}, "ITERATION: train_gpt.py does not know this setting; did you mean ITER"),
        ({"WARMDOWN_FRAC": 0.5}, "WARMDOWN_FRAC: train_gpt.py does not know this setting$"),
    ],
)
def test_a_setting_that_the_script_does_not_have_is_an_error(
    script: Path, sweep: SweepDir, env: dict[str, object], message: str
) -> None:
    with pytest.raises(SpecError, match=message):
        check(spec_of(script, **env), sweep)
    assert check(spec_of(script, ITERATIONS=3), sweep) is None


def test_a_setting_may_be_in_a_file_beside_the_script(script: Path) -> None:
    helper = script.with_name("helper.py")
    helper.write_text("import os\nx = os.environ['WARMDOWN_FRAC']\n")
    files = {"train_gpt.py": script, "helper.py": helper}
    assert check_overrides(spec_of(script, WARMDOWN_FRAC=0.5), files) is None


def test_a_script_that_takes_no_seed_is_an_error(script: Path) -> None:
    script.write_text("import os\nLR = os.environ['LR']\n")
    with pytest.raises(SpecError, match=r"SEED: train_gpt\.py does not know this setting"):
        check_overrides(spec_of(script), {"train_gpt.py": script})


def test_a_script_may_name_its_settings_by_its_fields(script: Path) -> None:
    script.write_text("import os\nfor name in ('seed', 'lr'):\n    os.environ.get(name.upper())\n")
    files = {"train_gpt.py": script}
    assert check_overrides(spec_of(script), files) is None
    with pytest.raises(SpecError, match=r"SEEDS: .* did you mean SEED\?"):
        check_overrides(spec_of(script, SEEDS=3), files)


def test_a_packed_script_cannot_be_looked_into(script: Path) -> None:
    script.write_text("import lzma,base64\nexec(lzma.decompress(base64.b85decode('x')))\n")
    note = check_overrides(spec_of(script, ANYTHING=1), {"train_gpt.py": script})
    assert note == "train_gpt.py reads no environment that can be seen, so no setting is checked"


def test_a_modules_settings_are_left_to_its_echo(sweep: SweepDir) -> None:
    assert check(make_spec(env={"NO_SUCH_SETTING": 1}), sweep) is None
