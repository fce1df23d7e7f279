"""The plain implementation that benches compare with computes what the model computes."""

from __future__ import annotations

import pytest
import torch

from jobs.bench.plain import PlainMuon, plain_loss
from model.config import Config
from model.gpt import GPT
from model.muon import Muon
from model.recurrence import NO_LOOP


@pytest.fixture
def model() -> GPT:
    torch.manual_seed(0)
    model = GPT(Config.from_env({"PRESET": "tiny", "VOCAB_SIZE": "64"}))
    with torch.no_grad():
        for p in model.parameters():
            p.add_(0.1 * torch.randn_like(p))
    return model


@pytest.mark.parametrize("recurrence", [False, True])
def test_same_loss_and_gradients(model: GPT, recurrence: bool) -> None:
    tokens = torch.randint(0, 64, (2, 33))
    inputs, targets = tokens[:, :-1], tokens[:, 1:]
    model.set_recurrence_active(recurrence)
    ours = model(inputs, targets)
    ours.backward()
    params = {n: p.detach().clone().requires_grad_() for n, p in model.named_parameters()}
    loop = model.config.loop if recurrence else NO_LOOP
    plain = plain_loss(params, model.config, loop, inputs, targets)
    plain.backward()
    torch.testing.assert_close(plain, ours, rtol=1e-5, atol=1e-6)
    for name, p in model.named_parameters():
        torch.testing.assert_close(params[name].grad, p.grad, rtol=1e-3, atol=1e-5)


def test_same_updates() -> None:
    torch.manual_seed(0)
    config = Config(matrix_lr=0.02, muon_momentum=0.95)
    shapes = [(16, 16), (32, 16), (16, 48)]
    theirs = [torch.randn(shape).requires_grad_() for shape in shapes]
    ours = [torch.nn.Parameter(p.detach().clone()) for p in theirs]
    plain = PlainMuon(theirs, config)
    muon = Muon(ours, lr=0.02, momentum=0.95, backend_steps=5, weight_decay=config.muon_wd)
    for _ in range(3):
        for p, q in zip(theirs, ours, strict=True):
            p.grad = torch.randn_like(p)
            q.grad = p.grad.clone()
        before = [p.detach().clone() for p in theirs]
        plain.step()
        muon.step()
        for p, q, b in zip(theirs, ours, before, strict=True):
            assert (p - q).norm() < 0.02 * (p - b).norm()
