"""Config: presets, the environment, and errors that say what to change."""

from __future__ import annotations

import pytest

from model.config import Config
from model.fields import ConfigError


def test_an_echo_of_before_the_fit_is_read() -> None:
    echo = Config(budget_fit="prune", compressor="brotli").echo()
    for name in ("budget_fit", "sensitivity_sequences", "eval_subset_tokens"):
        del echo[name]
    config = Config.from_echo(echo)
    assert (config.compressor, config.fits_steps) == ("brotli", False)


def test_defaults_are_the_record() -> None:
    config = Config.from_env({})
    assert config == Config()
    assert config.train_batch_tokens == 786_432
    assert config.train_budget_seconds == 590
    assert config.recur_layers == (4, 5)


def test_every_field_is_settable_by_its_environment_name() -> None:
    asked = {
        "PRESET": "tiny",
        "SEED": "7",
        "LR_FLOOR": "0.05",
        "WARMDOWN_SHAPE": "cosine",
        "VE_LAYERS": "1, 2",
        "PARALLEL_START_LAYER": "none",
        "COMPILE": "false",
        "GRAD_ACCUM_STEPS": "",
        "TOKENIZER_PATH": "some/where.model",
        "ITERATIONS": "1e3",
    }
    config = Config.from_env(asked | {"PATH": "/usr/bin", "UNRELATED": "1"})
    assert config.seed == 7
    assert config.lr_floor == 0.05
    assert config.ve_layers == (1, 2)
    assert config.parallel_start_layer is None
    assert config.compile is False
    assert config.grad_accum_steps is None
    assert config.iterations == 1000
    assert str(config.tokenizer_file) == "some/where.model"


def test_environment_wins_over_the_preset_and_the_preset_over_defaults() -> None:
    config = Config.from_env({"PRESET": "tiny", "MODEL_DIM": "64", "EMBEDDING_DIM": "64"})
    assert (config.model_dim, config.num_layers) == (64, 4)


def test_a_start_of_ones_own_replaces_the_presets() -> None:
    config = Config.from_env({"PRESET": "tiny", "RECUR_START_FRAC": "0.35"})
    assert (config.recur_start_step, config.recur_start_frac) == (None, 0.35)
    assert Config.from_env({"PRESET": "tiny"}).recur_start_step == 80


def test_public_alias_keeps_its_meaning() -> None:
    config = Config.from_env({"MIN_LR": "0.1"})
    assert config.lr_floor == 0.1
    assert config.echo()["min_lr"] == 0.1
    with pytest.raises(ConfigError, match="one setting"):
        Config.from_env({"MIN_LR": "0.1", "LR_FLOOR": "0.2"})


def test_echo_round_trips() -> None:
    config = Config.from_env({"PRESET": "tiny", "PARALLEL_START_LAYER": "none"})
    assert Config.from_echo(config.echo()) == config


@pytest.mark.parametrize(
    ("environ", "complaint"),
    [
        ({"PRESET": "huge"}, "PRESET: 'huge' is not one of record, tiny"),
        ({"SEED": "1.5"}, "SEED: expected a whole number, found '1.5'"),
        ({"SEED": "-1"}, "SEED: must be 0 or more"),
        ({"MATRIX_LR": "fast"}, "MATRIX_LR: expected a number"),
        ({"MATRIX_LR": "nan"}, "MATRIX_LR: must be more than 0"),
        ({"TIE_EMBEDDINGS": "maybe"}, "TIE_EMBEDDINGS: expected true or false"),
        ({"WARMDOWN_SHAPE": "stairs"}, "WARMDOWN_SHAPE: 'stairs' is not one of linear, cosine"),
        ({"WARMDOWN_FRAC": "1.5"}, "WARMDOWN_FRAC: must be from 0 to 1"),
        ({"VE_LAYERS": "9,11"}, "VE_LAYERS: must be increasing layers from 0 to 10"),
        ({"RECUR_LAYERS": "3,5"}, "RECUR_LAYERS: must be neighbouring layers"),
        (
            {"RECUR_START_STEP": "100", "RECUR_START_FRAC": "0.35"},
            "RECUR_START_STEP and RECUR_START_FRAC: both say when recurrence starts",
        ),
        ({"RECUR_START_FRAC": "1.5"}, "RECUR_START_FRAC: must be from 0 to 1"),
        ({"RECUR_LOOPS": "17"}, "RECUR_LOOPS: must be 1 to 16"),
        ({"RECUR_STAGES": "soon"}, "RECUR_STAGES: must be stages like 0.35:4,5;"),
        ({"RECUR_STAGES": "0.5:4,5;0.2:4"}, "RECUR_STAGES: must be stages whose shares increase"),
        ({"RECUR_STAGES": "0.5:3,5"}, "RECUR_STAGES: must be stages of neighbouring layers"),
        ({"RECUR_STAGES": "0.5:3x99"}, "RECUR_STAGES: must be stages of 1 to 16 loops"),
        ({"RECUR_STAGES": "0.5:10,11"}, "RECUR_STAGES: must be of layers below 11"),
        ({"LR_FLOOR_MODE": "soft"}, "LR_FLOOR_MODE: 'soft' is not one of auto, clip, reach"),
        ({"PARALLEL_START_LAYER": "2"}, "PARALLEL_START_LAYER: must be in the decoder half"),
        ({"NUM_HEADS": "7"}, "NUM_HEADS: must be a divisor of 512"),
        ({"ROPE_DIMS": "128"}, "ROPE_DIMS: must be even and at most the head dimension 64"),
        ({"VOCAB_SIZE": "70000"}, "VOCAB_SIZE: must be at most 65536"),
        (
            {"EVAL_SUBSET_TOKENS": "2047"},
            "EVAL_SUBSET_TOKENS: must be 0 (score all) or at least EVAL_SEQ_LEN 2048, found 2047",
        ),
        ({"EVAL_SUBSET_TOKENS": "-1"}, "EVAL_SUBSET_TOKENS: must be 0 (score all) or at least"),
    ],
)
def test_wrong_settings_are_named(environ: dict[str, str], complaint: str) -> None:
    with pytest.raises(ConfigError) as caught:
        Config.from_env(environ)
    assert str(caught.value).startswith(complaint)


@pytest.mark.parametrize(
    ("environ", "world", "complaint"),
    [
        ({"TRAIN_SEQ_LEN": "1000"}, 1, "TRAIN_BATCH_TOKENS: must be a multiple"),
        ({"EVAL_STRIDE": "4096"}, 1, "EVAL_STRIDE: must be at most EVAL_SEQ_LEN 2048"),
        ({"MAX_WALLCLOCK_SECONDS": "5"}, 1, "MAX_WALLCLOCK_SECONDS: must be 0 .no cap. or more"),
        ({}, 7, "7 ranks x 1 accumulation steps do not divide evenly"),
    ],
)
def test_runs_that_cannot_work_are_refused(
    environ: dict[str, str], world: int, complaint: str
) -> None:
    with pytest.raises(ConfigError, match=complaint):
        Config.from_env(environ).check_run(world)


def test_eight_ranks_worth_of_batches_by_default() -> None:
    assert [Config().micro_batches(world) for world in (1, 2, 8, 16)] == [8, 4, 1, 1]
