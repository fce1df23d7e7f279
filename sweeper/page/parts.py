"""What a sweep has found, as parts of a page: the result first, then what it rests on."""

from __future__ import annotations

import datetime
import re
from collections.abc import Mapping, Sequence

from sweeper.findings import Winner
from sweeper.page.facts import ALPHA, Facts, Group, Verdict, is_partial, judge
from sweeper.page.html import NOTHING, Html, facts, join, section, table, tag
from sweeper.rows import RunState
from sweeper.search_tables import (
    TEXTS,
    interval,
    number,
    sections,
    settings,
    signed,
    spread,
)
from sweeper.stats import CONFIDENCE, Summary
from sweeper.tables import headings, rows_for_people
from sweeper.words import clock

LEVEL = f"{100 * CONFIDENCE:.0f} %"
LESS_TELLING = "bytes mean"  # than the largest, beside which a page has no room for it
FRACTION = re.compile(r"-?\d+\.\d{7,}")
STATES = (RunState.RUNNING, RunState.PENDING, RunState.FAILED, RunState.PRUNED)


def moment(t: float | None) -> str:
    """A time as a date and a clock that mean the same everywhere."""
    if t is None:
        return NOTHING
    return f"{datetime.datetime.fromtimestamp(t, datetime.UTC):%Y-%m-%d %H:%M} UTC"


def plural(n: int, what: str) -> str:
    return f"{n:,} {what}{'' if n == 1 else 's'}"


# ---- head


def head(page: Facts) -> Html:
    """What it is, how far it is, and when."""
    spec = page.spec
    work = spec.workload.script or spec.workload.module
    gpus = spec.resources.gpus_per_run
    runs_on = f"{plural(gpus, 'GPU')} a run" if gpus else "no GPU"
    seeds = "" if spec.search is not None else f" × {plural(len(spec.seeds), 'seed')}"
    configurations = len({group.trial for group in page.groups})
    lead = [
        f"{plural(configurations, 'configuration')}{seeds} of {work}, {runs_on}. ",
        f"{_score_is(page)} ",
        tag("span", _progress(page), class_="state"),
    ]
    kind = "search" if spec.search is not None else "sweep"
    return tag(
        "header",
        tag("p", f"{kind} · {_span(page)}", class_="kicker"),
        tag("h1", spec.name),
        tag("p", *lead, class_="lead"),
    )


def _score_is(page: Facts) -> str:
    search = page.spec.search
    if search is None:
        return f"Score: {page.spec.metric}, lower is better."
    words = {"minimize": "lower", "maximize": "higher"}
    pairs = zip(search.objectives, search.senses, strict=True)
    return f"Score: {'; '.join(f'{name}, {words[sense]} is better' for name, sense in pairs)}."


def _span(page: Facts) -> str:
    begins = [attempt.launched for attempt in page.attempts]
    ends = [attempt.ended for attempt in page.attempts if attempt.ended is not None]
    if not begins:
        return f"not begun, as of {moment(page.now)}"
    if not page.over or not ends:
        return f"since {moment(min(begins))}, as of {moment(page.now)}"
    return f"{moment(min(begins))} to {moment(max(ends))}"


def _progress(page: Facts) -> str:
    counts, total = page.counts, len(page.runs)
    if not total:
        return "No run has been asked for yet."
    parts = [f"{counts[RunState.FINISHED]} of {plural(total, 'run')} finished"]
    parts += [f"{counts[state]} {state}" for state in STATES if counts[state]]
    unattended = "" if page.over or page.at_work else "; no driver is at work"
    return f"{', '.join(parts)}{unattended}."


# ---- result


def result(page: Facts) -> Html:
    """The headline: the best configuration, what it beats, its bytes, what it took."""
    if page.found is not None:
        tiles = [*_winner_tiles(page), _cost_tile(page)]
    elif page.ranked and page.ranked[0].mean is not None:
        best = page.ranked[0]
        tiles = [_best_tile(page, best), *_verdict_tile(page), _bytes_tile(page, best)]
        tiles += [_gap_tile(best), _cost_tile(page)]
    else:
        tiles = [_tile(page.spec.metric, "none yet", _missing(page), first=True)]
    return section("result", "Result", tag("div", join(tiles), class_="tiles"), _caution(page))


