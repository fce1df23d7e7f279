"""GPTQ by reference and by what it promises: less Hessian-weighted error than rounding."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.profiler import ProfilerActivity, profile

from model.calibrate import collect_hessians
from model.config import Config
from model.gpt import GPT
from model.gptq import (
    CLIP_QUANTILES,
    GptqError,
    clip_scales,
    quantize,
    quantize_all,
    quantize_rows,
)
from tests.model.conftest import shared_data


def hessian_error(weight: Tensor, codes: Tensor, scales: Tensor, hessian: Tensor) -> float:
    left = weight - codes * scales.float()[:, None]
    return float(torch.einsum("ij,jk,ik->", left, hessian, left))


def correlated_hessian(cols: int, samples: int = 512) -> Tensor:
    torch.manual_seed(1)
    x = torch.randn(samples, cols) @ (torch.eye(cols) + 0.5 * torch.randn(cols, cols) / cols**0.5)
    return x.T @ x


def test_matches_the_reference() -> None:
    golden = np.load(shared_data("golden/gptq_int6.npz"))
    weight, hessian = torch.from_numpy(golden["weight"]), torch.from_numpy(golden["hessian"])
    codes, scales = quantize(weight, hessian)
    assert hessian_error(weight, codes, scales, hessian) <= 1.02 * float(golden["hessian_error"])
    np.testing.assert_array_equal(scales.numpy(), golden["scale"])
    assert (codes.numpy() != golden["q"]).mean() < 1e-3


def plain_gptq(weight: Tensor, hessian: Tensor) -> tuple[Tensor, Tensor]:
    """The algorithm as the paper has it: column after column, by the inverse's Cholesky factor."""
    order = hessian.diagonal().argsort(descending=True)
    damped = hessian[order][:, order] + 0.01 * hessian.diagonal().mean() * torch.eye(len(order))
    upper = torch.linalg.cholesky(torch.linalg.inv(damped), upper=True)
    best = (math.inf, weight, weight)
    for quantile in CLIP_QUANTILES:
        scales = (weight.abs().quantile(quantile, dim=1) / 31).clamp_min(1 / 31).half()
        left, codes = weight[:, order].clone(), torch.empty_like(weight)
        for j, column in enumerate(order):
            code = (left[:, j] / scales.float()).round().clamp(-31, 31)
            error = (left[:, j] - code * scales.float()) / upper[j, j]
            left -= torch.outer(error, upper[j])
            codes[:, column] = code
        squared = float((weight - codes * scales.float()[:, None]).square().sum())
        if squared < best[0]:
            best = (squared, codes, scales)
    return best[1], best[2]


@pytest.mark.parametrize("spread", [0.1, 1.0, 3.0])  # all clips alike, some, none
def test_gives_what_the_plain_algorithm_gives(spread: float) -> None:
    torch.manual_seed(0)
    weight, hessian = spread * torch.randn(96, 160), correlated_hessian(160)
    codes, scales = quantize(weight, hessian)
    plain_codes, plain_scales = plain_gptq(weight, hessian)
    torch.testing.assert_close(scales, plain_scales, rtol=0, atol=0)
    assert (codes != plain_codes).float().mean() < 1e-3
    plain_error = hessian_error(weight, plain_codes, plain_scales, hessian)
    assert hessian_error(weight, codes, scales, hessian) <= 1.001 * plain_error


