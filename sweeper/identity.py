"""Whether two specs are of one sweep: what may change between two starts of it, and what not."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from sweeper.spec import SweepSpec

# What a score depends on, beside the settings of the trials: how fast a step is, and on how many.
IDENTITY = ("gpus_per_run", "processes", "nodes_per_run", "accelerator")


def differences(old: SweepSpec, new: SweepSpec, recorded: Mapping[str, str]) -> list[str]:
    """In what runs by the old and the new spec are not of one sweep; each as a few words.

    `recorded` are the trials that the sweep has, by name, with the hashes of their settings.
    """
    if old.search is not None:
        # It has others as well, and those of the spec only once they are tried.
        recorded = _hashes(old)
    differing = sorted(recorded.items() ^ _hashes(new).items())
    changes = [f"trial {differing[0][0]!r}"] if differing else []
    if old.seeds != new.seeds:
        changes.append(f"seeds {old.seeds} -> {new.seeds}")
    return changes + list(_changes(old, new))


def lacks(old: SweepSpec, new: SweepSpec, recorded: Mapping[str, str]) -> list[str]:
    """What of the old spec the new one has no more, which may only add to it."""
    asked = _hashes(new)
    return [
        *(f"seed {seed}" for seed in old.seeds if seed not in new.seeds),
        *(
            f"trial {name!r} as it was"
            for name, text in recorded.items()
            if asked.get(name) != text
        ),
    ]


def _hashes(spec: SweepSpec) -> dict[str, str]:
    return {trial.name: spec.config_hash(trial) for trial in spec.trials}


def _changes(old: SweepSpec, new: SweepSpec) -> Iterator[str]:
    for name in IDENTITY:
        before, after = getattr(old.resources, name), getattr(new.resources, name)
        if before != after:
            yield f"resources.{name} {before} -> {after}"
    before, after = _search_identity(old), _search_identity(new)
    yield from (
        name for name in before.keys() | after.keys() if before.get(name) != after.get(name)
    )


def _search_identity(spec: SweepSpec) -> dict[str, Any]:
    """What a search's scores and choices depend on; its budget, say, may grow."""
    if spec.search is None:
        return {}
    facts = {
        "search.space": list(spec.search.space.items()),
        "search.objective": (spec.search.objectives, spec.search.senses),
        "search.storage": spec.search.storage,
        "env": spec.env,
        "workload": spec.workload,
    }
    return facts | {
        f"stage {rung.name!r}": (rung.env, rung.seeds_of(spec.seeds), rung.objective)
        for rung in spec.rungs
    }
