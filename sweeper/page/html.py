"""HTML made of small pieces: what is not markup already is text, and is escaped.

Names, messages and logs come from anywhere; nothing in them can become markup, an attribute or a
script, since there is no way to put a plain string into a page but as text.
"""

from __future__ import annotations

import html
import re
from collections.abc import Collection, Iterable, Sequence

VOID = frozenset({"meta", "br", "hr"})
ANSI = re.compile(r"\x1b\[[0-9;?]*[ -/]*[@-~]")
# What no page may hold, or what no reader can see; line breaks and tabs stay. So do no signs that
# turn the direction of all that follows.
UNPRINTABLE = re.compile(
    r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff\ufdd0-\ufdef\ufffe\uffff]"
)
NOTHING = "–"
MARKUP = re.compile(r"<[^>]*>")
WORDY = 24  # letters: a column with more in a cell has room for some of them


class Html(str):
    """Markup that is safe to put into a page."""

    __slots__ = ()

    def __add__(self, other: str) -> Html:
        return Html(super().__add__(E(other)))


def clean(text: object) -> str:
    """Text without colours of a terminal; what is no character is shown as one that is missing."""
    return UNPRINTABLE.sub("\ufffd", ANSI.sub("", str(text)).replace("\r\n", "\n"))


def E(value: object) -> Html:  # noqa: N802 - as short as it is frequent
    """Anything as it stands in a page; markup stays as it is, None is a dash."""
    if isinstance(value, Html):
        return value
    return Html(html.escape(NOTHING if value is None else clean(value), quote=True))


def cut(text: str, letters: int) -> str:
    """No more than so many letters of a text, and that it goes on."""
    return text if len(text) <= letters else f"{text[: letters - 1]}…"


def join(parts: Iterable[object], separator: str = "") -> Html:
    return Html(E(separator).join(E(part) for part in parts))


def tag(name: str, *children: object, **attributes: object) -> Html:
    """An element. `class_` is class, `aria_label` aria-label; None and False are left out."""
    facts = "".join(_attribute(key, value) for key, value in attributes.items())
    if name in VOID:
        return Html(f"<{name}{facts}>")
    return Html(f"<{name}{facts}>{join(children)}</{name}>")


def _attribute(key: str, value: object) -> str:
    name = key.rstrip("_").replace("_", "-")
    if value is None or value is False:
        return ""
    return f" {name}" if value is True else f' {name}="{html.escape(clean(value), quote=True)}"'


def table(
    caption: str,
    columns: Sequence[str],
    rows: Sequence[Sequence[object]],
    *,
    text: Collection[str] = (),
    marked: Collection[int] = (),
    told: bool = True,
) -> Html:
    """A table in a box that scrolls by itself; the first cell of a row is its heading.

    Columns named in `text` begin at the left, as the first does; all others are numbers. The rows
    of `marked` are set off. The caption stands above the box, so that it does not scroll; unless
    `told` is false, where a heading says the same.
    """
    classes = [_class(place, name, text, rows) for place, name in enumerate(columns)]
    head = join(
        tag("th", name, scope="col", class_=class_)
        for name, class_ in zip(columns, classes, strict=True)
    )
    body = join(
        tag("tr", _cells(row, classes), class_="marked" if number in marked else None)
        for number, row in enumerate(rows)
    )
    whole = tag("table", tag("thead", tag("tr", head)), tag("tbody", body), aria_label=caption)
    box = tag("div", whole, class_="wide", role="region", tabindex="0", aria_label=caption)
    return tag("p", caption, class_="caption") + box if told else box


def _class(
    place: int, name: str, text: Collection[str], rows: Sequence[Sequence[object]]
) -> str | None:
    """How a column is set: numbers to the right, sentences with room for a few words."""
    if place and name not in text:
        return "n"
    longest = max((len(MARKUP.sub("", str(row[place]))) for row in rows), default=0)
    return "t" if longest > WORDY else None


def _cells(row: Sequence[object], classes: Sequence[str | None]) -> Html:
    first, *rest = row
    return tag("th", first, scope="row", class_=classes[0]) + join(
        tag("td", cell, class_=class_) for cell, class_ in zip(rest, classes[1:], strict=True)
    )


def facts(pairs: Iterable[tuple[str, object]]) -> Html:
    """Names and what they are, as a list of definitions."""
    return tag("dl", join(tag("div", tag("dt", name), tag("dd", value)) for name, value in pairs))


def section(name: str, heading: str, *children: object) -> Html:
    """A part of the page with its heading; empty where it holds nothing."""
    inside = join(children)
    if not inside:
        return Html("")
    title = tag("h2", heading, id=f"{name}-heading")
    return tag("section", title, inside, id=name, aria_labelledby=f"{name}-heading")
