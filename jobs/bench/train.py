"""How fast a training step is, and where its time goes.

    python -m jobs.bench.train --preset record --batch-tokens 8192 --compare eager
    python -m jobs.bench.train --preset record --world 8        # eight GPUs

Times whole steps (data, forward, backward, optimiser) and each phase, without and with recurrence,
and the machine's own speed at a large matrix product in the same run, against which the use of the
hardware is stated. With `--compare eager` the steps of `jobs/bench/plain.py` are timed in turn with
ours, so that a machine whose speed drifts does not decide.
"""

from __future__ import annotations

import argparse
import dataclasses
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from jobs.bench.common import (
    add_options,
    chosen_settings,
    describe_device,
    make_table,
    seconds,
    show,
    write_json,
)
from jobs.bench.plain import PlainMuon, plain_loss
from model.attention import allow_attention, choose_attention
from model.batches import TrainData
from model.config import Config
from model.evaluate import move_to_compute
from model.failure import StopSignal
from model.gpt import GPT
from model.graphs import Graphs
from model.precision import COMPUTE_DTYPES, choose_dtype
from model.ranks import Ranks, start_ranks, stop_ranks
from model.recurrence import NO_LOOP, Loop, virtual_layers
from model.report import Report
from model.shards import train_files, write_shard
from model.trainer import Trainer

PEAK_SIZE = {"cpu": 2_048, "cuda": 8_192}
PRODUCTS = 5


def main() -> int:
    arguments = _parse()
    if arguments.world > 1 and "WORLD_SIZE" not in os.environ:
        return _under_torchrun(arguments.world)
    settings = chosen_settings(arguments)
    if arguments.batch_tokens:
        settings["train_batch_tokens"] = arguments.batch_tokens
    with tempfile.TemporaryDirectory() as scratch:
        config = Config(**(settings | {"data_dir": scratch, "run_dir": scratch}))
        ranks = start_ranks(config, os.environ)
        facts = bench(config, ranks, arguments.steps, compare=arguments.compare == "eager")
    if ranks.main:
        print_table(facts)
        write_json(facts, arguments.json)
    stop_ranks()
    return 0


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m jobs.bench.train", description=__doc__)
    add_options(parser)
    parser.add_argument("--world", type=int, default=1, help="processes (GPUs)")
    parser.add_argument("--steps", type=int, default=5, help="timed, of each kind")
    parser.add_argument("--batch-tokens", type=int, help="per step (default: the preset's)")
    parser.add_argument("--compare", choices=["eager"], help="with a plain float32 implementation")
    return parser.parse_args()


def _under_torchrun(world: int) -> int:
    torchrun = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={world}"]
    command = [sys.executable, *torchrun, "-m", "jobs.bench.train", *sys.argv[1:]]
    return subprocess.run(command, check=False).returncode


def bench(config: Config, ranks: Ranks, steps: int, *, compare: bool) -> dict[str, Any]:
    """All numbers of one configuration on this machine."""
    device = ranks.device
    dtype = choose_dtype(config, device)
    facts: dict[str, Any] = {
        "machine": describe_device(device),
        "torch": torch.__version__,
        "preset": config.preset,
        "world_size": ranks.world,
        "tokens_per_step": config.train_batch_tokens,
        "compute_dtype": dtype,
        "matmul_tflops": {
            name: round(matmul_flops(device, kind) / 1e12, 4)
            for name, kind in COMPUTE_DTYPES.items()
        },
    }
    trainer, attention = _trainer(config, ranks, dtype)
    facts |= {"compiled": trainer.graphs.compiling, "attention": vars(attention)}
    started = time.perf_counter()
    trainer.warm_up(lambda last: None)
    facts["warm_up_s"] = round(time.perf_counter() - started, 1)
    peak = 1e12 * facts["matmul_tflops"][facts["compute_dtype"]] * ranks.world
    facts["runs"] = [
        _time_loop(trainer, config, loop, steps, peak, name, compare)
        for name, loop in (("without recurrence", NO_LOOP), ("with recurrence", config.loop))
    ]
    facts["onset"] = _onset(trainer, config, steps)
    facts["peak_memory_mib"] = _peak_memory_mib(device)
    trainer.batches.close()
    return facts


