"""How much of its slots' time a scheduler gives to the runs, and what it costs itself.

    python -m jobs.bench.scheduling --runs 40 --seconds 3 --slots 4 --peer tune --peer tasks

Runs that only sleep (jobs/bench/sleeper.py), on slots of 8 logical GPUs, by way of the real
`sweeper run` in a process of its own, with all that it does for a run; then by the peers, each in
its own process, with a Ray of the same size. Ideal is the sleep alone, wave after wave.

    utilisation  ideal / (first launch to last end); a launch begins, for the sweeper, before it is
                 written to the ledger, and an end is when it has been judged and written there;
                 for a peer, when its worker turns to the run, and when that has read the result
    from up      ideal / (cluster is up to last end)
    gap          end of a sleep to start of the next in the same slot, as the script saw them
    of it idle   a run's end to the next one's launch in that slot, as above
    growth       median gap of the last fifth of the runs / of the first fifth; other work on the
                 machine shows in it too, but hardly in the next
    CPU ms/run   of the driver, while the first and the last fifth of the runs ended
    CPU, memory  of the driver's process, without what Ray starts beside it; last: at the last end
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jobs.bench.common import CPU, describe_device, make_table, show, write_json
from jobs.bench.driving import Driver, drive_sweep, watch
from jobs.bench.starting import bench_starts, print_starts
from jobs.bench.timeline import Timed, Timeline, growth, ideal_seconds, percentile
from sweeper.layout import SweepDir
from sweeper.ledger import Ledger
from sweeper.rows import RunState

GPUS_PER_SLOT = 8
PEERS = ("tune", "tasks")
PROBES = 30  # of the disk, and of starting a process
SPEC = """
name = "sleep"
seeds = {seeds}

[workload]
module = "jobs.bench.sleeper"
launch = "exec"

[resources]
gpus_per_run = {gpus}

[[trial]]
name = "sleep"
[trial.env]
SLEEP_SECONDS = {seconds}
"""


def main() -> int:
    arguments = _parse()
    if arguments.directory is not None:
        arguments.directory.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="scheduling-", dir=arguments.directory) as directory:
        if arguments.torchrun:
            facts = bench_starts(Path(directory), arguments.repeats)
            print_starts(facts)
        else:
            size = Size(runs=arguments.runs, seconds=arguments.seconds, slots=arguments.slots)
            facts = bench(size, arguments.peer, arguments.repeats, Path(directory))
            print_table(facts)
    write_json(facts, arguments.json)
    return 0


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m jobs.bench.scheduling",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--runs", type=int, default=40)
    parser.add_argument("--seconds", type=float, default=3.0, help="that each run sleeps")
    parser.add_argument("--slots", type=int, default=4, help="each of 8 logical GPUs and one CPU")
    parser.add_argument("--peer", choices=PEERS, action="append", default=[])
    parser.add_argument("--repeats", type=int, default=1, help="rounds; one of each in a round")
    parser.add_argument(
        "--directory", type=Path, help="on the disk that is to be measured (default: $TMPDIR)"
    )
    parser.add_argument("--json", type=Path, help="write the numbers there")
    parser.add_argument(
        "--torchrun",
        action="store_true",
        help="instead: from a free slot to the first training step of a torchrun",
    )
    arguments = parser.parse_args()
    if min(arguments.runs, arguments.slots, arguments.repeats) < 1 or arguments.seconds < 0:
        parser.error("--runs, --slots and --repeats are at least 1, --seconds at least 0")
    if "tune" in arguments.peer and not _has_tune():
        parser.error('--peer tune needs more of Ray: pip install "ray[tune]"')
    return arguments


def _has_tune() -> bool:
    """Whether Ray Tune can be used here; found out elsewhere, since this process has no Ray."""
    tried = subprocess.run([sys.executable, "-c", "from ray import tune"], capture_output=True)
    return tried.returncode == 0


@dataclass(frozen=True, kw_only=True)
class Size:
    """How many runs of how long a sleep, on how many slots."""

    runs: int
    seconds: float
    slots: int

    @property
    def ideal(self) -> float:
        return ideal_seconds(self.runs, self.slots, self.seconds)


def bench(size: Size, peers: list[str], repeats: int, directory: Path) -> dict[str, Any]:
    """All numbers; the sweeper and its peers take turns, so that they share the machine's moods."""
    rows: list[dict[str, Any]] = []
    for number in range(repeats):
        for what in ("sweeper", *dict.fromkeys(peers)):
            place = directory / f"{number}-{what}"
            place.mkdir()
            timeline, driver = measure(what, size, place)
            rows.append({"what": what, "round": number} | describe(timeline, driver, size))
    return {
        "machine": describe_device(CPU),
        "runs": size.runs,
        "seconds": size.seconds,
        "slots": size.slots,
        "gpus_per_slot": GPUS_PER_SLOT,
        "ideal_s": size.ideal,
        "fsync_ms": 1000 * probe(lambda: _write_durably(directory / "probe")),
        "python_ms": 1000 * probe(lambda: _start(["-c", "pass"])),
        "rows": rows,
    }


def measure(what: str, size: Size, directory: Path) -> tuple[Timeline, Driver]:
    """One call of the sweeper, or of a peer; SystemExit when not every run has finished in it."""
    return _sweep(size, directory) if what == "sweeper" else _run_peer(what, size, directory)


