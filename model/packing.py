"""From trained weights to the artifact: in the process that trained them, or alone on a CPU."""

from __future__ import annotations

import dataclasses
import hashlib
import time
from collections.abc import Callable, Mapping

from model.artifact import encode, encode_smallest
from model.config import Config
from model.fields import ConfigError
from model.fit import fit_by_steps
from model.gpt import GPT
from model.gptq import quantize_all
from model.handoff import (
    Facts,
    TrainedModel,
    drop_tensors,
    is_packed,
    load_trained,
    read_trained,
    save_packed,
)
from model.machine import describe
from model.packed import Model, Packed, pack_model, with_scales
from model.pruning import fit_by_pruning
from model.ranks import Ranks, start_ranks
from model.report import ARTIFACT, Report, write_by_rename
from model.steps import curved_matrices


def pack_stage(
    trained: TrainedModel, config: Config, ranks: Ranks, report: Report
) -> tuple[bytes, Facts]:
    """Make the artifact; every rank gets its bytes."""
    bytes_code = trained.facts["bytes_code"]
    budget = config.budget_bytes - bytes_code if ranks.main else 0
    artifact, facts = make_artifact(trained, config, ranks, report, budget=budget)
    sizes = {"bytes_code": bytes_code, "bytes_model": len(artifact)}
    sizes["bytes_total"] = sum(sizes.values())
    report.event("size", **sizes)
    form = f"{'steps' if config.fits_steps else 'int6'}+{facts['codec']}"
    report.line(f"Code size: {sizes['bytes_code']} bytes")
    report.line(f"Serialized model {form}: {sizes['bytes_model']} bytes")
    report.line(f"Total submission size {form}: {sizes['bytes_total']} bytes")
    return artifact, {
        **facts,
        **sizes,
        "artifact": ARTIFACT,
        "artifact_sha256": hashlib.sha256(artifact).hexdigest(),
    }


def pack_apart(config: Config, environ: Mapping[str, str], report: Report) -> None:
    """Pack what training has left in RUN_DIR; by one process on a CPU, without the data."""
    report.phase("setup")
    if (world := environ.get("WORLD_SIZE", "1")) != "1":
        raise ConfigError(f"STAGE=pack: is for one process, found {world}; start no torchrun")
    alone = start_ranks(dataclasses.replace(config, device="cpu"), {})
    facts, checksum = read_trained(report.run_dir, config)
    conditions = {name: facts[name] for name in ("attention", "compute_dtype", "data")}
    report.event("config", config=config.echo(), **conditions, **describe(alone))
    if is_packed(report.run_dir, checksum):
        report.line("already packed: STAGE=score is next")
    else:
        trained = load_trained(report.run_dir, config, facts, checksum)
        _, packed = pack_stage(trained, config, alone, report)
        save_packed(report.run_dir, packed, checksum)
    drop_tensors(report.run_dir)


def make_artifact(
    trained: TrainedModel, config: Config, ranks: Ranks, report: Report, *, budget: int
) -> tuple[bytes, Facts]:
    """Quantise (the ranks share the matrices), pack into rank 0's `budget` bytes and write.

    Every rank gets the bytes; the facts are the codec and the seconds that each part took.
    """
    model = trained.model
    budget = int(ranks.agree([budget])[0])
    report.phase("quantise")
    started = time.perf_counter()
    if config.fits_steps:
        coded, data = _fit_steps(trained, config, ranks, report, budget)
    else:
        coded, data = _quantise(trained, ranks), b""
    # Of no more use, and large on a GPU that is still to score.
    trained.hessians.clear()
    trained.sensitivities.clear()
    quantised = time.perf_counter()
    report.phase("pack")
    artifact, codec = None, config.compressor
    if ranks.main:
        packed: Model = pack_model(model, coded)
        if not config.fits_steps:
            packed, data, pruned = fit_by_pruning(packed, _encoder(model, config), budget=budget)
            if pruned:
                report.line(f"selective_prune: {pruned} codes zeroed to fit {config.budget_bytes}")
        artifact, codec = encode_smallest(packed, config, model.loop, config.compressor, data)
        if codec != config.compressor:
            report.line(
                f"{config.compressor}: {codec} makes fewer bytes of this model, and is used"
            )
        write_by_rename(report.run_dir / ARTIFACT, artifact)
    artifact = ranks.broadcast_bytes(artifact)
    return artifact, {
        "codec": codec,
        "quantise_time_s": quantised - started,
        "pack_time_s": time.perf_counter() - quantised,
    }


def _encoder(model: GPT, config: Config) -> Callable[[Model], bytes]:
    return lambda packed: encode(packed, config, model.loop, config.compressor)


def _quantise(trained: TrainedModel, ranks: Ranks) -> dict[str, Packed]:
    """The record's codes: int6 with a scale per row."""
    weights = dict(trained.model.named_parameters())
    mine = list(trained.hessians)[ranks.rank :: ranks.world]
    coded = quantize_all(weights, {name: trained.hessians[name] for name in mine})
    packed = {name: with_scales("int6", *codes) for name, codes in coded.items()}
    return {name: codes for share in ranks.gather(packed) for name, codes in share.items()}


def _fit_steps(
    trained: TrainedModel, config: Config, ranks: Ranks, report: Report, budget: int
) -> tuple[dict[str, Packed], bytes]:
    """The codes whose artifact fits the budget with the least harm; and that, on rank 0."""
    model = trained.model
    mine = list(trained.sensitivities)[ranks.rank :: ranks.world]
    weights = dict(model.named_parameters())
    encode_all = _encoder(model, config)
    return fit_by_steps(
        curved_matrices(weights, trained.hessians, trained.sensitivities, mine),
        lambda coded: encode_all(pack_model(model, coded)),
        ranks,
        budget=budget,
        on_round=lambda number, size: report.line(
            f"budget_fit: round {number}, {size} of {budget} bytes"
        ),
    )
