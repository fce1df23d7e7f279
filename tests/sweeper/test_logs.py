"""What a run has said: which run is meant, which file, and following it; why runs failed."""

from __future__ import annotations

import io
import threading
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import pytest

from sweeper.errors import UserError
from sweeper.layout import AttemptDir, SweepDir
from sweeper.ledger import Ledger
from sweeper.logs import (
    TRACEBACK_LINES,
    LogReader,
    RunName,
    Wish,
    describe_failure,
    describe_failures,
    find_run,
    name_runs,
)
from sweeper.rows import AttemptState, RunState
from sweeper.stages import Stage
from tests.sweeper.conftest import make_spec, result_facts, wait_until

# ---- which run

RUNS = [
    RunName(number, trial, seed)
    for number, (trial, seed) in enumerate(
        [("low", 42), ("low", 314), ("lower", 42), ("a/b", 7), ("high", 999), ("42", 5)]
    )
]


@pytest.mark.parametrize(
    ("wanted", "found"),
    [
        ("low/42", "low/42"),
        ("lower/42", "lower/42"),
        ("lower", "lower/42"),
        ("lowe/42", "lower/42"),
        ("a/b/7", "a/b/7"),
        ("a/b", "a/b/7"),
        ("a/7", "a/b/7"),
        ("999", "high/999"),
        ("h", "high/999"),
        ("hi/999", "high/999"),
        ("42", "42/5"),  # a trial's whole name goes before a seed
        ("l/314", "low/314"),
    ],
)
def test_a_run_is_found_by_what_tells_it_from_others(wanted: str, found: str) -> None:
    assert str(find_run(wanted, RUNS)) == found


@pytest.mark.parametrize(
    ("wanted", "message"),
    [
        ("low", "'low' may be any of: low/42, low/314"),
        ("l/42", "'l/42' may be any of: low/42, lower/42"),
        ("low/7", "no run is called 'low/7'; there are: low/42, low/314, lower/42, a/b/7"),
        ("x", "no run is called 'x'; there are"),
        ("", "'' may be any of"),
        ("/42", "no run is called '/42'"),
    ],
)
def test_another_is_told_which_there_are(wanted: str, message: str) -> None:
    with pytest.raises(UserError, match=f"^{message}"):
        find_run(wanted, RUNS)


def test_of_many_runs_some_are_told() -> None:
    with pytest.raises(UserError, match=r"t/19, and 80 more$"):
        find_run("x", [RunName(seed, "t", seed) for seed in range(100)])


# ---- which file


def launch(sweep: SweepDir, ledger: Ledger, number: int = 1, stage: Stage = Stage.ALL) -> int:
    run = ledger.runs()[0]
    directory = sweep.attempt(0, "low", run.seed, number)
    directory.logs.mkdir(parents=True)
    path = str(directory.path.relative_to(sweep.path))
    return ledger.launched(run, number=number, path=path, host="box", gpus="", stage=stage)


def write_log(
    directory: AttemptDir, text: str, rank: int | None = None, *, err: bool = False
) -> Path:
    path = directory.stderr if err else directory.stdout
    if rank is not None:
        path = directory.logs / "ranks" / "none_x" / "attempt_0" / str(rank) / path.name
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a") as file:
        file.write(text)
    return path


def attempt_dir(sweep: SweepDir, number: int = 1) -> AttemptDir:
    return sweep.attempt(0, "low", 42, number)


def reader(
    sweep: SweepDir, ledger: Ledger, said: list[str] | None = None, **wish: object
) -> LogReader:
    run = name_runs(ledger)[0]
    say = (said if said is not None else []).append
    return LogReader(sweep, ledger, run, Wish(**wish), io.BytesIO(), say)  # type: ignore[arg-type]


def shown(sweep: SweepDir, ledger: Ledger, said: list[str] | None = None, **wish: object) -> str:
    log = reader(sweep, ledger, said, **wish)
    log.show()
    assert isinstance(log.out, io.BytesIO)
    return log.out.getvalue().decode()


def test_the_first_ranks_log_is_shown_or_the_launchers(sweep: SweepDir, ledger: Ledger) -> None:
    launch(sweep, ledger)
    write_log(attempt_dir(sweep), "launcher\n")
    write_log(attempt_dir(sweep), "its errors\n", err=True)
    assert shown(sweep, ledger) == "launcher\n"
    assert shown(sweep, ledger, rank=0) == "launcher\n"
    assert shown(sweep, ledger, stream="stderr") == "its errors\n"
    for rank in (0, 1):
        write_log(attempt_dir(sweep), f"rank {rank}\n", rank)
    write_log(attempt_dir(sweep), "rank 1 breaks\n", 1, err=True)
    assert shown(sweep, ledger) == "rank 0\n"
    assert shown(sweep, ledger, rank=1) == "rank 1\n"
    assert shown(sweep, ledger, rank=1, stream="stderr") == "rank 1 breaks\n"
    with pytest.raises(UserError, match=r"no log of rank 2; there are ranks 0, 1$"):
        shown(sweep, ledger, rank=2)


