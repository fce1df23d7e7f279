"""Fitting the budget: just below it, by steps, with less harm than pruning does."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from model.artifact import ArtifactError, encode
from model.calibrate import Sensitivity, collect_hessians, collect_sensitivities
from model.config import Config
from model.fit import MAX_ROUNDS, fit_by_steps
from model.gpt import GPT
from model.gptq import quantize_all
from model.packed import Model, Packed, pack_model, with_scales
from model.pruning import fit_by_pruning
from model.ranks import Ranks
from model.steps import Curved, curved_matrices

CONFIG = Config.from_env({"PRESET": "tiny", "VOCAB_SIZE": "256", "ITERATIONS": "1"})
ALONE = Ranks(rank=0, world=1, device=torch.device("cpu"), control=None)


class Case:
    """A model as if trained, and what calibration would say of it."""

    def __init__(self) -> None:
        torch.manual_seed(0)
        self.model = GPT(CONFIG)
        with torch.no_grad():
            for p in self.model.parameters():
                p.add_(0.1 * torch.randn_like(p))
        tokens = torch.randint(CONFIG.vocab_size, (8, 65))
        self.hessians = collect_hessians(self.model, [tokens[:, :-1]], CONFIG.gptq_min_weights)
        self.sensitivities = collect_sensitivities(
            self.model, ((row[None, :-1], row[None, 1:]) for row in tokens)
        )
        self.weights = dict(self.model.named_parameters())
        self.matrices = curved_matrices(
            self.weights, self.hessians, self.sensitivities, self.sensitivities
        )

    def encode(self, coded: Model) -> bytes:
        return encode(pack_model(self.model, coded), CONFIG, self.model.loop, "rans")

    def fit(self, budget: int) -> tuple[dict[str, Packed], int, int]:
        """The codes, their artifact's bytes, and the roundings of all rows that it took."""
        rounds: list[int] = []
        coded, data = fit_by_steps(
            self.matrices,
            self.encode,
            ALONE,
            budget=budget,
            on_round=lambda number, _: rounds.append(number),
        )
        return coded, len(data), rounds[-1]

    def harm(self, coded: Model) -> float:
        """The curvature-weighted error of all matrices."""
        total = 0.0
        for name, hessian in self.hessians.items():
            left = self.weights[name].detach() - coded[name].tensor()
            rows = self.sensitivities[name].rows / hessian.diagonal().sum()
            total += float(rows @ ((left @ hessian) * left).sum(1))
        return total


@pytest.fixture(scope="module")
def case() -> Case:
    return Case()


@pytest.fixture(scope="module")
def recorded(case: Case) -> dict[str, Packed]:
    """The record's codes."""
    coded = quantize_all(case.weights, case.hessians)
    return {name: with_scales("int6", *codes) for name, codes in coded.items()}


@pytest.mark.parametrize("bits", [0.5, 1, 2, 3, 4, 5.5])
def test_ends_just_below_any_budget(case: Case, bits: float) -> None:
    count = sum(m.weight.numel() for m in case.matrices.values())
    budget = int(bits * count / 8)
    coded, size, rounds = case.fit(budget)
    # Below a bit a weight, most codes are 0, and a single row counts.
    assert (0.999 if bits >= 1 else 0.99) * budget <= size <= budget
    assert len(case.encode(coded)) == size
    assert rounds <= (6 if bits >= 2 else MAX_ROUNDS)


def test_the_same_twice(case: Case) -> None:
    assert case.encode(case.fit(200_000)[0]) == case.encode(case.fit(200_000)[0])


@pytest.mark.parametrize("share", [1.0, 0.95, 0.9])
def test_less_harm_than_the_records_way(
    case: Case, recorded: dict[str, Packed], share: float
) -> None:
    budget = int(share * len(case.encode(recorded)))
    pruned, _, _ = fit_by_pruning(pack_model(case.model, recorded), case.encode, budget=budget)
    fitted, size, _ = case.fit(budget)
    assert size <= budget
    assert case.harm(fitted) < 0.8 * case.harm(pruned)


def test_more_bytes_less_harm(case: Case) -> None:
    harms = [case.harm(case.fit(budget)[0]) for budget in (150_000, 200_000, 250_000)]
    assert harms == sorted(harms, reverse=True)


def test_a_budget_beyond_eight_bits_is_not_filled(case: Case) -> None:
    coded, size, rounds = case.fit(16_000_000)
    assert size < sum(m.weight.numel() for m in case.matrices.values())
    assert rounds == 1
    assert case.harm(coded) < 0.2 * case.harm(case.fit(250_000)[0])


def test_an_impossible_budget_says_so(case: Case) -> None:
    with pytest.raises(ArtifactError, match=r"coarsest steps, \d+ over .*make the model smaller"):
        case.fit(10_000)


@pytest.mark.parametrize("gradient", [0.0, 1e-40, 1e-25])
def test_a_matrix_without_gradients_takes_next_to_nothing(case: Case, gradient: float) -> None:
    name = "blocks.1.mlp.fc.weight"
    unused = Sensitivity(rows=torch.full((256,), gradient), cols=torch.full((128,), gradient))
    matrices: dict[str, Curved] = curved_matrices(
        case.weights, case.hessians, case.sensitivities | {name: unused}, case.sensitivities
    )
    coded, data = fit_by_steps(matrices, case.encode, ALONE, budget=200_000)
    assert 0.999 * 200_000 <= len(data) <= 200_000
    assert not coded[name].values.any()


def test_sensitivities_are_the_squared_gradients(case: Case) -> None:
    tokens = torch.randint(CONFIG.vocab_size, (2, 33))
    batches = [(row[None, :-1], row[None, 1:]) for row in tokens]
    found = collect_sensitivities(case.model, batches)
    squares: dict[str, Tensor] = {}
    for inputs, targets in batches:
        case.model.zero_grad()
        case.model(inputs, targets).backward()
        for name, p in case.model.named_parameters():
            assert p.grad is not None
            squares[name] = squares.get(name, torch.zeros(())) + p.grad.square()
    case.model.zero_grad()
    assert "tok_emb.weight" in found
    assert "blocks.0.attn.c_k.weight" in found
    assert "skip_weights" not in found  # control parameters are not coded
    for name, sensitivity in found.items():
        torch.testing.assert_close(sensitivity.rows, squares[name].sum(1))
        torch.testing.assert_close(sensitivity.cols, squares[name].sum(0))
