"""A drawn picture as part of a page: without styles of its own, with colours that the page sets."""

from __future__ import annotations

import re
from xml.etree import ElementTree

from sweeper.page.html import UNPRINTABLE, Html, tag

XLINK = "{http://www.w3.org/1999/xlink}href"
NUMBER = re.compile(r"-?\d+\.\d{3,}(?:e-?\d+)?")
URL = re.compile(r"^url\(#(.*)\)$")
# A power as a logarithmic axis writes it.
POWER = re.compile(r"\$\\mathdefault\{(.*)\}\$")
EXPONENT = re.compile(r"\^\{(-?\d+)\}")
RAISED = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")
PIXELS = 4 / 3  # in a point
FONT_SIZE = re.compile(r"\d+(?:\.\d+)?px")
# What is left to the page's own style, or has no meaning there.
DROPPED = {"font-family", "font", "stroke-linejoin", "stroke-linecap"}


def inline(svg: str, prefix: str, label: str) -> Html:
    """A whole SVG file as an element of a page, called `label` to those who cannot see it.

    Its styles become attributes, over which the page's style sheet wins, so that a page can forbid
    all inline styles and choose colours for the dark. Its ids begin with `prefix`.
    """
    root = ElementTree.fromstring(UNPRINTABLE.sub("\ufffd", svg))
    # What is drawn again and again has its colour where it is used; one of its own is out of reach
    # for the page's style sheet, since it has no part of the page above it.
    styled = {e.attrib[XLINK][1:] for e in root.iter() if XLINK in e.attrib and "style" in e.attrib}
    used = {target for element in root.iter() for target in _targets(element)}
    for parent in list(root.iter()):
        for child in list(parent):
            if _name(child) in ("metadata", "style"):
                parent.remove(child)
    for element in root.iter():
        element.tag = _name(element)
        if element.attrib.get("id") in styled:
            element.attrib.pop("style", None)
        element.text, element.tail = _text(element), None
        element.attrib = _attributes(element, prefix, used)
    box = root.attrib["viewBox"]
    width = round(float(box.split()[2]) * PIXELS)  # unless the page says otherwise
    inside = "".join(ElementTree.tostring(child, encoding="unicode") for child in root)
    return tag("svg", Html(inside), viewBox=box, width=width, role="img", aria_label=label)


def _name(element: ElementTree.Element) -> str:
    return element.tag.rpartition("}")[2]


def _targets(element: ElementTree.Element) -> list[str]:
    """The ids that an element points to."""
    urls = [match[1] for value in element.attrib.values() if (match := URL.match(value))]
    return [*urls, *([element.attrib[XLINK][1:]] if XLINK in element.attrib else [])]


def _text(element: ElementTree.Element) -> str | None:
    if element.tag != "text":
        return None
    return POWER.sub(_power, element.text or "")


def _power(match: re.Match[str]) -> str:
    text = EXPONENT.sub(lambda exponent: exponent[1].translate(RAISED), match[1])
    return text.replace(r"\times", "×")


def _attributes(element: ElementTree.Element, prefix: str, used: set[str]) -> dict[str, str]:
    facts: dict[str, str] = {}
    for name, value in element.attrib.items():
        if name == "style":
            for rule in filter(None, (part.strip() for part in value.split(";"))):
                key, _, what = rule.partition(":")
                if key.strip() == "font" and (size := FONT_SIZE.search(what)) is not None:
                    facts["font-size"] = size[0]
                elif key.strip() not in DROPPED:
                    facts[key.strip()] = what.strip()
        elif name == "id":
            if value in used:
                facts["id"] = f"{prefix}-{value}"
        elif name == XLINK:
            facts["href"] = f"#{prefix}-{value[1:]}"
        elif (match := URL.match(value)) is not None:
            facts[name] = f"url(#{prefix}-{match[1]})"
        elif "{" not in name:
            facts[name] = NUMBER.sub(_rounded, " ".join(value.split()))
    return facts


def _rounded(match: re.Match[str]) -> str:
    return f"{float(match[0]):.2f}".rstrip("0").rstrip(".")
