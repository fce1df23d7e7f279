"""Where a search's configurations stand: the ledger's runs, stage by stage, and nothing else."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from sweeper.entries import EntryState
from sweeper.racing import Noise
from sweeper.rows import RunState
from sweeper.standings import (
    Standings,
    axes_of,
    evidence_of,
    noise_of,
    read_standings,
    senses_of,
    stages_of_runs,
)
from tests.sweeper.searches import Env, bowl, playing, search_spec
from tests.sweeper.standing_rows import MAX_BYTES, make_row, make_stage


def played(root: Path, runs: int | None = None, **changes: Any) -> list[Standings]:
    with playing(search_spec(**changes), root) as play:
        play.go_on(runs)
        return read_standings(play.ledger)


def test_there_is_a_stage_for_each_of_the_specs_and_a_row_for_each_entry(tmp_path: Path) -> None:
    stages = played(tmp_path)
    assert [stage.rung.name for stage in stages] == ["screen", "race", "confirm"]
    assert [len(stage.rows) for stage in stages] == [8, 3, 2]
    screen, race, confirm = stages
    assert (screen.seeds, race.seeds, confirm.seeds) == ((42,), (42, 314, 999), (7, 8, 9))
    assert [row.entry.number for row in screen.rows] == list(range(8))
    for stage in stages:
        for row in stage.rows:
            assert list(row.runs) == [seed for seed in stage.seeds if seed in row.runs]
            assert set(row.evidence) == set(row.runs) == set(row.ended)
            assert row.bytes_max == 15_900_000
            assert stage.feasible(row) is True


def test_scores_are_those_of_the_runs(tmp_path: Path) -> None:
    with playing(search_spec(), tmp_path) as play:
        play.go_on()
        stages = read_standings(play.ledger)
        env = {trial.name: trial.env for trial in play.ledger.trials()}
    for stage in stages:
        for row in stage.rows:
            assert row.scores() == {seed: bowl(env[row.name], seed)[0] for seed in row.runs}


def test_a_search_that_has_not_begun_has_empty_stages(tmp_path: Path) -> None:
    assert [stage.rows for stage in played(tmp_path, 0)] == [(), (), ()]


def test_what_runs_has_no_evidence_yet(tmp_path: Path) -> None:
    with playing(search_spec(), tmp_path) as play:
        play.go_on(1)
        assert play.planner.next_run() is not None
        first, second = read_standings(play.ledger)[0].rows
    assert (first.state, second.state) == (EntryState.COMPLETE, EntryState.OPEN)
    assert second.runs == {42: RunState.PENDING}
    assert second.evidence == {}
    assert second.bytes_max is None


def test_a_failed_seed_is_there_without_a_score(tmp_path: Path) -> None:
    def second_fails(env: Env, seed: int) -> tuple[float, int] | None:
        return None if seed == 314 else (1.0, 100)

    spec = search_spec(stage=[{"name": "race", "seeds": 3, "trials": 2}])
    with playing(spec, tmp_path, second_fails) as play:
        play.go_on()
        (stage,) = read_standings(play.ledger)
    row = stage.rows[0]
    assert row.state is EntryState.FAILED
    assert row.runs == {42: RunState.FINISHED, 314: RunState.FAILED}
    assert list(row.evidence) == [42]
    assert not stage.eligible(row)
    assert stage.candidates()[0].failed


def test_every_run_is_of_its_stages(tmp_path: Path) -> None:
    with playing(search_spec(), tmp_path) as play:
        play.go_on()
        runs = {(run.trial, run.seed) for run in play.ledger.runs()}
        names = {trial.number: trial.name for trial in play.ledger.trials()}
        found = stages_of_runs(read_standings(play.ledger))
    assert set(found) == {(names[trial], seed) for trial, seed in runs}
    assert set(found.values()) == {"screen", "race", "confirm"}


def test_a_run_that_counts_twice_is_listed_once_under_both(tmp_path: Path) -> None:
    stages = [{"name": "screen", "seeds": 1, "trials": 4}, {"name": "race", "seeds": 2, "top": 1}]
    found = stages_of_runs(played(tmp_path, stage=stages))
    assert sorted(found.values()) == ["race", "screen", "screen", "screen", "screen, race"]


# ---- what may win


@pytest.mark.parametrize(
    ("size", "feasible", "eligible"),
    [(MAX_BYTES, True, True), (MAX_BYTES + 1, False, False), (None, None, True)],
)
def test_the_largest_artifact_decides(
    size: int | None, feasible: bool | None, eligible: bool
) -> None:
    row = make_row(0, {42: 1.0}, size=size)
    stage = make_stage([row])
    assert stage.feasible(row) is feasible
    assert stage.eligible(row) is eligible


@pytest.mark.parametrize("state", [EntryState.OPEN, EntryState.PRUNED, EntryState.FAILED])
def test_only_what_is_complete_may_win(state: EntryState) -> None:
    row = make_row(0, {42: 1.0}, state=state)
    assert not make_stage([row]).eligible(row)


def test_what_is_to_be_large_races_upside_down() -> None:
    (candidate,) = make_stage([make_row(0, {42: 2.0})], sense="maximize").candidates()
    assert candidate.scores == {42: -2.0}


@pytest.mark.parametrize(
    ("result", "values"),
    [
        ({"val_bpb": 1.1, "bytes_total": 5}, (1.1,)),
        ({"val_bpb": 1}, (1.0,)),
        ({"val_bpb": None}, None),
        ({"val_bpb": float("nan")}, None),
        ({"val_bpb": float("inf")}, None),
        ({"val_bpb": "1.1"}, None),
        ({}, None),
    ],
)
def test_evidence_is_a_finite_number(
    result: dict[str, Any], values: tuple[float, ...] | None
) -> None:
    evidence = evidence_of(result, ("val_bpb",))
    assert (None if evidence is None else evidence.values) == values


def test_a_stages_own_objective_is_minimised_unless_the_search_says_otherwise() -> None:
    spec = search_spec(
        search={"directions": ["maximize"]},
        stage=[
            {"name": "screen", "seeds": 1, "trials": 2, "objective": "val_loss"},
            {"name": "race", "seeds": 1, "top": 1},
        ],
    )
    assert spec.search is not None
    assert [senses_of(spec.search, rung) for rung in spec.rungs] == [("minimize",), ("maximize",)]


# ---- as the surrogate and the race see it


def test_axes_are_what_is_searched_with_its_conditions() -> None:
    space = {
        "WARMDOWN_SHAPE": {"choices": ["linear", "cosine"]},
        "PRESET": {"value": "tiny"},
        "LR_FLOOR": {"low": 0.02, "high": 0.1, "when": {"WARMDOWN_SHAPE": "cosine"}},
        "LR": {"low": 1e-4, "high": 1e-2, "log": True, "when": {"WARMDOWN_SHAPE": ["linear"]}},
        "RECUR_START_STEP": {"low": 1000, "high": 3000, "step": 500},
    }
    search = search_spec(search={"space": space}).search
    assert search is not None
    shape, floor, rate, start = axes_of(search)
    assert shape.choices == ("linear", "cosine")
    assert floor.when == ("WARMDOWN_SHAPE", ("cosine",))
    assert (rate.log, rate.when) == (True, ("WARMDOWN_SHAPE", ("linear",)))
    assert (start.low, start.high, start.step, start.whole) == (1000.0, 3000.0, 500.0, True)


def test_the_noise_is_what_was_expected_until_seeds_say_more() -> None:
    search = search_spec(search={"racing": {"sigma": 0.002, "sigma_df": 4}}).search
    assert search is not None
    stage = make_stage([make_row(0, {42: 1.0}), make_row(1, {42: 1.1})])
    assert noise_of(stage, search) == Noise(sigma=0.002, df=4)
    # An effect of every row and seed taken out, four scores have one degree of freedom left, and
    # what is left of them is ±0.01 each.
    rows = [make_row(0, {42: 1.0, 314: 1.2}), make_row(1, {42: 1.1, 314: 1.26})]
    noise = noise_of(make_stage(rows), search)
    assert noise.df == 5
    assert noise.sigma == pytest.approx(((4 * 0.002**2 + 4 * 0.01**2) / 5) ** 0.5)
