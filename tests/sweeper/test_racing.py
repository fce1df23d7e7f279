"""Which seed runs next, who is out and who leads, by pure functions of made-up scores."""

from __future__ import annotations

import math
import random
from collections.abc import Mapping, Sequence

import numpy as np
import pytest

from sweeper.racing import (
    PRIOR,
    Candidate,
    Next,
    Noise,
    Verdict,
    after_seed,
    divide,
    gap,
    incumbent,
    next_run,
    pooled_noise,
    rank,
)
from sweeper.stats import t_quantile
from sweeper.surrogate import Axis

SEEDS = (42, 314, 999)
STOP = Verdict.STOP
AXES = [Axis(name="frac", low=0.3, high=0.9), Axis(name="shape", choices=("linear", "cosine"))]
NOISE = Noise(sigma=0.0007, df=10)


def candidate(
    number: int,
    scores: Mapping[int, float] | Sequence[float] = (),
    *,
    frac: float | None = None,
    running: Sequence[int] = (),
    constraint: float | None = None,
    failed: bool = False,
) -> Candidate:
    """Scores in the seeds' order, or by seed; of its own place unless one is given."""
    by_seed = scores if isinstance(scores, Mapping) else dict(zip(SEEDS, scores, strict=False))
    return Candidate(
        number=number,
        params={"frac": 0.35 + 0.05 * number if frac is None else frac, "shape": "linear"},
        scores=by_seed,
        running=frozenset(running),
        constraint=constraint,
        failed=failed,
    )


# ---- noise


def test_without_replicates_the_noise_is_what_was_known_before() -> None:
    assert pooled_noise([]) == PRIOR
    assert pooled_noise([candidate(0, [1.0]), candidate(1, [2.0])], NOISE) == NOISE


def test_the_noise_is_pooled_by_sums_of_squares() -> None:
    # Two candidates, three shared seeds: (2 − 1) × (3 − 1) degrees of freedom are left.
    scores = np.array([[1.0, 1.1, 1.3], [2.0, 2.3, 2.2]])
    rest = scores - scores.mean(1, keepdims=True) - scores.mean(0) + scores.mean()
    found = pooled_noise([candidate(n, row) for n, row in enumerate(scores.tolist())], NOISE)
    assert found.df == 12
    expected = (10 * NOISE.sigma**2 + float(np.sum(rest**2))) / 12
    assert found.sigma == pytest.approx(math.sqrt(expected), rel=1e-9)


def test_what_a_seed_does_to_all_alike_is_no_noise() -> None:
    effects = {42: 0.0, 314: 0.5, 999: -0.25}
    exact = [candidate(n, {s: 1 + n + e for s, e in effects.items()}) for n in range(4)]
    found = pooled_noise(exact, NOISE)
    assert found.sigma == pytest.approx(NOISE.sigma * math.sqrt(10 / 16), rel=1e-6)


def test_many_replicates_find_the_noise_that_is_there() -> None:
    draw = random.Random(1)
    many = [candidate(n, [draw.gauss(1, 0.002) for _ in SEEDS]) for n in range(200)]
    assert pooled_noise(many, NOISE).sigma == pytest.approx(0.002, rel=0.1)


def test_candidates_of_different_seeds_are_pooled_too() -> None:
    some = [candidate(0, {42: 1.0, 314: 1.1}), candidate(1, {999: 2.0, 7: 2.4})]
    # Nothing is left beside two means and four seeds, of which two tell nothing apart.
    assert pooled_noise(some, NOISE).df == pytest.approx(10)


# ---- one candidate against the best


def test_a_gap_is_of_the_seeds_that_both_have() -> None:
    one, other = candidate(0, {42: 1.2, 314: 1.4, 999: 9.0}), candidate(1, {42: 1.0, 314: 1.1})
    found = gap(one, other, NOISE, 0.95)
    assert found is not None
    assert found.seeds == 2
    assert found.mean == pytest.approx(0.25)
    half = t_quantile(0.95, NOISE.df) * NOISE.sigma
    assert found.low == pytest.approx(0.25 - half)
    assert gap(one, candidate(2, {7: 1.0}), NOISE) is None


def test_a_gap_holds_with_the_confidence_that_it_says() -> None:
    draw, above = random.Random(0), 0
    for _ in range(2_000):
        pair = [candidate(n, [draw.gauss(1, NOISE.sigma) for _ in SEEDS]) for n in range(2)]
        found = gap(pair[0], pair[1], Noise(sigma=NOISE.sigma, df=1e6), 0.9)
        assert found is not None
        above += found.low > 0
    assert above / 2_000 == pytest.approx(0.1, abs=0.02)


BEST = candidate(9, [1.0, 1.0, 1.0])
CLEAR = t_quantile(0.95, NOISE.df) * NOISE.sigma * math.sqrt(2)


