"""Every run of a sweep on a page, what did not count and why, the logs, and what it was made of."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from urllib.parse import quote

from sweeper.page.facts import Facts, Row, is_partial
from sweeper.page.html import NOTHING, Html, join, section, table, tag
from sweeper.page.parts import moment, plural, summary_facts
from sweeper.phases import number as finite
from sweeper.rows import RunState
from sweeper.search_tables import number, signed
from sweeper.words import clock, first_line, shorten_gpus

MESSAGE_LETTERS = 600
MOST_RUNS, MOST_NOTES = 3_000, 200
LEAST_LOST = 0.01  # of a run's training time: less is not worth a word
COLUMNS = (
    *("run", "state", "val_bpb", "gap", "bytes", "steps", "ms/step", "eval s", "time"),
    *("attempts", "host", "log"),
)


# ---- runs


def runs(page: Facts) -> Html:
    """A row a run, in the order of the configurations."""
    ordered = [(group, run) for group in page.ranked for run in group.runs]
    shown = ordered[:MOST_RUNS]
    gpus = any(run["gpu_s_reserved"] for run in page.runs)
    priced = any(run["cost_usd"] is not None for run in page.runs)
    extra = (["GPU s", "useful %"] if gpus else []) + (["$"] if priced else [])
    stage = ["stage"] if page.found is not None else []
    columns = [*COLUMNS[:1], *stage, *COLUMNS[1:9], *extra, *COLUMNS[9:]]
    rows = [_run(page, run, gpus=gpus, priced=priced) for _, run in shown]
    for row, (_, run) in zip(rows, shown, strict=True):
        row[1:1] = [run["stage"]] if stage else []
    caption = "Every run, finished or not. Time: of all its attempts, m:ss."
    if len(shown) < len(ordered):
        caption += f" The first {len(shown):,} of {len(ordered):,}; runs.csv has all."
    if not rows:
        return Html("")
    return section(
        "runs", "Runs", table(caption, columns, rows, text=("stage", "state", "host", "log"))
    )


def _run(page: Facts, run: Row, *, gpus: bool, priced: bool) -> list[object]:
    key = (run["trial"], run["seed"])
    slow = f" (+{100 * run['slow']:.0f} %)" if run["slow"] else ""
    cells: list[object] = [
        f"{run['trial']} / {run['seed']}",
        _state(run),
        number(run["val_bpb"]),
        signed(run["quantisation_gap"]),
        _over(run["bytes_total"], page.budget),
        _whole(run["steps"]),
        NOTHING if run["step_avg_ms"] is None else f"{run['step_avg_ms']:,.1f}{slow}",
        NOTHING if run["eval_s"] is None else f"{run['eval_s']:,.1f}",
        _time(page, key),
    ]
    if gpus:
        reserved, useful = run["gpu_s_reserved"], run["gpu_s_useful"]
        share = f"{100 * useful / reserved:.0f}" if useful is not None and reserved else NOTHING
        cells += [f"{reserved:,.0f}", share]
    if priced:
        cells.append(NOTHING if run["cost_usd"] is None else f"{run['cost_usd']:,.2f}")
    return [*cells, run["attempts"], _host(run), _log(page, run)]


def _state(run: Row) -> Html:
    colours = {RunState.FINISHED: None, RunState.FAILED: "warn"}
    return tag("span", run["state"], class_=colours.get(RunState(run["state"])))


def _over(size: float | None, budget: int) -> object:
    if size is None:
        return NOTHING
    return tag("span", f"{size:,.0f} over!", class_="warn") if size > budget else f"{size:,.0f}"


def _whole(value: float | None) -> str:
    return NOTHING if value is None else f"{value:,.0f}"


def _time(page: Facts, key: tuple[str, int]) -> str:
    """The time of all attempts of a run, as far as they have ended."""
    seconds = page.seconds.get(key, 0.0)
    return clock(seconds) if seconds else NOTHING


def _host(run: Row) -> str:
    if run["host"] is None:
        return NOTHING
    gpus = f", GPUs {shorten_gpus(run['gpus'])}" if run["gpus"] else ""
    return f"{run['host']}{gpus}"


def _log(page: Facts, run: Row) -> object:
    """Where its log is shown on this page, on paper where it lies; else where its files are."""
    key = (run["trial"], run["seed"])
    tail = page.tails.get(key)
    path = tail.path if tail is not None else run["path"]
    if key in page.failures or (tail is not None and tail.text):
        return tag("a", "log", href=f"#{anchor(page, key)}", data_path=str(path))
    return NOTHING if path is None else _link(str(path))


def _link(path: str) -> Html:
    """A file of the sweep, for those who have its directory beside the page."""
    return tag("a", path, href=quote(path))


def anchor(page: Facts, key: tuple[str, int]) -> str:
    return f"run-{page.places[key]}"


# ---- what does not count


def excluded(page: Facts) -> Html:
    """Runs and configurations that are not in the result, or not as they should be."""
    rows = [*_of_runs(page), *_of_groups(page), *_stalls(page)]
    if not rows:
        text = "Nothing: every run finished at its first attempt, under the byte budget."
        return section("excluded", "What did not count, and what to know", tag("p", text))
    caption = "What was left out of the result, or what a reader must know before believing it."
    shown = table(caption, ["what", "why"], rows, text=("why",))
    return section("excluded", "What did not count, and what to know", shown)


def _of_runs(page: Facts) -> Iterator[tuple[object, object]]:
    for run in page.runs[:MOST_RUNS]:
        name, state = f"{run['trial']} / {run['seed']}", RunState(run["state"])
        why = page.told(first_line(run["message"] or ""), MESSAGE_LETTERS)
        for odd in page.odd.get((run["trial"], run["seed"]), ()):
            yield name, f"not used: {odd}"
        if state in (RunState.PENDING, RunState.RUNNING):
            continue  # its configuration says that seeds are missing
        if state is not RunState.FINISHED:
            yield name, join([_state(run), f": {why}" if why else ""])
            continue
        failed = page.tries.get((run["trial"], run["seed"]), ())
        if failed:
            yield name, f"finished at attempt {run['attempts']}, after: {'; '.join(failed)}"
        if run["resumed_from_step"] is not None:
            yield name, f"interrupted, resumed from step {run['resumed_from_step']:,.0f}"
        if run["slow"]:
            yield name, f"{100 * run['slow']:.0f} % slower steps than the median, on {run['host']}"
        if run["unconfirmed"]:
            yield name, f"its log does not say whether the script took {run['unconfirmed']}"


def _of_groups(page: Facts) -> Iterator[tuple[object, object]]:
    for group in page.groups:
        doubt = group.doubt(page.metric)
        if doubt is not None:
            yield group.name, f"not compared: {doubt}"
        if is_partial(group.row["metric"]):
            yield group.name, f"{group.row['metric']}: a subset of the tokens, not a full score"


def _stalls(page: Facts) -> Iterator[tuple[object, object]]:
    """The runs that have lost time worth a word to steps that took far too long."""
    for trace in page.traces:
        if trace.lost_share < LEAST_LOST:
            continue
        first, *others = trace.stalls
        more = f", and {plural(len(others), 'shorter stall')}" if others else ""
        yield (
            f"{trace.trial} / {trace.seed}",
            f"lost {trace.lost_ms / 1000:,.1f} s ({100 * trace.lost_share:.0f} % of its training) "
            f"to stalls: steps {first.begin + 1:,} to {first.end:,} took {first.step_ms:,.0f} ms "
            f"each, its median is {trace.usual_ms:,.0f} ms{more}",
        )


# ---- logs


def logs(page: Facts) -> Html:
    """The end of each log, closed; those of what failed come first."""
    shown = dict.fromkeys([*page.failures, *(key for key, tail in page.tails.items() if tail.text)])
    if not shown:
        return Html("")
    left = len(page.tails.keys() - shown.keys())
    note = "The end of what rank 0 printed in each run's last attempt"
    note += f"; {plural(left, 'more log')} would not fit, their paths are above." if left else "."
    parts = [_log_of(page, key) for key in shown]
    return section("logs", "Logs", tag("p", note, class_="note"), join(parts))


def _log_of(page: Facts, key: tuple[str, int]) -> Html:
    """Why a run failed, and the end of its log; a link to what lies inside opens it."""
    tail, run = page.tails.get(key), page.runs[page.places[key]]
    score = "" if run["val_bpb"] is None else f", {number(run['val_bpb'])}"
    parts = [tag("summary", tag("b", f"{key[0]} / {key[1]}"), f" · {run['state']}{score}")]
    if key in page.failures:
        parts.append(tag("pre", page.failures[key], tabindex="0"))
    path = run["path"] if tail is None else tail.path
    part = "" if tail is None or tail.whole else "The end of "
    parts.append(tag("p", part, _link(str(path)), class_="note", id=anchor(page, key)))
    if tail is not None and tail.text:
        parts.append(tag("pre", tail.text, tabindex="0"))
    return tag("details", join(parts))


# ---- what it was made of


def made_of(page: Facts) -> Html:
    """Spec, code, versions, hardware and data."""
    code, versions = (_table(page.provenance.get(name)) for name in ("code", "versions"))
    hashes = dict.fromkeys(a.code for a in page.attempts if a.code is not None)
    commit = code.get("git_commit")
    dirty = ", with changes" if code.get("git_dirty") else ""
    pairs: list[tuple[str, object]] = [
        ("workload", page.spec.workload.script or page.spec.workload.module),
        ("code, sha256", join([tag("code", each[:16]) for each in hashes], ", ") or None),
        ("git commit", None if not commit else join([tag("code", str(commit)[:12]), dirty])),
        ("versions", ", ".join(f"{name} {version}" for name, version in versions.items())),
        *_machines(page),
        ("byte budget", f"{page.budget:,} bytes"),
    ]
    spec = tag("pre", _spec_text(page), tabindex="0")
    return section(
        "made-of",
        "What it was made of",
        summary_facts(pairs),
        tag("h3", "Its spec"),
        spec,
    )


def _table(value: object) -> Mapping[str, object]:
    """A part of a file that somebody may have changed; empty where it is no table."""
    return value if isinstance(value, dict) else {}


def _machines(page: Facts) -> list[tuple[str, object]]:
    """Where its runs computed, as their results say; each variant once."""
    results = [attempt.result for attempt in page.last.values() if attempt.result is not None]

    def each(*path: str) -> str:
        values: dict[str, None] = {}
        for result in results:
            value: object = result
            for name in path:
                value = value.get(name) if isinstance(value, dict) else None
            if value is not None:
                values[str(value)] = None
        return ", ".join(values)

    hosts = dict.fromkeys(attempt.host for attempt in page.attempts)
    return [
        ("hosts", ", ".join(hosts)),
        ("device", each("device")),
        ("accelerator", page.spec.resources.accelerator),
        ("ranks", each("world_size")),
        ("numbers computed in", each("compute_dtype")),
        ("attention", each("attention", "backend")),
        ("torch in the runs", each("versions", "torch")),
        ("peak memory", _peak(results)),
        ("training data", each("data", "train_fingerprint")),
        ("validation data", each("data", "val_fingerprint")),
        ("validation tokens", each("val_tokens")),
    ]


def _peak(results: Sequence[Mapping[str, object]]) -> str | None:
    """Of a rank's device, over all runs."""
    found = [size for each in results if (size := finite(each.get("peak_memory_mib")))]
    if not found:
        return None
    low, high = f"{min(found):,.0f}", f"{max(found):,.0f}"
    return f"{high} MiB" if low == high else f"{low} to {high} MiB"


def _spec_text(page: Facts) -> str:
    try:
        return page.sweep.spec.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return page.spec.model_dump_json(indent=1, by_alias=True, exclude_defaults=True)


# ---- notes


def notes(page: Facts) -> Html:
    """What happened beside the runs."""
    if not page.notes:
        return Html("")
    shown = page.notes[-MOST_NOTES:]
    rows = [[moment(note.t), note.kind, page.told(note.text, MESSAGE_LETTERS)] for note in shown]
    caption = "What happened beside the runs, as the ledger has it."
    if len(shown) < len(page.notes):
        caption += f" The last {len(shown)} of {len(page.notes):,}."
    return section(
        "notes", "Notes", table(caption, ["when", "kind", "what"], rows, text=("kind", "what"))
    )
