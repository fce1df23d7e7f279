"""What a search does next, by a real ledger and real studies; only the runs end at once."""

from __future__ import annotations

from pathlib import Path

import pytest

from sweeper.entries import EntryState
from sweeper.rows import RunState
from tests.sweeper.searches import Env, Play, bowl, playing, search_spec, states

SEEDS = (42, 314, 999)
FRESH = (7, 8, 9)


def runs_of(play: Play) -> list[tuple[str, int]]:
    """Every run, as trial and seed, in the order in which they were asked for."""
    names = {trial.number: trial.name for trial in play.ledger.trials()}
    return [(names[run.trial], run.seed) for run in play.ledger.runs()]


def seeds_of(play: Play) -> dict[str, list[int]]:
    """Each trial's seeds, in the order in which they were asked for."""
    seeds: dict[str, list[int]] = {}
    for name, seed in runs_of(play):
        seeds.setdefault(name, []).append(seed)
    return seeds


def test_a_search_screens_races_and_confirms(tmp_path: Path) -> None:
    with playing(search_spec(), tmp_path) as play:
        play.go_on()
        assert play.planner.done
        screen, race, confirm = map(play.entries, ("screen", "race", "confirm"))
        assert [entry.state for entry in screen] == [EntryState.COMPLETE] * 8
        assert len(race) == 3
        assert len(confirm) <= 2
        # What goes on is the best of the stage before, and it is the same configurations.
        settings = [dict(entry.params) for entry in screen]
        assert all(dict(entry.params) in settings for entry in race)
        best = min(race, key=lambda e: abs(float(e.params["WARMDOWN_FRAC"]) - 0.667))
        assert best.params == confirm[0].params
        # The screen is short, the others are whole.
        env = {trial.number: trial.env for trial in play.ledger.trials()}
        assert {env[entry.trial].get("ITERATIONS") for entry in screen} == {"100"}
        assert {env[entry.trial].get("ITERATIONS") for entry in race} == {None}
        # Fresh seeds were used for nothing else, and those before never fresh ones.
        seeds = seeds_of(play)
        assert all(seeds[trial] == [42] for trial in seeds if trial.endswith("-screen"))
        assert tuple(seeds[play.planner.stage.rows[0].name][-3:]) == FRESH
        assert [entry.seeds for entry in confirm] == [FRESH] * len(confirm)


def test_every_configuration_has_its_seeds_in_the_one_order(tmp_path: Path) -> None:
    spec = search_spec(stage=[{"name": "race", "seeds": 3, "trials": 5}])
    with playing(spec, tmp_path) as play:
        play.go_on()
        assert all(seeds == list(SEEDS)[: len(seeds)] for seeds in seeds_of(play).values())


def test_what_is_surely_worse_gets_no_more_seeds_and_keeps_its_evidence(tmp_path: Path) -> None:
    def cliff(env: Env, seed: int) -> tuple[float, int]:
        return (1.0 if env["WARMDOWN_SHAPE"] == "linear" else 1.5) + seed * 1e-7, 100

    spec = search_spec(stage=[{"name": "race", "seeds": 3, "trials": 10}])
    with playing(spec, tmp_path, cliff) as play:
        play.go_on()
        entries = play.entries("race")
        stopped = [entry for entry in entries if entry.state is EntryState.PRUNED]
        assert stopped
        for entry in stopped:
            assert entry.params["WARMDOWN_SHAPE"] == "cosine"
            assert entry.seeds == SEEDS[: len(entry.seeds)]
            assert 0 < len(entry.seeds) < 3
            assert entry.reason is not None
        assert all(
            entry.state is EntryState.COMPLETE
            for entry in entries
            if entry.params["WARMDOWN_SHAPE"] == "linear"
        )


def test_what_is_too_large_does_not_go_on(tmp_path: Path) -> None:
    def heavy(env: Env, seed: int) -> tuple[float, int] | None:
        late = float(env["WARMDOWN_FRAC"]) > 0.5
        # The better ones do not fit.
        return (1.0 if late else 1.1) + seed * 1e-7, 16_000_001 if late else 16_000_000

    with playing(search_spec(), tmp_path, heavy) as play:
        play.go_on()
        race = play.entries("race")
        assert race
        assert all(float(entry.params["WARMDOWN_FRAC"]) <= 0.5 for entry in race)