@pytest.mark.parametrize(
    ("one", "best", "verdict"),
    [
        (candidate(0, [1.0, 1.0, 1.0]), BEST, Verdict.DONE),
        (candidate(0, [5.0, 5.0, 5.0]), BEST, Verdict.DONE),  # bad, but it has all it was to have
        (candidate(0, [1.0]), None, Verdict.MORE),
        (candidate(0, []), BEST, Verdict.MORE),
        (candidate(0, [1 + 0.99 * CLEAR]), BEST, Verdict.MORE),
        (candidate(0, [1 + 1.01 * CLEAR]), BEST, Verdict.STOP),
        (candidate(0, [0.5]), BEST, Verdict.MORE),
        # The same mean difference is surer over two seeds.
        (candidate(0, [1 + 0.8 * CLEAR] * 2), BEST, Verdict.STOP),
        (candidate(0, [0.5], constraint=1.0), BEST, Verdict.STOP),
        (candidate(0, [0.5], constraint=0.0), BEST, Verdict.MORE),
        (candidate(0, [0.5], failed=True), BEST, Verdict.STOP),
        (candidate(9, [5.0]), BEST, Verdict.MORE),  # nobody races itself
    ],
)
def test_after_a_seed(one: Candidate, best: Candidate | None, verdict: Verdict) -> None:
    assert after_seed(one, best, 3, NOISE) is verdict


def test_a_margin_and_more_confidence_stop_later() -> None:
    one = candidate(0, [1 + 1.01 * CLEAR])
    assert after_seed(one, BEST, 3, NOISE, margin=0.0005) is Verdict.MORE
    assert after_seed(one, BEST, 3, NOISE, confidence=0.99) is Verdict.MORE


def test_the_incumbent_has_all_its_seeds_and_fits() -> None:
    field = [
        candidate(0, [0.1, 0.1]),
        candidate(1, [0.2, 0.2, 0.2], constraint=1),
        candidate(2, [0.2, 0.2, 0.2], failed=True),
        candidate(3, [0.9, 0.9, 0.9], constraint=-5),
        candidate(4, [0.9, 0.9, 0.9]),
    ]
    best = incumbent(field, 3)
    assert best is not None
    assert best.number == 3
    assert incumbent(field[:3], 3) is None


# ---- all candidates together


def test_ranked_are_those_that_may_win_and_have_a_score() -> None:
    field = [
        candidate(0, [1.001]),
        candidate(1, [1.0], constraint=1),
        candidate(2, []),
        candidate(3, [1.0], failed=True),
        candidate(4, [1.002]),
    ]
    assert {each.number for each in rank(field, AXES, NOISE)} == {0, 4}
    assert rank([field[2]], AXES, NOISE) == []
    assert rank([], AXES, NOISE) == []


def test_far_apart_scores_rank_as_they_are() -> None:
    field = [candidate(n, [score] * 3) for n, score in enumerate([1.05, 1.01, 1.03])]
    ranked = rank(field, AXES, NOISE)
    assert [each.number for each in ranked] == [1, 2, 0]
    assert [each.mean for each in ranked] == pytest.approx([1.01, 1.03, 1.05], abs=0.001)
    assert all(0 < each.sd < 0.0007 for each in ranked)


def test_a_lucky_seed_among_better_neighbours_does_not_lead() -> None:
    # A smooth valley around 0.6, each place seen once; at its edge one run had luck of 2.5 sigma.
    draw = random.Random(3)
    field = []
    for number in range(25):
        frac = 0.3 + 0.6 * number / 24
        true = 1.09 + 0.06 * (frac - 0.6) ** 2
        field.append(candidate(number, [true + draw.gauss(0, 0.0003)], frac=frac))
    lucky = 1.09 + 0.06 * (field[4].params["frac"] - 0.6) ** 2 - 0.0045  # type: ignore[operator]
    field[4] = candidate(4, [lucky], frac=0.4)
    assert min(field, key=lambda each: each.scores[42]).number == 4
    first, *_ = rank(field, AXES, NOISE)
    assert first.number != 4
    assert first.mean > lucky


def test_more_seeds_of_one_make_it_surer() -> None:
    field = [candidate(n, [1.0 + 0.001 * n] * (1 + 2 * (n == 1))) for n in range(4)]
    sds = {each.number: each.sd for each in rank(field, AXES, NOISE)}
    assert sds[1] < min(sds[0], sds[2], sds[3])


def test_evidence_beside_informs_and_is_not_ranked_nor_counted_twice() -> None:
    field = [candidate(0, [1.0]), candidate(1, [1.0])]
    beside = [candidate(0, [1.0]), candidate(1, [1.0])]
    assert rank(field, AXES, NOISE, beside=beside) == rank(field, AXES, NOISE)
    neighbour = candidate(7, [0.995], frac=0.41)
    ranked = rank(field, AXES, NOISE, beside=[*beside, neighbour])
    assert [each.number for each in ranked] == [1, 0]  # 1 is its neighbour


def test_the_order_of_the_candidates_changes_no_belief() -> None:
    draw = random.Random(5)
    field = [candidate(n, [draw.gauss(1, 0.002)]) for n in range(10)]
    one, other = rank(field, AXES, NOISE), rank(field[::-1], AXES, NOISE)
    assert [each.number for each in one] == [each.number for each in other]
    assert [each.mean for each in one] == pytest.approx([each.mean for each in other], abs=1e-6)


