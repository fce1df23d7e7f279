"""Runs of several nodes, with real processes under real guards; the nodes are all this machine."""

from __future__ import annotations

import json
import threading
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import psutil
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from sweeper.gang import End, Gang, MemberLostError, blamed_node, combine, most_gangs, share
from sweeper.judge import judge
from sweeper.launch import LaunchRequest, RunningAttempt, build_command
from sweeper.layout import AttemptDir
from sweeper.reaping import Tag, tagged_processes
from sweeper.rows import AttemptState
from sweeper.shipping import Scratch
from sweeper.stages import Stage
from tests.sweeper.conftest import make_spec, wait_until

# What a member does, by the "GPU" that it is given: 0 leads.
MEMBER = """
import json, os, signal, sys, time
what = os.environ["PLAN"].split(",")[int(os.environ["CUDA_VISIBLE_DEVICES"])]
stopped = []
signal.signal(signal.SIGTERM, lambda *_: stopped.append(what != "deaf"))
open(f"at-work-{what}", "w").close()
print("member does", what)
if what == "fail":
    raise KeyError("of its own")
if what == "follow":
    time.sleep(0.3)
    raise RuntimeError("Connection closed by peer [127.0.0.1]:1234")
if what == "say":
    with open("events.jsonl", "a") as file:
        fields = {"kind": "error", "t": time.time(), "error": "Bad", "message": "data", "rank": 1}
        file.write(json.dumps(fields | {"code": "user", "traceback": ""}) + chr(10))
    open("other.bin", "w").close()
    sys.exit(2)
while what in ("wait", "deaf") and not any(stopped):
    time.sleep(0.01)
sys.exit(75 if any(stopped) else 0)
"""
TAG = Tag(sweep="gang", session="s", launch=1)
PAIR = {"gpus_per_run": 2, "cpus_per_run": 2, "nodes_per_run": 2}


@dataclass
class LocalPeer(Scratch):
    """A member on this machine, that may be taken for one on another disk."""

    sees_disk: bool = True
    node: str = "second"
    gpus: tuple[str, ...] = ("1",)
    fault: Exception | None = None
    asked: list[str] = field(default_factory=list)
    running: RunningAttempt | None = None

    def __post_init__(self) -> None:
        super().__init__()

    def call(self, method: str, *arguments: Any) -> Any:
        self.asked.append(method)
        if method == "sees":
            return self.sees_disk and Path(arguments[0]).read_text() == arguments[1]
        if method == "make_scratch" and self.fault is not None:
            raise self.fault
        return getattr(self, method)(*arguments)

    def run(self, request: LaunchRequest) -> str | None:
        if self.fault is not None:
            work = Path(request.directory)
            wait_until(lambda: list(work.glob("at-work-*")), "the leader to be at work")
            raise self.fault
        self.running = RunningAttempt(request, self.gpus)
        return self.running.wait()

    def tell(self, method: str) -> None:
        if self.running is not None:
            getattr(self.running, method)()


@dataclass
class Place:
    """One attempt of a gang of two."""

    attempt: AttemptDir
    monkeypatch: pytest.MonkeyPatch

    def request(self, plan: str, *, grace: float = 20.0) -> LaunchRequest:
        (self.attempt.path / "code").mkdir(parents=True)
        (self.attempt.path / "code" / "gang_member.py").write_text(MEMBER)
        self.monkeypatch.setenv("PLAN", plan)
        return LaunchRequest(
            tag=TAG,
            directory=str(self.attempt.path),
            module="gang_member",
            launch="exec",
            processes=2,
            cpus=2,
            grace_seconds=grace,
            env={},
            code=str(self.attempt.path / "code"),
            files=("gang_member.py",),
        )

    def launch(self, plan: str, peer: LocalPeer | None = None, *, grace: float = 20.0) -> Gang:
        return Gang(self.request(plan, grace=grace), ("0",), [peer or LocalPeer()], "127.0.0.1")

    def exit(self, node: int | None = None) -> dict[str, Any]:
        attempt = self.attempt if node is None else self.attempt.on(node)
        facts: dict[str, Any] = json.loads(attempt.exit.read_text())
        return facts


