"""The recipe, read top to bottom: one (config, seed) becomes one scored artifact.

    PRESET=tiny DATA_DIR=data RUN_DIR=/tmp/run torchrun --standalone -m model.train

Settings come from the environment (model/config.py), facts go to RUN_DIR (docs/ARCHITECTURE.md).
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import platform
import resource
import sys
import time
import traceback
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from model.artifact import decode, fit_by_pruning, pack_model
from model.attention import allow_attention, choose_attention
from model.batches import TrainData
from model.checkpoint import load_checkpoint
from model.config import Config
from model.evaluate import (
    DeviceTokenBytes,
    Score,
    Windows,
    evaluate,
    move_to_compute,
    usual_shape,
)
from model.failure import (
    EXIT_OK,
    EXIT_STOPPED,
    NonFiniteLossError,
    StopRequest,
    StopSignal,
    classify,
)
from model.gpt import GPT
from model.gptq import collect_hessians, quantize
from model.graphs import Graphs
from model.precision import choose_dtype
from model.ranks import Ranks, start_ranks, stop_ranks
from model.report import ARTIFACT, Report, code_bytes, write_by_rename
from model.shards import load_val_tokens, train_files, val_files
from model.tokens import load_token_bytes
from model.trainer import Trainer


@dataclass(kw_only=True)
class Validation:
    """The validation set, and how to score the model on it."""

    config: Config
    ranks: Ranks
    report: Report
    tokens: np.ndarray
    table: DeviceTokenBytes
    graphs: Graphs

    def score(self, *, step: int, metric: str, sliding: bool = False) -> Score:
        score = evaluate(
            self.graphs.nats,
            self.tokens,
            self.table,
            seq_len=self.config.eval_seq_len,
            stride=self._stride(sliding),
            batch_tokens=self.config.val_batch_tokens,
            ranks=self.ranks,
            on_progress=lambda done: self.report.event("eval", metric=metric, progress=done),
        )
        facts = {"val_loss": score.val_loss, "val_bpb": score.val_bpb}
        self.report.event("val", step=step, metric=metric, eval_time_s=score.seconds, **facts)
        return score

    def warm_up(self, last: bool) -> None:
        """Make the graphs that score the model as it is now; `last`: as it will be at the end."""
        plain = [False] if last or self.config.val_loss_every else []
        for sliding in [*plain, *([True] if last and self.config.sliding_window_enabled else [])]:
            windows = Windows(
                total=self.tokens.size - 1,
                seq_len=self.config.eval_seq_len,
                stride=self._stride(sliding),
            )
            shape = usual_shape(windows, self.config.val_batch_tokens, self.ranks)
            if shape is not None:
                self.graphs.warm_scoring(shape)

    def __call__(self, step: int) -> None:
        score = self.score(step=step, metric="plain")
        self.report.line(
            f"{step}/{self.config.iterations} val_loss: {score.val_loss:.4f} "
            f"val_bpb: {score.val_bpb:.4f}"
        )

    def _stride(self, sliding: bool) -> int:
        return self.config.eval_stride if sliding else self.config.eval_seq_len


def run(config: Config, ranks: Ranks, report: Report, stop: StopSignal) -> None:
    """Train, quantise, pack, score, and write the result."""
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
    dtype = ranks.gather(choose_dtype(config, ranks.device))[0]  # one for all ranks
    move_to_compute(model, ranks.device, dtype)
    attention = choose_attention(config, ranks.device, model.compute_dtype)
    attention = ranks.gather(attention)[0]
    allow_attention(attention.backend)
    model.set_attention(attention.backend)
    graphs = Graphs(model, config, ranks.device)
    validation = _load_validation(config, ranks, report, graphs)
    params = sum(p.numel() for p in model.parameters())
    facts = _describe(config, ranks, data, validation) | {
        "attention": vars(attention),
        "compute_dtype": dtype,
    }
    report.event("config", config=config.echo(), **facts)
    _print_hyperparameters(config, report, facts, params)

    # ---- training
    trainer = Trainer(
        config=config,
        ranks=ranks,
        report=report,
        stop=stop,
        graphs=graphs,
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
    report.line(
        f"stopping_early: {trained.stop_reason} train_time: {1000 * trained.train_seconds:.0f}ms "
        f"step: {trained.steps}/{config.iterations}"
        if trained.stop_reason == "wallclock_cap"
        else f"train_time: {1000 * trained.train_seconds:.0f}ms step: {trained.steps}"
    )
    report.line(f"peak memory allocated: {_peak_memory_mib(ranks)} MiB")

    # ---- the EMA weights, before quantisation
    hessians, hessian_seconds = _calibrate(trainer, config, ranks, report)
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

    # ---- the artifact
    artifact, quantise_seconds, pack_seconds = _make_artifact(
        model, hessians, config, ranks, report
    )
    sizes = {"bytes_code": bytes_code, "bytes_model": len(artifact)}
    sizes["bytes_total"] = sum(sizes.values())
    report.event("size", **sizes)
    report.line(f"Code size: {sizes['bytes_code']} bytes")
    report.line(f"Serialized model int6+{config.compressor}: {sizes['bytes_model']} bytes")
    report.line(f"Total submission size int6+{config.compressor}: {sizes['bytes_total']} bytes")

    # ---- the score of what the artifact holds
    report.phase("eval")
    restored, _ = decode(artifact)
    # Into the same model, whose graphs are made.
    model.load_state_dict(restored.state_dict())
    model.set_loop(restored.loop)
    plain = validation.score(step=trained.steps, metric="quant")
    _print_final(report, "final_int6_roundtrip", plain)
    headline, metric = plain, "quant"
    if config.sliding_window_enabled:
        headline = validation.score(step=trained.steps, metric="sliding", sliding=True)
        _print_final(report, "final_int6_sliding_window", headline)
        metric = "sliding"
    passes = {id(score): score.seconds for score in (before, plain, headline)}
    report.result(
        {
            "seed": config.seed,
            "metric": metric,
            "val_bpb": headline.val_bpb,
            "val_loss": headline.val_loss,
            "prequant_val_bpb": before.val_bpb,
            "prequant_val_loss": before.val_loss,
            "quant_val_bpb": plain.val_bpb,
            "quant_val_loss": plain.val_loss,
            "val_tokens": headline.tokens,
            "val_bytes": headline.bytes,
            "eval_time_s": sum(passes.values()),
            "steps": trained.steps,
            "train_time_ms": 1000 * trained.train_seconds,
            "step_avg_ms": 1000 * trained.train_seconds / max(trained.steps, 1),
            "stop_reason": trained.stop_reason,
            "resumed_from_step": resumed_from or None,
            "hessian_time_s": hessian_seconds,
            "quantise_time_s": quantise_seconds,
            "pack_time_s": pack_seconds,
            **sizes,
            "artifact": ARTIFACT,
            "artifact_sha256": hashlib.sha256(artifact).hexdigest(),
            "peak_memory_mib": _peak_memory_mib(ranks),
            "train_shards": len(data.files),
            "model_params": params,
            "config": config.echo(),
            **facts,
        }
    )
    report.phase("done")


def _calibrate(
    trainer: Trainer, config: Config, ranks: Ranks, report: Report
) -> tuple[dict[str, Tensor], float]:
    """The Hessians of the trained model over all ranks, and the seconds they took."""
    started = time.perf_counter()
    if not config.gptq_enabled:
        return {}, 0.0
    report.phase("hessians")
    inputs = trainer.calibration_inputs()
    hessians = collect_hessians(trainer.model, inputs, config.gptq_min_weights)
    for hessian in dict.fromkeys(hessians.values()):
        ranks.sum_(hessian)
    seconds = time.perf_counter() - started
    report.line(f"GPTQ:collected {len(hessians)} Hessians in {seconds:.1f}s")
    return hessians, seconds


def _make_artifact(
    model: GPT, hessians: dict[str, Tensor], config: Config, ranks: Ranks, report: Report
) -> tuple[bytes, float, float]:
    """Quantise (the ranks share the matrices), pack and write; every rank gets the bytes."""
    report.phase("quantise")
    started = time.perf_counter()
    weights = dict(model.named_parameters())
    mine = list(hessians)[ranks.rank :: ranks.world]
    codes = {name: _to_cpu(*quantize(weights[name], hessians[name])) for name in mine}
    codes = {name: code for share in ranks.gather(codes) for name, code in share.items()}
    quantised = time.perf_counter()
    report.phase("pack")
    artifact = None
    if ranks.main:
        artifact, pruned = fit_by_pruning(
            pack_model(model, codes),
            config,
            model.loop,
            budget=config.budget_bytes - code_bytes(),
        )
        if pruned:
            report.line(f"selective_prune: {pruned} codes zeroed to fit {config.budget_bytes}")
        write_by_rename(report.run_dir / ARTIFACT, artifact)
    artifact = ranks.broadcast_bytes(artifact)
    return artifact, quantised - started, time.perf_counter() - quantised


def _to_cpu(codes: Tensor, scales: Tensor) -> tuple[Tensor, Tensor]:
    return codes.cpu(), scales.cpu()


def _load_validation(config: Config, ranks: Ranks, report: Report, graphs: Graphs) -> Validation:
    table = load_token_bytes(config.tokenizer_file, config.vocab_size)
    files = val_files(config.data_path, config.vocab_size)
    return Validation(
        config=config,
        ranks=ranks,
        report=report,
        tokens=load_val_tokens(files, config.vocab_size, config.eval_seq_len),
        table=DeviceTokenBytes.of(table, ranks.device),
        graphs=graphs,
    )


def _describe(
    config: Config, ranks: Ranks, data: TrainData, validation: Validation
) -> dict[str, Any]:
    """World, hardware, versions and data: what a result depends on besides its config."""
    if ranks.device.type == "cuda":
        device = torch.cuda.get_device_name()
    else:
        device = f"cpu ({platform.processor() or platform.machine()})"
    val_hash = hashlib.sha256(validation.tokens.tobytes()).hexdigest()[:16]
    return {
        "world_size": ranks.world,
        "device": device,
        "versions": {"torch": torch.__version__, "python": platform.python_version()},
        "data": {
            "train_fingerprint": data.fingerprint,
            "train_tokens": data.tokens,
            "val_fingerprint": val_hash,
        },
    }


def _print_hyperparameters(
    config: Config, report: Report, facts: dict[str, Any], params: int
) -> None:
    report.line("Hyperparameters:")
    for name, value in sorted((config.echo() | {"world_size": facts["world_size"]}).items()):
        report.line(f"  {name}: {value}")
    report.line(f"model_params:{params}")


def _print_final(report: Report, tag: str, score: Score) -> None:
    report.line(
        f"{tag} val_loss:{score.val_loss:.8f} val_bpb:{score.val_bpb:.8f} "
        f"eval_time:{1000 * score.seconds:.0f}ms"
    )


def _peak_memory_mib(ranks: Ranks) -> int:
    """Peak memory of this rank: of the allocator on a GPU, of the process on a CPU."""
    if ranks.device.type == "cuda":
        return torch.cuda.max_memory_allocated() >> 20
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10


def main() -> int:
    """Run as one rank; returns the exit code of the process contract."""
    stop = StopSignal()
    rank = int(os.environ.get("RANK", "0"))
    report = Report(Path(os.environ.get("RUN_DIR", ".")), rank)
    try:
        stop.install()
        config = Config.from_env(os.environ)
        run(config, start_ranks(config, os.environ), report, stop)
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
