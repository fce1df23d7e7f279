"""Cross-entropy of soft-capped logits, a part of the positions at a time.

A batch's logits in float32 would be the largest tensor of the run by far (98,304 positions of
4,096 tokens on one of eight GPUs: 1.6 GB, and as much again for their gradient). Here a part of
them exists at once, and its gradient is made while it does.
"""

from __future__ import annotations

from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor

# Of one part: 128 MiB in float32; on a GPU four times as much, since few parts compile sooner.
LOGITS_AT_ONCE = {"cpu": 1 << 25, "cuda": 1 << 27}


def rows_at_once(vocab_size: int, device: torch.device) -> int:
    """Positions of one part."""
    at_once = LOGITS_AT_ONCE["cuda" if device.type == "cuda" else "cpu"]
    return max(1, at_once // vocab_size)


def capped(raw: Tensor, cap: float) -> Tensor:
    """cap · tanh(raw / cap) in float32."""
    return cap * torch.tanh(raw.float() / cap)


def token_nats(hidden: Tensor, weight: Tensor, targets: Tensor, cap: float) -> Tensor:
    """-log p of each target, float32 [n], without gradients.

    hidden [n, E], weight [V, E] in hidden's dtype, targets [n].
    """
    parts = [
        F.cross_entropy(capped(F.linear(h, weight), cap), t, reduction="none")
        for h, t in zip(*_split(hidden, targets, weight), strict=True)
    ]
    return torch.cat(parts)


class _MeanCrossEntropy(torch.autograd.Function):
    """Mean nats; the gradients are made in the forward pass, and only scaled in the backward."""

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, weight: Tensor, targets: Tensor, cap: float) -> Tensor:
        w = weight.to(hidden.dtype)
        total = torch.zeros((), dtype=torch.float32, device=hidden.device)
        tokens = torch.arange(weight.size(0), device=hidden.device)
        grad_hidden: list[Tensor] = []
        grad_weight = torch.zeros_like(weight)
        for h, t in zip(*_split(hidden, targets, weight), strict=True):
            tanh = torch.tanh(F.linear(h, w).float() / cap)
            log_p = torch.log_softmax(cap * tanh, dim=-1)
            total = total - log_p.gather(1, t[:, None]).sum()
            # Of the softmax, less 1 at the target (by a mask: a scatter would not be fused with
            # the rest), through the cap: tanh' = 1 - tanh².
            grad = log_p.exp() - (t[:, None] == tokens).float()
            grad = ((1 - tanh.square()) * grad / len(targets)).to(hidden.dtype)
            grad_hidden.append(grad @ w)
            grad_weight = grad_weight + grad.T @ h
        ctx.save_for_backward(torch.cat(grad_hidden), grad_weight)
        return total / len(targets)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, None, None]:
        grad_hidden, grad_weight = ctx.saved_tensors
        return grad_hidden * grad.to(grad_hidden.dtype), grad_weight * grad, None, None


def mean_cross_entropy(hidden: Tensor, weight: Tensor, targets: Tensor, cap: float) -> Tensor:
    """Mean -log p of the targets, a float32 scalar.

    hidden [n, E] in any float dtype, weight [V, E] in float32, targets [n].
    """
    return cast(Tensor, _MeanCrossEntropy.apply(hidden, weight, targets, cap))


def _split(
    hidden: Tensor, targets: Tensor, weight: Tensor
) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
    rows = rows_at_once(weight.size(0), weight.device)
    return hidden.split(rows), targets.split(rows)