def test_many_at_once_are_as_one_by_one(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    shapes = [(48, 64), (64, 48), (48, 64), (48, 64), (7, 33)]
    weights = {f"w{i}": (0.3 + i) * torch.randn(shape) for i, shape in enumerate(shapes)}
    hessians = {name: correlated_hessian(w.size(1)) for name, w in weights.items()}
    done: list[float] = []
    together = quantize_all(weights, hessians, done.append)
    assert list(together) == list(weights)
    assert done == [1 / 5, 4 / 5, 1.0]  # by shape
    monkeypatch.setattr("model.gptq.BATCH_BYTES", {"cpu": 1})  # each alone
    apart = quantize_all(weights, hessians)
    for name, (codes, scales) in together.items():
        for found in (apart[name], quantize(weights[name], hessians[name])):
            torch.testing.assert_close(codes, found[0], rtol=0, atol=0)
            torch.testing.assert_close(scales, found[1], rtol=0, atol=0)


@pytest.mark.parametrize("cols", [2, 33, 512, 2048])
def test_clips_are_the_rows_quantiles(cols: int) -> None:
    torch.manual_seed(0)
    weight = 50 * torch.randn(16, cols)
    expected = weight.abs().quantile(torch.tensor(CLIP_QUANTILES), dim=1) / 31
    torch.testing.assert_close(clip_scales(weight), expected.half(), rtol=1e-3, atol=0)


@pytest.mark.parametrize("shape", [(48, 300), (96, 64), (1, 129)])
def test_never_worse_than_rounding(shape: tuple[int, int]) -> None:
    torch.manual_seed(0)
    weight, hessian = torch.randn(shape), correlated_hessian(shape[1])
    codes, scales = quantize(weight, hessian)
    rounded = (weight / scales.float()[:, None]).round().clamp(-31, 31)
    assert codes.dtype == torch.int8
    assert scales.dtype == torch.float16
    assert codes.abs().max() <= 31
    found = hessian_error(weight, codes, scales, hessian)
    assert found < hessian_error(weight, rounded, scales, hessian)


def test_inputs_that_never_fire_cost_nothing() -> None:
    torch.manual_seed(0)
    weight, hessian = torch.randn(8, 32), correlated_hessian(32)
    hessian[5], hessian[:, 5] = 0, 0
    codes, _ = quantize(weight, hessian)
    assert not codes[:, 5].any()
    assert codes[:, 6].any()


def test_rank_deficient_hessians_are_damped() -> None:
    torch.manual_seed(0)
    x = torch.randn(4, 64)
    codes, scales = quantize(torch.randn(16, 64), x.T @ x)
    assert torch.isfinite(scales).all()
    assert codes.any()


def test_small_weights_share_the_smallest_scale() -> None:
    torch.manual_seed(0)
    _, scales = quantize(0.01 * torch.randn(16, 64), correlated_hessian(64))
    np.testing.assert_allclose(scales.float().numpy(), 1 / 31, rtol=1e-3)


def test_a_hessian_that_nothing_mends_is_refused() -> None:
    with pytest.raises(GptqError, match="not positive definite even with 100 % damping"):
        quantize(torch.randn(4, 8), -torch.eye(8))


def test_a_hessian_of_another_size_is_refused() -> None:
    with pytest.raises(GptqError, match=r"must be \[32, 32\], found \[16, 16\]"):
        quantize(torch.randn(4, 32), torch.eye(16))


def test_embeddings_round_to_half_a_step() -> None:
    torch.manual_seed(0)
    weight = torch.randn(64, 128) * torch.logspace(-4, 2, 64)[:, None]
    codes, scales = quantize_rows(weight)
    error = (weight - codes * scales.float()[:, None]).abs().amax(1)
    assert (error <= 0.51 * scales.float()).all()
    zero_codes, zero_scales = quantize_rows(torch.zeros(2, 8))
    assert not zero_codes.any()
    assert torch.isfinite(zero_scales).all()


def test_hessians_are_those_of_each_layers_inputs() -> None:
    config = Config.from_env({"PRESET": "tiny", "VOCAB_SIZE": "64"})
    torch.manual_seed(0)
    model = GPT(config)
    model.set_recurrence_active(True)
    batches = [torch.randint(0, 64, (2, 16)) for _ in range(3)]
    hessians = collect_hessians(model, batches, config.gptq_min_weights)
    assert len(hessians) == 6 * config.num_layers
    query, value = hessians["blocks.1.attn.c_q.weight"], hessians["blocks.1.attn.c_v.weight"]
    assert query is value

    seen: list[Tensor] = []
    layer = model.get_submodule("blocks.1.mlp.fc")
    handle = layer.register_forward_pre_hook(lambda _, args: seen.append(args[0].flatten(0, 1)))
    with torch.no_grad():
        for batch in batches:
            model.hidden(batch)
    handle.remove()
    x = torch.cat(seen)
    assert len(x) == 2 * 3 * 2 * 16  # layer 1 is recurrent: it runs twice
    torch.testing.assert_close(hessians["blocks.1.mlp.fc.weight"], x.T @ x, rtol=1e-4, atol=1e-3)
    assert not any(module._forward_pre_hooks for module in model.modules())


def test_memory_stays_within_three_times_the_weights(tmp_path: Path) -> None:
    """By the allocator's own count: a process's peak may be older than what is measured."""
    torch.manual_seed(0)
    shapes = {f"tall {i}": (1024, 256) for i in range(16)}
    shapes |= {f"wide {i}": (256, 1024) for i in range(16)}
    weights = {name: torch.randn(*shape) for name, shape in shapes.items()}
    hessians = {name: torch.eye(w.size(1)) for name, w in weights.items()}
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as measured:
        quantize_all(weights, hessians)
    measured.export_chrome_trace(str(tmp_path / "trace.json"))
    events = json.loads((tmp_path / "trace.json").read_text())["traceEvents"]
    peak = max(e["args"]["Total Allocated"] for e in events if e["name"] == "[memory]")
    own = sum(w.nbytes for w in weights.values())
    assert 0.5 * own < peak <= 3 * own
