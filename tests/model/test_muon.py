"""MuonEq-R by reference, by property, and shared over ranks."""

from __future__ import annotations

import numpy as np
import torch
from torch import nn

from model.config import Config
from model.gpt import GPT
from model.muon import Muon, build_optimizers, muon_update, orthogonalise
from tests.model.conftest import shared_data


def test_three_steps_match_the_reference() -> None:
    golden = np.load(shared_data("golden/muoneq_r.npz"))
    params = [nn.Parameter(torch.from_numpy(golden[f"param0/{i}"].copy())) for i in range(3)]
    optimizer = Muon(params, lr=0.02, momentum=0.95, backend_steps=5, weight_decay=0.09)
    for step in range(3):
        before = [p.detach().clone() for p in params]
        for i, p in enumerate(params):
            p.grad = torch.from_numpy(golden[f"grad{step}/{i}"])
        optimizer.step()
        for i, p in enumerate(params):
            wanted = torch.from_numpy(golden[f"param{step + 1}/{i}"])
            update = (wanted - before[i]).norm()
            assert (p - wanted).norm() / update < 2e-2, (step, i)


def test_singular_values_come_out_near_one() -> None:
    torch.manual_seed(0)
    for shape in ((3, 64, 128), (3, 128, 64), (2, 96, 96)):
        values = torch.linalg.svdvals(orthogonalise(torch.randn(shape), steps=5).float())
        assert values.max() < 1.3
        assert values.median() > 0.6


def test_a_batch_is_its_matrices_one_by_one() -> None:
    torch.manual_seed(0)
    batch = torch.randn(4, 48, 32)
    together = muon_update(batch, steps=5)
    alone = torch.cat([muon_update(matrix[None], steps=5) for matrix in batch])
    torch.testing.assert_close(together, alone)


def test_rows_of_any_length_count_alike() -> None:
    torch.manual_seed(0)
    gradient = torch.randn(1, 32, 64)
    stretched = gradient * torch.logspace(-3, 3, 32)[None, :, None]
    torch.testing.assert_close(muon_update(gradient, 5), muon_update(stretched, 5))


def test_weight_decay_is_decoupled() -> None:
    p = nn.Parameter(torch.ones(8, 8))
    p.grad = torch.zeros(8, 8)
    Muon([p], lr=0.1, momentum=0.9, backend_steps=5, weight_decay=0.5).step()
    torch.testing.assert_close(p.detach(), torch.full((8, 8), 0.95))


def test_every_parameter_has_one_optimiser_and_the_recipes_rate() -> None:
    config = Config.from_env({"PRESET": "tiny", "TIE_EMBEDDINGS": "0"})
    model = GPT(config)
    names = {id(p): name for name, p in model.named_parameters()}
    rates: dict[str, float] = {}
    for optimizer in build_optimizers(model, config):
        for group in optimizer.param_groups:
            for p in group["params"]:
                assert names[id(p)] not in rates
                rates[names[id(p)]] = group["base_lr"]
    assert rates.keys() == set(names.values())
    assert rates["blocks.0.attn.c_q.weight"] == rates["ve_shared.proj.weight"] == 0.02
    assert rates["lm_head.weight"] == 0.008
    assert rates["tok_emb.weight"] == rates["ve_shared.embed.weight"] == 0.6
    assert rates["skip_weights"] == rates["ve_shared.scale"] == config.scalar_lr
