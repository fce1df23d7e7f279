"""A driver in a process of its own, as a person would start it, with its time and memory."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import psutil

from sweeper.layout import SweepDir

PROJECT = Path(__file__).resolve().parents[2]
SAMPLE_SECONDS = 0.1


@dataclass(frozen=True, kw_only=True)
class Sample:
    """A look at a process: Unix seconds, its processor's seconds so far, the bytes it holds."""

    at: float
    cpu_s: float
    memory: int


@dataclass(kw_only=True)
class Driver:
    """What was seen of a driver's process while it ran, without the processes below it."""

    command_s: float = 0.0
    samples: list[Sample] = field(default_factory=list)

    def at(self, moment: float) -> Sample:
        """The last look before a moment, or the first of all."""
        return max(
            (sample for sample in self.samples if sample.at <= moment),
            key=lambda sample: sample.at,
            default=self.samples[0],
        )


def drive_sweep(spec: Path, *, slots: int, gpus: int) -> tuple[float, Driver]:
    """`sweeper run` on a spec, its sweep beside it; when its cluster was up, and the driver."""
    sweep = SweepDir(spec.with_suffix(""))
    command = ["-m", "sweeper.cli", "run", str(spec), "--root", str(spec.parent)]
    command += [f"--num-cpus={slots}", f"--num-gpus={gpus}"]
    ups: list[float] = []

    def notice_up() -> None:
        # The driver leaves this file as soon as it has its cluster, until it leaves that.
        if not ups:
            with suppress(FileNotFoundError):
                ups.append(sweep.nonce.stat().st_mtime)

    driver = watch(command, spec.with_suffix(".log"), notice_up)
    return ups[0], driver


def watch(command: list[str], log: Path, look: Callable[[], None]) -> Driver:
    """Run a driver to its end, with all that it says in `log`; `look` is called now and then."""
    inherited = {name: text for name, text in os.environ.items() if name != "RAY_ADDRESS"}
    path = os.pathsep.join(filter(None, [str(PROJECT), os.environ.get("PYTHONPATH")]))
    # The sweeper's runs have the driver's niceness; for those of its peers Ray is told to.
    env = {"PYTHONPATH": path, "RAY_USAGE_STATS_ENABLED": "0", "RAY_worker_niceness": "0"}
    driver, started = Driver(), time.monotonic()
    with log.open("w") as output:
        process = psutil.Popen(
            [sys.executable, *command],
            env=inherited | env,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
        )
        while process.poll() is None:
            with suppress(psutil.Error), process.oneshot():
                times = process.cpu_times()
                memory = process.memory_info().rss
                used = times.user + times.system
                driver.samples.append(Sample(at=time.time(), cpu_s=used, memory=memory))
            look()
            time.sleep(SAMPLE_SECONDS)
    driver.command_s = time.monotonic() - started
    if process.returncode != 0:
        raise SystemExit(f"{' '.join(command[:3])} has failed:\n{log.read_text()[-2000:]}")
    return driver
