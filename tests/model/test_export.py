"""One file of the package: it runs where the package is not, and says and scores the same."""

from __future__ import annotations

import ast
import base64
import lzma
import os
import re
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from model import export
from model.report import code_bytes
from tests.model.conftest import ROOT, Finished, train_command, train_environment
from tests.model.test_onefile import GUARD, MORE, PARTS, USES_ALL, one_file

MAX_COUNTED = 33_000
# What two runs of one seed may differ in: times, memory and where they wrote.
OF_THE_MOMENT = re.compile(r".*_(s|ms|mib)|t|run_dir")
STAGES = ("train", "pack", "score")


def same_run(value: Any) -> Any:
    """A result or an event without what belongs to the moment."""
    if not isinstance(value, dict):
        return value
    return {k: same_run(v) for k, v in value.items() if not OF_THE_MOMENT.fullmatch(k)}


@pytest.fixture(scope="session")
def scripts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with the two files of the command, and nothing else."""
    out = tmp_path_factory.mktemp("export") / "größe und platz" / "train_gpt.py"
    command = [sys.executable, "-m", "sweeper.cli", "export-script", "--out", str(out)]
    env = os.environ | {"PYTHONHASHSEED": "0"}
    done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, check=True)
    assert f"{out.stat().st_size:,} bytes, counted" in done.stdout
    assert {path.name for path in out.parent.iterdir()} == {"train_gpt.py", "train_gpt_human.py"}
    return out.parent


def run_all(
    commands: dict[str, list[str]], cwd: Path, data: Path, runs: Path, *, apart: str, budget: int
) -> list[Finished]:
    """Runs of one seed, two at a time, in processes of their own; that of `apart` in stages."""
    settings = {"seed": 7, "train_log_every": 1, "budget_bytes": budget}

    def run(name: str, stage: str) -> Finished:
        command = commands[name]
        alone = [command[0], command[-1]]  # what packs is never under torchrun
        done = subprocess.run(
            alone if stage == "pack" else command,
            cwd=ROOT if "model.train" in command else cwd,
            env=train_environment(data, runs / name, **settings, stage=stage),
            capture_output=True,
            text=True,
            timeout=240,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        return Finished(done.returncode, done.stdout, done.stderr, runs / name)

    def run_stages(name: str) -> Finished:
        return [run(name, stage) for stage in (STAGES if name == apart else ["all"])][-1]

    with ThreadPoolExecutor(2) as pool:
        return list(pool.map(run_stages, commands))


def test_the_file_is_the_package_bit_for_bit(scripts: Path, data_dir: Path, tmp_path: Path) -> None:
    empty = tmp_path / "empty"
    empty.mkdir()
    script = shutil.copy(scripts / "train_gpt.py", empty)
    commands = {
        "package": train_command(1),
        "counted": [sys.executable, "train_gpt.py"],
        "human": [sys.executable, str(scripts / "train_gpt_human.py")],
    }
    # More than any of them needs: the human file's own bytes leave its model less of a small one.
    package, counted, human = run_all(
        commands, empty, data_dir, tmp_path, apart="human", budget=16_000_000
    )
    assert len(package.losses) == 6
    assert counted.losses == human.losses == package.losses
    assert same_run(counted.result) == same_run(package.result)
    assert counted.result["bytes_code"] == Path(script).stat().st_size
    itself = ("bytes_code", "bytes_total")  # it counts itself
    assert same_run(human.result) == same_run(package.result) | {
        "stages": "apart",
        **{name: human.result[name] for name in itself},
    }
    events = [[same_run(event) for event in done.events] for done in (package, counted)]
    assert events[0] == events[1]
    artifacts = {done.result["artifact_sha256"] for done in (package, counted, human)}
    assert len(artifacts) == 1
    assert {path.name for path in empty.iterdir()} == {"train_gpt.py"}

    # The human file ran in stages, one after another in one directory.
    told = [
        event.get("phase") or event.get("metric") or event["kind"]
        for event in human.events
        if event["kind"] in ("phase", "config", "size", "val")
    ]
    assert told == [
        *("setup", "config", "warmup", "train", "plain", "hessians", "eval", "prequant"),
        *("setup", "config", "quantise", "pack", "size"),
        *("setup", "config", "eval", "quant", "sliding", "done"),
    ]
    assert len({str(event["config"]) for event in human.of_kind("config")}) == 1
    assert {path.name for path in human.run_dir.iterdir()} == {
        *("events.jsonl", "trained.json", "packed.json", "final_model.int6.ptz", "result.json")
    }
    result = human.result
    evaluated = sum(event["eval_time_s"] for event in human.of_kind("val")[1:])
    assert result["eval_time_s"] == pytest.approx(evaluated)
    useful = result["train_time_ms"] / 1000 + result["hessian_time_s"] + evaluated
    assert result["useful_s"] == pytest.approx(useful)  # packing was done elsewhere


@pytest.mark.slow
def test_two_ranks_of_the_file_in_stages_are_two_of_the_package(
    scripts: Path, data_dir: Path, tmp_path: Path
) -> None:
    package = train_command(2)
    torchrun = package[: package.index("model.train") - 1]
    commands = {"package": package, "counted": [*torchrun, str(scripts / "train_gpt.py")]}
    budget = code_bytes() + 80_000  # which fitting has to find, with the ranks sharing the matrices
    ours, theirs = run_all(commands, tmp_path, data_dir, tmp_path, apart="counted", budget=budget)
    assert 0.98 * budget <= ours.result["bytes_total"] <= budget
    assert ours.result["world_size"] == 2
    assert same_run(theirs.result) == same_run(ours.result) | {"stages": "apart"}
    assert theirs.losses == ours.losses


def test_what_the_file_weighs_is_what_counts(scripts: Path) -> None:
    counted = (scripts / "train_gpt.py").read_bytes()
    assert len(counted) == code_bytes() <= MAX_COUNTED


def test_the_file_imports_nothing_of_ours(scripts: Path) -> None:
    human = (scripts / "train_gpt_human.py").read_text()
    for text in (human, unpacked(scripts / "train_gpt.py")):
        imports = [n for n in ast.walk(ast.parse(text)) if isinstance(n, ast.Import)]
        froms = [n for n in ast.walk(ast.parse(text)) if isinstance(n, ast.ImportFrom)]
        names = {a.name for n in imports for a in n.names} | {str(n.module) for n in froms}
        assert "torch" in names
        assert not {name.partition(".")[0] for name in names} & {"model", "sweeper", "jobs"}


def test_the_readable_file_reads_like_the_package(scripts: Path) -> None:
    human = (scripts / "train_gpt_human.py").read_text()
    config = (ROOT / "model" / "config.py").read_text()
    comments = [line for line in config.splitlines() if line.startswith("    # ")]
    assert len(comments) > 5
    assert all(comment in human for comment in comments)
    assert '"""Every field as a JSON value' in human
    for module in ("gpt", "train", "artifact"):
        assert f"\n# ---- model.{module}\n# " in human
    assert "def code_bytes() -> int:" in human
    assert "__package__" not in human


