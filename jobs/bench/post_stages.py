"""The stages that `jobs.bench.post_training` times, ours and the plain ones.

Each has a process of its own: it loads what it is given, times its work, and saves what later
stages take up.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from jobs.bench.common import Meter
from jobs.bench.plain_post import plain_pack, plain_prune, plain_quantize, plain_unpack
from jobs.bench.post_fit import budget_near, curvature_error, made_up_sensitivities
from jobs.bench.trained import make_trained
from model.artifact import Codec, decode, encode, encode_smallest
from model.config import Config
from model.fit import fit_by_steps
from model.gpt import GPT
from model.gptq import CODE_RANGE, Coded, quantize_all
from model.packed import CODED, Model, Packed, pack_model, with_scales
from model.pruning import PRUNED_PER_EXCESS_BYTE, fit_by_pruning, prune
from model.ranks import start_ranks
from model.rans import count_codes
from model.steps import curved_matrices

Facts = dict[str, Any]

EXCESS = 0.01  # how far over the budget the artifact is that pruning has to do with


@dataclass(frozen=True, kw_only=True)
class Job:
    """What every stage is told; `folder` holds what one leaves to the others."""

    config: Config
    spread: float
    device: torch.device
    repeats: int
    folder: Path

    def save(self, name: str, item: Any) -> None:
        torch.save(item, self.folder / name)

    def load(self, name: str) -> Any:
        return torch.load(self.folder / name, weights_only=False)

    def trained(self) -> tuple[GPT, dict[str, Tensor]]:
        """The model and its Hessians, on the device."""
        model, hessians = self.load("trained")
        moved = {id(h): h.to(self.device) for h in hessians.values()}  # shared, as they were
        return model.to(self.device), {name: moved[id(h)] for name, h in hessians.items()}

    def encode(self, packed: Model, codec: Codec) -> bytes:
        return encode(packed, self.config, self.config.loop, codec)


def build(job: Job) -> Facts:
    model, hessians = make_trained(job.config, job.spread)
    job.save("trained", (model, hessians))
    count = sum(p.numel() for p in model.parameters())
    return {"parameters": count, "weight_bytes": 4 * count}


def gptq(job: Job, meter: Meter) -> Facts:
    model, hessians = job.trained()
    weights = dict(model.named_parameters())
    coded = meter.time(lambda: quantize_all(weights, hessians), job.device)
    packed = pack_model(model, {n: with_scales("int6", *codes) for n, codes in coded.items()})
    job.save("coded", {n: (codes.cpu(), scales.cpu()) for n, (codes, scales) in coded.items()})
    job.save("packed", packed)
    return {"codes": describe_codes(packed)}


def pack(job: Job, meter: Meter, codec: Codec) -> Facts:
    packed = job.load("packed")
    data = meter.time(lambda: job.encode(packed, codec))
    job.save(codec, data)
    return {"bytes": len(data)}


def unpack(job: Job, meter: Meter, name: str, source: str = "packed") -> Facts:
    data, packed = job.load(name), job.load(source)
    _, found = meter.time(lambda: decode(data))
    assert all(np.array_equal(found[name].values, p.values) for name, p in packed.items())
    return {}


def pack_smallest(job: Job, meter: Meter, name: str, source: str = "packed") -> Facts:
    """As a run packs: by rans, unless brotli makes less of it."""
    packed, config = job.load(source), job.config
    data, codec = meter.time(lambda: encode_smallest(packed, config, config.loop, "rans"))
    job.save(name, data)
    return {"bytes": len(data), "codec": codec}


def prune_once(job: Job, meter: Meter) -> Facts:
    packed, count = job.load("packed"), _too_many(job, "rans")
    meter.time(lambda: prune(packed, count))
    return {"pruned": count}


def prune_to_fit(job: Job, meter: Meter) -> Facts:
    """As a run prunes, packing as often as it takes."""
    packed, size = job.load("packed"), len(job.load("rans"))
    budget = int((1 - EXCESS) * size)
    sizes: list[int] = []

    def packed_bytes(packed: Model) -> bytes:
        data = job.encode(packed, "rans")
        sizes.append(len(data))
        return data

    _, _, pruned = meter.time(lambda: fit_by_pruning(packed, packed_bytes, budget=budget))
    packings = len(sizes) // len(meter.seconds)
    return {"budget": budget, "bytes": sizes[-1], "pruned": pruned, "packings": packings}


def fit_steps(job: Job, meter: Meter) -> Facts:
    """As a run meets its budget by steps; and their errors by those of GPTQ and pruning there."""
    model, hessians = job.trained()
    weights, sensitivities = dict(model.named_parameters()), made_up_sensitivities(model)
    ranks = start_ranks(job.config, {})
    budget = budget_near(job.config, len(job.load("brotli")))
    rounds: list[int] = []  # the sizes that were tried

    def fit() -> tuple[dict[str, Packed], bytes]:
        rounds.clear()
        return fit_by_steps(
            curved_matrices(weights, hessians, sensitivities, sensitivities),
            lambda coded: job.encode(pack_model(model, coded), "rans"),
            ranks,
            budget=budget,
            on_round=lambda _, size: rounds.append(size),
        )

    coded, data = meter.time(fit, job.device)
    fitted = pack_model(model, coded)
    job.save("fitted", fitted)
    pruned, _, count = fit_by_pruning(
        job.load("packed"), lambda packed: job.encode(packed, "rans"), budget=budget
    )
    errors = [curvature_error(weights, p, hessians, sensitivities) for p in (fitted, pruned)]
    return {
        "budget": budget,
        "bytes": len(data),
        "rounds": len(rounds),
        "pruned": count,
        "pruned_bytes": len(job.encode(pruned, "rans")),
        "error_by_pruned": errors[0] / errors[1],
    }


def _too_many(job: Job, name: str) -> int:
    """The codes that go in the first round of pruning, by the artifact of this name."""
    return PRUNED_PER_EXCESS_BYTE * int(EXCESS * len(job.load(name)))


def gptq_plainly(job: Job, meter: Meter) -> Facts:
    model, hessians = job.load("trained")
    weights = dict(model.named_parameters())
    coded = meter.time(lambda: {n: plain_quantize(weights[n], h) for n, h in hessians.items()})
    ours = job.load("coded")
    different = sum(int((ours[n][0] != coded[n][0]).sum()) for n in coded)
    errors = [
        sum(hessian_error(weights[n], each[n], h) for n, h in hessians.items())
        for each in (ours, coded)
    ]
    return {
        "different_codes": different / sum(codes.numel() for codes, _ in coded.values()),
        "our_hessian_error_by_plain": errors[0] / errors[1],
    }


def pack_plainly(job: Job, meter: Meter) -> Facts:
    packed = job.load("packed")
    data = meter.time(lambda: plain_pack(packed))
    job.save("plain", data)
    return {"bytes": len(data)}


def unpack_plainly(job: Job, meter: Meter) -> Facts:
    data = job.load("plain")
    meter.time(lambda: plain_unpack(data))
    return {}


def prune_plainly(job: Job, meter: Meter) -> Facts:
    packed, count = job.load("packed"), _too_many(job, "plain")
    meter.time(lambda: plain_prune(packed, count))
    return {"pruned": count}


def hessian_error(weight: Tensor, coded: Coded, hessian: Tensor) -> float:
    """Squared error of the layer's outputs, summed over the inputs that the Hessian is of."""
    codes, scales = coded
    left = weight.detach() - codes * scales.float()[:, None]
    return ((left @ hessian) * left).sum().item()


