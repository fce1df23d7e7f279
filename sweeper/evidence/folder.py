"""The README of a trial that becomes a record, in the sections that the field uses.

All numbers are of its runs. What only its author knows is marked by FILL_IN.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

from sweeper.evidence.commands import SCRIPT, exports, run_lines
from sweeper.evidence.compare import BASES, MARGIN_NATS, Verdict
from sweeper.evidence.folder_config import sentences, settings_of
from sweeper.evidence.publish_code import REQUIREMENTS, Code
from sweeper.evidence.publish_runs import FinishedRun, Published
from sweeper.evidence.record import FILL_IN
from sweeper.evidence.rules import BUDGET, LIMIT_S, SEEDS
from sweeper.evidence.submission import hardware, train_seconds
from sweeper.redact import is_secret, redact
from sweeper.settings import PATH_NAME, env_text
from sweeper.stats import Comparison, Summary, bpb_of_nats, summarise
from sweeper.tables import NO_FULL_SCORE, SUBSET

Numbers = Callable[[FinishedRun], float | None]

# Column of the table of results -> its number of a run, and how that is written.
COLUMNS: Mapping[str, tuple[Numbers, str]] = {
    "val_bpb": (lambda run: run.val_bpb, ".8f"),
    "val_loss": (lambda run: run.val_loss, ".8f"),
    "before quantisation": (lambda run: run.known("prequant_val_bpb"), ".5f"),
    "artifact bytes": (lambda run: run.known("bytes_total"), ",.0f"),
    "steps": (lambda run: run.known("steps"), ",.0f"),
    "ms/step": (lambda run: run.known("step_avg_ms"), ",.2f"),
    "train and Hessians s": (train_seconds, ",.1f"),
    "eval s": (lambda run: run.known("eval_time_s"), ",.1f"),
}
# Settings of processes that may change what a run computes, or how fast.
OF_COMPUTING = re.compile(
    r"(?:OMP|MKL|OPENBLAS|NCCL|TORCH|PYTORCH|TORCHINDUCTOR|TRITON|CUDA|CUBLAS|GLOO|PYTHONHASHSEED)"
    r"(?:_|$)"
)
WITH_SPREAD = ("val_bpb", "val_loss")


def readme(published: Published, code: Code, verdict: Verdict | None) -> str:
    """README.md of a record's folder."""
    sections = [
        _head(published),
        _section("Results", _results(published)),
        _section("Comparison", _comparison(published, verdict)),
        _section("Changes", _changes(published)),
        _section("Architecture", _settings(published, "Architecture")),
        _section("Training", _settings(published, "Training")),
        _section("Quantisation", _settings(published, "Quantisation")),
        _section("Reproduce", _reproduce(published, code)),
        _section("Requirements", _requirements(published)),
        _section("Files", _files(published, code)),
        _section("Evaluation and compliance", _compliance(published, code)),
        _section("Credits", [f"{FILL_IN} whose work this builds on, with links to their records."]),
    ]
    # Whatever a value came from: an argument, a setting, what a failed run said.
    return redact("\n\n".join(sections), published.secrets) + "\n"


def log_name(seed: int) -> str:
    """The name of a seed's log, as the challenge wants it."""
    return f"train_seed{seed}.log"


def _section(heading: str, paragraphs: Iterable[str]) -> str:
    return "\n\n".join([f"## {heading}", *paragraphs])


def _head(published: Published) -> str:
    summary = published.summary
    spread = "" if summary.std is None else f" ± {summary.std:.5f}"
    of = "mean and sample standard deviation" if summary.n > 1 else "score"
    plural = "s" if summary.n != 1 else ""
    largest = published.largest("bytes_total")
    facts = [
        f"**val_bpb {summary.mean:.5f}{spread}** ({of} of {summary.n} seed{plural})",
        None if largest is None else f"artifact at most {largest:,.0f} bytes",
        hardware(published),
    ]
    return "\n\n".join(
        [
            f"# {FILL_IN} the record's name",
            " | ".join(fact for fact in facts if fact),
            f"{FILL_IN} what is new, in a paragraph.",
        ]
    )


