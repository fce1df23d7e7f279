"""The trainer as real processes: the whole line, several ranks, signals and failures."""

from __future__ import annotations

import hashlib
import json
import math
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from model.failure import EXIT_NONFINITE, EXIT_STOPPED, EXIT_USER
from model.report import code_bytes
from model.shards import write_shard
from tests.model.conftest import (
    ROOT,
    VOCAB,
    Finished,
    Train,
    shared_data,
    train_command,
    train_environment,
)

RESULT_FIELDS = {
    *("schema", "status", "seed", "metric", "val_bpb", "val_loss", "prequant_val_bpb"),
    *("prequant_val_loss", "quant_val_bpb", "quant_val_loss", "steps", "train_time_ms"),
    *("step_avg_ms", "eval_time_s", "hessian_time_s", "quantise_time_s", "pack_time_s"),
    *("bytes_total", "bytes_code", "codec", "bytes_model", "artifact", "artifact_sha256"),
    *("peak_memory_mib", "train_shards", "val_tokens", "val_bytes", "world_size", "stop_reason"),
    *("model_params", "config", "versions", "data", "device"),
    *("attention", "compute_dtype", "resumed_from_step", "stages", "useful_s"),
}


def test_one_command_goes_from_text_to_a_scored_artifact(usual: Finished, data_dir: Path) -> None:
    done, result = usual, usual.result
    assert result.keys() == RESULT_FIELDS
    assert (result["status"], result["seed"], result["steps"]) == ("finished", 42, 6)
    assert result["stop_reason"] == "iterations"
    assert result["metric"] == "sliding"
    artifact = done.run_dir / result["artifact"]
    assert result["bytes_model"] == artifact.stat().st_size
    assert result["bytes_code"] == code_bytes()
    assert result["bytes_total"] == result["bytes_model"] + result["bytes_code"]
    assert result["artifact_sha256"] == hashlib.sha256(artifact.read_bytes()).hexdigest()
    assert result["val_tokens"] == 2_048
    # On a CPU all of it is the slot's own work.
    parts = ("eval_time_s", "hessian_time_s", "quantise_time_s", "pack_time_s")
    useful = result["train_time_ms"] / 1000 + sum(result[name] for name in parts)
    assert (result["stages"], result["useful_s"]) == ("whole", pytest.approx(useful))
    assert done.losses[-1] < done.losses[0]
    assert abs(done.losses[0] - math.log(VOCAB)) < 0.1  # it starts out knowing nothing

    first = done.events[1]
    assert first["kind"] == "config"
    assert first["config"]["seed"] == 42
    assert first["config"]["data_dir"] == str(data_dir)
    phases = [event["phase"] for event in done.of_kind("phase")]
    assert phases == [
        *("setup", "warmup", "train", "hessians", "eval", "quantise", "pack", "eval", "done")
    ]
    assert [event["metric"] for event in done.of_kind("val")] == [
        *("plain", "prequant", "quant", "sliding")
    ]


def test_an_artifact_scores_the_same_in_a_fresh_process(usual: Finished) -> None:
    command = [sys.executable, "-m", "model.evaluate", str(usual.run_dir)]
    again = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    score = json.loads(again.stdout)
    assert score["val_bpb"] == pytest.approx(usual.result["val_bpb"], abs=1e-6)
    assert score["tokens"] == usual.result["val_tokens"]


def test_a_seed_decides_everything(
    train: Train, usual: Finished, data_dir: Path, tmp_path: Path
) -> None:
    second = train("second", seed=42)
    assert second.losses == usual.losses
    assert second.result["artifact_sha256"] == usual.result["artifact_sha256"]
    assert train("third", seed=2).losses != usual.losses
    moved = shutil.copytree(data_dir, tmp_path / "moved")
    shards = moved / "datasets" / f"fineweb10B_sp{VOCAB}"
    (shards / "fineweb_train_000000.bin").rename(shards / "fineweb_train_000009.bin")
    assert train("fourth", seed=42, data_dir=moved).losses == usual.losses


def test_warm_up_leaves_no_trace(train: Train, usual: Finished) -> None:
    cold = train("cold", seed=42, warmup_steps=0)
    assert usual.result["config"]["warmup_steps"] > 0
    assert cold.losses == usual.losses
    assert cold.result["artifact_sha256"] == usual.result["artifact_sha256"]


@pytest.mark.parametrize("accumulation", [1, pytest.param(4, marks=pytest.mark.slow)])
def test_two_ranks_train_like_one(train: Train, usual: Finished, accumulation: int) -> None:
    pair = train("pair", processes=2, seed=42, grad_accum_steps=accumulation)
    assert pair.returncode == 0, pair.stderr
    np.testing.assert_allclose(pair.losses, usual.losses, rtol=2e-3)
    np.testing.assert_allclose(pair.losses[:2], usual.losses[:2], rtol=1e-5)
    assert pair.result["world_size"] == 2
    assert pair.result["val_bpb"] == pytest.approx(usual.result["val_bpb"], rel=5e-3)
    assert pair.result["val_tokens"] == usual.result["val_tokens"]


@pytest.mark.slow
def test_eight_ranks_train_like_one(train: Train) -> None:
    alone = train("alone", train_batch_tokens=2048)
    eight = train("eight", processes=8, train_batch_tokens=2048)
    assert eight.returncode == 0, eight.stderr
    np.testing.assert_allclose(eight.losses, alone.losses, rtol=2e-3)


