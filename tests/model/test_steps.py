"""Grids of steps: one constant over the root of the curvature, within what eight bits hold."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from torch import Tensor

from model.calibrate import Sensitivity
from model.gptq import Factor
from model.packed import Packed
from model.steps import CODE_LIMIT, Curved, curved_matrices, round_all

QUARTER_OCTAVE = 2**0.25


def matrix(rows: int, cols: int, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    """Weights, a Hessian whose inputs differ in size, and the rows' curvature."""
    generator = torch.Generator().manual_seed(seed)
    weight = 0.1 * torch.randn(rows, cols, generator=generator)
    inputs = torch.randn(4 * cols, cols, generator=generator)
    inputs *= torch.logspace(-1, 1, cols)[torch.randperm(cols, generator=generator)]
    return weight, inputs.T @ inputs, torch.rand(rows, generator=generator) + 0.5


def weighted_error(weight: Tensor, packed: Packed, hessian: Tensor, rows: Tensor) -> float:
    left = weight - packed.tensor()
    return float(rows @ torch.einsum("ij,jk,ik->i", left, hessian, left))


def entropy(codes: np.ndarray) -> float:
    """Bits of codes whose probabilities are known by column and row: Gaussian at this spread."""
    _, counts = np.unique(codes, return_counts=True)
    shares = counts / counts.sum()
    return float(-(shares * np.log2(shares)).sum() * codes.size)


def test_steps_times_the_root_of_the_curvature_are_one_constant() -> None:
    weight, hessian, rows = matrix(32, 48)
    curved = Curved.of(weight, Factor.of(hessian), rows)
    row_steps, col_steps = (2 ** (steps.float() / 4) for steps in curved.steps(1.0))
    half_way = (rows * rows.mean()).sqrt()
    constants = torch.outer(row_steps * half_way.sqrt(), col_steps * curved.factor.weights)
    middle = constants.log().mean().exp()
    # Each of the two is rounded to a quarter of an octave, rows with up to as much again beside.
    assert (constants / middle).max() <= QUARTER_OCTAVE**1.3
    assert (middle / constants).max() <= QUARTER_OCTAVE**1.3


def test_the_constant_moves_all_steps() -> None:
    weight, hessian, rows = matrix(8, 16)
    curved = Curved.of(weight, Factor.of(hessian), rows)
    fine, coarse = curved.steps(-3.0), curved.steps(-2.0)
    assert torch.equal(coarse[0], fine[0] + 4)
    assert torch.equal(coarse[1], fine[1])


@pytest.mark.parametrize("constant", [-12.0, -6.0, 0.0])
def test_codes_stay_within_eight_bits(constant: float) -> None:
    weight, hessian, rows = matrix(64, 32)
    weight[3, 5] = 40.0  # an outlier, whose column must do with coarser steps
    packed = round_all({"w": Curved.of(weight, Factor.of(hessian), rows)}, constant)["w"]
    assert np.abs(packed.values.astype(int)).max() <= CODE_LIMIT
    assert packed.tensor()[3, 5] == pytest.approx(40.0, rel=0.02 if constant < 0 else 0.5)


def test_what_has_no_curvature_costs_nothing() -> None:
    weight, hessian, _ = matrix(16, 24)
    hessian[7], hessian[:, 7] = 0, 0

    def rounded(weight: Tensor, gradient: float) -> Packed:
        gradients = Sensitivity(rows=torch.full((16,), gradient), cols=torch.ones(24))
        curved = curved_matrices({"w": weight}, {"w": hessian}, {"w": gradients}, ["w"])
        return round_all(curved, -4.0)["w"]

    packed = rounded(weight, 1.0)
    assert not packed.values[:, 7].any()  # an input that never fired
    assert packed.values.any()
    assert np.isfinite(packed.tensor().numpy()).all()
    assert not rounded(weight, 0.0).values.any()  # rows that do not matter
    assert not rounded(torch.zeros(16, 24), 1.0).values.any()


def test_less_error_than_one_step_for_all_at_the_same_bits() -> None:
    weight, hessian, rows = matrix(256, 96)
    curved = Curved.of(weight, Factor.of(hessian), rows)
    flat = dataclasses.replace(
        curved, row_log=torch.zeros(256), col_log=torch.zeros(96), factor=curved.factor
    )

    def bits(packed: Packed) -> float:
        assert packed.col_steps is not None
        columns = packed.values.T
        return sum(
            entropy(columns[packed.col_steps == step]) for step in np.unique(packed.col_steps)
        )

    uniform = round_all({"w": flat}, -5.0)["w"]
    constants = torch.linspace(-6, 6, 97).tolist()
    ours = min(
        (round_all({"w": curved}, constant)["w"] for constant in constants),
        key=lambda packed: abs(bits(packed) - bits(uniform)),
    )
    assert bits(ours) == pytest.approx(bits(uniform), rel=0.02)
    error = weighted_error(weight, ours, hessian, rows)
    assert error < 0.7 * weighted_error(weight, uniform, hessian, rows)


def test_embeddings_go_by_their_gradients_alone() -> None:
    torch.manual_seed(0)
    weights = {"emb": torch.randn(40, 12), "w": matrix(8, 12)[0]}
    sensitivities = {
        "emb": Sensitivity(rows=torch.logspace(-3, 3, 40), cols=torch.logspace(-2, 2, 12)),
        "w": Sensitivity(rows=torch.ones(8), cols=torch.ones(12)),
    }
    hessians = {"w": matrix(8, 12)[1]}
    found = curved_matrices(weights, hessians, sensitivities, ["emb", "w"])
    rows, cols = (steps.int() for steps in found["emb"].steps(0.0))
    assert (rows.diff() <= 1).all()
    assert rows[0] > rows[-1] + 8
    assert (cols.diff() <= 0).all()
    # Rounded for itself, a code is the nearest.
    packed = round_all({"emb": found["emb"]}, 0.0)["emb"]
    sizes = 2 ** ((rows[:, None] + cols) / 4)
    np.testing.assert_array_equal(packed.values, (weights["emb"] / sizes).round().numpy())


def test_a_part_is_every_so_many_rows() -> None:
    weight, hessian, rows = matrix(32, 24)
    curved = Curved.of(weight, Factor.of(hessian), rows)
    whole, part = (round_all({"w": m}, 1.0)["w"] for m in (curved, curved.part(8)))
    np.testing.assert_array_equal(part.values, whole.values[::8])