def test_the_same_sources_give_the_same_bytes(scripts: Path, tmp_path: Path) -> None:
    copy = tmp_path / "elsewhere ü"
    shutil.copytree(ROOT / "model", copy / "model", ignore=shutil.ignore_patterns("__pycache__"))
    command = [sys.executable, "-m", "model.export", "--out", "again.py"]
    environment = os.environ | {"PYTHONHASHSEED": "1"}  # `scripts` had another
    subprocess.run(command, cwd=copy, env=environment, capture_output=True, check=True)
    assert (copy / "again.py").read_bytes() == (scripts / "train_gpt.py").read_bytes()
    human = (copy / "again_human.py").read_bytes()
    assert human == (scripts / "train_gpt_human.py").read_bytes()


# ---- small packages


def unpacked(path: Path) -> str:
    """The source that a counted file holds."""
    (body,) = re.findall(r"^S=('.*')$", path.read_text("latin-1"), re.MULTILINE)
    return lzma.decompress(ast.literal_eval(body).encode("latin-1")).decode()


def run_counted(folder: Path, human: str) -> subprocess.CompletedProcess[str]:
    path = folder / "counted.py"
    path.write_bytes(export.counted_file(human))
    command = [sys.executable, path.name]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)


def test_a_small_package_becomes_a_file_that_does_the_same(tmp_path: Path) -> None:
    human = one_file(USES_ALL + GUARD, parts=PARTS, more=MORE)
    expected = "[0, 2, 4] Settings(count=3, name='é▁') <class 'int'> é▁\n"
    (tmp_path / "human.py").write_text(human)
    command = [sys.executable, "human.py"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True)
    assert done.stdout == expected
    assert run_counted(tmp_path, human).stdout == expected


