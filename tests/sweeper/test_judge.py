"""How an attempt ended: decided from its directory alone, and from nothing that it only claims."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path
from typing import Any

import pytest

from sweeper import guard
from sweeper.failure import TAIL_BYTES
from sweeper.judge import Outcome, ended_at, judge, next_stage
from sweeper.layout import AttemptDir
from sweeper.rows import AttemptState
from sweeper.stages import Stage
from tests.sweeper.conftest import result_facts, write_attempt

OVERRIDES = {"SEED": "42", "LR": "0.1"}


def event(kind: str, **fields: Any) -> dict[str, Any]:
    return {"kind": kind, "t": 1.0} | fields


CONFIG = event("config", config={"seed": 42, "lr": 0.1})


def failure(code: str, **fields: Any) -> dict[str, Any]:
    facts = {"code": code, "error": "SomeError", "message": "why", "traceback": "Traceback ..."}
    return event("error", **(facts | fields))


def test_a_run_that_kept_every_word_finished(tmp_path: Path) -> None:
    attempt = write_attempt(tmp_path / "a", result=result_facts())
    assert judge(attempt, OVERRIDES) == Outcome(
        state=AttemptState.FINISHED, exit_code=0, result=result_facts()
    )


@pytest.mark.parametrize("content", [None, b"", b"{", b"[]", b"{}", b'{"exit_code": 0}', b"\xff"])
def test_without_the_guards_word_a_run_is_lost(tmp_path: Path, content: bytes | None) -> None:
    attempt = write_attempt(tmp_path / "a", result=result_facts())
    attempt.exit.unlink()
    if content is not None:
        attempt.exit.write_bytes(content)
    assert judge(attempt, OVERRIDES).state is AttemptState.LOST


def test_a_runs_own_word_counts_where_the_guard_could_leave_none(tmp_path: Path) -> None:
    said = {"kind": "error", "t": 2.0, "error": "OSError", "message": "disk full", "code": "user"}
    attempt = write_attempt(tmp_path / "a", events=[said])
    attempt.exit.unlink()
    outcome = judge(attempt, OVERRIDES)
    assert (outcome.state, outcome.message) == (AttemptState.USER_ERROR, "OSError: disk full")


def test_an_attempt_that_never_began_is_lost(tmp_path: Path) -> None:
    assert judge(AttemptDir(tmp_path / "nothing"), OVERRIDES).state is AttemptState.LOST


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"val_bpb": None}, "result.json: val_bpb is None, not a number"),
        ({"status": "stopped"}, "result.json: status is 'stopped'"),
        ({"bytes_model": 99, "bytes_total": 149}, "has 100 bytes on disk, the result says 99"),
        ({"bytes_total": 149}, "result.json: bytes_total is 149, not the artifact's 100 + the c"),
        ({"artifact": "other.bin"}, "other.bin: the artifact cannot be read (No such file"),
        ({"artifact": None}, "result.json: artifact is None, not a file name"),
        ({"artifact": "../a/final_model.int6.ptz"}, "artifact is '../a/final_model.int6.ptz', not"),
        ({"artifact": "/etc/hostname"}, "artifact is '/etc/hostname', not a file name"),
    ],
)
def test_a_result_that_cannot_be_true_is_bad(
    tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    attempt = write_attempt(tmp_path / "a", result=result_facts(**changes))
    outcome = judge(attempt, OVERRIDES)
    assert (outcome.state, outcome.exit_code, outcome.result) == (AttemptState.BAD_RESULT, 0, None)
    assert outcome.message is not None
    assert message in outcome.message


def test_a_run_that_ended_well_without_a_result_is_bad(tmp_path: Path) -> None:
    outcome = judge(write_attempt(tmp_path / "a"), OVERRIDES)
    assert outcome.state is AttemptState.BAD_RESULT
    assert outcome.message == "result.json: missing, though every process ended well"


def test_a_result_with_a_failed_process_is_none(tmp_path: Path) -> None:
    attempt = write_attempt(tmp_path / "a", exit_code=1, result=result_facts())
    outcome = judge(attempt, OVERRIDES)
    assert (outcome.state, outcome.result) == (AttemptState.CRASHED, None)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"SEED": "7"}, "SEED: asked for '7', the run took 42"),
        ({"LRR": "0.1"}, "LRR: the run does not know this setting; did you mean LR?"),
    ],
)
def test_an_override_that_is_not_confirmed_is_the_users_error(
    tmp_path: Path, overrides: dict[str, str], message: str
) -> None:
    outcome = judge(write_attempt(tmp_path / "a", result=result_facts()), overrides)
    assert (outcome.state, outcome.message) == (AttemptState.USER_ERROR, message)
    assert outcome.result is None


@pytest.mark.parametrize(
    ("code", "state"),
    [
        ("user", AttemptState.USER_ERROR),
        ("nonfinite", AttemptState.NONFINITE),
        ("oom", AttemptState.OUT_OF_MEMORY),
        ("crash", AttemptState.CRASHED),
        ("something new", AttemptState.CRASHED),
    ],
)
@pytest.mark.parametrize("stop_reason", [None, guard.ASKED, guard.LAUNCHER_DIED])
def test_an_error_event_says_what_it_was_before_anything_else_does(
    tmp_path: Path, code: str, state: AttemptState, stop_reason: str | None
) -> None:
    later = failure("crash", t=9.0, rank=0, message="the others' wake")
    attempt = write_attempt(
        tmp_path / "a",
        exit_code=1,
        stop_reason=stop_reason,
        events=[CONFIG, later, failure(code, rank=1), event("stopped", reason="asked", step=1)],
    )
    outcome = judge(attempt, OVERRIDES)
    assert outcome == Outcome(
        state=state,
        exit_code=1,
        message="SomeError (rank 1): why",
        traceback="Traceback ...",
    )


def test_what_ends_when_its_launcher_dies_counts_only_if_it_finished(tmp_path: Path) -> None:
    died = guard.LAUNCHER_DIED
    finished = write_attempt(tmp_path / "finished", stop_reason=died, result=result_facts())
    assert judge(finished, OVERRIDES).state is AttemptState.FINISHED
    # As many do that are told to end: well, and without a result.
    obedient = write_attempt(tmp_path / "obedient", stop_reason=died)
    assert judge(obedient, OVERRIDES).state is AttemptState.LOST
    early = write_attempt(tmp_path / "early", stop_reason=died, result=result_facts(), events=[])
    assert judge(early, OVERRIDES).state is AttemptState.LOST


def test_too_little_shared_memory_is_no_full_disk(tmp_path: Path) -> None:
    said = (
        "torch.distributed.DistBackendError: NCCL error: Error while creating shared memory "
        "segment /dev/shm/nccl-Tvfyqg (size 9637888), error: No space left on device (28)"
    )
    error = {"kind": "error", "t": 1.0, "code": "crash", "error": "RuntimeError", "rank": 0}
    error |= {"message": said, "traceback": "T"}
    attempt = write_attempt(tmp_path / "told", exit_code=1, events=[error])
    assert judge(attempt, {}).state is AttemptState.CRASHED
    silent = write_attempt(tmp_path / "silent", exit_code=1, events=[])
    silent.logs.mkdir(exist_ok=True)
    silent.stderr.write_text(f"Traceback (most recent call last):\n  File x\n{said}\n")
    outcome = judge(silent, {})
    assert outcome.state is AttemptState.CRASHED
    assert "/dev/shm" in str(outcome.message)


def test_a_full_disk_is_told_from_a_crash(tmp_path: Path) -> None:
    error = {"kind": "error", "t": 1.0, "code": "crash", "error": "OSError", "rank": 0}
    error |= {"message": "[Errno 28] No space left on device: 'checkpoint.pt'", "traceback": "T"}
    attempt = write_attempt(tmp_path / "a", exit_code=1, events=[error])
    assert judge(attempt, {}).state is AttemptState.NO_SPACE


def test_an_error_of_rank_0_or_of_no_rank_names_none(tmp_path: Path) -> None:
    attempt = write_attempt(tmp_path / "a", exit_code=1, events=[failure("crash", rank=0)])
    assert judge(attempt, {}).message == "SomeError: why"
    bare = write_attempt(tmp_path / "b", exit_code=1, events=[{"kind": "error"}])
    assert judge(bare, {}) == Outcome(state=AttemptState.CRASHED, exit_code=1, message="error: ")


@pytest.mark.parametrize(
    ("stop_reason", "state"),
    [
        (guard.ASKED, AttemptState.STOPPED),
        (guard.LAUNCHER_DIED, AttemptState.LOST),
        # It says that it stopped, but nobody had asked.
        (None, AttemptState.CRASHED),
    ],
)
def test_a_stop_is_what_was_asked_for(
    tmp_path: Path, stop_reason: str | None, state: AttemptState
) -> None:
    attempt = write_attempt(
        tmp_path / "a",
        exit_code=75,
        stop_reason=stop_reason,
        events=[CONFIG, event("stopped", reason="asked", step=3)],
    )
    outcome = judge(attempt, OVERRIDES)
    assert (outcome.state, outcome.exit_code) == (state, 75)


def test_a_run_that_finished_although_it_was_asked_to_stop_finished(tmp_path: Path) -> None:
    for name, reason in (("a", guard.ASKED), ("b", guard.LAUNCHER_DIED)):
        attempt = write_attempt(tmp_path / name, stop_reason=reason, result=result_facts())
        assert judge(attempt, OVERRIDES).state is AttemptState.FINISHED


@pytest.mark.parametrize(
    ("code", "words"),
    [
        (1, "ended with exit code 1"),
        (-signal.SIGSEGV, "ended with signal SIGSEGV"),
        (-77, "ended with signal 77"),
    ],
)
def test_a_crash_without_a_word_is_told_by_its_code_and_log(
    tmp_path: Path, code: int, words: str
) -> None:
    attempt = write_attempt(tmp_path / "a", exit_code=code)
    assert judge(attempt, OVERRIDES) == Outcome(
        state=AttemptState.CRASHED, exit_code=code, message=words, traceback=None
    )
    attempt.stderr.write_bytes(b"first line\n" + b"x" * TAIL_BYTES + b"\nlast \xff line\n")
    assert judge(attempt, OVERRIDES).traceback == "last \ufffd line\n"


# ---- stages

TRAIN, PACK, SCORE = Stage.TRAIN, Stage.PACK, Stage.SCORE


def write_stage(
    directory: Path, stage: Stage, *, code: int = 0, events: list[dict[str, Any]] | None = None
) -> AttemptDir:
    """What a stage leaves behind beside what it hands on."""
    attempt = AttemptDir(directory).of(stage)
    directory.mkdir(exist_ok=True)
    attempt.exit.write_text(json.dumps({"exit_code": code, "stop_reason": None, "ended": 9.5}))
    with attempt.events.open("a") as file:
        file.writelines(f"{json.dumps(event)}\n" for event in events or [CONFIG])
    return attempt


def hand_on(attempt: AttemptDir, **changes: object) -> None:
    """Write what the stage leaves for the next."""
    if attempt.stage is TRAIN:
        attempt.trained_tensors.write_bytes(b"tensors")
        facts: dict[str, object] = {"schema": 1, "status": "trained"}
        attempt.trained.write_text(json.dumps(facts | changes))
    else:
        attempt.artifact.write_bytes(b"x" * 100)
        facts = {"schema": 1, "status": "packed", "bytes_model": 100}
        attempt.packed.write_text(json.dumps(facts | changes))


def test_a_stage_that_handed_on_leaves_the_attempt_to_go_on(tmp_path: Path) -> None:
    assert next_stage(AttemptDir(tmp_path)) is TRAIN
    for stage, following in ((TRAIN, PACK), (PACK, SCORE)):
        attempt = write_stage(tmp_path, stage)
        assert judge(attempt, OVERRIDES).state is AttemptState.BAD_RESULT
        hand_on(attempt)
        assert judge(attempt, OVERRIDES) == Outcome(state=AttemptState.LAUNCHED, exit_code=0)
        assert next_stage(attempt) is following
    # The tensors are gone once they are packed.
    attempt.trained_tensors.unlink()
    assert next_stage(attempt) is SCORE
    attempt = write_stage(tmp_path, SCORE)
    attempt.result.write_text(json.dumps(result_facts()))
    assert judge(attempt, OVERRIDES).state is AttemptState.FINISHED


def test_what_is_handed_on_damaged_is_made_again(tmp_path: Path) -> None:
    train, pack = write_stage(tmp_path, TRAIN), write_stage(tmp_path, PACK)
    hand_on(train)
    for changes in ({"status": "trained"}, {"schema": 2}, {"bytes_model": 99}):
        hand_on(pack, **changes)
        assert next_stage(pack) is PACK
        assert judge(pack, OVERRIDES).state is AttemptState.BAD_RESULT
    hand_on(pack)
    pack.artifact.unlink()
    assert next_stage(pack) is PACK
    train.trained_tensors.unlink()
    assert next_stage(pack) is TRAIN


def test_a_workload_that_knows_no_stages_may_have_run_whole(tmp_path: Path) -> None:
    attempt = write_stage(tmp_path / "a", TRAIN)
    attempt.artifact.write_bytes(b"x" * 100)
    attempt.result.write_text(json.dumps(result_facts()))
    assert judge(attempt, OVERRIDES).result == result_facts()
    attempt = write_stage(tmp_path / "b", TRAIN)
    message = judge(attempt, OVERRIDES).message
    assert message is not None
    assert message.startswith("trained.json: missing, ")
    assert message.endswith("leave [packing] out of the spec")


def test_a_stage_is_judged_by_its_own_events(tmp_path: Path) -> None:
    attempt = write_stage(tmp_path, PACK, code=1, events=[CONFIG, failure("oom")])
    assert judge(attempt, OVERRIDES).state is AttemptState.OUT_OF_MEMORY
    begins = attempt.events.stat().st_size
    write_stage(tmp_path, PACK, code=1, events=[CONFIG])
    assert judge(attempt, OVERRIDES, begins).state is AttemptState.CRASHED
    # An echo of an earlier stage confirms nothing of this one.
    hand_on(attempt)
    begins = attempt.events.stat().st_size
    write_stage(tmp_path, PACK, events=[event("phase", phase="pack")])
    assert judge(attempt, OVERRIDES, begins).state is AttemptState.USER_ERROR


def test_when_a_stage_ended_is_the_guards_word_or_its_last_events(tmp_path: Path) -> None:
    assert ended_at(AttemptDir(tmp_path / "nothing")) is None
    attempt = write_stage(tmp_path, TRAIN)
    assert ended_at(attempt) == 9.5
    attempt.exit.unlink()
    os.utime(attempt.events, (7.0, 7.0))
    assert ended_at(attempt) == 7.0
