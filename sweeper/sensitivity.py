"""How much of what the surrogate believes comes from each setting: Sobol's total indices.

The surrogate knows the noise of its scores, so that luck makes nothing look important; and unlike
methods that compare where the best lie, choices and ranges are measured alike.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from sweeper.surrogate import Array, Axis, Surrogate, encode

POINTS = 1024  # of the space; the indices are then good to about 0.03


def total_indices(axes: Sequence[Axis], surrogate: Surrogate) -> dict[str, float]:
    """By axis: the share of the variance over the whole space that is gone once all others are set.

    They add up to more than 1 where settings depend on each other. By Jansen's estimator (Saltelli
    et al. 2010, table 2) at the same points every time. All 0 where all is believed to be equal.
    """
    from scipy.stats import qmc

    draws = qmc.Sobol(2 * len(axes), rng=np.random.default_rng(0)).random(POINTS)
    places, others = draws[:, : len(axes)], draws[:, len(axes) :]
    values = _values(axes, surrogate, places)
    variance = float(np.var(values))
    shares = {}
    for number, axis in enumerate(axes):
        moved = places.copy()
        moved[:, number] = others[:, number]
        differences = values - _values(axes, surrogate, moved)
        share = float(np.mean(differences**2)) / 2 / variance if variance > 0 else 0.0
        shares[axis.name] = share
    return shares


def _values(axes: Sequence[Axis], surrogate: Surrogate, places: Array) -> Array:
    """What is believed at places of the unit cube, a coordinate an axis."""
    points = []
    for row in places.tolist():
        params: dict[str, object] = {}
        for axis, place in zip(axes, row, strict=True):
            if axis.is_active(params):
                params[axis.name] = axis.value(place)
        points.append(params)
    return surrogate.moments(encode(axes, points))[0]
