"""The bench of scheduling: a small one, whole, and what its numbers must add up to."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_a_small_bench_counts_every_run(tmp_path: Path) -> None:
    out = tmp_path / "out.json"
    done = subprocess.run(
        [
            *(sys.executable, "-m", "jobs.bench.scheduling", "--runs", "4", "--seconds", "0.1"),
            *("--slots", "2", "--directory", str(tmp_path / "work"), "--json", str(out)),
        ],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    facts = json.loads(out.read_text())
    assert (facts["runs"], facts["slots"], facts["ideal_s"]) == (4, 2, 0.2)
    (row,) = facts["rows"]
    assert (row["what"], row["slots_used"]) == ("sweeper", 2)
    assert 0 < row["utilisation"] < 1
    assert row["gap_s"]
    assert row["what"] in done.stdout
