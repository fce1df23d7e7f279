"""A disk that is full, and a ledger whose writer is killed in the middle of a write."""

from __future__ import annotations

import contextlib
import os
import shutil
import sqlite3
import subprocess
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import pytest

from sweeper.errors import UserError
from sweeper.layout import SweepDir
from tests.faults.aftermath import attempt_counts, check_aftermath, seeded
from tests.faults.fleet import Fleet, a_fleet
from tests.sweeper.conftest import wait_until
from tests.sweeper.ray_helpers import Place
from tests.sweeper.sweeps import open_gate

pytestmark = pytest.mark.usefixtures("quiet")

DISK_BYTES = 16 << 20
RUN_BYTES = 3 << 20


@pytest.fixture(scope="module")
def fleet(place: Place) -> Iterator[Fleet]:
    with a_fleet(place, head_gpus=8, cpus=4) as fleet:
        yield fleet


@contextmanager
def a_small_disk(path: Path, *, files: int = 10_000) -> Iterator[Path]:
    """A file system with little room, for the time of a `with` block; skips where none is given."""
    path.mkdir()
    room = f"size={DISK_BYTES},nr_inodes={files}"
    mount = ["mount", "-t", "tmpfs", "-o", room, "none", str(path)]
    try:
        subprocess.run(mount, check=True, capture_output=True, text=True)
    except (OSError, subprocess.CalledProcessError) as error:
        reason = getattr(error, "stderr", None) or str(error)
        pytest.skip(f"no file system of a size of its own can be mounted here: {reason.strip()}")
    try:
        yield path
    finally:
        subprocess.run(["umount", "--lazy", str(path)], check=True)
        path.rmdir()


def fill(path: Path, leave: int = 0) -> Path:
    """Take all the room that there is, but for so many bytes."""
    filler = path / "filler"
    with filler.open("wb", buffering=0) as file, contextlib.suppress(OSError):
        while True:
            file.write(bytes(1 << 16))
    os.truncate(filler, filler.stat().st_size - leave)
    return filler


def fill_with_files(path: Path) -> list[Path]:
    """Take every file that there may be."""
    fillers: list[Path] = []
    with contextlib.suppress(OSError):
        while True:
            filler = path / f"filler{len(fillers)}"
            filler.touch()
            fillers.append(filler)
    return fillers


def test_a_sweep_on_a_full_disk_waits_for_room_and_loses_nothing(
    place: Place, fleet: Fleet
) -> None:
    """Four runs of 3 MiB on 16 MiB, of which the test takes the rest in the middle."""
    spec = place.write_spec(
        "full",
        seeds=(1, 2, 3, 4),
        trials={"t": {}},
        env={"GATED": 1, "ARTIFACT_BYTES": RUN_BYTES},
        resources={"gpus_per_run": 4},
        limits={"backoff_seconds": 0.1, "max_attempts": 1},
        disk={"reserve_bytes": 0},
    )
    with a_small_disk(place.path / "disk") as disk:
        sweep = SweepDir(disk / "full")
        board = place.board("full")
        driver = place.drive(spec, "--address", fleet.address, "--root", str(disk))
        driver.wait_for_arrivals(2)
        filler = fill(disk)
        (board.path / "gate").write_text("2")
        wait_until(lambda: "paused: " in driver.stderr.read_text(), "the driver to say so")
        # Nothing is launched meanwhile.
        assert board.arrivals() == 2
        filler.unlink()
        (board.path / "gate").write_text("100")
        assert driver.wait() == 0, driver.said
        check_aftermath(
            place, fleet, "full", sweep=sweep, runs=4, attempts={"finished": 4, "no_space": 2}
        )
        assert "goes on now" in driver.stderr.read_text()


def test_a_disk_that_may_have_no_more_files_is_full_too(place: Place, fleet: Fleet) -> None:
    """Bytes are there, but the runs cannot make a file, and the driver no directory."""
    spec = place.write_spec(
        "crowded",
        seeds=(1, 2, 3, 4),
        trials={"t": {}},
        env={"GATED": 1},
        resources={"gpus_per_run": 4},
        limits={"backoff_seconds": 0.1, "max_attempts": 1},
        disk={"reserve_bytes": 0},
    )
    with a_small_disk(place.path / "disk", files=400) as disk:
        sweep, board = SweepDir(disk / "crowded"), place.board("crowded")
        driver = place.drive(spec, "--address", fleet.address, "--root", str(disk))
        driver.wait_for_arrivals(2)
        fillers = fill_with_files(disk)
        (board.path / "gate").write_text("2")
        wait_until(lambda: "paused: " in driver.stderr.read_text(), "the driver to say so")
        for filler in fillers:
            filler.unlink()
        (board.path / "gate").write_text("100")
        assert driver.wait() == 0, driver.said
        counts = attempt_counts(sweep)
        assert counts.keys() == {"finished", "no_space"}
        check_aftermath(
            place, fleet, "crowded", sweep=sweep, runs=4, attempts=counts | {"finished": 4}
        )


