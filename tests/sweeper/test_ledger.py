"""The ledger: what was committed is there, whoever dies; what is there cannot contradict itself."""

from __future__ import annotations

import sqlite3
import subprocess
import sys
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from sweeper.errors import UserError
from sweeper.ledger import Ledger
from sweeper.rows import AttemptState, RunRow, RunState
from sweeper.schema import SCHEMA_VERSION
from sweeper.spec import SweepSpec
from sweeper.stages import Stage
from tests.sweeper.conftest import ROOT, make_spec, result_facts, wait_until


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A ledger's path; hostile on purpose, since it becomes part of a URI."""
    directory = tmp_path / "größe & platz?#%20"
    directory.mkdir()
    return directory / "ledger.sqlite"


def new_ledger(path: Path, spec: SweepSpec | None = None) -> Ledger:
    return Ledger.open_for_writing(path, spec or make_spec())


def launch(ledger: Ledger, run: RunRow, number: int = 1) -> int:
    return ledger.launched(run, number=number, path=f"a/{run.id}/{number}", host="box", gpus="0,1")


# ---- a new one


def test_a_new_ledger_holds_every_run_seed_by_seed(path: Path) -> None:
    with closing(new_ledger(path)) as ledger:
        # All trials of the first seed come first, so that a sweep that is cut short compares.
        assert [(run.seed, run.trial) for run in ledger.runs()] == [
            *((42, 0), (42, 1), (314, 0), (314, 1), (999, 0), (999, 1))
        ]
        assert {run.state for run in ledger.runs()} == {RunState.PENDING}
        assert ledger.attempts() == []


def test_a_new_ledger_says_what_was_asked(path: Path) -> None:
    spec = make_spec()
    with closing(new_ledger(path, spec)) as ledger:
        assert ledger.spec == spec
        assert [(trial.number, trial.name) for trial in ledger.trials()] == [
            (0, "low"),
            (1, "high"),
        ]
        assert [trial.env for trial in ledger.trials()] == [
            spec.trial_env(trial) for trial in spec.trials
        ]
        assert [trial.config_hash for trial in ledger.trials()] == [
            spec.config_hash(trial) for trial in spec.trials
        ]


def test_sweeps_of_the_same_name_are_told_apart(tmp_path: Path) -> None:
    uids = []
    for name in ("a", "b"):
        with closing(new_ledger(tmp_path / f"{name}.sqlite")) as ledger:
            uids.append(ledger.uid)
    assert uids[0] != uids[1]


# ---- what happens


def test_a_launch_is_one_fact(path: Path) -> None:
    with closing(new_ledger(path)) as ledger:
        run = ledger.runs()[2]
        attempt = launch(ledger, run)
        (row,) = ledger.attempts()
        assert (row.id, row.run, row.number, row.state) == (
            *(attempt, run.id, 1),
            AttemptState.LAUNCHED,
        )
        assert (row.path, row.host, row.gpus) == (f"a/{run.id}/1", "box", "0,1")
        assert (row.ended, row.exit_code, row.result, row.message) == (None, None, None, None)
        states = [other.state for other in ledger.runs()]
        assert states.count(RunState.RUNNING) == 1
        assert states[2] is RunState.RUNNING


def test_an_end_is_one_fact(path: Path) -> None:
    with closing(new_ledger(path)) as ledger:
        run = ledger.runs()[0]
        first = launch(ledger, run)
        ledger.ended(
            *(first, AttemptState.CRASHED, RunState.PENDING),
            exit_code=-9,
            message="größe",
            traceback="Traceback",
        )
        assert ledger.runs()[0].state is RunState.PENDING
        second = launch(ledger, run, 2)
        facts = result_facts()
        ledger.ended(second, AttemptState.FINISHED, RunState.FINISHED, exit_code=0, result=facts)
        crashed, finished = ledger.attempts(run.id)
        assert (crashed.state, crashed.exit_code) == (AttemptState.CRASHED, -9)
        assert (crashed.message, crashed.traceback, crashed.result) == ("größe", "Traceback", None)
        assert (finished.state, finished.result) == (AttemptState.FINISHED, facts)
        assert finished.ended is not None
        assert finished.ended >= finished.launched
        assert ledger.runs()[0].state is RunState.FINISHED
        assert ledger.attempts(ledger.runs()[1].id) == []


