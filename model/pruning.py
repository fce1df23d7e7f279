"""Meeting a byte budget the record's way: zero the ±1 codes that cost the least."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import numpy as np

from model.artifact import ArtifactError
from model.packed import Model, Packed

PRUNED_PER_EXCESS_BYTE = 4
MOST_PER_BYTE = 64.0


def fit_by_pruning(
    packed: Model, encode: Callable[[Model], bytes], *, budget: int
) -> tuple[Model, bytes, int]:
    """The tensors within `budget` bytes, codes of ±1 zeroed where they cost the least; as bytes,
    and how many codes.

    The record's method: four codes per byte too many, those of the smallest squared scale first,
    and as many again as the bytes still missing are found to take. Raises ArtifactError when no
    ±1 code is left to zero.
    """
    data = encode(packed)
    size = len(data)
    pruned, per_byte = 0, float(PRUNED_PER_EXCESS_BYTE)
    while size > budget:
        packed, done = prune(packed, round(per_byte * (size - budget)))
        if done == 0:
            raise ArtifactError(
                f"the artifact is {size} bytes, {size - budget} over what the budget leaves it, "
                "and nothing is left to prune; make the model smaller"
            )
        pruned += done
        data = encode(packed)
        before, size = size, len(data)
        # What a byte takes with these codes and this codec is known now, and not less than that.
        per_byte = max(per_byte, pruned_per_byte(done, before - size))
    return packed, data, pruned


def pruned_per_byte(codes: int, saved: int) -> float:
    """How many codes a saved byte took; where none was saved, more than any coder needs."""
    return min(codes / saved, MOST_PER_BYTE) if saved > 0 else MOST_PER_BYTE


def prune(packed: Model, count: int) -> tuple[dict[str, Packed], int]:
    """Zero up to `count` int6 codes of ±1, smallest squared row scale first; and how many."""
    rows = [
        (float(scale), name, row)
        for name, p in packed.items()
        if p.kind == "int6" and p.scales is not None
        for row, scale in enumerate(p.scales)
    ]
    values = {name: p.values.copy() for name, p in packed.items() if p.kind == "int6"}
    left = count
    for _, name, row in sorted(rows):
        ones = np.flatnonzero(np.abs(values[name][row]) == 1)[:left]
        values[name][row, ones] = 0
        left -= ones.size
        if left == 0:
            break
    smaller = {
        name: dataclasses.replace(p, values=values.get(name, p.values))
        for name, p in packed.items()
    }
    return smaller, count - left