# ---- results


def _results(published: Published) -> Iterator[str]:
    numbers = {name: [get(run) for run in published.runs] for name, (get, _) in COLUMNS.items()}
    shown = {name: each for name, each in numbers.items() if any(v is not None for v in each)}
    rows = [
        [str(run.seed), *(_cell(values[place], COLUMNS[name][1]) for name, values in shown.items())]
        for place, run in enumerate(published.runs)
    ]
    summaries = {name: _summary(values) for name, values in shown.items()}
    means = (_cell(each.mean, COLUMNS[name][1]) for name, each in summaries.items())
    spreads = (
        _cell(each.std, COLUMNS[name][1]) if name in WITH_SPREAD else ""
        for name, each in summaries.items()
    )
    ends = [["mean", *means], ["sample std", *spreads]] if len(rows) > 1 else []
    yield _table(["seed", *shown], [*rows, *ends])
    yield " ".join(_about_scores(published))
    yield from _remarks(published)


def _summary(values: Sequence[float | None]) -> Summary:
    known = [value for value in values if value is not None]
    return summarise(known if len(known) == len(values) else [])


def _about_scores(published: Published) -> Iterator[str]:
    summary, first = published.summary, published.runs[0]
    yield f"The score is `{first.facts.headline}` of the logs ({first.metric})."
    if summary.low is not None and summary.high is not None:
        yield (
            f"n = {summary.n}; the standard deviation has n − 1 below the line; by Student's t the "
            f"mean lies between {summary.low:.5f} and {summary.high:.5f} with 95 % confidence."
        )
    tokens, shards = published.shared("val_tokens"), published.shared("train_shards")
    if tokens is not None:
        trained = "" if shards is None else f", {shards:,} shards to train on"
        yield f"{tokens:,} tokens of validation data{trained}."


def _remarks(published: Published) -> Iterator[str]:
    """What must be known before the table is believed."""
    if published.runs[0].metric.endswith(SUBSET):
        yield f"**The runs are {NO_FULL_SCORE}.**"
    if published.left_out:
        listed = "; ".join(f"seed {out.seed} ({out.why})" for out in published.left_out)
        total = len(published.left_out) + len(published.runs)
        yield f"**{len(published.runs)} of {total} seeds count.** Not among them: {listed}."
    for run in published.runs:
        step = run.result.get("resumed_from_step")
        if step:
            yield (
                f"**Seed {run.seed} was interrupted and resumed from step {step}**; its log begins "
                "there."
            )
    unsure = sorted({str(n) for run in published.runs for n in run.result.get("unconfirmed") or ()})
    if unsure:
        yield f"The logs do not say whether the script took {', '.join(unsure)}."


# ---- comparison


def _comparison(published: Published, verdict: Verdict | None) -> Iterator[str]:
    if verdict is None:
        yield (
            f"{FILL_IN} the standing record that this is held against, with its seeds' scores, and "
            'a one-sided Welch test of "the gain is at most 0.005 nats" (`sweeper compare`).'
        )
        ratio = published.nats_per_bpb
        token, byte = (bpb_of_nats(MARGIN_NATS, basis, ratio) for basis in BASES)
        yield (
            f"With this tokenizer (val_loss / val_bpb = {ratio:.4f}) {MARGIN_NATS:g} nats per "
            f"token are {token:.5f} BPB; {MARGIN_NATS:g} nats per byte are {byte:.5f} BPB."
        )
        return
    rows = [
        _side(name, record.summary)
        for name, record in (
            ("this record", verdict.candidate),
            (verdict.baseline.name, verdict.baseline),
        )
    ]
    yield _table(["", "n", "mean val_bpb", "sample std"], rows)
    test = verdict.test
    yield (
        f"Gain {test.gain:.5f} BPB, standard error {test.standard_error:.5f}; with "
        f"{100 * (1 - verdict.alpha):g} % confidence at least {test.lower_bound:.5f}. One-sided "
        f'Welch test of "the gain is at most the margin", at p < {verdict.alpha:g}:'
    )
    tests = [("0", verdict.zero)]
    tests += [(f"{verdict.margin_nats:g} nats per {b}", each) for b, each in verdict.tests.items()]
    if verdict.paired is not None:
        tests.append((f"per {verdict.basis}, paired by seed", verdict.paired))
    heads = ["margin", "in BPB", "t", "df", "p", "gain beyond it"]
    yield _table(heads, [_test_row(name, each) for name, each in tests])
    yield from (f"Note: {warning}." for warning in verdict.warnings)


