"""The recipe's training step written out plainly: eager, float32, one matrix after the other.

The measure for `jobs.bench.train --compare eager`. It computes what `model` computes (a test
holds this) without any of its means: no compilation, no fused products, whole logits.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor

from model.config import Config
from model.recurrence import Loop, virtual_layers

Params = Mapping[str, Tensor]


def plain_loss(
    params: Params, config: Config, loop: Loop, inputs: Tensor, targets: Tensor
) -> Tensor:
    """Mean cross-entropy of `model.gpt.GPT` with these parameters (tied embeddings, E = D)."""
    x = _norm(F.embedding(inputs, params["tok_emb.weight"]))
    x0, lanes = x, None
    layers = virtual_layers(config.num_layers, loop)
    skips: list[Tensor] = []
    popped = 0
    for position, layer in enumerate(layers):
        decoding = position >= len(layers) // 2
        if decoding and skips and popped < len(params["skip_weights"]):
            skip = params["skip_weights"][popped] * skips.pop()
            x = torch.lerp(skip, x, torch.sigmoid(params["skip_gates"][popped]))
            popped += 1
        start = config.parallel_start_layer
        if decoding and start is not None and layer >= start and lanes is None:
            lanes = x
        mix = params[f"blocks.{layer}.resid_mix"]
        x = mix[0] * x + mix[1] * x0
        x = x + params[f"blocks.{layer}.attn_scale"] * _attend(params, config, layer, x, inputs)
        if lanes is None:
            x = _feed_forward(params, config, layer, x)
        else:
            lanes = _feed_forward(params, config, layer, lanes)
        if not decoding:
            skips.append(x)
    if lanes is not None:
        x = params["lane_merge"] * x + (1 - params["lane_merge"]) * lanes
    raw = F.linear(_norm(x), params["tok_emb.weight"])
    logits = config.logit_softcap * torch.tanh(raw / config.logit_softcap)
    return F.cross_entropy(logits.flatten(0, 1), targets.flatten())


def _norm(x: Tensor) -> Tensor:
    return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + torch.finfo(x.dtype).eps)


def _scaled(config: Config, layer: int, x: Tensor) -> Tensor:
    return _norm(x) * (1 / math.sqrt(layer + 1) if config.ln_scale else 1.0)


def _attend(params: Params, config: Config, layer: int, x: Tensor, inputs: Tensor) -> Tensor:
    name = f"blocks.{layer}.attn"
    B, T, D = x.shape
    x = _scaled(config, layer, x)
    q, k, v = (F.linear(x, params[f"{name}.{c}.weight"]) for c in ("c_q", "c_k", "c_v"))
    if layer in config.ve_layers:
        embedded = F.embedding(inputs, params["ve_shared.embed.weight"])
        extra = F.linear(embedded, params["ve_shared.proj.weight"]) * params["ve_shared.scale"]
        v = v + extra * params[f"ve_layer_scales.{config.ve_layers.index(layer)}"]
    q, k, v = (y.view(B, T, -1, config.head_dim).transpose(1, 2) for y in (q, k, v))
    q, k = _rotate(_norm(q), config), _rotate(_norm(k), config)
    q = q * params[f"{name}.q_gain"][:, None, None]
    groups = config.num_heads // config.num_kv_heads
    k, v = k.repeat_interleave(groups, 1), v.repeat_interleave(groups, 1)
    y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
    if layer >= config.num_layers - config.xsa_last_n:
        own = F.normalize(v, dim=-1)
        y = y - (y * own).sum(-1, keepdim=True) * own
    return F.linear(y.transpose(1, 2).reshape(B, T, D), params[f"{name}.proj.weight"])


def _rotate(x: Tensor, config: Config) -> Tensor:
    r, T = config.rope_dims, x.size(-2)
    frequency = config.rope_base ** (-torch.arange(0, r, 2, device=x.device) / r)
    angle = torch.arange(T, device=x.device)[:, None] * frequency
    x1, x2, rest = x.split([r // 2, r // 2, x.size(-1) - r], dim=-1)
    cos, sin = angle.cos(), angle.sin()
    return torch.cat([x1 * cos + x2 * sin, x2 * cos - x1 * sin, rest], dim=-1)


def _feed_forward(params: Params, config: Config, layer: int, x: Tensor) -> Tensor:
    name = f"blocks.{layer}"
    inner = F.linear(_scaled(config, layer, x), params[f"{name}.mlp.fc.weight"])
    outer = F.linear(F.leaky_relu(inner, 0.5).square(), params[f"{name}.mlp.proj.weight"])
    return x + params[f"{name}.mlp_scale"] * outer


class PlainMuon:
    """MuonEq-R, one matrix after the other."""

    def __init__(self, matrices: list[Tensor], config: Config) -> None:
        self.matrices = matrices
        self.config = config
        self.buffers = [torch.zeros_like(p) for p in matrices]

    @torch.no_grad()
    def step(self) -> None:
        lr, momentum = self.config.matrix_lr, self.config.muon_momentum
        for p, buffer in zip(self.matrices, self.buffers, strict=True):
            assert p.grad is not None
            buffer.mul_(momentum).add_(p.grad)
            g = p.grad.add(buffer, alpha=momentum)
            g = g / (g.norm(dim=1, keepdim=True) + 1e-7)
            x = g.bfloat16()
            x = x / (x.norm() + 1e-7)
            x = x.T if x.size(0) > x.size(1) else x
            for _ in range(self.config.muon_backend_steps):
                gram = x @ x.T
                x = 3.4445 * x + (-4.7750 * gram + 2.0315 * gram @ gram) @ x
            x = x.T if p.size(0) > p.size(1) else x
            p.mul_(1 - lr * self.config.muon_wd)
            p.add_(x.float(), alpha=-lr * max(1, p.size(0) / p.size(1)) ** 0.5)
