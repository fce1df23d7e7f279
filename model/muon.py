"""MuonEq-R (arXiv:2603.28254) for block matrices, AdamW for the rest, and who gets which.

Muon replaces a matrix's momentum by its nearest semi-orthogonal matrix (Newton-Schulz); the
Eq-R variant first scales every row to unit length. Matrices of one shape are orthogonalised
as one batch, and the batches are shared out over the ranks.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from model.config import Config
from model.gpt import GPT

NEWTON_SCHULZ = (3.4445, -4.7750, 2.0315)
EPS = 1e-7


def orthogonalise(g: Tensor, steps: int) -> Tensor:
    """Nearest semi-orthogonal matrices in bfloat16, by a quintic Newton-Schulz iteration.

    g: [n, rows, cols], any float dtype; singular values come out near 1, not exactly 1.
    """
    a, b, c = NEWTON_SCHULZ
    x = g.bfloat16()
    tall = x.size(-2) > x.size(-1)
    if tall:
        x = x.mT
    x = x / (x.norm(dim=(-2, -1), keepdim=True) + EPS)
    for _ in range(steps):
        # Each product is rounded to bfloat16 as in the published runs. Fused forms round
        # elsewhere and move an update by 3 %, as much as bfloat16 is from float32.
        gram = x @ x.mT
        x = a * x + (b * gram + (c * gram) @ gram) @ x
    return x.mT if tall else x


def muon_update(momentum_gradient: Tensor, steps: int) -> Tensor:
    """Row-normalised, orthogonalised update [n, rows, cols], with unit step for tall matrices."""
    rows, cols = momentum_gradient.shape[-2:]
    normalised = momentum_gradient / (momentum_gradient.norm(dim=-1, keepdim=True) + EPS)
    return orthogonalise(normalised, steps) * max(1, rows / cols) ** 0.5


class Muon(torch.optim.Optimizer):
    """MuonEq-R with Nesterov momentum and decoupled weight decay.

    Every rank holds all momenta; of each batch of equal shapes a rank orthogonalises its share,
    and the shares are gathered, so all ranks apply the same updates.
    """

    def __init__(
        self,
        params: Iterable[nn.Parameter],
        lr: float,
        momentum: float,
        backend_steps: int,
        weight_decay: float = 0.0,
    ) -> None:
        defaults = {
            "lr": lr,
            "momentum": momentum,
            "backend_steps": backend_steps,
            "weight_decay": weight_decay,
        }
        super().__init__(params, defaults)

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> None:  # type: ignore[override]
        assert closure is None, "Muon takes its gradients as they are"
        for group in self.param_groups:
            by_shape: dict[torch.Size, list[Tensor]] = defaultdict(list)
            for p in group["params"]:
                if p.grad is not None:
                    by_shape[p.shape].append(p)
            # Each shape's share is on its way while the next shape is worked on.
            sent = [(params, self._send(params, group)) for params in by_shape.values()]
            for params, update in sent:
                updates = list(update.receive().to(params[0].dtype))
                torch._foreach_mul_(params, 1 - group["lr"] * group["weight_decay"])
                torch._foreach_add_(params, updates, alpha=-group["lr"])

    def _send(self, params: list[Tensor], group: dict[str, Any]) -> SharedUpdate:
        """Begin the update of parameters of one shape."""
        gradients = [p.grad for p in params if p.grad is not None]
        buffers = [self._momentum(p) for p in params]
        torch._foreach_mul_(buffers, group["momentum"])
        torch._foreach_add_(buffers, gradients)
        nesterov = torch._foreach_add(gradients, buffers, alpha=group["momentum"])
        return SharedUpdate(torch.stack(nesterov), group["backend_steps"])

    def _momentum(self, p: Tensor) -> Tensor:
        state = self.state[p]
        if not state:
            state["momentum_buffer"] = torch.zeros_like(p)
        return state["momentum_buffer"]


class SharedUpdate:
    """`muon_update` of [n, rows, cols], each rank doing an equal share of the n."""

    def __init__(self, stacked: Tensor, steps: int) -> None:
        """Do this rank's share and begin to exchange it."""
        self._n = len(stacked)
        self._exchange: dist.Work | None = None
        if not dist.is_initialized():
            self._updates = muon_update(stacked, steps)
            return
        world = dist.get_world_size()
        share = -(-self._n // world)
        start = min(share * dist.get_rank(), self._n)
        self._mine = stacked.new_zeros(share, *stacked.shape[1:], dtype=torch.bfloat16)
        own = stacked[start : start + share]
        if len(own):
            self._mine[: len(own)] = muon_update(own, steps)
        self._updates = self._mine.new_empty(share * world, *stacked.shape[1:])
        self._exchange = dist.all_gather_into_tensor(self._updates, self._mine, async_op=True)

    def receive(self) -> Tensor:
        """All n updates, bfloat16 [n, rows, cols], the same on every rank."""
        if self._exchange is not None:
            self._exchange.wait()
        return self._updates[: self._n]


CONTROL_NAMES = (
    "attn_scale",
    "mlp_scale",
    "resid_mix",
    "q_gain",
    "skip_weights",
    "skip_gates",
    "lane_merge",
    "ve_layer_scales",
    "ve_shared.scale",
)


def is_control(name: str) -> bool:
    """Whether a parameter is a scalar or vector that steers the network, by its name."""
    return any(part in name for part in CONTROL_NAMES)


def build_optimizers(model: GPT, config: Config) -> list[torch.optim.Optimizer]:
    """The recipe's optimisers over all parameters, each exactly once.

    Each group remembers its `base_lr`, which the schedule multiplies.
    """
    matrices, scalars, embeddings, heads = [], [], [], []
    for name, p in model.named_parameters():
        if name.startswith("lm_head"):
            heads.append(p)
        elif name in ("tok_emb.weight", "ve_shared.embed.weight"):
            embeddings.append(p)
        elif p.ndim == 2 and not is_control(name):
            matrices.append(p)
        else:
            scalars.append(p)
    embed_lr = config.tied_embed_lr if config.tie_embeddings else config.embed_lr
    adam: dict[str, Any] = {"betas": (config.beta1, config.beta2), "eps": config.adam_eps}
    adamw_groups = [
        {"params": embeddings, "lr": embed_lr, "weight_decay": config.embed_wd},
        {"params": scalars, "lr": config.scalar_lr, "weight_decay": config.adam_wd},
    ]
    optimizers: list[torch.optim.Optimizer] = [
        Muon(
            matrices,
            lr=config.matrix_lr,
            momentum=config.muon_momentum_warmup_start,
            backend_steps=config.muon_backend_steps,
            weight_decay=config.muon_wd,
        ),
        torch.optim.AdamW(adamw_groups, fused=True, **adam),
    ]
    if heads:
        optimizers.append(torch.optim.Adam(heads, lr=config.head_lr, fused=True, **adam))
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["base_lr"] = group["lr"]
    return optimizers
