"""The pictures of the documentation, drawn from the functions that training uses.

python -m jobs.plots docs
"""

from __future__ import annotations

import sys
import typing
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib import pyplot as plt

from model.config import Config, WarmdownShape
from model.recurrence import virtual_layers
from model.schedule import lr_multiplier, recurrence

WARMDOWN_FRAC = 0.667
FLOOR = 0.1
ONSETS: dict[str, dict[str, Any]] = {
    "RECUR_START_FRAC=0.35": {"recur_start_frac": 0.35},
    "RECUR_STAGES=0.35:4,5;0.6:3,4,5x2": {"recur_stages": "0.35:4,5;0.6:3,4,5x2"},
    "RECUR_START_STEP=0 (always)": {"recur_start_step": 0},
}


def plot_schedules(path: Path) -> None:
    """Warmdown shapes, floors, and layers that run, over the share of the budget."""
    mpl.rcParams |= {"svg.hashsalt": "sweeper", "font.size": 9}  # the same file every time
    figure, (shapes, floors, layers) = plt.subplots(1, 3, figsize=(12, 3.4), layout="constrained")
    progress = np.linspace(0, 1, 201)
    for shape in typing.get_args(WarmdownShape):
        shapes.plot(progress, _multipliers(progress, shape, floor=0.0), label=shape)
    shapes.set_title(f"WARMDOWN_SHAPE, WARMDOWN_FRAC={WARMDOWN_FRAC}")
    shapes.set_ylabel("learning-rate multiplier")
    for shape, mode in (("linear", "clip"), ("linear", "reach"), ("cosine", "reach")):
        line = _multipliers(progress, shape, floor=FLOOR, floor_mode=mode)
        floors.plot(progress, line, label=f"{shape}, {mode}")
    floors.set_title(f"LR_FLOOR_MODE, LR_FLOOR={FLOOR}")
    for style, (label, settings) in zip(("-", "--", ":"), ONSETS.items(), strict=True):
        config = Config(**settings)
        runs = [len(virtual_layers(11, recurrence(1, done, config))) for done in progress]
        layers.step(progress, runs, where="post", label=label, linestyle=style, linewidth=2)
    layers.set_title("recurrence")
    layers.set_ylabel("layers that run")
    layers.set_ylim(10, 21)
    for axes in (shapes, floors, layers):
        axes.set_xlabel("share of the training budget")
        axes.legend(fontsize=8, loc="upper left" if axes is layers else "upper right")
        axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, metadata={"Date": None})
    plt.close(figure)


def _multipliers(progress: np.ndarray, shape: Any, **options: Any) -> list[float]:
    return [
        lr_multiplier(done, shape=shape, warmdown_frac=WARMDOWN_FRAC, **options)
        for done in progress.tolist()
    ]


if __name__ == "__main__":
    plot_schedules(Path(sys.argv[1]) / "schedules.svg")
