"""What `jobs.bench.post_training` needs to judge a fit: a budget, sensitivities, an error."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from model.calibrate import Sensitivity
from model.config import Config
from model.gpt import GPT
from model.muon import is_control
from model.packed import Model
from model.report import code_bytes

UNEQUAL = 1.0  # how unlike rows and columns matter, as the deviation of the logarithm
# With brotli the record's model was about 1.5 % over its budget. A model that is not near the
# budget gets one as much below its own size.
USUAL_EXCESS, MOST_EXCESS = 0.015, 0.03


def budget_near(config: Config, size: int) -> int:
    """Bytes for the model: what the code leaves of the budget, or a little less than `size`."""
    left = config.budget_bytes - code_bytes()
    return left if left < size <= (1 + MOST_EXCESS) * left else int(size / (1 + USUAL_EXCESS))


def made_up_sensitivities(model: GPT) -> dict[str, Sensitivity]:
    """Of every matrix, always the same, as if the squares of single gradients had a mean of 1."""
    generator = torch.Generator().manual_seed(0)
    found = {}
    for name, p in model.named_parameters():
        if p.ndim == 2 and not is_control(name):
            sides = [torch.exp(UNEQUAL * torch.randn(n, generator=generator)) for n in p.shape]
            rows, cols = ((side * (p.numel() / side.sum())).to(p.device) for side in sides)
            found[name] = Sensitivity(rows=rows, cols=cols)
    return found


@torch.no_grad()
def curvature_error(
    weights: Mapping[str, Tensor],
    packed: Model,
    hessians: Mapping[str, Tensor],
    sensitivities: Mapping[str, Sensitivity],
) -> float:
    """What the errors of all matrices cost by their curvature (model/calibrate.py), their sum.

    Where there is no Hessian, the columns' squared gradients stand for it.
    """
    total = 0.0
    for name, gradients in sensitivities.items():
        left = weights[name].float() - packed[name].tensor().to(weights[name].device)
        if name in hessians:
            rows, trace = ((left @ hessians[name]) * left).sum(1), hessians[name].trace()
        else:
            rows, trace = left.square() @ gradients.cols, gradients.cols.sum()
        total += float(gradients.rows @ rows / trace)
    return total
