"""The network against an independent implementation, and the properties that define its parts."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from model.config import Config
from model.gpt import (
    GPT,
    _Turned,
    last_positions,
    rms_norm,
    rotary_tables,
    rotate,
    subtract_self_value,
)
from model.recurrence import NO_LOOP, Loop
from tests.model.conftest import shared_data

GOLDEN = Path(__file__).parent / "golden" / "forward.json"


def formula_model(**overrides: object) -> GPT:
    """A small network whose weights follow from a formula, the same under any torch."""
    fields: dict[str, object] = {
        "vocab_size": 96,
        "num_layers": 6,
        "model_dim": 32,
        "embedding_dim": 32,
        "num_heads": 4,
        "num_kv_heads": 2,
        "rope_dims": 4,
        "xsa_last_n": 4,
        "ve_dim": 8,
        "ve_layers": "4,5",
        "recur_layers": "2,3",
        "parallel_start_layer": 4,
        "train_seq_len": 16,
    }
    model = GPT(Config(**(fields | overrides)))  # type: ignore[arg-type]
    with torch.no_grad():
        for number, p in enumerate(model.parameters()):
            index = torch.arange(p.numel(), dtype=torch.float64)
            wave = torch.sin(index * 0.7 + number).view(p.shape).float()
            p.copy_(0.2 * wave + (p if p.ndim < 2 or p.size(0) <= 2 else 0))
    return model


def token_ids(batch: int = 2, length: int = 24) -> torch.Tensor:
    return (torch.arange(batch * length).view(batch, length) * 37) % 96


@pytest.mark.parametrize("recurrence", [False, True])
def test_matches_the_reference_implementation(recurrence: bool) -> None:
    config = json.loads(shared_data("golden/forward_11L.json").read_text())
    golden = np.load(shared_data("golden/forward_11L.npz"))
    model = GPT(Config(**config))
    weights = {
        name.removeprefix("param/"): torch.from_numpy(golden[name])
        for name in golden.files
        if name.startswith("param/")
    }
    model.load_state_dict(weights, strict=True)
    model.set_recurrence_active(recurrence)
    suffix = f"recur{int(recurrence)}"
    assert list(model.virtual_layers) == golden[f"virtual_layers_{suffix}"].tolist()

    inputs = torch.from_numpy(golden["input_ids"]).long()
    targets = torch.from_numpy(golden["target_ids"]).long()
    logits = model.forward_logits(inputs).detach().numpy()
    np.testing.assert_allclose(logits, golden[f"logits_{suffix}"], atol=1e-4)
    loss = model(inputs, targets)
    assert loss.item() == pytest.approx(float(golden[f"loss_{suffix}"]), abs=1e-5)
    loss.backward()
    parameters = dict(model.named_parameters())
    gradients = [name for name in golden.files if name.startswith(f"grad_{suffix}/")]
    assert gradients
    for name in gradients:
        wanted = torch.from_numpy(golden[name])
        found = parameters[name.split("/", 1)[1]].grad
        assert found is not None
        assert (found - wanted).norm() / wanted.norm() < 1e-3, name


@pytest.mark.parametrize("recurrence", [False, True])
def test_matches_the_committed_golden(recurrence: bool) -> None:
    golden = json.loads(GOLDEN.read_text())[f"recur{int(recurrence)}"]
    model = formula_model()
    model.set_recurrence_active(recurrence)
    inputs = token_ids()
    logits = model.forward_logits(inputs)
    np.testing.assert_allclose(logits[1, -1, :8].tolist(), golden["logits"], atol=1e-4)
    loss = model(inputs[:, :-1], inputs[:, 1:])
    assert loss.item() == pytest.approx(golden["loss"], abs=1e-5)
    loss.backward()
    norms = {
        name: p.grad.norm().item() for name, p in model.named_parameters() if p.grad is not None
    }
    assert norms == pytest.approx(golden["gradient_norms"], rel=1e-3, abs=1e-6)


def test_record_has_the_published_number_of_parameters() -> None:
    with torch.device("meta"):
        model = GPT(Config())
    assert sum(p.numel() for p in model.parameters()) == 34_401_372


@pytest.mark.parametrize("recurrence", [False, True])
def test_no_token_sees_the_future(recurrence: bool) -> None:
    model = formula_model()
    model.set_recurrence_active(recurrence)
    inputs = token_ids(batch=1)
    changed = inputs.clone()
    changed[0, 15] = (changed[0, 15] + 1) % 96
    before, after = model.forward_logits(inputs), model.forward_logits(changed)
    assert torch.equal(before[:, :15], after[:, :15])
    assert not torch.allclose(before[:, 15:], after[:, 15:])


def test_virtual_layers_hold_the_recurrent_ones_twice() -> None:
    with torch.device("meta"):
        model = GPT(Config())
    assert model.virtual_layers == tuple(range(11))
    model.set_recurrence_active(True)
    assert model.virtual_layers == (0, 1, 2, 3, 4, 5, 4, 5, 6, 7, 8, 9, 10)
    model.set_recurrence_active(False)
    assert model.virtual_layers == tuple(range(11))


def test_every_parameter_gets_a_gradient() -> None:
    model = formula_model()
    inputs = token_ids()
    model(inputs[:, :-1], inputs[:, 1:]).backward()
    idle = [name for name, p in model.named_parameters() if p.grad is None or not p.grad.any()]
    assert idle == []


def test_xsa_leaves_nothing_along_the_own_value() -> None:
    torch.manual_seed(0)
    y, v = torch.randn(2, 5, 4, 8), torch.randn(2, 5, 2, 8)
    left = subtract_self_value(y, v)
    per_query_head = v.repeat_interleave(2, dim=2)
    assert (left * per_query_head).sum(-1).abs().max() < 1e-5
    again = subtract_self_value(left, v)
    torch.testing.assert_close(again, left)


def test_rotation_keeps_lengths_and_depends_on_distance_alone() -> None:
    torch.manual_seed(0)
    config = Config(model_dim=64, num_heads=4, num_kv_heads=2, rope_dims=8, train_seq_len=16)
    tables = rotary_tables(16, config, torch.device("cpu"), torch.float32)
    q, k = torch.randn(16), torch.randn(16)
    turned_q = rotate(q.expand(1, 16, 1, 16), tables, config.rope_dims)
    turned_k = rotate(k.expand(1, 16, 1, 16), tables, config.rope_dims)
    torch.testing.assert_close(turned_q.norm(dim=-1), q.norm().expand(1, 16, 1))
    torch.testing.assert_close(turned_q[..., 8:], q[8:].expand(1, 16, 1, 8))
    near = (turned_q[0, 3, 0] * turned_k[0, 1, 0]).sum()
    far = (turned_q[0, 12, 0] * turned_k[0, 10, 0]).sum()
    torch.testing.assert_close(near, far)


def test_rotary_base_grows_beyond_the_training_length() -> None:
    config = Config(rope_dims=16, train_seq_len=128)
    short = rotary_tables(128, config, torch.device("cpu"), torch.float32)[0]
    long = rotary_tables(256, config, torch.device("cpu"), torch.float32)[0]
    torch.testing.assert_close(short[:, :, :, 0], long[:, :128, :, 0])  # base^0 = 1: unchanged
    slowest = 10_000 * 2 ** (16 / 14)
    expected = np.cos(255 * slowest ** (-14 / 16))
    assert long[0, 255, 0, 7].item() == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize("r", [2, 6, 8, 16])  # 6 does not divide a head of 16
def test_rotation_pairs_each_dim_with_that_half_of_them_away(r: int) -> None:
    torch.manual_seed(0)
    config = Config(model_dim=64, num_heads=4, num_kv_heads=2, rope_dims=r, train_seq_len=16)
    x = torch.randn(2, 16, 3, 16)
    angle = torch.arange(16.0)[:, None] / 10_000 ** (torch.arange(0, r, 2) / r)
    turn = torch.polar(torch.ones_like(angle), -angle)[:, None]
    turned = torch.complex(x[..., : r // 2], x[..., r // 2 : r]) * turn
    expected = torch.cat([turned.real, turned.imag, x[..., r:]], dim=-1)
    tables = rotary_tables(16, config, torch.device("cpu"), torch.float32)
    torch.testing.assert_close(rotate(x, tables, r), expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("r", [0, 6, 8])
def test_gradients_of_turned_heads_are_autograds(r: int) -> None:
    torch.manual_seed(0)
    config = Config(model_dim=64, num_heads=4, num_kv_heads=2, rope_dims=r, train_seq_len=16)
    tables = rotary_tables(16, config, torch.device("cpu"), torch.float32)
    x, gain = torch.randn(2, 16, 4, 16), torch.tensor([5.0, -1.0, 0.0, 2.0])
    leaves = x.requires_grad_(), gain.requires_grad_()
    expected = rotate(rms_norm(x), tables, r) * gain[:, None]
    weights = torch.randn_like(expected)
    wanted = torch.autograd.grad((expected * weights).sum(), leaves)
    found = _Turned.apply(x, gain, *tables, r)
    assert torch.equal(found, expected)
    for a, b in zip(torch.autograd.grad((found * weights).sum(), leaves), wanted, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


def test_tables_made_once_are_those_made_each_time() -> None:
    model, x = formula_model(), token_ids()
    lengths = (5, 16, 24)  # the last is beyond the training length
    logits = [model.forward_logits(x[:, :n]) for n in lengths]
    model.move_to_compute(torch.device("cpu"), torch.float32)
    again = [model.forward_logits(x[:, :n]) for n in lengths]
    for a, b in zip(logits, again, strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize(
    "overrides",
    [
        {"skip_gates_enabled": False},
        {"ve_enabled": False},
        {"parallel_start_layer": None},
        {"tie_embeddings": False},
        {"embedding_dim": 16},
        {"recur_layers": ()},
        {"rope_dims": 0},
        {"ln_scale": False, "xsa_last_n": 0},
        {"num_kv_heads": 4},
    ],
)
def test_every_part_can_be_left_out(overrides: dict[str, object]) -> None:
    model = formula_model(**overrides)
    model.set_recurrence_active(True)
    inputs = token_ids()
    model(inputs[:, :-1], inputs[:, 1:]).backward()
    assert torch.isfinite(model.forward_logits(inputs)).all()


@pytest.mark.parametrize(
    "overrides",
    [
        {},
        {"skip_gates_enabled": False},
        {"ve_layers": "5"},
        {"ve_enabled": False},
        {"parallel_start_layer": None},
        {"parallel_start_layer": 3},
        {"parallel_start_layer": 5},  # the second lane is there for the last layer alone
        {"tie_embeddings": False, "embedding_dim": 16},
        {"ln_scale": False, "xsa_last_n": 0},
        {"num_kv_heads": 4},
        {"num_kv_heads": 1},
        {"num_layers": 1, "ve_layers": "0", "recur_layers": (), "parallel_start_layer": 0},
    ],
)
def test_scored_positions_alone_get_the_nats_that_all_get(overrides: dict[str, object]) -> None:
    model = formula_model(**overrides)
    inputs, targets = token_ids(length=80), token_ids(length=81)[:, 1:] * 5 % 96
    loops = [NO_LOOP, model.config.loop, Loop(model.config.recur_layers, 2), Loop((0,), 1)]
    for loop in dict.fromkeys(loops):
        model.set_loop(loop)
        with torch.no_grad():
            logits = model.forward_logits(inputs).double()
            expected = F.cross_entropy(logits.transpose(1, 2), targets, reduction="none")
            for scored in (1, 64, 79, 80):
                found = model.nats(inputs, targets[:, -scored:])
                assert found.dtype == torch.float32
                difference = (found - expected[:, -scored:]).abs().max().item()
                assert difference < 1e-6, (loop, scored)


def test_the_last_layer_may_run_again() -> None:
    model = formula_model(recur_layers="4,5")
    model.set_recurrence_active(True)
    inputs = token_ids()
    whole = model.nats(inputs, inputs)
    assert (model.nats(inputs, inputs[:, -3:]) - whole[:, -3:]).abs().max() < 1e-6


def test_training_sees_nothing_of_the_choice_of_positions() -> None:
    x = torch.randn(2, 5, 3, requires_grad=True)
    assert last_positions(x, None) is x
    assert torch.equal(last_positions(x, 2), x[:, 3:])


def test_logits_are_capped() -> None:
    model = formula_model(logit_softcap=2.0)
    assert model.forward_logits(token_ids()).abs().max() <= 2.0
