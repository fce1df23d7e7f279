"""The settings that a log echoes, as far as they make a configuration."""

from __future__ import annotations

import re

from sweeper.logfacts import LogFacts

# Settings that differ between the runs of one configuration, or say where it ran.
OF_A_RUN = re.compile(
    r"^(?:seed|run_?(?:id|name|dir)|log_?\w*|\w*_?(?:path|dir|file|files|prefix|pattern|url)"
    r"|local_rank|rank|hostname|host|device|resume_from|master_\w+|timestamp|date|out\w*)$"
)


def configuration(facts: LogFacts) -> frozenset[tuple[str, str]]:
    """The settings of a run without those of one run: equal for all seeds of a configuration."""
    return frozenset(
        (name, value) for name, value in facts.hyperparameters.items() if not OF_A_RUN.match(name)
    )


def differences(one: LogFacts, other: LogFacts) -> dict[str, tuple[str | None, str | None]]:
    """The settings in which two runs differ, by name; None where one does not echo it."""
    mine, theirs = dict(configuration(one)), dict(configuration(other))
    names = sorted(mine.keys() | theirs.keys())
    return {n: (mine.get(n), theirs.get(n)) for n in names if mine.get(n) != theirs.get(n)}
