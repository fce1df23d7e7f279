"""A search's report: the result first, everything that ran in it, the same in every form."""

from __future__ import annotations

import csv
import io
import json
import re
from contextlib import closing
from pathlib import Path

import pytest

from sweeper.aggregate import FORMATS, report, trials_frame, write_pictures, write_report
from sweeper.findings import find
from sweeper.layout import SweepDir
from sweeper.ledger import Ledger
from sweeper.search_tables import as_markdown, as_text, number, sections, signed
from tests.sweeper.conftest import make_spec, write_attempt
from tests.sweeper.kept_searches import events_of, keeping
from tests.sweeper.searches import Env, Outcome, Play, bowl, playing, search_spec

FRESH = (7, 8, 9)


def lines_of(play: Play) -> list[str]:
    return as_text(find(play.ledger)).splitlines()


def line_with(lines: list[str], words: str) -> str:
    (line,) = [line for line in lines if words in line]
    return line


def uneven(env: Env, seed: int) -> tuple[float, int] | None:
    """As the bowl, with what fails, what is too large, and what is surely worse."""
    share = float(env["WARMDOWN_FRAC"])
    if share > 0.85:
        return None
    score, _ = bowl(env, seed)
    return score + 0.05 * (share < 0.4), 16_000_001 if share > 0.7 else 15_900_000


def played(root: Path, runs: int | None = None, outcome: Outcome = uneven) -> SweepDir:
    with playing(search_spec(), root, outcome) as play:
        play.go_on(runs)
        return play.sweep


# ---- sections


def test_in_a_terminal_the_result_stands_last_and_on_a_page_first(tmp_path: Path) -> None:
    with playing(search_spec(), tmp_path) as play:
        play.go_on()
        found = find(play.ledger)
    headings = [section.heading for section in sections(found)]
    assert headings[0] == "Result of found: val_bpb, lower is better"
    text, page = as_text(found), as_markdown(found)
    assert [text.index(f"{each}\n") for each in headings] == sorted(
        (text.index(f"{each}\n") for each in headings), reverse=True
    )
    assert [page.index(f"## {each}\n") for each in headings] == sorted(
        page.index(f"## {each}\n") for each in headings
    )


def test_the_result_is_of_fresh_seeds_and_says_how_much_was_promised(tmp_path: Path) -> None:
    with playing(search_spec(), tmp_path) as play:
        play.go_on()
        winner = find(play.ledger).winner
        lines = lines_of(play)
    assert winner is not None
    assert winner.fresh is not None
    line = line_with(lines, "on seeds that chose nothing (confirm: 7, 8, 9)")
    assert f"{winner.fresh.mean:.5f} ± {winner.fresh.std:.5f}" in line
    assert f"95 % interval {winner.fresh.low:.5f} to {winner.fresh.high:.5f}" in line
    by = winner.optimism(winner.chosen.mean)
    assert by is not None
    line = line_with(lines, "on those that chose it (race, n = 3)")
    assert f"too {'good' if by > 0 else 'bad'} by {abs(by):.5f}" in line


@pytest.mark.parametrize(
    ("runs", "why"),
    [
        (0, "none yet: nothing is scored"),
        (10, "OPTIMISTIC: the best of many by these very seeds; no stage with fresh seeds"),
    ],
)
def test_before_the_end_nothing_passes_for_a_result(tmp_path: Path, runs: int, why: str) -> None:
    with playing(search_spec(), tmp_path) as play:
        play.go_on(runs)
        lines = lines_of(play)
    assert line_with(lines, why)
    assert not any("winner: " in line for line in lines)
    assert not any("chose nothing" in line for line in lines)


