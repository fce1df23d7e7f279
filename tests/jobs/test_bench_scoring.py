"""The plain way that scoring is timed against, and what the bench says of the two."""

from __future__ import annotations

import math

import pytest
import torch

from jobs.bench.plain import plain_loss
from jobs.bench.scoring import arithmetic_saved, bench, filled_model, plain_nats, print_table
from model.config import Config
from model.recurrence import NO_LOOP

SMALL = {"preset": "tiny", "vocab_size": 64, "train_seq_len": 32, "eval_seq_len": 32}


def small_config() -> Config:
    return Config.from_env(
        {name.upper(): str(value) for name, value in SMALL.items()} | {"EVAL_STRIDE": "8"}
    )


@pytest.mark.parametrize("recurrence", [False, True])
def test_the_plain_way_is_that_of_the_plain_implementation(recurrence: bool) -> None:
    config = small_config()
    model = filled_model(config)
    model.set_recurrence_active(recurrence)
    tokens = torch.randint(0, 64, (2, 33))
    inputs, targets = tokens[:, :-1], tokens[:, 1:]
    with torch.no_grad():
        nats = plain_nats(model, inputs, targets, 32)
        loop = config.loop if recurrence else NO_LOOP
        expected = plain_loss(dict(model.named_parameters()), config, loop, inputs, targets)
    assert nats.mean().item() == pytest.approx(expected.item(), abs=1e-5)
    assert torch.equal(plain_nats(model, inputs, targets, 3), nats[:, -3:])
    assert nats.std() > 0.1  # the weights say something


def test_the_record_is_scored_without_a_good_part_of_the_arithmetic() -> None:
    config = Config()
    for loop in (NO_LOOP, config.loop):
        assert 0.13 < arithmetic_saved(config, loop, config.eval_stride) < 0.3
    assert arithmetic_saved(config, NO_LOOP, config.eval_seq_len) == 0


def test_both_ways_agree_where_they_are_timed(capsys: pytest.CaptureFixture[str]) -> None:
    facts = bench(small_config(), windows=2, repeats=2)
    assert [(row["compute_dtype"], row["what"]) for row in facts["rows"]] == [
        (dtype, f"{word} recurrence")
        for dtype in ("float32", "bfloat16")
        for word in ("without", "with")
    ]
    for row in facts["rows"]:
        exact = row["compute_dtype"] == "float32"
        assert row["largest_difference_nats"] < (1e-5 if exact else 0.1)
        assert row["score_difference_nats"] <= row["largest_difference_nats"]
        assert 0 < row["times_plain_range"][0] <= row["times_plain"] <= row["times_plain_range"][1]
        assert math.isfinite(row["scored_tokens_per_s"])
    print_table(facts)
    assert capsys.readouterr().out.count(" recurrence ") == 4