def test_a_log_that_is_not_there_is_an_error(sweep: SweepDir, ledger: Ledger) -> None:
    with pytest.raises(UserError, match="low/42 has not been launched yet"):
        shown(sweep, ledger)
    launch(sweep, ledger)
    with pytest.raises(UserError, match="low/42: no log is there yet, in "):
        shown(sweep, ledger)
    with pytest.raises(UserError, match="leave --rank out"):
        shown(sweep, ledger, rank=3)
    with pytest.raises(UserError, match="has not been launched a second time yet"):
        shown(sweep, ledger, attempt=2)


def test_the_last_attempt_is_shown_or_the_one_asked_for(sweep: SweepDir, ledger: Ledger) -> None:
    for number in (1, 2):
        attempt = launch(sweep, ledger, number)
        write_log(attempt_dir(sweep, number), f"try {number}\n")
        ledger.ended(attempt, AttemptState.CRASHED, RunState.PENDING)
    said: list[str] = []
    assert shown(sweep, ledger, said) == "try 2\n"
    assert shown(sweep, ledger, said, attempt=1) == "try 1\n"
    assert said == []


def test_all_stages_of_an_attempt_are_shown_in_order(sweep: SweepDir, ledger: Ledger) -> None:
    identity = launch(sweep, ledger, stage=Stage.TRAIN)
    attempt = ledger.attempt(identity)
    for stage in (Stage.PACK, Stage.PACK, Stage.SCORE):
        ledger.stage_ended(identity, exit_code=0)
        ledger.stage_launched(attempt, stage, host="box", gpus="", events_from=0)
    directory = attempt_dir(sweep)
    write_log(directory.of(Stage.TRAIN), "training\n", 0)
    write_log(directory.of(Stage.PACK), "packing\n")
    write_log(directory.of(Stage.PACK, 2), "packing again\n")
    said: list[str] = []
    assert shown(sweep, ledger, said) == "training\npacking\npacking again\n"
    assert said[0] == "==> low/42, attempt 1, train <=="
    assert len(said) == 4


def test_a_rank_of_several_nodes_is_found_on_its_node(tmp_path: Path) -> None:
    sweep = SweepDir(tmp_path / "wide")
    sweep.path.mkdir()
    spec = make_spec(
        resources={"gpus_per_run": 0, "cpus_per_run": 2, "nodes_per_run": 2, "processes_per_run": 4}
    )
    with closing(Ledger.open_for_writing(sweep.ledger, spec)) as ledger:
        launch(sweep, ledger)
        write_log(attempt_dir(sweep), "0\n", 0)
        write_log(attempt_dir(sweep).on(1), "3\n", 1)
        assert shown(sweep, ledger, rank=3) == "3\n"
        assert shown(sweep, ledger, rank=0) == "0\n"


# ---- following


class Following:
    """A log that is followed by another thread, until its run is over."""

    def __init__(self, sweep: SweepDir, **wish: object) -> None:
        self.said: list[str] = []
        self.looks = 0
        self._out = io.BytesIO()
        self._thread = threading.Thread(target=self._follow, args=(sweep, wish), daemon=True)
        self._thread.start()

    def _follow(self, sweep: SweepDir, wish: dict[str, object]) -> None:
        with closing(Ledger.open_for_reading(sweep.ledger)) as ledger:
            log = reader(sweep, ledger, self.said, **wish)
            log.out = self._out
            log.follow(self._look)

    def _look(self) -> None:
        self.looks += 1

    @property
    def text(self) -> str:
        return self._out.getvalue().decode()

    def wait_for(self, holds: Callable[[str], bool]) -> None:
        wait_until(lambda: holds(self.text), "a followed log to show what was written", 30)

    def wait_for_a_look(self) -> None:
        """Return once all that is there now has been seen."""
        looks = self.looks
        wait_until(lambda: self.looks >= looks + 2, "another look", 30)


@contextmanager
def following(sweep: SweepDir, **wish: object) -> Iterator[Following]:
    follower = Following(sweep, **wish)
    yield follower
    follower._thread.join(30)
    assert not follower._thread.is_alive()


