"""Two hundred short runs on four slots, while something of theirs dies again and again.

Between two strikes the gate lets some runs pass, so that all strikes are made before the runs are
over, on a slow machine as on a quick one. Which strike comes when, and at whom, is chance.
"""

from __future__ import annotations

import contextlib
import random
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import psutil
import pytest

from sweeper.exits import GO_ON_LATER, INTERRUPTED, OK, SOME_FAILED
from tests.faults.aftermath import attempt_counts, check_aftermath, seeded
from tests.faults.fleet import QUICK_TO_NOTICE, Fleet, a_fleet, freeze
from tests.sweeper.conftest import alive, wait_until
from tests.sweeper.fake_train import Board
from tests.sweeper.ray_helpers import Driver, Env, Place, title
from tests.sweeper.sweeps import open_gate

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("quiet")]

RUNS = 200
SLOTS = 4
NODES = 2
PASS = 4  # runs between two strikes
PAUSE_SECONDS = 2.0  # at most, before a strike, so that it comes at any moment of a run
BLINK_SECONDS = 2.0  # at most, of a slot that is suspended
# A node that is gone is noticed at once, one that is only slow is not taken for it.
PATIENT: Env = dict(QUICK_TO_NOTICE) | {"RAY_health_check_timeout_ms": 10_000}


@pytest.fixture(scope="module")
def fleet(place: Place) -> Iterator[Fleet]:
    """A head without GPUs and two nodes of eight."""
    with a_fleet(place, nodes=NODES, env=PATIENT) as fleet:
        yield fleet


@dataclass
class Storm:
    """Strikes at a sweep; `cost` is how many attempts its strikes may have cost, at most."""

    place: Place
    fleet: Fleet
    driver: Driver
    board: Board
    chance: random.Random
    cost: int = 0
    struck: Counter[str] = field(default_factory=Counter)

    def strikes(self) -> list[Callable[[], int]]:
        """All that are to be made, in an order of chance; each says what it may cost."""
        counts = {
            self.kill_rank: 5,
            self.kill_guard: 3,
            self.terminate_guard: 3,
            self.freeze_rank: 3,
            self.tear_result: 3,
            self.kill_slot: 4,
            self.suspend_slot: 3,
            self.kill_driver: 2,
            self.kill_command: 2,
            self.interrupt: 2,
            self.kill_node: 2,
            self.kill_head: 1,
        }
        strikes = [strike for strike, count in counts.items() for _ in range(count)]
        self.chance.shuffle(strikes)
        return strikes

    def make(self, strike: Callable[[], int]) -> None:
        """One strike; again where its victim has just gone by itself."""
        while True:
            wait_until(self._at_work, f"a run to be at work, for {strike.__name__}")
            with contextlib.suppress(psutil.Error, ProcessLookupError, IndexError):
                self.cost += strike()
                self.struck[strike.__name__] += 1
                return

    def let_pass(self) -> None:
        """Let some more runs come to their end."""
        open_gate(self.board, max(self.board.passable(), self.board.arrivals() - SLOTS) + PASS)
        time.sleep(self.chance.uniform(0, PAUSE_SECONDS))

    def is_over(self) -> bool:
        """Whether no run is left; a driver that has ended before is replaced, as by a person."""
        code = self.driver.process.poll()
        if code is None or code == OK:
            return code == OK
        assert code in (SOME_FAILED, INTERRUPTED, GO_ON_LATER), self.driver.said
        self._resume()
        return False

    def _at_work(self) -> bool:
        assert not self.is_over(), "the runs were over before the storm was"
        if any(node.process.poll() is not None for node in self.fleet.nodes):
            self.fleet.repair(NODES)
        return bool(self._ranks())

    def _resume(self) -> None:
        self.driver = self.place.resume(
            "soak", "--address", self.fleet.address, env=QUICK_TO_NOTICE
        )

    # ---- the strikes

    def kill_rank(self) -> int:
        self._one(self._ranks()).kill()
        return 1

    def kill_guard(self) -> int:
        self._one(self._guards()).kill()
        return 1

    def terminate_guard(self) -> int:
        """As a stranger does who cleans up."""
        self._one(self._guards()).terminate()
        return 1

    def freeze_rank(self) -> int:
        rank = self._one(self._ranks())
        freeze(rank)
        wait_until(lambda: not alive(rank.pid), "what hangs to be ended")
        return 1

    def tear_result(self) -> int:
        """The next result to be written is only half there; its run has failed."""
        (self.board.path / "tear").touch()
        return 1

    def kill_slot(self) -> int:
        self._one(self.place.slots()).kill()
        return 1

    def suspend_slot(self) -> int:
        """For a moment, in which it hears nothing."""
        slot = self._one(self.place.slots())
        slot.suspend()
        time.sleep(self.chance.uniform(0, BLINK_SECONDS))
        slot.resume()
        return 0

    def kill_driver(self) -> int:
        """The driver alone: its keeper starts another."""
        children = psutil.Process(self.driver.process.pid).children()
        self._one([child for child in children if "sweeper.cli" in child.cmdline()]).kill()
        return SLOTS

    def kill_command(self) -> int:
        """Driver and keeper: somebody gives the command again."""
        self.driver.kill()
        self._resume()
        return SLOTS

    def interrupt(self) -> int:
        """^C, after which somebody goes on."""
        self.driver.interrupt()
        assert self.driver.wait() == INTERRUPTED, self.driver.said
        self._resume()
        return SLOTS

    def kill_node(self) -> int:
        self.chance.choice(self.fleet.nodes).kill_raylet()
        self.fleet.repair(NODES)
        return SLOTS // NODES

    def kill_head(self) -> int:
        """Its nodes end with it; all of them are started again."""
        self.fleet.head.part("gcs_server").kill()
        wait_until(lambda: not self.place.runs(), "the runs to end without their driver")
        self.fleet.restart_head()
        self.fleet.repair(NODES)
        return SLOTS

    def _ranks(self) -> list[psutil.Process]:
        return [run for run in self._runs() if "supervise" not in title(run).split()]

    def _guards(self) -> list[psutil.Process]:
        return [run for run in self._runs() if "supervise" in title(run).split()]

    def _runs(self) -> list[psutil.Process]:
        """Guards and ranks, no guard that is not yet what it will be."""
        return [run for run in self.place.runs() if title(run).endswith(" -m fake_train")]

    def _one(self, victims: list[psutil.Process]) -> psutil.Process:
        """One of them; IndexError where there is none."""
        return self.chance.choice(sorted(victims, key=lambda process: process.pid))


