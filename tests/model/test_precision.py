"""What a run computes in: as asked, else what the machine does faster."""

from __future__ import annotations

import pytest
import torch

from model import precision
from model.config import Config
from model.precision import choose_dtype, matmul_seconds

CPU = torch.device("cpu")


@pytest.mark.parametrize(("full", "half", "chosen"), [(1.0, 0.5, "bfloat16"), (1.0, 0.9, "float32"),
                                                      (1.0, 4.0, "float32")])  # fmt: skip
def test_a_cpu_takes_what_it_does_faster(
    monkeypatch: pytest.MonkeyPatch, full: float, half: float, chosen: str
) -> None:
    seconds = {torch.float32: full, torch.bfloat16: half}
    monkeypatch.setattr(precision, "matmul_seconds", lambda device, dtype, size: seconds[dtype])
    assert choose_dtype(Config(), CPU) == chosen


def test_what_is_asked_for_is_taken() -> None:
    assert choose_dtype(Config(compute_dtype="bfloat16"), CPU) == "bfloat16"
    assert choose_dtype(Config.from_env({"PRESET": "tiny"}), CPU) == "float32"
    assert choose_dtype(Config(), torch.device("cuda")) == "bfloat16"


def test_products_take_time() -> None:
    assert 0 < matmul_seconds(CPU, torch.float32, 16) < 60
