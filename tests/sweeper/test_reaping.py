"""What earlier launches have left running on this host: found by its tag, and ended."""

from __future__ import annotations

import os
import subprocess
import sys
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sweeper.launch import LaunchRequest, RunningAttempt
from sweeper.reaping import TAG_NAME, Tag, end_tagged, reap_leftovers, tagged_processes
from tests.sweeper.conftest import ROOT, alive, wait_until, write_module


@pytest.fixture
def tag() -> Tag:
    """A tag that no other test, and no sweep on this machine, has."""
    return Tag(sweep=uuid.uuid4().hex, session="session", launch=1)


@pytest.fixture
def sleepers(nothing_left: str) -> Iterator[Callable[[str | None], psutil.Process]]:
    """Start processes that carry a tag, or none, and sleep; they are ended after the test."""
    started: list[subprocess.Popen[bytes]] = []

    def start(text: str | None) -> psutil.Process:
        env = dict(os.environ) | ({} if text is None else {TAG_NAME: text})
        started.append(subprocess.Popen(["sleep", "1000"], env=env))
        # Until it has become `sleep`, it has the environment of this process.
        process = psutil.Process(started[-1].pid)
        wait_until(lambda: process.name() == "sleep", "the sleeper to begin")
        return process

    yield start
    for process in started:
        process.kill()
        process.wait()


Sleepers = Callable[[str | None], psutil.Process]


def test_only_what_nobody_owns_any_more_is_reaped(sleepers: Sleepers, tag: Tag) -> None:
    ours, other = tag.sweep, uuid.uuid4().hex
    leftovers = [
        sleepers(f"{ours}:earlier:1"),
        sleepers(f"{ours}:earlier:77"),
        sleepers(f"{ours}:session:5"),
    ]
    untouched = [
        sleepers(f"{ours}:session:1"),
        sleepers(f"{ours}:session:6"),
        sleepers(f"{other}:earlier:1"),
        sleepers(f"{other}:session:5"),
        sleepers(f"{ours}x:earlier:1"),
        sleepers(f"{ours}:earlier"),
        sleepers(f"{ours}:earlier:²"),
        sleepers(ours),
        sleepers(""),
        sleepers(None),
    ]
    assert reap_leftovers(tag, dead={5}) == 3
    assert not any(alive(process.pid) for process in leftovers)
    assert all(alive(process.pid) for process in untouched)
    assert reap_leftovers(tag, dead={5}) == 0


def test_a_launch_reaps_first(
    sleepers: Sleepers, tag: Tag, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    leftover, dead = sleepers(f"{tag.sweep}:earlier:1"), sleepers(f"{tag.sweep}:session:5")
    owned = sleepers(f"{tag.sweep}:session:6")
    request = LaunchRequest(
        tag=tag,
        directory=str(tmp_path / "attempt"),
        module=write_module(tmp_path, "trainer", ""),
        launch="exec",
        processes=1,
        cpus=1,
        grace_seconds=60.0,
        env={},
        dead=frozenset({5}),
    )
    running = RunningAttempt(request, ())
    assert not alive(leftover.pid)
    assert not alive(dead.pid)
    running.wait()
    assert alive(owned.pid)


def test_this_process_never_ends_itself(tag: Tag) -> None:
    script = (
        "import sys; from sweeper.reaping import end_tagged; "
        "print(end_tagged(lambda tag: tag.sweep == sys.argv[1]))"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, tag.sweep],
        cwd=ROOT,
        env=os.environ | {TAG_NAME: str(tag)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout == "0\n"


def test_nothing_that_is_not_wanted_is_ended(sleepers: Sleepers, tag: Tag) -> None:
    process = sleepers(str(tag))
    # For a moment of its start a process has no environment yet.
    wait_until(lambda: tag in [found for _, found in tagged_processes()], "its tag to be seen")
    assert end_tagged(lambda _: False) == 0
    assert alive(process.pid)
    assert end_tagged(lambda found: found == tag) == 1
    assert not alive(process.pid)


WORDS = st.text(st.characters(codec="ascii", categories=["L", "N"]), max_size=12)


@given(WORDS, WORDS, st.integers(0, 10**9))
def test_a_tag_comes_back_from_its_text(sweep: str, session: str, launch: int) -> None:
    tag = Tag(sweep=sweep, session=session, launch=launch)
    assert Tag.parse(str(tag)) == tag


@pytest.mark.parametrize("text", ["", ":", "a", "a:b", "a:b:", "a:b:c", "a:b:-1", "a:b:1:2", "::²"])
def test_other_text_is_no_tag(text: str) -> None:
    assert Tag.parse(text) is None
