"""Attention by any of torch's implementations, chosen by name or by measurement."""

from __future__ import annotations

import math
from collections.abc import Iterator

import pytest
import torch

from model.attention import SWITCHES, allow_attention, causal_attention, choose_attention, measure
from model.config import Config
from model.fields import ConfigError

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def any_again() -> Iterator[None]:
    yield
    allow_attention("sdpa")


def tiny(attention: str) -> Config:
    return Config.from_env({"PRESET": "tiny", "ATTENTION": attention})


def test_a_cpu_leaves_it_to_torch() -> None:
    for attention in ("auto", "sdpa"):
        choice = choose_attention(tiny(attention), CPU, torch.float32)
        assert (choice.backend, choice.measured_ms) == ("sdpa", {})


def test_a_named_one_is_measured_and_gives_the_same() -> None:
    torch.manual_seed(0)
    q, k, v = torch.randn(2, 9, 4, 8), torch.randn(2, 9, 2, 8), torch.randn(2, 9, 2, 8)
    expected = causal_attention(q, k, v, "sdpa")
    for name in ("math", "flash"):
        choice = choose_attention(tiny(name), CPU, torch.float32)
        assert choice.backend == name
        assert 0 < choice.measured_ms[name] < math.inf
        allow_attention(name)
        torch.testing.assert_close(causal_attention(q, k, v, name), expected)


@pytest.mark.parametrize("name", [*SWITCHES, "sdpa"])
@pytest.mark.parametrize("groups", [1, 2])
def test_last_queries_see_what_they_see_among_all(name: str, groups: int) -> None:
    torch.manual_seed(0)
    q, k, v = (torch.randn(2, 9, heads, 8) for heads in (4, 4 // groups, 4 // groups))
    everything = causal_attention(q, k, v, "sdpa")
    allow_attention(name)  # also what a CPU does not have, and what takes no mask on a GPU
    for last in (1, 4, 8):
        found = causal_attention(q[:, -last:], k, v, name)
        torch.testing.assert_close(found, everything[:, -last:], rtol=0, atol=1e-6)
    assert torch.backends.cuda.flash_sdp_enabled() == (name in ("flash", "sdpa"))
    assert torch.backends.cuda.math_sdp_enabled() == (name in ("math", "sdpa"))


def test_what_is_not_here_cannot_be_chosen() -> None:
    assert measure("fa3", tiny("fa3"), CPU, torch.float32) == math.inf
    with pytest.raises(ConfigError, match="ATTENTION=fa3: cannot run on cpu"):
        choose_attention(tiny("fa3"), CPU, torch.float32)


def test_one_is_allowed_or_all() -> None:
    allow_attention("math")
    assert torch.backends.cuda.math_sdp_enabled()
    assert not torch.backends.cuda.flash_sdp_enabled()
    allow_attention("sdpa")
    assert torch.backends.cuda.flash_sdp_enabled()
    assert torch.backends.cuda.mem_efficient_sdp_enabled()
    assert set(SWITCHES) == {"cudnn", "flash", "efficient", "math"}
