"""A run that only sleeps: what a scheduler is timed with, since all the rest is its own time.

It keeps the process contract by the standard library alone, so it begins and ends at once. Its
result holds `stamps`: the Unix seconds at which its sleep began and ended.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Mapping
from pathlib import Path

ARTIFACT = "final_model.int6.ptz"
WEIGHTS = b"asleep"
SCORES = ("val_bpb", "val_loss", "prequant_val_bpb", "quant_val_bpb")


def main() -> None:
    directory, seed = Path(os.environ["RUN_DIR"]), int(os.environ["SEED"])
    seconds = float(os.environ["SLEEP_SECONDS"])
    say_config(directory, {"seed": seed, "sleep_seconds": seconds})
    began = time.time()
    time.sleep(seconds)
    finish(directory, seed, {"began": began, "slept": time.time()})


def say_config(directory: Path, config: Mapping[str, object]) -> None:
    """The event that confirms the settings."""
    event = {"t": time.time(), "kind": "config", "config": config}
    with (directory / "events.jsonl").open("a") as file:
        file.write(json.dumps(event) + "\n")


def finish(directory: Path, seed: int, stamps: Mapping[str, float]) -> None:
    """Leave an artifact and a result, whose scores stand for nothing."""
    (directory / ARTIFACT).write_bytes(WEIGHTS)
    result = dict.fromkeys(SCORES, 1.0) | {
        "schema": 1,
        "status": "finished",
        "seed": seed,
        "metric": "plain",
        "steps": 1,
        "train_time_ms": 1.0,
        "step_avg_ms": 1.0,
        "eval_time_s": 0.0,
        "bytes_total": len(WEIGHTS),
        "bytes_code": 0,
        "bytes_model": len(WEIGHTS),
        "artifact": ARTIFACT,
        "stamps": stamps,
    }
    partial = directory / "result.json.partial"
    partial.write_text(json.dumps(result))
    partial.replace(directory / "result.json")


if __name__ == "__main__":
    main()
