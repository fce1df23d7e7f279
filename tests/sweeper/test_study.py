"""Optuna's studies as projections of the ledger: the same on every storage, and made anew alike."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from sweeper.entries import EntryState, Told
from sweeper.errors import UserError
from sweeper.search import SAMPLERS
from sweeper.study import Study, open_storage, repair_journal
from tests.sweeper.postgres import a_postgres
from tests.sweeper.searches import Env, Play, bowl, playing, search_spec

STORAGES = ("sqlite", "journal", "postgresql")
Url = Callable[[Path], str]


@pytest.fixture(scope="module", params=STORAGES)
def url(request: pytest.FixtureRequest) -> Iterator[Url]:
    """Where a test's studies are kept, given its directory."""
    match request.param:
        case "sqlite":
            yield lambda path: f"sqlite:///{path / 'study.sqlite'}"
        case "journal":
            yield lambda path: f"journal:{path / 'study.journal'}"
        case _:
            with a_postgres() as database:
                yield lambda _: database


def everything(study: Study) -> list[dict[str, Any]]:
    """All that Optuna says of its trials, but for its own ids, times and notes to itself."""
    return [
        {
            "number": trial.number,
            "state": trial.state,
            "values": trial.values,
            "params": trial.params,
            "distributions": trial.distributions,
            "intermediate": trial.intermediate_values,
            "constraints": trial.constraints,
            "attributes": trial.user_attrs,
        }
        for trial in study.trials()
    ]


def some_fail(env: Env, seed: int) -> tuple[float, int] | None:
    """A surface with everything in it: failures, what is too large, what is surely worse."""
    if float(env["WARMDOWN_FRAC"]) > 0.85:
        return None
    score, _ = bowl(env, seed)
    return score + 0.01 * (env["WARMDOWN_SHAPE"] == "cosine"), 16_000_000 + seed % 2


STAGES = [
    {"name": "race", "seeds": 2, "trials": 6},
    {"name": "confirm", "seeds": [7, 8], "top": 2},
]


@contextmanager
def searching(root: Path, url: Url, name: str, **changes: Any) -> Iterator[Play]:
    search = {"storage": url(root), "sampler": "tpe"} | changes.pop("search", {})
    spec = search_spec(name=name, stage=STAGES, search=search, **changes)
    with playing(spec, root, some_fail) as play:
        yield play


@pytest.mark.parametrize("after", [5, 1000])
def test_a_study_made_anew_from_the_ledger_equals_the_live_one(
    tmp_path: Path, url: Url, after: int
) -> None:
    with searching(tmp_path, url, f"anew{after}") as play:
        play.go_on(after, slots=3)
        live = {name: everything(study) for name, study in play.planner._studies.items()}
        storage = open_storage(url(tmp_path))
        for study in storage.get_all_studies():
            if study.study_name.startswith(f"anew{after}/"):
                storage.delete_study(study._study_id)
    with searching(tmp_path, url, f"anew{after}") as play:
        anew = {name: everything(study) for name, study in play.planner._studies.items()}
        assert anew == live
        said = {row["state"].name for row in live["race"]}
        assert ("RUNNING" in said) == (after == 5)
        if after > 5:
            assert said == {"COMPLETE", "PRUNED", "FAIL"}
            assert {row["constraints"]["bytes"] for row in live["confirm"]} == {1.0}


def test_a_study_that_says_otherwise_is_made_anew(tmp_path: Path, url: Url) -> None:
    with searching(tmp_path, url, "otherwise") as play:
        play.go_on(6)
        study = play.planner._studies["race"]
        live = everything(study)
        # Somebody has told it what the ledger does not know.
        study._study.add_trial(study._as_trial(replace(study._shown[0], number=len(live))))
    with searching(tmp_path, url, "otherwise") as play:
        assert everything(play.planner._studies["race"]) == live


def test_what_was_asked_for_and_not_entered_is_taken_up(tmp_path: Path, url: Url) -> None:
    with searching(tmp_path, url, "asked") as play:
        play.go_on(3)
        entered = len(play.entries("race"))
        # The driver dies between Optuna's answer and the ledger.
        asked = play.planner._study(play.planner.stage).ask()
        assert asked.number == entered
    with searching(tmp_path, url, "asked") as play:
        play.go_on()
        entries = play.entries("race")
        assert dict(entries[entered].params) == dict(asked.params)
        assert [entry.number for entry in entries] == list(range(6))
        assert len(play.planner._studies["race"].trials()) == 6


def test_a_study_of_another_sweep_is_left_alone(tmp_path: Path, url: Url) -> None:
    with searching(tmp_path / "one", url_at(url, tmp_path), "same") as play:
        play.go_on(2)
        live = everything(play.planner._studies["race"])
    with (
        searching(tmp_path / "two", url_at(url, tmp_path), "same") as play,
        pytest.raises(UserError, match="a study 'same/race' of another sweep"),
    ):
        play.go_on(2)
    with searching(tmp_path / "one", url_at(url, tmp_path), "same") as play:
        assert everything(play.planner._studies["race"]) == live


def url_at(url: Url, path: Path) -> Url:
    return lambda _: url(path)


@pytest.mark.parametrize("sampler", [name for name in SAMPLERS if name != "grid"])
def test_every_sampler_proposes_what_the_space_holds(tmp_path: Path, sampler: str) -> None:
    journal: Url = lambda path: f"journal:{path / 'study.journal'}"  # noqa: E731
    with searching(tmp_path, journal, sampler, search={"sampler": sampler}) as play:
        play.go_on(4)
    # It goes on from where it was, and proposes nothing twice.
    with searching(tmp_path, journal, sampler, search={"sampler": sampler}) as play:
        play.go_on()
        params = [tuple(entry.params.items()) for entry in play.entries("race")]
        assert len(params) == 6
        assert len(set(params)) == len(params)


