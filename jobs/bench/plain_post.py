"""From weights to the artifact written out plainly, as the record's public implementation does it.

The measure for `jobs.bench.post_training --plain`. It makes of the weights what `model` makes of
them (a test holds this), without any of its means: GPTQ goes one matrix after the other and column
by column, once per clip quantile; pruning sorts a Python tuple per code; Brotli takes everything.
"""

from __future__ import annotations

import dataclasses
import io
import math

import brotli
import numpy as np
import torch
from torch import Tensor

from model.gptq import CLIP_QUANTILES, CODE_RANGE, DAMPING, Coded
from model.packed import Model, Packed

BLOCK = 128  # columns whose errors reach the columns after them in one product
BROTLI_QUALITY = 10
STRIDE = 2


def plain_quantize(weight: Tensor, hessian: Tensor) -> Coded:
    """GPTQ (arXiv:2210.17323) of one matrix [rows, cols]: codes int8 and scales float16 [rows].

    Every clip quantile is gone through from the start; the least squared weight error wins.
    """
    weight = weight.detach().float()
    order, upper = _inverse_factor(hessian)
    columns = weight.clone()
    columns[:, hessian.diagonal() == 0] = 0
    columns = columns[:, order]
    best: tuple[float, Tensor, Tensor] | None = None
    for quantile in CLIP_QUANTILES:
        clip = torch.quantile(weight.abs(), quantile, dim=1)
        scales = (clip / CODE_RANGE).clamp_min(1 / CODE_RANGE).half()
        codes = _round_columns(columns, upper, scales.float())
        error = (columns - codes * scales.float()[:, None]).square().mean().item()
        if best is None or error < best[0]:
            best = error, codes, scales
    assert best is not None
    return best[1][:, torch.argsort(order)], best[2]


def _inverse_factor(hessian: Tensor) -> tuple[Tensor, Tensor]:
    """The columns by falling diagonal, and the upper Cholesky factor of the inverse Hessian."""
    damped = hessian.float().clone()
    diagonal = damped.diagonal()
    diagonal[diagonal == 0] = 1
    diagonal += DAMPING * diagonal.mean()
    order = torch.argsort(damped.diagonal(), descending=True)
    lower = torch.linalg.cholesky(damped[order][:, order])
    return order, torch.linalg.cholesky(torch.cholesky_inverse(lower), upper=True)


def _round_columns(columns: Tensor, upper: Tensor, scales: Tensor) -> Tensor:
    """Codes int8 of columns [rows, cols], the error of each taken up by those after it."""
    left = columns.clone()
    codes = torch.zeros_like(left, dtype=torch.int8)
    for start in range(0, left.size(1), BLOCK):
        stop = min(start + BLOCK, left.size(1))
        block, factor = left[:, start:stop].clone(), upper[start:stop, start:stop]
        errors = torch.zeros_like(block)
        for j in range(stop - start):
            code = (block[:, j] / scales).round().clamp(-CODE_RANGE, CODE_RANGE)
            codes[:, start + j] = code.to(torch.int8)
            error = (block[:, j] - code * scales) / factor[j, j]
            block[:, j:] -= error[:, None] * factor[j, j:]
            errors[:, j] = error
        left[:, stop:] -= errors @ upper[start:stop, stop:]
    return codes


def plain_prune(packed: Model, count: int) -> dict[str, Packed]:
    """The tensors with `count` int6 codes of ±1 zeroed, those of the smallest squared scale first.

    Every such code in the model becomes a tuple, however few are wanted.
    """
    found: list[tuple[float, str, int]] = []
    for name, p in packed.items():
        if p.kind == "int6" and p.scales is not None:
            squares = [float(scale) ** 2 for scale in p.scales]
            cols = p.values.shape[1]
            for index, code in enumerate(p.values.ravel().tolist()):
                if abs(code) == 1:
                    found.append((squares[index // cols], name, index))
    found.sort()
    values = {name: p.values.copy() for name, p in packed.items()}
    for _, name, index in found[:count]:
        values[name].flat[index] = 0
    return {name: dataclasses.replace(p, values=values[name]) for name, p in packed.items()}


def plain_pack(packed: Model) -> bytes:
    """All tensors as torch serialises them, byte-shuffled and then in one Brotli stream."""
    values = {name: torch.from_numpy(p.values) for name, p in packed.items()}
    scales = {n: torch.from_numpy(p.scales) for n, p in packed.items() if p.scales is not None}
    file = io.BytesIO()
    torch.save((values, scales), file)
    raw = np.frombuffer(file.getvalue(), np.uint8)
    shuffled = b"".join(raw[lane::STRIDE].tobytes() for lane in range(STRIDE))
    return brotli.compress(shuffled, quality=BROTLI_QUALITY)


def plain_unpack(data: bytes) -> dict[str, Tensor]:
    """The float32 tensors of what `plain_pack` made."""
    shuffled = np.frombuffer(brotli.decompress(data), np.uint8)
    raw = np.empty_like(shuffled)
    lane = math.ceil(raw.size / STRIDE)
    for start in range(STRIDE):
        raw[start::STRIDE] = shuffled[start * lane : (start + 1) * lane]
    values, scales = torch.load(io.BytesIO(raw.tobytes()), weights_only=True)
    return {
        name: value * scales[name].float()[:, None] if name in scales else value.float()
        for name, value in values.items()
    }
