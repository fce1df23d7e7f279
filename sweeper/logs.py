"""What a run has said: its logs, shown and followed, and why it failed."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

from sweeper.errors import UserError
from sweeper.layout import AttemptDir, SweepDir
from sweeper.ledger import Ledger
from sweeper.rows import AttemptRow, RunState
from sweeper.stages import Stage
from sweeper.words import first_line

POLL_SECONDS = 0.3
CHUNK_BYTES = 1 << 20
# Of a failure: so many lines of its traceback; and so many failures with theirs, and without.
TRACEBACK_LINES = 15
TRACEBACKS, FAILURES = 3, 20
NAMED_RUNS = 20


# ---- which run


@dataclass(frozen=True)
class RunName:
    """A run as people name it."""

    id: int
    trial: str
    seed: int

    def __str__(self) -> str:
        return f"{self.trial}/{self.seed}"


def name_runs(ledger: Ledger) -> list[RunName]:
    trials = {trial.number: trial.name for trial in ledger.trials()}
    return [RunName(run.id, trials[run.trial], run.seed) for run in ledger.runs()]


def find_run(wanted: str, runs: Sequence[RunName]) -> RunName:
    """The run called TRIAL/SEED, or by as little of that as tells it from all others.

    That is the seed or the trial alone, or the beginning of the trial's name, with its seed or
    without. Raises UserError with the runs there are.
    """
    trial, _, seed = wanted.rpartition("/")
    readings: list[Callable[[RunName], bool]] = [
        lambda run: str(run) == wanted,
        lambda run: run.trial == wanted,
        lambda run: str(run.seed) == wanted,
        lambda run: bool(trial) and run.trial.startswith(trial) and str(run.seed) == seed,
        lambda run: run.trial.startswith(wanted),
    ]
    for reading in readings:
        found = [run for run in runs if reading(run)]
        if len(found) == 1:
            return found[0]
        if found:
            raise UserError(f"{wanted!r} may be any of: {_listed(found)}")
    raise UserError(f"no run is called {wanted!r}; there are: {_listed(runs)}")


def _listed(runs: Sequence[RunName]) -> str:
    names = ", ".join(map(str, runs[:NAMED_RUNS]))
    left_out = len(runs) - NAMED_RUNS
    return names if left_out <= 0 else f"{names}, and {left_out} more"


# ---- its logs


@dataclass(frozen=True, kw_only=True)
class Wish:
    """Which log: a rank's, else the first's or that of what launched it; which attempt's."""

    rank: int | None = None
    stream: str = "stdout"
    attempt: int | None = None


@dataclass(frozen=True)
class Launch:
    """One launch of a stage of a run, and where its logs are."""

    attempt: int
    stage: Stage
    directory: AttemptDir
    ranks_per_node: int | None = None  # of a run on several nodes

    def log(self, wish: Wish) -> Path | None:
        """The file that is wished for; None while it is not there."""
        directory, rank = self.directory, wish.rank or 0
        if self.ranks_per_node is not None:
            # What torchrun calls a rank is one of its node.
            node, rank = divmod(rank, self.ranks_per_node)
            directory = directory.on(node)
        found = directory.rank_logs(rank, wish.stream)
        if found:
            return found[-1]
        launcher = directory.stdout if wish.stream == "stdout" else directory.stderr
        return launcher if not wish.rank and launcher.exists() else None

    def __str__(self) -> str:
        stage = "" if self.stage is Stage.ALL else f", {self.stage}"
        return f"attempt {self.attempt}{stage}"


def launches(sweep: SweepDir, ledger: Ledger, attempt: AttemptRow) -> Iterator[Launch]:
    """All launches of an attempt's stages so far, in order."""
    times: dict[Stage, int] = {}
    resources = ledger.spec.resources
    nodes = resources.nodes_per_run
    ranks_per_node = resources.processes // nodes if nodes > 1 else None
    for row in ledger.stages(attempt.id):
        times[row.stage] = times.get(row.stage, 0) + 1
        directory = AttemptDir(sweep.path / attempt.path).of(row.stage, times[row.stage])
        yield Launch(attempt.number, row.stage, directory, ranks_per_node)


@dataclass
class _Growing:
    """A file that may appear late, be cut short, or be another all of a sudden."""

    _file: tuple[Path, int] | None = None  # its path and inode
    _offset: int = 0

    def read(self, path: Path | None) -> Iterator[bytes]:
        """What is new in it."""
        if path is None:
            return
        try:
            with path.open("rb") as file:
                this = (path, _inode(path))
                if this != self._file or path.stat().st_size < self._offset:
                    self._file, self._offset = this, 0
                file.seek(self._offset)
                while data := file.read(CHUNK_BYTES):
                    self._offset += len(data)
                    yield data
        except FileNotFoundError:
            return


