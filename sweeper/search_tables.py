"""What a search has found, for people: as text for a terminal and as Markdown."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from sweeper.findings import Findings, Winner, best_share
from sweeper.rivals import POWER, Rival, Sight, Table
from sweeper.stats import CONFIDENCE, Summary

NOTHING = "–"
TEXTS = (
    *("configuration", "settings", "state", "stage", "setting", "beside the best"),
    "scores by seed",
)
LEVEL = f"{100 * CONFIDENCE:.0f} %"


@dataclass(frozen=True, kw_only=True)
class Section:
    """A heading, sentences and a table; each may be empty."""

    heading: str
    lines: tuple[str, ...] = ()
    columns: tuple[str, ...] = ()
    rows: tuple[tuple[str, ...], ...] = ()
    after: tuple[str, ...] = ()


def sections(found: Findings) -> list[Section]:
    """The report of a search, what matters most first."""
    return [
        *_result(found),
        *_front(found),
        *_confirmed(found),
        *_best(found),
        *_importances(found),
        *_seen(found),
        _runs(found),
    ]


# ---- as text


def as_text(found: Findings) -> str:
    """For a terminal: what matters most stands last, where it is seen."""
    return "\n\n".join(_text(section) for section in reversed(sections(found)))


def as_markdown(found: Findings, level: int = 2) -> str:
    return "\n\n".join(_markdown(section, level) for section in sections(found))


def _text(section: Section) -> str:
    lines = [section.heading, *(f"  {line}" for line in section.lines)]
    if section.rows:
        table = [section.columns, *section.rows]
        widths = [max(len(row[place]) for row in table) for place in range(len(section.columns))]
        left = _left(section)
        lines += [
            "  "
            + "  ".join(
                cell.ljust(width) if text else cell.rjust(width)
                for cell, width, text in zip(row, widths, left, strict=True)
            ).rstrip()
            for row in table
        ]
    return "\n".join([*lines, *(f"  {line}" for line in section.after)])


def _markdown(section: Section, level: int) -> str:
    parts = [f"{'#' * level} {section.heading}", *(_escape(line) for line in section.lines)]
    if section.rows:
        sides = [":--" if text else "--:" for text in _left(section)]
        table = [section.columns, sides, *section.rows]
        parts.append("\n".join("| " + " | ".join(map(_escape, row)) + " |" for row in table))
    return "\n\n".join([*parts, *(_escape(line) for line in section.after)])


def _left(section: Section) -> list[bool]:
    """Which columns are text, and so begin at the left."""
    return [name in TEXTS for name in section.columns]


def _escape(text: str) -> str:
    return text.replace("|", "\\|")


# ---- numbers


def number(value: float | None) -> str:
    """A score: five decimals where it is of the size of one, else whole."""
    if value is None:
        return NOTHING
    return f"{value:.5f}" if abs(value) < 1000 else f"{value:,.0f}"


def signed(value: float | None) -> str:
    if value is None:
        return NOTHING
    return f"{value:+.5f}" if abs(value) < 1000 else f"{value:+,.0f}"


def spread(mean: float | None, std: float | None) -> str:
    return number(mean) if std is None else f"{number(mean)} ± {number(std)}"


def interval(summary: Summary) -> str:
    if summary.low is None or summary.high is None:
        return NOTHING
    return f"{number(summary.low)} to {number(summary.high)}"


def settings(params: Mapping[str, object]) -> str:
    return " ".join(f"{name}={_value(value)}" for name, value in params.items())


def _value(value: object) -> str:
    return f"{value:.6g}" if isinstance(value, float) else str(value)


# ---- sections


def _result(found: Findings) -> list[Section]:
    """The winner by what its fresh seeds say; plainly where there are none."""
    if len(found.search.objectives) > 1:
        return []
    objective, sense = found.search.objectives[0], found.search.senses[0]
    better = "lower" if sense == "minimize" else "higher"
    heading = f"Result of {found.name}: {objective}, {better} is better"
    winner = found.winner
    if winner is None:
        scored = any(row.evidence for stage in found.stages for row in stage.rows)
        why = "no configuration has all its seeds and fits" if scored else "nothing is scored"
        return [Section(heading=heading, lines=(f"none yet: {why}",))]
    title = "winner" if winner.confirmed_in is not None else "leader so far"
    lines = [f"{title}: {winner.name}, {settings(winner.params)}"]
    if winner.fresh is None:
        lines += _optimistic(found, winner)
    else:
        lines += _confirmation(winner)
    if winner.bytes_max is not None:
        fits = "within" if winner.feasible else "NOT within"
        lines.append(
            f"artifact: {winner.bytes_max:,} bytes at most, {fits} {found.spec.budget.max_bytes:,}"
        )
    return [Section(heading=heading, lines=tuple(lines))]


def _confirmation(winner: Winner) -> list[str]:
    fresh = winner.fresh
    assert fresh is not None
    seeds = ", ".join(map(str, winner.planned))
    so_far = (
        "" if fresh.n == len(winner.planned) else f" ({fresh.n} of {len(winner.planned)} so far)"
    )
    between = "" if fresh.low is None else f", {LEVEL} interval {interval(fresh)}"
    lines = [
        f"on seeds that chose nothing ({winner.confirmed_in}: {seeds}){so_far}: "
        f"{spread(fresh.mean, fresh.std)}{between}",
        f"on those that chose it ({winner.chosen_in}, n = {winner.chosen.n}): "
        f"{spread(winner.chosen.mean, winner.chosen.std)}, which was "
        f"{_optimism(winner.optimism(winner.chosen.mean))}",
    ]
    if winner.failure is not None:
        lines.insert(1, f"INCOMPLETE: {winner.failure}")
    if winner.belief is not None:
        lines.append(
            f"the surrogate believed {spread(winner.belief, winner.belief_sd)}, which was "
            f"{_optimism(winner.optimism(winner.belief))}"
        )
    return lines


def _optimism(by: float | None) -> str:
    assert by is not None
    return f"too good by {number(by)}" if by > 0 else f"too bad by {number(-by)}"


def _optimistic(found: Findings, winner: Winner) -> list[str]:
    scores = spread(winner.chosen.mean, winner.chosen.std)
    why = (
        winner.failure
        if winner.failure is not None
        else f"its runs on fresh seeds ({winner.confirmed_in}) have not ended"
        if winner.confirmed_in
        else "no stage with fresh seeds has begun"
        if any(stage.rung.fresh for stage in found.stages)
        else "no [[stage]] has fresh seeds"
    )
    lines = [
        f"on the seeds that chose it ({winner.chosen_in}, n = {winner.chosen.n}): {scores}",
        f"OPTIMISTIC: the best of many by these very seeds; {why}",
    ]
    if winner.belief is not None:
        lines.insert(1, f"the surrogate believes {spread(winner.belief, winner.belief_sd)}")
    return lines


def _front(found: Findings) -> list[Section]:
    if not found.front:
        return []
    objectives = found.search.objectives
    rows = tuple(
        (
            each.name,
            str(each.n),
            *(spread(*pair) for pair in zip(each.means, each.stds, strict=True)),
            number(each.bytes_max),
            settings(each.params),
        )
        for each in found.front
    )
    which = "on fresh seeds" if found.front_is_fresh else "OPTIMISTIC: by the seeds that chose it"
    return [
        Section(
            heading=f"Pareto front of {found.name} ({found.front[0].stage}, {which})",
            columns=("configuration", "n", *objectives, "bytes max", "settings"),
            rows=rows,
            after=("no other configuration beats one of these in everything",),
        )
    ]


def _confirmed(found: Findings) -> list[Section]:
    table = found.confirming
    if table is None or len(table.rivals) < 2:
        return []
    return [
        Section(
            heading=f"On fresh seeds ({table.stage})",
            columns=_columns(fresh=True),
            rows=tuple(_row(each, table, fresh=True) for each in table.rivals),
            after=(
                "the winner, the first, was fixed before these runs; they choose nothing",
                *_counts(table),
            ),
        )
    ]


def _best(found: Findings) -> list[Section]:
    table = found.choosing
    if table is None:
        return []
    return [
        Section(
            heading=f"The best {len(table.rivals)} of {table.stage}, as the surrogate ranks them",
            columns=_columns(fresh=False),
            rows=tuple(_row(each, table, fresh=False) for each in table.rivals),
            after=(
                f"difference: the mean one to the best, over the seeds in common; those not "
                f"apart hold the truly best one of all with {LEVEL} confidence (paired, one-sided "
                f"at α = {table.alpha:.2g} each, σ = {table.noise.sigma:.2g} with "
                f"{table.noise.df:.0f} df, pooled over {table.stage} with what was expected)",
                *_counts(table),
            ),
        )
    ]


def _columns(fresh: bool) -> tuple[str, ...]:
    believed = () if fresh else ("believed",)
    return (
        "configuration",
        "n",
        "mean ± std",
        f"{LEVEL} interval",
        *believed,
        "bytes max",
        "difference",
        "beside the best",
        "settings",
    )


def _row(each: Rival, table: Table, fresh: bool) -> tuple[str, ...]:
    over = " over!" if each.feasible is False else ""
    verdict = {None: "", True: "apart", False: "not distinguishable"}[each.apart]
    if each is table.rivals[0]:
        verdict = "the winner" if fresh else "the best"
    elif each.ahead:
        verdict = "BETTER"
    return (
        each.name,
        str(each.summary.n),
        spread(each.summary.mean, each.summary.std),
        interval(each.summary),
        *(() if fresh else (spread(each.belief, each.belief_sd),)),
        number(each.bytes_max) + over,
        signed(each.behind),
        verdict,
        settings(each.params),
    )


def _counts(table: Table) -> list[str]:
    """What is not in a table, and why."""
    words = {
        "pruned": "pruned before they had all their seeds",
        "failed": "failed",
        "open": "not over",
    }
    parts = [
        f"{table.counts[state]} {word}" for state, word in words.items() if table.counts[state]
    ]
    if table.infeasible:
        parts.append(f"{table.infeasible} too large")
    if not parts:
        return []
    return [f"of {sum(table.counts.values())} configurations in {table.stage}: {', '.join(parts)}"]


def _importances(found: Findings) -> list[Section]:
    if not found.importances:
        return []
    stage = next(each for each in found.stages if each.rung.name == found.importance_of)
    complete = sum(map(stage.eligible, stage.rows))
    return [
        Section(
            heading=f"What matters ({found.importance_of}, {_count(complete, 'configuration')})",
            columns=("setting", "variance", "the best"),
            rows=tuple(
                (name, f"{100 * each.variance:.0f} %", f"{100 * each.best:.0f} %")
                for name, each in found.importances.items()
            ),
            after=(
                "variance: of what the surrogate believes over the whole space, with all that it "
                "has a part in (Sobol's total index); it knows the noise",
                f"the best: of what tells the best {100 * best_share(complete):.0f} % from the "
                "rest (PED-ANOVA); its means are noisy, and ranges look larger than choices",
            ),
        )
    ]


def _seen(found: Findings) -> list[Section]:
    if not found.sights:
        return []
    lines = [line for sight in found.sights for line in _sight(sight)]
    return [Section(heading="What it could see", lines=tuple(lines))]


def _sight(sight: Sight) -> list[str]:
    """Which differences a stage could see, and which of those it met it could and could not."""
    alone = f"it takes {number(sight.by_pairs)}" if sight.by_pairs else "one can see none"
    lines = [
        f"{sight.stage}, {_count(sight.n, 'seed')}: a true difference of {number(sight.by_sigma)} "
        f"is seen in {100 * POWER:.0f} of 100 cases (paired, one-sided α = {sight.alpha:.2g}, "
        f"pooled σ); by its own pairs alone {alone}",
    ]
    if sight.visible:
        lines.append(f"told apart from its best: {', '.join(sight.visible)}")
    if sight.hidden:
        lines.append(f"not told apart, so that order may be chance: {', '.join(sight.hidden)}")
    return lines


def _count(n: int, what: str) -> str:
    return f"{n} {what}{'' if n == 1 else 's'}"


def _runs(found: Findings) -> Section:
    """Every configuration of every stage with all seeds that ran, so that none can hide."""
    rows = []
    for stage in found.stages:
        for row in stage.rows:
            seeds = [
                f"{seed}: {number(row.evidence[seed].values[0]) if seed in row.evidence else state}"
                for seed, state in row.runs.items()
            ]
            rows.append(
                (
                    stage.rung.name,
                    row.name,
                    row.state.value + (f" ({row.entry.reason})" if row.entry.reason else ""),
                    ", ".join(seeds) or NOTHING,
                )
            )
    launched = len(found.runs)
    return Section(
        heading=f"All configurations, stage by stage: {launched} runs",
        columns=("stage", "configuration", "state", "scores by seed"),
        rows=tuple(rows),
    )
