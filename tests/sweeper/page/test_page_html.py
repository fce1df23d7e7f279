"""Markup: what is put into a page as text is text there, whatever it holds."""

from __future__ import annotations

from html.parser import HTMLParser

from hypothesis import given, settings
from hypothesis import strategies as st

from sweeper.page.html import E, Html, clean, facts, join, section, table, tag

HOSTILE = ("<script>alert(1)</script>", '" onmouseover="x', "</style>", "]]>", "&lt;", "<!--", "'")


class Reading(HTMLParser):
    """What a browser makes of markup: elements with their attributes, and text."""

    def __init__(self, markup: str) -> None:
        super().__init__(convert_charrefs=True)
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(markup)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.text += data


@settings(max_examples=50, deadline=None)
@given(st.text() | st.sampled_from(HOSTILE))
def test_any_text_stays_text_in_an_element_and_in_an_attribute(text: str) -> None:
    read = Reading(tag("p", text, title=text))
    assert read.elements == [("p", {"title": clean(text)})]
    assert read.text == clean(text)


def test_markup_stays_markup_and_what_is_added_to_it_is_text() -> None:
    bold = tag("b", "x")
    assert E(bold) is bold
    assert join(["<", bold], "&") == "&lt;&amp;<b>x</b>"
    assert bold + "<i>" == "<b>x</b>&lt;i&gt;"
    assert isinstance(bold + "<i>", Html)


def test_colours_go_and_what_cannot_be_seen_is_shown_as_missing() -> None:
    assert clean("\x1b[1;31mred\x1b[0m\r\n\x00\x07 \u202etxt \ud800") == "red\n�� �txt �"
    assert clean("tab\tstays") == "tab\tstays"
    clean("\ud800 \udfff").encode()


def test_attributes_that_are_not_there_are_left_out() -> None:
    made = tag("a", "x", class_=None, hidden=False, open=True, aria_label="y", href="#z")
    assert made == '<a open aria-label="y" href="#z">x</a>'
    assert tag("meta", charset="utf-8") == '<meta charset="utf-8">'


def test_nothing_is_a_dash_and_nought_is_nought() -> None:
    assert [E(None), E(0), E("")] == ["–", "0", ""]


def test_a_table_has_headings_of_columns_and_rows() -> None:
    made = table("Runs & more", ["run", "why", "n"], [["a", "b" * 30, 1]], text=("why",))
    read = Reading(made)
    scopes = [(name, each.get("scope"), each.get("class")) for name, each in read.elements]
    assert [each for each in scopes if each[0] == "th"] == [
        *(("th", "col", None), ("th", "col", "t"), ("th", "col", "n"), ("th", "row", None))
    ]
    assert [each[2] for each in scopes if each[0] == "td"] == ["t", "n"]
    box = dict(read.elements)["div"]
    assert (box["role"], box["tabindex"], box["aria-label"]) == ("region", "0", "Runs & more")


def test_a_section_names_itself_and_is_not_there_when_empty() -> None:
    assert section("runs", "Runs", "", Html("")) == ""
    read = Reading(section("runs", "Runs", facts([("a", 1)])))
    assert read.elements[:2] == [
        ("section", {"id": "runs", "aria-labelledby": "runs-heading"}),
        ("h2", {"id": "runs-heading"}),
    ]
