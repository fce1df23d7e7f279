"""Small text files that anyone may have written, read without waiting or filling the memory."""

from __future__ import annotations

import codecs
from pathlib import Path

MOST_BYTES = 4 << 20  # of a text beside the logs; what comes after is not read
MARKS = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)


def read_text(path: Path | None) -> str:
    """A text file in UTF-8, or in UTF-16 with its mark; empty where there is no regular file.

    A pipe is none: to open it would be to wait for who writes into it.
    """
    if path is None or not path.is_file():
        return ""
    try:
        with path.open("rb") as file:
            data = file.read(MOST_BYTES)
    except OSError:
        return ""
    encoding = "utf-16" if data.startswith(MARKS) else "utf-8-sig"
    return data.decode(encoding, errors="replace")
