"""A run that takes one training step as early as it can, sleeps, and says when it got how far.

Its result holds `stamps`: Unix seconds at which rank 0's process was made, this file began, torch
was imported, the ranks had found each other, the first step was done, and all was written.
"""

from __future__ import annotations

import time

BEGAN = time.time()

import os  # noqa: E402 - this file began before anything else was imported
from pathlib import Path  # noqa: E402

from jobs.bench.sleeper import finish, say_config  # noqa: E402

FEATURES = 512


def main() -> None:
    directory, seed = Path(os.environ["RUN_DIR"]), int(os.environ["SEED"])
    first = os.environ.get("RANK", "0") == "0"
    seconds = float(os.environ["SLEEP_SECONDS"])
    if first:
        level = os.environ["LOGLEVEL"]
        say_config(directory, {"seed": seed, "sleep_seconds": seconds, "loglevel": level})
    stamps = {"made": process_made(), "began": BEGAN}
    import torch
    import torch.distributed as dist

    stamps["imported"] = time.time()
    dist.init_process_group("gloo")
    dist.barrier()
    stamps["met"] = time.time()
    torch.manual_seed(seed)
    layer = torch.nn.Linear(FEATURES, FEATURES)
    optimiser = torch.optim.SGD(layer.parameters(), lr=0.1)
    layer(torch.randn(8, FEATURES)).square().mean().backward()
    for parameter in layer.parameters():
        dist.all_reduce(parameter.grad)
    optimiser.step()
    stamps["stepped"] = time.time()
    time.sleep(seconds)
    dist.destroy_process_group()
    if first:
        finish(directory, seed, stamps | {"done": time.time()})


def process_made() -> float:
    """When this process was made, whatever it has become since; to some 10 ms."""
    with open("/proc/self/stat") as file:
        ticks = int(file.read().rpartition(")")[2].split()[19])
    booted = time.time() - time.clock_gettime(time.CLOCK_BOOTTIME)
    return booted + ticks / os.sysconf("SC_CLK_TCK")


if __name__ == "__main__":
    main()