@pytest.fixture
def place(tmp_path: Path, nothing_left: str, monkeypatch: pytest.MonkeyPatch) -> Place:
    return Place(AttemptDir(tmp_path / "an attempt ü"), monkeypatch)


def guards() -> list[psutil.Process]:
    return [process for process, tag in tagged_processes() if tag == TAG]


def test_a_whole_that_ends_well_does_so_on_every_node(place: Place) -> None:
    assert place.launch("good,good").wait() is None
    assert (
        place.exit()["exit_code"] == place.exit(0)["exit_code"] == place.exit(1)["exit_code"] == 0
    )
    assert place.exit()["started"] == min(place.exit(node)["started"] for node in (0, 1))
    for node, logs in ((0, "logs"), (1, "logs/node1")):
        assert place.attempt.on(node).logs == place.attempt.path / logs
        assert place.attempt.on(node).stdout.read_text() == "member does good\n"
        asked = json.loads(place.attempt.on(node).request.read_text())
        assert (asked["processes"], asked["cpus"]) == (1, 1)
        assert asked["rendezvous"]["node"] == node
        assert asked["stall_seconds"] == (None if node == 0 else 0)
    assert blamed_node(place.attempt) is None


@pytest.mark.parametrize("sees_disk", [True, False])
def test_the_others_end_when_one_fails_and_it_is_said_why(place: Place, sees_disk: bool) -> None:
    place.launch("wait,fail", LocalPeer(sees_disk=sees_disk)).wait()
    assert place.exit(0)["stop_reason"] == "asked"
    assert (place.exit()["exit_code"], place.exit()["stop_reason"]) == (1, None)
    assert blamed_node(place.attempt) == "second"
    outcome = judge(place.attempt, {})
    assert outcome.state is AttemptState.CRASHED
    assert outcome.message == "node 1: KeyError: 'of its own' (ended with exit code 1)"
    assert outcome.traceback is not None
    assert outcome.traceback.startswith("Traceback")


def test_one_that_is_deaf_is_killed_after_the_grace(place: Place) -> None:
    place.launch("fail,deaf", grace=0.2).wait()
    assert place.exit(1)["exit_code"] < 0
    assert blamed_node(place.attempt) is None
    outcome = judge(place.attempt, {})
    assert outcome.message == "node 0: KeyError: 'of its own' (ended with exit code 1)"


def test_who_died_of_anothers_death_is_not_to_blame(place: Place) -> None:
    place.launch("follow,fail").wait()
    assert judge(place.attempt, {}).message == (
        "node 1: KeyError: 'of its own' (ended with exit code 1)"
    )
    by_coming = [End(node=node, facts=place.exit(node)) for node in (0, 1)]
    assert combine(place.attempt, by_coming)["node"] == 1


@pytest.mark.parametrize("word", ["stop", "kill"])
def test_all_end_when_told_to(place: Place, word: str) -> None:
    gang = place.launch("wait,wait" if word == "stop" else "deaf,deaf")
    threading.Thread(target=lambda: tell_once_at_work(place, gang, word), daemon=True).start()
    gang.wait()
    reasons = {place.exit(node)["stop_reason"] for node in (0, 1)}
    assert reasons == {"asked" if word == "stop" else "launcher died"}
    ended = {"stop": AttemptState.STOPPED, "kill": AttemptState.LOST}
    assert judge(place.attempt, {}).state is ended[word]


def tell_once_at_work(place: Place, gang: Gang, word: str) -> None:
    # Both members leave the same file, so that their processes are counted as well.
    wait_until(lambda: list(place.attempt.path.glob("at-work-*")), "a member to be at work")
    wait_until(lambda: len(guards()) >= 4, "both members to be at work")
    getattr(gang, word)()


def test_a_guard_that_is_killed_ends_all_and_leaves_no_verdict(place: Place) -> None:
    peer = LocalPeer()
    gang = place.launch("wait,wait", peer)

    def kill_its_guard() -> None:
        wait_until(lambda: place.attempt.on(1).request.exists(), "the peer to be launched")
        wait_until(lambda: peer.running, "the peer to run")
        assert peer.running is not None
        peer.running._guard.kill()

    threading.Thread(target=kill_its_guard, daemon=True).start()
    gang.wait()
    assert not place.attempt.exit.exists()
    assert judge(place.attempt, {}).state is AttemptState.LOST


