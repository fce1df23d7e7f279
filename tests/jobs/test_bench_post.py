"""The plain way that post-training is timed against, and what the bench says of the two."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from jobs.bench.common import Meter
from jobs.bench.plain_post import plain_pack, plain_prune, plain_quantize, plain_unpack
from jobs.bench.post_stages import bits_per_code, describe_codes, hessian_error
from jobs.bench.post_training import main
from jobs.bench.trained import (
    RECORD_SPREAD,
    correlated_hessian,
    make_trained,
    trained_like,
    with_layers,
)
from model.config import Config
from model.fields import ConfigError
from model.gpt import GPT
from model.gptq import clip_scales, quantize, quantize_all
from model.packed import Packed, pack_model, with_scales
from model.pruning import prune

ROOT = Path(__file__).parents[2]
TINY = Config.from_env({"PRESET": "tiny", "VOCAB_SIZE": "64"})


@pytest.fixture(scope="module")
def packed() -> dict[str, Packed]:
    """A small trained model as it is stored; of several scales, so that their order matters."""
    model, hessians = make_trained(TINY, 0.3)
    coded = quantize_all(dict(model.named_parameters()), hessians)
    return pack_model(model, {name: with_scales("int6", *codes) for name, codes in coded.items()})


@pytest.mark.parametrize("spread", [RECORD_SPREAD, 0.3])
@pytest.mark.parametrize("shape", [(96, 160), (40, 300), (64, 128)])
def test_plain_gptq_gives_what_ours_gives(shape: tuple[int, int], spread: float) -> None:
    torch.manual_seed(0)
    weight, hessian = trained_like(torch.Size(shape), spread), correlated_hessian(shape[1])
    hessian[7], hessian[:, 7] = 0, 0
    ours, plain = quantize(weight, hessian), plain_quantize(weight, hessian)
    torch.testing.assert_close(ours[1], plain[1], rtol=0, atol=0)
    assert (ours[0] != plain[0]).float().mean() < 2e-3  # ties, and what follows from them
    assert not plain[0][:, 7].any()
    error = hessian_error(weight, plain, hessian)
    assert hessian_error(weight, ours, hessian) <= 1.001 * error
    rounded = (weight / plain[1].float()[:, None]).round().clamp(-31, 31)
    assert error < 0.7 * hessian_error(weight, (rounded, plain[1]), hessian)


@pytest.mark.parametrize("count", [0, 1, 1_000, 1 << 40])
def test_plain_pruning_zeroes_the_codes_that_ours_zeroes(
    packed: dict[str, Packed], count: int
) -> None:
    plain = plain_prune(packed, count)
    ours, pruned = prune(packed, count)
    for name, p in ours.items():
        np.testing.assert_array_equal(plain[name].values, p.values)
    changed = sum(int((p.values != packed[name].values).sum()) for name, p in plain.items())
    assert changed == pruned
    assert pruned == count or not any((abs(p.values) == 1).any() for p in _int6(plain))


def test_the_plain_artifact_holds_every_tensor(packed: dict[str, Packed]) -> None:
    data = plain_pack(packed)
    found = plain_unpack(data)
    assert found.keys() == packed.keys()
    for name, p in packed.items():
        torch.testing.assert_close(found[name], p.tensor(), rtol=0, atol=0)
    codes = describe_codes(packed)
    assert codes["entropy_bytes"] < len(data) < 1.1 * sum(p.values.nbytes for p in packed.values())


def test_bits_are_the_entropy() -> None:
    even = np.repeat(np.arange(-4, 4, dtype=np.int8), 6).reshape(6, 8)
    tensors = [Packed(kind="int6", values=even), Packed(kind="int6", values=np.zeros_like(even))]
    assert bits_per_code(tensors) == pytest.approx(1.5)  # of 3 and of 0


def test_made_up_weights_are_like_the_records() -> None:
    torch.manual_seed(0)
    weight = trained_like(torch.Size((512, 512)), RECORD_SPREAD)
    coded = quantize(weight, correlated_hessian(512))
    assert bits_per_code([with_scales("int6", *coded)]) == pytest.approx(3.5, abs=0.1)
    scales = clip_scales(trained_like(torch.Size((512, 512)), 0.3))
    assert (scales[0] < scales[-1]).float().mean() > 0.9  # the clips differ


def test_the_record_with_fewer_layers_is_the_record() -> None:
    assert with_layers(Config(), 11) == Config()
    for layers in (1, 2, 5, 10):
        with torch.device("meta"):
            assert len(GPT(with_layers(Config(), layers)).blocks) == layers


def test_the_meter_tells_what_the_work_adds() -> None:
    kept = np.ones(20 << 17)  # 20 MiB, there before
    meter = Meter(repeats=3)
    result = meter.time(lambda: np.ones(40 << 17).sum() + kept[0])
    assert result == (40 << 17) + 1
    assert len(meter.seconds) == 3
    assert 40 << 20 <= meter.peak_bytes + (1 << 20) < 60 << 20


def test_a_whole_bench(tmp_path: Path) -> None:
    small = ["--env", "VOCAB_SIZE=64", "--env", "MODEL_DIM=64", "--env", "EMBEDDING_DIM=64"]
    small += ["--env", "GPTQ_MIN_WEIGHTS=1024", "--layers", "2"]
    path = tmp_path / "größe.json"
    command = [sys.executable, "-m", "jobs.bench.post_training", "--preset", "tiny", *small]
    command += ["--plain", "--repeats", "1", "--json", str(path)]
    done = subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, timeout=200, check=False
    )
    assert done.returncode == 0, done.stderr
    facts: dict[str, Any] = json.loads(path.read_text())
    rows = {row["stage"]: row for row in facts["rows"]}
    for name in ("gptq", "pack rans", "unpack rans", "pack brotli", "unpack brotli", "prune"):
        assert rows[name]["median_seconds"] > 0
        assert rows[name]["peak_bytes"] >= 0
        assert rows[name]["plain"]["median_seconds"] > 0
        assert name in done.stdout
        assert f"{name}: " in done.stderr
    fitted = rows["prune to fit"]
    assert fitted["bytes"] <= fitted["budget"] < rows["pack rans"]["bytes"]
    assert fitted["pruned"] > 0
    assert fitted["packings"] >= 2
    assert rows["pack smallest"]["bytes"] == min(row["bytes"] for row in facts["artifacts"][:2])
    assert rows["fit steps"]["bytes"] <= rows["fit steps"]["budget"]
    assert rows["fit steps"]["plain"] is None
    assert rows["gptq"]["plain"]["different_codes"] < 2e-3
    assert rows["gptq"]["plain"]["our_hessian_error_by_plain"] <= 1.001
    assert [row["codec"] for row in facts["artifacts"]] == ["rans", "brotli", "plain"]
    assert facts["plain_total_seconds"] > 2 * rows["pack rans"]["plain"]["median_seconds"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--spread", "0"], "--spread: must be more than 0, and finite; found 0.0"),
        (["--spread", "inf"], "--spread: must be more than 0, and finite; found inf"),
        (["--layers", "0"], "NUM_LAYERS: must be more than 0, found 0"),
    ],
)
def test_bad_options_are_refused(
    arguments: list[str],
    message: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(sys, "argv", ["post_training", *arguments])
    assert main() == 2
    assert capsys.readouterr().err == f"error: {message}\n"


def test_a_model_that_gptq_has_nothing_to_do_in_is_refused() -> None:
    config = dataclasses.replace(TINY, gptq_min_weights=99_999_999)
    with pytest.raises(ConfigError, match="99999999 is more than any matrix has; lower it"):
        make_trained(config, RECORD_SPREAD)


def _int6(packed: dict[str, Packed]) -> list[Packed]:
    return [p for p in packed.values() if p.kind == "int6"]
