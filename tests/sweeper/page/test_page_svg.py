"""Pictures in a page: no styles, no ids that meet, names that stay text, colours to be changed."""

from __future__ import annotations

import re
from functools import partial
from xml.etree import ElementTree

import pytest
from matplotlib.figure import Figure

from sweeper.adapters import Interval
from sweeper.page.plots import Bar, Series, draw_dots, draw_lanes, draw_lines, draw_times
from sweeper.page.plots import svg as drawn
from sweeper.page.style import CSS, PICTURES
from sweeper.page.traces import Trace

NAMES = ("<script>alert(1)</script>", "$x_{1$ ]]> &amp;", "_under 漢字", '" onload="x', "$\\frac{")
SERIES = [
    Series(name=name, values=(1.0, 1.1, 1.2), low=0.9, high=1.3, kind=kind)
    for kind, name in enumerate(NAMES)
]
TRACES = [
    Trace(
        trial="a",
        seed=seed,
        losses=tuple((step, 5.0 - step / 100) for step in range(1, 100)),
        onsets=(40,),
        intervals=tuple(
            Interval(begin=step, end=step + 10, ms=1_000 if step != 50 else 90_000)
            for step in range(0, 100, 10)
        ),
    )
    for seed in (1, 2)
]
PAINT = re.compile(r"#[0-9a-f]{6}")


def parsed(draw: object, prefix: str = "p1", label: str = "a picture") -> ElementTree.Element:
    assert callable(draw)
    return ElementTree.fromstring(drawn(draw, prefix, label))


@pytest.mark.parametrize(
    "draw",
    [
        partial(draw_dots, SERIES, "val_bpb", limit=1.15),
        partial(draw_lines, TRACES, {"a": 0}, lambda trace: trace.losses, "loss"),
        partial(draw_times, TRACES, {"a": 0}),
        partial(draw_lanes, [[Bar(begin=0, seconds=60, kind="failed")]], "minutes", 60.0),
    ],
)
def test_a_picture_has_no_style_of_its_own_and_all_its_colours_are_the_pages(draw: object) -> None:
    whole = parsed(draw)
    assert [e for e in whole.iter() if "style" in e.attrib or e.tag == "style"] == []
    used = {value for e in whole.iter() for value in e.attrib.values() if PAINT.fullmatch(value)}
    assert used <= PICTURES.keys()
    assert all(f'[stroke="{colour}"]{{stroke:var(' in CSS for colour in used)
    assert (whole.attrib["role"], whole.attrib["aria-label"]) == ("img", "a picture")


def test_ids_begin_with_the_pictures_own_and_every_reference_is_met() -> None:
    one, two = (parsed(partial(draw_dots, SERIES, "x"), prefix) for prefix in ("p1", "p2"))
    ids = [{e.attrib["id"] for e in whole.iter() if "id" in e.attrib} for whole in (one, two)]
    assert ids[0]
    assert not ids[0] & ids[1]
    pointers = [e.attrib["href"] for e in one.iter() if "href" in e.attrib]
    pointers += re.findall(r"url\((#[^)]*)\)", ElementTree.tostring(one, encoding="unicode"))
    assert pointers
    assert {pointer[1:] for pointer in pointers} == ids[0]


def test_names_are_text_in_pictures_whatever_they_hold() -> None:
    texts = [e.text for e in parsed(partial(draw_dots, SERIES, "x")).iter() if e.tag == "text"]
    assert set(NAMES) <= set(texts)


def test_a_name_is_cut_where_it_would_not_fit() -> None:
    whole = parsed(partial(draw_dots, [Series(name="x" * 80, values=(1.0,))], "x"))
    (name,) = [e.text for e in whole.iter() if e.tag == "text" and (e.text or "").startswith("xx")]
    assert name is not None
    assert len(name) < 60
    assert name.endswith("…")


def test_marks_take_their_colour_where_they_are_used() -> None:
    whole = parsed(partial(draw_dots, SERIES, "x"))
    marks = [e for defs in whole.iter("defs") for e in defs if e.tag == "path"]
    assert marks
    assert not any("stroke" in mark.attrib for mark in marks)
    assert all("stroke" in use.attrib for use in whole.iter("use"))


def test_a_logarithmic_axis_has_raised_powers_and_no_formula() -> None:
    def draw() -> Figure:
        figure = Figure()
        axes = figure.add_subplot()
        axes.set_xscale("log")
        axes.plot([1e-5, 1.0], [0.0, 1.0])
        return figure

    texts = [e.text or "" for e in parsed(draw).iter() if e.tag == "text"]
    assert "10⁻³" in texts
    assert not any("$" in text for text in texts)


def test_one_that_is_far_off_does_not_flatten_the_others() -> None:
    series = [Series(name=str(n), values=(1.0 + n / 100,)) for n in range(8)]
    figure = draw_dots([*series, Series(name="lost", values=(900.0,))], "x")
    assert figure.axes[0].get_xlim()[1] < 2.0


def test_the_limit_is_in_the_picture() -> None:
    figure = draw_dots([Series(name="a", values=(100.0, 110.0))], "bytes", limit=500.0)
    low, high = figure.axes[0].get_xlim()
    assert low < 100.0 < 500.0 < high
