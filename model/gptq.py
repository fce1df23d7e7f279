"""GPTQ (arXiv:2210.17323) of many matrices at once: weights and Hessians in, codes and scales out.

GPTQ's greedy rounding with error feedback is Babai's nearest-plane algorithm on the lattice that
the Hessian spans (arXiv:2507.18553). In that form one Cholesky factor H = L Lᵀ does: with columns
taken from the last to the first, the target of column j is w_j + sum over k > j of
L_kj / L_jj (w_k - q_k), where w are the original weights and q what they were rounded to. No
inverse is formed, the sums are matrix products, and all rows of all matrices of a shape go
together.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

CLIP_QUANTILES = (0.999, 0.9995, 0.9999, 0.99999, 1.0)
CODE_RANGE = 31
EMBEDDING_CODE_RANGE = 127
EMBEDDING_CLIP_QUANTILE = 0.9999984
DAMPING = 0.01
# Columns that are rounded one after the other; longer stretches are matrix products.
LEAF = 8
# What one batch of matrices may hold at work: on a CPU little, so that its caches matter; on a GPU
# much, since there a column costs its launches, however many matrices it is of.
BATCH_BYTES = {"cpu": 96 << 20, "cuda": 2 << 30}
LEAST_BYTES = 1 << 20

Coded = tuple[Tensor, Tensor]  # codes int8 [rows, cols], scales float16 [rows]


class GptqError(ValueError):
    """A weight and its Hessian cannot be quantised together."""


@dataclass(frozen=True, kw_only=True)
class Factor:
    """A damped Hessian in the order of its diagonal, as order [cols] and L [cols, cols]."""

    order: Tensor
    lower: Tensor

    @classmethod
    def of(cls, hessian: Tensor) -> Factor:
        """The factor of a Hessian [cols, cols]; GptqError where it has none.

        Columns that matter most come last, and are rounded first, while there are most columns
        left to take up their error. Inputs that never fired get a unit diagonal.
        """
        diagonal = hessian.diagonal().float()
        diagonal = torch.where(diagonal == 0, 1.0, diagonal)
        order = torch.argsort(diagonal)
        damped = hessian.float()[order][:, order]
        damping = DAMPING
        while damping <= 1:
            damped.diagonal().copy_(diagonal[order] + damping * diagonal.mean())
            lower, failed = torch.linalg.cholesky_ex(damped)
            if not failed:
                return cls(order=order, lower=lower)
            damping *= 10
        raise GptqError("the Hessian is not positive definite even with 100 % damping")

    @classmethod
    def of_diagonal(cls, diagonal: Tensor) -> Factor:
        """The factor of a diagonal Hessian [cols]: every column is rounded for itself."""
        order = torch.argsort(diagonal)
        return cls(order=order, lower=torch.diag(diagonal[order].sqrt()))

    @property
    def weights(self) -> Tensor:
        """L's diagonal in the columns' own order [cols]: what an error there costs, its root."""
        return torch.empty_like(self.lower[0]).scatter_(0, self.order, self.lower.diagonal())


def quantize(weight: Tensor, hessian: Tensor) -> Coded:
    """`quantize_all` of one matrix."""
    return quantize_all({"weight": weight}, {"weight": hessian})["weight"]


def quantize_all(
    weights: Mapping[str, Tensor],
    hessians: Mapping[str, Tensor],
    on_progress: Callable[[float], None] = lambda _: None,
) -> dict[str, Coded]:
    """GPTQ of every matrix of `hessians` to int6 codes with one scale per row.

    weights: [rows, cols]; hessians: [cols, cols], sum of x xᵀ over calibration inputs x. Returns
    codes in -31..31 and scales by name, where the Hessians are. `on_progress` hears the share done.

    Each clip quantile gives every row a scale; the quantile with the least squared weight error
    over the matrix wins. All of them go through one pass, since they share the Hessian.
    """
    for name, hessian in hessians.items():
        cols = weights[name].size(1)
        if hessian.shape != (cols, cols):
            raise GptqError(f"hessian must be [{cols}, {cols}], found {list(hessian.shape)}")
    coded: dict[str, Coded] = {}
    for names in shape_batches(weights, hessians):
        found = _quantize_batch([weights[n] for n in names], [hessians[n] for n in names])
        coded |= dict(zip(names, found, strict=True))
        on_progress(len(coded) / len(hessians))
    return {name: coded[name] for name in hessians}


def shape_batches(weights: Mapping[str, Tensor], names: Iterable[str]) -> Iterator[list[str]]:
    """Names of matrices of one shape, as many together as a batch may hold.

    On a CPU that is no more than the weights of all: the whole stays within three times as much.
    """
    shape = {name: tuple(weights[name].shape) for name in names}
    device = next((weights[name].device.type for name in shape), "cpu")
    limit = BATCH_BYTES[device]
    if device == "cpu":
        limit = min(limit, max(LEAST_BYTES, sum(4 * weights[name].numel() for name in shape)))
    by_shape = sorted(shape, key=lambda name: shape[name])
    for (rows, cols), group in itertools.groupby(by_shape, lambda name: shape[name]):
        size = 4 * cols * (2 * cols + (1 + len(CLIP_QUANTILES)) * rows)
        members = list(group)
        step = max(1, limit // size)
        yield from (members[i : i + step] for i in range(0, len(members), step))


def _quantize_batch(weights: list[Tensor], hessians: list[Tensor]) -> list[Coded]:
    """Matrices of one shape, each with its Hessian."""
    weight = torch.stack([w.detach().float() for w in weights])  # [N, rows, cols]
    scales = torch.stack([clip_scales(w) for w in weight])  # [N, quantiles, rows]
    pairs = _Pairs.of(scales)
    order, unit = _units([Factor.of(hessian) for hessian in hessians])
    # What multiplies an input that never fired does not matter, and zeros are the cheapest.
    used = torch.stack([hessian.diagonal() != 0 for hessian in hessians])
    columns = (weight * used[:, None]).transpose(1, 2)
    columns = columns.gather(1, order[:, :, None].expand_as(columns))
    codes, left = round_to_planes(
        lambda low, high: pairs.spread(columns[:, low:high]), unit, pairs.scale.shape, CODE_RANGE
    )
    error = (torch.linalg.vector_norm(left, dim=1) * pairs.scale).square()  # [N, pairs]
    totals = error.gather(1, pairs.index.flatten(1)).view(pairs.index.shape).sum(2)
    best = totals.argmin(1)
    return [
        (
            codes[n][:, pairs.index[n, k]][torch.argsort(order[n])].T.contiguous(),
            scales[n, k],
        )
        for n, k in enumerate(best.tolist())
    ]


@dataclass(frozen=True, kw_only=True)
class _Pairs:
    """The different (row, scale) pairs of N matrices: rows whose clips agree are rounded once.

    index [N, quantiles, rows] says which pair; row and scale [N, pairs] what it stands for.
    """

    index: Tensor
    row: Tensor
    scale: Tensor

    @classmethod
    def of(cls, scales: Tensor) -> _Pairs:
        """The pairs of scales [N, quantiles, rows], which never fall along the quantiles."""
        new = torch.ones_like(scales, dtype=torch.bool)
        new[:, 1:] = scales[:, 1:] != scales[:, :-1]
        index = new.flatten(1).cumsum(1).view(scales.shape) - 1
        for k in range(1, scales.size(1)):
            index[:, k] = torch.where(new[:, k], index[:, k], index[:, k - 1])
        flat = index.flatten(1)
        most = int(flat.max()) + 1
        rows = torch.arange(scales.size(2), device=scales.device).expand_as(scales)
        row = rows.new_zeros(len(scales), most).scatter_(1, flat, rows.flatten(1))
        scale = torch.ones(row.shape, device=scales.device)
        return cls(index=index, row=row, scale=scale.scatter_(1, flat, scales.flatten(1).float()))

    def spread(self, columns: Tensor) -> Tensor:
        """Columns [N, C, rows] in units of the steps, one entry a pair: [N, C, pairs]."""
        row = self.row[:, None].expand(-1, columns.size(1), -1)
        return columns.gather(2, row) / self.scale[:, None]


def _units(factors: list[Factor]) -> tuple[Tensor, Tensor]:
    """Orders [N, cols], and factors whose columns have ones on the diagonal [N, cols, cols]."""
    unit = torch.stack([factor.lower for factor in factors])
    unit /= unit.diagonal(dim1=1, dim2=2)[:, None].clone()
    return torch.stack([factor.order for factor in factors]), unit


def round_to_planes(
    columns: Callable[[int, int], Tensor], unit: Tensor, shape: Sequence[int], limit: int
) -> tuple[Tensor, Tensor]:
    """Round weights in units of their steps, each column's error taken up by those before it.

    columns(low, high): weights [N, high - low, R], in the order of `unit` [N, C, C]; shape: (N, R).
    Returns codes int8 in -limit..limit and what is left of the weights, both [N, C, R].
    """
    size = (unit.size(0), unit.size(1), shape[-1])
    left = torch.zeros(size, device=unit.device)  # until its turn, a column's share of the errors
    codes = torch.empty(size, dtype=torch.int8, device=unit.device)
    _round_stretch(columns, unit, left, codes, limit, 0, unit.size(1))
    return codes, left


def _round_stretch(
    columns: Callable[[int, int], Tensor],
    unit: Tensor,
    left: Tensor,
    codes: Tensor,
    limit: int,
    low: int,
    high: int,
) -> None:
    """Columns low..high of `round_to_planes`, from the last to the first."""
    if high - low > LEAF:
        middle = (low + high) // 2
        _round_stretch(columns, unit, left, codes, limit, middle, high)
        for share, errors in zip(unit, left, strict=True):  # one large product is the fastest
            errors[low:middle].addmm_(share[middle:high, low:middle].T, errors[middle:high])
        _round_stretch(columns, unit, left, codes, limit, low, middle)
        return
    weight, target = columns(low, high), left[:, low:high]
    target += weight
    for j in reversed(range(high - low)):
        code = target[:, j].round().clamp_(-limit, limit)
        codes[:, low + j] = code
        error = weight[:, j] - code
        if j:
            target[:, :j].addcmul_(unit[:, low + j, low : low + j, None], error[:, None])
        target[:, j] = error


def clip_scales(weight: Tensor) -> Tensor:
    """float16 row scales of a matrix [rows, cols] for every clip quantile, [quantiles, rows].

    A quantile lies between two of a row's largest values, so that few of them need to be sorted.
    Scales are never below 1/31.
    """
    cols = weight.size(1)
    # As torch.quantile has it, in the weights' own precision.
    ranks = torch.tensor(CLIP_QUANTILES, device=weight.device) * (cols - 1)
    largest = weight.abs().topk(cols - int(ranks.min()), dim=1, sorted=True).values
    above = (cols - 1 - ranks.floor()).long()  # places in `largest`, which falls
    low, high = largest[:, above], largest[:, (above - 1).clamp_min(0)]
    clips = torch.lerp(low, high, ranks - ranks.floor()).T
    return (clips / CODE_RANGE).clamp_min(1 / CODE_RANGE).half()


def quantize_rows(weight: Tensor) -> Coded:
    """Plain rounding of one matrix to int8 codes, one scale per row: for embeddings.

    weight: [rows, cols]. Returns codes int8 in -127..127 and scales float16 [rows].
    """
    weight = weight.detach().float()
    clip = torch.quantile(weight.abs(), EMBEDDING_CLIP_QUANTILE, dim=1)
    smallest = torch.finfo(torch.float16).tiny
    scales = (clip / EMBEDDING_CODE_RANGE).clamp_min(smallest).half()
    codes = (weight / scales.float()[:, None]).round()
    return codes.clamp(-EMBEDDING_CODE_RANGE, EMBEDDING_CODE_RANGE).to(torch.int8), scales
