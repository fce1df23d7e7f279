"""Processes of a run, of a slot and of the sweep itself that die, hang or do not listen."""

from __future__ import annotations

from collections.abc import Iterator

import psutil
import pytest

from sweeper.rows import AttemptState, RunState
from tests.faults.aftermath import check_aftermath
from tests.faults.fleet import Fleet, a_fleet, freeze
from tests.sweeper.conftest import alive, wait_until
from tests.sweeper.ray_helpers import Driver, Place, title
from tests.sweeper.sweeps import attempt_states, attempts, open_gate, run_states

pytestmark = pytest.mark.usefixtures("quiet")

QUICK = {"backoff_seconds": 0.1, "grace_seconds": 5.0}


@pytest.fixture(scope="module")
def fleet(place: Place) -> Iterator[Fleet]:
    with a_fleet(place, head_gpus=8, cpus=4) as fleet:
        yield fleet


def runs_of(place: Place, word: str) -> list[psutil.Process]:
    """The processes of the runs with this word in their directory, from the outside inwards."""
    found = [run for run in place.runs() if word in run.environ()["RUN_DIR"]]
    return sorted(found, key=lambda process: (process.create_time(), process.pid))


def processes_by_role(place: Place, trial: str) -> dict[str, psutil.Process]:
    """A run's guard, torchrun and first rank, and its slot."""
    found = runs_of(place, f"-{trial}/")
    (guard,) = [process for process in found if "supervise" in process.cmdline()]
    (torchrun,) = guard.children()
    ranks = [process for process in found if process.cmdline()[1:] == ["-m", "fake_train"]]
    assert len(ranks) == 2
    slot = guard.parent()
    assert slot is not None
    assert title(slot).startswith("ray::SlotActor")
    return {"guard": guard, "torchrun": torchrun, "rank": ranks[0], "slot": slot}


def wait_for_end(processes: list[psutil.Process]) -> None:
    wait_until(lambda: not any(alive(process.pid) for process in processes), "a run to end")


VICTIMS = ("rank", "torchrun", "guard", "slot")


def test_whatever_dies_of_a_run_it_is_run_once_more(place: Place, fleet: Fleet) -> None:
    spec = place.write_spec(
        "struck",
        seeds=(1,),
        trials={victim: {"ITERATIONS": number} for number, victim in enumerate(VICTIMS, 1)},
        env={"GATED": 1, "PEERS": 1},
        resources={"gpus_per_run": 2},
        limits=QUICK,
        launch="torchrun",
    )
    driver = place.drive(spec, "--address", fleet.address)
    driver.wait_for_arrivals(4)
    for victim in VICTIMS:
        first = runs_of(place, f"-{victim}/")
        processes_by_role(place, victim)[victim].kill()
        wait_for_end(first)
    driver.wait_for_arrivals(8)
    open_gate(place.board("struck"))
    assert driver.wait() == 0, driver.said
    check_aftermath(
        place, fleet, "struck", runs=4, attempts={"finished": 4, "crashed": 2, "lost": 2}
    )
    ends = {trial: ends[0] for (trial, _), ends in attempt_states(place.sweep("struck")).items()}
    assert ends == {
        "rank": AttemptState.CRASHED,
        "torchrun": AttemptState.CRASHED,
        "guard": AttemptState.LOST,
        "slot": AttemptState.LOST,
    }


@pytest.mark.parametrize(
    "victim",
    [
        "rank",
        # Nobody is left who could end the run in time, so this takes as long as a guard may.
        pytest.param("guard", marks=pytest.mark.slow),
    ],
)
def test_what_hangs_is_killed_and_the_run_repeated(place: Place, fleet: Fleet, victim: str) -> None:
    name = f"hung-{victim}"
    spec = place.write_spec(
        name,
        seeds=(1, 2),
        trials={"t": {}},
        resources={"gpus_per_run": 4},
        limits=QUICK | {"stall_seconds": 4.0, "grace_seconds": 1.0},
        # Whatever time it takes here until the gate is open, what is not frozen is not silent.
        env={"GATED": 1, "BEATS": 1},
    )
    driver = place.drive(spec, "--address", fleet.address)
    driver.wait_for_arrivals(2)
    guard, rank = runs_of(place, f"/{name}/attempts/000-t/seed2/")
    freeze({"guard": guard, "rank": rank}[victim])
    open_gate(place.board(name))
    assert driver.wait() == 0, driver.said
    check_aftermath(place, fleet, name, runs=2, attempts={"finished": 2, "stalled": 1})
    first, _ = attempts(place.sweep(name))["t", 2]
    assert "no event and no growth of a log for 4 s" in str(first.message)


