"""A sweep as one page: a file that opens anywhere, holds all it shows, and asks for nothing.

There is no script in it, and its policy forbids all but its own style sheet: whatever a name, a
message or a log holds stays text. <sweep>/report.html
"""

from __future__ import annotations

import base64
import hashlib
from pathlib import Path

from sweeper.layout import SweepDir
from sweeper.page import parts, runs
from sweeper.page.facts import Facts, gather
from sweeper.page.figures import figures
from sweeper.page.hiding import hidden
from sweeper.page.html import Html, join, tag
from sweeper.page.parts import moment
from sweeper.page.style import CSS

# Section -> as the page's list of contents calls it.
CONTENTS = {
    "result": "Result",
    "search": "Search",
    "pictures": "Pictures",
    "seeds": "Seeds",
    "configurations": "Configurations",
    "training": "Training",
    "excluded": "What did not count",
    "runs": "Runs",
    "logs": "Logs",
    "made-of": "Made of",
    "notes": "Notes",
}


def write_page(sweep: SweepDir) -> Path:
    """Write a sweep's page into its directory, by rename; UserError where there is no sweep."""
    text = page(sweep)
    path = sweep.report_html
    partial = path.with_name(path.name + ".partial")
    partial.write_text(text, encoding="utf-8")
    partial.replace(path)
    return path


def page(sweep: SweepDir, now: float | None = None) -> str:
    """A sweep's page as it is now, whole or not; UserError where there is no sweep."""
    return render(gather(sweep, now))


def render(facts: Facts) -> str:
    """The page of what is known of a sweep, without what is secret in it."""
    sections = [
        parts.result(facts),
        parts.findings(facts),
        figures(facts),
        parts.configurations(facts),
        runs.excluded(facts),
        runs.runs(facts),
        runs.logs(facts),
        runs.made_of(facts),
        runs.notes(facts),
    ]
    main = tag("main", join(sections), id="main")
    body = tag(
        "body",
        tag("a", "To the result", href="#main", class_="skip"),
        parts.head(facts),
        _contents(main),
        main,
        _foot(facts),
    )
    shown = hidden(body, facts.secrets)
    return f"<!DOCTYPE html>\n{tag('html', _head(facts), shown, lang='en')}\n"


def policy() -> str:
    """What the page may do: use this style sheet, nothing else."""
    digest = base64.b64encode(hashlib.sha256(CSS.encode()).digest()).decode()
    return f"default-src 'none'; style-src 'sha256-{digest}'; base-uri 'none'; form-action 'none'"


def _head(facts: Facts) -> Html:
    return tag(
        "head",
        tag("meta", charset="utf-8"),
        tag("meta", http_equiv="Content-Security-Policy", content=policy()),
        tag("meta", name_="viewport", content="width=device-width, initial-scale=1"),
        tag("meta", name_="color-scheme", content="light dark"),
        tag("meta", name_="referrer", content="no-referrer"),
        tag("title", f"{facts.spec.name} · sweeper"),
        tag("style", Html(CSS)),
    )


def _contents(main: Html) -> Html:
    items = [
        tag("li", tag("a", name, href=f"#{part}"))
        for part, name in CONTENTS.items()
        if f'<section id="{part}"' in main
    ]
    return tag("nav", tag("ul", join(items)), aria_label="Contents")


def _foot(facts: Facts) -> Html:
    lines = [
        f"As of {moment(facts.now)}. ",
        "Every number is over finished seeds; standard deviations have n − 1 below the line. ",
        "The same as data: ",
        tag("code", f"sweeper report {facts.spec.name} --format json"),
    ]
    return tag("footer", tag("p", *lines))