def test_a_run_finishes_once(path: Path) -> None:
    with closing(new_ledger(path)) as ledger:
        run = ledger.runs()[0]
        first, second = launch(ledger, run, 1), launch(ledger, run, 2)
        ledger.ended(first, AttemptState.FINISHED, RunState.FINISHED, result=result_facts())
        with pytest.raises(sqlite3.IntegrityError, match="UNIQUE"):
            ledger.ended(
                second, AttemptState.FINISHED, RunState.PENDING, result=result_facts(val_bpb=9.9)
            )
        # The refused transaction has left nothing of itself.
        assert [row.state for row in ledger.attempts()] == [
            AttemptState.FINISHED,
            AttemptState.LAUNCHED,
        ]
        assert ledger.runs()[0].state is RunState.FINISHED


def test_an_attempt_is_launched_once(path: Path) -> None:
    with closing(new_ledger(path)) as ledger:
        pending, run = ledger.runs()[:2]
        launch(ledger, run, 1)
        ledger.ended(1, AttemptState.CRASHED, RunState.PENDING)
        with pytest.raises(sqlite3.IntegrityError, match="UNIQUE"):
            launch(ledger, run, 1)
        assert len(ledger.attempts()) == 1
        assert {row.state for row in ledger.runs()} == {RunState.PENDING}
        launch(ledger, pending, 1)


def test_failed_runs_can_be_opened_again(path: Path) -> None:
    with closing(new_ledger(path)) as ledger:
        ends = {0: RunState.FAILED, 1: RunState.FINISHED, 2: RunState.FAILED}
        for index, state in ends.items():
            attempt = launch(ledger, ledger.runs()[index])
            ledger.ended(attempt, AttemptState.CRASHED, state)
        assert ledger.reopen_failed() == 2
        assert ledger.reopen_failed() == 0
        states = [run.state for run in ledger.runs()[:3]]
        assert states == [RunState.PENDING, RunState.FINISHED, RunState.PENDING]
        assert len(ledger.attempts()) == 3


@pytest.mark.parametrize("state", RunState)
def test_a_run_is_over_when_nothing_more_will_happen(state: RunState) -> None:
    assert state.over == (state not in (RunState.PENDING, RunState.RUNNING))


# ---- once more


def test_the_same_spec_goes_on_where_it_was(path: Path) -> None:
    with closing(new_ledger(path)) as ledger:
        uid = ledger.uid
        attempt = launch(ledger, ledger.runs()[0])
        ledger.ended(attempt, AttemptState.FINISHED, RunState.FINISHED, result=result_facts())
        before = (ledger.trials(), ledger.runs(), ledger.attempts())
    # Limits and places are of the machine, not of the runs.
    changed = make_spec(
        limits={"max_seconds": 9.0}, resources={"gpus_per_run": 0, "max_parallel": 1}
    )
    for spec in (make_spec(), changed):
        with closing(new_ledger(path, spec)) as ledger:
            assert ledger.uid == uid
            assert (ledger.trials(), ledger.runs(), ledger.attempts()) == before
            assert ledger.spec == spec


LOW, HIGH = {"name": "low", "env": {"LR": 0.1}}, {"name": "high", "env": {"LR": 0.2}}


@pytest.mark.parametrize(
    ("changes", "what"),
    [
        ({"seeds": [42, 314]}, r"seeds \(42, 314, 999\) -> \(42, 314\)"),
        ({"seeds": [42, 314, 999, 7]}, "seeds"),
        ({"seeds": [314, 42, 999]}, "seeds"),
        ({"trial": [LOW, {"name": "high", "env": {"LR": 0.3}}]}, "trial 'high'"),
        ({"trial": [LOW]}, "trial 'high'"),
        ({"trial": [LOW, HIGH, {"name": "more", "env": {"LR": 0.3}}]}, "trial 'more'"),
        ({"trial": [LOW, {"name": "hi", "env": {"LR": 0.2}}]}, "trial 'hi"),
        ({"env": {"ITERATIONS": 7}}, "trial '"),
        ({"workload": {"module": "other"}}, "trial '"),
        # On other hardware a run of ten minutes makes other steps.
        ({"resources": {"gpus_per_run": 4}}, "resources.gpus_per_run 0 -> 4; resources.processes"),
        (
            {"resources": {"gpus_per_run": 0, "accelerator": "A100"}},
            "resources.accelerator None -> A100",
        ),
    ],
)
def test_another_spec_is_refused_with_what_changed(
    path: Path, changes: dict[str, Any], what: str
) -> None:
    new_ledger(path).close()
    with pytest.raises(UserError, match=rf"'small' exists with another spec \({what}") as caught:
        new_ledger(path, make_spec(**changes))
    assert "another name" in str(caught.value)
    new_ledger(path).close()


MORE = {"name": "more", "env": {"LR": 0.3}}


