"""Stored tensors: which form each takes, and what its bytes stand for."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from model.config import Config
from model.gpt import GPT
from model.packed import SMALL_TENSOR, Packed, coded_planes, pack_model, step_sizes, with_scales

CONFIG = Config.from_env({"PRESET": "tiny", "VOCAB_SIZE": "64", "ITERATIONS": "1"})
CODES = np.array([[0, 1, -1], [127, -128, 5]], np.int8)


def test_plain_values_are_what_they_are() -> None:
    values = np.array([1.5, -0.25, 65_504], np.float16)
    assert Packed(kind="float16", values=values).tensor().tolist() == [1.5, -0.25, 65_504]


def test_scales_are_of_rows() -> None:
    found = with_scales("int8", torch.from_numpy(CODES), torch.tensor([0.5, 2]).half())
    assert found.tensor().tolist() == [[0, 0.5, -0.5], [254, -256, 10]]
    assert [plane.dtype for plane in found.details()] == [np.float16]


def test_steps_are_quarters_of_an_octave_of_rows_and_columns() -> None:
    rows, cols = np.array([0, -8], np.int8), np.array([4, 0, -4], np.int8)
    found = Packed(kind="steps", values=CODES, row_steps=rows, col_steps=cols)
    assert found.tensor().tolist() == [[0, 1, -0.5], [63.5, -32, 0.625]]
    assert [plane.tolist() for plane in found.details()] == [rows.tolist(), cols.tolist()]
    assert step_sizes(torch.tensor([1, 2])).tolist() == pytest.approx([2**0.25, 2**0.5])


def test_the_most_extreme_steps_are_finite() -> None:
    """Which float32 has room for: 127 * 2^((127 + 127) / 4)."""
    rows, cols = np.array([127, -128], np.int8), np.array([127, -128, 0], np.int8)
    found = Packed(kind="steps", values=CODES, row_steps=rows, col_steps=cols).tensor()
    assert found.isfinite().all()
    assert found[1].abs().min() > 0


def test_a_tensor_is_a_copy() -> None:
    values = np.ones(3, np.float32)
    Packed(kind="float32", values=values).tensor().mul_(2)
    assert values.tolist() == [1, 1, 1]


def test_a_model_is_packed_as_it_is_coded_and_else_by_size() -> None:
    torch.manual_seed(0)
    model = GPT(CONFIG)
    name = "blocks.0.mlp.fc.weight"
    weight = model.state_dict()[name]
    coded = Packed(
        kind="int6",
        values=np.ones(weight.shape, np.int8),
        scales=np.ones(len(weight), np.float16),
    )
    packed = pack_model(model, {name: coded})
    assert list(packed) == list(model.state_dict())
    assert packed[name] is coded
    for other, value in model.state_dict().items():
        if other == name:
            continue
        kind, back = packed[other].kind, packed[other].tensor()
        assert (kind == "int8") == (value.ndim == 2 and ("emb" in other or value.numel() > 65_536))
        loss = {"float32": 0, "float16": 2**-11, "int8": 1 / 127}[kind]
        assert (back - value).abs().max() <= loss * value.abs().max(), other
    assert SMALL_TENSOR == 65_536
    kinds = {p.kind for p in packed.values()}
    assert kinds == {"int6", "int8", "float16", "float32"}


def test_coded_planes_are_those_with_codes() -> None:
    rows, cols = np.zeros(2, np.int8), np.ones(3, np.int8)
    packed = {
        "a": Packed(kind="steps", values=CODES, row_steps=rows, col_steps=cols),
        "b": Packed(kind="float16", values=np.ones(3, np.float16)),
        "c": with_scales("int6", torch.from_numpy(CODES), torch.ones(2).half()),
    }
    found = coded_planes(packed)
    assert list(found) == ["a", "c"]
    assert found["a"][1] is cols
    assert found["c"][1] is None
