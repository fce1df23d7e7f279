"""What changes while a model trains, as pure functions of progress and step."""

from __future__ import annotations

import math

from model.config import Config, FloorMode, WarmdownShape
from model.recurrence import NO_LOOP, Loop


def progress(*, step: int, elapsed: float, config: Config) -> float:
    """Share of the training budget that is used, 0 to 1.

    By the clock when there is a wall-clock cap (`elapsed` in seconds), else by steps.
    """
    budget = config.train_budget_seconds
    used = elapsed / budget if budget else step / config.iterations
    return min(max(used, 0.0), 1.0)


def lr_multiplier(
    frac: float,
    *,
    shape: WarmdownShape,
    warmdown_frac: float,
    floor: float,
    floor_mode: FloorMode = "auto",
    power: float = 2.0,
    rate: float = 5.0,
) -> float:
    """Learning-rate multiplier at progress `frac`: 1, then the warmdown over the last part.

    The decay either is clipped at the floor or, scaled, reaches it at the end; `auto` keeps what
    the field's scripts do: linear is clipped, the others reach it.
    """
    if warmdown_frac <= 0 or frac <= 1 - warmdown_frac:
        return 1.0
    if shape == "linear":
        decay = (1 - frac) / warmdown_frac
    else:
        decay = _decay((frac - (1 - warmdown_frac)) / warmdown_frac, shape, power, rate)
    clipped = shape == "linear" if floor_mode == "auto" else floor_mode == "clip"
    return max(decay, floor) if clipped else floor + (1 - floor) * decay


def _decay(within: float, shape: WarmdownShape, power: float, rate: float) -> float:
    """From 1 to 0 as the warmdown goes from 0 to 1."""
    match shape:
        case "cosine":
            return 0.5 * (1 + math.cos(math.pi * within))
        case "1-sqrt":
            return 1 - math.sqrt(within)
        case "power":
            return (1 - within) ** power
        case "exponential":
            # Less its last value, so that it ends at 0 as the others do.
            return (math.exp(-rate * within) - math.exp(-rate)) / (1 - math.exp(-rate))
    return 1 - within


def muon_momentum(step: int, config: Config) -> float:
    """Momentum at a step: a linear warm-up from its start to its final value."""
    if config.muon_momentum_warmup_steps == 0:
        return config.muon_momentum
    done = min(step / config.muon_momentum_warmup_steps, 1.0)
    return (1 - done) * config.muon_momentum_warmup_start + done * config.muon_momentum


def ema_decay(step: int, config: Config) -> float:
    """Decay of the weight average after a step (counted from 0): short memory at first."""
    return min(config.ema_decay, (step + 1) / (step + 10))


def recurrence(step: int, frac: float, config: Config) -> Loop:
    """The loop in force at a step (counted from 0) and progress `frac`.

    A start given as a step means the same on every machine; one given as a share of a wall-clock
    budget comes at another step on each.
    """
    match config.recurrence_onset:
        case "off":
            return NO_LOOP
        case "always":
            return config.loop
        case "step":
            return config.loop if step >= (config.recur_start_step or 0) else NO_LOOP
        case "fraction":
            return config.loop if frac >= (config.recur_start_frac or 0) else NO_LOOP
        case "staged":
            begun = [stage.loop for stage in config.stages if frac >= stage.start]
            return begun[-1] if begun else NO_LOOP


def loops_of_a_run(config: Config) -> list[Loop]:
    """Every loop that a whole run has in force at some time, in order."""
    match config.recurrence_onset:
        case "off":
            return [NO_LOOP]
        case "always":
            return [config.loop]
        case "staged":
            loops = [stage.loop for stage in config.stages]
            first = [] if config.stages[0].start == 0 else [NO_LOOP]
            return list(dict.fromkeys(first + loops))
        case "step" if (config.recur_start_step or 0) >= config.iterations:
            return [NO_LOOP]
    return [NO_LOOP, config.loop]
