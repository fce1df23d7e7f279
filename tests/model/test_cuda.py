"""What only a GPU runs: its attention, its copies, its collectives, and the whole line on it.

Each is held to what a CPU makes of the same, or to float32.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel

from model.attention import SWITCHES, allow_attention, causal_attention, choose_attention
from model.batches import Prefetcher, TrainData
from model.calibrate import collect_hessians, collect_sensitivities
from model.config import Config
from model.evaluate import move_to_compute
from model.failure import EXIT_OOM, EXIT_STOPPED
from model.gpt import GPT
from model.gptq import quantize_all
from model.graphs import Graphs
from model.loss import mean_cross_entropy
from model.muon import SharedUpdate, muon_update
from model.ranks import Ranks
from model.shards import train_files
from model.trainer import HostScalar
from tests.model.conftest import ROOT, SMALL, VOCAB, Train, train_environment
from tests.model.test_checkpoint import interrupt, losses
from tests.model.test_gptq import correlated_hessian

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU")

CPU, GPU = torch.device("cpu"), torch.device("cuda", 0)
CONFIG = Config.from_env(SMALL | {"DEVICE": "cuda"})
LIMITED = (
    "import torch; torch.cuda.set_per_process_memory_fraction(0.001); "
    "from model.train import leave, main; leave(main())"
)


@pytest.fixture(autouse=True)
def any_attention_again() -> Iterator[None]:
    yield
    allow_attention("sdpa")


def relative(found: Tensor, wanted: Tensor) -> float:
    found, wanted = found.detach().double().cpu(), wanted.detach().double().cpu()
    return float((found - wanted).norm() / wanted.norm())


def twins(dtype: str = "float32") -> tuple[GPT, GPT]:
    """The same network twice: in float32 on the CPU, and in a dtype on the GPU."""
    torch.manual_seed(0)
    models = GPT(CONFIG), GPT(CONFIG)
    with torch.no_grad():
        for p in models[0].parameters():
            p.add_(0.05 * torch.randn_like(p))
    models[1].load_state_dict(models[0].state_dict())
    move_to_compute(models[1], GPU, dtype)
    for model in models:
        model.set_recurrence_active(True)
    return models


def tokens(*shape: int) -> Tensor:
    return torch.randint(0, VOCAB, shape, generator=torch.Generator().manual_seed(1))


# ---- its parts


@pytest.mark.parametrize("name", ["cudnn", "flash", "efficient", "math", "sdpa"])
def test_every_attention_computes_the_same(name: str) -> None:
    torch.manual_seed(0)
    q, k, v = (torch.randn(2, 256, heads, 64, requires_grad=True) for heads in (8, 4, 4))
    wanted = causal_attention(q, k, v, "sdpa")
    weights = torch.randn_like(wanted)
    gradients = torch.autograd.grad((wanted * weights).sum(), (q, k, v))
    allow_attention(name)
    half = [x.detach().to(GPU, torch.bfloat16).requires_grad_() for x in (q, k, v)]
    try:
        found = causal_attention(half[0], half[1], half[2], name)
    except RuntimeError as error:
        pytest.skip(f"this one cannot run here: {error}")
    assert relative(found, wanted) < 1e-2
    ours = torch.autograd.grad((found * weights.to(GPU)).sum(), half)
    assert max(relative(a, b) for a, b in zip(ours, gradients, strict=True)) < 2e-2
    last = causal_attention(half[0][:, -64:], half[1], half[2], name)
    assert relative(last, wanted[:, -64:]) < 1e-2


def test_the_fastest_attention_is_chosen() -> None:
    choice = choose_attention(Config(), GPU, torch.bfloat16)
    assert choice.backend in choice.measured_ms
    assert choice.measured_ms[choice.backend] == min(choice.measured_ms.values())
    assert set(choice.measured_ms) <= {"fa3", *SWITCHES}


@pytest.mark.parametrize(("dtype", "tolerance"), [("float32", 1e-4), ("bfloat16", 4e-2)])
def test_losses_and_gradients_are_the_cpus(dtype: str, tolerance: float) -> None:
    plain, model = twins(dtype)
    x = tokens(2, 65)
    wanted = plain(x[:, :-1], x[:, 1:])
    found = model(x[:, :-1].to(GPU), x[:, 1:].to(GPU))
    assert relative(found, wanted) < tolerance
    wanted.backward()
    found.backward()
    ours, theirs = (
        torch.cat([p.grad.flatten().cpu() for p in each.parameters() if p.grad is not None])
        for each in (model, plain)
    )
    assert relative(ours, theirs) < 3 * tolerance
    scored = x[:, -8:]
    assert (
        relative(model.nats(x[:, :-1].to(GPU), scored.to(GPU)), plain.nats(x[:, :-1], scored))
        < tolerance
    )


def test_the_loss_in_parts_is_the_cpus() -> None:
    torch.manual_seed(0)
    hidden, weight = torch.randn(20_000, 64), 0.5 * torch.randn(4096, 64)
    targets = torch.randint(0, 4096, (20_000,))
    on_gpu = [x.to(GPU).requires_grad_() for x in (hidden, weight)]
    on_cpu = [x.requires_grad_() for x in (hidden, weight)]
    found = mean_cross_entropy(on_gpu[0], on_gpu[1], targets.to(GPU), 30.0)
    wanted = mean_cross_entropy(on_cpu[0], on_cpu[1], targets, 30.0)
    assert relative(found, wanted) < 1e-5
    for a, b in zip(
        torch.autograd.grad(found, on_gpu), torch.autograd.grad(wanted, on_cpu), strict=True
    ):
        assert relative(a, b) < 1e-4


def test_batches_come_from_pinned_memory_and_are_the_cpus(data_dir: Path) -> None:
    def data() -> TrainData:
        return TrainData(train_files(data_dir, VOCAB), seq_len=64, seed=1, vocab_size=VOCAB)

    ahead, plain = Prefetcher(data(), GPU), data()
    for _ in range(3):
        ours, theirs = ahead.next_batch(4, slice(1, 3)), plain.next_batch(4, slice(1, 3))
        for a, b in zip(ours, theirs, strict=True):
            assert a.device == GPU
            assert torch.equal(a.cpu(), b)
    assert ahead._ahead is not None
    assert all(part.is_pinned() for part in ahead._ahead[1].result())
    ahead.close()


def test_a_scalar_reaches_the_host_without_the_work_behind_it() -> None:
    value = HostScalar(torch.full((), 3.0, device=GPU))
    torch.cuda._sleep(1_000_000)
    assert value._copy.is_pinned()
    assert value.read() == 3.0


# ---- after training


def test_hessians_and_sensitivities_are_the_cpus() -> None:
    plain, model = twins("bfloat16")
    batches = [tokens(4, 64), tokens(2, 64)]
    wanted = collect_hessians(plain, batches, CONFIG.gptq_min_weights)
    found = collect_hessians(model, [x.to(GPU) for x in batches], CONFIG.gptq_min_weights)
    assert found.keys() == wanted.keys()
    for name, hessian in found.items():
        assert hessian.dtype == torch.float32
        assert relative(hessian, wanted[name]) < 3e-2, name
    pairs = [(x[:1, :-1], x[:1, 1:]) for x in batches]
    costs = collect_sensitivities(plain, pairs)
    ours = collect_sensitivities(model, [(x.to(GPU), y.to(GPU)) for x, y in pairs])
    for name, cost in ours.items():
        assert relative(cost.rows, costs[name].rows) < 0.3, name


def test_gptq_gives_the_cpus_codes() -> None:
    torch.manual_seed(0)
    shapes = [(48, 64), (64, 48), (48, 64), (96, 160)]
    weights = {f"w{i}": 0.5 * torch.randn(shape) for i, shape in enumerate(shapes)}
    hessians = {name: correlated_hessian(w.size(1)) for name, w in weights.items()}
    wanted = quantize_all(weights, hessians)
    there = [{n: x.to(GPU) for n, x in each.items()} for each in (weights, hessians)]
    found = quantize_all(there[0], there[1])
    for name, (codes, scales) in found.items():
        assert torch.equal(scales.cpu(), wanted[name][1])
        assert (codes.cpu() != wanted[name][0]).float().mean() < 5e-3


# ---- collectives


@pytest.fixture
def nccl(tmp_path: Path) -> Iterator[Ranks]:
    """The one rank of an NCCL group: NCCL has no two on one GPU."""
    dist.init_process_group(
        "nccl", init_method=f"file://{tmp_path / 'store'}", rank=0, world_size=1
    )
    yield Ranks(rank=0, world=1, device=GPU, control=dist.new_group(backend="gloo"))
    dist.destroy_process_group()


def test_ranks_agree_over_gloo_beside_nccl(nccl: Ranks) -> None:
    assert nccl.agree([1.0, 2.5]) == [1.0, 2.5]
    assert nccl.gather("x") == ["x"]
    assert nccl.broadcast_bytes(b"abc") == b"abc"
    total = torch.ones(2, dtype=torch.float64, device=GPU)
    dist.all_reduce(total)
    assert total.tolist() == [1.0, 1.0]


def test_updates_are_shared_by_nccl(nccl: Ranks) -> None:
    torch.manual_seed(0)
    stacked = torch.randn(5, 64, 32, device=GPU)
    received = SharedUpdate(stacked, 5).receive()
    assert torch.equal(received, muon_update(stacked, 5))


def test_compiled_gradients_are_exchanged_by_nccl(nccl: Ranks) -> None:
    _, model = twins()
    x = tokens(4, 65).to(GPU)
    graphs = Graphs(model, CONFIG, GPU)
    assert graphs.compiling
    network = DistributedDataParallel(graphs.network, gradient_as_bucket_view=True)
    with network.no_sync():
        network(x[:2, :-1], x[:2, 1:]).backward()
    network(x[2:, :-1], x[2:, 1:]).backward()
    found = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad(set_to_none=True)
    (model(x[:2, :-1], x[:2, 1:]) + model(x[2:, :-1], x[2:, 1:])).backward()
    for name, p in model.named_parameters():
        assert p.grad is not None
        assert relative(found[name], p.grad) < 1e-3, name


# ---- whole runs


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_whole_line_without_a_late_graph(train: Train, dtype: str) -> None:
    settings: dict[str, Any] = {"iterations": 8, "recur_start_step": 4, "val_loss_every": 4}
    done = train("gpu", device="cuda", compute_dtype=dtype, **settings)
    assert done.returncode == 0, done.stderr
    assert done.of_kind("warning") == []
    assert done.result["device"] == torch.cuda.get_device_name()
    assert done.result["compute_dtype"] == dtype
    assert done.result["attention"]["backend"] in done.result["attention"]["measured_ms"]
    plain = train("cpu", **settings)
    tolerance = 2e-3 if dtype == "float32" else 2e-2
    np.testing.assert_allclose(done.losses, plain.losses, rtol=tolerance)
    assert done.result["val_bpb"] == pytest.approx(plain.result["val_bpb"], rel=5 * tolerance)


def test_stages_apart_are_the_whole_run(train: Train) -> None:
    settings = {"device": "cuda", "compile": 0}
    whole = train("whole", **settings)
    for stage in ("train", "pack", "score"):
        apart = train("apart", stage=stage, **settings)
        assert apart.returncode == 0, apart.stderr
    assert apart.result["val_bpb"] == pytest.approx(whole.result["val_bpb"], rel=5e-3)


def test_a_resumed_run_goes_on(train: Train, data_dir: Path, tmp_path: Path) -> None:
    settings: dict[str, Any] = {"iterations": 80, "train_log_every": 1, "recur_start_step": 40}
    settings |= {"device": "cuda", "compile": 0}
    first = tmp_path / "first"
    assert interrupt(data_dir, first, signal.SIGTERM, step=5, **settings) == EXIT_STOPPED
    second, whole = train("second", resume_from=first, **settings), train("whole", **settings)
    assert second.returncode == 0, second.stderr
    ours, theirs = losses(first, second), losses(whole)
    assert list(ours) == list(theirs)
    np.testing.assert_allclose(list(ours.values()), list(theirs.values()), rtol=5e-3)


def test_memory_that_is_not_there_has_its_exit_code(data_dir: Path, tmp_path: Path) -> None:
    run_dir = tmp_path / "run"
    settings = {"device": "cuda", "compile": 0, "train_batch_tokens": 1 << 19}
    done = subprocess.run(
        [sys.executable, "-c", LIMITED],
        cwd=ROOT,
        env=train_environment(data_dir, run_dir, **settings),
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert done.returncode == EXIT_OOM, done.stderr
    assert "raise GRAD_ACCUM_STEPS" in done.stderr
    assert '"code": "oom"' in (run_dir / "events.jsonl").read_text()


def test_more_ranks_than_gpus_are_refused(train: Train) -> None:
    done = train(device="cuda", local_rank=torch.cuda.device_count())
    assert done.returncode == 2
    assert "needs its own GPU" in done.stderr
    assert os.environ.get("LOCAL_RANK") is None
