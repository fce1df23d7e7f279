"""What the stages of a run leave for one another: whole, damaged, missing, and of other runs."""

from __future__ import annotations

import copy
import dataclasses
import json
import os
import signal
import subprocess
import time
from pathlib import Path

import pytest
import torch

from model.artifact import decode
from model.calibrate import collect_hessians, collect_sensitivities
from model.config import Config
from model.failure import EXIT_STOPPED
from model.fields import ConfigError
from model.gpt import GPT
from model.handoff import (
    HandoffError,
    TrainedModel,
    load_trained,
    read_artifact,
    read_packed,
    read_trained,
    save_trained,
    stage_of,
)
from model.packing import pack_apart
from model.ranks import start_ranks
from model.report import Report
from model.train import score_apart
from tests.model.conftest import ROOT, SMALL, train_command, train_environment

CONFIG = Config.from_env(SMALL | {"DEVICE": "cuda"})  # which packing does not need
FACTS = {
    "config": json.loads(json.dumps(CONFIG.echo())),
    "attention": {"backend": "sdpa", "measured_ms": {}},
    "compute_dtype": "float32",
    "data": {"val_fingerprint": "of others"},
    "bytes_code": 20_000,
    "prequant_val_bpb": 1.1,
}


@pytest.fixture(scope="module")
def trained() -> TrainedModel:
    """A model as training leaves it, but for the training."""
    torch.manual_seed(0)
    model = GPT(CONFIG)
    model.set_loop(CONFIG.loop)
    inputs = torch.randint(CONFIG.vocab_size, (2, CONFIG.train_seq_len))
    hessians = collect_hessians(model, [inputs], CONFIG.gptq_min_weights)
    return TrainedModel(
        model=model,
        hessians=hessians,
        sensitivities=collect_sensitivities(model, [(inputs, inputs.roll(-1))]),
        facts=FACTS,
    )


def pack(run_dir: Path, config: Config = CONFIG) -> None:
    pack_apart(config, {}, Report(run_dir, rank=0))


def load(run_dir: Path) -> TrainedModel:
    return load_trained(run_dir, CONFIG, *read_trained(run_dir, CONFIG))


def test_what_training_leaves_comes_back_bit_for_bit(tmp_path: Path, trained: TrainedModel) -> None:
    save_trained(tmp_path, trained)
    found = load(tmp_path)
    assert found.facts == FACTS
    weights, before = found.model.state_dict(), trained.model.state_dict()
    assert list(weights) == list(before)
    assert all(torch.equal(weights[name], before[name]) for name in before)
    assert found.model.loop == trained.model.loop
    assert list(found.hessians) == list(trained.hessians)
    assert all(torch.equal(h, trained.hessians[name]) for name, h in found.hessians.items())
    for name, expected in trained.sensitivities.items():
        assert torch.equal(found.sensitivities[name].rows, expected.rows)
        assert torch.equal(found.sensitivities[name].cols, expected.cols)
    # Query, key and value share theirs, on disk as well.
    query, key = (found.hessians[f"blocks.0.attn.c_{name}.weight"] for name in "qk")
    assert query.data_ptr() == key.data_ptr()
    size = sum(t.nbytes for t in (*before.values(), *set(trained.hessians.values())))
    assert (tmp_path / "trained.pt").stat().st_size < 1.25 * size


def test_packing_needs_no_data_and_again_is_harmless(
    tmp_path: Path, trained: TrainedModel, capsys: pytest.CaptureFixture[str]
) -> None:
    save_trained(tmp_path, trained)
    pack(tmp_path, dataclasses.replace(CONFIG, data_dir="/nowhere"))
    facts, checksum = read_trained(tmp_path, CONFIG)
    packed = read_packed(tmp_path, checksum)
    artifact = read_artifact(tmp_path, packed)
    restored, _ = decode(artifact)
    assert restored.loop == trained.model.loop
    assert packed["bytes_total"] == len(artifact) + facts["bytes_code"]
    assert json.loads((tmp_path / "packed.json").read_text())["status"] == "packed"
    assert not (tmp_path / "trained.pt").exists()

    capsys.readouterr()
    pack(tmp_path)
    assert capsys.readouterr().out == "already packed: STAGE=score is next\n"
    assert read_packed(tmp_path, checksum) == packed

    # An artifact that is damaged is made again, as long as there is what it takes.
    save_trained(tmp_path, trained)
    (tmp_path / packed["artifact"]).write_bytes(b"")
    pack(tmp_path)
    assert read_artifact(tmp_path, read_packed(tmp_path, checksum)) == artifact

    # What another training left is packed anew.
    other = copy.deepcopy(trained.model)
    with torch.no_grad():
        other.skip_weights.add_(1)
    save_trained(tmp_path, dataclasses.replace(trained, model=other))
    with pytest.raises(HandoffError, match=r"packed\.json: of another training; run STAGE=pack"):
        read_packed(tmp_path, read_trained(tmp_path, CONFIG)[1])
    pack(tmp_path)
    again = read_packed(tmp_path, read_trained(tmp_path, CONFIG)[1])
    assert again["artifact_sha256"] != packed["artifact_sha256"]
    assert {path.name for path in tmp_path.iterdir()} == {
        *("events.jsonl", "trained.json", "packed.json", "final_model.int6.ptz")
    }