def _tile(title: object, figure: object, *lines: object, first: bool = False) -> Html:
    return tag(
        "div",
        tag("h3", title),
        tag("p", figure, class_="figure"),
        join(tag("p", line) for line in lines if line),
        class_="tile first" if first else "tile",
    )


def _score(summary: Summary) -> Html:
    unit = tag("small", " bits per byte")
    return join([spread(summary.mean, summary.std), unit])


def _over_seeds(summary: Summary, seeds: Sequence[int]) -> str:
    between = "" if summary.low is None else f"{LEVEL} interval of the mean {interval(summary)}; "
    over = f"n = {summary.n}, seed{'' if len(seeds) == 1 else 's'} {', '.join(map(str, seeds))}"
    return _kept(f"{between}{over}")


def _best_tile(page: Facts, best: Group) -> Html:
    summary = best.summary
    doubt = best.doubt(page.metric)
    leads = "Lowest mean: " if page.verdict is not None and not page.verdict.apart else "Best: "
    title = [leads if doubt is None and page.over else "Leader so far: ", tag("b", best.name)]
    seeds = [int(run["seed"]) for run in best.scored]
    return _tile(
        join(title),
        _score(summary),
        _over_seeds(summary, seeds),
        settings(_short(best.settings)),
        first=True,
    )


def _verdict_tile(page: Facts) -> list[Html]:
    verdict = page.verdict
    if verdict is None:
        others = [group.name for group in page.groups if group.doubt(page.metric) is not None]
        why = "no other configuration can be compared" if others else ""
        return [_tile("Beside the next", NOTHING, why)] if why else []
    title = join(["Beside ", tag("b", verdict.second.name)])
    if verdict.comparison is None:
        return [_tile(title, "no test", verdict.reason)]
    class_, word = ("good", "better") if verdict.apart else (None, "not told apart")
    return [_tile(title, tag("span", word, class_=class_), *_test(verdict))]


def _test(verdict: Verdict) -> list[str]:
    """The test in numbers: what it says of the gain, and how it was made."""
    test = verdict.comparison
    assert test is not None
    assert verdict.p is not None
    gain = f"{test.gain:.5f} BPB ahead{_in_nats(verdict, test.gain)}"
    times = "" if verdict.pairs == 1 else f", times the {verdict.pairs} pairs there are"
    made = f"Welch, two-sided, t = {test.t:.2f}, df = {test.df:.2f}{times}"
    return [_kept(f"{gain}, p = {verdict.p:.2g} against α = {ALPHA}"), _kept(made)]


def _kept(text: str) -> str:
    """With no line break beside a sign of equality."""
    return text.replace(" = ", "\N{NO-BREAK SPACE}=\N{NO-BREAK SPACE}")


def _in_nats(verdict: Verdict, gain: float) -> str:
    """A gain in nats per token, as the rules count it; by the seeds of the best."""
    ratios = [
        run["val_loss"] / run["val_bpb"]
        for run in verdict.best.scored
        if run["val_loss"] and run["val_bpb"]
    ]
    return f" ({gain * sum(ratios) / len(ratios):.4f} nats per token)" if ratios else ""


def _bytes_tile(page: Facts, best: Group) -> Html:
    largest = best.row["bytes_total_max"]
    if largest is None:
        return _tile("Artifact", NOTHING, "its size is not known")
    return _size(int(largest), page.budget)


def _size(largest: int, budget: int) -> Html:
    room = budget - largest
    says = f"{room:,} bytes below" if room >= 0 else f"{-room:,} bytes OVER"
    figure = join([f"{largest:,}", tag("small", " bytes")])
    lines = [_meter(largest, budget), f"the largest of its seeds, {says} {budget:,}"]
    return _tile("Artifact", figure, *lines)