def describe_codes(packed: Model) -> Facts:
    """How many bytes the codes come to at least, and what there is besides them."""
    kinds: dict[str, list[Packed]] = {}
    for p in packed.values():
        kinds.setdefault(p.kind, []).append(p)
    coded = [p for p in packed.values() if p.kind in CODED]
    int6_scales = np.concatenate([p.scales for p in kinds["int6"] if p.scales is not None])
    return {
        "bits_per_code": {kind: bits_per_code(kinds[kind]) for kind in CODED if kind in kinds},
        "entropy_bytes": round(sum(entropy_bytes(p.values) for p in coded)),
        "scale_bytes": sum(detail.nbytes for p in coded for detail in p.details()),
        "other_bytes": sum(p.values.nbytes for p in packed.values() if p.kind not in CODED),
        "scales_at_floor": float((int6_scales == np.float16(1 / CODE_RANGE)).mean()),
    }


def bits_per_code(tensors: list[Packed]) -> float:
    total = sum(entropy_bytes(p.values) for p in tensors)
    return 8 * total / sum(p.values.size for p in tensors)


def entropy_bytes(codes: np.ndarray) -> float:
    """Bytes that int8 codes come to by their frequencies alone: the order-0 entropy."""
    counts = count_codes(codes.ravel())
    counts = counts[counts > 0]
    return float(counts @ np.log2(codes.size / counts)) / 8


Stage = Callable[[Job, Meter], Facts]
# In this order, since some take what others leave; a plain one by the name of ours.
STAGES: dict[str, Stage] = {
    "gptq": gptq,
    "pack rans": lambda job, meter: pack(job, meter, "rans"),
    "unpack rans": lambda job, meter: unpack(job, meter, "rans"),
    "pack brotli": lambda job, meter: pack(job, meter, "brotli"),
    "unpack brotli": lambda job, meter: unpack(job, meter, "brotli"),
    "pack smallest": lambda job, meter: pack_smallest(job, meter, "smallest"),
    "prune": prune_once,
    "prune to fit": prune_to_fit,
    "fit steps": fit_steps,
    "pack steps": lambda job, meter: pack_smallest(job, meter, "steps", "fitted"),
    "unpack steps": lambda job, meter: unpack(job, meter, "steps", "fitted"),
}
PLAIN_STAGES: dict[str, Stage] = {
    "gptq": gptq_plainly,
    "pack": pack_plainly,
    "unpack": unpack_plainly,
    "prune": prune_plainly,
}


def run_stage(name: str, job: Job, plain: bool) -> Facts:
    """One stage in this process."""
    meter = Meter(repeats=1 if plain else job.repeats)
    found = (PLAIN_STAGES if plain else STAGES)[name](job, meter)
    return {
        "median_seconds": statistics.median(meter.seconds),
        "seconds": meter.seconds,
        "peak_bytes": meter.peak_bytes,
        **found,
    }
