"""The network: a GPT with XSA, partial RoPE, value embeddings, U-Net skips, depth recurrence and
parallel residual lanes. No I/O, no optimiser.

Shapes: B batch, T time, D model, H query heads, K key/value heads, C head dim, V vocabulary.
Parameters are float32; the compute dtype is that of the activations, which `forward` starts in
`compute_dtype` (bfloat16 on GPUs). Parameter names are those of the public implementation.
"""

from __future__ import annotations

import math
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from model.attention import causal_attention
from model.config import Config
from model.loss import capped, mean_cross_entropy, token_nats
from model.recurrence import NO_LOOP, Loop, virtual_layers

VE_SCALE_INIT = 0.1
VE_EMBED_STD = 0.01
ORTHOGONAL_MIN_SIDE = 64


def rms_norm(x: Tensor) -> Tensor:
    """x / rms(x) over the last dimension, without parameters."""
    return F.rms_norm(x, (x.size(-1),))


def last_positions(x: Tensor, count: int | None) -> Tensor:
    """The last `count` positions of x [B, T, ...]; none: x itself, without a trace in autograd."""
    return x if count is None else x[:, -count:]


class CastedLinear(nn.Linear):
    """A bias-free linear whose float32 weight is cast to the activations' dtype."""

    def __init__(self, d_in: int, d_out: int, *, zero_init: bool = False) -> None:
        self.zero_init = zero_init
        super().__init__(d_in, d_out, bias=False)

    def reset_parameters(self) -> None:
        if self.zero_init:
            nn.init.zeros_(self.weight)
        elif min(self.weight.shape) >= ORTHOGONAL_MIN_SIDE:
            nn.init.orthogonal_(self.weight, gain=1.0)
        else:
            super().reset_parameters()

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight.to(x.dtype))


def joint_product(x: Tensor, *layers: CastedLinear) -> tuple[Tensor, ...]:
    """What each of the layers makes of x, computed as one product."""
    weights = [layer.weight for layer in layers]
    joined = F.linear(x, torch.cat(weights).to(x.dtype))
    return joined.split([weight.size(0) for weight in weights], dim=-1)


RotaryTables = tuple[Tensor, Tensor]  # of cosines and of signed sines, each [1, T, 1, C]


def rotary_tables(T: int, config: Config, device: torch.device, dtype: torch.dtype) -> RotaryTables:  # noqa: N803
    """What the partial rotary embedding multiplies dims and their partners by, at T positions.

    Beyond the training length the base grows so that the slowest frequency turns no further
    than it did in training (NTK-aware scaling).
    """
    r, base = config.rope_dims, config.rope_base
    if config.train_seq_len < T and r > 2:
        base *= (T / config.train_seq_len) ** (r / (r - 2))
    frequency = base ** (-torch.arange(0, r, 2, dtype=torch.float32, device=device) / max(r, 1))
    angle = torch.outer(torch.arange(T, dtype=torch.float32, device=device), frequency)
    cos, sin = angle.cos(), angle.sin()
    unturned = (0, config.head_dim - r)
    tables = (
        F.pad(torch.cat([cos, cos], 1), unturned, value=1.0),
        F.pad(torch.cat([sin, -sin], 1), unturned),
    )
    return tables[0][None, :, None].to(dtype), tables[1][None, :, None].to(dtype)


def rotate(x: Tensor, tables: RotaryTables, r: int) -> Tensor:
    """Turn the first r dims of each head by its position, pass the rest; x [B, T, H, C]."""
    cos, sin = tables
    return x * cos + partners(x, r) * sin if r else x


