"""Causal attention, by the fastest of the implementations that this machine has."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from model.config import Config
from model.fields import ConfigError

try:
    from flash_attn_interface import flash_attn_func as flash_attn_3
except ImportError:
    flash_attn_3 = None

# Torch's own, each with the switch that allows it.
SWITCHES = {
    "cudnn": torch.backends.cuda.enable_cudnn_sdp,
    "flash": torch.backends.cuda.enable_flash_sdp,
    "efficient": torch.backends.cuda.enable_mem_efficient_sdp,
    "math": torch.backends.cuda.enable_math_sdp,
}
# Those of torch's own that take a mask on one device or another, and cuDNN left out.
MASKABLE = [SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH]
# Enough for a GPU to be slower than its launches.
MEASURED_TOKENS = {"cpu": 16_384, "cuda": 98_304}
REPEATS = 5


@dataclass(frozen=True, kw_only=True)
class Choice:
    """The implementation in use, and what was measured to choose it: ms, forward and backward."""

    backend: str
    measured_ms: dict[str, float]


def causal_attention(q: Tensor, k: Tensor, v: Tensor, backend: str) -> Tensor:
    """Causal grouped-query attention: q [B, S, H, C], k and v [B, T, K, C] -> [B, S, H, C].

    The queries are those of the last S of the T positions; mostly S = T.
    """
    if backend == "fa3":
        assert flash_attn_3 is not None, "the choice is made among what is installed"
        y = flash_attn_3(q, k, v, causal=True)  # queries and keys end together
        return y[0] if isinstance(y, tuple) else y  # some builds return the normaliser too
    if q.size(1) < k.size(1):
        return _attention_of_last(q, k, v)
    if backend == "efficient":  # which knows no groups
        k, v = (x.repeat_interleave(q.size(2) // x.size(2), 2) for x in (k, v))
    q, k, v = q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2)
    y = F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=q.size(1) != k.size(1))
    return y.transpose(1, 2)


def _attention_of_last(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """`causal_attention` of fewer queries than keys, by whatever of torch's takes a mask.

    torch's `is_causal` lets the first query see the first key alone, so the mask is written out;
    it is small. The queries of a group become one head's, which every implementation can do.
    """
    B, S, H, C = q.shape
    T, K = k.size(1), k.size(2)
    seen = torch.ones(S, T, dtype=torch.bool, device=q.device).tril(T - S).repeat(H // K, 1)
    q = q.view(B, S, K, H // K, C).permute(0, 2, 3, 1, 4).reshape(B, K, -1, C)
    with sdpa_kernel(MASKABLE):
        y = F.scaled_dot_product_attention(q, k.transpose(1, 2), v.transpose(1, 2), attn_mask=seen)
    return y.view(B, K, H // K, S, C).permute(0, 3, 1, 2, 4).reshape(B, S, H, C)


def choose_attention(config: Config, device: torch.device, dtype: torch.dtype) -> Choice:
    """The implementation that the config names, or on a GPU the fastest; see `allow_attention`.

    Raises ConfigError when the named one cannot run here.
    """
    asked = config.attention
    if asked == "sdpa" or (asked == "auto" and device.type == "cpu"):
        return Choice(backend="sdpa", measured_ms={})
    tried = ["fa3", "cudnn", "flash", "efficient"] if asked == "auto" else [asked]
    times = {name: measure(name, config, device, dtype) for name in tried}
    usable = {name: ms for name, ms in times.items() if math.isfinite(ms)}
    if not usable:
        raise ConfigError(
            f"ATTENTION={asked}: cannot run on {device.type} with {dtype} here; install it, or set "
            "ATTENTION=auto"
        )
    best = min(usable, key=lambda name: usable[name])
    return Choice(backend=best, measured_ms={name: round(ms, 3) for name, ms in usable.items()})


def measure(backend: str, config: Config, device: torch.device, dtype: torch.dtype) -> float:
    """Median ms of a forward and backward pass at the run's shapes; inf where it cannot run."""
    if backend == "fa3" and (flash_attn_3 is None or device.type != "cuda"):
        return math.inf
    T = config.train_seq_len
    B = max(1, min(MEASURED_TOKENS[device.type], config.train_batch_tokens) // T)

    def heads(count: int) -> Tensor:
        shape = (B, T, count, config.head_dim)
        return torch.ones(shape, device=device, dtype=dtype, requires_grad=True)

    q, k, v = heads(config.num_heads), heads(config.num_kv_heads), heads(config.num_kv_heads)
    times = []
    allow_attention(backend)
    for _ in range(REPEATS):
        started = time.perf_counter()
        try:
            y = causal_attention(q, k, v, backend)
            torch.autograd.grad(y.sum(), (q, k, v))
            if device.type == "cuda":
                torch.cuda.synchronize()
        except torch.OutOfMemoryError:
            raise  # says nothing of the implementation
        except RuntimeError:
            return math.inf
        times.append(1000 * (time.perf_counter() - started))
    return sorted(times)[REPEATS // 2]


def allow_attention(backend: str) -> None:
    """Let torch use this one of its implementations, or any where it is to choose itself.

    Holds for the whole process; measuring leaves the last one that was tried.
    """
    for name, switch in SWITCHES.items():
        switch(name == backend or backend not in SWITCHES)
