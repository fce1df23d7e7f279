"""The peers of `jobs.bench.scheduling`: the same sleeping runs by other means of Ray.

    python -m jobs.bench.peers tasks --runs 40 --seconds 3 --slots 4 --directory DIR

`tune`: each run is a trial of Ray Tune; `tasks`: each is a bare Ray task. Either starts the script
in a process of its own, as the sweeper does, and has a Ray of its own, as large as the sweeper's.
No guard, no ledger, no second attempt. DIR/timeline.json says how it went.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import ray

from jobs.bench.timeline import Timed

GPUS_PER_SLOT = 8
TIMELINE = "timeline.json"


def main() -> int:
    arguments = _parse()
    quiet: dict[str, Any] = {"log_to_driver": False, "logging_level": "ERROR"}
    size = {"num_cpus": arguments.slots, "num_gpus": GPUS_PER_SLOT * arguments.slots}
    ray.init("local", include_dashboard=False, **size, **quiet)
    up = time.time()
    run = PEERS[arguments.peer]
    timed = run(arguments.runs, arguments.seconds, arguments.directory)
    timeline = {"up": up, "runs": [asdict(run) for run in timed]}
    (arguments.directory / TIMELINE).write_text(json.dumps(timeline))
    return 0


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m jobs.bench.peers", description=__doc__)
    parser.add_argument("peer", choices=list(PEERS))
    parser.add_argument("--runs", type=int, required=True)
    parser.add_argument("--seconds", type=float, required=True)
    parser.add_argument("--slots", type=int, required=True)
    parser.add_argument("--directory", type=Path, required=True)
    return parser.parse_args()


def sleep_once(directory: Path, seed: int, seconds: float) -> dict[str, Any]:
    """Start the script, wait for its end, read its result; called in a worker of Ray."""
    launched = time.time()
    directory.mkdir(parents=True)
    gpus = ",".join(map(str, ray.get_gpu_ids()))
    own = {"RUN_DIR": directory, "SEED": seed, "SLEEP_SECONDS": seconds}
    with (directory / "stdout.log").open("ab") as log:
        subprocess.run(
            [sys.executable, "-m", "jobs.bench.sleeper"],
            env=os.environ | {name: str(value) for name, value in own.items()},
            stdout=log,
            stderr=log,
            check=True,
        )
    result = json.loads((directory / "result.json").read_bytes())
    return asdict(Timed(slot=gpus, launched=launched, ended=time.time(), **result["stamps"]))


def run_tasks(runs: int, seconds: float, directory: Path) -> list[Timed]:
    """All runs as tasks, submitted at once; Ray hands them out as its GPUs become free."""
    task = ray.remote(num_gpus=GPUS_PER_SLOT, num_cpus=1)(sleep_once)
    waiting = [task.remote(directory / str(seed), seed, seconds) for seed in range(runs)]
    return [Timed(**facts) for facts in ray.get(waiting)]


def run_tune(runs: int, seconds: float, directory: Path) -> list[Timed]:
    """All runs as trials of one grid, which Tune starts as its placement groups become free."""
    from ray import tune

    def trial(config: dict[str, Any]) -> None:
        seed = config["seed"]
        tune.report(sleep_once(directory / str(seed), seed, seconds))

    tuner = tune.Tuner(
        tune.with_resources(trial, {"gpu": GPUS_PER_SLOT, "cpu": 1}),
        param_space={"seed": tune.grid_search(list(range(runs)))},
        run_config=tune.RunConfig(storage_path=str(directory / "tune"), verbose=0),
    )
    names = Timed.__dataclass_fields__
    results = tuner.fit()
    return [Timed(**{name: result.metrics[name] for name in names}) for result in results]


PEERS = {"tasks": run_tasks, "tune": run_tune}


if __name__ == "__main__":
    sys.exit(main())
