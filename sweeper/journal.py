"""A journal file whose last line a crash has torn: Optuna's journal storage, one JSON a line."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import BinaryIO


def cut_torn_line(path: Path) -> int:
    """Cut off what follows the last whole line; how many bytes those were.

    Once more were written behind it, nothing after could be read. The caller holds the journal's
    own lock.
    """
    with path.open("r+b") as file:
        size = file.seek(0, os.SEEK_END)
        end = _end_of_last_line(file, size)
        file.truncate(end)
        os.fsync(file.fileno())
        return size - end


def _end_of_last_line(file: BinaryIO, size: int) -> int:
    """Where the last line ends that is whole and says something."""
    end = size
    while end > 0:
        begin = _begin_of_line(file, end)
        file.seek(begin)
        line = file.read(end - begin)
        if line.endswith(b"\n") and _is_json(line):
            return end
        end = begin
    return 0


def _begin_of_line(file: BinaryIO, end: int) -> int:
    """Where the line begins that ends before a place."""
    at, chunk = end - 1, 4096
    while at > 0:
        begin = max(0, at - chunk)
        file.seek(begin)
        found = file.read(at - begin).rfind(b"\n")
        if found >= 0:
            return begin + found + 1
        at = begin
    return 0


def _is_json(line: bytes) -> bool:
    try:
        json.loads(line)
    except ValueError:
        return False
    return True
