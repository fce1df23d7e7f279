"""A public kind of script, unchanged: launched for real, and judged by its log and its files."""

from __future__ import annotations

import json
import os
import shutil
import sys
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from sweeper.adapters import parse
from sweeper.judge import Outcome, judge
from sweeper.launch import PROJECT, LaunchRequest, RunningAttempt, build_command, build_env
from sweeper.layout import AttemptDir
from sweeper.reaping import Tag
from sweeper.rows import AttemptState
from sweeper.scripts import agrees, unconfirmed, wrong_setting
from sweeper.stall import OTHER_SECONDS, PHASE_SECONDS, StallWatch
from tests.sweeper.conftest import write_module

SCRIPT = Path(__file__).with_name("fake_gpt.py")
SEED = 42
OVERRIDES = {"SEED": str(SEED), "MATRIX_LR": "0.03", "TIE_EMBEDDINGS": "1", "RECUR_LAYERS": "4,5"}
MODEL_BYTES = 1_000 + SEED

Run = Callable[..., tuple[AttemptDir, Outcome]]


@pytest.fixture
def snapshot(tmp_path: Path) -> Path:
    """A sweep's copy of the script, with a file beside it; its path is hostile on purpose."""
    path = tmp_path / "code und größe"
    path.mkdir()
    shutil.copy(SCRIPT, path / "train_gpt.py")
    (path / "table.bin").write_bytes(bytes(7))
    return path


def make_request(snapshot: Path, directory: Path, **changes: Any) -> LaunchRequest:
    facts: dict[str, Any] = {
        "tag": Tag(sweep=uuid.uuid4().hex, session="session", launch=1),
        "directory": str(directory),
        "module": "model.train",
        "script": "train_gpt.py",
        "arguments": ("--note", "a b"),
        "code": str(snapshot),
        "files": ("table.bin", "train_gpt.py"),
        "launch": "exec",
        "processes": 1,
        "cpus": 1,
        "grace_seconds": 60.0,
        "env": OVERRIDES,
    }
    return LaunchRequest(**(facts | changes))


@pytest.fixture
def run(tmp_path: Path, snapshot: Path, nothing_left: str) -> Iterator[Run]:
    """Run the script to its end, with a fault or in the other format by its environment."""
    started: list[RunningAttempt] = []

    def launch(
        fault: str = "", form: str = "b", overrides: dict[str, str] = OVERRIDES, **changes: Any
    ) -> tuple[AttemptDir, Outcome]:
        process_env = {"FAULT": fault, "LOG_FORMAT": form}
        directory = tmp_path / "an attempt ✓" / str(len(started))
        request = make_request(snapshot, directory, process_env=process_env, **changes)
        started.append(RunningAttempt(request, ()))
        started[-1].wait()
        attempt = AttemptDir(directory)
        return attempt, judge(attempt, overrides)

    yield launch
    for attempt in started:
        attempt.kill()


# ---- the whole way


@pytest.mark.parametrize("form", ["a", "b"])
def test_a_script_finishes_with_a_result_of_the_contracts_shape(run: Run, form: str) -> None:
    """Alone, and under torchrun, where rank 0 tells all of it."""
    ranks = {"launch": "torchrun", "processes": 2} if form == "a" else {}
    attempt, outcome = run(form=form, **ranks)
    assert (outcome.state, outcome.message) == (AttemptState.FINISHED, None)
    result = outcome.result
    assert result is not None
    size = SCRIPT.stat().st_size
    facts = {
        "schema": 1,
        "status": "finished",
        "adapter": f"log-{form}",
        "seed": SEED,
        "metric": "sliding",
        "val_bpb": 1.120042,
        "val_loss": 2.51219162,
        "prequant_val_bpb": 1.09697079,
        "quant_val_bpb": 1.1104553,
        "steps": 6,
        "train_time_ms": 63.0,
        "step_avg_ms": 10.5,
        "eval_time_s": 7.939 + 75.566,
        "bytes_model": MODEL_BYTES,
        "bytes_code": size,
        "bytes_total": MODEL_BYTES + size,
        "artifact": "final_model.int6.ptz",
        "peak_memory_mib": 30208.0,
        "train_shards": 80,
        "hessian_time_s": None,
        "model_params": None,
        "stop_reason": "wallclock_cap" if form == "b" else "iterations",
    }
    assert facts == {name: result[name] for name in facts}
    unconfirmed = [name for name in OVERRIDES if name != "SEED"]
    assert result["world_size"] == (2 if ranks else None)
    assert result["unconfirmed"] == ([] if form == "b" else unconfirmed)
    json.dumps(result, allow_nan=False)
    (said,) = attempt.rank_logs(0, "stderr") if ranks else [attempt.stderr]
    assert said.read_text() == "done --note a b\n"
    assert (attempt.path / "table.bin").read_bytes() == bytes(7)
    assert not attempt.events.exists()
    assert not attempt.result.exists()


