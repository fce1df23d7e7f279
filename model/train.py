"""The recipe, read top to bottom: one (config, seed) becomes one scored artifact.

    PRESET=tiny DATA_DIR=data RUN_DIR=/tmp/run torchrun --standalone -m model.train

Settings come from the environment (model/config.py), facts go to RUN_DIR (docs/ARCHITECTURE.md).
A run trains, packs and scores; `STAGE` makes each a process of its own (model/handoff.py), so that
packing, which one CPU does, need not hold what training needs.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import sys
import time
import traceback
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from model.artifact import decode
from model.batches import TrainData
from model.calibrate import Sensitivity, collect_hessians, collect_sensitivities
from model.checkpoint import load_checkpoint
from model.config import Config
from model.evaluate import Score, headline_metric
from model.failure import (
    EXIT_OK,
    EXIT_STOPPED,
    NonFiniteLossError,
    StopRequest,
    StopSignal,
    classify,
)
from model.gpt import GPT
from model.handoff import (
    Facts,
    HandoffError,
    TrainedModel,
    read_artifact,
    read_packed,
    read_trained,
    save_trained,
    stage_of,
)
from model.machine import describe, peak_memory_mib, place
from model.packing import pack_apart, pack_stage
from model.ranks import Ranks, start_ranks, stop_ranks
from model.report import Report, code_bytes
from model.shards import train_files
from model.trainer import Trained, Trainer
from model.validation import Validation


def run(config: Config, environ: Mapping[str, str], report: Report, stop: StopSignal) -> None:
    """Execute a run, or the one stage of it that `STAGE` names."""
    stage = stage_of(environ)
    if stage == "pack":
        pack_apart(config, environ, report)
        return
    ranks = start_ranks(config, environ)
    if stage == "score":
        score_apart(config, ranks, report)
        return
    whole = stage == "all"
    trained, validation = train_stage(config, ranks, report, stop, whole=whole)
    if whole:
        artifact, packed = pack_stage(trained, config, ranks, report)
        restored, _ = decode(artifact)
        # Into the same model, whose graphs are made.
        trained.model.load_state_dict(restored.state_dict())
        trained.model.set_loop(restored.loop)
        score_stage(validation, trained.facts | packed, whole=True)
    elif ranks.main:
        save_trained(report.run_dir, trained)


# ---- the stages of a run


def train_stage(
    config: Config, ranks: Ranks, report: Report, stop: StopSignal, *, whole: bool
) -> tuple[TrainedModel, Validation]:
    """Train, and score the EMA weights before quantisation; `whole`: packed and scored here too."""
    # ---- set-up
    report.phase("setup")
    config.check_run(ranks.world)
    # Counted now, as it was loaded: sources may change while a run works.
    bytes_code = code_bytes() if ranks.main else 0
    torch.manual_seed(config.seed)
    data = TrainData(
        train_files(config.data_path, config.vocab_size),
        seq_len=config.train_seq_len,
        seed=config.seed,
        vocab_size=config.vocab_size,
    )
    model = GPT(config)
    computing = place(model, config, ranks)
    sliding = whole and config.sliding_window_enabled
    validation = Validation.load(model, config, ranks, report, sliding=sliding)
    params = sum(p.numel() for p in model.parameters())
    conditions = describe(ranks) | computing | {"data": _describe_data(data, validation)}
    report.event("config", config=config.echo(), **conditions)
    _print_hyperparameters(config, report, ranks.world, params)
    folder = data.files[0].parent
    report.line(f"train_loader:dataset:{folder.name} train_shards:{len(data.files)}")
    report.line(
        f"val_loader:shards pattern={folder}/fineweb_val_*.bin tokens:{validation.tokens.size - 1}"
    )

    # ---- training
    trainer = Trainer(
        config=config,
        ranks=ranks,
        report=report,
        stop=stop,
        graphs=validation.graphs,
        data=data,
        validate=validation,
    )
    report.phase("warmup")
    trainer.warm_up(validation.warm_up)
    state = load_checkpoint(config, data.fingerprint)
    if state is not None:
        trainer.restore(state)
        report.warning(f"resumed from step {trainer.step}: not one uninterrupted run")
    resumed_from = trainer.step
    report.phase("train")
    trained = trainer.train()
    _print_trained(report, trained, config, ranks)

    # ---- the EMA weights, before quantisation
    hessians, sensitivities, hessian_seconds = _calibrate(trainer, config, ranks, report)
    spent, cap = trained.train_seconds + hessian_seconds, config.max_wallclock_seconds
    if 0 < cap < spent:
        report.warning(
            f"training and calibration took {spent:.1f} s, over MAX_WALLCLOCK_SECONDS {cap:g}; "
            "raise GPTQ_RESERVE_SECONDS"
        )
    report.phase("eval")
    before = validation.score(step=trained.steps, metric="prequant")
    report.line(
        f"pre-quantization post-ema val_loss:{before.val_loss:.8f} val_bpb:{before.val_bpb:.8f} "
        f"eval_time:{1000 * before.seconds:.0f}ms"
    )
    facts = {
        "seed": config.seed,
        "prequant_val_bpb": before.val_bpb,
        "prequant_val_loss": before.val_loss,
        "eval_time_s": before.seconds,
        "steps": trained.steps,
        "train_time_ms": 1000 * trained.train_seconds,
        "step_avg_ms": 1000 * trained.train_seconds / max(trained.steps, 1),
        "stop_reason": trained.stop_reason,
        "resumed_from_step": resumed_from or None,
        "hessian_time_s": hessian_seconds,
        "bytes_code": bytes_code,
        "peak_memory_mib": peak_memory_mib(ranks),
        "train_shards": len(data.files),
        "model_params": params,
        "config": config.echo(),
        **conditions,
    }
    trained_model = TrainedModel(
        model=model, hessians=hessians, sensitivities=sensitivities, facts=facts
    )
    return trained_model, validation


def score_stage(validation: Validation, facts: Facts, *, whole: bool) -> None:
    """Score what the artifact held, which the model holds now, and write the result."""
    config, ranks, report = validation.config, validation.ranks, validation.report
    report.phase("eval")
    plain = validation.score(step=facts["steps"], metric="quant")
    _print_final(report, "final_int6_roundtrip", plain)
    headline = plain
    eval_seconds = facts["eval_time_s"] + plain.seconds
    if config.sliding_window_enabled:
        headline = validation.score(step=facts["steps"], metric="sliding", sliding=True)
        _print_final(report, "final_int6_sliding_window", headline)
        eval_seconds += headline.seconds
    facts = facts | {
        "metric": headline_metric(config),
        "val_bpb": headline.val_bpb,
        "val_loss": headline.val_loss,
        "quant_val_bpb": plain.val_bpb,
        "quant_val_loss": plain.val_loss,
        "val_tokens": headline.tokens,
        "val_bytes": headline.bytes,
        "eval_time_s": eval_seconds,
        "peak_memory_mib": max(facts["peak_memory_mib"], peak_memory_mib(ranks)),
        "stages": "whole" if whole else "apart",
        "config": config.echo(),
    }
    report.result(facts | {"useful_s": useful_seconds(facts, ranks.device)})
    report.phase("done")


def score_apart(config: Config, ranks: Ranks, report: Report) -> None:
    """Score the artifact in RUN_DIR as it was trained, and write the result."""
    report.phase("setup")
    facts, checksum = read_trained(report.run_dir, config)
    packed = read_packed(report.run_dir, checksum)
    model, _ = decode(read_artifact(report.run_dir, packed))
    # What training has measured and chosen stays chosen.
    chosen = dataclasses.replace(
        config, attention=facts["attention"]["backend"], compute_dtype=facts["compute_dtype"]
    )
    computing = place(model, chosen, ranks)
    validation = Validation.load(
        model, config, ranks, report, sliding=config.sliding_window_enabled
    )
    if validation.fingerprint != facts["data"]["val_fingerprint"]:
        raise HandoffError("the validation data are not those of STAGE=train; check DATA_DIR")
    conditions = describe(ranks) | computing | {"data": facts["data"]}
    report.event("config", config=config.echo(), **conditions)
    validation.warm_up(last=True)
    score_stage(validation, facts | packed, whole=False)


# ---- parts of the stages


def _calibrate(
    trainer: Trainer, config: Config, ranks: Ranks, report: Report
) -> tuple[dict[str, Tensor], dict[str, Sensitivity], float]:
    """Hessians and sensitivities of the trained model over all ranks, and their seconds."""
    started = time.perf_counter()
    if not config.gptq_enabled:
        return {}, {}, 0.0
    report.phase("hessians")
    sensitivities = {}
    if config.fits_steps:
        sensitivities = collect_sensitivities(trainer.model, trainer.sensitivity_batches())
    inputs = trainer.calibration_inputs()
    hessians = collect_hessians(trainer.model, inputs, config.gptq_min_weights)
    for hessian in dict.fromkeys(hessians.values()):
        ranks.sum_(hessian)
    for sensitivity in sensitivities.values():
        ranks.sum_(sensitivity.rows)
        ranks.sum_(sensitivity.cols)
    seconds = time.perf_counter() - started
    report.line(f"GPTQ:collected {len(hessians)} Hessians in {seconds:.1f}s")
    return hessians, sensitivities, seconds


def useful_seconds(facts: Facts, device: torch.device) -> float:
    """Seconds for which the slot computed what the run needs: no set-up and no waiting.

    Of packing that is what a whole run does on its device: a GPU waits while its host packs.
    """
    seconds = facts["train_time_ms"] / 1000 + facts["hessian_time_s"] + facts["eval_time_s"]
    if facts["stages"] == "whole":
        seconds += facts["quantise_time_s"]
        seconds += facts["pack_time_s"] if device.type == "cpu" else 0.0
    return seconds


def _describe_data(data: TrainData, validation: Validation) -> Facts:
    return {
        "train_fingerprint": data.fingerprint,
        "train_tokens": data.tokens,
        "val_fingerprint": validation.fingerprint,
    }


def _print_hyperparameters(config: Config, report: Report, world: int, params: int) -> None:
    report.line("Hyperparameters:")
    for name, value in sorted((config.echo() | {"world_size": world}).items()):
        report.line(f"  {name}: {value}")
    report.line(f"model_params:{params}")


def _print_trained(report: Report, trained: Trained, config: Config, ranks: Ranks) -> None:
    report.line(
        f"stopping_early: {trained.stop_reason} train_time: {1000 * trained.train_seconds:.0f}ms "
        f"step: {trained.steps}/{config.iterations}"
        if trained.stop_reason == "wallclock_cap"
        else f"train_time: {1000 * trained.train_seconds:.0f}ms step: {trained.steps}"
    )
    report.line(f"peak memory allocated: {peak_memory_mib(ranks)} MiB")


def _print_final(report: Report, tag: str, score: Score) -> None:
    report.line(
        f"{tag} val_loss:{score.val_loss:.8f} val_bpb:{score.val_bpb:.8f} "
        f"eval_time:{1000 * score.seconds:.0f}ms"
    )


# ---- one rank as a process


def main() -> int:
    """Run as one rank; returns the exit code of the process contract."""
    stop = StopSignal()
    rank = int(os.environ.get("RANK", "0"))
    report = Report(Path(os.environ.get("RUN_DIR", ".")), rank)
    try:
        stop.install()
        run(Config.from_env(os.environ), os.environ, report, stop)
    except StopRequest as request:
        stop.at_once = False  # asked once is enough
        report.event("stopped", reason=str(request), step=request.step)
        return EXIT_STOPPED
    except Exception as error:
        stop.at_once = False  # what went wrong is said first
        return _fail(report, error)
    stop_ranks()
    return EXIT_OK


def _fail(report: Report, error: Exception) -> int:
    """Say why, in an event and on stderr; the rank's exit code."""
    failure = classify(error)
    message = "; ".join(filter(None, [str(error), failure.advice]))
    step = {"step": error.step} if isinstance(error, NonFiniteLossError) else {}
    with contextlib.suppress(OSError):  # a full disk takes no event either
        if not report.said_by_another(message):
            report.error(error, code=failure.code, message=message, **step)
    if failure.code == "crash":
        traceback.print_exc()
    print(f"error: {message}", file=sys.stderr, flush=True)
    return failure.exit_code


def leave(code: int) -> None:
    """End the process; after a failure without the goodbyes that peers may keep it waiting for."""
    sys.stdout.flush()
    sys.stderr.flush()
    if code != EXIT_OK:
        os._exit(code)
    sys.exit(code)


if __name__ == "__main__":
    leave(main())