def _trainer(config: Config, ranks: Ranks, dtype: str) -> tuple[Trainer, Any]:
    """A trainer on random tokens, which cost what real ones do."""
    if ranks.main:
        folder = config.data_path / "datasets" / f"fineweb10B_sp{config.vocab_size}"
        folder.mkdir(parents=True)
        count = max(4 * config.train_batch_tokens, 4 * config.train_seq_len) + 1
        tokens = np.random.default_rng(0).integers(0, config.vocab_size, count)
        write_shard(folder / "fineweb_train_000000.bin", tokens)
    config = dataclasses.replace(config, data_dir=ranks.gather(config.data_dir)[0])
    data = TrainData(
        train_files(config.data_path, config.vocab_size),
        seq_len=config.train_seq_len,
        seed=config.seed,
        vocab_size=config.vocab_size,
    )
    torch.manual_seed(config.seed)
    model = GPT(config)
    move_to_compute(model, ranks.device, dtype)
    attention = ranks.gather(choose_attention(config, ranks.device, model.compute_dtype))[0]
    allow_attention(attention.backend)
    model.set_attention(attention.backend)
    trainer = Trainer(
        config=config,
        ranks=ranks,
        report=Report(Path(config.run_dir), rank=-1),  # bench steps are nobody's events
        stop=StopSignal(),
        graphs=Graphs(model, config, ranks.device),
        data=data,
        validate=lambda step: None,
    )
    return trainer, attention


def _time_loop(
    trainer: Trainer,
    config: Config,
    loop: Loop,
    steps: int,
    peak: float,
    name: str,
    compare: bool,
) -> dict[str, Any]:
    """Whole steps and their phases with one loop in force; in turn with plain ones if asked."""
    trainer.model.set_loop(loop)
    kinds: dict[str, Callable[[], object]] = {"step": lambda: _step(trainer)}
    if compare:
        kinds["plain step"] = _plain_step(trainer, config, loop)
        kinds["plain step"]()
    times: dict[str, list[float]] = {kind: [] for kind in kinds}
    for _ in range(steps):
        for kind, run in kinds.items():
            times[kind].append(seconds(run, trainer.ranks.device))
    median = {kind: statistics.median(found) for kind, found in times.items()}
    tokens = config.train_batch_tokens
    flops = flops_per_token(trainer.model, config, loop)
    row = {
        "what": name,
        "ms_per_step": round(1000 * median["step"], 2),
        "tokens_per_s": round(tokens / median["step"]),
        "flops_per_token": flops,
        "mfu": round(flops * tokens / median["step"] / peak, 4),
        "phases_ms": _phases(trainer, steps),
    }
    if compare:
        ratios = [b / a for a, b in zip(times["step"], times["plain step"], strict=True)]
        row |= {
            "plain_tokens_per_s": round(tokens / median["plain step"]),
            "times_plain": round(statistics.median(ratios), 3),
            "times_plain_range": [round(min(ratios), 3), round(max(ratios), 3)],
        }
    return row


def _onset(trainer: Trainer, config: Config, steps: int) -> dict[str, float]:
    """Whether recurrence stalls training when it starts: the slowest step from there on."""
    device = trainer.ranks.device
    times: dict[Loop, list[float]] = {}
    for loop in (NO_LOOP, config.loop):
        trainer.model.set_loop(loop)
        times[loop] = [1000 * seconds(lambda: _step(trainer), device) for _ in range(steps)]
    median = statistics.median([ms for found in times.values() for ms in found])
    after = times[config.loop]
    return {
        "median_ms": round(median, 2),
        "first_ms": round(after[0], 2),
        "slowest_ms": round(max(after), 2),
        "slowest_by_median": round(max(after) / median, 3),
    }


def _step(trainer: Trainer) -> None:
    trainer.forward_backward().read()
    trainer.update()


def _phases(trainer: Trainer, steps: int) -> dict[str, float]:
    """Median milliseconds of each part of a step, the device awaited after each of them."""
    device, config = trainer.ranks.device, trainer.config
    sequences = config.train_batch_tokens // config.train_seq_len
    micro = config.micro_batches(trainer.ranks.world)
    share = sequences // (trainer.ranks.world * micro)
    state: dict[str, Any] = {}

    def data() -> None:
        start = trainer.ranks.rank * share * micro
        part = slice(start, start + share * micro)
        state["batch"] = trainer.batches.next_batch(sequences, part)

    def forward() -> None:
        inputs, targets = state["batch"]
        state["loss"] = trainer.network(inputs[:share], targets[:share])

    parts: dict[str, Callable[[], object]] = {
        "data": data,
        "forward": forward,
        "backward": lambda: state["loss"].backward(),
        "optimiser": trainer.update,
    }
    times: dict[str, list[float]] = {name: [] for name in parts}
    for _ in range(steps):
        for name, run in parts.items():
            times[name].append(1000 * seconds(run, device))
    scale = {"forward": micro, "backward": micro}
    return {
        name: round(scale.get(name, 1) * statistics.median(found), 2)
        for name, found in times.items()
    }


