"""Pruning to a budget: the cheapest codes go, no more than need be."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from model.artifact import ArtifactError, decode, encode
from model.config import Config
from model.gpt import GPT
from model.packed import Model, Packed, pack_model
from model.pruning import fit_by_pruning, prune

CONFIG = Config.from_env(
    {
        "PRESET": "tiny",
        "VOCAB_SIZE": "64",
        "MODEL_DIM": "64",
        "EMBEDDING_DIM": "64",
        "NUM_HEADS": "2",
        "NUM_KV_HEADS": "1",
    }
)


def encoded(packed: Model) -> bytes:
    return encode(packed, CONFIG, CONFIG.loop, "rans")


@pytest.fixture(scope="module")
def packed() -> Model:
    """A model with int6 codes of random spread, one matrix of them with steps."""
    torch.manual_seed(0)
    generator = np.random.default_rng(0)
    model = GPT(CONFIG)
    coded = {}
    for name, p in model.named_parameters():
        if name.startswith("blocks.") and p.ndim == 2:
            values = np.rint(generator.normal(0, 2, p.shape)).clip(-31, 31).astype(np.int8)
            scales = generator.uniform(0.01, 0.1, len(values)).astype(np.float16)
            coded[name] = Packed(kind="int6", values=values, scales=scales)
    values = coded["blocks.1.mlp.fc.weight"].values
    rows, cols = (np.zeros(n, np.int8) for n in values.shape)
    coded["blocks.1.mlp.fc.weight"] = Packed(
        kind="steps", values=values, row_steps=rows, col_steps=cols
    )
    return pack_model(model, coded)


@pytest.fixture(scope="module")
def pruned(packed: Model) -> tuple[Model, int, int]:
    """Pruned to a budget: the tensors, how many codes, and the budget."""
    budget = len(encoded(packed)) - 300
    smaller, data, count = fit_by_pruning(packed, encoded, budget=budget)
    assert data == encoded(smaller)
    return smaller, count, budget


def int6_pairs(before: Model, after: Model) -> list[tuple[Packed, Packed]]:
    return [(p, after[name]) for name, p in before.items() if p.kind == "int6"]


def test_meets_a_budget(packed: Model, pruned: tuple[Model, int, int]) -> None:
    smaller, count, budget = pruned
    data = encoded(smaller)
    assert len(data) <= budget
    _, read = decode(data)
    changed = 0
    for name, tensor in packed.items():
        gone = tensor.values != read[name].values
        assert (np.abs(tensor.values[gone]) == 1).all()
        assert not read[name].values[gone].any()
        assert tensor.kind == "int6" or not gone.any()
        changed += int(gone.sum())
    assert changed == count > 0


def test_the_cheapest_codes_go_first(packed: Model, pruned: tuple[Model, int, int]) -> None:
    largest_zeroed, smallest_kept = 0.0, np.inf
    for before, after in int6_pairs(packed, pruned[0]):
        assert before.scales is not None
        gone = (before.values != after.values).any(axis=1)
        kept = (np.abs(after.values) == 1).any(axis=1)
        largest_zeroed = max([largest_zeroed, *before.scales[gone].tolist()])
        smallest_kept = min([smallest_kept, *before.scales[kept].tolist()])
    assert 0 < largest_zeroed <= smallest_kept < np.inf


def test_a_budget_that_is_met_already_changes_nothing(packed: Model) -> None:
    budget = len(encoded(packed))
    same, _, count = fit_by_pruning(packed, encoded, budget=budget)
    assert count == 0
    assert same is packed


def test_an_impossible_budget_is_refused(packed: Model) -> None:
    with pytest.raises(ArtifactError, match=r"\d+ over .* nothing is left to prune; make"):
        fit_by_pruning(packed, encoded, budget=1_000)


@pytest.mark.parametrize("count", [0, 1, 17, 5_000])
def test_no_more_than_asked(packed: Model, count: int) -> None:
    smaller, done = prune(packed, count)
    pairs = int6_pairs(packed, smaller)
    assert sum(int((a.values != b.values).sum()) for a, b in pairs) == done == count


def test_no_more_than_there_are(packed: Model) -> None:
    smaller, done = prune(packed, 10**9)
    pairs = int6_pairs(packed, smaller)
    assert done == sum(int((np.abs(before.values) == 1).sum()) for before, _ in pairs)
    assert prune(smaller, 1)[1] == 0


def test_leaves_its_input_alone(packed: Model) -> None:
    before = {name: p.values.copy() for name, p in packed.items()}
    prune(packed, 10_000)
    for name, values in before.items():
        np.testing.assert_array_equal(packed[name].values, values)
