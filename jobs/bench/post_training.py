"""What happens to a model after training, timed: GPTQ, pruning, each codec both ways.

    python -m jobs.bench.post_training --json post.json
    python -m jobs.bench.post_training --plain              # and the public way, for minutes
    python -m jobs.bench.post_training --device cuda        # GPTQ on the GPU

Weights are spread as the record's are, so that their codes come to about as many bits, and their
Hessians are those of correlated inputs. Every stage runs in a fresh process, which tells the
memory that it needs besides what it is given; the plain ones always on the CPU. Linux alone says
what a process's peak was.
"""

from __future__ import annotations

import argparse
import math
import sys
import tempfile
from pathlib import Path

import torch
from rich.table import Table

from jobs.bench.common import (
    CPU,
    add_options,
    chosen_settings,
    describe_device,
    in_fresh_process,
    make_table,
    show,
    write_json,
)
from jobs.bench.post_stages import PLAIN_STAGES, STAGES, Facts, Job, build, run_stage
from jobs.bench.trained import RECORD_SPREAD, with_layers
from model.config import Config
from model.fields import ConfigError
from model.ranks import start_ranks

# What one run goes through: with the record's codes, or with steps.
TOTAL = ("gptq", "prune to fit", "pack smallest")
STEPS_TOTAL = ("fit steps", "pack steps")
PLAIN_TOTAL = ("gptq", "prune to fit")
# The plain way packs to learn the size, and again after pruning.
PLAIN_FIT = ("pack", "prune", "pack")


def main() -> int:
    arguments = _parse()
    try:
        with tempfile.TemporaryDirectory() as folder:
            facts = bench(_job(arguments, Path(folder)), plain=arguments.plain)
    except ConfigError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print_tables(facts)
    write_json(facts, arguments.json)
    return 0


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m jobs.bench.post_training", description=__doc__)
    add_options(parser)
    parser.add_argument("--layers", type=int, help="of a smaller or larger model")
    parser.add_argument(
        "--spread",
        type=float,
        default=RECORD_SPREAD,
        help="of the weights; at 0.3 all clips of a row differ (default: %(default)s)",
    )
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu", help="of our GPTQ")
    parser.add_argument("--plain", action="store_true", help="the plain implementation, too: slow")
    parser.add_argument("--repeats", type=int, default=3, help="of each stage of ours, if quick")
    return parser.parse_args()


def _job(arguments: argparse.Namespace, folder: Path) -> Job:
    """What the options ask for. Raises ConfigError."""
    if not 0 < arguments.spread < math.inf:
        raise ConfigError(f"--spread: must be more than 0, and finite; found {arguments.spread}")
    config = Config(**(chosen_settings(arguments) | {"device": arguments.device}))
    if arguments.layers is not None:
        config = with_layers(config, arguments.layers)
    return Job(
        config=config,
        spread=arguments.spread,
        device=start_ranks(config, {}).device,
        repeats=arguments.repeats,
        folder=folder,
    )


def bench(job: Job, *, plain: bool) -> Facts:
    """All numbers of one model on this machine; progress goes to stderr."""
    print("making weights and Hessians ...", file=sys.stderr, flush=True)
    facts: Facts = {
        "machine": describe_device(CPU),
        "gptq_device": describe_device(job.device),
        "torch": torch.__version__,
        "preset": job.config.preset,
        "layers": job.config.num_layers,
        "spread": job.spread,
        **in_fresh_process(build, job),
    }
    ours = {name: _progress(name, job) for name in STAGES}
    theirs = _plain_rows(job) if plain else {}
    facts["codes"] = ours["gptq"].pop("codes")
    facts["rows"] = [
        {"stage": name, **row, "plain": _plain_of(name, theirs)} for name, row in ours.items()
    ]
    facts["total_seconds"] = sum(ours[name]["median_seconds"] for name in TOTAL)
    facts["steps_total_seconds"] = sum(ours[name]["median_seconds"] for name in STEPS_TOTAL)
    sizes = {codec: ours[f"pack {codec}"]["bytes"] for codec in ("rans", "brotli")}
    if plain:
        facts["plain_total_seconds"] = sum(theirs[name]["median_seconds"] for name in PLAIN_TOTAL)
        sizes["plain"] = theirs["pack"]["bytes"]
    facts["artifacts"] = [
        {"codec": codec, "bytes": size, **_ratios(size, sizes["brotli"], facts["codes"])}
        for codec, size in sizes.items()
    ]
    return facts


def _plain_of(name: str, theirs: dict[str, Facts]) -> Facts | None:
    """The plain stage that does what ours of this name does; the plain way has no steps."""
    if name.endswith("steps"):
        return None
    return theirs.get(name, theirs.get(name.split()[0]))


