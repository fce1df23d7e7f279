"""`sweeper data` as a user runs it: in a process of its own."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
Data = Callable[..., subprocess.CompletedProcess[str]]


def run_data(*arguments: object, **environment: str) -> subprocess.CompletedProcess[str]:
    """`python -m jobs.data` with these arguments, until it ends."""
    return subprocess.run(
        [sys.executable, "-m", "jobs.data", *map(str, arguments)],
        cwd=ROOT,
        env=os.environ | environment,
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
    )


def assert_refused(done: subprocess.CompletedProcess[str], *words: str) -> None:
    """One line on stderr that begins with `error:`, exit code 2, no traceback."""
    assert done.returncode == 2, done.stderr
    error = done.stderr.strip().splitlines()[-1]
    assert error.startswith("error: "), done.stderr
    assert "Traceback" not in done.stderr
    for word in words:
        assert word in error


@pytest.fixture(scope="session")
def sample(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data directory made by `sweeper data sample`; its path is hostile on purpose."""
    out = tmp_path_factory.mktemp("sample") / "größe und platz"
    done = run_data("sample", "--vocab-size", 512, "--out", out)
    assert done.returncode == 0, done.stderr
    return out
