"""One run on this host, launched and ended: real processes, a trainer that is none."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from sweeper import guard
from sweeper.contract import EventReader
from sweeper.judge import Outcome, judge
from sweeper.launch import (
    FOREIGN_NAMES,
    PROJECT,
    LaunchRequest,
    RunningAttempt,
    build_command,
    build_env,
)
from sweeper.layout import AttemptDir
from sweeper.reaping import TAG_NAME, Tag, tagged_processes
from sweeper.rows import AttemptState
from sweeper.stages import Stage
from tests.sweeper.conftest import (
    FINISHES,
    ROOT,
    alive,
    result_facts,
    wait_until,
    write_module,
)

OVERRIDES = {"SEED": "42", "LR": "0.1"}
# Ends when it is asked to, and says so.
LISTENS = """
def stop(*_):
    event("stopped", reason="asked", step=3)
    sys.exit(75)
signal.signal(signal.SIGTERM, stop)
event("ready", pid=os.getpid())
forever()
"""
DEAF = """
signal.signal(signal.SIGTERM, signal.SIG_IGN)
event("ready", pid=os.getpid())
forever()
"""
# A process of the run's own that has left the tree, as a data loader's might.
DAEMON = """
if os.fork() == 0:
    os.setsid()
    if os.fork() == 0:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        event("ready", pid=os.getpid())
        forever()
    os._exit(0)