def test_a_finished_run_waits_on_its_own_disk_for_room_at_home(place: Place, fleet: Fleet) -> None:
    spec = place.write_spec(
        "homeless",
        seeds=(1, 2),
        trials={"t": {"ARTIFACT_BYTES": 1 << 20}},
        env={"GATED": 1},
        resources={"gpus_per_run": 4},
        limits={"max_attempts": 1},
        disk={"reserve_bytes": 0},
    )
    with a_small_disk(place.path / "disk") as disk:
        sweep, board = SweepDir(disk / "homeless"), place.board("homeless")
        sweep.path.mkdir()
        sweep.nonce.symlink_to("/dev/null")  # so that the slots take this for another disk
        driver = place.drive(spec, "--address", fleet.address, "--root", str(disk))
        driver.wait_for_arrivals(2)
        filler = fill(disk)
        open_gate(board)
        wait_until(
            lambda: "cannot be brought home" in driver.stderr.read_text(), "the driver to say so"
        )
        filler.unlink()
        assert driver.wait() == 0, driver.said
        check_aftermath(place, fleet, "homeless", sweep=sweep, runs=2, attempts={"finished": 2})
        assert board.arrivals() == 2


def test_a_sweep_that_cannot_begin_on_a_full_disk_says_so_in_a_line(place: Place) -> None:
    spec = place.write_spec("unborn", seeds=(1,), trials={"t": {}}, disk={"reserve_bytes": 0})
    with a_small_disk(place.path / "disk") as disk:
        for left in (0, 64 << 10):  # not even for the lock; not for the ledger
            filler = fill(disk, left)
            driver = place.drive(spec, "--num-cpus", "1", "--root", str(disk))
            assert driver.wait() == 2, driver.said
            (said,) = driver.stderr.read_text().splitlines()
            assert said.startswith("error: ")
            assert "make room" in said
            filler.unlink()
        driver = place.drive(spec, "--num-cpus", "1", "--root", str(disk))
        assert driver.wait() == 0, driver.said


def integrity(path: Path) -> str:
    with closing(sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True)) as connection:
        return str(connection.execute("PRAGMA integrity_check").fetchone()[0])


RUNS = 40
KILLS = 6


@pytest.mark.slow
def test_a_ledger_whose_writer_is_killed_at_any_moment_is_whole(place: Place, fleet: Fleet) -> None:
    """Runs that take no time, so that the driver writes nearly all the time."""
    spec = place.write_spec(
        "torn", seeds=tuple(range(RUNS)), trials={"t": {}}, resources={"gpus_per_run": 2}
    )
    sweep, chance = place.sweep("torn"), seeded()
    for number in range(KILLS):
        driver = place.drive(spec, "--address", fleet.address)
        if number == 0:
            # In the moment when the ledger is made.
            wait_until(sweep.ledger.exists, "the ledger to be there")
        else:
            wait_for_launches(sweep, launches(sweep) + 4)
            time.sleep(chance.random() * 0.2)
        assert driver.process.poll() is None, driver.said
        driver.kill()
        # As it lies there after a crash, before anybody has opened it again.
        copy = place.path / f"torn{number}"
        copy.mkdir()
        for file in sweep.path.glob("ledger.sqlite*"):
            shutil.copy(file, copy)
        assert integrity(copy / "ledger.sqlite") == "ok"
    last = place.resume("torn", "--address", fleet.address)
    assert last.wait() == 0, last.said
    lost = attempt_counts(sweep).get("lost", 0)
    assert lost <= 4 * KILLS  # each kill had four slots
    attempts = {"finished": RUNS} | ({"lost": lost} if lost else {})
    check_aftermath(place, fleet, "torn", runs=RUNS, attempts=attempts)
    assert integrity(sweep.ledger) == "ok"


def wait_for_launches(sweep: SweepDir, count: int) -> None:
    wait_until(lambda: launches(sweep) >= count, f"{count} launches in all")


def launches(sweep: SweepDir) -> int:
    """How many attempts the ledger knows; 0 before there is one."""
    try:
        return sum(attempt_counts(sweep).values())
    except UserError:
        return 0