def start_in_the_middle(place: Place, fleet: Fleet, name: str, **env: object) -> Driver:
    """A driver with four runs on two slots: two have finished, two are at work."""
    spec = place.write_spec(
        name,
        seeds=(1, 2, 3, 4),
        trials={"t": {}},
        env={"GATED": 1} | env,
        resources={"gpus_per_run": 4},
        limits=QUICK,
    )
    open_gate(place.board(name), 2)
    driver = place.drive(spec, "--address", fleet.address)
    driver.wait_for_arrivals(4)
    return driver


def go_on(place: Place, fleet: Fleet, name: str) -> None:
    open_gate(place.board(name))
    (place.board(name).path / "mended").touch()
    again = place.resume(name, "--address", fleet.address)
    assert again.wait() == 0, again.said


def test_a_driver_that_is_killed_takes_its_runs_with_it_and_is_replaced(
    place: Place, fleet: Fleet
) -> None:
    driver = start_in_the_middle(place, fleet, "driverless")
    driver.kill()
    check_aftermath(
        place,
        fleet,
        "driverless",
        runs=4,
        finished=2,
        # The ledger cannot know yet.
        attempts={"finished": 2, "launched": 2},
    )
    go_on(place, fleet, "driverless")
    check_aftermath(place, fleet, "driverless", runs=4, attempts={"finished": 4, "lost": 2})


def test_a_driver_that_is_killed_by_itself_is_replaced_by_its_keeper(
    place: Place, fleet: Fleet
) -> None:
    """What has failed by itself before is not tried again."""
    spec = place.write_spec(
        "kept",
        seeds=(1, 2),
        trials={"t": {"GATED": 1}, "bad": {"FAULT": "user error"}},
        resources={"gpus_per_run": 4},
        limits=QUICK,
    )
    driver = place.drive(spec, "--address", fleet.address)
    driver.wait_for_arrivals(3)
    sweep = place.sweep("kept")
    assert run_states(sweep)["bad", 1] is RunState.FAILED
    (child,) = [
        child
        for child in psutil.Process(driver.process.pid).children()
        if "sweeper.cli" in child.cmdline()
    ]
    child.kill()
    driver.wait_for_arrivals(5)
    open_gate(place.board("kept"))
    assert driver.wait() == 1, driver.said
    check_aftermath(
        *(place, fleet, "kept"),
        runs=4,
        finished=2,
        attempts={"finished": 2, "lost": 2, "user_error": 2},
    )


def test_a_run_that_finishes_after_its_slot_has_died_is_not_repeated(
    place: Place, fleet: Fleet
) -> None:
    """It is told to end then, and comes to its end at that very moment."""
    spec = place.write_spec(
        "late",
        seeds=(1,),
        trials={"t": {"FAULT": "finish when told to end"}},
        env={"GATED": 1},
        resources={"gpus_per_run": 4},
        limits=QUICK,
    )
    driver = place.drive(spec, "--address", fleet.address)
    driver.wait_for_arrivals(1)
    (slot,) = place.slots()
    slot.kill()
    assert driver.wait() == 0, driver.said
    check_aftermath(place, fleet, "late", runs=1, attempts={"finished": 1})
    assert place.board("late").arrivals() == 1


def test_a_run_that_a_stranger_ends_is_tried_again_but_not_for_ever(
    place: Place, fleet: Fleet
) -> None:
    spec = place.write_spec(
        "ended",
        seeds=(1,),
        trials={"t": {}},
        env={"GATED": 1},
        resources={"gpus_per_run": 4},
        limits=QUICK,
    )
    driver = place.drive(spec, "--address", fleet.address)
    for arrival in (1, 2):
        driver.wait_for_arrivals(arrival)
        runs_of(place, "/ended/")[0].terminate()  # its guard
    assert driver.wait() == 1, driver.said
    check_aftermath(place, fleet, "ended", runs=1, finished=0, attempts={"lost": 2})
    assert "SIGTERM to its guard" in driver.stderr.read_text()