"""


@pytest.fixture
def tag() -> Tag:
    """A tag that no other test, and no sweep on this machine, has."""
    return Tag(sweep=uuid.uuid4().hex, session="session", launch=1)


Launch = Callable[..., tuple[RunningAttempt, AttemptDir]]


@pytest.fixture
def launch(
    tmp_path: Path, tag: Tag, monkeypatch: pytest.MonkeyPatch, nothing_left: str
) -> Iterator[Launch]:
    """Launch an attempt of a module with the given body; hostile paths on purpose."""
    modules = tmp_path / "größe und platz"
    monkeypatch.setenv("PYTHONPATH", str(modules))
    started: list[RunningAttempt] = []

    def run(
        body: str, gpus: tuple[str, ...] = (), **changes: Any
    ) -> tuple[RunningAttempt, AttemptDir]:
        request = make_request(
            tag=changes.pop("tag", tag),
            directory=str(modules / "an attempt ✓" / str(len(started))),
            module=write_module(modules, f"trainer_{len(started)}", body),
            **changes,
        )
        started.append(RunningAttempt(request, gpus))
        return started[-1], AttemptDir(Path(request.directory))

    yield run
    for attempt in started:
        attempt.kill()
        attempt.wait()


def make_request(**changes: Any) -> LaunchRequest:
    facts: dict[str, Any] = {
        "tag": Tag(sweep="sweep", session="session", launch=1),
        "directory": "/nowhere",
        "module": "model.train",
        "launch": "exec",
        "processes": 1,
        "cpus": 1,
        "grace_seconds": 60.0,
        "env": OVERRIDES,
    }
    return LaunchRequest(**(facts | changes))


def ready(attempt: AttemptDir, count: int = 1) -> list[int]:
    """The ids of the processes that have said they are ready, once there are as many."""

    def said() -> list[int]:
        events = EventReader(attempt.events).read()
        return [event["pid"] for event in events if event["kind"] == "ready"]

    wait_until(lambda: len(said()) >= count, "the run's processes to be ready")
    return said()


# ---- the whole way


def test_a_script_runs_to_its_result(launch: Launch) -> None:
    running, attempt = launch(FINISHES + "print('said')\nprint('also said', file=sys.stderr)\n")
    running.wait()
    outcome = judge(attempt, OVERRIDES)
    assert outcome == Outcome(
        state=AttemptState.FINISHED, exit_code=0, result=result_facts(val_bpb=1.1)
    )
    assert attempt.stdout.read_text() == "said\n"
    assert attempt.stderr.read_text() == "also said\n"
    request = json.loads(attempt.request.read_text())
    assert request["env"] == OVERRIDES
    assert request["command"][1:] == ["-m", "trainer_0"]
    assert (request["gpus"], request["dead"]) == ([], [])
    assert not list(attempt.path.glob("*.partial"))


SAYS_ENVIRONMENT = """
facts = {"cwd": os.getcwd(), "env": dict(os.environ), "nice": os.nice(0)}
(RUN_DIR / f"env{RANK}.json").write_text(json.dumps(facts))
"""


def test_a_run_gets_its_own_environment_and_no_others(
    launch: Launch, tag: Tag, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in FOREIGN_NAMES:
        monkeypatch.setenv(name, "7")
    for name in ("OMP_NUM_THREADS", "CUDA_VISIBLE_DEVICES", "LR", "RUN_DIR", TAG_NAME):
        monkeypatch.setenv(name, "of another")
    monkeypatch.setenv("KEPT", "größe")
    running, attempt = launch(SAYS_ENVIRONMENT, ("3", "5"), cpus=6)
    running.wait()
    facts = json.loads((attempt.path / "env0.json").read_text())
    env = facts["env"]
    assert not set(FOREIGN_NAMES) & env.keys()
    assert facts["cwd"] == env["RUN_DIR"] == str(attempt.path)
    assert {name: env[name] for name in OVERRIDES} == OVERRIDES
    assert env["CUDA_VISIBLE_DEVICES"] == "3,5"
    assert env["OMP_NUM_THREADS"] == "6"
    assert env["KEPT"] == "größe"
    assert env["PYTHONPATH"].split(os.pathsep)[0] == str(PROJECT)
    assert Tag.parse(env[TAG_NAME]) == tag


def test_torchrun_runs_every_rank_to_one_result(
    launch: Launch, monkeypatch: pytest.MonkeyPatch
) -> None:
    # torchrun of another run, which this one would otherwise take for its own.
    for name in FOREIGN_NAMES:
        monkeypatch.setenv(name, "7")
    body = FINISHES + SAYS_ENVIRONMENT + "print('said by', RANK)\n"
    running, attempt = launch(body, launch="torchrun", processes=2, cpus=6)
    running.wait()
    outcome = judge(attempt, OVERRIDES)
    assert outcome.state is AttemptState.FINISHED, outcome
    for rank in (0, 1):
        facts = json.loads((attempt.path / f"env{rank}.json").read_text())
        assert (facts["env"]["WORLD_SIZE"], facts["env"]["LOCAL_RANK"]) == ("2", str(rank))
        assert facts["env"]["OMP_NUM_THREADS"] == "3"
        assert facts["env"]["CUDA_VISIBLE_DEVICES"] == ""
        assert facts["env"]["MASTER_ADDR"] != "7"
        assert facts["cwd"] == str(attempt.path)
        (log,) = attempt.rank_logs(rank, "stdout")
        assert log.read_text() == f"said by {rank}\n"


# ---- the end, asked for or not


def test_a_run_that_is_asked_ends_itself(launch: Launch) -> None:
    running, attempt = launch("config()\n" + LISTENS)
    (pid,) = ready(attempt)
    waiting = threading.Thread(target=running.wait)
    waiting.start()
    running.stop()
    waiting.join(timeout=120)
    assert not waiting.is_alive()
    assert not alive(pid)
    outcome = judge(attempt, OVERRIDES)
    assert (outcome.state, outcome.exit_code) == (AttemptState.STOPPED, 75)
    assert outcome.message == "stopped on request"
    # Saying it again, to a run that is over, harms nobody.
    running.stop()
    running.kill()
    running.kill()
    running.wait()


def test_a_run_that_does_not_listen_is_killed_after_its_grace(launch: Launch) -> None:
    running, attempt = launch(DAEMON + DEAF, grace_seconds=0.2)
    pids = ready(attempt, 2)
    running.stop()
    running.wait()
    assert not any(map(alive, pids))
    outcome = judge(attempt, OVERRIDES)
    assert (outcome.state, outcome.exit_code) == (AttemptState.STOPPED, -signal.SIGKILL)


def test_a_run_that_is_let_go_of_ends(launch: Launch) -> None:
    running, attempt = launch(DAEMON + DEAF, grace_seconds=0.2)
    pids = ready(attempt, 2)
    running.kill()
    running.wait()
    assert not any(map(alive, pids))
    outcome = judge(attempt, OVERRIDES)
    assert (outcome.state, outcome.exit_code) == (AttemptState.LOST, -signal.SIGKILL)
    assert outcome.message == "it was ended because the process that launched it died"


LAUNCHER = """
import sys
from sweeper.launch import LaunchRequest, RunningAttempt
from sweeper.reaping import Tag
directory, module, sweep = sys.argv[1:]
RunningAttempt(
    LaunchRequest(
        tag=Tag(sweep=sweep, session="session", launch=1), directory=directory, module=module,
        launch="exec", processes=1, cpus=1, grace_seconds=60.0, env={"SEED": "42", "LR": "0.1"},
    ),
    (),
).wait()
"""


def test_a_run_ends_with_the_process_that_launched_it(
    tmp_path: Path, tag: Tag, monkeypatch: pytest.MonkeyPatch, nothing_left: str
) -> None:
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    attempt = AttemptDir(tmp_path / "attempt")
    module = write_module(tmp_path, "trainer", DAEMON + LISTENS)
    command = [sys.executable, "-c", LAUNCHER, str(attempt.path), module, tag.sweep]
    process = subprocess.Popen(command, cwd=ROOT)
    try:
        pids = ready(attempt, 2)
        pids += [process.pid for process, found in tagged_processes() if found == tag]
    finally:
        process.kill()
        process.wait()
    wait_until(lambda: not any(map(alive, pids)), "the run and its guard to end")
    assert judge(attempt, OVERRIDES).state is AttemptState.LOST


def test_when_the_guard_is_killed_torchrun_and_all_ranks_die(launch: Launch, tag: Tag) -> None:
    body = ("if RANK == 1:\n" + DAEMON.replace("\n", "\n    ") + "\n" + DEAF).replace("\n\n", "\n")
    running, attempt = launch(body, launch="torchrun", processes=2)
    pids = ready(attempt, 3)
    tagged = [process for process, found in tagged_processes() if found == tag]
    assert set(pids) < {process.pid for process in tagged}
    (guarding,) = [process for process in tagged if "supervise" in process.cmdline()]
    guarding.kill()
    running.wait()
    assert not any(alive(process.pid) for process in tagged)
    outcome = judge(attempt, OVERRIDES)
    assert outcome.state is AttemptState.LOST
    assert outcome.message == "its processes were killed together with their guard"


def test_the_rank_that_failed_is_named_with_its_traceback(launch: Launch) -> None:
    body = "if RANK == 1:\n    raise ValueError('the cause')\n" + DEAF.replace("IGN", "DFL")
    running, attempt = launch(body, launch="torchrun", processes=2)
    running.wait()
    outcome = judge(attempt, OVERRIDES)
    assert (outcome.state, outcome.message) == (
        AttemptState.CRASHED,
        "ValueError: the cause (rank 1 ended with exit code 1)",
    )
    assert outcome.traceback is not None
    assert outcome.traceback.startswith("Traceback")
    assert "ValueError: the cause" in outcome.traceback


def test_a_killed_rank_is_no_request_to_stop(launch: Launch) -> None:
    # torchrun stops the others, and they say that they were stopped; nobody had asked for it.
    # Once rank 0 is ready, rank 1 dies as by the kernel's hand.
    body = """