def test_every_run_finishes_once_whatever_dies(place: Place, fleet: Fleet) -> None:
    spec = place.write_spec(
        "soak",
        seeds=tuple(range(RUNS)),
        trials={"t": {"FAULT": "tear result when told"}},
        env={"GATED": 1, "BEATS": 1, "SLEEP_MS": 200},
        resources={"gpus_per_run": NODES * 8 // SLOTS},
        limits={
            "max_attempts": 20,
            "backoff_seconds": 0.1,
            "stall_seconds": 8.0,
            "grace_seconds": 5.0,
        },
    )
    driver = place.drive(spec, "--address", fleet.address, env=QUICK_TO_NOTICE)
    driver.wait_for_arrivals(SLOTS)
    storm = Storm(place, fleet, driver, place.board("soak"), seeded())
    strikes = storm.strikes()
    for strike in strikes:
        storm.let_pass()
        storm.make(strike)
    open_gate(storm.board)
    # A result that is torn when the last driver has begun is for one more.
    wait_until(storm.is_over, "the sweep to end", 600.0)
    counts = attempt_counts(place.sweep("soak"))
    print(f"struck: {dict(storm.struck)}; attempts: {counts}")
    assert storm.struck.total() == len(strikes)
    # On a machine that is slow enough, a run may be taken for hung, or a node for dead.
    excused = {"stalled", "node_lost"}
    assert counts.keys() <= {"finished", "crashed", "lost", "stopped", "bad_result"} | excused
    wasted = sum(count for state, count in counts.items() if state not in {"finished"} | excused)
    assert wasted <= storm.cost
    check_aftermath(place, fleet, "soak", runs=RUNS, attempts=counts | {"finished": RUNS})