def test_nothing_that_fits_ends_a_search_and_says_so(tmp_path: Path) -> None:
    with playing(search_spec(), tmp_path, lambda env, seed: (1.0, 20_000_000)) as play:
        assert play.go_on() == 8
        assert play.planner.done
        assert "no configuration has finished within the budget of bytes" in play.notes[-1]


def test_a_failed_seed_fails_its_configuration_and_is_not_dropped(tmp_path: Path) -> None:
    spec = search_spec(stage=[{"name": "race", "seeds": 3, "trials": 3}])

    def second_fails(env: Env, seed: int) -> tuple[float, int] | None:
        return None if seed == 314 else (1.0, 100)

    with playing(spec, tmp_path, second_fails) as play:
        assert play.go_on() == 6
        entries = play.entries("race")
        assert {entry.state for entry in entries} == {EntryState.FAILED}
        assert entries[0].reason == "seed 314: loss is nan"
        assert entries[0].seeds == (42,)
        assert states(play.ledger).count(RunState.FAILED) == 3


def test_listed_configurations_are_tried_first_under_their_names(tmp_path: Path) -> None:
    known = {"WARMDOWN_SHAPE": "linear", "WARMDOWN_FRAC": 0.667, "RECUR_START_STEP": 3000}
    spec = search_spec(trial=[{"name": "record", "env": known}])
    with playing(spec, tmp_path) as play:
        play.go_on()
        names = [name for name, _ in runs_of(play)]
        assert names[:2] == ["record-screen", "t1-screen"]
        assert "record" in names  # it is nearly the best there is, so it went on


def test_a_grid_is_tried_whole_and_once(tmp_path: Path) -> None:
    space = {
        "WARMDOWN_SHAPE": {"choices": ["linear", "cosine"]},
        "WARMDOWN_FRAC": {"low": 0.4, "high": 0.8, "step": 0.2},
        "RECUR_START_STEP": {"value": 2000},
    }
    spec = search_spec(
        search={"space": space, "sampler": "grid"}, stage=[{"name": "race", "seeds": 1}]
    )
    with playing(spec, tmp_path) as play:
        assert play.go_on() == 6
        assert len({tuple(entry.params.items()) for entry in play.entries("race")}) == 6


def test_what_the_sampler_repeats_is_not_run_again(tmp_path: Path) -> None:
    space = {"WARMDOWN_SHAPE": {"choices": ["linear", "cosine"]}}
    spec = search_spec(
        search={"space": space, "sampler": "random"},
        stage=[{"name": "race", "seeds": 2, "trials": 30}],
    )

    def flat(env: Env, seed: int) -> tuple[float, int]:
        return 1.0 + seed * 1e-6, 100

    with playing(spec, tmp_path, flat) as play:
        assert play.go_on() == 4
        assert len(play.entries("race")) == 30
        assert play.planner.done


@pytest.mark.parametrize("budget", [6, 9, 14, 40])
def test_a_budget_of_runs_is_kept_with_the_later_stages_in_it(tmp_path: Path, budget: int) -> None:
    stages = [
        {"name": "race", "seeds": 2},
        {"name": "confirm", "seeds": [7, 8], "top": 1},
    ]
    spec = search_spec(search={"budget": {"runs": budget}}, stage=stages)
    with playing(spec, tmp_path) as play:
        assert budget - 1 <= play.go_on() <= budget
        assert play.planner.done
        assert [entry.state for entry in play.entries("confirm")] == [EntryState.COMPLETE]


def test_a_budget_of_runs_alone_is_divided(tmp_path: Path) -> None:
    with playing(search_spec(search={"budget": {"runs": 24}}, stage=[]), tmp_path) as play:
        assert play.go_on() <= 24
        assert [stage.rung.name for stage in play.planner._stages] == ["screen", "race", "confirm"]
        confirm = play.entries("confirm")
        assert [entry.state for entry in confirm] == [EntryState.COMPLETE]
        assert not set(confirm[0].seeds) & set(SEEDS)


