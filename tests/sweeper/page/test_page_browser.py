"""The page in a real browser: nothing is asked for, nothing runs, it fits a phone and prints."""

from __future__ import annotations

import base64
import itertools
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import unquote, urlparse

import pytest

from sweeper.layout import SweepDir
from sweeper.page.facts import gather
from sweeper.page.html import clean
from sweeper.page.write import write_page
from sweeper.rows import RunState
from tests.sweeper.browser import Page, browsing
from tests.sweeper.kept_searches import keeping
from tests.sweeper.page.page_sweeps import BROKEN, Outcome, make_sweep, part
from tests.sweeper.searches import bowl, search_spec

NAMES = (
    "<script>window.hit = 1</script>",
    '" onmouseover="window.hit = 1',
    "</style></svg>]]> $x_{1$ &lt; \u202etxt",
    "_under 漢字",
    "w" * 80,
)
WIDTHS = (390, 768, 1280)


def outcome(trial: str, seed: int) -> Outcome:
    """One over the budget, one that fails, one at work, one that waits; the others finish."""
    place = NAMES.index(trial)
    if place == 4 and seed != 42:
        return RunState.FAILED if seed == 314 else RunState.RUNNING
    score = 1.09 + place / 1_000 + (seed % 5) / 2_000
    size = 16_000_100 if place == 3 else 15_950_000 + seed
    return {"val_bpb": score, "quant_val_bpb": score + 0.001, "bytes_total": size, "useful_s": 9.0}


@dataclass
class Shown:
    """A page in a browser, and the file that it is."""

    tab: Page
    path: Path

    @property
    def url(self) -> str:
        return self.path.as_uri()


@pytest.fixture(scope="module")
def tab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Page]:
    directory = tmp_path_factory.mktemp("browser") / "profile"
    directory.mkdir()
    with browsing(directory) as tab:
        yield tab


@pytest.fixture(scope="module")
def hostile(tmp_path_factory: pytest.TempPathFactory) -> SweepDir:
    trials = [{"name": name, "env": {"LR": n, "NOTE": name}} for n, name in enumerate(NAMES)]
    root = tmp_path_factory.mktemp("größe und platz")
    sweep = make_sweep(root, outcome, trial=trials, resources={"gpus_per_run": 2})
    sweep.spec.write_text('# </pre><script>window.hit = 1</script>\nname = "shown"\n')
    return sweep


@pytest.fixture(scope="module")
def hostile_page(hostile: SweepDir) -> Path:
    return write_page(hostile)


@pytest.fixture(scope="module")
def search(tmp_path_factory: pytest.TempPathFactory) -> SweepDir:
    with keeping(search_spec(), tmp_path_factory.mktemp("search"), bowl) as play:
        play.go_on()
        return play.sweep


@pytest.fixture(scope="module")
def search_page(search: SweepDir) -> Path:
    return write_page(search)


@pytest.fixture(scope="module", params=["hostile_page", "search_page"])
def shown(request: pytest.FixtureRequest, tab: Page) -> Shown:
    """The page of a sweep whose names are attacks, and that of a search."""
    path = request.getfixturevalue(request.param)
    tab.requests.clear()
    tab.errors.clear()
    tab.open(path.as_uri())
    tab.wait(f"location.href == {path.as_uri()!r} && document.readyState == 'complete'", "a page")
    return Shown(tab, path)


def look(shown: Shown, width: int, *, dark: bool = False) -> None:
    """Make the window so wide, as on a phone where it is narrow, and light or dark."""
    metrics = {"width": width, "height": 844, "deviceScaleFactor": 1, "mobile": width < 500}
    shown.tab.call("Emulation.setDeviceMetricsOverride", **metrics)
    scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
    shown.tab.call("Emulation.setEmulatedMedia", features=[scheme])


def test_it_asks_for_nothing_and_complains_of_nothing(shown: Shown) -> None:
    for width in WIDTHS:
        look(shown, width)
    shown.tab.evaluate("document.querySelectorAll('details').forEach(each => each.open = true)")
    shown.tab.evaluate("window.scrollTo(0, document.body.scrollHeight)")
    assert shown.tab.requests == [shown.url]
    assert shown.tab.errors == []
    assert shown.tab.evaluate("document.querySelectorAll('script, img, link, iframe').length") == 0


