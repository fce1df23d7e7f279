"""A small real data set, goldens, and a way to run the trainer as a user would."""

from __future__ import annotations

import argparse
import inspect
import json
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import sentencepiece as spm

from model.shards import write_shard

ROOT = Path(__file__).parents[2]
SHARED = ROOT.parent / "shared" / "data"
VOCAB = 512

# A network small enough for a test, with every part of the recipe in it.
SMALL = {
    "PRESET": "tiny",
    "VOCAB_SIZE": str(VOCAB),
    "TRAIN_SEQ_LEN": "64",
    "TRAIN_BATCH_TOKENS": "1024",
    "ITERATIONS": "6",
    "RECUR_START_STEP": "3",
    "WARMUP_STEPS": "2",
    "MODEL_DIM": "64",
    "EMBEDDING_DIM": "64",
    "NUM_HEADS": "2",
    "NUM_KV_HEADS": "1",
    "EVAL_SEQ_LEN": "64",
    "EVAL_STRIDE": "32",
    "VAL_BATCH_TOKENS": "2048",
    "GPTQ_CALIBRATION_BATCHES": "2",
    "GPTQ_MIN_WEIGHTS": "1024",
    "SENSITIVITY_SEQUENCES": "8",
    "DEVICE": "cpu",
}


def shared_data(name: str) -> Path:
    """A file of the field's reference data, or a skip where it is absent."""
    path = SHARED / name
    if not path.exists():
        pytest.skip(f"reference data {name} is not here")
    return path


def source_text() -> list[str]:
    """Real text that is on every machine: the sources of some standard modules."""
    return [inspect.getsource(module) for module in (argparse, inspect, subprocess, json, os)]


@pytest.fixture(scope="session")
def data_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data directory in the challenge's format; its path is hostile on purpose."""
    root = tmp_path_factory.mktemp("data") / "größe und platz"
    tokenizers = root / "tokenizers"
    shards = root / "datasets" / f"fineweb10B_sp{VOCAB}"
    tokenizers.mkdir(parents=True)
    shards.mkdir(parents=True)
    documents = source_text()
    spm.SentencePieceTrainer.Train(
        sentence_iterator=iter("\n".join(documents).splitlines()),
        model_prefix=str(tokenizers / f"fineweb_{VOCAB}_bpe"),
        model_type="bpe",
        vocab_size=VOCAB,
        byte_fallback=True,
        user_defined_symbols=[],
        max_sentence_length=8192,
        minloglevel=2,
    )
    processor = spm.SentencePieceProcessor(str(tokenizers / f"fineweb_{VOCAB}_bpe.model"))
    ids = [np.array([processor.bos_id(), *processor.EncodeAsIds(text)]) for text in documents]
    tokens = np.concatenate(ids)
    write_shard(shards / "fineweb_val_000000.bin", tokens[:2_049])
    write_shard(shards / "fineweb_train_000000.bin", tokens[2_049:20_000])
    write_shard(shards / "fineweb_train_000001.bin", tokens[20_000:])
    return root


@dataclass(frozen=True)
class Finished:
    """A trainer process that has ended, and what it left."""

    returncode: int
    stdout: str
    stderr: str
    run_dir: Path

    @property
    def events(self) -> list[dict[str, Any]]:
        lines = (self.run_dir / "events.jsonl").read_text().splitlines()
        return [json.loads(line) for line in lines]

    def of_kind(self, kind: str) -> list[dict[str, Any]]:
        return [event for event in self.events if event["kind"] == kind]

    @property
    def result(self) -> dict[str, Any]:
        return json.loads((self.run_dir / "result.json").read_text())

    @property
    def losses(self) -> list[float]:
        return [event["train_loss"] for event in self.of_kind("step")]


Train = Callable[..., Finished]


def train_command(processes: int) -> list[str]:
    if processes == 1:
        return [sys.executable, "-m", "model.train"]
    torchrun = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"]
    return [sys.executable, *torchrun, "-m", "model.train"]


def train_environment(data: Path, run_dir: Path, /, **overrides: object) -> dict[str, str]:
    """The environment of a trainer process: on one thread, small unless a preset is given."""
    settings = {name.upper(): str(value) for name, value in overrides.items()}
    paths = {"DATA_DIR": str(data), "RUN_DIR": str(run_dir), "OMP_NUM_THREADS": "1"}
    # Compiled by the first of many processes, not by each.
    ours = {name: text for name, text in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    return ours | (SMALL if "PRESET" not in settings else {}) | paths | settings


def run_trainer(
    data: Path, run_dir: Path, /, *, processes: int = 1, **overrides: object
) -> Finished:
    """Run the trainer in processes of its own until it ends."""
    done = subprocess.run(
        train_command(processes),
        cwd=ROOT,
        env=train_environment(data, run_dir, **overrides),
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    return Finished(done.returncode, done.stdout, done.stderr, run_dir)


@pytest.fixture
def train(data_dir: Path, tmp_path: Path) -> Train:
    """Run the trainer, named, in processes of its own until it ends."""

    def run(name: str = "run", /, **options: Any) -> Finished:
        return run_trainer(data_dir, tmp_path / name, **options)

    return run


@pytest.fixture(scope="session")
def usual(data_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Finished:
    """A run of seed 42 with no setting changed, for all who only look at it."""
    done = run_trainer(data_dir, tmp_path_factory.mktemp("usual") / "run", seed=42)
    assert done.returncode == 0, done.stderr
    return done