def test_while_fresh_seeds_run_it_is_said_how_many_there_are(tmp_path: Path) -> None:
    with playing(search_spec(), tmp_path) as play:
        while (run := play.planner.next_run()) is not None and not play.entries("confirm"):
            env = {trial.number: trial.env for trial in play.ledger.trials()}[run.trial]
            play.end(run, bowl(env, run.seed))
        assert line_with(lines_of(play), "its runs on fresh seeds (confirm) have not ended")
        assert run is not None
        play.end(run, (1.09, 100))
        assert line_with(lines_of(play), "(confirm: 7, 8, 9) (1 of 3 so far): 1.09000")


def test_a_failed_fresh_seed_is_said_beside_the_result(tmp_path: Path) -> None:
    def fails(env: Env, seed: int) -> tuple[float, int] | None:
        return None if seed == 8 else bowl(env, seed)

    with playing(search_spec(), tmp_path, fails) as play:
        play.go_on()
        assert line_with(lines_of(play), "INCOMPLETE: seed 8: loss is nan")


def test_what_cannot_be_told_from_the_best_is_marked(tmp_path: Path) -> None:
    def steps(env: Env, seed: int) -> tuple[float, int]:
        worse = env["WARMDOWN_SHAPE"] == "cosine"
        return 1.0 + 0.1 * worse + seed * 1e-7, 100

    spec = search_spec(
        stage=[{"name": "race", "seeds": 2, "trials": 8}],
        search={"racing": {"margin": 1.0}},  # all get all their seeds
    )
    with playing(spec, tmp_path, steps) as play:
        play.go_on()
        (section,) = [each for each in sections(find(play.ledger)) if "The best" in each.heading]
    verdicts = [row[section.columns.index("beside the best")] for row in section.rows]
    shapes = [re.search(r"SHAPE=(\w+)", row[-1]) for row in section.rows]
    by_shape = {shape[1]: set() for shape in shapes if shape}  # type: dict[str, set[str]]
    for verdict, shape in zip(verdicts, shapes, strict=True):
        assert shape is not None
        by_shape[shape[1]].add(verdict)
    assert by_shape == {"linear": {"the best", "not distinguishable"}, "cosine": {"apart"}}


def test_every_run_is_listed_with_its_score_or_its_end(tmp_path: Path) -> None:
    with playing(search_spec(), tmp_path, uneven) as play:
        play.go_on()
        names = {trial.number: trial.name for trial in play.ledger.trials()}
        env = {trial.number: trial.env for trial in play.ledger.trials()}
        runs = play.ledger.runs()
        (section,) = [s for s in sections(find(play.ledger)) if s.heading.startswith("All")]
    assert f"{len(runs)} runs" in section.heading
    listed = {(row[1], seed) for row in section.rows for seed in row[3].split(", ")}
    for run in runs:
        outcome = uneven(env[run.trial], run.seed)
        told = "failed" if outcome is None else f"{outcome[0]:.5f}"
        assert (names[run.trial], f"{run.seed}: {told}") in listed
    assert any(row[2] == "failed (seed 42: loss is nan)" for row in section.rows)


def test_a_bar_in_a_name_is_none_of_a_table(tmp_path: Path) -> None:
    known = {"WARMDOWN_SHAPE": "linear", "WARMDOWN_FRAC": 0.6, "RECUR_START_STEP": 3000}
    spec = search_spec(trial=[{"name": "a|b", "env": known}])
    with playing(spec, tmp_path) as play:
        play.go_on(4)
        page = as_markdown(find(play.ledger))
    rows = [line for line in page.splitlines() if "a\\|b-screen" in line]
    assert rows
    for block in re.findall(r"(?:^\|.*\n)+", page + "\n", flags=re.MULTILINE):
        counts = {len(re.findall(r"(?<!\\)\|", line)) for line in block.splitlines()}
        assert len(counts) == 1


@pytest.mark.parametrize(
    ("value", "plain", "with_sign"),
    [
        (1.092698, "1.09270", "+1.09270"),
        (-0.00012, "-0.00012", "-0.00012"),
        (15_999_999.0, "15,999,999", "+15,999,999"),
        (None, "–", "–"),
    ],
)
def test_numbers(value: float | None, plain: str, with_sign: str) -> None:
    assert (number(value), signed(value)) == (plain, with_sign)