def test_nothing_in_it_can_run(shown: Shown) -> None:
    """Its own policy forbids what slipped through: even a script put into it from outside."""
    assert shown.tab.evaluate("window.hit") is None
    add = "document.body.appendChild(Object.assign(document.createElement('script'), {text: CODE}))"
    shown.tab.evaluate(add.replace("CODE", "'window.hit = 1'"))
    shown.tab.evaluate("document.body.lastChild.remove()")
    assert shown.tab.evaluate("window.hit") is None
    handlers = "[...document.querySelectorAll('*')].flatMap(e => e.getAttributeNames())"
    assert (
        shown.tab.evaluate(f"{handlers}.filter(name => name.startsWith('on') || name == 'style')")
        == []
    )
    shown.tab.errors.clear()  # the policy has said what it forbade


@pytest.mark.parametrize("width", WIDTHS)
def test_it_is_as_wide_as_the_window_and_what_is_wider_scrolls_by_itself(
    shown: Shown, width: int
) -> None:
    look(shown, width)
    assert shown.tab.evaluate("document.documentElement.scrollWidth") <= width
    outside = (
        "[...document.querySelectorAll('body *')].filter(e => !e.closest('.wide, pre, svg, .skip')"
        " && e.getBoundingClientRect().right > document.documentElement.clientWidth + 1)"
        ".map(e => e.tagName + ' ' + e.className)"
    )
    assert shown.tab.evaluate(outside) == []


def test_on_a_phone_text_in_pictures_can_be_read(shown: Shown) -> None:
    look(shown, 390)
    sizes = (
        "[...document.querySelectorAll('svg text')].map(e => parseFloat(getComputedStyle(e)"
        ".fontSize) * e.ownerSVGElement.getScreenCTM().a)"
    )
    assert min(shown.tab.evaluate(sizes)) >= 6.0
    assert shown.tab.evaluate("parseFloat(getComputedStyle(document.body).fontSize)") >= 15


CONTRASTS = """
(() => {
  const light = text => {
    const [r, g, b] = text.match(/[\\d.]+/g).map(Number).map(v => v / 255)
      .map(v => v <= 0.03928 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4)
    return 0.2126 * r + 0.7152 * g + 0.0722 * b
  }
  const paper = light(getComputedStyle(document.body).backgroundColor)
  const ratio = text => {
    const [low, high] = [light(text), paper].sort((a, b) => a - b)
    return (high + 0.05) / (low + 0.05)
  }
  const all = [...document.querySelectorAll('h1, p, a, th, td, dt, dd, figcaption, summary')]
  const texts = all.map(e => ratio(getComputedStyle(e).color))
  const words = [...document.querySelectorAll('svg text')].map(e => ratio(getComputedStyle(e).fill))
  const lines = [...document.querySelectorAll('.plot svg path')]
    .map(e => getComputedStyle(e).stroke).filter(text => text.startsWith('rgb(')).map(ratio)
  return {texts: Math.min(...texts, ...words), lines: Math.min(...lines)}
})()
"""


@pytest.mark.parametrize("dark", [False, True])
def test_text_and_lines_stand_out_in_the_light_and_in_the_dark(shown: Shown, dark: bool) -> None:
    look(shown, 1280, dark=dark)
    found = shown.tab.evaluate(CONTRASTS)
    assert found["texts"] >= 4.5
    assert found["lines"] >= 3.0


def test_it_is_laid_out_for_those_who_cannot_see_it(shown: Shown) -> None:
    tab = shown.tab
    assert tab.evaluate("document.documentElement.lang") == "en"
    assert tab.evaluate("document.querySelectorAll('h1').length") == 1
    levels = tab.evaluate("[...document.querySelectorAll('h1,h2,h3')].map(e => +e.tagName[1])")
    assert all(after - before <= 1 for before, after in itertools.pairwise(levels))
    unnamed = "[...document.querySelectorAll('svg')].filter(e => !e.getAttribute('aria-label')"
    assert tab.evaluate(f"{unnamed} && e.getAttribute('aria-hidden') != 'true').length") == 0
    assert tab.evaluate("document.querySelectorAll('th:not([scope])').length") == 0
    ids = tab.evaluate("[...document.querySelectorAll('[id]')].map(e => e.id)")
    assert len(ids) == len(set(ids))
    links = tab.evaluate("[...document.querySelectorAll('a[href^=\"#\"]')].map(e => e.hash)")
    assert {link[1:] for link in links} <= set(ids)


