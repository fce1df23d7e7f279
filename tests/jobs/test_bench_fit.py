"""How the post-training bench judges a fit by steps."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from jobs.bench.common import CPU, Meter
from jobs.bench.post_fit import budget_near, curvature_error, made_up_sensitivities
from jobs.bench.post_stages import STAGES, Job, build
from jobs.bench.trained import RECORD_SPREAD
from model.config import Config
from model.gpt import GPT
from model.packed import pack_model
from model.report import code_bytes


@pytest.fixture(scope="module")
def config() -> Config:
    return Config.from_env({"PRESET": "tiny", "VOCAB_SIZE": "256"})


def test_the_budget_is_the_runs_where_the_size_is_near_it() -> None:
    left = Config().budget_bytes - code_bytes()
    assert budget_near(Config(), left + 200_000) == left
    for size in (left, 4 * left, 100_000):
        assert 0.98 * size < budget_near(Config(), size) < size


def test_the_curvature_error_by_its_definition(config: Config) -> None:
    torch.manual_seed(0)
    model = GPT(config)
    name, embedding = "blocks.0.mlp.fc.weight", "tok_emb.weight"
    weights, sensitivities = dict(model.named_parameters()), made_up_sensitivities(model)
    packed = pack_model(model, {})
    x = torch.randn(300, weights[name].size(1))
    wanted = 0.0
    for each in (name, embedding):
        left = weights[each].detach() - packed[each].tensor()
        gradients = sensitivities[each]
        assert float(gradients.rows.sum()) == pytest.approx(left.numel())
        if each == name:
            rows = (left @ x.T).square().sum(1) / x.square().sum()
        else:
            rows = (left.square() * gradients.cols).sum(1) / gradients.cols.sum()
        wanted += float((gradients.rows * rows).sum())
    chosen = {each: sensitivities[each] for each in (name, embedding)}
    found = curvature_error(weights, packed, {name: x.T @ x}, chosen)
    assert found == pytest.approx(wanted, rel=1e-3)


def test_steps_meet_the_budget_with_less_harm_than_pruning(config: Config, tmp_path: Path) -> None:
    job = Job(config=config, spread=RECORD_SPREAD, device=CPU, repeats=1, folder=tmp_path)
    build(job)
    facts = {
        name: STAGES[name](job, Meter(repeats=1))
        for name in ("gptq", "pack brotli", "fit steps", "pack steps", "unpack steps")
    }
    fit = facts["fit steps"]
    assert 0.99 * fit["budget"] < fit["bytes"] <= fit["budget"] < facts["pack brotli"]["bytes"]
    assert fit["pruned_bytes"] <= fit["budget"]
    assert fit["rounds"] >= 1
    assert fit["error_by_pruned"] < 1
    assert facts["pack steps"]["bytes"] <= fit["bytes"]
