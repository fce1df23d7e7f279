"""Where everything of a sweep lies on disk; the only place that knows.

<root>/<sweep>/spec.toml, spec.resolved.json   what was asked
               ledger.sqlite                   every attempt
               lock                            held by the one driver
               code/<hash>/, code.json         what its runs execute, and which version is in use
               study.sqlite                    Optuna's view of a search
               driver.json                     what the driver says of itself
               report.csv, report.json         what was found
               report.html                     a page to look at
               figures/                        the same in pictures
               attempts/<trial>/seed<S>/<n>/   one attempt: the process contract's files
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass, replace
from pathlib import Path

from sweeper.stages import ARTIFACT, PACKED, TRAINED, TRAINED_TENSORS, Stage

DEFAULT_ROOT = "runs"
ROOT_NAME = "SWEEPER_ROOT"


def root_from(argument: str | None) -> Path:
    """The directory of all sweeps: an argument, else $SWEEPER_ROOT, else ./runs."""
    return Path(argument or os.environ.get(ROOT_NAME) or DEFAULT_ROOT).absolute()


@dataclass(frozen=True)
class AttemptDir:
    """One attempt's directory: what the run writes, and what its guard writes about it.

    All stages of an attempt share it. What is written about one of them has a name of its own,
    and so has what is written about its second try, and so on; and of a run on several nodes what
    each node writes of its launch.
    """

    path: Path
    stage: Stage = Stage.ALL
    number: int = 1  # of the stage's launches
    node: int | None = None  # whose launch, of a run on several

    def of(self, stage: Stage, number: int = 1) -> AttemptDir:
        """The same directory as one launch of a stage sees it."""
        return replace(self, stage=stage, number=number)

    def on(self, node: int) -> AttemptDir:
        """The same directory as one node of several sees it."""
        return replace(self, node=node)

    @property
    def events(self) -> Path:
        return self.path / "events.jsonl"

    @property
    def result(self) -> Path:
        return self.path / "result.json"

    @property
    def trained(self) -> Path:
        return self.path / TRAINED

    @property
    def trained_tensors(self) -> Path:
        """Some hundred megabytes, of use only until they are packed."""
        return self.path / TRAINED_TENSORS

    @property
    def packed(self) -> Path:
        return self.path / PACKED

    @property
    def artifact(self) -> Path:
        return self.path / ARTIFACT

    @property
    def exit(self) -> Path:
        """How a stage ended; exit.json is of the last one, or of the whole run."""
        node = "" if self.node is None else f".node{self.node}"
        return self.path / f"{self._exit_name}{node}.json"

    @property
    def request(self) -> Path:
        return self.path / f"request{self._mark}.json"

    @property
    def logs(self) -> Path:
        return self.path / "logs" / self._mark.removeprefix(".")

    @property
    def stdout(self) -> Path:
        """What the launched process (torchrun, or the script itself) prints."""
        return self.logs / "stdout.log"

    @property
    def stderr(self) -> Path:
        return self.logs / "stderr.log"

    def rank_logs(self, rank: int, stream: str) -> list[Path]:
        """Files of one rank's `stdout` or `stderr`, as torchrun lays them out."""
        return sorted(self.logs.glob(f"ranks/*/attempt_0/{rank}/{stream}.log"))

    def ranks(self) -> list[int]:
        """The ranks that have logs of their own."""
        found = {path.name for path in self.logs.glob("ranks/*/attempt_0/*")}
        return sorted(int(name) for name in found if name.isdecimal())

    def forget_end(self) -> None:
        """Remove how an earlier launch of this stage ended, or it would pass for this one's end."""
        for path in (self.exit, *self.path.glob(f"{self._exit_name}.node*.json")):
            path.unlink(missing_ok=True)
        if self.stage.last:
            self.result.unlink(missing_ok=True)

    @property
    def _exit_name(self) -> str:
        return "exit" if self.stage.last else f"exit.{self.stage}"

    @property
    def _mark(self) -> str:
        """Tells the launches of one attempt apart; the first node's bears no name of it."""
        stage = "" if self.stage is Stage.ALL else f".{self.stage}"
        number = "" if self.number == 1 else f".{self.number}"
        return f"{stage}{number}.node{self.node}" if self.node else f"{stage}{number}"


@dataclass(frozen=True)
class SweepDir:
    """One sweep's directory."""

    path: Path

    @property
    def name(self) -> str:
        return self.path.name

    @property
    def spec(self) -> Path:
        return self.path / "spec.toml"

    @property
    def resolved_spec(self) -> Path:
        return self.path / "spec.resolved.json"

    @property
    def ledger(self) -> Path:
        return self.path / "ledger.sqlite"

    @property
    def study(self) -> Path:
        """Where a search keeps Optuna's studies, unless it is told otherwise."""
        return self.path / "study.sqlite"

    @property
    def lock(self) -> Path:
        return self.path / "lock"

    @property
    def pulse(self) -> Path:
        """What the driver says of itself (sweeper/pulse.py)."""
        return self.path / "driver.json"

    @property
    def nonce(self) -> Path:
        """Proves to a slot that it sees the driver's own disk."""
        return self.path / ".nonce"

    @property
    def report_csv(self) -> Path:
        return self.path / "report.csv"

    @property
    def runs_csv(self) -> Path:
        return self.path / "runs.csv"

    @property
    def report_json(self) -> Path:
        return self.path / "report.json"

    @property
    def report_md(self) -> Path:
        """Of a search: its findings, for people."""
        return self.path / "report.md"

    @property
    def report_html(self) -> Path:
        return self.path / "report.html"

    @property
    def figures(self) -> Path:
        return self.path / "figures"

    def attempt(self, trial_number: int, trial_name: str, seed: int, number: int) -> AttemptDir:
        """The directory of one attempt; trials are numbered so that slugs cannot collide."""
        slug = re.sub(r"[^A-Za-z0-9.]+", "-", trial_name).strip("-")[:40]
        trial = f"{trial_number:03d}-{slug}" if slug else f"{trial_number:03d}"
        return AttemptDir(self.path / "attempts" / trial / f"seed{seed}" / str(number))
