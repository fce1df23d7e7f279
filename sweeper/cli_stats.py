"""`sweeper power`: what a number of seeds can show."""

from __future__ import annotations

import argparse
import json
import math
from typing import TYPE_CHECKING, Any

from sweeper.errors import UserError

if TYPE_CHECKING:
    from sweeper.power import Plan

# Times alpha: from here on the false claims are spoken of.
NOTICED = 1.05
KNOWN_RATIOS = "sp1024: 1.6885, sp4096: 2.301, sp8192: 2.5831"


def add(commands: Any) -> None:
    """Add the commands to a parser's subparsers."""
    command = commands.add_parser(
        "power",
        help="how many seeds a claim needs, and which differences n seeds can show",
        description="Power of the one-sided test of 'the gain is at most the margin', by seeds: "
        "Welch's, or Student's of the differences with --paired.",
    )
    command.add_argument(
        "--sigma",
        type=_finite,
        required=True,
        metavar="BPB",
        help="sample std over seeds; with --paired, of the differences between pairs",
    )
    command.add_argument(
        "--delta", type=_finite, required=True, metavar="BPB", help="the true gain to be shown"
    )
    command.add_argument(
        "--alpha", type=_finite, default=0.01, metavar="P", help="of the test (default: 0.01)"
    )
    command.add_argument(
        "--power", type=_finite, default=0.8, metavar="P", help="asked for (default: 0.8)"
    )
    add_margin(command)
    seeds = command.add_mutually_exclusive_group()
    seeds.add_argument(
        "--seeds-baseline",
        type=int,
        metavar="N",
        help="the baseline has so many and gets no more (default: as many as the candidate)",
    )
    seeds.add_argument(
        "--paired", action="store_true", help="both have the same seeds, compared pair by pair"
    )
    command.add_argument("--format", choices=("table", "json"), default="table")
    command.set_defaults(run=power)


def add_margin(command: argparse.ArgumentParser) -> None:
    """The options for what a gain must exceed, in either unit."""
    margin = command.add_mutually_exclusive_group()
    margin.add_argument(
        "--margin", type=_finite, metavar="BPB", help="what the gain must exceed (default: 0)"
    )
    margin.add_argument(
        "--margin-nats", type=_finite, metavar="NATS", help="the same in nats, as 0.005"
    )
    command.add_argument(
        "--basis", choices=("token", "byte"), help="what the nats of --margin-nats are counted by"
    )
    command.add_argument(
        "--nats-per-bpb",
        type=_positive,
        metavar="X",
        help=f"nats per token in one BPB, val_loss / val_bpb of any full score ({KNOWN_RATIOS})",
    )


def _finite(text: str) -> float:
    number = float(text)
    if not math.isfinite(number):
        raise ValueError
    return number


def _positive(text: str) -> float:
    number = _finite(text)
    if number <= 0:
        raise ValueError
    return number


# What argparse calls them when it complains.
_finite.__name__ = "number"
_positive.__name__ = "number above 0"


def margin_from(arguments: argparse.Namespace) -> float:
    """The margin in BPB; UserError where the options do not say which it is."""
    from sweeper.stats import bpb_of_nats

    nats, basis, ratio = arguments.margin_nats, arguments.basis, arguments.nats_per_bpb
    if nats is None:
        if basis or ratio:
            raise UserError("--basis and --nats-per-bpb are for --margin-nats; give that too")
        return arguments.margin or 0.0
    if basis is None:
        raise UserError("nats by what? add --basis token or --basis byte to --margin-nats")
    if (basis == "token") != (ratio is not None):
        raise UserError(
            f"--basis token needs the tokenizer's --nats-per-bpb ({KNOWN_RATIOS}); byte needs none"
        )
    return bpb_of_nats(nats, basis, ratio)


def power(arguments: argparse.Namespace) -> int:
    from sweeper.power import Design, plan

    margin = margin_from(arguments)
    try:
        design = Design(
            sigma=arguments.sigma,
            alpha=arguments.alpha,
            margin=margin,
            baseline_n=arguments.seeds_baseline,
            paired=arguments.paired,
        )
        planned = plan(design, arguments.delta, arguments.power)
    except ValueError as error:
        raise UserError(str(error)) from error
    if arguments.format == "json":
        print(json.dumps(_as_json(planned, arguments), indent=2))
    else:
        print(_as_table(planned, _margin_text(margin, arguments)))
    return 0


def _margin_text(margin: float, arguments: argparse.Namespace) -> str:
    if arguments.margin_nats is None:
        return f"{margin:g} BPB"
    return f"{margin:.5f} BPB ({arguments.margin_nats:g} nats per {arguments.basis})"


def _as_json(planned: Plan, arguments: argparse.Namespace) -> dict[str, Any]:
    design = planned.design
    return {
        "test": "paired" if design.paired else "welch",
        "sigma_bpb": design.sigma,
        "delta_bpb": planned.delta,
        "margin_bpb": design.margin,
        "margin_nats": arguments.margin_nats,
        "basis": arguments.basis,
        "alpha": design.alpha,
        "power": planned.asked,
        "seeds_baseline": design.baseline_n,
        "seeds_needed": planned.needed,
        "by_seeds": [
            {
                "seeds": row.n,
                "power": row.power,
                "false_claims": row.false_claims,
                "detectable_bpb": row.detectable,
            }
            for row in planned.rows
        ],
    }


def _as_table(planned: Plan, margin: str) -> str:
    design = planned.design
    test = "paired t-test" if design.paired else "Welch's test"
    spread = "std of the differences" if design.paired else "std over seeds"
    lines = [
        f"one-sided {test} of 'the gain is at most {margin}', alpha {design.alpha:g}",
        f"{spread} {design.sigma:g} BPB, true gain {planned.delta:g} BPB",
        "",
    ]
    headings = (
        "seeds",
        "power",
        "false claims",
        f"smallest gain seen with power {planned.asked:g}",
    )
    table = [headings] + [
        (f"{row.n}", f"{row.power:.3f}", f"{row.false_claims:.4f}", f"{row.detectable:.5f} BPB")
        for row in planned.rows
    ]
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    for line in table:
        cells = zip(line, widths, strict=True)
        lines.append("  ".join(cell.rjust(width) for cell, width in cells))
    lines += ["", _answer(planned)]
    if any(row.false_claims > NOTICED * design.alpha for row in planned.rows):
        lines.append("false claims exceed alpha: Welch's test is not exact for few, unequal seeds")
    return "\n".join(lines)


def _answer(planned: Plan) -> str:
    """How many seeds it takes, or why none are enough."""
    design, asked = planned.design, f"power {planned.asked:g}"
    if planned.delta <= design.margin:
        return "no number of seeds shows a gain that is within the margin"
    beside = f" beside the baseline's {design.baseline_n}" if design.baseline_n else " of each"
    if planned.needed is None:
        return f"{design.most} seeds{beside} are too few for {asked}"
    return f"{planned.needed} seeds{beside} are needed for {asked}"
