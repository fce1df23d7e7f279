"""Compiled graphs: every one that a run will use is made before its clock starts."""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor, nn
from torch._dynamo.utils import counters

from model.config import Config
from model.gpt import GPT

Shape = tuple[int, int, int]  # of a scored batch: windows, positions each, scored positions each
# Loops of the recurrence x training and scoring, with and without gradients.
MAX_GRAPHS = 64


class Graphs:
    """A model for training and for scoring: compiled where that pays, else as it is."""

    def __init__(
        self, model: GPT, config: Config, device: torch.device, backend: str = "inductor"
    ) -> None:
        self.model = model
        self.compiling = device.type == "cuda" if config.compile is None else config.compile
        self.network: nn.Module = model
        self._compiled_nats: Any = model.nats
        self._shapes: set[Shape] = set()
        if self.compiling:
            torch._dynamo.config.recompile_limit = MAX_GRAPHS
            # Whole graphs under DDP too: cut at its buckets they run into what older versions
            # cannot cut, and 34 M gradients are exchanged in a millisecond anyway.
            torch._dynamo.config.optimize_ddp = False
            self.network = cast(nn.Module, torch.compile(model, backend=backend, dynamic=False))
            self._compiled_nats = torch.compile(model.nats, backend=backend, dynamic=False)

    @torch.no_grad()
    def warm_scoring(self, shape: Shape) -> None:
        """Make the graph that scores batches of this shape, with the loop that is in force."""
        if not self.compiling:
            return
        windows, positions, scored = shape
        self._shapes.add(shape)
        device = next(self.model.parameters()).device
        inputs = torch.zeros(windows, positions, dtype=torch.int64, device=device)
        self.nats(inputs, inputs[:, -scored:])

    @torch.no_grad()
    def nats(self, inputs: Tensor, targets: Tensor) -> Tensor:
        """`GPT.nats`; batches of a shape that was not foreseen are not worth compiling for."""
        shape = (*inputs.shape, targets.size(1))
        score = self._compiled_nats if shape in self._shapes else self.model.nats
        return score(inputs.contiguous(), targets.contiguous())

    @staticmethod
    def made() -> int:
        """How many graphs this process has compiled so far."""
        return int(counters["stats"]["unique_graphs"])
