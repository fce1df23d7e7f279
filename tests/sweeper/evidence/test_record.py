"""Claims by their digits, and what names say of seeds."""

from __future__ import annotations

from pathlib import Path

import pytest

from sweeper.evidence.choose import PERHAPS_SEED, seed_in_name
from sweeper.evidence.claims import claim_of, seed_of
from sweeper.evidence.record import Claimed, LoggedRun


def claimed(text: str) -> Claimed:
    return Claimed(value=float(text), text=text, where="here")


@pytest.mark.parametrize(
    ("text", "digits"),
    [("1.0924", 4), ("1", 0), ("1e3", 0), ("9e-05", 5), ("1.5e-3", 4), ("15.99E6", 0), ("1.50", 2)],
)
def test_digits_are_those_after_the_point(text: str, digits: int) -> None:
    assert claimed(text).digits == digits


@pytest.mark.parametrize(
    ("text", "value", "agrees"),
    [
        ("1.0924", 1.09244, True),
        ("1.0924", 1.09246, False),  # would be 1.0925
        ("1.0924", 1.09235, True),
        ("1.09243", 1.0924399, True),  # cut off, of five digits
        ("1.09243", 1.0924299, True),
        ("1.09243", 1.092441, False),
        ("1.1", 1.1498, True),
        ("1.1", 1.1501, False),
        ("1.092", 1.0929, False),
        ("9e-05", 0.000435, False),
        ("9e-05", 0.000091, True),
        ("15984850", 15984850.0, True),
        ("15984850", 15984851.0, False),
    ],
)
def test_a_claim_agrees_with_what_rounds_to_it(text: str, value: float, agrees: bool) -> None:
    assert claimed(text).agrees(value) is agrees


@pytest.mark.parametrize(
    ("key", "seed"),
    [
        *(("1337", 1337), ("seed_42", 42), ("seed1", 1), ("s7", 7), ("1337_aggressive", 1337)),
        *(("42 (2)", 42), ("run1", None), ("run 3", None), ("val_bpb_mean_3seed", None)),
        *(("final_int6_bpb", None), ("mean", None)),
    ],
)
def test_the_seed_in_a_runs_key(key: str, seed: int | None) -> None:
    assert seed_of(key) == seed


@pytest.mark.parametrize(
    ("stem", "seed", "perhaps"),
    [
        *(("train_seed42", 42, None), ("seed1", 1, None), ("log_seed_7_h100x8", 7, None)),
        *(("x_A600X2_s1337", 1337, None), ("train_1337", None, 1337), ("log_11L", None, None)),
        *(("train_8xh100", None, None), ("train_20260406", None, None), ("train_log", None, None)),
    ],
)
def test_the_seed_in_a_logs_name(stem: str, seed: int | None, perhaps: int | None) -> None:
    assert seed_in_name(stem) == seed
    found = PERHAPS_SEED.search(stem)
    assert (None if found is None else int(found[1])) == perhaps


def test_two_rows_of_one_seed_are_two_claims() -> None:
    rows = [{"seed": 42, "val_bpb": 1.1}, {"seed": 42, "val_bpb": 1.2}, {"seed": 7, "val_bpb": 1.3}]
    claim = claim_of({"seed_results": rows})
    scores = {key: facts["val_bpb"].value for key, facts in claim.per_seed.items()}
    assert scores == {"42": 1.1, "42 (2)": 1.2, "7": 1.3}
    assert claim.seeds == (42, 7)


def test_a_mean_among_results_is_no_run() -> None:
    claim = claim_of({"results": {"val_bpb_mean_3seed": 1.1, "run1": {"val_bpb": 1.2}}})
    assert claim.per_seed.keys() == {"run1"}
    assert claim.val_bpb is not None
    assert claim.val_bpb.value == 1.1


def test_a_loss_that_is_no_number_gives_no_ratio() -> None:
    nan = float("nan")
    assert LoggedRun(path=Path("x"), val_bpb=1.1, val_loss=nan).nats_per_bpb is None
    assert LoggedRun(path=Path("x"), val_bpb=nan, val_loss=2.5).nats_per_bpb is None
