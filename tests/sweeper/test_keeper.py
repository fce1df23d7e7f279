"""A driver that falls without a word is begun again, and only such a one."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.sweeper.conftest import ROOT, alive, wait_until

# Its driver writes its process id into a file for each start, then does what `ways` say of it.
KEPT = """
import os, pathlib, signal, sys, time
from sweeper import keeper
keeper.LOOK_SECONDS = 0.05
place, address, *ways = sys.argv[1:]
place = pathlib.Path(place)

def drive(again):
    start = len(list(place.glob("start-*")))
    assert again == (start > 0)
    (place / f"start-{start}").write_text(str(os.getpid()))
    match ways[min(start, len(ways) - 1)]:
        case "falls":
            os._exit(1)  # as Ray does
        case "is killed":
            os.kill(os.getpid(), signal.SIGKILL)
        case "raises":
            raise RuntimeError("a fault")
        case "waits":
            def stop(number, frame):
                (place / "stopped").write_text(str(number))
                sys.exit(0)
            signal.signal(signal.SIGTERM, stop)
            signal.signal(signal.SIGINT, stop)
            (place / "ready").touch()
            while True:
                time.sleep(0.01)
        case code:
            return int(code)

sys.exit(keeper.keep(drive, address, lambda text: print(text, flush=True), "few"))
"""


@pytest.fixture
def server() -> Iterator[socket.socket]:
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server


def start(place: Path, address: str, *ways: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", KEPT, str(place), address, *ways]
    return subprocess.Popen(
        command, cwd=ROOT, stdout=subprocess.PIPE, text=True, start_new_session=True
    )


def name_of(server: socket.socket) -> str:
    return f"127.0.0.1:{server.getsockname()[1]}"


def starts(place: Path) -> int:
    return len(list(place.glob("start-*")))


@pytest.mark.parametrize(
    ("ways", "code", "expected"),
    [
        (["0"], 0, 1),
        (["1"], 1, 1),  # runs have failed: a last word, like any other
        (["130"], 130, 1),
        (["falls", "0"], 0, 2),
        (["is killed", "falls", "2"], 2, 3),
        (["raises"], 70, 1),
        (["falls"], 75, 4),
    ],
)
def test_only_a_driver_without_a_last_word_is_begun_again(
    tmp_path: Path, server: socket.socket, ways: list[str], code: int, expected: int
) -> None:
    kept = start(tmp_path, name_of(server), *ways)
    said, _ = kept.communicate(timeout=60)
    assert kept.returncode == code, said
    assert starts(tmp_path) == expected
    assert said.count("answers; the sweep goes on") == expected - 1
    assert ("`sweeper resume few` goes on" in said) == (ways == ["falls"])


def test_it_waits_until_the_cluster_answers(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = name_of(server)
        port = server.getsockname()[1]
    kept = start(tmp_path, address, "falls", "0")
    assert kept.stdout is not None
    assert "waiting for" in kept.stdout.readline()
    assert starts(tmp_path) == 1
    with socket.create_server(("127.0.0.1", port)):
        assert kept.wait(60) == 0
    assert starts(tmp_path) == 2
    kept.communicate()


def test_waiting_can_be_given_up(tmp_path: Path, server: socket.socket) -> None:
    address = name_of(server)
    server.close()
    kept = start(tmp_path, address, "falls")
    assert kept.stdout is not None
    assert "waiting for" in kept.stdout.readline()
    os.killpg(kept.pid, signal.SIGINT)
    said, _ = kept.communicate(timeout=60)
    assert kept.returncode == 130
    assert "`sweeper resume few` goes on" in said


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_the_driver_is_told_to_stop(
    tmp_path: Path, server: socket.socket, number: signal.Signals
) -> None:
    kept = start(tmp_path, name_of(server), "waits")
    wait_until((tmp_path / "ready").exists, "the driver to be ready")
    if number is signal.SIGINT:
        os.killpg(kept.pid, number)  # as a terminal does
    else:
        kept.send_signal(number)
    kept.communicate(timeout=60)
    assert (tmp_path / "stopped").read_text() == str(int(number))


def test_the_driver_dies_with_its_keeper(tmp_path: Path, server: socket.socket) -> None:
    kept = start(tmp_path, name_of(server), "waits")
    wait_until((tmp_path / "ready").exists, "the driver to be ready")
    driver = int((tmp_path / "start-0").read_text())
    assert alive(driver)
    kept.kill()
    kept.communicate(timeout=60)
    wait_until(lambda: not alive(driver), "the driver to die")
