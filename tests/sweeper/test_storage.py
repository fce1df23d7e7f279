"""Results put to a storage: real directories, fsspec's memory, and storages that fail or hang."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import fsspec
import pytest
from fsspec.implementations.local import LocalFileSystem

from sweeper.errors import UserError
from sweeper.layout import AttemptDir, SweepDir
from sweeper.ledger import Ledger
from sweeper.storage import Store, check
from tests.sweeper.conftest import result_facts, wait_until, write_attempt

CLOSE_SECONDS = 30.0


@pytest.fixture
def attempt(sweep: SweepDir, ledger: Ledger) -> AttemptDir:
    """An attempt that is over, with what must not travel beside it."""
    attempt = write_attempt(sweep.attempt(0, "low", 42, 1).path, result=result_facts())
    attempt.stdout.write_text("größer als ß\n")
    attempt.trained_tensors.write_bytes(b"weights")
    for name in ("checkpoint.pt", "result.json.partial"):
        (attempt.path / name).write_bytes(b"large")
    (attempt.path / "empty").touch()
    return attempt


@pytest.fixture
def memory() -> Iterator[str]:
    files = fsspec.filesystem("memory")
    yield "memory://bucket/sweeps"
    if files.exists("/bucket"):
        files.rm("/bucket", recursive=True)


def names(directory: Path) -> set[str]:
    return {path.relative_to(directory).as_posix() for path in directory.rglob("*.*")}


def store_for(url: str, sweep: SweepDir, **changes: Any) -> Store:
    return Store(url, sweep, **({"pause": 0.05} | changes))


@pytest.mark.parametrize("prefix", ["", "file://"])
def test_everything_but_what_is_large_or_state_is_put(
    tmp_path: Path, sweep: SweepDir, attempt: AttemptDir, prefix: str
) -> None:
    sweep.report_csv.write_text("report")
    sweep.lock.touch()
    there = tmp_path / "größe und ort"
    store = store_for(f"{prefix}{there}", sweep)
    store.put_attempt(attempt.path)
    assert store.close(CLOSE_SECONDS)
    assert store.news() == []

    place = there / "sweep" / "attempts" / "000-low" / "seed42" / "1"
    assert {path.name for path in place.iterdir()} == {
        *("events.jsonl", "exit.json", "result.json", "final_model.int6.ptz", "logs", "empty")
    }
    for name in ("result.json", "final_model.int6.ptz", "logs/stdout.log", "empty"):
        assert (place / name).read_bytes() == (attempt.path / name).read_bytes()
    top = {path.name for path in (there / "sweep").iterdir()}
    assert top == {"attempts", "ledger.sqlite", "report.csv"}
    with closing(Ledger.open_for_reading(there / "sweep" / "ledger.sqlite")) as copy:
        assert len(copy.runs()) == 6


def test_any_url_of_fsspec_is_a_storage(
    sweep: SweepDir, attempt: AttemptDir, ledger: Ledger, memory: str
) -> None:
    files = fsspec.filesystem("memory")
    store = store_for(memory, sweep, every=3600.0)
    store.put_attempt(attempt.path)
    result = f"/bucket/sweeps/sweep/{attempt.result.relative_to(sweep.path).as_posix()}"
    wait_until(lambda: files.exists(result), "the attempt to be there before the sweep is over")
    assert files.cat(result) == attempt.result.read_bytes()

    ledger.note("pause", "so that the ledger is another one")
    sweep.report_json.write_text("{}")
    assert not files.exists("/bucket/sweeps/sweep/report.json")
    store.put_sweep_files()
    report = "/bucket/sweeps/sweep/report.json"
    wait_until(lambda: files.exists(report), "the report")
    sweep.report_json.write_text('{"of": "more runs"}')
    store.put_sweep_files()
    wait_until(lambda: files.cat(report) == sweep.report_json.read_bytes(), "the next report")
    assert store.close(CLOSE_SECONDS)
    assert not [name for name in files.find("/bucket") if "partial" in name]


def test_ledger_and_reports_are_put_now_and_then(
    tmp_path: Path, sweep: SweepDir, ledger: Ledger
) -> None:
    store = store_for(str(tmp_path / "there"), sweep, every=0.05)
    copy = tmp_path / "there" / "sweep" / "ledger.sqlite"
    wait_until(copy.exists, "the first copy")
    ledger.note("pause", "no space left")

    def noted() -> bool:
        with closing(Ledger.open_for_reading(copy)) as found:
            return [note.kind for note in found.notes()] == ["pause"]

    wait_until(noted, "the next copy")
    assert store.close(CLOSE_SECONDS)


def test_what_fails_is_said_once_and_tried_again(
    tmp_path: Path, sweep: SweepDir, attempt: AttemptDir
) -> None:
    there = tmp_path / "there"
    there.write_text("a file, where a directory should be")
    store = store_for(str(there), sweep)
    store.put_attempt(attempt.path)
    news: list[str] = []

    def heard() -> bool:
        news.extend(store.news())
        return bool(news)

    wait_until(heard, "word of it")
    there.unlink()
    result = there / "sweep" / attempt.result.relative_to(sweep.path)
    wait_until(result.exists, "the attempt to be put after all")
    assert store.close(CLOSE_SECONDS)
    said = [*news, *store.news()]
    assert [text.partition(str(there))[0] for text in said] == [
        "results cannot be put to ",
        "results are put to ",
    ]


def test_what_is_not_there_at_the_end_comes_with_the_next_start(
    tmp_path: Path, sweep: SweepDir, attempt: AttemptDir
) -> None:
    there = tmp_path / "there"
    there.write_text("a file, where a directory should be")
    store = store_for(str(there), sweep)
    store.put_attempt(attempt.path)
    assert not store.close(CLOSE_SECONDS)
    assert "not all results are at" in store.news()[-1]

    there.unlink()
    again = store_for(str(there), sweep)  # which is told of no attempt
    assert again.close(CLOSE_SECONDS)
    assert (there / "sweep" / attempt.result.relative_to(sweep.path)).is_file()


class Hanging(LocalFileSystem):  # type: ignore[misc]  # fsspec is not typed
    """A file system that answers only when it is let go."""

    protocol = "hanging"
    let_go = threading.Event()

    def put_file(self, *arguments: Any, **options: Any) -> None:
        self.let_go.wait(CLOSE_SECONDS)
        super().put_file(*arguments, **options)


def test_a_storage_that_hangs_holds_nobody_up(
    tmp_path: Path, sweep: SweepDir, attempt: AttemptDir
) -> None:
    fsspec.register_implementation("hanging", Hanging, clobber=True)
    store = store_for(f"hanging://{tmp_path / 'there'}", sweep)
    for _ in range(1000):
        store.put_attempt(attempt.path)
    assert not store.close(0.05)
    assert "not all results" in store.news()[-1]
    Hanging.let_go.set()
    store._thread.join(CLOSE_SECONDS)
    assert not store._thread.is_alive()


@pytest.mark.parametrize(
    ("url", "says"),
    [
        ("nonsense://bucket", "nonsense"),
        ("s3://bucket/sweeps", "s3fs"),
        ("{tmp}/file/below", "file"),
    ],
)
def test_a_wrong_url_is_a_users_error_in_one_line(tmp_path: Path, url: str, says: str) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=says) as caught:
        check(url.format(tmp=tmp_path))
    assert "\n" not in str(caught.value)


def test_a_right_url_is_left_as_it_was(tmp_path: Path, memory: str) -> None:
    check(str(tmp_path / "new"))
    assert names(tmp_path / "new") == set()
    check(memory)
    assert fsspec.filesystem("memory").find("/bucket") == []
