"""How fast sliding-window scoring is, against a plain implementation of the same definition.

    python -m jobs.bench.scoring --preset record

The plain one computes every position of every layer, whole logits and the nats of all positions,
and then drops those that a window does not score. Both score the same windows in turn, in float32
and in bfloat16, without and with recurrence, with random weights in every matrix: those that start
as zeros would hide what they multiply.
"""

from __future__ import annotations

import argparse
import statistics
import sys
from collections.abc import Iterable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from jobs.bench.common import (
    add_options,
    chosen_settings,
    describe_device,
    make_table,
    seconds,
    show,
    write_json,
)
from model.attention import allow_attention, choose_attention
from model.config import Config
from model.evaluate import Windows, move_to_compute
from model.gpt import GPT
from model.graphs import Graphs
from model.precision import COMPUTE_DTYPES
from model.ranks import start_ranks
from model.recurrence import NO_LOOP, Loop

WEIGHT_STD = 0.04  # of what is added to each weight: about 1/√512


def main() -> int:
    arguments = _parse()
    config = Config(**chosen_settings(arguments))
    facts = bench(config, arguments.windows, arguments.repeats, arguments.dtype or COMPUTE_DTYPES)
    print_table(facts)
    write_json(facts, arguments.json)
    return 0


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m jobs.bench.scoring", description=__doc__)
    add_options(parser)
    parser.add_argument("--windows", type=int, default=4, help="of one batch")
    parser.add_argument("--repeats", type=int, default=5, help="batches timed, of each kind")
    parser.add_argument("--dtype", choices=COMPUTE_DTYPES, action="append", help="default: all")
    return parser.parse_args()


def plain_nats(model: GPT, inputs: Tensor, targets: Tensor, scored: int) -> Tensor:
    """-log p of the last `scored` of targets [B, T]: float32 [B, scored], by way of all of them."""
    logits = model.forward_logits(inputs)
    return F.cross_entropy(logits.transpose(1, 2), targets, reduction="none")[:, -scored:]


@torch.no_grad()
def bench(
    config: Config, windows: int, repeats: int, dtypes: Iterable[str] = tuple(COMPUTE_DTYPES)
) -> dict[str, Any]:
    """All numbers of one configuration on this machine."""
    device = start_ranks(config, {}).device
    model = filled_model(config)
    facts: dict[str, Any] = {
        "machine": describe_device(device),
        "torch": torch.__version__,
        "preset": config.preset,
        "seq_len": config.eval_seq_len,
        "stride": config.eval_stride,
        "windows": windows,
        "repeats": repeats,
        "rows": [],
    }
    for dtype in dtypes:
        move_to_compute(model, device, dtype)
        attention = choose_attention(config, device, model.compute_dtype)
        allow_attention(attention.backend)
        model.set_attention(attention.backend)
        graphs = Graphs(model, config, device)
        facts["compiled"] = graphs.compiling
        for name, loop in (("without recurrence", NO_LOOP), ("with recurrence", config.loop)):
            model.set_loop(loop)
            row = {"what": name, "compute_dtype": dtype, "attention": attention.backend}
            facts["rows"].append(row | _compare(graphs, config, windows, repeats))
    return facts


def filled_model(config: Config) -> GPT:
    """A network that no weight is zero in."""
    torch.manual_seed(config.seed)
    model = GPT(config)
    with torch.no_grad():
        for p in model.parameters():
            p.add_(WEIGHT_STD * torch.randn_like(p))
    return model


def _compare(graphs: Graphs, config: Config, windows: int, repeats: int) -> dict[str, Any]:
    """Both ways in turn on one batch, so that a machine whose speed drifts does not decide."""
    model, seq_len, stride = graphs.model, config.eval_seq_len, config.eval_stride
    device = model.tok_emb.weight.device
    layout = Windows(total=windows * stride + seq_len, seq_len=seq_len, stride=stride)
    stream = torch.randint(config.vocab_size, (layout.total + 1,), device=device)
    views, scored = layout.views(stream, 1, 1 + windows)  # without the first, which scores all
    inputs, targets = views[:, :-1], views[:, 1:]
    plain = torch.compile(plain_nats, dynamic=False) if graphs.compiling else plain_nats
    graphs.warm_scoring((windows, seq_len, scored))
    kinds = {
        "ours": lambda: graphs.nats(inputs, targets[:, -scored:]),
        "plain": lambda: plain(model, inputs, targets, scored),
    }
    difference = (kinds["ours"]() - kinds["plain"]()).double()
    times: dict[str, list[float]] = {kind: [] for kind in kinds}
    for _ in range(repeats):
        for kind, run in kinds.items():
            times[kind].append(seconds(run, device))
    ratios = [b / a for a, b in zip(times["ours"], times["plain"], strict=True)]
    rates = {kind: windows * scored / statistics.median(found) for kind, found in times.items()}
    return {
        "scored_tokens_per_s": round(rates["ours"], 1),
        "plain_scored_tokens_per_s": round(rates["plain"], 1),
        "times_plain": round(statistics.median(ratios), 3),
        "times_plain_range": [round(min(ratios), 3), round(max(ratios), 3)],
        "largest_difference_nats": difference.abs().max().item(),
        "score_difference_nats": difference.mean().abs().item(),
        "arithmetic_saved": round(arithmetic_saved(config, model.loop, scored), 4),
    }


def arithmetic_saved(config: Config, loop: Loop, scored: int) -> float:
    """The share of the plain way's multiplications that ours does without, as torch counts them.

    Attention counts in full for both, also what causality rules out.
    """
    with torch.device("meta"):  # counted, but not computed
        model = GPT(config)
        inputs = torch.zeros(1, config.eval_seq_len, dtype=torch.int64)
    model.set_loop(loop)
    counts = []
    for run in (
        lambda: model.nats(inputs, inputs[:, -scored:]),
        lambda: plain_nats(model, inputs, inputs, scored),
    ):
        with FlopCounterMode(display=False) as counter:
            run()
        counts.append(counter.get_total_flops())
    return 1 - counts[0] / counts[1]


def print_table(facts: dict[str, Any]) -> None:
    """The numbers for a person."""
    header = (
        f"{facts['preset']} on {facts['machine']}, torch {facts['torch']}, "
        f"{'compiled' if facts['compiled'] else 'eager'}: windows of {facts['seq_len']:,}, stride "
        f"{facts['stride']}, {facts['windows']} a batch, medians of {facts['repeats']}"
    )
    numbers = ["scored tokens/s", "plain", "times plain", "arithmetic saved"]
    numbers += ["largest |Δ| nats", "score |Δ| nats"]
    table = make_table(["", "dtype", "attention"], numbers)
    for row in facts["rows"]:
        low, high = row["times_plain_range"]
        table.add_row(
            *(row["what"], row["compute_dtype"], row["attention"]),
            f"{row['scored_tokens_per_s']:,}",
            f"{row['plain_scored_tokens_per_s']:,}",
            f"{row['times_plain']} ({low}–{high})",
            f"{row['arithmetic_saved']:.1%}",
            f"{row['largest_difference_nats']:.1e}",
            f"{row['score_difference_nats']:.1e}",
        )
    show(header, table)


if __name__ == "__main__":
    sys.exit(main())
