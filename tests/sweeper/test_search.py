"""Searches as a user runs them: real drivers, real Ray, a workload that scores by its settings."""

from __future__ import annotations

import json
from collections import Counter
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from sweeper.book import Book
from sweeper.entries import EntryState
from sweeper.ledger import Ledger
from sweeper.rows import AttemptState, RunState
from tests.sweeper.ray_helpers import Driver, Place

SEEDS = (42, 314)
FRESH = (7, 8, 9)
# The fewer iterations, the better the score.
STAGES = """
[[stage]]
name = "screen"
seeds = 1
trials = 6
[[stage]]
name = "race"
seeds = 2
top = 3
[[stage]]
name = "confirm"
seeds = [7, 8, 9]
top = 2
"""
SEARCH = """
[search]
sampler = "tpe"
seed = 3
[search.space]
ITERATIONS = { low = 1, high = 9 }
[search.racing]
sigma = 0.001
"""


def write_search(place: Place, name: str, *tables: str, **changes: Any) -> Path:
    """A spec of the fake workload with these tables of a search behind its own."""
    spec = place.write_spec(name, seeds=SEEDS, trials={}, **changes)
    spec.write_text("\n".join([spec.read_text(), *tables]))
    return spec


def search(place: Place, spec: Path, *options: str) -> Driver:
    return place._start(spec.stem, ("search", str(spec), "--num-cpus=2", *options), {})


def read(place: Place, name: str) -> Ledger:
    return Ledger.open_for_reading(place.sweep(name).ledger)


def test_a_search_killed_and_resumed_names_a_winner_on_fresh_seeds(place: Place) -> None:
    spec = write_search(place, "found", SEARCH, STAGES)
    driver = search(place, spec)
    driver.wait_for_arrivals(4)
    driver.kill()
    with closing(read(place, "found")) as ledger:
        before = {entry.number: dict(entry.params) for entry in Book(ledger).entries("screen")}
    resumed = place.resume("found", "--num-cpus=2")
    assert resumed.wait() == 0, resumed.said
    with closing(read(place, "found")) as ledger:
        runs, book = ledger.runs(), Book(ledger)
        assert {run.state for run in runs} == {RunState.FINISHED}
        finished = Counter(a.run for a in ledger.attempts() if a.state is AttemptState.FINISHED)
        assert finished == Counter(run.id for run in runs)  # each exactly once
        screen, confirm = book.entries("screen"), book.entries("confirm")
    assert len(screen) == 6
    assert {e.number: dict(e.params) for e in screen if e.number in before} == before
    best = min(int(entry.params["ITERATIONS"]) for entry in screen)
    assert confirm[0].params == {"ITERATIONS": best}
    assert {entry.state for entry in confirm} == {EntryState.COMPLETE}
    assert [entry.seeds for entry in confirm] == [FRESH] * len(confirm)
    done = place.call("report", "found", "--root", str(place.root), "--format", "json")
    found = json.loads(done.stdout)["search"]
    assert found["winner"]["params"] == {"ITERATIONS": best}
    # What the workload scores on those seeds: the sample's mean and nothing else.
    expected = sum(1.1 + seed / 1000 + best / 100 for seed in FRESH) / len(FRESH)
    assert found["winner"]["fresh"]["mean"] == pytest.approx(expected)
    assert found["winner"]["fresh"]["low"] < expected < found["winner"]["fresh"]["high"]
    again = place.resume("found", "--num-cpus=2")
    assert again.wait() == 0, again.said
    with closing(read(place, "found")) as ledger:
        assert len(ledger.runs()) == len(runs)


def test_a_run_that_is_behind_on_the_way_is_pruned(place: Place) -> None:
    known = [f'[[trial]]\nname = "i{i}"\n[trial.env]\nITERATIONS = {i}' for i in (1, 2, 9)]
    pruner = '[search.pruner]\nname = "median"\nstartup_trials = 2\n'
    stage = '[[stage]]\nname = "race"\nseeds = 1\ntrials = 3\n'
    spec = write_search(place, "pruned", *known, SEARCH, pruner, stage, env={"VALS": 3})
    driver = search(place, spec)
    assert driver.wait() == 0, driver.said
    with closing(read(place, "pruned")) as ledger:
        entries, runs = Book(ledger).entries("race"), ledger.runs()
    assert [entry.state for entry in entries] == [EntryState.COMPLETE] * 2 + [EntryState.PRUNED]
    assert runs[-1].state is RunState.PRUNED
    assert entries[-1].reason is not None
    assert "worse than others were there" in entries[-1].reason
    assert entries[-1].reports


def test_what_is_no_search_is_told_so(place: Place) -> None:
    spec = place.write_spec("plain", seeds=(1,), trials={"a": {}})
    driver = search(place, spec)
    assert driver.wait() == 2
    assert "no [search] in it; `sweeper run` runs what it lists" in driver.said
