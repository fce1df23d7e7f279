"""A model's tensors as an artifact stores them: integer codes with scales or steps, or values."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from model.gpt import GPT
from model.gptq import quantize_rows
from model.muon import is_control

SMALL_TENSOR = 65_536
STEPS_PER_OCTAVE = 4

Kind = Literal["int6", "int8", "steps", "float16", "float32"]
SCALED: tuple[Kind, ...] = ("int6", "int8")
CODED: tuple[Kind, ...] = (*SCALED, "steps")
VALUE_DTYPES = {"int6": "<i1", "int8": "<i1", "steps": "<i1", "float16": "<f2", "float32": "<f4"}


@dataclass(frozen=True, kw_only=True)
class Packed:
    """One tensor as it is stored.

    values: codes int8 [rows, cols] of the kinds int6, int8 and steps, else what the kind says.
    scales: float16 [rows], of int6 and int8. row_steps, col_steps: int8 [rows] and [cols], of
    steps; a code stands for itself times 2^((row step + column step) / 4).
    """

    kind: Kind
    values: np.ndarray
    scales: np.ndarray | None = None
    row_steps: np.ndarray | None = None
    col_steps: np.ndarray | None = None

    def tensor(self) -> Tensor:
        """The float32 tensor that these bytes stand for."""
        values = torch.from_numpy(self.values.astype(np.float32))
        if self.scales is not None:
            values *= torch.from_numpy(self.scales.astype(np.float32))[:, None]
        if self.row_steps is not None and self.col_steps is not None:
            values *= step_sizes(torch.tensor(self.row_steps))[:, None]
            values *= step_sizes(torch.tensor(self.col_steps))
        return values

    def details(self) -> Iterator[np.ndarray]:
        """What is stored of it besides its values, as it is stored."""
        if self.scales is not None:
            yield np.ascontiguousarray(self.scales, "<f2")
        if self.row_steps is not None and self.col_steps is not None:
            yield np.ascontiguousarray(self.row_steps, "<i1")
            yield np.ascontiguousarray(self.col_steps, "<i1")


Model = Mapping[str, Packed]


def step_sizes(steps: Tensor) -> Tensor:
    """Integer steps, in quarters of an octave, as factors; float32."""
    return torch.exp2(steps.float() / STEPS_PER_OCTAVE)


def pack_model(model: GPT, coded: Model) -> dict[str, Packed]:
    """Every tensor in its stored form: as it is in `coded`, else int8 or plain values.

    Control parameters stay float32, small tensors become float16, the other matrices int8 with a
    scale per row.
    """
    packed: dict[str, Packed] = {}
    for name, value in model.state_dict().items():
        if name in coded:
            packed[name] = coded[name]
            continue
        value = value.detach().cpu()
        if is_control(name):
            packed[name] = Packed(kind="float32", values=value.float().numpy())
        elif value.ndim == 2 and (value.numel() > SMALL_TENSOR or "emb" in name):
            packed[name] = with_scales("int8", *quantize_rows(value))
        else:
            packed[name] = Packed(kind="float16", values=value.half().numpy())
    return packed


def coded_planes(packed: Model) -> dict[str, tuple[np.ndarray, np.ndarray | None]]:
    """The codes [rows, cols] of every coded tensor, with its column steps where it has such."""
    return {name: (p.values, p.col_steps) for name, p in packed.items() if p.kind in CODED}


def with_scales(kind: Kind, codes: Tensor, scales: Tensor) -> Packed:
    """Codes int8 [rows, cols] with float16 scales [rows]."""
    return Packed(kind=kind, values=codes.cpu().numpy(), scales=scales.cpu().numpy())
