"""The bench of the log reader measures reading: its logs are such as the reader knows."""

from __future__ import annotations

from pathlib import Path

import pytest

from jobs.bench.records import make_tree, measure
from sweeper.evidence.read import read_records


def test_the_logs_that_it_makes_are_read_as_records(tmp_path: Path) -> None:
    logs = make_tree(tmp_path / "tree", None, 7)
    records = list(read_records([tmp_path / "tree"]))
    assert [record.summary.n for record in records] == [3, 3, 1]
    assert all(not run.excluded for record in records for run in record.runs)
    facts = measure(tmp_path / "tree", logs)
    assert facts["logs"] == 7
    assert facts["bytes"] == sum(log.stat().st_size for log in logs)
    assert min(facts["lines_s"], facts["facts_s"], facts["records_s"]) > 0


def test_logs_that_are_given_are_repeated(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "real" / "a.log").write_text("seed:1\n")
    logs = make_tree(tmp_path / "tree", tmp_path / "real", 4)
    assert [log.read_text() for log in logs] == ["seed:1\n"] * 4
    with pytest.raises(ValueError, match="no logs"):
        make_tree(tmp_path / "other", tmp_path / "tree" / "none", 4)