# ---- the race


def next_of(field: Sequence[Candidate], noise: Noise = NOISE) -> Next | None:
    return next_run(field, SEEDS, AXES, noise, margin=0.0, confidence=0.9)


def test_first_each_gets_one_seed() -> None:
    field = [candidate(0, [1.0, 1.0]), candidate(1, running=[42]), candidate(2)]
    assert next_of(field) == Next(number=2, seed=42)


def test_the_leader_gets_all_its_seeds_in_their_order() -> None:
    field = [candidate(0, [1.01]), candidate(1, [1.0]), candidate(2, [1.02])]
    assert next_of(field) == Next(number=1, seed=314)
    field[1] = candidate(1, [1.0], running=[314])
    assert next_of(field) == Next(number=1, seed=999)


def test_then_whoever_may_yet_be_better_gets_one() -> None:
    field = [
        candidate(0, [1.0, 1.0, 1.0], frac=0.6),
        candidate(1, [1.0015], frac=0.4),  # hardly
        candidate(2, [1.0003], frac=0.8),  # may be
        candidate(3, [1.01], frac=0.3),  # surely not
    ]
    assert next_of(field) == Next(number=2, seed=314)


def test_what_is_surely_worse_or_cannot_win_gets_none() -> None:
    field = [
        candidate(0, [1.0, 1.0, 1.0]),
        candidate(1, [1.01]),
        candidate(2, [0.99], constraint=1),
        candidate(3, [0.99], failed=True),
    ]
    assert next_of(field) is None


def test_while_the_leaders_seeds_run_the_others_get_theirs() -> None:
    field = [candidate(0, [1.0], running=[314, 999]), candidate(1, [1.0002])]
    assert next_of(field) == Next(number=1, seed=314)


def test_all_seeds_run_or_in_flight_leave_nothing_to_do() -> None:
    field = [candidate(0, [1.0], running=[314, 999]), candidate(1, [1.0, 1.0, 1.0])]
    assert next_of(field) is None
    assert next_of([candidate(0, failed=True), candidate(1, [1.0], constraint=1)]) is None
    assert next_of([]) is None


def test_the_last_runs_go_to_who_can_have_all_its_seeds() -> None:
    def with_left(field: Sequence[Candidate], left: int) -> Next | None:
        return next_run(field, SEEDS, AXES, NOISE, left=left)

    field = [candidate(0, [1.0]), candidate(1, [1.0008, 1.0008])]
    assert with_left(field, 2) == Next(number=0, seed=314)
    assert with_left(field, 1) == Next(number=1, seed=999)
    assert with_left([candidate(0, [1.0]), candidate(1, [1.0008])], 1) is None
    # Once somebody may win, they go where they are of most use.
    field[1] = candidate(1, [1.0008] * 3)
    assert with_left(field, 1) == Next(number=0, seed=314)


@pytest.mark.parametrize("slots", [1, 3])
@pytest.mark.parametrize("seed", range(5))
def test_a_race_ends_with_a_leader_that_has_all_its_seeds(seed: int, slots: int) -> None:
    draw = random.Random(seed)
    true = [1.0 + draw.uniform(0, 0.003) for _ in range(8)]
    scores: list[dict[int, float]] = [{42: t + draw.gauss(0, 0.0007)} for t in true]
    flying: list[Next] = []

    def field() -> list[Candidate]:
        running = [[run.seed for run in flying if run.number == n] for n in range(8)]
        return [candidate(n, scores[n], running=running[n]) for n in range(8)]

    runs = 0
    while True:
        while len(flying) < slots and (run := next_of(field(), NOISE)) is not None:
            assert run.seed not in scores[run.number]
            assert run not in flying
            flying.append(run)
        if not flying:
            break
        ended = flying.pop(draw.randrange(len(flying)))
        scores[ended.number][ended.seed] = true[ended.number] + draw.gauss(0, 0.0007)
        runs += 1
    best = incumbent(field(), len(SEEDS))
    assert best is not None
    out = {n for n in range(8) if after_seed(field()[n], best, 3, NOISE, confidence=0.9) is STOP}
    leader = next(each for each in rank(field(), AXES, NOISE) if each.number not in out)
    assert len(scores[leader.number]) == len(SEEDS)
    assert 2 <= runs < 16


# ---- a budget's shares


@pytest.mark.parametrize("runs", [6, 7, 11, 12, 15, 30, 60, 120, 1_000])
def test_shares_add_up_and_leave_the_race_enough(runs: int) -> None:
    shares = divide(runs)
    total = shares.screen_runs + shares.race_runs + shares.confirm_top * shares.confirm_seeds
    assert total == runs
    assert shares.screen_runs >= shares.race_top >= 1
    assert shares.race_runs >= 2
    assert shares.confirm_seeds >= 2
    assert shares.confirm_top <= shares.race_top


def test_too_few_runs_are_refused() -> None:
    with pytest.raises(ValueError, match="5 runs are too few"):
        divide(5)
