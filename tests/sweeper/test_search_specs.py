"""The searches that come with the project, played to their end without a cluster."""

from __future__ import annotations

from pathlib import Path

import pytest

from sweeper.aggregate import report
from sweeper.entries import EntryState
from sweeper.findings import find
from sweeper.spec import load_spec
from tests.sweeper.conftest import ROOT
from tests.sweeper.searches import Env, playing

SPECS = ROOT / "jobs" / "specs"


def surface(env: Env, seed: int) -> tuple[float, int]:
    """Smooth in what both searches look for, best near the record's settings."""
    score = 1.09 + 0.01 * (float(env["WARMDOWN_FRAC"]) - 0.667) ** 2 + 1e-6 * (seed % 10)
    score += 0.002 * (env["WARMDOWN_SHAPE"] != "linear")
    score += 0.01 * (float(env["RECUR_START_FRAC"]) - 0.5) ** 2
    return score, 200_000


@pytest.mark.parametrize(
    ("name", "most"), [("search_demo", 8 + 6 + 6), ("warmdown_recurrence", 24 + 18 + 6 + 3)]
)
def test_a_search_of_the_project_ends_with_a_confirmed_winner(
    tmp_path: Path, name: str, most: int
) -> None:
    with playing(load_spec(SPECS / f"{name}.toml"), tmp_path, surface) as play:
        assert play.go_on() <= most
        assert play.planner.done
        screen = play.entries("screen")
        assert all(entry.state is EntryState.COMPLETE for entry in screen)
        # The record's settings are tried before anything is proposed.
        first = play.ledger.trials()[0]
        assert first.name == "record-screen"
        assert first.env["WARMDOWN_SHAPE"] == "linear"
        winner = find(play.ledger).winner
        assert winner is not None
        assert winner.fresh is not None
        assert winner.fresh.n == 3
        assert winner.fresh.low is not None
    assert "on seeds that chose nothing" in report(play.sweep, "table")
