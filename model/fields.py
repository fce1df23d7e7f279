"""Settings from text: how an environment string becomes a typed value, and back for the echo."""

from __future__ import annotations

import types
import typing
from typing import Any, Literal

NONE_WORDS = ("", "none")
TRUE_WORDS = ("1", "true", "yes", "on")
FALSE_WORDS = ("0", "false", "no", "off")
KINDS = {bool: "true or false", int: "a whole number", float: "a number", str: "text"}


class ConfigError(ValueError):
    """A setting is wrong; the message names it, what was found and what is allowed."""


def convert(name: str, value: Any, wanted: Any) -> Any:
    """`value` (a string from the environment, or a Python value) as the type `wanted`."""
    origin, options = typing.get_origin(wanted), typing.get_args(wanted)
    if origin in (types.UnionType, typing.Union):
        if value is None or (isinstance(value, str) and value.strip().lower() in NONE_WORDS):
            return None
        return convert(name, value, next(o for o in options if o is not type(None)))
    if origin is Literal:
        if value not in options:
            allowed = ", ".join(map(str, options))
            raise ConfigError(f"{name.upper()}: {value!r} is not one of {allowed}")
        return value
    if origin is tuple:
        return tuple(convert(name, part, int) for part in _parts(value))
    try:
        return _scalar(value, wanted)
    except (TypeError, ValueError, OverflowError):
        expected = f"{name.upper()}: expected {KINDS[wanted]}"
        raise ConfigError(f"{expected}, found {value!r}") from None


def _parts(value: Any) -> Any:
    """The items of a list; as text they are separated by commas, and `none` is an empty list."""
    if not isinstance(value, str):
        return value
    if value.strip().lower() in NONE_WORDS:
        return ()
    return [part for part in value.split(",") if part.strip()]


def _scalar(value: Any, wanted: type) -> Any:
    """ValueError, TypeError or OverflowError where `value` is no `wanted`."""
    if wanted is bool and isinstance(value, str):
        word = value.strip().lower()
        if word not in TRUE_WORDS + FALSE_WORDS:
            raise ValueError
        return word in TRUE_WORDS
    if wanted in (int, float) and isinstance(value, bool):
        raise TypeError
    if wanted is int:
        if isinstance(value, str) and value.strip().lstrip("+-").isdigit():
            return int(value)  # exact, however long
        number = float(value)
        if number != int(number):
            raise ValueError
        return int(number)
    if wanted is float:
        return float(value)
    if not isinstance(value, wanted):
        raise TypeError
    return value


def echo_value(value: Any) -> Any:
    """A setting as a JSON value that reads back as itself."""
    return ",".join(map(str, value)) if isinstance(value, tuple) else value
