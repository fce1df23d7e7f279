"""The processes of one run: who they are, where they compute, and how they agree.

Decisions that all ranks must take alike (stop, learning rate, whether a loss is finite) go
through `agree`, a small exchange on the CPU that a GPU never waits for.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from model.config import Config
from model.fields import ConfigError

# Long enough for one rank to compile while the others wait.
COLLECTIVE_TIMEOUT = timedelta(minutes=10)


@dataclass(frozen=True, kw_only=True)
class Ranks:
    """This process among the `world` processes of the run."""

    rank: int
    world: int
    device: torch.device
    control: dist.ProcessGroup | None  # gloo, for decisions; None when alone

    @property
    def main(self) -> bool:
        return self.rank == 0

    def agree(self, values: Sequence[float]) -> list[float]:
        """Element-wise sums over the ranks, the same on each of them."""
        if self.control is None:
            return list(values)
        shared = torch.tensor(values, dtype=torch.float64)
        dist.all_reduce(shared, group=self.control)
        return shared.tolist()

    def sum_(self, tensor: Tensor) -> Tensor:
        """Sum a tensor over the ranks, in place."""
        if self.world > 1:
            dist.all_reduce(tensor)
        return tensor

    def gather(self, item: Any) -> list[Any]:
        """One item of every rank, in rank order, on every rank; for small Python objects."""
        if self.control is None:
            return [item]
        items: list[Any] = [None] * self.world
        dist.all_gather_object(items, item, group=self.control)
        return items

    def broadcast_bytes(self, data: bytes | None) -> bytes:
        """Rank 0's bytes on every rank; the others pass None."""
        if self.control is None:
            assert data is not None
            return data
        size = torch.tensor([len(data) if data is not None else 0])
        dist.broadcast(size, src=0, group=self.control)
        buffer = torch.empty(int(size), dtype=torch.uint8)
        if data is not None:
            buffer.copy_(torch.frombuffer(bytearray(data), dtype=torch.uint8))
        dist.broadcast(buffer, src=0, group=self.control)
        return buffer.numpy().tobytes()


def start_ranks(config: Config, environ: Mapping[str, str]) -> Ranks:
    """Join the process group that torchrun describes; a lone process needs none.

    Raises ConfigError when the device that the config asks for is not there.
    """
    rank, world = int(environ.get("RANK", "0")), int(environ.get("WORLD_SIZE", "1"))
    local_rank = int(environ.get("LOCAL_RANK", "0"))
    device = _device(config, local_rank)
    control = None
    if world > 1:
        backend = "nccl" if device.type == "cuda" else "gloo"
        dist.init_process_group(backend, timeout=COLLECTIVE_TIMEOUT)
        control = dist.new_group(backend="gloo", timeout=COLLECTIVE_TIMEOUT)
    return Ranks(rank=rank, world=world, device=device, control=control)


def stop_ranks() -> None:
    """Leave the process group, if any."""
    if dist.is_initialized():
        dist.destroy_process_group()


def _device(config: Config, local_rank: int) -> torch.device:
    wanted = config.device
    if wanted == "auto":
        wanted = "cuda" if torch.cuda.is_available() else "cpu"
    if wanted == "cpu":
        torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", torch.get_num_threads())))
        return torch.device("cpu")
    found = torch.cuda.device_count()
    if local_rank >= found:
        raise ConfigError(
            f"DEVICE: rank {local_rank} of this host needs its own GPU, found {found}; start "
            "fewer processes, or set DEVICE=cpu"
        )
    device = torch.device("cuda", local_rank)
    torch.cuda.set_device(device)
    return device
