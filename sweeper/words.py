"""Numbers and names as people read them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any


def clock(seconds: float) -> str:
    """Seconds as m:ss, or h:mm:ss."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


def shorten_gpus(gpus: str) -> str:
    """`0,1,2,3,6` as `0-3,6`; those of several nodes are counted; other names stay as they are."""
    names = gpus.split(",")
    if len(set(names)) < len(names):
        return f"{len(names)} GPUs"
    if not all(name.isdecimal() for name in names):
        return gpus
    spans: list[list[int]] = []
    for number in sorted(map(int, names)):
        if spans and number == spans[-1][1] + 1:
            spans[-1][1] = number
        else:
            spans.append([number, number])
    return ",".join(f"{a}-{b}" if a != b else str(a) for a, b in spans)


def first_line(text: str) -> str:
    """What fits on one line of a message."""
    return text.strip().partition("\n")[0]


def aligned(rows: Sequence[Sequence[str]], left: Sequence[int] = ()) -> list[str]:
    """Columns one below the other, by their right but for those of these numbers."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        "  ".join(
            cell.ljust(width) if place in left else cell.rjust(width)
            for place, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]


def shown(path: Path) -> str:
    """A path as text that can be written anywhere: what is no UTF-8 in it is replaced."""
    return str(path).encode(errors="surrogateescape").decode(errors="replace")


def finite(value: Any) -> Any:
    """A value for JSON, which knows no NaN and no infinity: null stands for them, at any depth."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {key: finite(each) for key, each in value.items()}
    return [finite(each) for each in value] if isinstance(value, list | tuple) else value
