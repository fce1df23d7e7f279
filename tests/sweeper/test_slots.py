"""A slot as its driver sees it: when it is given up, and what becomes of the run's files."""

from __future__ import annotations

import errno
import tempfile
from collections.abc import Callable, Collection
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import pytest

from sweeper.capacity import Demand
from sweeper.errors import UserError
from sweeper.launch import LaunchRequest
from sweeper.layout import AttemptDir
from sweeper.reaping import Tag
from sweeper.shipping import Scratch, Shipment
from sweeper.slots import (
    ANSWER_SECONDS,
    ASK_SECONDS,
    NOTHING_SECONDS,
    Pool,
    Slot,
    SlotDiedError,
    SlotFacts,
    conclude,
    settle_first,
)
from tests.sweeper.conftest import wait_until


class Host(Scratch):
    """The far end of a slot, in this process; deaf, it answers nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.deaf = False
        self.ended = False
        self.told: list[str] = []
        self.runs: list[Future[str | None]] = []

    def call(self, method: str, *arguments: object) -> Future[Any]:
        answer: Future[Any] = Future()
        self.told.append(method)
        if method == "run":
            self.runs.append(answer)
        elif not self.deaf:
            try:
                answer.set_result(None if method == "ping" else getattr(self, method)(*arguments))
            except OSError as error:
                answer.set_exception(error)
        return answer

    def tell(self, method: str) -> None:
        self.told.append(method)

    def end(self) -> None:
        self.ended = True


@pytest.fixture
def host(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Host:
    (tmp_path / "host").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "host"))
    return Host()


def begin(host: Host, attempt: AttemptDir, *, shared: bool) -> Slot:
    """A slot with a run at work."""
    facts = SlotFacts(host="h", node="n", gpus=(), sees_driver_disk=shared)
    slot = Slot(host, opening=Future(), facts=facts)
    request = LaunchRequest(
        tag=Tag(sweep="s", session="t", launch=1),
        directory=str(attempt.path),
        module="m",
        launch="exec",
        processes=1,
        cpus=1,
        grace_seconds=1.0,
        env={},
    )
    slot.start(request, attempt)
    wait_until(lambda: len(host.runs) == 1, "the run to begin")
    return slot


def pool_of(*slots: Slot) -> Pool:
    demand = Demand(who="a run", amounts={"CPU": 1}, advice="")
    return Pool(demand, begin=lambda _: slots[0], look=lambda: [{"NodeID": "n"}], slots=[*slots])


def test_a_slot_that_answers_is_never_given_up(host: Host, tmp_path: Path) -> None:
    slot = begin(host, AttemptDir(tmp_path / "a"), shared=True)
    for now in range(0, 1000, 10):
        slot.check(float(now))
    assert not host.ended
    assert 1000 / ASK_SECONDS / 2 < host.told.count("ping") <= 1000 / ASK_SECONDS


@pytest.mark.parametrize("shared", [True, False])
def test_a_slot_that_is_silent_for_long_is_lost_with_its_run(
    host: Host, tmp_path: Path, shared: bool
) -> None:
    slot = begin(host, AttemptDir(tmp_path / "a"), shared=shared)
    slot.check(0.0)
    host.deaf = True
    slot.check(ASK_SECONDS)
    slot.check(ASK_SECONDS + ANSWER_SECONDS - 1.0)
    assert not host.ended
    slot.check(ASK_SECONDS + ANSWER_SECONDS)
    assert host.ended
    pool = pool_of(slot)
    assert settle_first([pool], 60.0) == [slot]
    assert (slot.died, slot.node_lost, pool.slots) == (True, False, [])
    assert slot.failure == "its slot was lost: it has not answered for 120 s"
    # Whatever it says now comes too late.
    conclude(host.runs[0], None)


def test_a_slot_that_was_told_to_end_its_run_has_less_time(host: Host, tmp_path: Path) -> None:
    slot = begin(host, AttemptDir(tmp_path / "a"), shared=True)
    host.deaf = True
    slot.check(0.0)
    slot.check(9.0, patience=10.0)
    assert not host.ended
    slot.check(10.0, patience=10.0)
    assert host.ended


def test_a_driver_that_has_nothing_to_wait_for_sleeps(
    host: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without slots, as while all runs wait for a later time; or with idle ones."""
    slept: list[float] = []
    monkeypatch.setattr("sweeper.slots.time.sleep", slept.append)
    facts = SlotFacts(host="h", node="n", gpus=(), sees_driver_disk=True)
    for pool in (pool_of(), pool_of(Slot(host, opening=Future(), facts=facts))):
        assert settle_first([pool], 0.5) == []
    assert slept == [NOTHING_SECONDS] * 2
    # Nor is it kept from what comes sooner.
    settle_first([pool_of()], NOTHING_SECONDS / 2)
    assert slept[2:] == [NOTHING_SECONDS / 2]
    # Where there is something to wait for, that is what it does.
    opening: Future[SlotFacts] = Future()
    opening.set_result(facts)
    assert settle_first([pool_of(Slot(host, opening=opening))], 60.0) == []
    assert len(slept) == 3


