"""What a person can act on while a data set is made or fetched."""

from __future__ import annotations


class DataError(ValueError):
    """A data set cannot be made or fetched; the message says why and what to do."""
