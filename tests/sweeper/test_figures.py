"""A search's pictures: every configuration is in them once, at its place, with its bar."""

from __future__ import annotations

import math
import xml.etree.ElementTree as ET
from collections.abc import Iterator
from pathlib import Path

import matplotlib as mpl
import numpy as np
import pytest
from matplotlib.axes import Axes
from matplotlib.container import ErrorbarContainer
from matplotlib.figure import Figure

from sweeper.curves import Curve
from sweeper.drawing import FAR, PALE, STYLE, Dot, as_png, draw_dots, write
from sweeper.figures import (
    draw_bytes,
    draw_curves,
    draw_history,
    draw_importances,
    draw_slice,
    write_curves,
    write_figures,
)
from sweeper.findings import Findings, find
from sweeper.layout import SweepDir
from sweeper.standings import Standing, Standings
from tests.sweeper.kept_searches import keeping
from tests.sweeper.searches import Env, bowl, search_spec

PNG = b"\x89PNG\r\n\x1a\n"


def uneven(env: Env, seed: int) -> tuple[float, int] | None:
    """As the bowl; some fail, and larger warmdowns make larger artifacts, some too large."""
    share = float(env["WARMDOWN_FRAC"])
    return None if share > 0.85 else (bowl(env, seed)[0], int(15_900_000 + 150_000 * share))


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> Findings:
    with keeping(search_spec(), tmp_path_factory.mktemp("search"), uneven) as play:
        play.go_on()
        return find(play.ledger)


def dots_of(axes: Axes) -> Iterator[tuple[float, float, float]]:
    """Every dot with a bar: its place, its height, half its bar."""
    for container in axes.containers:
        if isinstance(container, ErrorbarContainer):
            line, _, (bars,) = container.lines
            assert line is not None
            points = np.asarray(line.get_xydata(), dtype=float).tolist()
            for (x, y), bar in zip(points, bars.get_segments(), strict=True):
                yield x, y, float(bar[1][1] - bar[0][1]) / 2


def scored(stage: Standings) -> list[Standing]:
    return [row for row in stage.rows if row.evidence]


def texts(figure: Figure) -> list[str]:
    return [text.get_text() for legend in figure.legends for text in legend.get_texts()]


# ---- slices


def test_a_slice_has_a_panel_a_stage_and_every_score_at_its_place(found: Findings) -> None:
    figure = draw_slice(found, "WARMDOWN_FRAC")
    assert len(figure.axes) == len(found.stages)
    for axes, stage in zip(figure.axes, found.stages, strict=True):
        sigma = found.sigmas[stage.rung.name]
        expected = sorted(
            (
                row.entry.params["WARMDOWN_FRAC"],
                row.summary().mean,
                sigma / math.sqrt(len(row.evidence)),
            )
            for row in scored(stage)
        )
        np.testing.assert_allclose(sorted(dots_of(axes)), np.array(expected, dtype=float))
        assert axes.get_xlabel() == "WARMDOWN_FRAC"
    assert figure.axes[0].get_ylabel() == "val_bpb (bits per byte)"
    assert [axes.get_title() for axes in figure.axes] == [
        *("screen: 1 seed, ITERATIONS=100", "race: 3 seeds", "confirm: 3 fresh seeds")
    ]
    assert {"WARMDOWN_SHAPE=linear", "WARMDOWN_SHAPE=cosine"} <= set(texts(figure))


def test_what_failed_without_a_score_is_crossed(found: Findings) -> None:
    failed = [row for row in found.stages[0].rows if not row.evidence]
    assert failed
    figure = draw_slice(found, "WARMDOWN_FRAC")
    crosses = [line for line in figure.axes[0].lines if line.get_marker() == "x"]
    assert sorted(float(line.get_xdata()[0]) for line in crosses) == sorted(  # type: ignore[index,arg-type]
        row.entry.params["WARMDOWN_FRAC"] for row in failed
    )
    assert "failed" in texts(figure)
    assert "failed" not in texts(draw_history(found))


@pytest.mark.parametrize("name", ["WARMDOWN_SHAPE", "RECUR_START_STEP"])
def test_dots_of_one_value_stand_beside_each_other(found: Findings, name: str) -> None:
    param = found.search.space[name]
    figure = draw_slice(found, name)
    for axes, stage in zip(figure.axes, found.stages, strict=True):
        places = sorted(x for x, _, _ in dots_of(axes))
        assert len(set(places)) == len(scored(stage))
        step = float(param.step or 1)
        low, high = axes.get_xlim()
        assert all(low < place < high for place in places)
        values = sorted(
            float(param.choices.index(row.entry.params[name]))
            if param.choices is not None
            else float(row.entry.params[name])
            for row in scored(stage)
        )
        assert all(abs(a - b) < step / 2 for a, b in zip(places, values, strict=True))


def test_a_setting_that_does_not_always_apply_is_drawn_where_it_does(found: Findings) -> None:
    figure = draw_slice(found, "LR_FLOOR")
    for axes, stage in zip(figure.axes, found.stages, strict=False):
        rows = [row for row in scored(stage) if "LR_FLOOR" in row.entry.params]
        assert len(list(dots_of(axes))) == len(rows)


def test_stages_of_the_same_settings_share_a_scale(found: Findings) -> None:
    screen, race, confirm = draw_slice(found, "WARMDOWN_FRAC").axes
    assert race.get_ylim() == confirm.get_ylim()
    assert screen.get_ylim() != race.get_ylim()


# ---- the others


