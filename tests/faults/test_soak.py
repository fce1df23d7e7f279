"""Two hundred short runs on four slots, while something dies every few seconds."""

from __future__ import annotations

import contextlib
import random
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import psutil
import pytest

from tests.faults.aftermath import attempt_counts, check_aftermath, seeded
from tests.faults.fleet import Fleet, a_fleet, freeze
from tests.sweeper.conftest import wait_until
from tests.sweeper.ray_helpers import Driver, Place

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("quiet")]

RUNS = 200
SLOTS = 4
STRIKE_SECONDS = 80.0
END_SECONDS = 70.0
PAUSE_SECONDS = (0.5, 2.5)


@pytest.fixture(scope="module")
def fleet(place: Place) -> Iterator[Fleet]:
    """A head without GPUs and two nodes of eight."""
    with a_fleet(place, nodes=2) as fleet:
        yield fleet


@dataclass
class Storm:
    """Strikes at a sweep; `cost` is how many attempts its strikes may have cost, at most."""

    place: Place
    fleet: Fleet
    driver: Driver
    chance: random.Random
    cost: int = 0
    struck: Counter[str] = field(default_factory=Counter)

    def strike(self) -> None:
        """One fault; nothing where its victim has just gone by itself."""
        # What costs more time than it tests comes less often.
        strikes: list[Callable[[], int]] = [
            *[self.kill_run, self.hang_run, self.kill_slot] * 3,
            *(self.kill_driver, self.kill_keeper, self.kill_node),
        ]
        strike = self.chance.choice(strikes)
        with contextlib.suppress(psutil.Error, ProcessLookupError):
            cost = strike()
            self.cost += cost
            self.struck[strike.__name__] += cost > 0

    def kill_run(self) -> int:
        return self._each(self._ranks(), lambda process: process.kill())

    def hang_run(self) -> int:
        return self._each(self._ranks(), freeze)

    def kill_slot(self) -> int:
        return self._each(self.place.slots(), lambda process: process.kill())

    def kill_driver(self) -> int:
        """The driver alone: its keeper starts another."""
        children = psutil.Process(self.driver.process.pid).children()
        drivers = [child for child in children if "sweeper.cli" in child.cmdline()]
        return SLOTS * self._each(drivers, lambda process: process.kill())

    def kill_keeper(self) -> int:
        """The whole command; the one who watches gives it again."""
        self.driver.kill()
        self.driver = self.place.resume("soak", "--address", self.fleet.address)
        return SLOTS

    def watch(self) -> bool:
        """Whether the sweep is over; a keeper that has seen too many drivers die is replaced."""
        if self.driver.process.poll() is None:
            return False
        if "without a word" not in self.driver.stderr.read_text().splitlines()[-1]:
            return True
        self.driver = self.place.resume("soak", "--address", self.fleet.address)
        return False

    def kill_node(self) -> int:
        self.chance.choice(self.fleet.nodes).kill_raylet()
        self.fleet.repair(2)
        return SLOTS // 2

    def _ranks(self) -> list[psutil.Process]:
        return [run for run in self.place.runs() if run.cmdline()[1:] == ["-m", "fake_train"]]

    def _each(self, victims: list[psutil.Process], strike: Callable[[psutil.Process], None]) -> int:
        """Strike one of them, if there is one; how many that were."""
        if not victims:
            return 0
        strike(self.chance.choice(sorted(victims, key=lambda process: process.pid)))
        return 1


def test_every_run_finishes_once_whatever_dies(place: Place, fleet: Fleet) -> None:
    spec = place.write_spec(
        "soak",
        seeds=tuple(range(RUNS)),
        trials={"t": {"SLEEP_MS": 300}},
        resources={"gpus_per_run": 2 * 8 // SLOTS},
        limits={
            "max_attempts": 20,
            "backoff_seconds": 0.1,
            "stall_seconds": 3.0,
            "grace_seconds": 1.0,
        },
    )
    driver = place.drive(spec, "--address", fleet.address)
    driver.wait_for_arrivals(SLOTS)
    storm = Storm(place, fleet, driver, seeded())
    deadline = time.monotonic() + STRIKE_SECONDS
    while time.monotonic() < deadline and not storm.watch():
        storm.strike()
        time.sleep(storm.chance.uniform(*PAUSE_SECONDS))
    wait_until(storm.watch, "the sweep to end", END_SECONDS)
    assert storm.driver.wait() == 0, storm.driver.said
    counts = attempt_counts(place.sweep("soak"))
    print(f"struck: {dict(storm.struck)}; attempts: {counts}")
    assert counts.keys() <= {"finished", "crashed", "lost", "stalled", "node_lost"}
    assert sum(counts.values()) - RUNS <= storm.cost
    check_aftermath(place, fleet, "soak", runs=RUNS, attempts=counts | {"finished": RUNS})