def _sweep(size: Size, directory: Path) -> tuple[Timeline, Driver]:
    spec, sweep = directory / "sleep.toml", SweepDir(directory / "sleep")
    seeds = list(range(size.runs))
    spec.write_text(SPEC.format(seeds=seeds, gpus=GPUS_PER_SLOT, seconds=size.seconds))
    up, driver = drive_sweep(spec, slots=size.slots, gpus=GPUS_PER_SLOT * size.slots)
    return Timeline(up=up, runs=read_ledger(sweep)), driver


def read_ledger(sweep: SweepDir) -> tuple[Timed, ...]:
    """All runs of a sweep as its ledger and their results have them."""
    timed = []
    with closing(Ledger.open_for_reading(sweep.ledger)) as ledger:
        if any(run.state is not RunState.FINISHED for run in ledger.runs()):
            raise SystemExit(f"not every run has finished: look at {sweep.path}")
        attempts = {attempt.id: attempt for attempt in ledger.attempts()}
        for stage in ledger.stages():
            result = attempts[stage.attempt].result
            if result is None or stage.ended is None:
                continue
            slot, stamps = f"{stage.host} {stage.gpus}", result["stamps"]
            timed.append(Timed(slot=slot, launched=stage.launched, ended=stage.ended, **stamps))
    return tuple(timed)


def _run_peer(peer: str, size: Size, directory: Path) -> tuple[Timeline, Driver]:
    command = ["-m", "jobs.bench.peers", peer, f"--runs={size.runs}", f"--seconds={size.seconds}"]
    command += [f"--slots={size.slots}", f"--directory={directory}"]
    driver = watch(command, directory / "log", lambda: None)
    facts = json.loads((directory / "timeline.json").read_bytes())
    return Timeline(up=facts["up"], runs=tuple(Timed(**run) for run in facts["runs"])), driver


def describe(timeline: Timeline, driver: Driver, size: Size) -> dict[str, Any]:
    """The numbers of one call."""
    if len(timeline.runs) != size.runs:
        raise SystemExit(f"{len(timeline.runs)} runs have ended, not {size.runs}")
    gaps, idle = timeline.gaps(), timeline.launch_gaps()
    first, last = (
        (driver.at(end).cpu_s - driver.at(begin).cpu_s) / count
        for begin, end, count in timeline.first_and_last_fifth()
    )
    return {
        "slots_used": len({run.slot for run in timeline.runs}),
        "utilisation": size.ideal / timeline.wall,
        "utilisation_from_up": size.ideal / timeline.wall_from_up,
        "command_s": driver.command_s,
        "gap_s": _spread(gaps),
        "idle_s": _spread(idle),
        "gap_growth": growth(gaps),
        "driver_cpu_s": driver.samples[-1].cpu_s,
        "driver_cpu_s_a_run": {"first": first, "last": last},
        "driver_peak_bytes": max(sample.memory for sample in driver.samples),
        "driver_last_bytes": driver.at(timeline.end).memory,
        "load": os.getloadavg()[0],
    }


def _spread(values: list[float]) -> dict[str, float]:
    found = {"median": percentile(values, 0.5), "p95": percentile(values, 0.95)}
    return found | {"max": percentile(values, 1.0)}


def probe(act: Callable[[], None]) -> float:
    """The median of the seconds that something takes."""
    seconds = []
    for _ in range(PROBES):
        started = time.perf_counter()
        act()
        seconds.append(time.perf_counter() - started)
    return statistics.median(seconds)


def _write_durably(path: Path) -> None:
    with path.open("ab") as file:
        file.write(bytes(4096))
        file.flush()
        os.fsync(file.fileno())


def _start(arguments: list[str]) -> None:
    subprocess.run([sys.executable, *arguments], check=True)


def print_table(facts: dict[str, Any]) -> None:
    """A line for each of the schedulers: medians over the rounds, and how far they lie apart."""
    table = make_table(
        ["who"],
        [
            *("utilisation", "from up", "command s", "gap ms", "p95", "max", "of it idle ms"),
            *("growth", "CPU ms/run", "CPU s", "peak MiB", "last MiB"),
        ],
    )
    for what in dict.fromkeys(row["what"] for row in facts["rows"]):
        rows = [row for row in facts["rows"] if row["what"] == what]

        def median(name: str, part: str | None = None, rows: list[Any] = rows) -> float:
            return statistics.median(row[name][part] if part else row[name] for row in rows)

        ratios = [row["utilisation"] for row in rows]
        table.add_row(
            what,
            f"{median('utilisation'):.3f} ({min(ratios):.3f}–{max(ratios):.3f})",
            f"{median('utilisation_from_up'):.3f}",
            f"{median('command_s'):.1f}",
            *(f"{1000 * median('gap_s', part):,.0f}" for part in ("median", "p95", "max")),
            f"{1000 * median('idle_s', 'median'):,.1f}",
            f"{median('gap_growth'):.2f}",
            "–".join(f"{1000 * median('driver_cpu_s_a_run', at):.0f}" for at in ("first", "last")),
            f"{median('driver_cpu_s'):.1f}",
            *(f"{median(f'driver_{when}_bytes') / 2**20:,.0f}" for when in ("peak", "last")),
        )
    rounds = len({row["round"] for row in facts["rows"]})
    show(
        f"{facts['runs']} runs of {facts['seconds']:g} s on {facts['slots']} slots of "
        f"{facts['gpus_per_slot']} logical GPUs: {facts['ideal_s']:g} s at best; rounds: {rounds}. "
        f"{facts['machine']}; fsync {facts['fsync_ms']:.2f} ms, "
        f"a process of Python {facts['python_ms']:.0f} ms",
        table,
    )


if __name__ == "__main__":
    sys.exit(main())