# ---- slots that cannot begin


class Cluster:
    """One node on which slots can begin, and others on which none can."""

    def __init__(self, *, good: int) -> None:
        self.good = good
        self.begun = 0
        self.nodes = [{"NodeID": "a", "Resources": {"CPU": 8}}]
        demand = Demand(who="a run", amounts={"CPU": 1}, advice="")
        self.pool = Pool(demand, begin=self.begin, look=lambda: self.nodes)

    def begin(self, off: Collection[str]) -> Slot:
        self.begun += 1
        opening: Future[SlotFacts] = Future()
        if self.begun <= self.good:
            opening.set_result(
                SlotFacts(host="h", node="a", gpus=(), sees_driver_disk=True),
            )
        else:
            opening.set_exception(SlotDiedError("no project here"))
        return Slot(Host(), opening=opening)

    def fill(self, turns: int) -> None:
        """Go on as a loop does that wants as many slots as there may be."""
        for _ in range(turns):
            self.pool.most = self.pool.capacity()
            self.pool.open(self.pool.most)
            settle_first([self.pool], 0.0)


def test_slots_that_cannot_begin_are_not_begun_for_ever() -> None:
    cluster = Cluster(good=2)
    cluster.fill(turns=20)
    assert len(cluster.pool.slots) == cluster.pool.capacity() == 2
    # All that there was room for, and none again.
    assert cluster.begun == 8
    # Other nodes are another matter.
    cluster.nodes.append({"NodeID": "b", "Resources": {"CPU": 2}})
    cluster.good = 100
    cluster.fill(turns=1)
    assert len(cluster.pool.slots) == 10


def test_where_none_can_begin_the_sweep_ends_with_the_reason() -> None:
    cluster = Cluster(good=0)
    with pytest.raises(UserError, match="no project here"):
        cluster.fill(turns=1)
    assert cluster.begun == 8


# ---- the way home on a full disk


@pytest.fixture
def full(monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """Whether the driver's disk is full; a real one is in tests/faults/test_disk.py."""
    states = [True]
    finish: Callable[[Shipment], None] = Shipment.finish

    def finish_if_room(shipment: Shipment) -> None:
        if states[0]:
            raise OSError(errno.ENOSPC, "No space left on device")
        finish(shipment)

    monkeypatch.setattr(Shipment, "finish", finish_if_room)
    return states


def end_run(slot: Slot, host: Host) -> None:
    """It has left a result, which cannot be brought home."""
    (host._root / "result.json").write_text("{}")
    host.runs[0].set_result(None)
    wait_until(lambda: slot.waits is not None, "the slot to wait for room")
    assert slot.running is not None
    assert not slot.running.done()
    assert "No space left on device" in str(slot.waits)


def test_files_wait_for_room_as_long_as_it_takes(
    host: Host, tmp_path: Path, full: list[bool]
) -> None:
    attempt = AttemptDir(tmp_path / "a")
    slot = begin(host, attempt, shared=False)
    end_run(slot, host)
    full[0] = False
    assert slot.running is not None
    assert slot.running.result(60.0) is None
    assert attempt.result.read_text() == "{}"
    assert slot.waits is None


def test_files_that_wait_are_given_up_with_the_run(
    host: Host, tmp_path: Path, full: list[bool]
) -> None:
    slot = begin(host, AttemptDir(tmp_path / "a"), shared=False)
    end_run(slot, host)
    slot.kill()
    assert settle_first([pool_of(slot)], 60.0) == [slot]
    assert slot.failure is not None
    assert "cannot be brought home: [Errno 28] No space left on device" in slot.failure
    assert not slot.died
