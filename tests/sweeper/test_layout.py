"""Paths: hostile trial names stay inside the sweep and apart from each other."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sweeper.layout import DEFAULT_ROOT, ROOT_NAME, AttemptDir, SweepDir, root_from
from sweeper.stages import Stage

HOSTILE = [
    "plain",
    "linear to 0",
    "../../etc/passwd",
    "/absolute",
    "a/b/c",
    "..",
    ".",
    "größe 日本 🙂",
    "日本",
    "   ",
    "-",
    "--help",
    "a\\b",
    "$(touch x); `id` | 'q' \"q\"",
    "x" * 80,
    "null\x00byte",
    "line\nbreak",
]


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_name_stays_inside_the_sweep(tmp_path: Path, name: str) -> None:
    sweep = SweepDir(tmp_path / "sweep")
    attempt = sweep.attempt(7, name, 42, 1).path
    assert attempt.resolve() == attempt
    relative = attempt.relative_to(sweep.path)
    assert len(relative.parts) == 4
    assert (relative.parts[0], *relative.parts[2:]) == ("attempts", "seed42", "1")
    assert relative.parts[1].startswith("007")
    assert len(relative.parts[1]) <= 44
    attempt.mkdir(parents=True)


@given(st.lists(st.text(max_size=80), min_size=2, max_size=6))
def test_trials_never_share_a_directory(names: list[str]) -> None:
    sweep = SweepDir(Path("/runs/sweep"))
    paths = [sweep.attempt(number, name, 1, 1).path for number, name in enumerate(names)]
    assert len({str(path).lower() for path in paths}) == len(names)
    assert all(part not in ("", ".", "..") for path in paths for part in path.parts[1:])


def test_an_empty_slug_leaves_the_number() -> None:
    sweep = SweepDir(Path("/runs/sweep"))
    assert sweep.attempt(3, "日本", 1, 2).path == Path("/runs/sweep/attempts/003/seed1/2")
    assert sweep.attempt(3, "a b", 1, 2).path == Path("/runs/sweep/attempts/003-a-b/seed1/2")


def test_seeds_and_attempts_have_directories_of_their_own() -> None:
    sweep = SweepDir(Path("/runs/sweep"))
    paths = {sweep.attempt(0, "a", seed, n).path for seed in (1, 11, 111) for n in (1, 11)}
    assert len(paths) == 6


def test_the_logs_of_one_rank_are_found(tmp_path: Path) -> None:
    attempt = AttemptDir(tmp_path)
    assert attempt.rank_logs(0, "stderr") == []
    for rank in (1, 10):
        folder = attempt.logs / "ranks" / "none_abc" / "attempt_0" / str(rank)
        folder.mkdir(parents=True)
        (folder / "stderr.log").write_text(f"of rank {rank}")
    assert [path.read_text() for path in attempt.rank_logs(1, "stderr")] == ["of rank 1"]
    assert attempt.rank_logs(1, "stdout") == []


def test_the_launches_of_one_attempt_share_what_it_is_and_not_how_they_ended() -> None:
    attempt = AttemptDir(Path("/a"))
    launches = [attempt.of(stage, n) for stage in Stage for n in (1, 2)]
    assert {launch.result for launch in launches} == {Path("/a/result.json")}
    assert {launch.events for launch in launches} == {Path("/a/events.jsonl")}
    for paths in (
        {launch.request for launch in launches},
        {launch.stderr for launch in launches},
        {launch.logs for launch in launches},
    ):
        assert len(paths) == len(launches)
    assert [attempt.of(stage).exit.name for stage in Stage] == [
        *("exit.json", "exit.train.json", "exit.pack.json", "exit.json")
    ]
    assert attempt == attempt.of(Stage.ALL)
    assert (attempt.request.name, attempt.logs.name) == ("request.json", "logs")
    assert attempt.of(Stage.PACK, 2).logs == Path("/a/logs/pack.2")


def test_a_stage_that_is_launched_again_forgets_its_own_end_alone(tmp_path: Path) -> None:
    ends = [AttemptDir(tmp_path).of(stage).exit for stage in (Stage.PACK, Stage.SCORE)]
    result = AttemptDir(tmp_path).result
    for path in (*ends, result):
        path.touch()
    AttemptDir(tmp_path).of(Stage.PACK, 2).forget_end()
    assert [path.exists() for path in (*ends, result)] == [False, True, True]
    AttemptDir(tmp_path).of(Stage.SCORE, 2).forget_end()
    assert [path.exists() for path in (*ends, result)] == [False, False, False]
    AttemptDir(tmp_path).of(Stage.SCORE).forget_end()


def test_the_root_is_the_argument_then_the_environment_then_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv(ROOT_NAME, raising=False)
    assert root_from(None) == tmp_path / DEFAULT_ROOT
    monkeypatch.setenv(ROOT_NAME, "elsewhere")
    assert root_from(None) == tmp_path / "elsewhere"
    assert root_from("given") == tmp_path / "given"
    assert root_from("/absolute") == Path("/absolute")