def test_a_sweep_is_given_more_seeds_and_trials_only_when_asked(path: Path) -> None:
    with closing(new_ledger(path)) as ledger:
        attempt = launch(ledger, ledger.runs()[0])
        ledger.ended(attempt, AttemptState.FINISHED, RunState.FINISHED, result=result_facts())
        before = ledger.runs()
    more = make_spec(seeds=[7, 42, 314, 999], trial=[MORE, HIGH, LOW])
    with pytest.raises(UserError, match="--extend"):
        new_ledger(path, more)
    for _ in range(2):
        with closing(Ledger.open_for_writing(path, more, extend=True)) as ledger:
            assert ledger.runs()[:6] == before
            assert [trial.name for trial in ledger.trials()] == ["low", "high", "more"]
            added = [(run.seed, run.trial, run.state) for run in ledger.runs()[6:]]
            assert added == [
                (seed, trial, RunState.PENDING)
                for seed, trial in [(7, 2), (7, 1), (7, 0), (42, 2), (314, 2), (999, 2)]
            ]
    new_ledger(path, more).close()


@pytest.mark.parametrize(
    ("changes", "lacking"),
    [
        ({"seeds": [42, 7]}, "seed 314, seed 999"),
        ({"trial": [LOW, MORE]}, "trial 'high' as it was"),
        ({"trial": [LOW, {"name": "high", "env": {"LR": 0.3}}]}, "trial 'high' as it was"),
    ],
)
def test_an_extension_takes_nothing_away(path: Path, changes: dict[str, Any], lacking: str) -> None:
    with closing(new_ledger(path)) as ledger:
        before = (ledger.spec, ledger.trials(), ledger.runs())
    with pytest.raises(UserError, match=f"only be given more: the spec lacks {lacking}"):
        Ledger.open_for_writing(path, make_spec(**changes), extend=True)
    with closing(new_ledger(path)) as ledger:
        assert (ledger.spec, ledger.trials(), ledger.runs()) == before


def test_notes_are_kept_in_order(path: Path) -> None:
    with closing(new_ledger(path)) as ledger:
        ledger.note("quarantine", "box")
        ledger.note("pause", "full")
    with closing(Ledger.open_for_reading(path)) as view:
        assert [(note.kind, note.text) for note in view.notes()] == [
            *(("quarantine", "box"), ("pause", "full"))
        ]


def test_a_full_disk_is_waited_for(path: Path) -> None:
    with closing(new_ledger(path)) as ledger:
        database = sqlite3.connect(path)
        (pages,) = database.execute("PRAGMA page_count").fetchone()
        database.close()
        ledger._db.execute(f"PRAGMA max_page_count = {pages}")  # SQLite's own idea of a full disk
        said = []

        def wait(error: sqlite3.OperationalError) -> None:
            said.append(str(error))
            if len(said) == 2:
                ledger._db.execute("PRAGMA max_page_count = 100000")

        ledger.on_no_room = wait
        ledger.note("long", "x" * 100_000)
        assert said == ["database or disk is full"] * 2
        assert [note.kind for note in ledger.notes()] == ["long"]
        ledger.on_no_room = None
        ledger._db.execute("PRAGMA max_page_count = 1")
        with pytest.raises(sqlite3.OperationalError, match="full"):
            ledger.note("long", "x" * 1_000_000)


# ---- stages


def test_a_whole_run_is_one_stage_that_ends_with_it(path: Path) -> None:
    with closing(new_ledger(path)) as ledger:
        attempt = launch(ledger, ledger.runs()[0])
        (stage,) = ledger.stages()
        assert (stage.attempt, stage.stage, stage.host, stage.gpus) == (
            *(attempt, Stage.ALL, "box", "0,1"),
        )
        assert (stage.ended, stage.exit_code, stage.events_from) == (None, None, 0)
        ledger.ended(attempt, AttemptState.CRASHED, RunState.FAILED, exit_code=1, message="why")
        (stage,) = ledger.stages(attempt)
        assert (stage.exit_code, stage.message) == (1, "why")
        assert stage.ended == ledger.attempts()[0].ended


