"""What several checks share: which runs a claim is of, and how numbers are held against each other.

Nothing here decides a rule.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from sweeper.evidence.choose import seed_in_name
from sweeper.evidence.claims import seed_of
from sweeper.evidence.record import Claimed, LoggedRun, Record


def claims_by_run(
    record: Record,
) -> Iterator[tuple[str, Mapping[str, Claimed], Sequence[LoggedRun]]]:
    """Each run that the record claims: its key, its claims, and the runs that it may be of.

    Those are the counted runs of its seed; by the name of the log where no log has the seed. A key
    without a seed may be of any of them.
    """
    for key, claims in record.claim.per_seed.items():
        seed = seed_of(key)
        if seed is None:
            yield key, claims, record.counted
            continue
        yield key, claims, runs_of(record, seed)


def runs_of(record: Record, seed: int) -> list[LoggedRun]:
    """The counted runs of a seed; by the name of the log where no log has the seed."""
    mine = [run for run in record.counted if run.seed == seed]
    return mine or [run for run in record.counted if seed_in_name(run.path.stem) == seed]


def off_by_one_digit(claim: Claimed, value: float) -> bool:
    """Whether a claim misses a value by less than one unit of its last digit.

    So does a mean or a spread of values that had been rounded before.
    """
    return bool(abs(claim.value - value) < 10.0**-claim.digits * (1 + 1e-9))
