"""Which job a slot takes: order, delays, and nodes that a run has failed on."""

from __future__ import annotations

import pytest

from sweeper.agenda import Agenda, Job, Place
from sweeper.layout import SweepDir
from sweeper.ledger import Ledger
from sweeper.rows import AttemptState, RunState
from sweeper.stages import Stage

PLACES: set[Place] = {("a",), ("b",)}


@pytest.fixture
def agenda(ledger: Ledger, sweep: SweepDir) -> Agenda:
    return Agenda.of(ledger, sweep, Stage.ALL)


def take(
    agenda: Agenda, node: str = "a", now: float = 0.0, places: set[Place] = PLACES
) -> Job | None:
    return agenda.take(in_slot=True, place=(node,), places=places, now=now)


def taken(agenda: Agenda, node: str = "a", now: float = 0.0) -> list[int]:
    jobs = []
    while (job := take(agenda, node, now)) is not None:
        jobs.append(job.run.id)
    return jobs


def test_runs_are_taken_once_and_in_launch_order(agenda: Agenda) -> None:
    assert agenda.waiting(True) == 6
    assert agenda.waiting(False) == 0
    assert taken(agenda) == [1, 2, 3, 4, 5, 6]
    assert agenda.waiting(True) == 0
    assert agenda.attempts == dict.fromkeys(range(1, 7), 1)
    assert not agenda.done
    for run in range(1, 7):
        agenda.over(run)
    assert agenda.done


def test_what_is_over_in_the_ledger_is_not_taken(ledger: Ledger, sweep: SweepDir) -> None:
    first, second = ledger.runs()[:2]
    for run, state in ((first, RunState.FAILED), (second, RunState.PENDING)):
        attempt = ledger.launched(run, number=1, path="a", host="box", gpus="0")
        ledger.ended(attempt, AttemptState.CRASHED, state)
    agenda = Agenda.of(ledger, sweep, Stage.ALL)
    assert taken(agenda) == [2, 3, 4, 5, 6]
    assert agenda.attempts[2] == 2


def test_a_run_that_is_tried_again_keeps_its_place(agenda: Agenda) -> None:
    first = take(agenda)
    assert first is not None
    agenda.add(first.run.id)
    assert taken(agenda) == [1, 2, 3, 4, 5, 6]
    assert agenda.attempts[1] == 2


def test_a_delayed_run_lets_others_pass_until_it_is_time(agenda: Agenda) -> None:
    take(agenda)
    agenda.add(1, not_before=5.0)
    assert agenda.waiting(True) == 6
    assert (agenda.delayed(4.9), agenda.delayed(5.0)) == (1, 0)
    second = take(agenda, now=4.9)
    assert second is not None
    assert second.run.id == 2
    assert taken(agenda, now=5.0) == [1, 3, 4, 5, 6]


def test_a_run_avoids_the_node_it_failed_on_while_there_is_another(agenda: Agenda) -> None:
    taken(agenda)
    agenda.add(3, avoid={"a"})
    assert take(agenda, "a") is None
    assert agenda.waiting(True) == 1
    job = take(agenda, "b")
    assert job is not None
    assert job.run.id == 3
    # It has failed everywhere, or there is nowhere else: any node will do.
    agenda.add(3, avoid={"a", "b"})
    assert taken(agenda, "a") == [3]
    agenda.add(3, avoid={"a"})
    assert take(agenda, "a", places={("a",)}) is not None


def test_a_run_on_several_nodes_avoids_each_of_them(agenda: Agenda) -> None:
    """A node that has failed may be in a slot that another one leads."""
    first, second, third = places = ("a", "b"), ("c", "d"), ("b", "e")
    taken(agenda)
    agenda.add(3, avoid={"b"})

    def take_at(place: Place, *others: Place) -> bool:
        job = agenda.take(in_slot=True, place=place, places={place, *others}, now=0.0)
        return job is not None

    assert not any(take_at(place, *places) for place in (first, third))
    assert take_at(second, *places)
    agenda.add(3, avoid={"b"})
    assert take_at(first, third)


def test_a_stage_of_a_begun_run_goes_before_runs_that_have_not_begun(
    ledger: Ledger, sweep: SweepDir
) -> None:
    agenda = Agenda.of(ledger, sweep, Stage.TRAIN)
    job = take(agenda)
    assert job is not None
    directory = sweep.attempt(0, "low", 42, 1)
    directory.path.mkdir(parents=True)
    path = str(directory.path.relative_to(sweep.path))
    identity = ledger.launched(job.run, number=1, path=path, host="box", gpus="0")
    directory.trained_tensors.write_bytes(b"tensors")
    directory.trained.write_text('{"schema": 1, "status": "trained"}')
    agenda.add(job.run.id, attempt=ledger.attempt(identity))
    assert (agenda.waiting(True), agenda.waiting(False)) == (5, 1)
    pack = agenda.take(in_slot=False, place=("a",), places=PLACES, now=0.0)
    assert pack is not None
    assert (pack.run.id, pack.stage) == (1, Stage.PACK)
    directory.artifact.write_bytes(b"x")
    directory.packed.write_text('{"schema": 1, "status": "packed"}')
    agenda.add(job.run.id, attempt=ledger.attempt(identity))
    score = take(agenda)
    assert score is not None
    assert (score.run.id, score.stage) == (1, Stage.SCORE)
    # All of them are stages of one attempt.
    assert agenda.attempts[1] == 1
