"""Every graph that a run uses is compiled before its clock starts."""

from __future__ import annotations

import shutil

import numpy as np
import pytest
import torch

from model.config import Config
from model.gpt import GPT
from model.graphs import Graphs
from model.recurrence import NO_LOOP
from tests.model.conftest import Train

CONFIG = Config.from_env({"PRESET": "tiny", "VOCAB_SIZE": "64", "COMPILE": "1", "NUM_LAYERS": "4"})


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile on a CPU needs g++")
def test_recurrence_starts_without_compiling(train: Train) -> None:
    two_layers = {"num_layers": 2, "ve_layers": 1, "parallel_start_layer": 1, "recur_layers": 1}
    settings = two_layers | {"iterations": 6, "recur_start_step": 3, "val_loss_every": 2}
    eager = train("eager", **settings)
    compiled = train("compiled", compile=1, **settings)
    assert compiled.returncode == 0, compiled.stderr
    assert [event["message"] for event in compiled.of_kind("warning")] == []
    assert compiled.stdout.count("recurrence:activated") == 1
    np.testing.assert_allclose(compiled.losses, eager.losses, rtol=2e-3)
    assert compiled.result["val_bpb"] == pytest.approx(eager.result["val_bpb"], rel=5e-3)


def test_a_late_graph_is_counted() -> None:
    torch.manual_seed(0)
    model = GPT(CONFIG)
    graphs = Graphs(model, CONFIG, torch.device("cpu"), backend="eager")
    tokens = torch.randint(0, 64, (2, 17))

    def made_by(loop: object) -> int:
        before = graphs.made()
        model.set_loop(loop)  # type: ignore[arg-type]
        graphs.network(tokens[:, :-1], tokens[:, 1:]).backward()
        return graphs.made() - before

    assert [made_by(loop) for loop in (NO_LOOP, CONFIG.loop)] == [1, 1]
    assert [made_by(loop) for loop in (NO_LOOP, CONFIG.loop, NO_LOOP)] == [0, 0, 0]


def test_scores_of_unforeseen_shapes_are_not_compiled() -> None:
    torch.manual_seed(0)
    model = GPT(CONFIG)
    graphs = Graphs(model, CONFIG, torch.device("cpu"), backend="eager")
    before = graphs.made()
    graphs.warm_scoring((3, 16, 4))
    made = graphs.made()
    assert made - before == 1  # without a break where queries are fewer than keys
    tokens = torch.randint(0, 64, (3, 17))
    for windows, scored in ((3, 4), (2, 4), (3, 16), (1, 5)):
        inputs, targets = tokens[:windows, :-1], tokens[:windows, -scored:]
        torch.testing.assert_close(graphs.nats(inputs, targets), model.nats(inputs, targets))
    assert graphs.made() == made


def test_nothing_is_compiled_where_it_does_not_pay() -> None:
    model = GPT(CONFIG)
    graphs = Graphs(model, Config.from_env({"PRESET": "tiny"}), torch.device("cpu"))
    assert not graphs.compiling
    assert graphs.network is model
    graphs.warm_scoring((1, 16, 16))
    assert not graphs._shapes