def test_a_traceback_and_inspect_show_the_files_own_lines(tmp_path: Path) -> None:
    main = (
        "import inspect\nimport traceback\n"
        "class Held:\n    size = 1\n"
        "def fail(number):\n    raise ValueError(number)\n"
        "def main():\n"
        "    print(inspect.getsource(fail), inspect.getsource(Held))\n"
        "    try:\n        fail(1)\n    except ValueError:\n        print(traceback.format_exc())\n"
        "    fail(2)\n"
    )
    done = run_counted(tmp_path, one_file(main + GUARD))
    assert done.stdout.startswith("def fail(number):raise ValueError(number)\n class Held:")
    assert "in fail\n    def fail(number):raise ValueError(number)" in done.stdout
    assert done.returncode == 1
    assert "ValueError: 2" in done.stderr
    assert "S='" not in done.stdout + done.stderr  # never the packed line


def test_a_traceback_never_shows_the_loaders_line_for_the_files(tmp_path: Path) -> None:
    main = "import no_such_library\ndef main():\n    no_such_library.use()"
    done = run_counted(tmp_path, one_file(main + GUARD))
    assert "ModuleNotFoundError: No module named 'no_such_library'" in done.stderr
    assert "import linecache" not in done.stderr
    assert "S='" not in done.stderr


def test_torch_compiles_what_the_file_holds(tmp_path: Path) -> None:
    # The backend that only traces: a C++ compiler would take minutes for the whole recipe.
    main = (
        "import torch\nSCALE = 3.0\n"
        "def curve(x):\n    return SCALE * x.sin()\n"
        "def main():\n"
        "    compiled = torch.compile(curve, backend='eager', fullgraph=True)\n"
        "    x = torch.arange(4.0)\n    print(torch.equal(compiled(x), curve(x)))\n"
        "    torch.compile(stop, backend='eager', fullgraph=True)(x)\n"
        "def stop(x):\n    return SCALE if x.sum() > 0 else x\n"
    )
    done = run_counted(tmp_path, one_file(main + GUARD))
    assert done.stdout == "True\n"
    assert "def stop(x):return SCALE if x.sum()>0 else x" in done.stderr  # torch's own explanation


def test_a_package_that_cannot_be_exported_is_a_users_error(tmp_path: Path) -> None:
    ignored = shutil.ignore_patterns("__pycache__")
    shutil.copytree(ROOT / "model", tmp_path / "model", ignore=ignored)
    with (tmp_path / "model" / "schedule.py").open("a") as file:
        file.write("\n\nprint('imported')\n")
    line = len((tmp_path / "model" / "schedule.py").read_text().splitlines())
    command = [sys.executable, "-m", "model.export"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stderr.startswith(f"error: model.schedule, line {line}: work at import")
    assert not list(tmp_path.glob("*.py"))


@given(st.binary(max_size=200))
@example(bytes(range(256)))
@example(b"\x00007\x00\x009\x008'\\\r\n\\n")
def test_all_bytes_survive_as_a_string_of_source(data: bytes) -> None:
    source = f"#coding:latin-1\nS='{export.quoted(data)}'\n".encode("latin-1")
    held: dict[str, str] = {}
    exec(compile(source, "held", "exec"), held)
    assert held["S"].encode("latin-1") == data
    assert source.count(b"\n") == 2
    assert b"\r" not in source


def test_a_string_of_source_is_smaller_than_base85() -> None:
    data = lzma.compress(os.urandom(10_000))
    assert len(export.quoted(data)) < 0.85 * len(base64.b85encode(data))
