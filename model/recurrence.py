"""Which layers run again, and from when: the plan of a run's depth recurrence.

A loop names neighbouring layers and how many extra times they run. A plan is a list of stages,
each a fraction of the training budget from which its loop is in force: `0.35:4,5;0.6:3,4,5x2`.
"""

from __future__ import annotations

import itertools
import re
from typing import NamedTuple

MAX_LOOPS = 16  # an artifact may ask for no more: each runs its layers once more
STAGE = re.compile(r"(?P<start>[0-9.eE-]+):(?P<layers>\d+(?:,\d+)*)(?:x(?P<loops>\d+))?")


class Loop(NamedTuple):
    """Layers that run again, `loops` more times; no layers: none does."""

    layers: tuple[int, ...]
    loops: int

    def __str__(self) -> str:
        times = f"x{self.loops}" if self.loops != 1 else ""
        return ",".join(map(str, self.layers)) + times if self.layers else "none"


NO_LOOP = Loop((), 0)


class Stage(NamedTuple):
    """A loop and the share of the training budget from which it is in force."""

    start: float
    loop: Loop


def virtual_layers(num_layers: int, loop: Loop) -> tuple[int, ...]:
    """The order in which physical layers run; the looped ones are repeated after their last."""
    layers = list(range(num_layers))
    if loop.layers:
        after = loop.layers[-1] + 1
        layers[after:after] = list(loop.layers) * loop.loops
    return tuple(layers)


def neighbours(layers: tuple[int, ...]) -> bool:
    """Whether layers follow one another without a gap."""
    return all(b == a + 1 for a, b in itertools.pairwise(layers))


def parse_stages(text: str) -> tuple[Stage, ...]:
    """Stages from their text; ValueError saying what is wrong with it."""
    stages = []
    for part in text.replace(" ", "").split(";"):
        found = STAGE.fullmatch(part)
        if found is None:
            raise ValueError("stages like 0.35:4,5;0.6:3,4,5x2 (share of the budget : layers)")
        layers = tuple(map(int, found["layers"].split(",")))
        stages.append(Stage(float(found["start"]), Loop(layers, int(found["loops"] or 1))))
    starts = [stage.start for stage in stages]
    if starts != sorted(set(starts)) or not all(0 <= start < 1 for start in starts):
        raise ValueError("stages whose shares increase, from 0 up to but not 1")
    if not all(neighbours(stage.loop.layers) for stage in stages):
        raise ValueError("stages of neighbouring layers")
    if not all(0 < stage.loop.loops <= MAX_LOOPS for stage in stages):
        raise ValueError(f"stages of 1 to {MAX_LOOPS} loops")
    return tuple(stages)