def test_a_log_is_followed_through_all_that_happens(
    sweep: SweepDir, ledger: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sweeper.logs.POLL_SECONDS", 0.02)
    with following(sweep) as follower:
        follower.wait_for_a_look()  # nothing has been launched yet
        first = launch(sweep, ledger)
        follower.wait_for_a_look()
        path = write_log(attempt_dir(sweep), "half a ")
        follower.wait_for(lambda text: text == "half a ")
        write_log(attempt_dir(sweep), "line\n")
        follower.wait_for(lambda text: text == "half a line\n")
        path.write_text("cut\n")
        follower.wait_for(lambda text: text.endswith("cut\n"))
        path.rename(path.with_name("old"))
        write_log(attempt_dir(sweep), "another file\n")
        follower.wait_for(lambda text: text.endswith("another file\n"))
        ledger.ended(first, AttemptState.CRASHED, RunState.PENDING)
        follower.wait_for_a_look()
        second = launch(sweep, ledger, 2)
        write_log(attempt_dir(sweep, 2), "tried again\n", 0)
        follower.wait_for(lambda text: text.endswith("tried again\n"))
        write_log(attempt_dir(sweep, 2), "the end", 0)
        ledger.ended(second, AttemptState.FINISHED, RunState.FINISHED, result=result_facts())
    assert follower.text == "half a line\ncut\nanother file\ntried again\nthe end"
    assert follower.said == ["==> low/42, attempt 2 <=="]


def test_one_attempt_alone_is_followed_to_its_end(sweep: SweepDir, ledger: Ledger) -> None:
    first = launch(sweep, ledger)
    write_log(attempt_dir(sweep), "first\n")
    ledger.ended(first, AttemptState.CRASHED, RunState.PENDING)
    launch(sweep, ledger, 2)
    write_log(attempt_dir(sweep, 2), "second\n")
    with following(sweep, attempt=1) as follower:
        pass
    assert follower.text == "first\n"


# ---- why it failed


def fail(ledger: Ledger, index: int, message: str | None, traceback: str | None) -> int:
    run = ledger.runs()[index]
    path = f"attempts/x/{index}"
    attempt = ledger.launched(run, number=1, path=path, host="box", gpus="")
    ledger.ended(
        attempt, AttemptState.CRASHED, RunState.FAILED, message=message, traceback=traceback
    )
    return attempt


def test_a_failure_is_its_message_and_the_end_of_its_traceback(ledger: Ledger) -> None:
    lines = ["Traceback (most recent call last):", *(f"  line {n}" for n in range(100)), "E: it"]
    attempt = ledger.attempt(fail(ledger, 0, "E (rank 3): it\nbroke", "\n".join(lines)))
    message, gap, *rest = describe_failure(attempt).splitlines()
    assert (message, gap) == ("E (rank 3): it", "    …")
    assert (len(rest), rest[-1]) == (TRACEBACK_LINES, "    E: it")
    attempt = ledger.attempt(fail(ledger, 1, "short", "a\nb\n"))
    assert describe_failure(attempt) == "short\n    a\n    b"
    attempt = ledger.attempt(fail(ledger, 2, None, None))
    assert describe_failure(attempt) == "no reason is recorded"


def test_each_failed_run_is_told_and_no_traceback_twice(sweep: SweepDir, ledger: Ledger) -> None:
    assert describe_failures(sweep) == ""
    fail(ledger, 0, "E: same", "trace 0")
    fail(ledger, 1, "E: same", "trace 1")
    fail(ledger, 2, "E: other", "trace 2")
    text = describe_failures(sweep)
    assert text.splitlines() == [
        "failed: low, seed 42: E: same",
        "    trace 0",
        f"  logs: {sweep.path / 'attempts/x/0'}",
        "failed: high, seed 42: E: same",
        f"  logs: {sweep.path / 'attempts/x/1'}",
        "failed: low, seed 314: E: other",
        "    trace 2",
        f"  logs: {sweep.path / 'attempts/x/2'}",
        "see what a run said: `sweeper logs sweep 'low/42' --stderr`",
    ]


def test_of_many_failures_some_are_told(tmp_path: Path) -> None:
    sweep = SweepDir(tmp_path / "bad")
    sweep.path.mkdir()
    with closing(Ledger.open_for_writing(sweep.ledger, make_spec(seeds=list(range(50))))) as ledger:
        for index in range(60):
            fail(ledger, index, f"E: {index}", f"trace {index}")
        lines = describe_failures(sweep).splitlines()
    assert sum(line.startswith("failed: ") for line in lines) == 20
    assert sum("trace" in line for line in lines) == 3
    assert lines[-2] == "… and 40 more; see `sweeper status bad`"