@pytest.mark.slow
def test_a_frozen_slot_is_ended_with_all_that_it_holds(place: Place, fleet: Fleet) -> None:
    """All words to its run go by way of it, so they are of no use."""
    driver = start_in_the_middle(place, fleet, "frozen")
    for slot in place.slots():
        slot.suspend()
    driver.interrupt()
    wait_until(lambda: "interrupt again" in driver.stderr.read_text(), "the driver to be stopping")
    driver.interrupt()
    assert driver.wait() == 130, driver.said
    check_aftermath(
        *(place, fleet, "frozen"),
        runs=4,
        finished=2,
        # Whether they have come to a good end, the next driver looks.
        attempts={"finished": 2, "launched": 2},
    )
    go_on(place, fleet, "frozen")
    check_aftermath(place, fleet, "frozen", runs=4, attempts={"finished": 4, "lost": 2})


def test_a_slot_that_does_not_answer_keeps_the_others_from_nothing(
    place: Place, fleet: Fleet
) -> None:
    """Its files have to be fetched, as from a node whose cable is cut."""
    spec = place.write_spec(
        "silent",
        seeds=tuple(range(8)),
        trials={"t": {}},
        env={"GATED": 1},
        resources={"gpus_per_run": 4},
        limits=QUICK,
    )
    sweep = place.sweep("silent")
    sweep.path.mkdir(parents=True)
    sweep.nonce.symlink_to("/dev/null")  # so that slots take this for another disk
    driver = place.drive(spec, "--address", fleet.address)
    driver.wait_for_arrivals(2)
    slot = place.slots()[0]
    slot.suspend()
    open_gate(place.board("silent"))
    wait_until(
        lambda: list(run_states(sweep).values()).count(RunState.FINISHED) == 7,
        "the others to finish",
    )
    slot.resume()
    assert driver.wait() == 0, driver.said
    check_aftermath(place, fleet, "silent", runs=8, attempts={"finished": 8})


def test_an_interrupt_lets_runs_end_and_they_wait(place: Place, fleet: Fleet) -> None:
    driver = start_in_the_middle(place, fleet, "interrupted")
    driver.interrupt()
    assert driver.wait() == 130, driver.said
    check_aftermath(
        place,
        fleet,
        "interrupted",
        runs=4,
        finished=2,
        attempts={"finished": 2, "stopped": 2},
    )
    go_on(place, fleet, "interrupted")
    check_aftermath(place, fleet, "interrupted", runs=4, attempts={"finished": 4, "stopped": 2})


@pytest.mark.slow
def test_two_interrupts_end_runs_that_do_not_listen(place: Place, fleet: Fleet) -> None:
    spec = place.write_spec(
        "deaf",
        seeds=(1, 2),
        trials={"t": {"FAULT": "ignore SIGTERM"}},
        resources={"gpus_per_run": 4},
        limits={"grace_seconds": 600.0},
    )
    driver = place.drive(spec, "--address", fleet.address)
    driver.wait_for_arrivals(2)
    driver.interrupt()
    wait_until(lambda: "interrupt again" in driver.stderr.read_text(), "the driver to be stopping")
    driver.interrupt()
    assert driver.wait() == 130, driver.said
    check_aftermath(place, fleet, "deaf", runs=2, finished=0, attempts={"stopped": 2})
    go_on(place, fleet, "deaf")
    check_aftermath(place, fleet, "deaf", runs=2, attempts={"finished": 2, "stopped": 2})


def test_runs_that_misbehave_leave_nothing_behind(place: Place, fleet: Fleet) -> None:
    spec = place.write_spec(
        "unruly",
        seeds=(1,),
        trials={
            "good": {},
            "daemon": {"FAULT": "leave a daemon behind"},
            "corrupt": {"FAULT": "corrupt result"},
        },
        resources={"gpus_per_run": 2},
        limits=QUICK,
    )
    driver = place.drive(spec, "--address", fleet.address)
    assert driver.wait() == 1, driver.said
    assert (place.board("unruly").path / "lingerer").read_text()
    check_aftermath(
        place,
        fleet,
        "unruly",
        runs=3,
        finished=2,
        attempts={"finished": 2, "bad_result": 1},
    )