def test_an_attempt_goes_on_stage_by_stage(path: Path) -> None:
    with closing(new_ledger(path)) as ledger:
        run, other = ledger.runs()[:2]
        attempt, beside = (
            ledger.launched(each, number=1, path="a", host="box", gpus="0", stage=Stage.TRAIN)
            for each in (run, other)
        )
        ledger.stage_ended(attempt, exit_code=0, at=123.0)
        assert ledger.runs()[0].state is RunState.RUNNING
        # Where the sweep is stopped here, the attempt waits with its run.
        ledger.pause()
        assert [row.state for row in ledger.runs()[:2]] == [RunState.PENDING] * 2
        (row, _) = ledger.attempts()
        assert (row.state, row.ended) == (AttemptState.LAUNCHED, None)
        ledger.stage_launched(row, Stage.PACK, host="other", gpus="", events_from=77)
        assert [row.state for row in ledger.runs()[:2]] == [RunState.RUNNING, RunState.PENDING]
        train, pack = ledger.stages(attempt)
        assert (train.stage, train.exit_code, train.ended) == (Stage.TRAIN, 0, 123.0)
        assert (pack.stage, pack.host, pack.gpus, pack.events_from) == (
            *(Stage.PACK, "other", "", 77),
        )
        ledger.ended(attempt, AttemptState.LOST, RunState.PENDING, at=456.0)
        assert [row.ended for row in ledger.stages(attempt)] == [123.0, 456.0]
        assert [row.ended for row in ledger.stages(beside)] == [None]


# Written by the program as it was then.
VERSION_1 = Path(__file__).with_name("golden") / "ledger_v1.sql"


def old_ledger(path: Path) -> None:
    with closing(sqlite3.connect(path)) as database:
        database.executescript(VERSION_1.read_text())


def old_stages(ledger: Ledger) -> list[tuple[Any, ...]]:
    return [
        (row.attempt, row.stage, row.gpus, row.seconds, row.exit_code, row.ended is None)
        for row in ledger.stages()
    ]


def test_a_ledger_of_version_1_is_read_as_it_is_and_goes_on(path: Path) -> None:
    old_ledger(path)
    spec = make_spec(resources={"gpus_per_run": 2})
    expected = [
        (1, Stage.ALL, "0,1", 10.0, 1, False),
        (2, Stage.ALL, "0,1", 10.0, 0, False),
        (3, Stage.ALL, "0,1", 0.0, None, True),
    ]
    with closing(Ledger.open_for_reading(path)) as view:
        assert old_stages(view) == expected
        assert view.notes() == []
        before = (view.trials(), view.runs(), view.attempts())
    with closing(sqlite3.connect(path)) as database:
        assert database.execute("PRAGMA user_version").fetchone() == (1,)
    for _ in range(2):
        with closing(new_ledger(path, spec)) as ledger:
            assert old_stages(ledger) == expected
            assert (ledger.trials(), ledger.runs(), ledger.attempts()) == before
    with closing(new_ledger(path, spec)) as ledger:
        ledger.ended(3, AttemptState.LOST, RunState.PENDING)
        assert launch(ledger, ledger.runs()[1], 2) == 4
        assert [row.attempt for row in ledger.stages()] == [1, 2, 3, 4]
    with closing(Ledger.open_for_reading(path)) as view:
        assert len(view.stages()) == 4


@pytest.mark.parametrize("version", [SCHEMA_VERSION + 1, 99])
def test_a_ledger_of_another_version_is_refused(path: Path, version: int) -> None:
    new_ledger(path).close()
    with closing(sqlite3.connect(path)) as database:
        database.execute(f"PRAGMA user_version = {version}")
    message = f"ledger version {version}, this program reads {SCHEMA_VERSION}"
    with pytest.raises(UserError, match=message):
        new_ledger(path)
    with pytest.raises(UserError, match=message):
        Ledger.open_for_reading(path)


# ---- looking


def test_a_ledger_that_is_just_being_made_is_no_sweep_yet(path: Path) -> None:
    sqlite3.connect(path).close()
    path.touch()
    with pytest.raises(UserError, match="no sweep there yet"):
        Ledger.open_for_reading(path)


def test_looking_where_there_is_no_sweep_makes_none(tmp_path: Path) -> None:
    missing = tmp_path / "nothing" / "ledger.sqlite"
    with pytest.raises(UserError, match="no sweep there"):
        Ledger.open_for_reading(missing)
    assert not missing.parent.exists()


def test_looking_changes_nothing(path: Path) -> None:
    with closing(new_ledger(path)) as ledger:
        attempt = launch(ledger, ledger.runs()[0])
    with closing(Ledger.open_for_reading(path)) as view:
        run = view.runs()[0]
        for change in (
            lambda: launch(view, run, 2),
            lambda: view.ended(attempt, AttemptState.LOST, RunState.FAILED),
            view.reopen_failed,
        ):
            with pytest.raises(sqlite3.OperationalError, match="readonly"):
                change()
        assert view.runs()[0].state is RunState.RUNNING
        assert [row.state for row in view.attempts()] == [AttemptState.LAUNCHED]


