"""A workload for tests of the sweeper: keeps the process contract, or breaks it as FAULT says.

It imports nothing but the standard library, so that it starts at once. Every run, and every stage
of one, leaves its mark on a board: a directory that the test reads, and where it lets runs go on.
"""

from __future__ import annotations

import hashlib
import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

PATIENCE_SECONDS = 120.0
POLL_SECONDS = 0.02
VAL_SECONDS = 1.0
BUDGET = 16_000_000
CODE_BYTES = 1_000
ARTIFACT = "final_model.int6.ptz"
USEFUL_SECONDS = 0.01
PHASES = {"all": "train", "train": "train", "pack": "pack", "score": "eval"}
NEEDS: dict[str, list[str]] = {
    "all": [],
    "train": [],
    "pack": ["trained.pt", "trained.json"],
    "score": ["trained.json", "packed.json", ARTIFACT],
}

# Every setting with its default; a run echoes all of them.
DEFAULTS: dict[str, int | str] = {
    "seed": 0,
    "iterations": 2,
    "board_dir": "",
    "fault": "none",
    "beats": 0,  # tell of a step again and again while it waits or sleeps
    "gated": 0,  # wait in the middle until the board says that this arrival may pass
    "stage_fault": "none",  # "STAGE FAULT": a fault in that stage alone
    "trained_bytes": 1_000,
    "paired": 0,  # wait until as many runs have arrived as make whole pairs
    "artifact_bytes": 1_000,
    "noise_lines": 1,  # printed to both streams
    "sleep_ms": 0,  # how long the work takes
    "vals": 0,  # validations on the way, each followed by VAL_SECONDS of training
    "peers": 0,  # the other ranks stay as long as rank 0 is at work
}

# FAULT -> exit code and the code of the error event that goes with it.
SAID_FAULTS = {
    "user error": (2, "user"),
    "non-finite": (3, "nonfinite"),
    "out of memory": (4, "oom"),
}
LINGERER = """
import signal, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
while True:
    time.sleep(1)
"""
# By two forks, in a session of its own, with nothing of its parent's open.
DAEMON = (
    """
import os, sys
if os.fork():
    os._exit(0)
os.setsid()
if pid := os.fork():
    with open(sys.argv[1], "w") as file:
        file.write(str(pid))
    os._exit(0)
os.closerange(0, 1024)
"""
    + LINGERER
)


