"""The driver's pulse: written whole, read whatever lies there, and whether a driver lives."""

from __future__ import annotations

import dataclasses
import fcntl
import multiprocessing
import socket
import time
from pathlib import Path

import pytest

from sweeper import pulse
from sweeper.driver import hold
from sweeper.errors import UserError
from sweeper.layout import SweepDir
from sweeper.pulse import Pulse, Quarantined, SlotPulse, SlotState, is_alive
from sweeper.stages import Stage
from tests.sweeper.conftest import wait_until

SAID = Pulse(
    pid=7,
    host=socket.gethostname(),
    started=1.0,
    t=2.0,
    paused="no room",
    slots=(
        SlotPulse(pool="runs", state=SlotState.OPENING),
        SlotPulse(
            pool="packing",
            state=SlotState.BUSY,
            node="n1",
            host="größe",
            gpus="0,1",
            trial="low",
            seed=2**62,
            stage=Stage.PACK,
        ),
    ),
    quarantined=(Quarantined(node="n2", host="h2", why="it fails"),),
    waiting=3,
    backing_off=1,
)


def test_what_is_written_is_read(sweep: SweepDir) -> None:
    pulse.write(sweep.pulse, dataclasses.replace(SAID, paused=None))
    pulse.write(sweep.pulse, SAID)
    assert pulse.read(sweep.pulse) == SAID
    assert [path.name for path in sweep.path.iterdir()] == [sweep.pulse.name]


@pytest.mark.parametrize(
    "content", [b"", b"{", b"[]", b"null", b'{"pid": 1}', b"\xff\0", b"1" * 99]
)
def test_what_is_no_pulse_is_none(sweep: SweepDir, content: bytes) -> None:
    assert pulse.read(sweep.pulse) is None
    sweep.pulse.write_bytes(content)
    assert pulse.read(sweep.pulse) is None


def test_a_pulse_that_cannot_be_written_stops_nobody(tmp_path: Path) -> None:
    pulse.write(tmp_path / "nowhere" / "driver.json", SAID)
    (tmp_path / "driver.json.partial").mkdir()
    pulse.write(tmp_path / "driver.json", SAID)
    assert pulse.read(tmp_path / "driver.json") is None


def test_a_driver_lives_while_it_holds_the_sweep(sweep: SweepDir) -> None:
    assert not is_alive(sweep)
    with hold(sweep):
        assert is_alive(sweep)
        assert is_alive(sweep, SAID)
    assert not is_alive(sweep)
    assert not is_alive(sweep, dataclasses.replace(SAID, t=time.time()))


def test_a_driver_elsewhere_lives_as_long_as_it_speaks(sweep: SweepDir) -> None:
    elsewhere = dataclasses.replace(SAID, host="elsewhere", t=time.time())
    assert is_alive(sweep, elsewhere)
    assert not is_alive(sweep, dataclasses.replace(elsewhere, t=time.time() - 3600))


def look_for_ever(path: str) -> None:
    sweep = SweepDir(Path(path))
    (sweep.path / "looking").touch()
    while True:
        is_alive(sweep)
        time.sleep(0.001)


def test_who_looks_keeps_no_driver_from_its_sweep(sweep: SweepDir) -> None:
    sweep.lock.touch()
    start = multiprocessing.get_context("spawn")
    looking = start.Process(target=look_for_ever, args=(str(sweep.path),), daemon=True)
    looking.start()
    try:
        wait_until((sweep.path / "looking").exists, "another process to look")
        for _ in range(200):
            with hold(sweep):
                pass
    finally:
        looking.kill()
        looking.join()


def test_a_sweep_that_is_held_stays_so(sweep: SweepDir) -> None:
    with hold(sweep), sweep.lock.open() as file:
        assert is_alive(sweep)
        with pytest.raises(BlockingIOError):
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        with pytest.raises(UserError, match="is being run already"), hold(sweep):
            pass
