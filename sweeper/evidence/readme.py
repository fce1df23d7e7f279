"""The table of results in a README.md: what it claims of each seed, of their mean and spread.

Read by its columns, since other records' tables and other metrics' columns lie beside. A table
counts where it has a row for a seed of the record; the first such one.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from sweeper.evidence.claims import LEAST_BPB, MOST_BPB, read_text
from sweeper.evidence.record import Claimed

SCORE = re.compile(r"bp[bp]\b|\bscore\b|bpb", re.IGNORECASE)
OTHER_SCORE = re.compile(
    r"pre\b|pre[-_ ]?quant|before|gap|delta|Δ|diff|gain|\bvs\b|base|raw|\bema\b|float|^std|^σ"
    r"|\bfp\d|improve|degrad|step|train|artifact|bytes",
    re.IGNORECASE,
)
SEED = re.compile(r"\bseed\b", re.IGNORECASE)
SEED_CELL = re.compile(r"^(?:seed)?[\s_=:#-]*(\d{1,10})(?![\d.,])", re.IGNORECASE)
MEAN = re.compile(r"^(?:\d+[- ]seed )?(?:mean|average|avg)\b", re.IGNORECASE)
STD = re.compile(r"\bstd|\bst\.? ?dev|standard deviation|^σ", re.IGNORECASE)
SIZE = re.compile(r"\bbytes\b|\bartifact\b|\bsize\b", re.IGNORECASE)
PART = re.compile(r"code|model|weight|step|per\b|/|param", re.IGNORECASE)
WHOLE = re.compile(r"(\d{1,3}(?:,\d{3}){1,3}|\d{6,10})(?: ?B(?:ytes)?)?$", re.IGNORECASE)
OF_RULER = frozenset("|:- \t")
NUMBER = re.compile(r"^(\d\.\d{1,12}|\d)(?![\d.])")
# What follows ± may be an interval: it counts where the words beside say that it is none.
AROUND = re.compile(r"(?:±|\+/-)\s*(\d\.\d{2,12})(?!\d)")
SPREAD = re.compile(r"\bstd(?: ?dev)?\b[\s:=*`]{1,4}(0\.\d{2,12})(?!\d)", re.IGNORECASE)
PLAIN = str.maketrans("", "", "*`~")


@dataclass(frozen=True, kw_only=True)
class Column:
    """One column of scores; each claim stands at README.md:LINE."""

    name: str
    seeds: Mapping[int, Claimed]
    means: tuple[Claimed, ...] = ()
    stds: tuple[Claimed, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Readme:
    """The columns of scores in the table of results, and spreads named before the first section.

    `sizes` are the artifacts' bytes by seed, where the table has them.
    `lines` are the table's, from its first to its last; empty where there is no such table.
    """

    columns: tuple[Column, ...] = ()
    sizes: Mapping[int, Claimed] = field(default_factory=dict)
    stds: tuple[Claimed, ...] = ()
    lines: range = field(default_factory=lambda: range(0))

    def column(self, scores: Mapping[int, Sequence[float]]) -> Column | None:
        """The column that is the record's score: in which most seeds are as logged.

        Where none agrees at all it is the one that is called val_bpb, else the last, as the final
        metric usually is.
        """
        if not self.columns:
            return None

        def rank(place: int) -> tuple[int, bool, int]:
            claims = self.columns[place]
            hits = sum(
                any(claim.agrees(score) for score in scores.get(seed, ()))
                for seed, claim in claims.seeds.items()
            )
            return hits, "val_bpb" in claims.name.lower(), place

        return self.columns[max(range(len(self.columns)), key=rank)]


def read_readme(path: Path | None, seeds: Collection[int]) -> Readme:
    """What a README's table claims of these seeds; nothing where there is no such file."""
    lines = read_text(path).splitlines()
    stds = tuple(_stds_in_opening(lines))
    for rows in _tables(lines):
        columns = tuple(_columns(rows, seeds))
        if columns:
            lines_of = range(rows[0][0], rows[-1][0] + 1)
            return Readme(columns=columns, sizes=_sizes(rows), stds=stds, lines=lines_of)
    return Readme(stds=stds)


def _stds_in_opening(lines: Sequence[str]) -> Iterator[Claimed]:
    for number, line in enumerate(lines, start=1):
        if line.startswith("##"):
            return
        if not line.lstrip().startswith("|"):
            found = SPREAD.search(line) or (AROUND.search(line) if STD.search(line) else None)
            if found is not None:
                yield _claim(found[1], number)


Row = tuple[int, list[str]]  # its line, its cells


def _tables(lines: Sequence[str]) -> Iterator[list[Row]]:
    """The tables of a text, each with its header first and without the ruler below it."""
    rows: list[Row] = []
    for number, line in enumerate([*lines, ""], start=1):
        text = line.strip()
        if text.startswith("|") or (rows and "|" in text):
            if not OF_RULER.issuperset(text):
                cells = text.strip("|").split("|")
                rows.append((number, [cell.translate(PLAIN).strip(" _") for cell in cells]))
        elif rows:
            yield rows
            rows = []


def _sizes(rows: Sequence[Row]) -> dict[int, Claimed]:
    """The artifacts' bytes by seed, from the one column that gives them as whole numbers."""
    header = rows[0][1]
    at = next((place for place, cell in enumerate(header) if SEED.search(cell)), None)
    places = [n for n, cell in enumerate(header) if SIZE.search(cell) and not PART.search(cell)]
    found: dict[int, Claimed] = {}
    if at is None or len(places) != 1:
        return found
    for line, cells in rows[1:]:
        if max(at, places[0]) < len(cells):
            seed, size = SEED_CELL.match(cells[at]), WHOLE.match(cells[places[0]])
            if seed is not None and size is not None:
                found.setdefault(int(seed[1]), _claim(size[1].replace(",", ""), line))
    return found


def _columns(rows: Sequence[Row], seeds: Collection[int]) -> Iterator[Column]:
    """The columns of scores of a table that has a row for one of the seeds."""
    header = rows[0][1]
    at = next((place for place, cell in enumerate(header) if SEED.search(cell)), None)
    named = 0 if at is None else at
    for place, cell in enumerate(header):
        if place == named or not SCORE.search(cell) or OTHER_SCORE.search(cell):
            continue
        column = _column(cell, place, named, rows[1:], need_word=at is None)
        if column.seeds.keys() & set(seeds):
            yield column


def _column(name: str, place: int, named: int, rows: Sequence[Row], *, need_word: bool) -> Column:
    of_seeds: dict[int, Claimed] = {}
    means: list[Claimed] = []
    stds: list[Claimed] = []
    for line, cells in rows:
        if place >= len(cells) or named >= len(cells):
            continue
        label, cell = cells[named], cells[place]
        number, spread = NUMBER.match(cell), AROUND.search(cell)
        seed = SEED_CELL.match(label)
        if STD.search(label) and not MEAN.match(label):
            if number is not None:
                stds.append(_claim(number[1], line))
        elif number is None or not LEAST_BPB < float(number[1]) < MOST_BPB:
            continue
        elif MEAN.match(label):
            means.append(_claim(number[1], line))
            if spread is not None and (STD.search(label) or STD.search(name)):
                stds.append(_claim(spread[1], line))
        elif seed is not None and (not need_word or SEED.search(label) or label.isdecimal()):
            of_seeds.setdefault(int(seed[1]), _claim(number[1], line))
    return Column(name=name, seeds=of_seeds, means=tuple(means), stds=tuple(stds))


def _claim(text: str, line: int) -> Claimed:
    return Claimed(value=float(text), text=text, where=f"README.md:{line}")