def _side(name: str, summary: Summary) -> list[str]:
    return [name, str(summary.n), _cell(summary.mean, ".6f"), _cell(summary.std, ".6f")]


def _test_row(name: str, test: Comparison) -> list[str]:
    shown = "shown" if test.p < test.alpha else "not shown"
    return [name, f"{test.margin:.5f}", f"{test.t:.2f}", f"{test.df:.2f}", f"{test.p:.2g}", shown]


# ---- what was run


def _changes(published: Published) -> Iterator[str]:
    common = {
        name: text
        for name, text in published.trial.env.items()
        if not _is_path(name) and not is_secret(name)
    }
    own = next((t.env for t in published.spec.trials if t.name == published.trial.name), {})
    chosen = {name: text for name, text in common.items() if not own or name in own}
    yield f"{FILL_IN} what differs from the record that this builds on, and what each part gains."
    if chosen:
        yield _table(["set by this trial", "value"], [[f"`{n}`", t] for n, t in chosen.items()])


def _is_path(name: str) -> bool:
    return PATH_NAME.fullmatch(name) is not None


def _settings(published: Published, heading: str) -> Iterator[str]:
    config = published.config
    said = " ".join(sentences(config, heading))
    params = published.shared("model_params")
    if heading == "Architecture" and params is not None:
        said = f"{said} {params:,} parameters.".strip()
    yield said or f"{FILL_IN} the {heading.lower()}; the logs do not tell it."
    settings = {n: value for n, value in settings_of(config, heading).items() if not is_secret(n)}
    if settings:
        yield f"Settings: {', '.join(f'`{name}` {value}' for name, value in settings.items())}."


def _reproduce(published: Published, code: Code) -> Iterator[str]:
    spec = published.spec
    env = {n: text for n, text in published.trial.env.items() if not is_secret(n)}
    # Only what keeps the process contract knows where it is to write.
    by_contract = all(run.result.get("adapter") in (None, "contract") for run in published.runs)
    yield (
        "In this folder; each run writes into a directory of its own."
        if by_contract
        else "In this folder. A run writes beside the script: what it leaves is overwritten by the "
        "next."
    )
    paths = {name: text for name, text in env.items() if _is_path(name)}
    common = paths | _process_env(published)
    commands = [
        run_lines(
            {"SEED": str(seed)}
            | {name: text for name, text in env.items() if name not in paths}
            | ({"RUN_DIR": f"seed{seed}"} if by_contract else {}),
            launch=spec.workload.launch,
            processes=spec.resources.processes,
            nodes=spec.resources.nodes_per_run,
            arguments=spec.workload.arguments,
        )
        for seed in published.seeds
    ]
    where = ["# Where the data lie: change it to your own."] if paths else []
    yield "\n".join(["```bash", *where, *exports(common), *commands, "```"])
    told = {*env, *_process_env(published), "PYTHONPATH"}
    left_out = sorted({*published.trial.env, *spec.process_env} - told)
    if left_out:
        yield f"Not told here, to be set by you: {', '.join(f'`{name}`' for name in left_out)}."
    if code.exported is not None:
        yield (
            f"`{SCRIPT}` is the training code minified and compressed by `{code.exported}`: what "
            "is counted is what runs."
        )


