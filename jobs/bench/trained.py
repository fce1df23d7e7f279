"""A model and Hessians such as training leaves them, made up: what post-training is timed on."""

from __future__ import annotations

import dataclasses

import torch
from torch import Tensor

from model.calibrate import hessian_layers
from model.config import Config
from model.fields import ConfigError
from model.gpt import GPT
from model.muon import is_control

# Of weights that come to 16.2 MB as int6 codes with brotli: a little over the budget, as the
# record's did.
RECORD_SPREAD = 0.09
# Spreads, as the deviation of their logarithms: of single weights, which makes heavy tails, of a
# matrix's rows and columns, and of the inputs' channels.
TAIL, ROWS, COLS, CHANNELS = 0.4, 0.1, 0.1, 0.5
SAMPLES_PER_COLUMN = 2


def with_layers(config: Config, layers: int) -> Config:
    """The network with another number of layers."""
    start = config.parallel_start_layer
    return dataclasses.replace(
        config,
        num_layers=layers,
        ve_layers=tuple(i for i in config.ve_layers if i < layers),
        recur_layers=tuple(i for i in config.recur_layers if i < layers),
        parallel_start_layer=None if start is None else max(layers // 2, min(start, layers - 1)),
    )


def make_trained(config: Config, spread: float) -> tuple[GPT, dict[str, Tensor]]:
    """A model whose matrices are of this spread, and its Hessians by name; always the same.

    ConfigError where no matrix is large enough for GPTQ.
    """
    torch.manual_seed(0)
    with torch.device("meta"):
        model = GPT(config)
    state = {
        name: trained_like(p.shape, 1.0 if is_control(name) else spread)
        for name, p in model.state_dict().items()
    }
    model.load_state_dict(state, assign=True)
    hessians: dict[str, Tensor] = {}
    sources: dict[str, Tensor] = {}
    for name, layer in hessian_layers(model, config.gptq_min_weights).items():
        source = name.partition(".c_")[0]  # query, key and value share one
        if source not in sources:
            sources[source] = correlated_hessian(layer.get_parameter("weight").size(1))
        hessians[name] = sources[source]
    if not hessians:
        raise ConfigError(
            f"GPTQ_MIN_WEIGHTS: {config.gptq_min_weights} is more than any matrix has; lower it"
        )
    return model, hessians


def trained_like(shape: torch.Size, spread: float) -> Tensor:
    """Weights of this spread, float32, heavy-tailed and unlike from row to row."""
    weight = torch.randn(shape)
    if weight.ndim == 2:
        weight *= torch.exp(TAIL * torch.randn(shape))
        weight *= torch.exp(ROWS * torch.randn(shape[0], 1))
        weight *= torch.exp(COLS * torch.randn(shape[1]))
    return weight * (spread / weight.square().mean().sqrt().clamp_min(1e-6))


def correlated_hessian(cols: int) -> Tensor:
    """x xᵀ summed over inputs whose directions count less and less, float32 [cols, cols]."""
    strength = torch.arange(1, cols + 1) ** -0.5
    channels = torch.exp(CHANNELS * torch.randn(cols))
    mixed = torch.randn(cols, cols) * channels
    x = (torch.randn(SAMPLES_PER_COLUMN * cols, cols) * strength) @ mixed
    return x.T @ x
