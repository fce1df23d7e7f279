"""Hessians and GPTQ (arXiv:2210.17323): tensors in, integer codes and row scales out."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from model.gpt import GPT

CLIP_QUANTILES = (0.999, 0.9995, 0.9999, 0.99999, 1.0)
CODE_RANGE = 31
EMBEDDING_CODE_RANGE = 127
EMBEDDING_CLIP_QUANTILE = 0.9999984
DAMPING = 0.01
BLOCK = 128
QKV = (".attn.c_q", ".attn.c_k", ".attn.c_v")


class GptqError(ValueError):
    """A weight and its Hessian cannot be quantised together."""


def quantize(weight: Tensor, hessian: Tensor) -> tuple[Tensor, Tensor]:
    """GPTQ of one matrix to int6 codes with one scale per row.

    weight: [rows, cols]; hessian: [cols, cols], sum of x xᵀ over calibration inputs x.
    Returns codes int8 [rows, cols] in -31..31 and scales float16 [rows].

    Each clip quantile gives every row a scale; the quantile with the least squared weight error
    wins. All of them go through one pass, since they share the Hessian.
    """
    rows, cols = weight.shape
    if hessian.shape != (cols, cols):
        raise GptqError(f"hessian must be [{cols}, {cols}], found {list(hessian.shape)}")
    weight = weight.detach().float()
    scales = torch.unique(_clip_scales(weight), dim=0).half()  # [candidates, rows]
    order, factor = _inverse_factor(hessian.float())
    # What multiplies an input that never fired does not matter, and zeros are the cheapest.
    used = weight.masked_fill(hessian.diagonal() == 0, 0.0)
    stacked = used[:, order].repeat(len(scales), 1)
    codes = _solve(stacked, scales.float().flatten(), factor)
    codes = codes[:, torch.argsort(order)].view(len(scales), rows, cols)
    error = (weight - codes * scales.float()[:, :, None]).square().sum(dim=(1, 2))
    best = int(error.argmin())
    return codes[best].to(torch.int8), scales[best]


def _clip_scales(weight: Tensor) -> Tensor:
    """Row scales for every clip quantile, [quantiles, rows], never below 1/31."""
    quantiles = torch.tensor(CLIP_QUANTILES, device=weight.device)
    clips = torch.quantile(weight.abs(), quantiles, dim=1)
    return (clips / CODE_RANGE).clamp_min(1 / CODE_RANGE)


def _inverse_factor(hessian: Tensor) -> tuple[Tensor, Tensor]:
    """Column order and the upper Cholesky factor of the damped, reordered inverse Hessian.

    Columns that matter most come first, while there are most columns left to take up their
    error. Inputs that never fired get a unit diagonal, so that the factor exists.
    """
    hessian = hessian.clone()
    diagonal = hessian.diagonal()
    diagonal[diagonal == 0] = 1
    order = torch.argsort(diagonal, descending=True)
    mean = diagonal.mean()
    hessian = hessian[order][:, order]
    damping = DAMPING
    while damping <= 1:
        damped = hessian + damping * mean * torch.eye(len(order), device=hessian.device)
        lower, failed = torch.linalg.cholesky_ex(damped)
        if not failed:
            inverse = torch.cholesky_inverse(lower)
            upper, failed = torch.linalg.cholesky_ex(inverse, upper=True)
            if not failed:
                return order, upper
        damping *= 10
    raise GptqError("the Hessian is not positive definite even with 100 % damping")


def _solve(weight: Tensor, scales: Tensor, factor: Tensor) -> Tensor:
    """Round column by column, passing each column's error on to the columns after it.

    weight: [rows, cols] in the factor's order (overwritten); scales: [rows]. Returns float codes.
    Errors reach the rest of a block at once and later blocks as one matrix product.
    """
    codes = torch.empty_like(weight)
    cols = weight.size(1)
    for start in range(0, cols, BLOCK):
        stop = min(start + BLOCK, cols)
        errors = torch.empty_like(weight[:, start:stop])
        for col in range(start, stop):
            w = weight[:, col]
            codes[:, col] = (w / scales).round_().clamp_(-CODE_RANGE, CODE_RANGE)
            error = (w - codes[:, col] * scales) / factor[col, col]
            weight[:, col:stop] -= error[:, None] * factor[col, col:stop]
            errors[:, col - start] = error
        weight[:, stop:] -= errors @ factor[start:stop, stop:]
    return codes


def quantize_rows(weight: Tensor) -> tuple[Tensor, Tensor]:
    """Plain rounding of one matrix to int8 codes, one scale per row: for embeddings.

    weight: [rows, cols]. Returns codes int8 in -127..127 and scales float16 [rows].
    """
    weight = weight.detach().float()
    clip = torch.quantile(weight.abs(), EMBEDDING_CLIP_QUANTILE, dim=1)
    smallest = torch.finfo(torch.float16).tiny
    scales = (clip / EMBEDDING_CODE_RANGE).clamp_min(smallest).half()
    codes = (weight / scales.float()[:, None]).round()
    return codes.clamp(-EMBEDDING_CODE_RANGE, EMBEDDING_CODE_RANGE).to(torch.int8), scales


def hessian_layers(model: GPT, min_weights: int) -> dict[str, nn.Module]:
    """The attention and MLP linears with more than `min_weights` weights, by parameter name."""
    return {
        f"{name}.weight": module
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear)
        and name.startswith("blocks.")
        and module.weight.numel() > min_weights
    }


@torch.no_grad()
def collect_hessians(model: GPT, inputs: Iterable[Tensor], min_weights: int) -> dict[str, Tensor]:
    """Sum of x xᵀ over the inputs of every linear of `hessian_layers`.

    inputs: batches of token ids [B, T]. Returns float32 [cols, cols] per parameter name. Query,
    key and value projections read the same input, so they share one tensor.
    """
    sources = {name: _input_source(name) for name in hessian_layers(model, min_weights)}
    sums: dict[str, Tensor] = {}

    def watch(name: str) -> torch.utils.hooks.RemovableHandle:
        def add(_: nn.Module, args: tuple[Tensor, ...]) -> None:
            x = args[0].flatten(0, -2).float()
            if name not in sums:
                sums[name] = x.new_zeros(x.size(1), x.size(1))
            sums[name].addmm_(x.T, x)

        return model.get_submodule(name).register_forward_pre_hook(add)

    handles = [watch(name) for name in sorted(set(sources.values()))]
    precision = torch.get_float32_matmul_precision()
    # TF32 holds bfloat16 inputs exactly, and makes the products as fast as training's on a GPU.
    if model.compute_dtype == torch.bfloat16:
        torch.set_float32_matmul_precision("high")
    try:
        for input_ids in inputs:
            model.hidden(input_ids)
    finally:
        torch.set_float32_matmul_precision(precision)
        for handle in handles:
            handle.remove()
    return {name: sums[source] for name, source in sources.items()}


def _input_source(name: str) -> str:
    """The module whose first input is that of the layer `name`."""
    module = name.removesuffix(".weight")
    # Query, key and value are one product of the attention's own input.
    return module.rpartition(".")[0] if module.endswith(QKV) else module
