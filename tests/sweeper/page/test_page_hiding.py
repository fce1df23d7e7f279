"""What is secret stands nowhere on a page, and what only sounds so stays."""

from __future__ import annotations

import html
import sqlite3
from contextlib import closing
from pathlib import Path

import pytest

from sweeper.layout import SweepDir
from sweeper.page.hiding import hidden, secrets_of, told
from sweeper.page.html import Html, tag
from sweeper.page.write import page
from sweeper.rows import RunState, TrialRow
from tests.sweeper.conftest import make_spec
from tests.sweeper.page.page_sweeps import make_sweep, outcome_of, part, two_trials

LONG = "hf_" + "Q" * 40
ODD = 'pass "<&>" wörd'


@pytest.fixture(scope="module")
def shown(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A page whose sweep tells secrets in its settings, logs, notes and failures; with pictures."""
    trials = [
        {"name": name, "env": {"HF_TOKEN": f"hf_{name}SECRET", "TRAIN_BATCH_TOKENS": 123_456 + n}}
        for n, name in enumerate(("low", "high"))
    ]
    sweep = make_sweep(
        tmp_path_factory.mktemp("secrets"),
        outcome_of({("high", 999): RunState.FAILED}),
        trial=trials,
        process_env={"DB_PASSWORD": ODD, "API_KEY_OF_HOST": LONG},
    )
    log = (
        "logged in as hf_lowSECRET\nWANDB_KEY=abcdefgh\nhttp://me:pw@host/x http://u:SE/C7@h/x\n"
        f"AUTH_HEADER: Bearer q1w2e3r4\nval_tokens:62021632\n{{'MY_TOKENS': 'zzzzzzzz'}}\n{ODD}\n"
    )
    for path in sweep.path.rglob("stdout.log"):
        path.write_text(log)
    tell(sweep, f"{'m' * 580}{LONG}", "SECRET_VALUE = 'in a traceback'", f"{'n' * 580}{LONG} again")
    return page(sweep)


def tell(sweep: SweepDir, message: str, traceback: str, note: str) -> None:
    with closing(sqlite3.connect(sweep.ledger)) as db, db:
        db.execute("UPDATE attempts SET message = ?, traceback = ?", (message, traceback))
        db.execute("UPDATE notes SET text = ?", (note,))


@pytest.mark.parametrize(
    "secret",
    [
        *("hf_lowSECRET", "hf_highSECRET", "abcdefgh", "me:pw", "SE/C7", "q1w2e3r4", "zzzzzzzz"),
        *("in a traceback", "wörd", "QQQQ"),
    ],
)
def test_no_secret_is_told_anywhere(shown: str, secret: str) -> None:
    assert secret not in html.unescape(shown)


def test_what_is_around_it_is_told(shown: str) -> None:
    assert "logged in as …" in part(shown, "logs")
    assert "val_tokens:62021632" in part(shown, "logs")
    assert "HF_TOKEN=… TRAIN_BATCH_TOKENS=123456" in part(shown, "configurations")
    assert "SECRET_VALUE" in part(shown, "logs")


@pytest.mark.usefixtures("unpictured")
def test_the_spec_is_there_without_what_is_secret(tmp_path: Path) -> None:
    sweep = make_sweep(tmp_path, two_trials)
    sweep.spec.write_text(
        'name = "shown"\n[process_env]\nHF_TOKEN = "hf_abc"\nNCCL_DEBUG = "INFO"\n'
        'storage = "postgresql://me:pw123@db/x"\n'
    )
    shown = part(page(sweep), "made-of")
    assert "NCCL_DEBUG = &quot;INFO&quot;" in shown
    assert "hf_abc" not in shown
    assert "pw123" not in shown
    assert "postgresql://…@db/x" in shown


def test_markup_stays_what_it_is() -> None:
    """A secret that is also a word of the markup goes from what is read, and from nothing else."""
    markup = tag("section", tag("p", "of the section"), tag("text", "x", text_anchor="middle"))
    secrets = {"section", "middle", "anchor"}
    assert hidden(markup, secrets) == markup.replace("of the section", "of the …")


def test_what_an_element_is_called_and_points_to_is_read_too() -> None:
    link = tag("a", "x", href="attempts/my%20pass%20word/log", aria_label="my pass word & more")
    left = hidden(link, {"my pass word"})
    assert left == '<a href="attempts/…/log" aria-label="… &amp; more">x</a>'
    assert hidden(Html('<a href="#run-1" data-path="a/b">log</a>'), {"other1"}) == (
        '<a href="#run-1" data-path="a/b">log</a>'
    )


def test_the_values_are_those_of_all_settings_but_numbers() -> None:
    spec = make_spec(
        env={"WANDB_KEY": "of all", "PASS_LENGTH": 524_288},
        process_env={"GITHUB_PAT": "of processes", "NCCL_DEBUG": "INFO"},
        trial=[{"name": "low", "env": {"HF_TOKEN": "of a trial"}}],
    )
    chosen = TrialRow(number=1, name="t1", config_hash="", env={"MY_SECRET": "of a search"})
    expected = {"of all", "of processes", "of a trial", "of a search"}
    assert secrets_of(spec, [chosen]) == expected


def test_long_words_are_looked_through_fast_and_only_those_that_are_secret_go() -> None:
    word = "a.b-" * 100_000
    text = f"{word}\nHF_TOKEN={word}\n{word} DB_PASS: '{word}'\n"
    assert told(text, ()) == f"{word}\nHF_TOKEN=…\n{word} DB_PASS: '…'\n"
    assert told(f"{'-' * 900}HF_TOKEN=abc", ()) == f"{'-' * 900}HF_TOKEN=…"
