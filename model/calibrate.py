"""What training data say about a trained model: how much an error in each weight would cost.

Of a linear layer y = W x the loss feels an error E as about the sum over rows r of
g_r e_r (sum of x xᵀ) e_rᵀ, g_r being the mean square of the loss's gradient at output r: the
Kronecker-factored curvature of K-FAC (arXiv:1503.05671), its output side taken as diagonal. The
Hessians are its input side; the squared gradients of the weights give the output side, and all
there is of embeddings.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from model.gpt import GPT
from model.muon import is_control

QKV = (".attn.c_q", ".attn.c_k", ".attn.c_v")


@dataclass(frozen=True, kw_only=True)
class Sensitivity:
    """Squared gradients of a matrix, summed along its rows [rows] and its columns [cols]."""

    rows: Tensor
    cols: Tensor


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
            x = args[0].flatten(0, -2)
            if name not in sums:
                sums[name] = x.new_zeros(x.size(1), x.size(1), dtype=torch.float32)
            if x.is_cuda and x.dtype == torch.bfloat16:
                # As exact as products of float32, which hold these too, and several times faster.
                sums[name].add_(torch.mm(x.T, x, out_dtype=torch.float32))
            else:
                x = x.float()
                sums[name].addmm_(x.T, x)

        return model.get_submodule(name).register_forward_pre_hook(add)

    handles = [watch(name) for name in sorted(set(sources.values()))]
    try:
        for input_ids in inputs:
            model.hidden(input_ids)
    finally:
        for handle in handles:
            handle.remove()
    return {name: sums[source] for name, source in sources.items()}


def _input_source(name: str) -> str:
    """The module whose first input is that of the layer `name`."""
    module = name.removesuffix(".weight")
    # Query, key and value are one product of the attention's own input.
    return module.rpartition(".")[0] if module.endswith(QKV) else module


def collect_sensitivities(
    model: GPT, batches: Iterable[tuple[Tensor, Tensor]]
) -> dict[str, Sensitivity]:
    """The sensitivity of every matrix of the model, by parameter name.

    batches: token ids and targets, [B, T] each. A few tokens at a time tell most: what gradients
    have in common over many tokens is what training has left to do, and says nothing of curvature.
    """
    matrices = {
        name: p for name, p in model.named_parameters() if p.ndim == 2 and not is_control(name)
    }
    found = {
        name: Sensitivity(rows=p.new_zeros(p.size(0)), cols=p.new_zeros(p.size(1)))
        for name, p in matrices.items()
    }
    for inputs, targets in batches:
        gradients = torch.autograd.grad(model(inputs, targets), list(matrices.values()))
        for sums, gradient in zip(found.values(), gradients, strict=True):
            squares = gradient.float().square()
            sums.rows.add_(squares.sum(1))
            sums.cols.add_(squares.sum(0))
    return found
