"""What the benches share: options, a clock that waits for the device, how numbers are shown."""

from __future__ import annotations

import argparse
import contextlib
import json
import multiprocessing
import time
from collections.abc import Callable, Iterable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import torch
from rich.console import Console
from rich.table import Table

from model.presets import PRESETS

Result = TypeVar("Result")

CPU = torch.device("cpu")
WIDTH = 160
ENOUGH_SECONDS = 10.0  # what took so long is not run again


def add_options(parser: argparse.ArgumentParser) -> None:
    """Which network, and where the numbers go."""
    parser.add_argument("--preset", choices=list(PRESETS), default="record")
    parser.add_argument("--json", type=Path, help="write the numbers there")
    parser.add_argument(
        "--env",
        type=lambda text: text.split("=", 1),
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help="any other setting, as COMPILE=1",
    )


def chosen_settings(arguments: argparse.Namespace) -> dict[str, Any]:
    """The fields of a Config that the options of `add_options` ask for."""
    settings: dict[str, Any] = dict(PRESETS[arguments.preset]) | {"preset": arguments.preset}
    return settings | {name.lower(): value for name, value in arguments.env}


def seconds(run: Callable[[], Any], device: torch.device) -> float:
    """How long `run` takes, all that it starts on the device included."""
    _wait(device)
    started = time.perf_counter()
    run()
    _wait(device)
    return time.perf_counter() - started


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize()


@dataclass(kw_only=True)
class Meter:
    """Times what a stage does, and finds the memory that its first time takes."""

    repeats: int
    seconds: list[float] = field(default_factory=list)
    peak_bytes: int = 0

    def time(self, run: Callable[[], Result], device: torch.device = CPU) -> Result:
        """What `run` returns; it runs `repeats` times unless that would take long."""
        results: list[Result] = []
        before = _restart_peak(device)
        while not results or (
            len(self.seconds) < self.repeats and sum(self.seconds) < ENOUGH_SECONDS
        ):
            results.clear()
            self.seconds.append(seconds(lambda: results.append(run()), device))
            if len(self.seconds) == 1:
                self.peak_bytes = _peak(device) - before
        return results[0]


def _restart_peak(device: torch.device) -> int:
    """The bytes in use now; `_peak` will tell of what comes after."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
        return torch.cuda.memory_allocated()
    with contextlib.suppress(OSError):  # without that, loading counts where it took more
        Path("/proc/self/clear_refs").write_text("5")
    return _memory("VmRSS")


def _peak(device: torch.device) -> int:
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated()
    return _memory("VmHWM")


def _memory(name: str) -> int:
    """Bytes that the system counts under this name for this process."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith(name))


def in_fresh_process(run: Callable[..., Result], *arguments: Any) -> Result:
    """What a module's function returns in a process that has done nothing yet."""
    context = multiprocessing.get_context("forkserver")
    # Imported once for all of them; torch itself would import the second when a stage needs it.
    context.set_forkserver_preload([run.__module__, "torch._dynamo"])
    with ProcessPoolExecutor(1, mp_context=context) as pool:
        return pool.submit(run, *arguments).result()


def describe_device(device: torch.device) -> str:
    """The GPU by its name; a CPU by its name and the threads that torch has."""
    if device.type == "cuda":
        return torch.cuda.get_device_name()
    model = next(
        (line.split(":", 1)[1].strip() for line in _cpuinfo() if line.startswith("model name")),
        "CPU",
    )
    return f"{model}, {torch.get_num_threads()} threads"


def _cpuinfo() -> list[str]:
    try:
        return Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return []


def make_table(texts: Iterable[str], numbers: Iterable[str]) -> Table:
    """An empty table: columns of text to the left, of numbers to the right."""
    table = Table()
    for heading in texts:
        table.add_column(heading)
    for heading in numbers:
        table.add_column(heading, justify="right")
    return table


def show(*parts: str | Table) -> None:
    """Lines and tables, for a person."""
    console = Console(width=WIDTH)
    for part in parts:
        console.print(part, highlight=False)


def write_json(facts: dict[str, Any], path: Path | None) -> None:
    """The numbers for a program, where a file is asked for."""
    if path is not None:
        path.write_text(json.dumps(facts, indent=1) + "\n")