@pytest.mark.parametrize(
    "fault", [MemberLostError("The actor is dead", "second", True), OSError("no space left")]
)
def test_a_member_that_is_lost_or_cannot_begin_ends_the_others(
    place: Place, fault: Exception
) -> None:
    gang = place.launch("wait,wait", LocalPeer(fault=fault))
    with pytest.raises(type(fault), match=str(fault)):
        gang.wait()
    assert place.exit(0)["stop_reason"] == "asked"
    assert not place.attempt.exit.exists()
    assert not guards()


def test_nothing_runs_where_a_disk_has_no_room_for_its_share(place: Place) -> None:
    fault = OSError("no space left")
    with pytest.raises(OSError, match="no space left"):
        place.launch("deaf,wait", LocalPeer(sees_disk=False, fault=fault))
    assert not guards()


def test_from_another_disk_come_logs_and_what_its_ranks_say_and_nothing_else(place: Place) -> None:
    peer = LocalPeer(sees_disk=False)
    place.launch("wait,say", peer).wait()
    assert "send_code" not in peer.asked
    assert {"make_scratch", "unpack", "drop_scratch"} <= set(peer.asked)
    names = {path.name for path in place.attempt.path.iterdir()}
    assert names == {
        *("at-work-wait", "code", "logs", "events.jsonl", "request.json", "request.node1.json"),
        *("exit.json", "exit.node0.json", "exit.node1.json"),
    }
    assert place.attempt.on(1).stdout.read_text() == "member does say\n"
    outcome = judge(place.attempt, {})
    assert outcome.state is AttemptState.USER_ERROR
    assert outcome.message == "Bad (rank 1): data"


def test_what_an_earlier_launch_left_is_forgotten_with_its_end(place: Place) -> None:
    place.launch("good,good").wait()
    place.attempt.of(Stage.ALL, 2).forget_end()
    assert not list(place.attempt.path.glob("exit*"))


def test_shares_meet_at_the_first_node(place: Place) -> None:
    request = place.request("")
    first, second = share(request, 2, "10.0.0.1", 4242)
    assert first.attempt.exit.name == "exit.node0.json"
    assert second.attempt.of(Stage.TRAIN).on(1).exit.name == "exit.train.node1.json"
    assert second.attempt.of(Stage.TRAIN, 2).on(1).request.name == "request.train.2.node1.json"
    for launched, node in ((first, 0), (second, 1)):
        command = build_command(replace(launched, launch="torchrun"))
        assert "--standalone" not in command
        meeting = command[3:7]
        assert meeting == [
            *("--nnodes=2", f"--node-rank={node}", "--master-addr=10.0.0.1"),
            "--master-port=4242",
        ]


def test_one_process_cannot_be_on_several_nodes() -> None:
    with pytest.raises(ValidationError, match="exec starts one process on one node"):
        make_spec(workload={"launch": "exec"}, resources=PAIR)


# ---- room


@pytest.mark.parametrize(
    ("fits", "nodes", "gangs"),
    [
        ([1, 1], 2, 1),
        ([2, 2], 2, 2),
        ([8], 2, 0),
        ([], 2, 0),
        ([5, 1, 1], 2, 2),
        ([1, 1, 1, 1, 1], 2, 2),
        ([3, 3, 3], 3, 3),
        ([4, 4], 1, 8),
    ],
)
def test_how_many_gangs_there_is_room_for(fits: list[int], nodes: int, gangs: int) -> None:
    assert most_gangs(fits, nodes) == gangs


@given(st.lists(st.integers(0, 4), max_size=6), st.integers(1, 4))
def test_so_many_gangs_can_be_placed_and_not_one_more(fits: list[int], nodes: int) -> None:
    # To take the nodes with the most room each time never costs a place.
    left, placed = list(fits), 0
    while True:
        left.sort(reverse=True)
        if len(left) < nodes or left[nodes - 1] == 0:
            break
        left[:nodes] = [room - 1 for room in left[:nodes]]
        placed += 1
    assert most_gangs(fits, nodes) == placed