def test_a_history_is_by_runs_and_its_best_only_gets_better(found: Findings) -> None:
    figure = draw_history(found)
    runs = {(row.name, seed) for stage in found.stages for row in stage.rows for seed in row.ended}
    for axes, stage in zip(figure.axes, found.stages, strict=True):
        assert len(list(dots_of(axes))) == len(scored(stage))
        assert all(1 <= x <= len(runs) for x, _, _ in dots_of(axes))
        steps = [line for line in axes.lines if line.get_drawstyle() == "steps-post"]
        if stage.rung.fresh:
            assert not steps  # its seeds choose nothing
            continue
        heights = np.asarray(steps[0].get_ydata(), dtype=float)
        assert np.all(np.diff(heights) <= 0)
        assert heights[-1] == min(
            row.summary().mean or math.inf for row in stage.rows if stage.eligible(row)
        )


def test_bytes_are_drawn_beside_the_budget(found: Findings) -> None:
    figure = draw_bytes(found)
    for axes, stage in zip(figure.axes, found.stages, strict=True):
        assert {x for x, _, _ in dots_of(axes)} == {row.bytes_max for row in scored(stage)}
        assert any(list(line.get_xdata()) == [16_000_000] * 2 for line in axes.lines)  # type: ignore[arg-type]
    assert "budget, 16,000,000 bytes" in texts(figure)


def test_importances_have_two_bars_each(found: Findings) -> None:
    (axes,) = draw_importances(found).axes
    assert len(axes.patches) == 2 * len(found.importances)
    assert [label.get_text() for label in axes.get_yticklabels()] == list(found.importances)[::-1]


def test_curves_are_a_line_a_seed() -> None:
    steps = tuple((number, 5.0 - number / 100) for number in range(100))
    curves = [
        Curve(label="seed 42", losses=steps, validations=((50, 1.2),)),
        Curve(label="seed 314", losses=steps[:20], validations=()),
    ]
    losses, validations = draw_curves(curves).axes
    assert [line.get_label() for line in losses.lines] == ["seed 42", "seed 314"]
    assert [line.get_label() for line in validations.lines] == ["seed 42"]
    assert losses.get_ylabel() == "training loss (nats per token)"


def test_a_run_without_a_step_is_drawn_as_that() -> None:
    figure = draw_curves([])
    assert [text.get_text() for text in figure.texts] == ["no step yet"]
    assert as_png(lambda: draw_curves([])).startswith(PNG)


# ---- what lies far off


@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_what_went_astray_is_drawn_at_the_edge(sign: float) -> None:
    axes = Figure().add_subplot()
    heights = [1.0, 1.1, 1.2, 1.3, 1.4, 50.0]
    assert draw_dots(axes, [Dot(x=n, y=sign * y) for n, y in enumerate(heights)], sign)
    assert len(list(dots_of(axes))) == 5
    (caret,) = [line for line in axes.lines if line.get_alpha() == PALE]
    quarter, rest = np.quantile(heights, [0.25, 0.75])
    assert list(caret.get_ydata()) == pytest.approx([sign * (rest + FAR * (rest - quarter))])  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "heights", [[], [1.0], [1.0, 1.0, 1.0, 1.0, 50.0], [1.0, 2.0, 50.0], [1.0, 1.1, 1.2, 1.3, -50]]
)
def test_what_is_near_or_good_or_among_few_is_drawn_where_it_is(heights: list[float]) -> None:
    axes = Figure().add_subplot()
    assert not draw_dots(axes, [Dot(x=0.0, y=y) for y in heights])
    assert len(list(dots_of(axes))) == len(heights)


# ---- files


def test_every_picture_is_written_in_both_forms(found: Findings, tmp_path: Path) -> None:
    paths = write_figures(found, tmp_path / "größe und platz")
    slices = [f"slice-{name}" for name in found.search.space]
    names = ["history", *slices, "bytes", "importance"]
    assert [path.name for path in paths] == [
        f"{n}.{form}" for n in names for form in ("svg", "png")
    ]
    assert sorted(paths) == sorted((tmp_path / "größe und platz").iterdir())  # and no others
    for path in paths:
        if path.suffix == ".png":
            assert path.read_bytes().startswith(PNG)
        else:
            words = "".join(ET.parse(path).getroot().itertext())
            assert "val_bpb" in words or path.stem == "importance"


def test_the_same_findings_make_the_same_file(found: Findings, tmp_path: Path) -> None:
    for place in ("a", "b"):
        write(lambda: draw_history(found), tmp_path / place, "history")
    for form in ("svg", "png"):
        one, other = tmp_path / "a" / f"history.{form}", tmp_path / "b" / f"history.{form}"
        assert one.read_bytes() == other.read_bytes()


def test_a_search_without_a_score_has_no_pictures(tmp_path: Path) -> None:
    with keeping(search_spec(), tmp_path) as play:
        assert write_figures(find(play.ledger), tmp_path / "figures") == []
    assert not (tmp_path / "figures").exists()


def test_settings_of_matplotlib_stay_as_they_were(found: Findings) -> None:
    before = dict(mpl.rcParams)
    as_png(lambda: draw_history(found))
    assert dict(mpl.rcParams) == before
    assert any(before[name] != value for name, value in STYLE.items())


def test_the_losses_of_each_trial_are_a_picture(tmp_path: Path) -> None:
    spec = search_spec(stage=[{"name": "race", "seeds": 2, "trials": 2}])
    with keeping(spec, tmp_path) as play:
        play.go_on()
        sweep = SweepDir(tmp_path / "found")
        paths = write_curves(sweep, play.ledger)
    assert [path.name for path in paths] == ["000-t0.svg", "001-t1.svg"]
    for path in paths:
        words = "".join(ET.parse(path).getroot().itertext())
        assert "seed 42" in words
        assert "seed 314" in words
