"""Documents from files: text and JSON Lines, compressed or not."""

from __future__ import annotations

import gzip
import json
import lzma
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import IO

import zstandard

from jobs.data.errors import DataError

JSON_LINES = (".jsonl", ".ndjson")
COMPRESSED = (".gz", ".xz", ".zst")


def read_documents(
    paths: Iterable[Path], *, text_key: str = "text", separator: str | None = None
) -> Iterator[str]:
    """The documents of files in the order given.

    A line of a `.jsonl` file is an object whose `text_key` holds one document. Any other file is
    one document, or several where `separator` stands between them. `.gz`, `.xz` and `.zst` are
    unpacked on the way. Empty documents are left out. Raises DataError naming file and line.
    """
    for path in paths:
        try:
            with _open(path) as file:
                if _plain_suffix(path) in JSON_LINES:
                    texts = _json_lines(path, file, text_key)
                else:
                    whole = file.read()
                    texts = iter([whole] if separator is None else whole.split(separator))
                for text in texts:
                    if text.strip():
                        # JSON can hold halves of surrogate pairs, which are not text.
                        yield text.encode("utf-8", "replace").decode()
        except UnicodeDecodeError as error:
            raise DataError(f"{path}: not UTF-8 text ({error})") from error
        except (gzip.BadGzipFile, lzma.LZMAError, zlib.error, zstandard.ZstdError) as error:
            raise DataError(f"{path}: cannot be unpacked: {error}") from error
        except EOFError as error:
            raise DataError(f"{path}: cannot be unpacked: it ends too early") from error
        except OSError as error:
            raise DataError(f"{path}: cannot be read: {error.strerror or error}") from error


def _plain_suffix(path: Path) -> str:
    """The suffix that tells the format, beneath that of the compression."""
    return path.with_suffix("").suffix if path.suffix in COMPRESSED else path.suffix


def _open(path: Path) -> IO[str]:
    match path.suffix:
        case ".gz":
            return gzip.open(path, "rt", encoding="utf-8")
        case ".xz":
            return lzma.open(path, "rt", encoding="utf-8")
        case ".zst":
            unpacked: IO[str] = zstandard.open(path, "rt", encoding="utf-8")
            return unpacked
    return path.open(encoding="utf-8")


def _json_lines(path: Path, file: IO[str], text_key: str) -> Iterator[str]:
    for number, line in enumerate(file, 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except ValueError as error:
            raise DataError(f"{path}:{number}: not JSON: {error}") from error
        text = row.get(text_key) if isinstance(row, dict) else None
        if not isinstance(text, str):
            has = f"its keys: {', '.join(row)}" if isinstance(row, dict) else "not an object"
            raise DataError(
                f"{path}:{number}: no text under {text_key!r} ({has}); choose with --text-key"
            )
        yield text