def _inode(path: Path) -> int:
    return path.stat().st_ino


@dataclass
class LogReader:
    """Writes a run's log to `out`, from its last attempt on, or of one attempt alone.

    `say` is told where another launch begins.
    """

    sweep: SweepDir
    ledger: Ledger
    run: RunName
    wish: Wish
    out: BinaryIO
    say: Callable[[str], None]
    _files: dict[str, _Growing] = field(default_factory=dict)
    _first: int | None = None  # number of the attempt to begin with

    def show(self) -> None:
        """All that there is now; UserError where there is no such log."""
        found = self._launches()
        if not found:
            which = "" if self.wish.attempt is None else f" a {_ordinal(self.wish.attempt)} time"
            raise UserError(f"{self.run} has not been launched{which} yet")
        if not any(launch.log(self.wish) for launch in found):
            raise UserError(f"{self.run}: {_no_log(self.wish, found[-1].directory)}")
        self._copy(found)

    def follow(self, on_wait: Callable[[], None]) -> None:
        """All that there will be until the run is over; `on_wait` is called now and then."""
        while True:
            over = self._is_over()  # before the last look, so that nothing is missed
            self._copy(self._launches())
            if over:
                return
            on_wait()
            time.sleep(POLL_SECONDS)

    def _is_over(self) -> bool:
        if self.wish.attempt is not None:
            rows = [row for row in self._attempts() if row.number == self.wish.attempt]
            if rows:
                return rows[-1].ended is not None
        return self.ledger.run_states()[self.run.id].over

    def _attempts(self) -> list[AttemptRow]:
        return self.ledger.attempts(self.run.id)

    def _launches(self) -> list[Launch]:
        attempts = self._attempts()
        if self.wish.attempt is not None:
            attempts = [row for row in attempts if row.number == self.wish.attempt]
        elif attempts:
            self._first = self._first or attempts[-1].number
            attempts = [row for row in attempts if row.number >= self._first]
        return [one for row in attempts for one in launches(self.sweep, self.ledger, row)]

    def _copy(self, found: Sequence[Launch]) -> None:
        for number, launch in enumerate(found, start=1):
            # The same stage may have been launched more than once.
            key = f"{number}: {launch}"
            if key not in self._files:
                self._files[key] = _Growing()
                if len(found) > 1:
                    self.say(f"==> {self.run}, {launch} <==")
            for data in self._files[key].read(launch.log(self.wish)):
                self.out.write(data)
            self.out.flush()


def _ordinal(number: int) -> str:
    return {1: "first", 2: "second", 3: "third"}.get(number, f"{number}th")


def _no_log(wish: Wish, directory: AttemptDir) -> str:
    ranks = directory.ranks()
    if wish.rank is not None and ranks:
        return f"no log of rank {wish.rank}; there are ranks {', '.join(map(str, ranks))}"
    if wish.rank:
        return f"no log of rank {wish.rank}; leave --rank out for the one log there is"
    return f"no log is there yet, in {directory.logs}"


# ---- why it failed


def describe_failure(attempt: AttemptRow) -> str:
    """An attempt's message, and the end of the first traceback of the rank that failed first."""
    message = attempt.message or "no reason is recorded"
    return "\n".join([first_line(message), *_traceback(attempt)])


def _traceback(attempt: AttemptRow) -> list[str]:
    lines = (attempt.traceback or "").rstrip().splitlines()
    if len(lines) > TRACEBACK_LINES:
        lines = ["…", *lines[-TRACEBACK_LINES:]]
    return [f"    {line}" for line in lines]


def describe_failures(sweep: SweepDir) -> str:
    """Each failed run of a sweep and why; the tracebacks of a few, none of them twice."""
    with closing(Ledger.open_for_reading(sweep.ledger)) as ledger:
        states = ledger.run_states()
        failed = [run for run in name_runs(ledger) if states[run.id] is RunState.FAILED]
        told: set[str | None] = set()
        lines = []
        for run in failed[:FAILURES]:
            attempt = ledger.attempts(run.id)[-1]
            text = describe_failure(attempt)
            if attempt.message in told or len(told) >= TRACEBACKS:
                text = first_line(text)
            told.add(attempt.message)
            lines += [f"failed: {run.trial}, seed {run.seed}: {text}"]
            lines += [f"  logs: {sweep.path / attempt.path}"]
    if not failed:
        return ""
    if len(failed) > FAILURES:
        lines.append(f"… and {len(failed) - FAILURES} more; see `sweeper status {sweep.name}`")
    lines.append(f"see what a run said: `sweeper logs {sweep.name} '{failed[0]}' --stderr`")
    return "\n".join(lines)
