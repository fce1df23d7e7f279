"""Meeting a byte budget by step sizes: as little harm as the bytes allow.

All steps hang on one constant (model/steps.py), and the artifact's size falls smoothly with it:
a few roundings find the constant, no search by compressing does.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np

from model.artifact import ArtifactError
from model.packed import Packed, coded_planes
from model.ranks import Ranks
from model.rans import SPREADS, CodeModel, Plane, count_codes, grouped_codes, model_table
from model.steps import Curved, round_all

# The rate of Gaussian codes in bits is log2 of their spread and this, unless they are few.
GAUSSIAN_BITS = 2.047  # half of log2(2 π e)
# log2 of the spread of a matrix's codes: eight bits hold no more than the one, and nothing is left
# of a matrix far below the other.
FINEST, COARSEST = 5.0, -10.0
TOLERANCE = 0.001  # how far below the budget an artifact may end
SAMPLED_ROWS = 8  # one in so many, for a first idea of the constant
SAMPLED_ROUNDS = 2
MAX_ROUNDS = 10
# Sizes at constants closer than this differ by chance: rows change their steps one by one.
LEAST_OCTAVES = 0.01


Point = tuple[float, float]  # log2 of a constant, and the size in bytes there


@dataclass(kw_only=True)
class _Search:
    """Steps towards the constant (as its log2) at which the size is `aim` bytes.

    Secants, and between a constant that is known to be too fine and one too coarse the middle
    where a secant leads out of them.
    """

    low: float
    high: float
    steepest: float  # bytes per octave, if every code saves a bit; negative
    aim: float

    def __post_init__(self) -> None:
        self.slope = self.steepest
        self.forget()

    def forget(self) -> None:
        """Take the sizes so far for estimates: only their slope holds."""
        self.last: Point | None = None
        self.fine, self.coarse = self.low, self.high
        self.tried: set[float] = set()

    def next(self, at: float, size: float) -> float:
        """Where to try next, knowing the size `at` one more constant."""
        if self.last is not None and abs(at - self.last[0]) > LEAST_OCTAVES:
            found = (size - self.last[1]) / (at - self.last[0])
            # Codes cannot save more than a bit an octave; fewer where many of them are 0.
            self.slope = min(max(found, self.steepest), 0.05 * self.steepest)
        self.last = at, size
        self.tried.add(at)
        if size > self.aim:
            self.fine = max(self.fine, at)
        else:
            self.coarse = min(self.coarse, at)
        there = at + (self.aim - size) / self.slope
        if self.fine < there < self.coarse:
            return there
        # Out of what is known: to an end that has not been tried, else to the middle.
        end = self.coarse if there >= self.coarse else self.fine
        return end if end not in self.tried else (self.fine + self.coarse) / 2


def fit_by_steps(
    matrices: Mapping[str, Curved],
    encode: Callable[[dict[str, Packed]], bytes],
    ranks: Ranks,
    *,
    budget: int,
    on_round: Callable[[int, int], None] = lambda *_: None,
) -> tuple[dict[str, Packed], bytes]:
    """The codes of all matrices whose artifact is at most `budget` bytes, and the artifact.

    matrices: this rank's share; `encode` makes the artifact of all, on rank 0. Every rank gets
    the codes, rank 0 the bytes, the others none. The artifact ends at most 0.1 % below the budget,
    unless steps as fine as eight bits allow need less. `on_round` hears the round and the size.
    Raises ArtifactError where nothing fits.
    """
    search, at = _start(matrices, ranks, budget)
    parts = {name: m.part(SAMPLED_ROWS) for name, m in matrices.items()}
    for _ in range(SAMPLED_ROUNDS):
        at = search.next(at, _estimate(round_all(parts, at), matrices, ranks))
    search.forget()  # what is not coded is in no estimate
    best: tuple[int, dict[str, Packed], bytes] | None = None
    for number in range(1, MAX_ROUNDS + 1):
        shares = ranks.gather(round_all(matrices, at))
        coded = {name: packed for share in shares for name, packed in share.items()}
        data = encode(coded) if ranks.main else b""
        size = int(ranks.agree([len(data)])[0])
        on_round(number, size)
        if size <= budget and (best is None or size > best[0]):
            best = size, coded, data
        if budget * (1 - TOLERANCE) <= size <= budget:
            break
        if at == (search.low if size <= budget else search.high):
            break  # nothing finer is of use, or nothing coarser is left
        at = search.next(at, size)
    if best is None:
        raise ArtifactError(
            f"the artifact is {size} bytes with the coarsest steps, {size - budget} over what the "
            "budget leaves it; make the model smaller"
        )
    return best[1], best[2]


def _start(matrices: Mapping[str, Curved], ranks: Ranks, budget: int) -> tuple[_Search, float]:
    """The search between steps that are too fine for every matrix and too coarse for any, and
    where it begins.
    """
    mine = [(m.weight.numel(), m.mean_ratio) for m in matrices.values() if m.matters]
    # What does not matter takes no bits, whatever the constant.
    sizes = [size for share in ranks.gather(mine) for size in share] or [(1, 0.0)]
    ratios = [ratio for _, ratio in sizes]
    count = sum(count for count, _ in sizes)
    mean = sum(count * ratio for count, ratio in sizes) / count
    search = _Search(
        low=min(ratios) - FINEST,
        high=max(ratios) - COARSEST,
        steepest=-count / 8,
        aim=budget * (1 - TOLERANCE / 3),
    )
    guess = mean + GAUSSIAN_BITS - 8 * search.aim / count
    return search, min(max(guess, search.low), search.high)


def _estimate(packed: Mapping[str, Packed], matrices: Mapping[str, Curved], ranks: Ranks) -> float:
    """Bytes of all codes, judged by those of some rows."""
    lowest, highest = SPREADS
    counts = np.zeros((highest - lowest + 1, 256))
    for name, (codes, steps) in coded_planes(packed).items():
        scale = matrices[name].weight.size(0) / len(codes)
        for spread, group in grouped_codes({name: Plane.of(codes, steps)}).items():
            counts[spread - lowest] += scale * count_codes(group)
    counts = np.array(ranks.agree(counts.ravel().tolist())).reshape(counts.shape)
    return sum(CodeModel.parse(model_table(c)).cost(c) for c in counts if c.any())
