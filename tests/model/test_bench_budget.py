"""The bench that compares two ways to meet a budget, on what a train stage leaves."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from jobs.bench import budget
from jobs.bench.common import show
from model.calibrate import collect_hessians, collect_sensitivities
from model.config import Config
from model.gpt import GPT
from model.handoff import TrainedModel, save_trained
from tests.model.conftest import SMALL


def test_both_ways_are_measured_on_a_trained_model(
    data_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = Config.from_env(SMALL | {"DATA_DIR": str(data_dir)})
    torch.manual_seed(0)
    model = GPT(config)
    with torch.no_grad():
        for p in model.parameters():
            p.add_(0.1 * torch.randn_like(p))
    inputs = torch.randint(config.vocab_size, (2, config.train_seq_len))
    trained = TrainedModel(
        model=model,
        hessians=collect_hessians(model, [inputs], config.gptq_min_weights),
        sensitivities=collect_sensitivities(model, [(inputs, inputs.roll(-1, 1))]),
        facts={
            **dict.fromkeys(("data", "attention", "compute_dtype", "bytes_code")),
            "config": config.echo(),
            "steps": 6,
        },
    )
    before = {name: p.clone() for name, p in model.state_dict().items()}
    save_trained(tmp_path, trained)

    facts = budget.bench(tmp_path, [0.97, 0.5])
    first, impossible = facts["budgets"]
    assert first["fit"]["bytes"] <= first["budget"]
    assert first["prune"]["bytes"] <= first["budget"]
    assert first["fit"]["curved_error"] < first["prune"]["curved_error"]
    assert impossible["prune"] is None
    assert facts["int6"]["bpb"] != facts["before_bpb"]
    assert all(torch.equal(p, before[name]) for name, p in model.state_dict().items())
    show(*budget.present(json.loads(json.dumps(facts))))
    assert "cannot" in capsys.readouterr().out
