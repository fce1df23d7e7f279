"""What a page does not tell: a page goes to others, and what is secret stands in many places.

It is taken out of the page as it stands, whatever has put it there: a setting, a message, a note, a
log, a picture. So there is one place to look at, and none to forget.
"""

from __future__ import annotations

import html
import re
from collections.abc import Collection, Mapping
from urllib.parse import quote

from sweeper.page.html import Html, clean
from sweeper.redact import redact, secret_values, without
from sweeper.rows import TrialRow
from sweeper.spec import SweepSpec

# Neither text nor an attribute has such signs of its own: they are escaped there.
TAG = re.compile(r"(<[^>]*>)")
NUMBER = re.compile(r"[-+]?[\d.,_]+(?:e[-+]?\d+)?")
READ = re.compile(r'(?<= )(href|aria-label|data-path)="([^"]*)"')  # attributes that tell something


def secrets_of(spec: SweepSpec, trials: Collection[TrialRow]) -> frozenset[str]:
    """The values of all settings that are secret by their names, but for numbers.

    Of these only what stands beside such a name is hidden: others say the same for another reason.
    """
    tables: list[Mapping[str, object]] = [spec.env, spec.process_env]
    tables += [rung.env for rung in spec.stages]
    tables += [trial.env for trial in spec.trials]
    tables += [trial.env for trial in trials]
    values = (clean(value) for table in tables for value in secret_values(table))
    return frozenset(value for value in values if NUMBER.fullmatch(value) is None)


def told(text: str, secrets: Collection[str]) -> str:
    """A text without these secrets, and without what looks like others."""
    return redact(clean(text), secrets)


def hidden(markup: Html, secrets: Collection[str]) -> Html:
    """A part of a page without secrets in its text, and in what its elements are called."""
    in_links = {*secrets, *map(quote, secrets)}

    def attribute(match: re.Match[str]) -> str:
        name, value = match[1], html.unescape(match[2])
        left = without(value, in_links) if name == "href" else told(value, secrets)
        return match[0] if left == value else f'{name}="{html.escape(left)}"'

    def part(piece: str) -> str:
        if piece.startswith("<"):
            return READ.sub(attribute, piece)
        text = html.unescape(piece)
        left = told(text, secrets)
        return piece if left == text else html.escape(left)

    return Html("".join(map(part, TAG.split(markup))))
