"""A grid of steps for every weight, by what an error there costs, and rounding onto it.

Rounding with a step s costs a weight s²/12 times its curvature and saves log2 s bits, so at the
optimum every step is one constant over the root of its weight's curvature (as WaterSIC has it for
columns, arXiv:2603.04956). For row r and column j that curvature is g_r L_jj² (model/calibrate.py,
L being the Hessian's Cholesky factor): a step is the product of a row's and a column's. Small steps
where errors hurt make large codes there, which an entropy coder takes as they come.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from model.calibrate import Sensitivity
from model.gptq import Factor, round_to_planes, shape_batches
from model.packed import STEPS_PER_OCTAVE, Packed, step_sizes

CODE_LIMIT = 127
# A column's steps are such that its largest weight comes to this code: what it takes up of other
# columns' errors comes on top.
LARGEST_CODE = 120
STEP_LIMIT = 127
# No row matters less than this share of its matrix's mean: few batches have not met all tokens.
LEAST = 0.02
GOLDEN = 0.618034


@dataclass(frozen=True, kw_only=True)
class Curved:
    """A matrix [rows, cols] with what an error in it costs, and its steps for the constant 1.

    row_log, col_log: log2 of the steps [rows] and [cols]; spread: log2 of the weights' root mean
    square; matters: whether any error in it costs anything.
    """

    weight: Tensor
    factor: Factor
    row_log: Tensor
    col_log: Tensor
    spread: float
    matters: bool

    @classmethod
    def of(cls, weight: Tensor, factor: Factor, row_curvature: Tensor) -> Curved:
        """From the two sides of the curvature: `factor` of the columns, g_r of the rows [rows]."""
        weight = weight.detach().float()
        col_log = -factor.weights.log2()
        middle = col_log.mean()
        # An estimate from few batches exaggerates: half way to the matrix's mean is nearer.
        mean = row_curvature.mean()
        squares = weight.square().mean()
        matters = bool(mean > 0) and bool(squares > 0)
        mean = mean.clamp_min(torch.finfo(torch.float32).tiny)
        # The roots apart: the product of two small numbers may be none.
        half_way = row_curvature.clamp_min(mean * LEAST).sqrt() * mean.sqrt()
        return cls(
            weight=weight,
            factor=factor,
            row_log=middle - half_way.log2() / 2 + _apart(len(weight)).to(weight.device),
            col_log=col_log - middle,
            spread=float(squares.clamp_min(1e-30).log2()) / 2,
            matters=matters,
        )

    @property
    def mean_ratio(self) -> float:
        """Mean over the weights of log2 of their spread over their steps for the constant 1."""
        return self.spread - float(self.row_log.mean() + self.col_log.mean())

    def part(self, every: int) -> Curved:
        """The matrix with only one in `every` of its rows."""
        return Curved(
            weight=self.weight[::every],
            factor=self.factor,
            row_log=self.row_log[::every],
            col_log=self.col_log,
            spread=self.spread,
            matters=self.matters,
        )

    def steps(self, constant_log: float) -> tuple[Tensor, Tensor]:
        """Integer steps of rows and columns, int8, for log2 of the constant."""
        rows = _integer_steps(self.row_log + constant_log)
        largest = (self.weight.abs() / step_sizes(rows)[:, None]).amax(0)
        needed = (largest / LARGEST_CODE).clamp_min(2.0**-30).log2() * STEPS_PER_OCTAVE
        cols = torch.maximum(_integer_steps(self.col_log).float(), needed.ceil())
        return rows, cols.clamp(-STEP_LIMIT, STEP_LIMIT).to(torch.int8)


def _apart(rows: int) -> Tensor:
    """Small offsets for rows that are all alike, to change their steps one after another.

    So small a part of a step costs next to nothing, and the size has no jumps.
    """
    return (torch.arange(rows) * GOLDEN % 1 - 0.5) / (2 * STEPS_PER_OCTAVE)


def _integer_steps(logs: Tensor) -> Tensor:
    return (logs * STEPS_PER_OCTAVE).round().clamp(-STEP_LIMIT, STEP_LIMIT).to(torch.int8)


def curved_matrices(
    weights: Mapping[str, Tensor],
    hessians: Mapping[str, Tensor],
    sensitivities: Mapping[str, Sensitivity],
    names: Iterable[str],
) -> dict[str, Curved]:
    """The matrices `names` of `sensitivities`, each with its curvature.

    Where there is no Hessian (embeddings: their inputs are single ones), the squared gradients
    of the columns stand for it.
    """
    factors: dict[Tensor, Factor] = {}
    found = {}
    for name in names:
        gradients, hessian, weight = sensitivities[name], hessians.get(name), weights[name]
        if hessian is None:
            mean = gradients.cols.mean().clamp_min(torch.finfo(torch.float32).tiny)
            diagonal = (gradients.cols / mean).clamp_min(LEAST).sqrt()  # half way, as for rows
            factor, trace = Factor.of_diagonal(diagonal), diagonal.sum()
        else:
            if hessian not in factors:
                factors[hessian] = Factor.of(hessian)
            factor, trace = factors[hessian], hessian.diagonal().sum()
            # What multiplies an input that never fired does not matter, and zeros are the cheapest.
            unused = hessian.diagonal() == 0
            weight = weight.masked_fill(unused, 0.0) if unused.any() else weight
        trace = trace.clamp_min(torch.finfo(torch.float32).tiny)
        found[name] = Curved.of(weight, factor, gradients.rows / trace)
    return found


def round_all(matrices: Mapping[str, Curved], constant_log: float) -> dict[str, Packed]:
    """Codes for one constant: GPTQ on each matrix's own grid of steps."""
    found: dict[str, Packed] = {}
    for names in shape_batches({name: m.weight for name, m in matrices.items()}, matrices):
        batch = [matrices[name] for name in names]
        found |= dict(zip(names, _round_batch(batch, constant_log), strict=True))
    return {name: found[name] for name in matrices}


def _round_batch(batch: list[Curved], constant_log: float) -> list[Packed]:
    """Matrices of one shape."""
    steps = [matrix.steps(constant_log) for matrix in batch]
    units, columns = [], []
    for matrix, (rows, cols) in zip(batch, steps, strict=True):
        order, col_sizes = matrix.factor.order, step_sizes(cols)
        lower = matrix.factor.lower * col_sizes[order][:, None]
        units.append(lower / lower.diagonal())
        columns.append((matrix.weight / step_sizes(rows)[:, None] / col_sizes).T[order])
    weight = torch.stack(columns)
    codes, _ = round_to_planes(
        lambda low, high: weight[:, low:high],
        torch.stack(units),
        (len(batch), weight.size(2)),
        CODE_LIMIT,
    )
    packed = []
    for matrix, (rows, cols), found in zip(batch, steps, codes, strict=True):
        values = found[torch.argsort(matrix.factor.order)].T.contiguous()
        packed.append(
            Packed(
                kind="steps",
                values=values.cpu().numpy(),
                row_steps=rows.cpu().numpy(),
                col_steps=cols.cpu().numpy(),
            )
        )
    return packed