def test_what_a_search_lacks_room_for_in_time_is_pruned(tmp_path: Path) -> None:
    pruner = {"name": "median", "startup_trials": 2, "interval": 25}
    spec = search_spec(search={"pruner": pruner}, stage=[{"name": "race", "seeds": 2, "trials": 6}])
    with playing(spec, tmp_path, bowl) as play:
        for value in (1.2, 1.2001):
            run = play.planner.next_run()
            assert run is not None
            assert play.planner.report(run, 25, value) is None
            assert play.planner.report(run, 25, 9.0) is None  # of one place the first word counts
            play.end(run, (value, 100))
            second = play.planner.next_run()
            assert second is not None
            assert second.trial == run.trial
            assert play.planner.report(second, 25, 9.0) is None  # only the first seed is pruned
            play.end(second, (value, 100))
        run = play.planner.next_run()
        assert run is not None
        reason = play.planner.report(run, 25, 1.4)
        assert reason == "pruned at 25: 1.4000 is worse than others were there"
        assert play.entries("race")[2].reports == {25: 1.4}


@pytest.mark.parametrize("name", ["median", "successive_halving", "hyperband"])
def test_every_pruner_ends_what_is_far_behind(tmp_path: Path, name: str) -> None:
    pruner = {"name": name, "startup_trials": 1, "by": "step"}
    spec = search_spec(
        search={"pruner": pruner}, stage=[{"name": "race", "seeds": 1, "trials": 16}]
    )
    reasons = []
    with playing(spec, tmp_path, bowl) as play:
        for number in range(16):
            run = play.planner.next_run()
            assert run is not None
            value = 1.1 if number < 8 else 2.0
            reasons.append([play.planner.report(run, place, value) for place in (1, 2, 4, 8)])
            play.end(run, (value, 100))
    assert not any(reasons[0])
    assert any(reason for each in reasons[8:] for reason in each)


# ---- a journal whose writer was killed


LINES = [{"op_code": 0, "worker_id": "w", "study_name": "a", "directions": [1]}, {"op_code": 1}]


@pytest.mark.parametrize(
    "torn", [b'{"op', b'{"op_code": 4}', b"\x00\x00\n", b'{"a": 1}{"b":\n', b""]
)
def test_a_torn_last_line_is_cut_off(tmp_path: Path, torn: bytes) -> None:
    from optuna.storages.journal import JournalFileSymlinkLock

    path = tmp_path / "study.journal"
    whole = b"".join(json.dumps(line).encode() + b"\n" for line in LINES)
    path.write_bytes(whole + torn)
    assert repair_journal(path, JournalFileSymlinkLock(str(path))) == len(torn)
    assert path.read_bytes() == whole
    assert not path.with_name("study.journal.lock").exists()


def test_a_long_torn_line_and_an_empty_journal(tmp_path: Path) -> None:
    from optuna.storages.journal import JournalFileSymlinkLock

    path = tmp_path / "study.journal"
    lock = JournalFileSymlinkLock(str(path))
    for text, left in ((b"x" * 20_000, b""), (b"", b""), (b"{}\n" + b"y" * 9_000, b"{}\n")):
        path.write_bytes(text)
        repair_journal(path, lock)
        assert path.read_bytes() == left


def test_a_search_goes_on_with_a_journal_that_was_torn(tmp_path: Path) -> None:
    journal: Url = lambda path: f"journal:{path / 'study.journal'}"  # noqa: E731
    with searching(tmp_path, journal, "torn") as play:
        play.go_on(5)
        live = everything(play.planner._studies["race"])
    path = tmp_path / "study.journal"
    path.write_bytes(path.read_bytes() + b'{"op_code":5,"wor')
    with searching(tmp_path, journal, "torn") as play:
        assert everything(play.planner._studies["race"]) == live
        play.go_on()
        assert play.planner.done


# ---- what cannot be opened


@pytest.mark.parametrize(
    ("storage", "message"),
    [
        ("nonsense", "search.storage nonsense: Could not parse"),
        ("postgresql+psycopg://me:secret@127.0.0.1:1/none", r"search.storage .*me:\*\*\*@127"),
        ("sqlite:////nowhere/at/all/study.sqlite", "unable to open database file"),
    ],
)
def test_a_storage_that_cannot_be_opened_is_said(storage: str, message: str) -> None:
    if storage.startswith("postgresql"):
        pytest.importorskip("psycopg")
    with pytest.raises(UserError, match=message) as caught:
        open_storage(storage)
    assert "secret" not in str(caught.value)


def test_optuna_is_not_imported_by_those_who_do_not_search() -> None:
    code = "import sweeper.session, sweeper.loop, sweeper.cli, sys; print('optuna' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


def test_nothing_is_written_for_what_is_known_already(tmp_path: Path) -> None:
    spec = search_spec()
    assert spec.search is not None
    path = tmp_path / "study.journal"
    study = Study(open_storage(f"journal:{path}"), "still", spec.search, ["minimize"])
    assert not study.sync([], "uid")
    asked = study.ask()
    told = Told(
        number=0,
        params=asked.params,
        state=EntryState.OPEN,
        values=None,
        intermediate={100: 1.5},
        constraints={},
        attributes={"n": 1},
    )
    study.show(told)
    size = path.stat().st_size
    study.show(told)
    assert path.stat().st_size == size
    study.show(replace(told, state=EntryState.COMPLETE, values=(1.5,)))
    assert path.stat().st_size > size
