"""Where a run computes: a model put in its place there, and what a result says of the machine."""

from __future__ import annotations

import platform
import resource
from typing import Any

import torch

from model.attention import allow_attention, choose_attention
from model.config import Config
from model.evaluate import move_to_compute
from model.gpt import GPT
from model.precision import choose_dtype
from model.ranks import Ranks


def place(model: GPT, config: Config, ranks: Ranks) -> dict[str, Any]:
    """Put a model where it computes; the dtype and the attention that all ranks compute with."""
    dtype = ranks.gather(choose_dtype(config, ranks.device))[0]  # one for all ranks
    move_to_compute(model, ranks.device, dtype)
    attention = choose_attention(config, ranks.device, model.compute_dtype)
    attention = ranks.gather(attention)[0]
    allow_attention(attention.backend)
    model.set_attention(attention.backend)
    return {"attention": vars(attention), "compute_dtype": dtype}


def describe(ranks: Ranks) -> dict[str, Any]:
    """World, hardware and versions: what a result depends on besides its config and data."""
    if ranks.device.type == "cuda":
        device = torch.cuda.get_device_name()
    else:
        device = f"cpu ({platform.processor() or platform.machine()})"
    return {
        "world_size": ranks.world,
        "device": device,
        "versions": {"torch": torch.__version__, "python": platform.python_version()},
    }


def peak_memory_mib(ranks: Ranks) -> int:
    """Peak memory of this rank: of the allocator on a GPU, of the process on a CPU."""
    if ranks.device.type == "cuda":
        return torch.cuda.max_memory_allocated() >> 20
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10
