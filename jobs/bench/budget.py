"""What a byte budget costs in bits per byte: fitted by steps, and the record's way.

    STAGE=train PRESET=tiny DATA_DIR=data RUN_DIR=/tmp/run python -m model.train
    python -m jobs.bench.budget /tmp/run --shares 1 0.95 0.9 0.8

Quantises what training has left in a run's directory at several budgets, as shares of what the
record's artifact takes (int6 by GPTQ, brotli) before any pruning. The record's way is to zero codes
of ±1 until it fits. Errors are weighted by the Hessians alone, and by the curvature that the steps
are chosen by (model/calibrate.py). Scores are by plain windows, like the one before quantisation.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from jobs.bench.common import CPU, describe_device, make_table, show, write_json
from model.artifact import ArtifactError, Codec, encode
from model.config import Config
from model.evaluate import DeviceTokenBytes, evaluate
from model.fit import fit_by_steps
from model.gptq import quantize_all
from model.handoff import TRAINED, TrainedModel, load_trained, read_trained
from model.packed import Model, pack_model, with_scales
from model.pruning import fit_by_pruning
from model.ranks import Ranks
from model.shards import load_val_tokens, val_files
from model.steps import curved_matrices
from model.tokens import load_token_bytes

ALONE = Ranks(rank=0, world=1, device=CPU, control=None)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m jobs.bench.budget", description=__doc__)
    parser.add_argument("run_dir", type=Path, help="of a run that ended with STAGE=train")
    parser.add_argument("--shares", type=float, nargs="+", default=[1.0, 0.95, 0.9, 0.8])
    parser.add_argument("--json", type=Path, help="write the numbers there")
    arguments = parser.parse_args()
    if not (arguments.run_dir / TRAINED).exists():
        print(f"error: {arguments.run_dir}: no {TRAINED}; see --help", file=sys.stderr)
        return 2
    facts = bench(arguments.run_dir, arguments.shares)
    show(*present(facts))
    write_json(facts, arguments.json)
    return 0


def bench(run_dir: Path, shares: list[float]) -> dict[str, Any]:
    """All numbers: for each budget, those of both ways."""
    echo = json.loads((run_dir / TRAINED).read_bytes())["config"]
    config = Config.from_echo(echo)
    trained = load_trained(run_dir, config, *read_trained(run_dir, config))
    case = Case(trained, config)
    weights = dict(trained.model.named_parameters())
    coded = quantize_all(weights, trained.hessians)
    int6 = pack_model(trained.model, {n: with_scales("int6", *c) for n, c in coded.items()})
    matrices = curved_matrices(
        weights, trained.hessians, trained.sensitivities, trained.sensitivities
    )
    whole = len(case.encoder("brotli")(int6))

    def prune(budget: int) -> Model:
        return fit_by_pruning(int6, case.encoder("brotli"), budget=budget)[0]

    def fit(budget: int) -> Model:
        def encode_all(found: Model) -> bytes:
            return case.encoder("rans")(pack_model(trained.model, found))

        return pack_model(
            trained.model, fit_by_steps(matrices, encode_all, ALONE, budget=budget)[0]
        )

    return {
        "machine": describe_device(CPU),
        "torch": torch.__version__,
        "run": run_dir.name,
        "params": sum(p.numel() for p in weights.values()),
        "steps": trained.facts["steps"],
        "before_bpb": case.score(None),
        "int6_bytes": {c: len(case.encoder(c)(int6)) for c in ("brotli", "rans")},
        "int6": case.measure(int6, len(case.encoder("rans")(int6))),
        "budgets": [
            {
                "share": share,
                "budget": int(share * whole),
                "prune": case.attempt(prune, int(share * whole), "brotli"),
                "fit": case.attempt(fit, int(share * whole), "rans"),
            }
            for share in shares
        ],
    }


class Case:
    """A trained model, and what is measured of its packed forms."""

    def __init__(self, trained: TrainedModel, config: Config) -> None:
        self.trained, self.config = trained, config
        self.tokens = load_val_tokens(
            val_files(config.data_path, config.vocab_size), config.vocab_size, config.eval_seq_len
        )
        table = load_token_bytes(config.tokenizer_file, config.vocab_size)
        self.table = DeviceTokenBytes.of(table, CPU)
        self.weights = {name: p.detach().clone() for name, p in trained.model.state_dict().items()}

    def encoder(self, codec: Codec) -> Callable[[Model], bytes]:
        return lambda packed: encode(packed, self.config, self.trained.model.loop, codec)

    def attempt(
        self, make: Callable[[int], Model], budget: int, codec: Codec
    ) -> dict[str, Any] | None:
        """What is measured of a model that was made to fit, and its seconds; None: it cannot."""
        started = time.perf_counter()
        try:
            packed = make(budget)
        except ArtifactError:
            return None
        seconds = round(time.perf_counter() - started, 2)
        return self.measure(packed, len(self.encoder(codec)(packed))) | {"seconds": seconds}

    def measure(self, packed: Model, size: int) -> dict[str, Any]:
        hessian_error = curved_error = 0.0
        for name, hessian in self.trained.hessians.items():
            left = self.weights[name] - packed[name].tensor()
            rows = ((left @ hessian) * left).sum(1)
            curvature = self.trained.sensitivities[name].rows / hessian.diagonal().sum()
            hessian_error += float(rows.sum())
            curved_error += float(rows @ curvature)
        return {
            "bytes": size,
            "hessian_error": hessian_error,
            "curved_error": curved_error,
            "bpb": self.score(packed),
        }

    def score(self, packed: Model | None) -> float:
        """Bits per byte of a packed form, or of the weights as they were trained."""
        model = self.trained.model
        found = {name: p.tensor() for name, p in packed.items()} if packed else self.weights
        model.load_state_dict(found)
        score = evaluate(
            model.nats,
            self.tokens,
            self.table,
            seq_len=self.config.eval_seq_len,
            stride=self.config.eval_seq_len,
            batch_tokens=self.config.val_batch_tokens,
            ranks=ALONE,
        )
        model.load_state_dict(self.weights)
        return score.val_bpb


def present(facts: dict[str, Any]) -> list[Any]:
    """The numbers for a person; gaps are to the score before quantisation."""
    table = make_table(
        ["way"],
        ["budget", "share", "bytes", "of it", "Hessian error", "by curvature", "gap, bpb", "s"],
    )
    before = facts["before_bpb"]
    for row in facts["budgets"]:
        for way in ("prune", "fit"):
            found = row[way]
            if found is None:
                table.add_row(way, f"{row['budget']:,}", f"{row['share']:g}", "cannot")
                continue
            table.add_row(
                way,
                f"{row['budget']:,}",
                f"{row['share']:g}",
                f"{found['bytes']:,}",
                f"{found['bytes'] / row['budget']:.2%}",
                f"{found['hessian_error']:.4g}",
                f"{found['curved_error']:.4g}",
                f"{found['bpb'] - before:+.5f}",
                f"{found['seconds']:.1f}",
            )
    sizes = facts["int6_bytes"]
    return [
        f"{facts['run']}: {facts['params']:,} parameters after {facts['steps']} steps on "
        f"{facts['machine']}; before quantisation {before:.5f} bpb; int6 codes as they are: "
        f"{sizes['brotli']:,} bytes by brotli, {sizes['rans']:,} by rans, "
        f"gap {facts['int6']['bpb'] - before:+.5f}",
        table,
    ]


if __name__ == "__main__":
    sys.exit(main())
