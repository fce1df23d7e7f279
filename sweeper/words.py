"""Numbers and names as people read them."""

from __future__ import annotations


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