def partners(x: Tensor, r: int) -> Tensor:
    """x with the halves of its first r dims exchanged; what follows them may be exchanged too."""
    if x.size(-1) % r == 0:
        # In whole runs of r: compiled, these are reads in another order, fused with what follows.
        return x.unflatten(-1, (-1, 2, r // 2)).flip(-2).flatten(-3)
    x1, x2, rest = x.split([r // 2, r // 2, x.size(-1) - r], dim=-1)
    return torch.cat([x2, x1, rest], dim=-1)


class _Turned(torch.autograd.Function):
    """`rotate` of normalised heads, times a gain for each head; x [B, T, H, C], gain [H].

    What autograd would make of it sums over all of a head's dims twice, once for the gain and once
    for the norm. The sums are the same.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, gain: Tensor, cos: Tensor, sin: Tensor, r: int) -> Tensor:
        ctx.save_for_backward(x, gain, cos, sin)
        ctx.r = r
        return rotate(rms_norm(x), (cos, sin), r) * gain.to(x.dtype)[:, None]

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, None, None, None]:
        x, gain, cos, sin = ctx.saved_tensors
        g, x32 = grad.float(), x.float()
        if ctx.r:
            g = g * cos + partners(g * sin, ctx.r)  # turned back
        scale = (x32.square().mean(-1, keepdim=True) + torch.finfo(torch.float32).eps).rsqrt()
        along = (g * x32 * scale).sum(-1, keepdim=True)
        grad_x = scale * gain[:, None] * (g - x32 * scale * along / x.size(-1))
        return grad_x.to(x.dtype), along.sum((0, 1, 3)), None, None, None


def subtract_self_value(y: Tensor, v: Tensor) -> Tensor:
    """XSA: remove from each head's output its projection onto the position's own value.

    y [B, T, H, C], v [B, T, K, C]; each value head serves the H/K query heads of its group.
    """
    B, T, H, C = y.shape
    grouped = y.reshape(B, T, v.size(2), -1, C)
    direction = F.normalize(v, dim=-1)[:, :, :, None, :]
    projection = (grouped * direction).sum(-1, keepdim=True) * direction
    return (grouped - projection).reshape(B, T, H, C)


class Attention(nn.Module):
    def __init__(self, config: Config, *, xsa: bool) -> None:
        super().__init__()
        D = config.model_dim
        self.head_dim = config.head_dim
        self.rope_dims = config.rope_dims
        self.xsa = xsa
        self.backend = "sdpa"
        self.c_q = CastedLinear(D, D)
        self.c_k = CastedLinear(D, config.kv_dim)
        self.c_v = CastedLinear(D, config.kv_dim)
        self.proj = CastedLinear(D, D, zero_init=True)
        self.q_gain = nn.Parameter(torch.full((config.num_heads,), config.qk_gain_init))

    def forward(
        self,
        x: Tensor,
        tables: RotaryTables,
        value_embedding: Tensor | None,
        last: int | None = None,
    ) -> Tensor:
        """[B, T, D] -> [B, S, D]: what the last S = `last` positions (none: all) attend to."""
        if last is None:
            q, k, v = joint_product(x, self.c_q, self.c_k, self.c_v)
        else:
            q = self.c_q(last_positions(x, last))
            k, v = joint_product(x, self.c_k, self.c_v)
        if value_embedding is not None:
            v = v + value_embedding
        q, k, v = (y.view(*y.shape[:2], -1, self.head_dim) for y in (q, k, v))
        cos, sin = (last_positions(table, last) for table in tables)
        q = _Turned.apply(q, self.q_gain, cos, sin, self.rope_dims)
        k = rotate(rms_norm(k), tables, self.rope_dims)
        y = causal_attention(q, k, v, self.backend)
        if self.xsa:
            y = subtract_self_value(y, last_positions(v, last))
        return self.proj(y.flatten(2))


class MLP(nn.Module):
    def __init__(self, config: Config) -> None:
        super().__init__()
        hidden = int(config.mlp_mult * config.model_dim)
        self.fc = CastedLinear(config.model_dim, hidden)
        self.proj = CastedLinear(hidden, config.model_dim, zero_init=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.proj(F.leaky_relu(self.fc(x), 0.5).square())


class Block(nn.Module):
    """One physical layer: the parts of a residual step, on one lane or on two."""

    def __init__(self, config: Config, layer: int) -> None:
        super().__init__()
        D = config.model_dim
        self.attn = Attention(config, xsa=layer >= config.num_layers - config.xsa_last_n)
        self.mlp = MLP(config)
        self.attn_scale = nn.Parameter(torch.ones(D))
        self.mlp_scale = nn.Parameter(torch.ones(D))
        self.resid_mix = nn.Parameter(torch.stack([torch.ones(D), torch.zeros(D)]))
        self.ln_scale = 1 / math.sqrt(layer + 1) if config.ln_scale else 1.0

    def attend(
        self,
        x: Tensor,
        x0: Tensor,
        tables: RotaryTables,
        value_embedding: Tensor | None,
        last: int | None = None,
    ) -> Tensor:
        """x mixed with the input x0, plus attention; both [B, T, D].

        Returns [B, S, D]: the last S = `last` positions (none: all), which attend to all T.
        """
        mix = self.resid_mix.to(x.dtype)
        x = mix[0] * x + mix[1] * x0
        y = self.attn(rms_norm(x) * self.ln_scale, tables, value_embedding, last)
        return last_positions(x, last) + self.attn_scale.to(x.dtype) * y

    def feed_forward(self, x: Tensor) -> Tensor:
        """x plus the MLP; [B, T, D]."""
        return x + self.mlp_scale.to(x.dtype) * self.mlp(rms_norm(x) * self.ln_scale)


class ValueEmbedding(nn.Module):
    """A second embedding of the tokens, added to the values of some layers."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.embed = nn.Embedding(config.vocab_size, config.ve_dim)
        nn.init.normal_(self.embed.weight, std=VE_EMBED_STD)
        self.proj = CastedLinear(config.ve_dim, config.kv_dim, zero_init=True)
        self.scale = nn.Parameter(torch.tensor(VE_SCALE_INIT))

    def forward(self, input_ids: Tensor, dtype: torch.dtype) -> Tensor:
        """[B, T] -> [B, T, K*C]."""
        return self.proj(self.embed(input_ids).to(dtype)) * self.scale.to(dtype)


class GPT(nn.Module):
    """The whole network; weights come from torch's global random state."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.config = config
        D, E, V = config.model_dim, config.embedding_dim, config.vocab_size
        skips = min(config.num_layers // 2, config.num_layers - config.num_layers // 2)
        self.tok_emb = nn.Embedding(V, E)
        nn.init.normal_(self.tok_emb.weight, std=config.tied_embed_init_std)
        self.embed_proj = CastedLinear(E, D) if E != D else None
        self.head_proj = CastedLinear(D, E) if E != D else None
        self.skip_weights = nn.Parameter(torch.ones(skips, D))
        self.skip_gates = nn.Parameter(torch.zeros(skips, D)) if config.skip_gates_enabled else None
        self.blocks = nn.ModuleList(Block(config, i) for i in range(config.num_layers))
        self.ve_layers = config.ve_layers if config.ve_enabled else ()
        self.ve_shared = ValueEmbedding(config) if self.ve_layers else None
        self.ve_layer_scales = nn.ParameterList(torch.ones(1) for _ in self.ve_layers)
        self.lane_merge = (
            nn.Parameter(torch.tensor(0.5)) if config.parallel_start_layer is not None else None
        )
        self.lm_head = None if config.tie_embeddings else CastedLinear(E, V, zero_init=True)
        self.compute_dtype = torch.float32
        self.tables: RotaryTables | None = None
        self.set_loop(NO_LOOP)

    def move_to_compute(self, device: torch.device, dtype: torch.dtype) -> None:
        """Place the network where it computes, and let it compute in `dtype`."""
        self.to(device)
        self.compute_dtype = dtype
        # Made once: compiled, each kernel that needs them would make them for every element.
        self.tables = rotary_tables(self.config.train_seq_len, self.config, device, dtype)

    def set_recurrence_active(self, active: bool) -> None:
        """Run the recurrent layers of the config again (True) or once; until the next call."""
        self.set_loop(self.config.loop if active else NO_LOOP)

    def set_loop(self, loop: Loop) -> None:
        """Run the layers of `loop` again; until the next call."""
        self.loop = loop
        self.virtual_layers = virtual_layers(self.config.num_layers, loop)

    def set_attention(self, backend: str) -> None:
        """Compute attention by `backend`, as `attention.choose_attention` found it."""
        for module in self.modules():
            if isinstance(module, Attention):
                module.backend = backend

    @property
    def recurrence_active(self) -> bool:
        return self.loop != NO_LOOP

    def hidden(self, input_ids: Tensor, last: int | None = None) -> Tensor:
        """Final normalised states, [B, T] -> [B, S, D], of the last S = `last` positions.

        Without `last` of all T. What those S do not depend on is not computed: only keys and
        values reach across positions, so the last layer needs nothing else of the others.
        """
        x = rms_norm(self.tok_emb(input_ids).to(self.compute_dtype))
        if self.embed_proj is not None:
            x = self.embed_proj(x)
        x0 = x
        tables = self._tables(x)
        values = self._value_embeddings(input_ids)
        lane1 = None  # the second lane, once it has branched off; x is then the first
        skips: list[Tensor] = []
        popped = 0
        encoder = len(self.virtual_layers) // 2
        for position, layer in enumerate(self.virtual_layers):
            block = cast(Block, self.blocks[layer])
            decoding = position >= encoder
            if decoding and skips and popped < len(self.skip_weights):
                x = self._merge_skip(x, skips.pop(), popped)
                popped += 1
            if decoding and self._parallel(layer) and lane1 is None:
                lane1 = last_positions(x, last)  # no attention reads this lane
            final = position == len(self.virtual_layers) - 1
            x = block.attend(x, x0, tables, values.get(layer), last if final else None)
            if lane1 is None:
                x = block.feed_forward(x)
            else:
                lane1 = block.feed_forward(lane1)
            if not decoding:
                skips.append(x)
        if lane1 is not None and self.lane_merge is not None:
            x = torch.lerp(lane1, x, self.lane_merge.to(x.dtype))
        return rms_norm(x)

    def head(self, hidden: Tensor) -> tuple[Tensor, Tensor]:
        """What the logits are the product of: states [..., E] and float32 weights [V, E]."""
        if self.head_proj is not None:
            hidden = self.head_proj(hidden)
        return hidden, self.tok_emb.weight if self.lm_head is None else self.lm_head.weight

    def forward_logits(self, input_ids: Tensor) -> Tensor:
        """Soft-capped logits, [B, T] -> float32 [B, T, V]."""
        states, weight = self.head(self.hidden(input_ids))
        return capped(F.linear(states, weight.to(states.dtype)), self.config.logit_softcap)

    def forward(self, input_ids: Tensor, target_ids: Tensor) -> Tensor:
        """Mean cross-entropy in nats over all positions, a float32 scalar."""
        states, weight = self.head(self.hidden(input_ids).flatten(0, 1))
        return mean_cross_entropy(states, weight, target_ids.flatten(), self.config.logit_softcap)

    def nats(self, input_ids: Tensor, target_ids: Tensor) -> Tensor:
        """-log p of targets [B, S] at the last S of T positions, float32 [B, S]; no gradients."""
        scored = target_ids.size(1)
        hidden = self.hidden(input_ids, scored if scored < input_ids.size(1) else None)
        states, weight = self.head(hidden.flatten(0, 1))
        cap = self.config.logit_softcap
        nats = token_nats(states, weight.to(states.dtype), target_ids.flatten(), cap)
        return nats.view(target_ids.shape)

    def _tables(self, x: Tensor) -> RotaryTables:
        """The rotary tables for x [B, T, D]."""
        if self.tables is None or self.tables[0].size(1) < x.size(1):
            return rotary_tables(x.size(1), self.config, x.device, x.dtype)
        cos, sin = self.tables
        return cos[:, : x.size(1)], sin[:, : x.size(1)]

    def _value_embeddings(self, input_ids: Tensor) -> dict[int, Tensor]:
        if self.ve_shared is None:
            return {}
        shared = self.ve_shared(input_ids, self.compute_dtype)
        scaled = zip(self.ve_layers, self.ve_layer_scales, strict=True)
        return {layer: shared * scale.to(shared.dtype) for layer, scale in scaled}

    def _parallel(self, layer: int) -> bool:
        start = self.config.parallel_start_layer
        return start is not None and layer >= start

    def _merge_skip(self, x: Tensor, skip: Tensor, number: int) -> Tensor:
        skip = self.skip_weights[number].to(x.dtype) * skip
        if self.skip_gates is None:
            return x + skip
        return torch.lerp(skip, x, torch.sigmoid(self.skip_gates[number].to(x.dtype)))