def _process_env(published: Published) -> dict[str, str]:
    """What the sweep sets for a run's processes: threads, and that no GPU is to be used."""
    spec = published.spec
    resources = spec.resources
    threads = max(1, resources.cpus_per_run // resources.processes)
    no_gpu = {} if resources.gpus_per_run else {"CUDA_VISIBLE_DEVICES": ""}
    # Of others nobody can tell whether they are anybody's business.
    given = {
        name: env_text(value)
        for name, value in spec.process_env.items()
        if OF_COMPUTING.match(name) and not is_secret(name)
    }
    return {"OMP_NUM_THREADS": str(threads)} | given | no_gpu


def _requirements(published: Published) -> Iterator[str]:
    versions = published.versions
    python = f"Python {versions['python']}, " if "python" in versions else ""
    yield f"{python}and what `{REQUIREMENTS}` names, in the versions that ran:"
    yield f"```bash\npip install -r {REQUIREMENTS}\n```"


def _files(published: Published, code: Code) -> Iterator[str]:
    logs = ", ".join(f"`{log_name(seed)}`" for seed in published.seeds)
    beside = [name for name in code.files if name not in (SCRIPT, REQUIREMENTS)]
    yield "\n".join(
        [
            f"- `{SCRIPT}`: what ran (SHA-256 of its sources, names and contents: {code.sha256})",
            *(f"- `{name}`: beside it" for name in beside),
            f"- {logs}: what the first rank printed, byte for byte",
            "- `submission.json`: the numbers of the runs",
            f"- `{REQUIREMENTS}`: what was installed",
        ]
    )


# ---- rules


def _compliance(published: Published, code: Code) -> Iterator[str]:
    yield " ".join(sentences(published.config, "Evaluation")) or (
        f"{FILL_IN} how the score is computed."
    )
    train = _largest(published, train_seconds)
    evaluation, size = published.largest("eval_time_s"), published.largest("bytes_total")
    yield "\n".join(
        [
            _rule("training with its Hessians", train, f"≤ {LIMIT_S:g} s", "s", LIMIT_S),
            _rule("evaluation", evaluation, f"≤ {LIMIT_S:g} s", "s", LIMIT_S),
            _rule("code and model", size, f"< {BUDGET:,} bytes", "bytes", BUDGET - 1),
            f"- {len(published.runs)} seeds; usual are {SEEDS}",
            f"- {FILL_IN} (C1) causal: each prediction from the artifact and earlier tokens alone",
            f"- {FILL_IN} (C2) one normalised distribution over the whole alphabet at each token",
            f"- {FILL_IN} (C3) a token's score is fixed before any update that depends on it",
            f"- {FILL_IN} (C4) one pass from left to right, each token scored once",
        ]
    )
    data = [n for n in code.files if not n.endswith(".py") and n != REQUIREMENTS]
    if data:
        listed = ", ".join(f"`{shlex.quote(name)}`" for name in data)
        yield (
            f"{FILL_IN} whether evaluation needs {listed}: then their bytes count, and are not "
            "among those above."
        )


def _largest(published: Published, get: Numbers) -> float | None:
    values = [value for run in published.runs if (value := get(run)) is not None]
    return max(values) if len(values) == len(published.runs) else None


def _rule(what: str, value: float | None, rule: str, unit: str, limit: float) -> str:
    if value is None:
        return f"- {what}: {FILL_IN} the logs do not say it (rule: {rule})"
    number = f"{value:,.0f}" if unit == "bytes" else f"{value:,.1f}"
    over = "" if value <= limit else ": **not kept**"
    return f"- {what}: at most {number} {unit} (rule: {rule}{over})"


# ---- text


def _cell(value: float | None, form: str) -> str:
    return "–" if value is None else format(value, form)


def _table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    sides = [":--", *["--:"] * (len(heads) - 1)]
    lines = [heads, sides, *rows]
    return "\n".join(f"| {' | '.join(map(_escaped, line))} |" for line in lines)


def _escaped(cell: str) -> str:
    return cell.replace("|", "\\|")
