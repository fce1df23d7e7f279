"""What a sweep was made of: kept once, whole, and changed by every change of the code."""

from __future__ import annotations

import json
import platform
import subprocess
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest

from sweeper import provenance
from sweeper.layout import SweepDir
from sweeper.provenance import describe_code, describe_versions, record_spec
from sweeper.snapshot import take
from sweeper.spec import SweepSpec, Workload
from tests.sweeper.conftest import ROOT, make_spec, write_module


def package(directory: Path, name: str, **files: str) -> None:
    """A package for imports, with some files; found by the directory being on sys.path."""
    (directory / name).mkdir(parents=True, exist_ok=True)
    for file, text in {"__init__": "", **files}.items():
        (directory / name / f"{file}.py").write_text(text)


def describe(sweep: SweepDir, module: str) -> dict[str, Any]:
    """What is kept of a module's code."""
    workload = Workload(module=module)
    return describe_code(workload, take(workload, sweep))


def test_the_spec_is_kept_as_given_and_as_understood(tmp_path: Path) -> None:
    sweep, spec = SweepDir(tmp_path), make_spec(workload={"module": "model.train"})
    record_spec(sweep, spec, "the text # größe\n", take(spec.workload, sweep))
    assert sweep.spec.read_text() == "the text # größe\n"
    facts = json.loads(sweep.resolved_spec.read_text())
    assert SweepSpec.model_validate_json(json.dumps(facts["spec"])) == spec
    assert facts["code"]["workload"] == "model.train"
    assert len(facts["code"]["sha256"]) == 64
    assert facts["versions"]["python"] == platform.python_version()
    assert not list(tmp_path.glob("*.partial"))


def test_what_a_sweep_was_made_of_is_written_once(tmp_path: Path) -> None:
    sweep = SweepDir(tmp_path)
    record_spec(sweep, make_spec(), "first")
    before = sweep.resolved_spec.read_bytes()
    record_spec(sweep, make_spec(limits={"max_seconds": 9}), "second")
    assert sweep.spec.read_text() == "first"
    assert sweep.resolved_spec.read_bytes() == before


def test_a_sweep_that_was_torn_while_it_was_kept_is_kept_again(tmp_path: Path) -> None:
    sweep = SweepDir(tmp_path)
    sweep.spec.write_text("torn")
    record_spec(sweep, make_spec(), "whole")
    assert sweep.spec.read_text() == "whole"


def test_every_change_of_the_code_changes_its_hash(
    tmp_path: Path, sweep: SweepDir, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(tmp_path)
    hashes = []
    for files in (
        {"train": "x = 1\n"},
        {"train": "x = 2\n"},
        {"train": "x = 2\n", "more": ""},
        {"train": "x = 2\n", "more": "", "sub/deep": "y = 1\n"},
    ):
        (tmp_path / "some_workload" / "sub").mkdir(parents=True, exist_ok=True)
        package(tmp_path, "some_workload", **files)
        hashes.append(describe(sweep, "some_workload.train")["sha256"])
        assert describe(sweep, "some_workload.train")["sha256"] == hashes[-1]
    assert len(set(hashes)) == 4
    (tmp_path / "some_workload" / "more.py").rename(tmp_path / "some_workload" / "less.py")
    assert describe(sweep, "some_workload.train")["sha256"] not in hashes


def test_a_workload_of_one_file_has_a_hash_of_its_own(
    tmp_path: Path, sweep: SweepDir, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(tmp_path)
    first = describe(sweep, write_module(tmp_path, "one_file_a", "x = 1"))["sha256"]
    assert first is not None
    write_module(tmp_path, "one_file_a", "x = 2")
    assert describe(sweep, "one_file_a")["sha256"] not in (first, None)


def test_a_workload_that_cannot_be_found_has_no_hash(sweep: SweepDir) -> None:
    assert describe(sweep, "no_such_workload.train")["sha256"] is None


def test_looking_at_the_code_does_not_run_it(
    tmp_path: Path, sweep: SweepDir, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(tmp_path)
    package(tmp_path, "explosive", __init__="raise RuntimeError", train="raise RuntimeError")
    assert describe(sweep, "explosive.train")["sha256"] is not None


def test_the_state_of_git_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(provenance, "PROJECT", tmp_path)
    # Whatever is above the temporary directory must not be taken for the project's repository.
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    for name in ("GIT_DIR", "GIT_WORK_TREE", "GIT_INDEX_FILE"):
        monkeypatch.delenv(name, raising=False)
    code = describe_code(Workload(), None)
    assert (code["git_commit"], code["git_dirty"]) == (None, None)

    def git(*arguments: str) -> str:
        who = ["-c", "user.name=a", "-c", "user.email=a@b.c", "-c", "core.hooksPath=/dev/null"]
        command = ["git", "-C", str(tmp_path), *who, *arguments]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()

    git("init", "--quiet")
    git("commit", "--quiet", "--allow-empty", "--no-gpg-sign", "--message=first")
    code = describe_code(Workload(), None)
    assert (code["git_commit"], code["git_dirty"]) == (git("rev-parse", "HEAD"), False)
    (tmp_path / "new.py").write_text("x = 1\n")
    assert describe_code(Workload(), None)["git_dirty"] is True


def test_without_git_there_is_no_state(
    sweep: SweepDir, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    code = describe(sweep, "model.train")
    assert (code["git_commit"], code["git_dirty"]) == (None, None)
    assert code["sha256"] is not None


def test_versions_are_of_what_results_depend_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(provenance, "PACKAGES", ("numpy", "no-such-package"))
    assert describe_versions() == {"python": platform.python_version(), "numpy": version("numpy")}


def test_the_project_is_this_one() -> None:
    assert provenance.PROJECT == ROOT