def _plain_rows(job: Job) -> dict[str, Facts]:
    rows = {name: _progress(name, job, plain=True) for name in PLAIN_STAGES}
    parts = [rows[name] for name in PLAIN_FIT]
    rows["prune to fit"] = {
        "median_seconds": sum(part["median_seconds"] for part in parts),
        "peak_bytes": max(part["peak_bytes"] for part in parts),
    }
    return rows


def _ratios(size: int, brotli: int, codes: Facts) -> Facts:
    least = codes["entropy_bytes"] + codes["scale_bytes"]
    return {
        "by_entropy_and_scales": size / least,
        "by_entropy_and_rest": size / (least + codes["other_bytes"]),
        "by_brotli": size / brotli,
    }


def _progress(name: str, job: Job, *, plain: bool = False) -> Facts:
    """The numbers of one stage, from a process of its own."""
    what = f"{'plain ' if plain else ''}{name}"
    print(f"{what} ...", file=sys.stderr, flush=True)
    row = in_fresh_process(run_stage, name, job, plain)
    print(f"{what}: {row['median_seconds']:.2f} s", file=sys.stderr, flush=True)
    return row


def print_tables(facts: Facts) -> None:
    """The numbers for a person."""
    codes = facts["codes"]
    bits = ", ".join(f"{kind} {value:.3f}" for kind, value in codes["bits_per_code"].items())
    show(
        f"{facts['preset']}, {facts['layers']} layers, {facts['parameters']:,} parameters of "
        f"spread {facts['spread']}, on {facts['machine']} (GPTQ on {facts['gptq_device']}), torch "
        f"{facts['torch']}: bits per code {bits}; {codes['scales_at_floor']:.1%} of int6 scales "
        "at the floor",
        _stage_table(facts),
        _artifact_table(facts),
        _fit_line(facts),
        *_agreement(facts),
    )


def _stage_table(facts: Facts) -> Table:
    """Seconds, and the memory that a stage adds by that of all weights in float32."""
    side = ["s", "memory/weights"]
    table = make_table(["stage"], [*side, *(f"plain {name}" for name in side), "times plain"])
    for row in facts["rows"]:
        sides = [row] + [row["plain"]] * (row["plain"] is not None)
        cells = [
            text
            for each in sides
            for text in (
                f"{each['median_seconds']:.3f}",
                f"{each['peak_bytes'] / facts['weight_bytes']:.2f}",
            )
        ]
        table.add_row(row["stage"], *cells, *_times([each["median_seconds"] for each in sides]))
    plain = [facts["plain_total_seconds"]] if "plain_total_seconds" in facts else []
    table.add_section()
    for names, total in ((TOTAL, "total_seconds"), (STEPS_TOTAL, "steps_total_seconds")):
        totals = [facts[total], *plain]
        cells = [text for each in totals for text in (f"{each:.3f}", "")]
        table.add_row(" + ".join(names), *cells, *_times(totals))
    return table


def _times(seconds: list[float]) -> list[str]:
    """How many times longer the plain way takes, if it was timed."""
    return [f"{seconds[1] / seconds[0]:,.1f}"] if len(seconds) == 2 else []


def _artifact_table(facts: Facts) -> Table:
    codes = facts["codes"]
    table = make_table(
        ["artifact"], ["bytes", "by entropy + scales", "by entropy + all the rest", "by brotli"]
    )
    for row in facts["artifacts"]:
        ratios = [
            row[f"by_{what}"] for what in ("entropy_and_scales", "entropy_and_rest", "brotli")
        ]
        table.add_row(row["codec"], f"{row['bytes']:,}", *(f"{ratio:.4f}" for ratio in ratios))
    table.add_section()
    table.add_row("entropy of the codes", f"{codes['entropy_bytes']:,}")
    table.add_row("scales", f"{codes['scale_bytes']:,}")
    table.add_row("all the rest", f"{codes['other_bytes']:,}")
    return table


def _fit_line(facts: Facts) -> str:
    row = next(row for row in facts["rows"] if row["stage"] == "fit steps")
    return (
        f"steps: {row['bytes']:,} of {row['budget']:,} bytes ({row['bytes'] / row['budget']:.5f}) "
        f"after {row['rounds']} rounds; their curvature-weighted error is "
        f"{row['error_by_pruned']:.3f} of GPTQ's with {row['pruned']:,} codes pruned "
        f"({row['pruned_bytes']:,} bytes)"
    )


def _agreement(facts: Facts) -> list[str]:
    plain = facts["rows"][0]["plain"]
    if plain is None:
        return []
    return [
        f"GPTQ: {plain['different_codes']:.2e} of the codes differ from the plain ones; our "
        f"Hessian-weighted error is {plain['our_hessian_error_by_plain']:.6f} of theirs"
    ]


if __name__ == "__main__":
    sys.exit(main())