@pytest.mark.parametrize(
    ("fault", "state", "message"),
    [
        ("no_score", AttemptState.BAD_RESULT, None),
        ("nan_score", AttemptState.NONFINITE, "val_bpb is nan, not finite"),
        (
            *("lies_of_model", AttemptState.BAD_RESULT),
            f"packed model has {MODEL_BYTES + 1} bytes, on disk final_model.int6.ptz has "
            f"{MODEL_BYTES}",
        ),
        (
            *("lies_of_code", AttemptState.BAD_RESULT),
            f"train_gpt.py: has {SCRIPT.stat().st_size} bytes on disk, the log says "
            f"{SCRIPT.stat().st_size + 1}",
        ),
        ("no_model", AttemptState.BAD_RESULT, "on disk there is no such file"),
        ("raise", AttemptState.CRASHED, "RuntimeError: the cause (ended with exit code 1)"),
        ("nan", AttemptState.NONFINITE, "RuntimeError: loss is nan at step 3"),
        ("oom", AttemptState.OUT_OF_MEMORY, "OutOfMemoryError: CUDA out of memory."),
        ("space", AttemptState.NO_SPACE, "No space left on device"),
    ],
)
def test_what_went_wrong_is_known_and_said(
    run: Run, fault: str, state: AttemptState, message: str | None
) -> None:
    _, outcome = run(fault)
    # Without a sliding score the plain one of the quantised model is the headline.
    if fault == "no_score":
        assert outcome.result is not None
        assert (outcome.result["metric"], outcome.result["val_bpb"]) == ("quant", 1.1104553)
        return
    assert outcome.state is state
    assert message is not None
    assert message in (outcome.message or "")
    if outcome.exit_code:
        assert outcome.traceback is not None
        assert outcome.traceback.startswith("Traceback (most recent call last):")


def test_the_rank_that_failed_first_is_what_the_user_sees(run: Run) -> None:
    _, outcome = run("oom", launch="torchrun", processes=2)
    assert outcome.state is AttemptState.OUT_OF_MEMORY
    assert outcome.message is not None
    assert outcome.message.endswith("(rank 1 ended with exit code 1)")
    assert "in main" in (outcome.traceback or "")
    assert "torch/distributed" not in (outcome.traceback or "")


# ---- what the log echoes


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"SEED": "43"}, "SEED: asked for '43', the log says '42'"),
        ({"MATRIX_LR": "0.04"}, "MATRIX_LR: asked for '0.04', the log says '0.03'"),
        ({"TIE_EMBEDDINGS": "0"}, "TIE_EMBEDDINGS: asked for '0', the log says 'True'"),
    ],
)
def test_a_setting_that_comes_back_otherwise_is_an_error(
    run: Run, changes: dict[str, str], message: str
) -> None:
    attempt, _ = run()
    outcome = judge(attempt, OVERRIDES | changes)
    assert (outcome.state, outcome.message) == (AttemptState.USER_ERROR, message)
    assert judge(attempt, OVERRIDES | {"NO_SUCH": "1"}).result is not None


def test_format_a_can_confirm_a_setting_but_not_refute_it() -> None:
    # Where embeddings are tied, this is the rate of those, whatever EMBED_LR is.
    facts = parse(["tie_embeddings:True embed_lr:0.05 matrix_lr:0.040", "seed:3"])
    asked = {"EMBED_LR": "0.6", "MATRIX_LR": "0.04", "SEED": "3"}
    assert wrong_setting(facts, asked) is None
    assert unconfirmed(facts, asked) == ["EMBED_LR"]
    assert wrong_setting(facts, asked | {"SEED": "4"}) is not None


