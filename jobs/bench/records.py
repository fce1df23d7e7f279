"""How fast logs are read as records, beside reading their lines and nothing else.

    python -m jobs.bench.records [--logs 2000] [FOLDER]

A tree of so many logs is made: those of FOLDER again and again, or ones in format A as its public
runs have them. It is read thrice: line by line, which decodes and splits them; as facts; and by
`read_records`, which hashes the logs and chooses as well.
"""

from __future__ import annotations

import argparse
import itertools
import resource
import shutil
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from jobs.bench.common import make_table, show, write_json
from sweeper.evidence.read import is_log, read_records
from sweeper.logreader import Lines, read_runs

OF_A_FOLDER = 3  # logs, a seed each
STEPS = 200  # lines of a log that is made here
SOURCE_LINES = 250  # of its script, which public logs begin with


def main() -> int:
    arguments = _parse()
    with tempfile.TemporaryDirectory() as directory:
        tree = Path(directory) / "records"
        logs = make_tree(tree, arguments.folder, arguments.logs)
        facts = measure(tree, logs)
    table = make_table(["read as"], ["s", "ms a log", "× lines"])
    for name in ("lines", "facts", "records"):
        seconds = facts[f"{name}_s"]
        cells = (seconds, 1000 * seconds / len(logs), seconds / facts["lines_s"])
        table.add_row(name, f"{cells[0]:.2f}", f"{cells[1]:.2f}", f"{cells[2]:.1f}")
    size = facts["bytes"] / 1e6
    note = f"{len(logs):,} logs, {size:,.1f} MB; {facts['peak_mib']:,.0f} MiB at most"
    show(table, note)
    write_json(facts, arguments.json)
    return 0


def make_tree(tree: Path, folder: Path | None, count: int) -> list[Path]:
    """So many logs in folders of three; ValueError where the folder given has none."""
    sources = [log for log in sorted(folder.rglob("*")) if is_log(log)] if folder else []
    if folder is not None and not sources:
        raise ValueError(f"{folder}: no logs in it")
    logs = []
    for number, source in zip(range(count), itertools.cycle(sources or [None]), strict=False):
        place = tree / f"{number // OF_A_FOLDER:05d}"
        place.mkdir(parents=True, exist_ok=True)
        log = place / f"train_seed{number}.log"
        if source is None:
            log.write_text("\n".join(made_log(number)) + "\n")
        else:
            shutil.copyfile(source, log)
        logs.append(log)
    return logs


def made_log(seed: int) -> Iterator[str]:
    """A log of format A, its script's source first."""
    for line in range(SOURCE_LINES):
        yield f'    log0(f"final_int{line}_roundtrip val_loss:{{loss:.8f}} val_bpb:{{bpb:.8f}}")'
    yield "train_loader:dataset:fineweb10B_sp1024 train_shards:80"
    yield "val_loader:shards pattern=./data/fineweb_val_*.bin tokens:62021632"
    yield f"seed:{seed}"
    for step in range(1, STEPS + 1):
        ms = 90 * step
        yield f"step:{step}/{STEPS} train_loss:3.1234 train_time:{ms}ms step_avg:90.00ms"
    yield f"step:{STEPS}/{STEPS} val_loss:2.1 val_bpb:1.25 train_time:{90 * STEPS}ms"
    yield "Serialized model int6+zstd: 15900000 bytes"
    yield "Code size: 60000 bytes"
    yield "Total submission size int6+zstd: 15960000 bytes"
    yield f"final_int6_sliding_window_exact val_loss:2.08 val_bpb:1.23{seed:06d} eval_time:75810ms"


def measure(tree: Path, logs: Iterable[Path]) -> dict[str, float]:
    """Seconds by way of reading, all on the same warm files."""
    paths = list(logs)
    size = sum(path.stat().st_size for path in paths)
    for path in paths:
        path.read_bytes()
    lines = _timed(lambda: [sum(1 for _ in Lines(path).read(whole=True)) for path in paths])
    facts = _timed(lambda: [read_runs(path) for path in paths])
    records = _timed(lambda: list(read_records([tree])))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return {
        "logs": len(paths),
        "bytes": size,
        "lines_s": lines,
        "facts_s": facts,
        "records_s": records,
        "peak_mib": peak,
    }


def _timed(work: Callable[[], object]) -> float:
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("folder", type=Path, nargs="?", help="of real logs (default: made ones)")
    parser.add_argument("--logs", type=int, default=2_000, metavar="N")
    parser.add_argument("--json", type=Path, metavar="FILE")
    return parser.parse_args()


if __name__ == "__main__":
    raise SystemExit(main())
