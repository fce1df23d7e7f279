"""A search in Optuna's dashboard: what is shown of it, to whom, and in a real browser."""

from __future__ import annotations

import http.client
import json
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.request import urlopen

import pytest

from sweeper.dashboard import Gallery, serving, show
from sweeper.errors import UserError
from sweeper.layout import SweepDir
from sweeper.ledger import Ledger
from tests.sweeper.browser import browsing
from tests.sweeper.conftest import make_spec, wait_until
from tests.sweeper.kept_searches import keeping
from tests.sweeper.searches import Env, bowl, search_spec

PNG = b"\x89PNG\r\n\x1a\n"


def uneven(env: Env, seed: int) -> tuple[float, int] | None:
    """As the bowl; some configurations fail, some are too large."""
    share = float(env["WARMDOWN_FRAC"])
    return None if share > 0.85 else (bowl(env, seed)[0], int(15_900_000 + 150_000 * share))


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where a finished search is, called found."""
    root = tmp_path_factory.mktemp("größe und platz")
    with keeping(search_spec(), root, uneven) as play:
        play.go_on()
    return root


@contextmanager
def shown(root: Path) -> Iterator[tuple[Gallery, str]]:
    sweep = SweepDir(root / "found")
    ledger = Ledger.open_for_reading(sweep.ledger)
    try:
        gallery = Gallery(sweep, ledger)
        gallery.refresh()
        with serving(gallery.exhibit.app(), 0) as url:
            yield gallery, url
    finally:
        ledger.close()


@pytest.fixture(scope="module")
def url(root: Path) -> Iterator[str]:
    with shown(root) as (_, url):
        yield url


def get(url: str) -> Any:
    with urlopen(url) as answer:
        return json.load(answer)


def studies(url: str) -> dict[str, int]:
    listed = get(f"{url}api/studies")["study_summaries"]
    return {each["study_name"]: each["study_id"] for each in listed}


def trials(url: str, study: str) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = get(f"{url}api/studies/{studies(url)[study]}")["trials"]
    return found


def piece(url: str, trial: dict[str, Any], filename: str) -> tuple[bytes, Any]:
    """A file beside a trial, and the headers that it came with."""
    (identity,) = [a["artifact_id"] for a in trial["artifacts"] if a["filename"] == filename]
    place = f"{url}artifacts/{trial['study_id']}/{trial['trial_id']}/{identity}"
    with urlopen(place) as answer:
        return answer.read(), answer.headers


# ---- what is shown


def test_every_stage_is_a_study_and_every_configuration_a_trial(root: Path, url: str) -> None:
    assert list(studies(url)) == ["found/screen", "found/race", "found/confirm"]
    ledger = Ledger.open_for_reading(SweepDir(root / "found").ledger)
    try:
        for name in studies(url):
            counted = ledger.db.execute(
                "SELECT count(*) FROM entries WHERE rung = ?", (name.partition("/")[2],)
            )
            assert len(trials(url, name)) == counted.fetchone()[0]
    finally:
        ledger.close()


def test_a_trial_says_its_seeds_bytes_and_whether_it_fits(url: str) -> None:
    for trial in trials(url, "found/race"):
        facts = {each["key"]: each["value"] for each in trial["user_attrs"]}
        scores = json.loads(facts["val_bpb"])
        assert set(scores) <= {"42", "314", "999"}
        assert int(facts["bytes_max"]) < 16_000_000
        assert facts["feasible"] == "True"
        rows = [line.split("|")[1:-1] for line in trial["note"]["body"].splitlines() if "|" in line]
        assert [cell.strip() for cell in rows[0]][:4] == ["seed", "state", "val_bpb", "bytes"]
        assert {row[0].strip(): row[2].strip() for row in rows[2:]} == {
            seed: f"{score:.5f}" for seed, score in scores.items()
        }


def test_what_failed_is_shown_with_its_reason_and_its_log(url: str) -> None:
    failed = [each for each in trials(url, "found/screen") if each["state"] == "Fail"]
    assert failed
    for trial in failed:
        assert "seed 42: loss is nan" in trial["note"]["body"]
        assert b"loss is nan" in piece(url, trial, "seed42.log")[0]
        assert [each["filename"] for each in trial["artifacts"]] == ["losses.png", "seed42.log"]


def test_beside_each_trial_are_picture_logs_and_results(root: Path, url: str) -> None:
    trial = trials(url, "found/confirm")[0]
    names = [f"seed{seed}{end}" for seed in (7, 8, 9) for end in (".log", "-result.json")]
    assert [each["filename"] for each in trial["artifacts"]] == ["losses.png", *names]
    picture, headers = piece(url, trial, "losses.png")
    assert picture.startswith(PNG)
    assert headers["Content-Type"] == "image/png"
    result = json.loads(piece(url, trial, "seed8-result.json")[0])
    facts = {each["key"]: each["value"] for each in trial["user_attrs"]}
    assert result["val_bpb"] == json.loads(facts["val_bpb"])["8"]
    assert piece(url, trial, "seed8.log")[0].startswith(b"seed 8\n")


def test_a_trial_was_when_its_runs_were(root: Path, url: str) -> None:
    from datetime import datetime

    ledger = Ledger.open_for_reading(SweepDir(root / "found").ledger)
    try:
        times = [(each.launched, each.ended) for each in ledger.attempts()]
    finally:
        ledger.close()
    all_trials = [trial for name in studies(url) for trial in trials(url, name)]
    begun = [datetime.fromisoformat(each["datetime_start"]).timestamp() for each in all_trials]
    ended = [datetime.fromisoformat(each["datetime_complete"]).timestamp() for each in all_trials]
    assert min(begun) == pytest.approx(min(launched for launched, _ in times), abs=1e-3)
    assert max(ended) == pytest.approx(max(end or 0.0 for _, end in times), abs=1e-3)
    assert all(a <= b for a, b in zip(begun, ended, strict=True))


def test_every_study_has_the_report_as_its_note(url: str) -> None:
    for identity in studies(url).values():
        body = get(f"{url}api/studies/{identity}")["note"]["body"]
        assert body.startswith("## Result of found: val_bpb, lower is better")


def test_a_search_under_way_is_shown_as_it_goes(tmp_path: Path) -> None:
    with keeping(search_spec(), tmp_path) as play:
        play.go_on(1)
        run = play.planner.next_run()
        assert run is not None
        with shown(tmp_path) as (gallery, url):
            assert [each["state"] for each in trials(url, "found/screen")] == [
                *("Complete", "Running")
            ]
            assert trials(url, "found/screen")[1]["artifacts"] == []
            play.end(run, (1.09, 15_900_000))
            play.go_on()
            gallery.refresh()
            found = wait_for_trials(url, "found/confirm", 2)
            assert [each["state"] for each in found] == ["Complete", "Complete"]
            second = wait_for_trials(url, "found/screen", 8)[1]
            assert second["values"] == [1.09]
            assert "losses.png" in [each["filename"] for each in second["artifacts"]]


def wait_for_trials(url: str, study: str, count: int) -> list[dict[str, Any]]:
    """The dashboard keeps what it has read for some seconds."""
    wait_until(
        lambda: [each["state"] for each in trials(url, study)].count("Complete") == count,
        f"{count} trials of {study}",
    )
    return trials(url, study)


def test_a_log_may_grow_and_only_its_end_is_sent(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sweeper.dashboard.LOG_TAIL", 100)
    with keeping(search_spec(), tmp_path) as play:
        play.go_on(1)
    (log,) = (tmp_path / "found").rglob("stdout.log")
    with shown(tmp_path) as (_, url):
        (trial,) = trials(url, "found/screen")
        with log.open("a") as file:
            file.write("x" * 1000 + "the end\n")
        text = piece(url, trial, "seed42.log")[0]
    assert len(text) == 100
    assert text.endswith(b"the end\n")


def test_a_sweep_that_is_no_search_is_refused(tmp_path: Path) -> None:
    sweep = SweepDir(tmp_path / "small")
    sweep.path.mkdir()
    Ledger.open_for_writing(sweep.ledger, make_spec()).close()
    with pytest.raises(UserError, match="small is no search; `sweeper report small` shows it"):
        show(sweep, 0, print, threading.Event())


# ---- to whom


def ask(url: str, method: str, path: str, **headers: str) -> http.client.HTTPResponse:
    address = url.removeprefix("http://").rstrip("/")
    connection = http.client.HTTPConnection(address, timeout=60)
    connection.request(method, path, headers=headers)
    answer = connection.getresponse()
    answer.read()
    return answer


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("POST", "/api/studies"),
        ("DELETE", "/api/studies/0"),
        ("PUT", "/api/studies/0/note"),
        ("POST", "/api/artifacts/0/0"),
        ("DELETE", "/api/artifacts/0/0/0-0"),
    ],
)
def test_nothing_can_be_changed(url: str, method: str, path: str) -> None:
    before = studies(url)
    assert ask(url, method, path).status == 405
    assert studies(url) == before


@pytest.mark.parametrize("host", ["example.org", "example.org:80", "127.0.0.1.example.org:80", ""])
def test_pages_from_elsewhere_are_told_nothing(url: str, host: str) -> None:
    assert ask(url, "GET", "/api/studies", Host=host).status == 403


def test_no_other_page_may_read_what_is_sent(url: str) -> None:
    trial = trials(url, "found/race")[0]
    _, headers = piece(url, trial, "losses.png")
    assert not [name for name in headers if name.lower().startswith("access-control")]


def test_only_this_machine_is_answered(url: str) -> None:
    port = int(url.rstrip("/").rpartition(":")[2])
    with pytest.raises(OSError, match="refused"):
        http.client.HTTPConnection("127.0.0.2", port, timeout=60).connect()


def test_a_port_that_is_taken_is_an_error_at_once(url: str) -> None:
    port = int(url.rstrip("/").rpartition(":")[2])
    with pytest.raises(UserError, match=f"port {port}: .*give another --port"), serving(None, port):
        pass


# ---- the command, and a browser


@contextmanager
def command(root: Path, name: str = "found") -> Iterator[subprocess.Popen[str]]:
    arguments = [sys.executable, "-m", "sweeper.cli", "dashboard", name, "--root", str(root)]
    process = subprocess.Popen(arguments, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 0)])
def test_the_command_says_where_and_ends_when_it_is_told(
    root: Path, number: signal.Signals, code: int
) -> None:
    with command(root) as process:
        assert process.stdout is not None
        url = process.stdout.readline().strip()
        assert set(studies(url)) == {"found/screen", "found/race", "found/confirm"}
        process.send_signal(number)
        out, err = process.communicate(timeout=120)
    assert (process.returncode, out, err) == (code, "", "")


def test_the_command_knows_only_sweeps_that_there_are(root: Path) -> None:
    with command(root, "nothing") as process:
        _, err = process.communicate(timeout=120)
    assert process.returncode == 2
    assert err.startswith("error: ")
    assert "Traceback" not in err


def test_a_browser_shows_the_study_and_a_trials_seeds_and_picture(
    root: Path, tmp_path: Path
) -> None:
    with browsing(tmp_path / "profile") as page, command(root) as process:
        assert process.stdout is not None
        url = process.stdout.readline().strip()
        page.open(url)
        page.wait("document.body.innerText.includes('found/confirm')", "the list of studies")

        study = f"{url}dashboard/studies/{studies(url)['found/race']}"
        page.open(study)
        page.wait("document.body.innerText.includes('History')", "the study's page")
        page.wait("document.querySelectorAll('.scatterlayer .point').length > 0", "its history")
        assert "found/race" in page.text()

        trial = next(each for each in trials(url, "found/race") if each["state"] == "Complete")
        facts = {each["key"]: each["value"] for each in trial["user_attrs"]}
        page.open(f"{study}/trials?numbers={trial['number']}")
        page.wait("document.querySelector('table td') != null", "the seeds' table")
        cells = page.evaluate("[...document.querySelectorAll('td')].map(cell => cell.innerText)")
        for seed, score in json.loads(facts["val_bpb"]).items():
            assert {seed, f"{score:.5f}"} <= {cell.strip() for cell in cells}
        picture = "document.querySelector('img[src*=\"/artifacts/\"]')"
        page.wait(f"{picture}?.complete && {picture}.naturalWidth > 500", "the losses' picture")
        page.wait("document.body.innerText.includes('seed999-result.json')", "the results")
        assert "feasible True" in page.text()
        page.screenshot(tmp_path / "trial.png")
        # Nothing of a search is told to anyone else.
        assert page.requests
        assert all(each.startswith((url, "data:", "blob:")) for each in page.requests)