@pytest.mark.parametrize("form", ["a", "b"])
def test_a_setting_from_the_environment_of_the_sweep_is_an_error(
    run: Run, form: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MAX_WALLCLOCK_SECONDS", "61")
    _, outcome = run(form=form)
    # Format A says nothing of it here.
    state = AttemptState.USER_ERROR if form == "b" else AttemptState.FINISHED
    assert outcome.state is state
    if form == "b":
        assert (outcome.message or "").startswith("MAX_WALLCLOCK_SECONDS: the run takes it from")


@pytest.mark.parametrize(
    ("asked", "echoed", "same"),
    [
        ("0.022", "0.022", True),
        ("600", "600.000", True),
        ("0.0222", "0.02", True),  # rounded
        ("0.03", "0.02", False),
        ("5", "6", False),
        ("1e-8", "1e-08", True),
        ("1", "True", True),
        ("0", "True", False),
        ("none", "None", True),
        ("4,5", "[4, 5]", True),
        ("4,5", "(4, 5)", True),
        ("/data/x", "/data/x/", True),
        ("/data/x", "/data/y", False),
        ("cosine", "linear", False),
    ],
)
def test_an_echo_may_be_written_another_way(asked: str, echoed: str, same: bool) -> None:
    assert agrees(asked, echoed) is same


# ---- a script that knows the contract


def test_a_script_that_keeps_the_contract_is_read_by_it(
    tmp_path: Path, snapshot: Path, nothing_left: str
) -> None:
    write_module(snapshot, "train_gpt", "config()\nresult()\nprint('seed:1')\n")
    overrides = {"SEED": "42", "LR": "0.1"}
    request = make_request(snapshot, tmp_path / "a", env=overrides, files=("train_gpt.py",))
    running = RunningAttempt(request, ())
    running.wait()
    outcome = judge(AttemptDir(tmp_path / "a"), overrides)
    assert outcome.state is AttemptState.FINISHED, outcome
    assert outcome.result is not None
    assert (outcome.result["adapter"], outcome.result["val_bpb"]) == ("contract", 1.1)
    outcome = judge(AttemptDir(tmp_path / "a"), overrides | {"L": "0.1"})
    assert outcome.state is AttemptState.USER_ERROR


# ---- sizes


def of_code(attempt: AttemptDir, old: str, new: str) -> None:
    """Change what the script has said."""
    text = attempt.stdout.read_text()
    assert old in text
    attempt.stdout.write_text(text.replace(old, new))
    for path in (attempt.path / "logs").glob("*.txt"):
        path.unlink()


def test_code_that_the_log_states_compressed_counts_as_stated(run: Run) -> None:
    attempt, _ = run()
    of_code(attempt, "Code size: ", "Code size (uncompressed): 9 bytes\nCode size (compressed): 4")
    outcome = judge(attempt, OVERRIDES)
    assert "do not add up" in (outcome.message or "")
    size = int(f"4{SCRIPT.stat().st_size}")
    of_code(
        attempt, f"brotli: {MODEL_BYTES + SCRIPT.stat().st_size}", f"brotli: {MODEL_BYTES + size}"
    )
    outcome = judge(attempt, OVERRIDES)
    assert outcome.result is not None, outcome
    result = outcome.result
    assert (result["bytes_code"], result["bytes_total"]) == (size, size + MODEL_BYTES)


def test_python_files_beside_the_script_count(run: Run, snapshot: Path) -> None:
    (snapshot / "helper.py").write_text("x = 1\n")
    _, outcome = run(files=("helper.py", "table.bin", "train_gpt.py"))
    assert outcome.result is not None
    assert outcome.result["bytes_code"] == SCRIPT.stat().st_size + len("x = 1\n")


def test_the_artifact_is_the_file_of_the_logs_size(run: Run) -> None:
    attempt, _ = run()
    (attempt.path / "final_model.int8.ptz").write_bytes(b"newer, of another codec")
    result = judge(attempt, OVERRIDES).result
    assert result is not None
    assert result["artifact"] == "final_model.int6.ptz"
    of_code(attempt, "Serialized model int6+brotli", "No word of int6+brotli")
    os.utime(attempt.path / "final_model.int6.ptz", (1, 1))
    result = judge(attempt, OVERRIDES).result
    assert result is not None
    assert (result["artifact"], result["bytes_model"]) == ("final_model.int8.ptz", 23)


# ---- what the processes are given


def test_a_script_gets_its_own_environment(
    tmp_path: Path, snapshot: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONPATH", "/theirs")
    process_env = {"NCCL_DEBUG": "INFO", "OMP_NUM_THREADS": "3", "CUDA_VISIBLE_DEVICES": "7"}
    request = make_request(snapshot, tmp_path, process_env=process_env)
    env = build_env(request, ("0", "1"))
    assert env["PYTHONPATH"] == "/theirs"
    assert (env["NCCL_DEBUG"], env["OMP_NUM_THREADS"]) == ("INFO", "3")
    assert env["CUDA_VISIBLE_DEVICES"] == "0,1"
    command = build_command(request)
    assert command == [sys.executable, str(tmp_path / "train_gpt.py"), "--note", "a b"]
    module = make_request(snapshot, tmp_path, script=None, arguments=("-v",))
    first, *rest = build_env(module, ())["PYTHONPATH"].split(os.pathsep)
    assert (first, rest) == (str(snapshot), [str(PROJECT), "/theirs"])
    assert build_command(module)[1:] == ["-m", "model.train", "-v"]


def test_the_phase_of_a_script_is_known_where_it_is_watched_for_hanging(run: Run) -> None:
    attempt, _ = run()
    text = attempt.stdout.read_text().partition("pre-quantization")[0]
    watch = StallWatch(attempt)
    limits = []
    for end in ("1/6 train_loss", "2/6 train_loss", "Serialized"):
        attempt.stdout.write_text(text.partition(end)[0])
        assert watch.check(0.0) is None
        limits.append(watch.limit)
    assert limits == [OTHER_SECONDS, PHASE_SECONDS["train"], PHASE_SECONDS["hessians"]]