def test_a_reader_sees_each_commit_and_never_half_of_one(path: Path) -> None:
    with closing(new_ledger(path)) as ledger, closing(Ledger.open_for_reading(path)) as view:
        for index, run in enumerate(ledger.runs()):
            attempt = launch(ledger, run)
            assert view.runs()[index].state is RunState.RUNNING
            assert view.attempts()[-1].state is AttemptState.LAUNCHED
            ledger.ended(attempt, AttemptState.FINISHED, RunState.FINISHED, result=result_facts())
            assert view.runs()[index].state is RunState.FINISHED
        with ledger._transaction():
            ledger._set_run(1, RunState.FAILED)
            assert view.runs()[0].state is RunState.FINISHED
        assert view.runs()[0].state is RunState.FAILED


def test_a_transaction_that_breaks_leaves_nothing(path: Path) -> None:
    def fail_half_way(ledger: Ledger) -> None:
        with ledger._transaction():
            ledger._set_run(1, RunState.FAILED)
            raise KeyboardInterrupt

    with closing(new_ledger(path)) as ledger:
        with pytest.raises(KeyboardInterrupt):
            fail_half_way(ledger)
        assert ledger.runs()[0].state is RunState.PENDING
        launch(ledger, ledger.runs()[0])


# Says each transaction on its stdout after the ledger has returned from it.
WRITER = """
import sys
from pathlib import Path
from sweeper.ledger import Ledger
from sweeper.rows import AttemptState, RunState
from sweeper.spec import SweepSpec

path, spec = sys.argv[1:]
ledger = Ledger.open_for_writing(Path(path), SweepSpec.model_validate_json(spec))
run = ledger.runs()[0]
for number in range(1, 1_000_000):
    attempt = ledger.launched(run, number=number, path=str(number), host="box", gpus="")
    print("launched", attempt, flush=True)
    ledger.ended(attempt, AttemptState.CRASHED, RunState.PENDING, message="x" * 500)
    print("ended", attempt, flush=True)
"""


def start_writer(path: Path, said: Path) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-c", WRITER, str(path), make_spec().model_dump_json(by_alias=True)]
    with said.open("wb") as stdout:
        return subprocess.Popen(command, cwd=ROOT, stdout=stdout)


def lines(said: Path) -> list[list[str]]:
    """The transactions that the writer has said, a torn last line left out."""
    return [line.split() for line in said.read_text().splitlines(keepends=True) if line[-1] == "\n"]


@pytest.mark.parametrize("transactions", [1, 20, 61])
def test_a_killed_writer_loses_nothing_that_it_has_committed(
    path: Path, tmp_path: Path, transactions: int
) -> None:
    said = tmp_path / "said"
    process = start_writer(path, said)
    try:
        wait_until(lambda: len(lines(said)) >= transactions, "the writer's commits")
        assert process.poll() is None
    finally:
        process.kill()
        process.wait()
    committed = lines(said)
    with closing(Ledger.open_for_reading(path)) as view:
        attempts = {str(row.id): row.state for row in view.attempts()}
        run = view.runs()[0]
    for what, attempt in committed:
        assert attempts[attempt] in (
            {AttemptState.CRASHED}
            if what == "ended"
            else {AttemptState.LAUNCHED, AttemptState.CRASHED}
        )
    # At most the one transaction that was under way is there besides.
    assert sum(1 + (state is AttemptState.CRASHED) for state in attempts.values()) <= (
        len(committed) + 1
    )
    open_attempts = [state for state in attempts.values() if state is AttemptState.LAUNCHED]
    assert len(open_attempts) == (run.state is RunState.RUNNING)
    with closing(new_ledger(path)) as ledger:
        launch(ledger, run, len(attempts) + 1)
        integrity = ledger._db.execute("PRAGMA integrity_check").fetchone()[0]
    assert integrity == "ok"


def test_a_ledger_can_be_read_while_another_process_writes(path: Path, tmp_path: Path) -> None:
    said = tmp_path / "said"
    process = start_writer(path, said)
    try:
        wait_until(lambda: lines(said), "the writer's first commit")
        with closing(Ledger.open_for_reading(path)) as view:
            seen = [len(view.attempts())]

            def one_more() -> bool:
                """Every look is whole: a launched attempt and its running run go together."""
                known = len(lines(said))
                attempts = view.attempts()
                seen.append(len(attempts))
                assert 2 * len(attempts) >= known
                return seen[-1] > seen[0] + 20

            wait_until(one_more, "the writer to go on while it is read")
        assert process.poll() is None
        assert seen == sorted(seen)
    finally:
        process.kill()
        process.wait()