@pytest.mark.slow
def test_the_record_preset_goes_through_the_whole_line(train: Train, tmp_path: Path) -> None:
    tokenizer = shared_data("tokenizers/fineweb_4096_bpe.model")
    data = tmp_path / "record data"
    shards = data / "datasets" / "fineweb10B_sp4096"
    (data / "tokenizers").mkdir(parents=True)
    shards.mkdir(parents=True)
    shutil.copy(tokenizer, data / "tokenizers")
    tokens = np.random.default_rng(0).integers(0, 4096, 40_000)
    write_shard(shards / "fineweb_train_000000.bin", tokens)
    write_shard(shards / "fineweb_val_000000.bin", tokens[: 2 * 256 + 1])
    done = train(
        preset="record",
        data_dir=data,
        device="cpu",
        train_seq_len=256,
        train_batch_tokens=2048,
        grad_accum_steps=1,
        eval_seq_len=256,
        val_batch_tokens=2048,
        iterations=2,
        recur_start_step=1,
        warmup_steps=1,
        val_loss_every=0,
        sensitivity_sequences=2,
        max_wallclock_seconds=0,
        gptq_calibration_batches=2,
    )
    assert done.returncode == 0, done.stderr
    assert done.result["model_params"] == 34_401_372
    assert done.result["config"]["num_layers"] == 11
    assert done.result["steps"] == 2
    assert done.result["bytes_total"] < 16_000_000


def test_the_clock_caps_training(train: Train) -> None:
    done = train(iterations=100_000, max_wallclock_seconds=2.5, gptq_reserve_seconds=0.5)
    assert done.returncode == 0, done.stderr
    assert done.result["stop_reason"] == "wallclock_cap"
    assert done.result["train_time_ms"] > 1_000
    assert done.of_kind("step")[-1]["progress"] <= 1


def test_validation_during_training_is_not_on_the_clock(train: Train, usual: Finished) -> None:
    done = train(seed=42, val_loss_every=2)
    plain = [event["step"] for event in done.of_kind("val") if event["metric"] == "plain"]
    assert plain == [0, 2, 4, 6]
    assert done.losses == usual.losses


def test_lines_for_people_are_the_fields_own(usual: Finished) -> None:
    lines = usual.stdout.splitlines()
    assert "Hyperparameters:" in lines
    assert "  seed: 42" in lines
    for start in (
        *("1/6 train_loss: ", "6/6 val_loss: ", "pre-quantization post-ema val_loss:"),
        *("GPTQ:collected ", "Code size: ", "Total submission size steps+"),
        *("final_int6_roundtrip val_loss:", "final_int6_sliding_window val_loss:"),
    ):
        assert any(line.startswith(start) for line in lines), start


def assert_failed(done: Finished, exit_code: int, code: str, message: str) -> None:
    assert done.returncode == exit_code, done.stderr
    (error,) = done.of_kind("error")
    assert error["code"] == code
    assert message in error["message"]
    assert f"error: {error['message']}" in done.stderr
    assert not (done.run_dir / "result.json").exists()
    assert not list(done.run_dir.glob("*.partial"))


def test_a_non_finite_loss_stops_before_the_update(train: Train) -> None:
    done = train(matrix_lr=1e30, tied_embed_lr=1e30, grad_clip_norm=0, iterations=50)
    assert_failed(done, EXIT_NONFINITE, "nonfinite", "the loss of step ")
    steps = done.of_kind("step")
    assert all(math.isfinite(event["train_loss"]) for event in steps)
    (error,) = done.of_kind("error")
    assert error["step"] == steps[-1]["step"] + 1


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"MODEL_DIM": "abc"}, "MODEL_DIM: expected a whole number, found 'abc'"),
        ({"VOCAB_SIZE": "1024"}, "no fineweb_train_*.bin; check DATA_DIR and VOCAB_SIZE"),
        ({"TRAIN_SEQ_LEN": "100"}, "TRAIN_BATCH_TOKENS: must be a multiple"),
        ({"ATTENTION": "fa3"}, "ATTENTION=fa3: cannot run on cpu"),
        ({"DEVICE": "cuda", "LOCAL_RANK": "99"}, "rank 99 of this host needs its own GPU"),
        ({"BUDGET_BYTES": "1000"}, "make the model smaller"),
        ({"STAGE": "score"}, "trained.json: missing; run STAGE=train before this stage"),
    ],
)
def test_user_errors_say_what_to_change(
    train: Train, overrides: dict[str, str], message: str
) -> None:
    assert_failed(train(**overrides), EXIT_USER, "user", message)


def test_damaged_shards_are_refused(train: Train, data_dir: Path, tmp_path: Path) -> None:
    damaged = shutil.copytree(data_dir, tmp_path / "damaged")
    shard = damaged / "datasets" / f"fineweb10B_sp{VOCAB}" / "fineweb_train_000001.bin"
    shard.write_bytes(shard.read_bytes()[:-10])
    assert_failed(train(data_dir=damaged), EXIT_USER, "user", "fineweb_train_000001.bin: expected")


@pytest.mark.parametrize("processes", [1, 2])
def test_sigterm_finishes_the_step_and_says_so(
    data_dir: Path, tmp_path: Path, processes: int
) -> None:
    run_dir = tmp_path / "stopped"
    environment = train_environment(data_dir, run_dir, iterations=1_000_000)
    process = subprocess.Popen(
        train_command(processes), cwd=ROOT, env=environment, stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )  # fmt: skip
    events = run_dir / "events.jsonl"
    deadline = time.monotonic() + 120
    while not (events.exists() and '"train_loss"' in events.read_text()):
        assert process.poll() is None, "the trainer ended by itself"
        assert time.monotonic() < deadline
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    returncode = process.wait(timeout=120)
    if processes == 1:
        assert returncode == EXIT_STOPPED
    last = json.loads(events.read_text().splitlines()[-1])
    assert last["kind"] == "stopped"
    assert last["step"] > 0
    assert not (run_dir / "result.json").exists()
