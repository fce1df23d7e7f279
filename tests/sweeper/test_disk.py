"""Room on the disk: how much is needed, and what goes when a run has finished."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from sweeper import disk


def test_room_is_short_when_the_runs_at_work_and_the_next_may_fill_it(tmp_path: Path) -> None:
    free = disk.free_bytes(tmp_path)
    third = free // 3 - (64 << 20)
    enough = {"run_bytes": third, "at_work": 2, "reserve_bytes": 0}
    assert disk.shortage(tmp_path, **enough) is None
    for more in ({"at_work": 3}, {"reserve_bytes": free}, {"run_bytes": free}):
        said = disk.shortage(tmp_path, **(enough | more))
        assert said is not None
        assert str(tmp_path) in said
        assert "make room there" in said


def test_the_size_of_a_run_is_that_of_its_files_links_apart(tmp_path: Path) -> None:
    (tmp_path / "logs").mkdir()
    (tmp_path / "logs" / "a").write_bytes(b"x" * 100)
    (tmp_path / "b").write_bytes(b"x" * 23)
    assert disk.size_of(tmp_path) == 123
    assert disk.size_of(tmp_path / "none") == 0


@pytest.mark.parametrize(
    ("patterns", "left"),
    [
        ((), ["checkpoint.pt", "final.pt", "result.json"]),
        (("checkpoint.pt",), ["final.pt", "result.json"]),
        (("*.pt",), ["result.json"]),
        (("nothing*",), ["checkpoint.pt", "final.pt", "result.json"]),
    ],
)
def test_files_go_by_pattern(tmp_path: Path, patterns: tuple[str, ...], left: list[str]) -> None:
    run = tmp_path / "run"
    run.mkdir()
    kept = tmp_path / "kept.pt"
    kept.write_bytes(b"mine")
    for name in ("checkpoint.pt", "final.pt", "result.json"):
        (run / name).write_bytes(b"x" * 10)
    os.symlink(kept, run / "link.pt")
    assert disk.remove_matching(run, patterns) == 10 * (3 - len(left))
    assert sorted(path.name for path in run.iterdir() if not path.is_symlink()) == left
    assert kept.exists()