def _meter(part: int, whole: int) -> Html:
    share = 100 * part / whole
    bar = join(
        [
            tag("rect", class_="all", width="100", height="4"),
            tag("rect", class_="part", width=f"{min(share, 100):.2f}", height="4"),
            tag("rect", class_="over", x="96", width="4", height="4") if share > 100 else "",
        ]
    )
    label = f"{share:.1f} % of the budget"
    box = {"viewBox": "0 0 100 4", "preserveAspectRatio": "none"}
    return tag("svg", bar, class_="meter", role="img", aria_label=label, **box)


def _gap_tile(best: Group) -> Html:
    row = best.row
    before = row["prequant_val_bpb_mean"]
    lines = [] if before is None else [f"before quantisation {number(before)} on plain windows"]
    return _tile("Quantisation gap", signed(row["quantisation_gap_mean"]), *lines)


def _cost_tile(page: Facts) -> Html:
    """What it took: GPU-seconds where there are GPUs, else the time of all attempts."""
    reserved = sum(run["gpu_s_reserved"] or 0.0 for run in page.runs)
    seconds = sum(stage.seconds for stage in page.stages)
    tries = f"{plural(len(page.attempts), 'attempt')}, {clock(seconds)} of run time in all"
    if not reserved:
        figure = join([clock(seconds), tag("small", " of run time")])
        return _tile("It took", figure, plural(len(page.attempts), "attempt"))
    useful = sum(run["gpu_s_useful"] or 0.0 for run in page.runs)
    figure = join([f"{reserved / 3600:,.2f}", tag("small", " GPU-hours")])
    lines = [f"{100 * useful / reserved:.0f} % of them useful"] if useful else []
    costs = [run["cost_usd"] for run in page.runs if run["cost_usd"] is not None]
    if costs:
        lines.append(f"${sum(costs):,.2f} so far" if not page.over else f"${sum(costs):,.2f}")
    return _tile("It took", figure, *lines, tries)


def _missing(page: Facts) -> str:
    """What a page without a score waits for."""
    if page.counts[RunState.FAILED] and page.over:
        return f"no run has finished: {plural(page.counts[RunState.FAILED], 'run')} failed"
    if page.counts[RunState.FINISHED]:
        return "no run that has finished has a score that can be averaged; see what did not count"
    return "no run has finished yet"


def _caution(page: Facts) -> Html:
    """What must be known before the headline is believed."""
    lines = []
    best = next(iter(page.ranked), None)
    if page.found is None and best is not None and best.mean is not None:
        doubt = best.doubt(page.metric)
        if doubt is not None:
            lines.append(f"{best.name} is not a result: {doubt}.")
        if best.row["n"] == 1:
            lines.append("One seed: no spread and no interval; the next may say something else.")
        if is_partial(best.row["metric"]):
            lines.append("Scored on a subset of the validation tokens: not a full score.")
        if best.row["resumed"]:
            lines.append(f"{best.row['resumed']} of its runs were interrupted and resumed.")
    if page.found is None and page.spec.search is not None:
        lines.append(
            "What this search has found cannot be told, since a score of it is no number; the best "
            "of its configurations here is so by the very seeds that chose it."
        )
    if page.found is not None and page.found.winner is not None:
        lines += _doubts(page.found.winner)
    if page.runs and not page.over:
        lines.append("Runs are missing: every number may still change.")
    return tag("div", join(tag("p", line) for line in lines), class_="alert") if lines else Html("")


def _doubts(winner: Winner) -> list[str]:
    lines = []
    if winner.fresh is None:
        lines.append("Optimistic: the best of many by the very seeds that chose it.")
    if winner.failure is not None:
        lines.append(f"Incomplete: {winner.failure}.")
    if winner.feasible is False:
        lines.append("It is over the byte budget.")
    return lines


