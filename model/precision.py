"""The dtype that a run computes in. Weights and sums stay float32 whatever it is."""

from __future__ import annotations

import time

import torch

from model.config import Config

COMPUTE_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
MEASURED_SIZE = 1_024
PRODUCTS = 5
# CPUs with bfloat16 units are about twice as fast with it, those without several times slower.
WORTH_IT = 1.3


def choose_dtype(config: Config, device: torch.device) -> str:
    """The dtype that the config names; else bfloat16 on GPUs, and on a CPU what it does faster."""
    if config.compute_dtype != "auto":
        return config.compute_dtype
    if device.type == "cuda":
        return "bfloat16"
    full, half = (matmul_seconds(device, dtype, MEASURED_SIZE) for dtype in COMPUTE_DTYPES.values())
    return "bfloat16" if full > WORTH_IT * half else "float32"


def matmul_seconds(device: torch.device, dtype: torch.dtype, size: int) -> float:
    """The fastest of some products of two square matrices."""
    a, b = (torch.ones(size, size, device=device, dtype=dtype) for _ in range(2))
    times = []
    for _ in range(1 + PRODUCTS):  # the first one warms up
        started = time.perf_counter()
        a @ b
        if device.type == "cuda":
            torch.cuda.synchronize()
        times.append(time.perf_counter() - started)
    return min(times)