if RANK == 1:
    while not (RUN_DIR / "events.jsonl").exists():
        time.sleep(0.01)
    os.kill(os.getpid(), signal.SIGKILL)
"""
    running, attempt = launch(body + LISTENS, launch="torchrun", processes=2)
    running.wait()
    assert "stopped" in [event["kind"] for event in EventReader(attempt.events).read()]
    outcome = judge(attempt, OVERRIDES)
    assert (outcome.state, outcome.message) == (
        AttemptState.CRASHED,
        "rank 1 ended with signal SIGKILL",
    )


def test_a_launch_that_is_not_possible_leaves_nothing_open(tmp_path: Path, tag: Tag) -> None:
    blocked = tmp_path / "file"
    blocked.write_text("no directory")
    request = make_request(tag=tag, directory=str(blocked / "attempt"))
    before = set(os.listdir("/proc/self/fd"))
    with pytest.raises(NotADirectoryError):
        RunningAttempt(request, ())
    assert set(os.listdir("/proc/self/fd")) == before


def test_an_attempt_that_is_over_holds_nothing_open(launch: Launch) -> None:
    launch("")[0].wait()
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(3):
        launch("")[0].wait()
    assert len(os.listdir("/proc/self/fd")) == before


# ---- the command and its environment


def test_a_module_is_started_alone_or_under_torchrun_with_a_guard_a_rank() -> None:
    assert build_command(make_request(module="a.b")) == [sys.executable, "-m", "a.b"]
    command = build_command(make_request(module="a.b", launch="torchrun", processes=8))
    assert command[:3] == [sys.executable, "-m", "torch.distributed.run"]
    assert {"--standalone", "--nproc-per-node=8", "--max-restarts=0"} <= set(command)
    rank = [guard.__file__, "rank", "--", sys.executable, "-m", "a.b"]
    assert command[-len(rank) :] == rank


def test_a_stage_is_told_which_it_is_and_writes_beside_the_others(launch: Launch) -> None:
    body = SAYS_ENVIRONMENT + "print('packed')"
    running, attempt = launch(body, stage=Stage.PACK, number=2, nice=7)
    running.wait()
    facts = json.loads((attempt.path / "env0.json").read_text())
    assert facts["env"]["STAGE"] == "pack"
    assert facts["nice"] == 7 or os.nice(0) > 7  # an ordinary user cannot be less nice
    again = attempt.of(Stage.PACK, 2)
    assert again.exit.name == "exit.pack.json"
    assert json.loads(again.exit.read_text())["exit_code"] == 0
    assert again.stdout.read_text() == "packed\n"
    assert json.loads(again.request.read_text())["stage"] == "pack"
    assert "STAGE" not in json.loads(again.request.read_text())["inherited"]
    assert not attempt.exit.exists()
    command = build_command(make_request(launch="torchrun", stage=Stage.TRAIN))
    assert "--log-dir=/nowhere/logs/train/ranks" in command


@pytest.mark.parametrize(
    ("cpus", "processes", "threads"),
    [(1, 1, "1"), (8, 1, "8"), (16, 8, "2"), (7, 2, "3"), (1, 8, "1")],
)
def test_the_slots_cores_are_shared_out(cpus: int, processes: int, threads: str) -> None:
    env = build_env(make_request(cpus=cpus, processes=processes), ())
    assert env["OMP_NUM_THREADS"] == threads


def test_a_trial_may_set_its_threads_itself_but_not_its_tag() -> None:
    wanted = {"OMP_NUM_THREADS": "3", "RUN_DIR": "/elsewhere", TAG_NAME: "x"}
    request = make_request(env=wanted)
    env = build_env(request, ())
    assert env["OMP_NUM_THREADS"] == "3"
    assert env["RUN_DIR"] == "/nowhere"
    assert env[TAG_NAME] == str(request.tag)