def _winner_tiles(page: Facts) -> list[Html]:
    """A search's winner by the seeds that did not choose it."""
    found = page.found
    assert found is not None
    winner = found.winner
    if winner is None:
        return [_tile("Winner", "none yet" if not found.front else "a Pareto front", first=True)]
    summary = winner.chosen if winner.fresh is None else winner.fresh
    objective = found.search.objectives[0]
    fresh = f"on fresh seeds ({winner.confirmed_in})"
    chosen = f"on the seeds that chose it ({winner.chosen_in})"
    where = chosen if winner.fresh is None else fresh
    between = "" if summary.low is None else f"; {LEVEL} interval of the mean {interval(summary)}"
    kind = "Winner: " if winner.confirmed_in is not None else "Leader so far: "
    score = _score(summary) if objective == "val_bpb" else spread(summary.mean, summary.std)
    tiles = [
        _tile(
            join([kind, tag("b", winner.name)]),
            score,
            _kept(f"{where}, n = {summary.n}{between}"),
            settings(winner.params),
            first=True,
        )
    ]
    if winner.bytes_max is not None:
        tiles.append(_size(winner.bytes_max, page.budget))
    return tiles


# ---- tables


def configurations(page: Facts) -> Html:
    """Every configuration with what its seeds say, the best first."""
    import pandas as pd

    ranked = page.ranked
    if not ranked:
        return Html("")
    trials = pd.DataFrame([group.row for group in ranked])
    columns = list(headings(trials))
    dropped = columns.index(LESS_TELLING)
    del columns[dropped]
    columns[3:3] = [f"{LEVEL} interval"]
    priced = any(group.row["cost_usd"] is not None for group in ranked)
    columns += ["$"] if priced else []
    rows = []
    for group, cells in zip(ranked, rows_for_people(trials), strict=True):
        aside = tag("small", settings(_short(group.settings))) if group.settings else ""
        del cells[dropped]
        cells[3:3] = [interval(group.summary)]
        cells += [_money(group.row["cost_usd"])] if priced else []
        rows.append([join([group.name, aside]), *cells[1:]])
    caption = (
        "Means over finished seeds ± sample standard deviation (n − 1); intervals by Student's t. "
        "Gap: after less before quantisation, both on plain windows."
    )
    best = [0] if page.compared and ranked[0] is page.compared[0] else []
    shown = table(caption, columns, rows, marked=best)
    return section("configurations", "Configurations", shown, _beside_best(page))


def _short(values: Mapping[str, str]) -> dict[str, object]:
    """Settings with as many digits as tell them apart."""
    return {name: float(v) if FRACTION.fullmatch(v) else v for name, v in values.items()}


def _money(value: float | None) -> str:
    return NOTHING if value is None else f"{value:,.2f}"


def _beside_best(page: Facts) -> Html:
    """Every configuration that can be compared beside the best."""
    if page.verdict is None or len(page.compared) < 3:
        return Html("")
    best, pairs = page.compared[0], page.verdict.pairs
    rows = []
    for other in page.compared[1:]:
        test = judge([best, other]).comparison
        if test is None:
            rows.append([other.name, signed((other.mean or 0) - (best.mean or 0)), *[NOTHING] * 3])
            continue
        p = min(1.0, 2 * test.p * pairs)
        rows.append([other.name, signed(test.gain), f"{test.t:.2f}", f"{test.df:.2f}", f"{p:.2g}"])
    caption = (
        f"Beside the best, {best.name}: how far behind in BPB, by Welch's test, two-sided. p is "
        f"times the {pairs} pairs there are, since the best was picked by these scores."
    )
    return tag("h3", "Beside the best") + table(
        caption, ["configuration", "behind", "t", "df", "p"], rows
    )


def findings(page: Facts) -> Html:
    """What a search has found, section by section, as its report in text says it."""
    if page.found is None:
        return Html("")
    parts = []
    for part in sections(page.found):
        inside = [tag("p", line) for line in part.lines]
        if part.rows:
            inside.append(table(part.heading, part.columns, part.rows, text=TEXTS, told=False))
        inside += [tag("p", line, class_="note") for line in part.after]
        parts.append(tag("h3", part.heading) + join(inside))
    return section("search", "What the search has found", join(parts))


def summary_facts(pairs: Sequence[tuple[str, object]]) -> Html:
    return facts([(name, value) for name, value in pairs if value not in (None, "")])