class Board:
    """What the runs of a test write for each other and for the test."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def arrive(self, facts: dict[str, Any]) -> int:
        """Take the next number of arrival, from 1 on, and leave the facts under it."""
        number = 1
        partial = self.path / f".{os.getpid()}"
        partial.write_text(json.dumps(facts))
        while True:
            try:
                os.link(partial, self.path / f"arrival-{number}.json")
            except FileExistsError:
                number += 1
            else:
                partial.unlink()
                return number

    def depart(self, number: int) -> None:
        """Leave word that a run is at its end."""
        partial = self.path / f".departure-{number}"
        partial.write_text(json.dumps({"end": time.time()}))
        partial.replace(self.path / f"departure-{number}.json")

    def arrivals(self) -> int:
        return len(list(self.path.glob("arrival-*.json")))

    def may_pass(self, number: int) -> bool:
        """Whether this arrival may pass the gate: all up to it may, or it alone."""
        return self.passable() >= number or (self.path / f"pass-{number}").exists()

    def passable(self) -> int:
        """The last arrival that may pass the gate."""
        try:
            return int((self.path / "gate").read_text())
        except FileNotFoundError:
            return 0

    def first_time(self, what: str) -> bool:
        """Whether nobody has asked for this before."""
        try:
            (self.path / what).touch(exist_ok=False)
        except FileExistsError:
            return False
        return True

    def take(self, what: str) -> bool:
        """Whether this was there to be taken; one taker has it."""
        try:
            (self.path / what).unlink()
        except FileNotFoundError:
            return False
        return True

    def mended(self) -> bool:
        return (self.path / "mended").exists()


class Run:
    """One rank-0 process of this workload."""

    def __init__(self) -> None:
        self.config = {name: setting(name) for name in DEFAULTS}
        self.seed, self.fault = int(self.config["seed"]), str(self.config["fault"])
        self.board = Board(Path(str(self.config["board_dir"])))
        self.stage = os.environ.get("STAGE", "all")
        stage, _, fault = str(self.config["stage_fault"]).partition(" ")
        if stage == self.stage:
            self.fault = fault
        if self.fault == "know no stages":
            self.stage = "all"
        self.stopping = False
        signal.signal(signal.SIGTERM, self.receive)

    def receive(self, _number: int, _frame: object) -> None:
        self.stopping = True

    def main(self) -> int:
        echo = self.config | ({"iterations": -1} if self.fault == "deaf to settings" else {})
        self.event("config", config=echo, world_size=int(os.environ.get("WORLD_SIZE", "1")))
        if self.fault == "ignore SIGTERM":
            signal.signal(signal.SIGTERM, lambda *_: (self.board.path / "told to end").touch())
        self.event("phase", phase=PHASES[self.stage])
        if self.stage in ("all", "train"):
            self.event("step", step=1, train_loss=3.5, progress=0.5)
        for line in range(int(self.config["noise_lines"])):
            print(f"line {line} of seed {self.seed}: größer als ß")
            print(f"line {line} of seed {self.seed}, said as an error", file=sys.stderr)
        number = self.board.arrive(self.facts())
        while self.must_wait(number):
            if self.stopping and self.fault == "finish when told to end":
                break
            if self.stopping:
                self.event("stopped", reason="SIGTERM", step=1)
                return 75
            self.beat()
            time.sleep(POLL_SECONDS)
        self.sleep(int(self.config["sleep_ms"]) / 1000)
        if self.validate() is not None:
            return 75
        code = self.break_down()
        if code == 0:
            code = self.do_stage()
        self.board.depart(number)
        return code

    def beat(self) -> None:
        if self.config["beats"]:
            self.event("step", step=0, train_loss=1.0)

    def sleep(self, seconds: float) -> None:
        until = time.monotonic() + seconds
        while (left := until - time.monotonic()) > 0:
            self.beat()
            time.sleep(min(left, POLL_SECONDS) if self.config["beats"] else left)

    def validate(self) -> str | None:
        """Score on the way, from worse to what the result will be; why it was stopped meanwhile."""
        count = int(self.config["vals"])
        for number in range(1, count + 1):
            share = number / (count + 1)
            self.event("step", step=number, train_loss=3.5, progress=share)
            bpb = self.result_bpb() + 0.1 * (1 - share)
            self.event("val", step=number, metric="plain", val_loss=2.5, val_bpb=bpb)
            until = time.monotonic() + VAL_SECONDS
            while time.monotonic() < until:
                if self.stopping:
                    self.event("stopped", reason="SIGTERM", step=number)
                    return "SIGTERM"
                time.sleep(POLL_SECONDS)
        return None

    def result_bpb(self) -> float:
        return 1.1 + (self.seed % 10) / 1000 + int(self.config["iterations"]) / 100

    def facts(self) -> dict[str, Any]:
        return {
            "seed": self.seed,
            "stage": self.stage,
            "nice": os.nice(0),
            "threads": os.environ["OMP_NUM_THREADS"],
            "iterations": self.config["iterations"],
            "pid": os.getpid(),
            "start": time.time(),
            "gpus": os.environ.get("CUDA_VISIBLE_DEVICES"),
            "directory": os.environ["RUN_DIR"],
            "module": __file__,
        }

    def must_wait(self, number: int) -> bool:
        if self.fault == "ignore SIGTERM" and not self.board.mended():
            return True
        if self.config["gated"] and not self.board.may_pass(number):
            return True
        return bool(self.config["paired"]) and self.board.arrivals() < number + number % 2

    def break_down(self) -> int:
        """Do what FAULT says; the exit code."""
        if self.fault in SAID_FAULTS:
            code, word = SAID_FAULTS[self.fault]
            self.event("error", error="Fault", message=self.fault, traceback="", code=word)
            return code
        if self.fault == "crash" and not self.board.mended():
            raise RuntimeError("crashed as asked")
        if self.fault == "crash once" and self.board.first_time(
            f"crashed-{self.stage}-{self.seed}"
        ):
            raise RuntimeError("crashed the first time")
        if self.fault == "crash on a broken node" and "NODE_IS_BROKEN" in os.environ:
            raise RuntimeError("the node is broken")
        if self.fault == "leave a process behind":
            self.leave_process()
        if self.fault == "leave a daemon behind":
            subprocess.run(
                [sys.executable, "-I", "-S", "-c", DAEMON, str(self.board.path / "lingerer")],
                env={},
                check=True,
            )
        return 0

    def leave_process(self) -> None:
        """Start one that outlives its parent, in a session of its own, carrying no tag."""
        lingerer = subprocess.Popen(
            [sys.executable, "-I", "-S", "-c", LINGERER], env={}, start_new_session=True
        )
        (self.board.path / "lingerer").write_text(str(lingerer.pid))

    def do_stage(self) -> int:
        """Read what the stage needs and write what it leaves; the exit code."""
        missing = [name for name in NEEDS[self.stage] if not Path(name).exists()]
        if missing:
            self.event("error", error="Fault", message=f"{missing}", traceback="", code="user")
            return 2
        if self.stage == "train" and self.fault != "no result":
            Path("trained.pt").write_bytes(self.noise(int(self.config["trained_bytes"])))
            self.write_json("trained.json", schema=1, status="trained")
        if self.stage == "pack":
            if Path("trained.pt").read_bytes() != self.noise(int(self.config["trained_bytes"])):
                raise RuntimeError("trained.pt is not what training wrote")
            facts = self.write_artifact()
            self.write_json("packed.json", schema=1, status="packed", **facts)
            Path("trained.pt").unlink()
        if self.stage in ("score", "all"):
            self.write_result()
            self.event("phase", phase="done")
        return 0

    def write_json(self, name: str, **facts: object) -> None:
        partial = Path(f"{name}.partial")
        partial.write_text(json.dumps(facts))
        partial.replace(name)

    def noise(self, size: int) -> bytes:
        return random.Random(self.seed).randbytes(size)

    def write_artifact(self) -> dict[str, Any]:
        """Write the artifact; what a result says of it."""
        size = BUDGET if self.fault == "too large" else int(self.config["artifact_bytes"])
        data = self.noise(size)
        Path(ARTIFACT).write_bytes(data)
        return {
            "bytes_total": size + CODE_BYTES,
            "bytes_code": CODE_BYTES,
            "bytes_model": size,
            "artifact": ARTIFACT,
            "artifact_sha256": hashlib.sha256(data).hexdigest(),
        }

    def artifact_facts(self) -> dict[str, Any]:
        if self.stage == "all":
            return self.write_artifact()
        data = Path(ARTIFACT).read_bytes()
        facts: dict[str, Any] = json.loads(Path("packed.json").read_text())
        if hashlib.sha256(data).hexdigest() != facts["artifact_sha256"]:
            raise RuntimeError("the artifact is not what packing wrote")
        return {name: facts[name] for name in facts.keys() - {"schema", "status"}}

    def write_result(self) -> None:
        result = self.result()
        text = json.dumps(result)
        torn = self.fault == "tear result when told" and self.board.take("tear")
        if torn or self.fault == "corrupt result":
            text = text[: len(text) // 2]
        partial = Path("result.json.partial")
        partial.write_text(text)
        if self.fault != "no result":
            partial.replace("result.json")

    def result(self) -> dict[str, Any]:
        bpb = self.result_bpb()
        return {
            "schema": 1,
            "status": "finished",
            "seed": self.seed,
            "metric": "sliding",
            "val_bpb": bpb,
            "val_loss": 2.5,
            "prequant_val_bpb": bpb - 0.01,
            "quant_val_bpb": bpb + 0.01,
            "steps": int(self.config["iterations"]),
            "train_time_ms": 60.0,
            "step_avg_ms": 10.0,
            "eval_time_s": 0.1,
            "stop_reason": "iterations",
            "stages": "whole" if self.stage == "all" else "apart",
            "useful_s": USEFUL_SECONDS,
            **self.artifact_facts(),
        }

    def event(self, kind: str, **fields: object) -> None:
        line = json.dumps({"t": time.time(), "kind": kind} | fields) + "\n"
        with open("events.jsonl", "ab") as file:
            file.write(line.encode())


def setting(name: str) -> int | str:
    default = DEFAULTS[name]
    text = os.environ.get(name.upper())
    if text is None:
        return default
    return int(text) if isinstance(default, int) else text


def main() -> int:
    rank = int(os.environ.get("RANK", "0"))
    if rank > 0:
        print(f"rank {rank} has nothing to do")
        while setting("peers") and not Path("result.json").exists():
            time.sleep(POLL_SECONDS)
        return 0
    return Run().main()


if __name__ == "__main__":
    sys.exit(main())