def test_a_number_of_trials_ends_a_search(tmp_path: Path) -> None:
    stage = [{"name": "race", "seeds": 1}]
    with playing(search_spec(search={"budget": {"trials": 5}}, stage=stage), tmp_path) as play:
        assert play.go_on() == 5


def test_a_search_has_to_end() -> None:
    with pytest.raises(ValueError, match="give trials, runs, gpu_hours or usd"):
        search_spec(stage=[{"name": "race", "seeds": 1}])


@pytest.mark.parametrize(
    ("budget", "cost"),
    [({"gpu_hours": 3.0}, None), ({"usd": 6.0}, {"usd_per_gpu_hour": 2.0})],
)
def test_time_and_money_end_a_search(
    tmp_path: Path, budget: dict[str, float], cost: dict[str, float] | None
) -> None:
    """Runs of an hour on one GPU each; one of three is kept for the seed that confirms."""
    stages = [{"name": "race", "seeds": 1}, {"name": "confirm", "seeds": [7], "top": 1}]
    spec = search_spec(search={"budget": budget}, stage=stages, cost=cost)

    def in_an_hour(play: Play) -> None:
        play.ledger.write(
            lambda: play.ledger.db.execute("UPDATE stages SET gpus = '0', ended = launched + 3600")
        )

    with playing(spec, tmp_path) as play:
        while play.go_on(1):
            in_an_hour(play)
        assert play.planner.done
        assert len(runs_of(play)) == 3
        assert [entry.state for entry in play.entries("confirm")] == [EntryState.COMPLETE]
        assert len(play.entries("race")) == 2


@pytest.mark.parametrize("slots", [1, 3])
@pytest.mark.parametrize("after", range(0, 24, 3))
def test_a_driver_may_die_anywhere(tmp_path: Path, after: int, slots: int) -> None:
    spec = search_spec(search={"sampler": "tpe"})
    with playing(spec, tmp_path) as play:
        done = play.go_on(after, slots=slots)
    with playing(spec, tmp_path) as play:
        before = [run.state for run in play.ledger.runs()]
        params = [dict(entry.params) for entry in play.entries("screen")]
        play.go_on(slots=slots)
        assert play.planner.done
        assert before.count(RunState.FINISHED) == done
        assert [dict(entry.params) for entry in play.entries("screen")][: len(params)] == params
        assert len(play.entries("screen")) == 8
        runs = runs_of(play)
        assert len(set(runs)) == len(runs)
        assert set(states(play.ledger)) == {RunState.FINISHED}
    with playing(spec, tmp_path) as play:
        assert play.planner.done
        assert play.go_on() == 0


def test_more_budget_goes_on_with_a_search_of_one_stage(tmp_path: Path) -> None:
    stages = [{"name": "race", "seeds": 1}]
    with playing(search_spec(search={"budget": {"runs": 4}}, stage=stages), tmp_path) as play:
        assert play.go_on() == 4
    with playing(search_spec(search={"budget": {"runs": 6}}, stage=stages), tmp_path) as play:
        assert play.go_on() == 2


def test_several_objectives_end_in_a_front(tmp_path: Path) -> None:
    def trade(env: Env, seed: int) -> tuple[float, int]:
        share = float(env["WARMDOWN_FRAC"])
        return 1.0 + share, int(1e6 * (2 - share))

    spec = search_spec(
        search={"objective": ["val_bpb", "bytes_total"]},
        stage=[
            {"name": "race", "seeds": 2, "trials": 6},
            {"name": "confirm", "seeds": [7], "top": 4},
        ],
    )
    with playing(spec, tmp_path, trade) as play:
        assert play.go_on() == 16
        assert len(play.entries("confirm")) == 4


def test_a_search_may_look_for_the_most(tmp_path: Path) -> None:
    stages = [
        {"name": "race", "seeds": 1, "trials": 8},
        {"name": "confirm", "seeds": [7], "top": 1},
    ]
    spec = search_spec(search={"directions": ["maximize"]}, stage=stages)
    with playing(spec, tmp_path, bowl) as play:
        play.go_on()
        race, (chosen,) = play.entries("race"), play.entries("confirm")
        score = {e.number: bowl(play.planner.ledger.trials()[e.trial].env, 42)[0] for e in race}
        assert chosen.params == race[max(score, key=lambda number: score[number])].params