def _plain_step(trainer: Trainer, config: Config, loop: Loop) -> Callable[[], None]:
    """A step of the plain implementation, on a copy of the weights and the same batches."""
    params = {
        name: p.detach().float().clone().requires_grad_()
        for name, p in trainer.model.named_parameters()
    }
    matrices = [p for name, p in params.items() if p.ndim == 2 and ".weight" in name]
    matrices = [p for p in matrices if p.size(0) != config.vocab_size]
    rest = [p for p in params.values() if not any(p is q for q in matrices)]
    muon, adam = PlainMuon(matrices, config), torch.optim.AdamW(rest, lr=0.02, foreach=False)
    average = [p.detach().clone() for p in params.values()]
    sequences = config.train_batch_tokens // config.train_seq_len
    micro = config.micro_batches(1)

    def step() -> None:
        batch = trainer.data.next_batch(sequences, slice(None))
        inputs, targets = (t.to(trainer.ranks.device) for t in batch)
        for x, y in zip(inputs.chunk(micro), targets.chunk(micro), strict=True):
            (plain_loss(params, config, loop, x, y) / micro).backward()
        nn.utils.clip_grad_norm_(params.values(), config.grad_clip_norm, foreach=False)
        muon.step()
        adam.step()
        for p, mean in zip(params.values(), average, strict=True):
            mean.lerp_(p.detach(), 1 - config.ema_decay)
            p.grad = None

    return step


def flops_per_token(model: GPT, config: Config, loop: Loop) -> int:
    """Model FLOPs of training on one token: 6 per weight of each matrix that it passes, and
    6·T·D of causal attention per layer that runs (half of 12·T·D).
    """
    layers = virtual_layers(config.num_layers, loop)
    block = sum(p.numel() for p in model.blocks[0].parameters() if p.ndim == 2)
    head = config.vocab_size * config.embedding_dim
    extra = config.ve_dim * config.kv_dim if config.ve_enabled else 0
    attention = config.train_seq_len * config.model_dim
    return 6 * (len(layers) * (block + attention) + head + extra)


def matmul_flops(device: torch.device, dtype: torch.dtype) -> float:
    """FLOP/s of a large square matrix product: what this machine can do at best."""
    n = PEAK_SIZE[device.type]
    # Random: a GPU multiplies ones faster than anything that a model computes with.
    a, b = (torch.randn(n, n, device=device).to(dtype) for _ in range(2))
    _, *times = (seconds(lambda: a @ b, device) for _ in range(1 + PRODUCTS))
    return 2 * n**3 / min(times)


def _peak_memory_mib(device: torch.device) -> int:
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated() >> 20
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10


def print_table(facts: dict[str, Any]) -> None:
    """The numbers for a person."""
    peaks = ", ".join(f"{name} {value:.3g}" for name, value in facts["matmul_tflops"].items())
    header = (
        f"{facts['preset']} on {facts['machine']} x {facts['world_size']}, torch {facts['torch']}: "
        f"{facts['tokens_per_step']:,} tokens a step, {facts['compute_dtype']}, "
        f"{'compiled' if facts['compiled'] else 'eager'}, attention "
        f"{facts['attention']['backend']}; matrix product {peaks} TFLOP/s; "
        f"warm-up {facts['warm_up_s']} s; peak memory {facts['peak_memory_mib']:,} MiB"
    )
    phases = list(facts["runs"][0]["phases_ms"])
    compared = "times_plain" in facts["runs"][0]
    headings = ["ms/step", "tokens/s", "MFU", *(f"{name} ms" for name in phases)]
    table = make_table([""], headings + (["plain tokens/s", "times plain"] if compared else []))
    for row in facts["runs"]:
        cells = [row["what"], f"{row['ms_per_step']:,.1f}", f"{row['tokens_per_s']:,}"]
        cells += [f"{row['mfu']:.1%}", *(f"{row['phases_ms'][name]:,.1f}" for name in phases)]
        if compared:
            low, high = row["times_plain_range"]
            cells += [f"{row['plain_tokens_per_s']:,}", f"{row['times_plain']} ({low}–{high})"]
        table.add_row(*cells)
    onset = facts["onset"]
    footer = (
        f"when recurrence starts: first step {onset['first_ms']:,.1f} ms, slowest "
        f"{onset['slowest_ms']:,.1f} ms, {onset['slowest_by_median']} x the median step"
    )
    show(header, table, footer)


if __name__ == "__main__":
    sys.exit(main())