# ---- the whole report


def test_fresh_seeds_have_a_row_of_their_own(tmp_path: Path) -> None:
    sweep = played(tmp_path, outcome=bowl)
    with closing(Ledger.open_for_reading(sweep.ledger)) as ledger:
        frame = trials_frame(ledger)
        runs = len(ledger.runs())
    assert int(frame["seeds"].sum()) == runs
    assert set(frame.loc[frame["fresh"], "seeds"]) == {len(FRESH)}
    table = report(sweep, "table")
    assert ", fresh seeds" in table
    assert "over seeds 42" not in table


def test_so_have_those_of_a_search_that_names_no_stages(tmp_path: Path) -> None:
    spec = search_spec(stage=[], search={"budget": {"runs": 15}})
    with playing(spec, tmp_path) as play:
        play.go_on()
        frame = trials_frame(play.ledger)
    assert spec.fresh_seeds
    assert set(frame.loc[frame["fresh"], "seeds"]) == {len(spec.fresh_seeds)}


@pytest.mark.parametrize("runs", [0, 1, 5, 12, None])
def test_every_form_can_be_had_at_any_time(tmp_path: Path, runs: int | None) -> None:
    sweep = played(tmp_path, runs)
    for form in FORMATS:
        text = report(sweep, form)
        if form == "json":
            data = json.loads(text)
            listed = data["search"]["stages"]
            assert len(data["runs"]) >= sum(len(s["configurations"]) for s in listed[:1])
            assert all(run["stage"] for run in data["runs"])
        elif form == "csv":
            rows = list(csv.DictReader(io.StringIO(text)))
            assert sum(int(row["seeds"]) for row in rows) == (runs or len(rows)) or runs is None
        else:
            assert "Result of found" in text


def test_the_written_report_shows_its_pictures(tmp_path: Path) -> None:
    sweep = played(tmp_path)
    paths = write_report(sweep)
    assert all(path.is_file() for path in paths)
    page = sweep.report_md.read_text()
    assert page.startswith("## Result of found")
    links = re.findall(r"!\[[^]]+\]\(([^)]+)\)", page)
    assert "figures/history.svg" in links
    assert "figures/slice-WARMDOWN_FRAC.svg" in links
    assert all((sweep.path / link).is_file() for link in links)


def test_pictures_that_are_asked_for_have_the_losses_too(tmp_path: Path) -> None:
    spec = search_spec(stage=[{"name": "race", "seeds": 1, "trials": 2}])
    with keeping(spec, tmp_path) as play:
        play.go_on()
    names = [str(path.relative_to(play.sweep.figures)) for path in write_pictures(play.sweep)]
    assert {"history.svg", "history.png", "losses/000-t0.svg", "losses/001-t1.svg"} <= set(names)


def test_a_sweep_that_is_no_search_has_pictures_of_its_losses_alone(tmp_path: Path) -> None:
    sweep = SweepDir(tmp_path / "small")
    sweep.path.mkdir()
    with closing(Ledger.open_for_writing(sweep.ledger, make_spec())) as ledger:
        run = ledger.runs()[0]
        place = sweep.attempt(0, "low", run.seed, 1)
        write_attempt(place.path, events=events_of(run.seed, 1.1))
        path = str(place.path.relative_to(sweep.path))
        ledger.launched(run, number=1, path=path, host="here", gpus="")
    assert write_pictures(sweep) == [sweep.figures / "losses" / "000-low.svg"]
    assert [path.suffix for path in write_report(sweep)] == [".csv", ".csv", ".json"]


def test_a_report_before_the_first_run_has_no_pictures(tmp_path: Path) -> None:
    sweep = played(tmp_path, 0)
    write_report(sweep)
    assert "Pictures" not in sweep.report_md.read_text()
    assert not sweep.figures.exists()
