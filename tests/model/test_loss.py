"""The loss in parts: what autograd makes of the whole, and no more memory than a part."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from model import loss
from model.loss import mean_cross_entropy, rows_at_once, token_nats


@pytest.fixture(params=[1, 7, 64])
def rows(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> int:
    """So many positions at once, of a vocabulary of 50."""
    monkeypatch.setattr(loss, "LOGITS_AT_ONCE", {"cpu": 50 * request.param})
    assert rows_at_once(50, torch.device("cpu")) == request.param
    return int(request.param)


def inputs(dtype: torch.dtype = torch.float32) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    torch.manual_seed(0)
    hidden = torch.randn(23, 16).to(dtype).requires_grad_()
    weight = (0.7 * torch.randn(50, 16)).requires_grad_()
    return hidden, weight, torch.randint(0, 50, (23,))


def plain(hidden: torch.Tensor, weight: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    raw = F.linear(hidden, weight.to(hidden.dtype)).float()
    return F.cross_entropy(5 * torch.tanh(raw / 5), targets)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.bfloat16, 2e-2)])
def test_value_and_gradients_are_those_of_the_whole(
    rows: int, dtype: torch.dtype, tolerance: float
) -> None:
    hidden, weight, targets = inputs(dtype)
    expected = plain(hidden, weight, targets)
    wanted = torch.autograd.grad(3 * expected, (hidden, weight))
    found = mean_cross_entropy(hidden, weight, targets, 5.0)
    grads = torch.autograd.grad(3 * found, (hidden, weight))
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
    for ours, theirs in zip(grads, wanted, strict=True):
        assert ours.dtype == theirs.dtype
        error = (ours.float() - theirs.float()).norm() / theirs.float().norm()
        assert error < tolerance


def test_each_tokens_nats(rows: int) -> None:
    hidden, weight, targets = inputs()
    with torch.no_grad():
        nats = token_nats(hidden, weight, targets, 5.0)
        raw = F.linear(hidden, weight)
    expected = F.cross_entropy(5 * torch.tanh(raw / 5), targets, reduction="none")
    torch.testing.assert_close(nats, expected)


def test_the_logits_are_never_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loss, "LOGITS_AT_ONCE", {"cpu": 50 * 4})
    hidden, weight, targets = inputs()
    largest = 0

    class Watch(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
            nonlocal largest
            out = func(*args, **(kwargs or {}))
            for tensor in out if isinstance(out, tuple | list) else (out,):
                if isinstance(tensor, torch.Tensor):
                    largest = max(largest, tensor.numel())
            return out

    with Watch():
        mean_cross_entropy(hidden, weight, targets, 5.0).backward()
    assert largest == weight.numel()  # 800: more than a part's 200 logits, less than all 1,150
