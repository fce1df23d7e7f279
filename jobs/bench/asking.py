"""What our search adds to Optuna's ask and tell, late in a long search.

    python -m jobs.bench.asking [--finished 1000] [--repeat 30] [--storage sqlite|journal]

Two studies in one storage of their own each have as many finished trials: a bare one, and that of a
planner with its ledger. In turn each is asked for a configuration and told its score; ours writes
down as well what it asked for and what it learnt, in the ledger, before Optuna is shown it.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import tempfile
import time
from contextlib import closing
from pathlib import Path

from jobs.bench.common import make_table, show, write_json
from jobs.bench.plain_study import bare_study, time_ask_and_tell
from sweeper.layout import SweepDir
from sweeper.ledger import Ledger
from sweeper.planner import Planner
from sweeper.rows import AttemptState, RunState
from sweeper.spec import SweepSpec
from sweeper.study import open_storage

SPACE = {
    "WARMDOWN_SHAPE": {"choices": ["linear", "cosine", "sqrt"]},
    "WARMDOWN_FRAC": {"low": 0.3, "high": 0.9},
    "LR_FLOOR": {"low": 0.0, "high": 0.1},
    "RECUR_START_STEP": {"low": 1_500, "high": 3_500, "step": 100},
}
RESULT = {"metric": "sliding", "bytes_total": 15_900_000}


def main() -> int:
    arguments = _parse()
    with tempfile.TemporaryDirectory() as directory:
        bare, ours = measure(
            Path(directory), arguments.storage, arguments.finished, arguments.repeat
        )
    facts = {
        "storage": arguments.storage,
        "finished": arguments.finished,
        "bare_ms": 1000 * statistics.median(bare),
        "ours_ms": 1000 * statistics.median(ours),
    }
    facts["added_ms"] = facts["ours_ms"] - facts["bare_ms"]
    table = make_table(["ask and tell"], ["least ms", "median ms"])
    for name, times in (("bare Optuna", bare), ("our search", ours)):
        table.add_row(name, f"{1000 * min(times):.1f}", f"{1000 * statistics.median(times):.1f}")
    added = f"added: {facts['added_ms']:.1f} ms (median) after {arguments.finished} trials"
    show(table, f"{added}, {arguments.storage}")
    write_json(facts, arguments.json)
    return 0


def measure(
    directory: Path, storage: str, finished: int, repeat: int
) -> tuple[list[float], list[float]]:
    """Seconds of each ask with its tell: bare Optuna's, and ours, taken in turn."""
    urls = [f"{storage}:{'///' * (storage == 'sqlite')}{directory / name}" for name in ("a", "b")]
    spec = SweepSpec.model_validate(
        {
            "name": "asking",
            "seeds": [42],
            "search": {"space": SPACE, "storage": urls[1], "budget": {"runs": 10 * finished}},
            "stage": [{"name": "race", "seeds": 1}],
        }
    )
    assert spec.search is not None
    study = bare_study(open_storage(urls[0]), spec.search, finished)
    sweep = SweepDir(directory)
    with closing(Ledger.open_for_writing(sweep.ledger, spec)) as ledger:
        fill(ledger, spec, finished)
        planner = Planner(spec, sweep, ledger, print)
        bare, ours = [], []
        for _ in range(repeat):
            bare.append(time_ask_and_tell(study, spec.search))
            ours.append(time_ours(planner, ledger))
    return bare, ours


def fill(ledger: Ledger, spec: SweepSpec, finished: int) -> None:
    """As if so many configurations had been tried, each with its one seed."""
    draw = random.Random(0)

    def write() -> None:
        for number in range(finished):
            params = {
                "WARMDOWN_SHAPE": draw.choice(("linear", "cosine", "sqrt")),
                "WARMDOWN_FRAC": draw.uniform(0.3, 0.9),
                "LR_FLOOR": draw.uniform(0.0, 0.1),
                "RECUR_START_STEP": draw.randrange(1_500, 3_501, 100),
            }
            env = json.dumps({name: str(value) for name, value in params.items()})
            result = json.dumps(RESULT | {"val_bpb": draw.random()})
            # fmt: off
            ledger.db.execute("INSERT INTO trials VALUES (?, ?, ?, ?)",
                              (number, f"t{number}", f"{number}", env))
            ledger.db.execute("INSERT INTO runs VALUES (?, ?, 42, ?)",
                              (number + 1, number, RunState.FINISHED))
            ledger.db.execute(
                "INSERT INTO attempts (run, number, state, path, host, gpus, launched, result)"
                " VALUES (?, 1, ?, '', '', '', 0, ?)", (number + 1, AttemptState.FINISHED, result))
            ledger.db.execute(
                "INSERT INTO entries (rung, number, trial, params, state, seeds)"
                " VALUES ('race', ?, ?, ?, 'complete', '[42]')",
                (number, number, json.dumps(params)))
            # fmt: on

    ledger.write(write)


def time_ours(planner: Planner, ledger: Ledger) -> float:
    """Seconds for one more configuration, from the free slot to Optuna's knowing its score."""
    begun = time.perf_counter()
    run = planner.next_run()
    asked = time.perf_counter() - begun
    assert run is not None
    # What the loop writes of any run is none of the search's cost.
    attempt = ledger.launched(run, number=1, path="", host="", gpus="")
    result = RESULT | {"val_bpb": 1.1}
    ledger.ended(attempt, AttemptState.FINISHED, RunState.FINISHED, result=result)
    begun = time.perf_counter()
    planner.over(run, RunState.FINISHED, result, None)
    return asked + time.perf_counter() - begun


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m jobs.bench.asking")
    parser.add_argument("--finished", type=int, default=1_000)
    parser.add_argument("--repeat", type=int, default=30)
    parser.add_argument("--storage", choices=("sqlite", "journal"), default="sqlite")
    parser.add_argument("--json", type=Path)
    return parser.parse_args()


if __name__ == "__main__":
    raise SystemExit(main())
