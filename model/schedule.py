"""What changes while a model trains, as pure functions of progress and step."""

from __future__ import annotations

import math

from model.config import Config, WarmdownShape


def progress(*, step: int, elapsed: float, config: Config) -> float:
    """Share of the training budget that is used, 0 to 1.

    By the clock when there is a wall-clock cap (`elapsed` in seconds), else by steps.
    """
    budget = config.train_budget_seconds
    used = elapsed / budget if budget else step / config.iterations
    return min(max(used, 0.0), 1.0)


def lr_multiplier(
    frac: float, *, shape: WarmdownShape, warmdown_frac: float, floor: float
) -> float:
    """Learning-rate multiplier at progress `frac`: 1, then the warmdown over the last part.

    Linear falls to 0 and is clipped at the floor; cosine reaches the floor at the end.
    """
    if warmdown_frac <= 0 or frac <= 1 - warmdown_frac:
        return 1.0
    if shape == "linear":
        return max((1 - frac) / warmdown_frac, floor)
    within = (frac - (1 - warmdown_frac)) / warmdown_frac
    return floor + (1 - floor) * 0.5 * (1 + math.cos(math.pi * within))


def muon_momentum(step: int, config: Config) -> float:
    """Momentum at a step: a linear warm-up from its start to its final value."""
    if config.muon_momentum_warmup_steps == 0:
        return config.muon_momentum
    done = min(step / config.muon_momentum_warmup_steps, 1.0)
    return (1 - done) * config.muon_momentum_warmup_start + done * config.muon_momentum


def ema_decay(step: int, config: Config) -> float:
    """Decay of the weight average after a step (counted from 0): short memory at first."""
    return min(config.ema_decay, (step + 1) / (step + 10))


def recurrence_active(step: int, config: Config) -> bool:
    """Whether the recurrent layers run twice at this step."""
    return bool(config.recur_layers) and step >= config.recur_start_step