def test_what_is_missing_or_damaged_is_named(tmp_path: Path, trained: TrainedModel) -> None:
    with pytest.raises(HandoffError, match=r"trained\.json: missing; run STAGE=train before"):
        read_trained(tmp_path, CONFIG)
    save_trained(tmp_path, trained)
    with pytest.raises(HandoffError, match=r"packed\.json: missing; run STAGE=pack before"):
        read_packed(tmp_path, read_trained(tmp_path, CONFIG)[1])

    tensors = tmp_path / "trained.pt"
    whole = bytearray(tensors.read_bytes())
    whole[len(whole) // 2] ^= 1
    tensors.write_bytes(whole)
    with pytest.raises(HandoffError, match=r"trained\.pt: damaged, or of another run; run STAGE"):
        load(tmp_path)
    tensors.unlink()
    with pytest.raises(HandoffError, match=r"trained\.pt: missing; run STAGE=train before"):
        load(tmp_path)

    artifact = tmp_path / "final_model.int6.ptz"
    artifact.write_bytes(b"another")
    with pytest.raises(HandoffError, match=r"int6\.ptz: damaged, or of another run"):
        read_artifact(tmp_path, {"artifact": artifact.name, "artifact_sha256": "0"})


@pytest.mark.parametrize(
    "content", ["", "[]", '{"schema": 1', '{"schema": 2, "status": "trained"}']
)
def test_facts_that_are_none_are_refused(tmp_path: Path, content: str) -> None:
    (tmp_path / "trained.json").write_text(content)
    with pytest.raises(HandoffError, match=r"trained\.json: damaged, or of another version"):
        read_trained(tmp_path, CONFIG)


def test_all_stages_have_the_settings_of_the_training(
    tmp_path: Path, trained: TrainedModel
) -> None:
    save_trained(tmp_path, trained)
    moved = dataclasses.replace(CONFIG, run_dir="/elsewhere", tokenizer_path="/elsewhere/t.model")
    assert read_trained(tmp_path, moved)[0] == FACTS
    with pytest.raises(HandoffError, match="trained with SEED=1337, this stage has 2; give all"):
        read_trained(tmp_path, dataclasses.replace(CONFIG, seed=2))


def test_other_validation_data_are_not_scored(
    tmp_path: Path, data_dir: Path, trained: TrainedModel
) -> None:
    save_trained(tmp_path, trained)
    pack(tmp_path)
    ranks = start_ranks(dataclasses.replace(CONFIG, device="cpu"), {})
    config = dataclasses.replace(CONFIG, data_dir=str(data_dir))
    with pytest.raises(HandoffError, match="are not those of STAGE=train; check DATA_DIR"):
        score_apart(config, ranks, Report(tmp_path, rank=0))
    assert not (tmp_path / "result.json").exists()


def test_stages_are_named_by_the_environment() -> None:
    assert [stage_of({}), stage_of({"STAGE": "pack"})] == ["all", "pack"]
    with pytest.raises(ConfigError, match="STAGE: 'Pack' is not one of all, train, pack, score"):
        stage_of({"STAGE": "Pack"})


def test_several_processes_do_not_pack(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="STAGE=pack: is for one process, found 2"):
        pack_apart(CONFIG, {"WORLD_SIZE": "2"}, Report(tmp_path, rank=0))


def test_packing_that_is_stopped_can_be_run_again(tmp_path: Path, trained: TrainedModel) -> None:
    run_dir = tmp_path / "run"
    run_dir.mkdir()
    save_trained(run_dir, trained)
    tensors = run_dir / "trained.pt"
    tensors.rename(tmp_path / "aside")
    os.mkfifo(tensors)  # whoever reads it waits
    environment = train_environment(tmp_path, run_dir, stage="pack", device="cuda")
    process = subprocess.Popen(train_command(1), cwd=ROOT, env=environment)
    events, deadline = run_dir / "events.jsonl", time.monotonic() + 120
    while not (events.exists() and '"kind": "config"' in events.read_text()):
        assert process.poll() is None, "it ended by itself"
        assert time.monotonic() < deadline
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    assert process.wait(timeout=120) == EXIT_STOPPED
    assert json.loads(events.read_text().splitlines()[-1])["kind"] == "stopped"
    assert {path.name for path in run_dir.iterdir()} == {
        *("events.jsonl", "trained.json", "trained.pt")
    }
    (tmp_path / "aside").replace(tensors)
    pack(run_dir)
    assert (run_dir / "packed.json").exists()