def test_a_link_to_a_log_opens_it(shown: Shown) -> None:
    tab = shown.tab
    tab.evaluate("document.querySelectorAll('details').forEach(each => each.open = false)")
    tab.evaluate("document.querySelector('a[href^=\"#run-\"]').click()")
    tab.wait("document.querySelector('details[open] pre').checkVisibility()", "an open log")
    assert tab.evaluate("document.querySelectorAll('details[open]').length") == 1


def test_every_file_that_it_points_to_is_there(shown: Shown) -> None:
    paths = "[...document.querySelectorAll('a[href]')].filter(e => !e.hash).map(e => e.href)"
    found = shown.tab.evaluate(paths)
    assert found
    assert all(Path(unquote(urlparse(url).path)).exists() for url in found)


def test_it_prints(shown: Shown) -> None:
    look(shown, 1280, dark=True)
    printed = shown.tab.call("Page.printToPDF", preferCSSPageSize=True, printBackground=True)
    assert base64.b64decode(printed["data"]).startswith(b"%PDF-")
    shown.tab.call("Emulation.setEmulatedMedia", media="print")
    try:
        # In print nothing scrolls: what is not on the paper is nowhere.
        cut = "[...document.querySelectorAll('.wide')].filter(e => getComputedStyle(e).overflowX"
        assert shown.tab.evaluate(f"{cut} != 'visible').length") == 0
        paths = "[...document.querySelectorAll('#runs td:last-child a')].map(e =>"
        paths += " getComputedStyle(e, '::after').content + e.textContent)"
        told = shown.tab.evaluate(paths)
        assert len(told) > 10
        assert all("attempts/" in each for each in told)
        paper = shown.tab.evaluate("getComputedStyle(document.body).backgroundColor")
        assert paper == "rgb(253, 253, 252)"
    finally:
        shown.tab.call("Emulation.setEmulatedMedia", media="")


def test_names_messages_and_logs_stand_there_as_they_are(hostile_page: Path, tab: Page) -> None:
    path = hostile_page
    tab.open(path.as_uri())
    tab.wait(f"location.href == {path.as_uri()!r} && document.readyState == 'complete'", "a page")
    text = tab.evaluate("document.body.textContent")
    for name in NAMES:
        assert clean(name) in text
    assert BROKEN in text
    assert "<img src=x onerror=window.hit=1>" in text
    assert "\x1b" not in text
    in_pictures = tab.evaluate("[...document.querySelectorAll('svg text')].map(e => e.textContent)")
    assert {clean(name) for name in NAMES[:4]} <= set(in_pictures)
    assert tab.evaluate("window.hit") is None


def test_a_searchs_page_has_its_winner_on_fresh_seeds_its_stages_and_pictures(
    search: SweepDir, search_page: Path
) -> None:
    text = search_page.read_text(encoding="utf-8")
    found = gather(search).found
    assert found is not None
    assert found.winner is not None
    assert found.winner.fresh is not None
    fresh = found.winner.fresh
    shown = part(text, "result")
    assert f"Winner: {found.winner.name} {fresh.mean:.5f} ± {fresh.std:.5f}" in shown
    assert "on fresh seeds (confirm), n = 3" in shown
    for stage in found.stages:
        assert stage.rung.name in part(text, "search")
    titles = re.findall(r"<figcaption><b>([^<]*)</b>", text)
    assert titles[0] == "What was tried, when"
    assert {"WARMDOWN_FRAC", "Score and bytes"} <= set(titles)
    first = part(text, "configurations").partition("eval s")[2]
    assert f"{found.winner.name}, fresh seeds" in first[: first.index("3/3")]
