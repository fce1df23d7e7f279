"""The reading half of the process contract: events, result, and the echo of the config.

The writing half is in `model/report.py`; docs/ARCHITECTURE.md has the fields.
"""

from __future__ import annotations

import difflib
import json
import math
import os
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from sweeper.errors import ContractError

Event = dict[str, Any]

SCHEMA = 1
NUMBERS = (
    "val_bpb",
    "val_loss",
    "prequant_val_bpb",
    "quant_val_bpb",
    "steps",
    "train_time_ms",
    "step_avg_ms",
    "eval_time_s",
    "bytes_total",
    "bytes_code",
    "bytes_model",
)
TRUE_WORDS = frozenset({"1", "true", "yes", "on"})
FALSE_WORDS = frozenset({"0", "false", "no", "off"})
NONE_WORDS = frozenset({"", "none"})


class EventReader:
    """Reads the events of one run as they are written; a torn last line waits for its rest."""

    def __init__(self, path: Path, offset: int = 0) -> None:
        """Reads from so many bytes on: where the stage begins whose events are wanted."""
        self._path = path
        self._offset = offset

    def read(self) -> list[Event]:
        """The events since the last call. A line that is no event is passed over."""
        try:
            with self._path.open("rb") as file:
                file.seek(self._offset)
                data = file.read()
        except FileNotFoundError:
            return []
        whole = data.rfind(b"\n") + 1
        self._offset += whole
        return [event for line in data[:whole].splitlines() if (event := _parse(line)) is not None]


def _parse(line: bytes) -> Event | None:
    try:
        event = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return event if isinstance(event, dict) and isinstance(event.get("kind"), str) else None


def end_events(path: Path) -> int:
    """Where the events of the next stage will begin, in bytes.

    A line that a killed process or a lost host has torn is ended here, or it would spoil the next.
    """
    try:
        with path.open("rb+") as file:
            size = file.seek(0, os.SEEK_END)
            file.seek(max(0, size - 1))
            return size if file.read() in (b"", b"\n") else size + file.write(b"\n")
    except FileNotFoundError:
        return 0


def read_handoff(path: Path, status: str) -> dict[str, Any]:
    """What a stage leaves for the next; ContractError when it is missing, or is something else."""
    try:
        facts = json.loads(path.read_bytes())
    except FileNotFoundError:
        raise ContractError(f"{path.name}: missing, though the stage ended well") from None
    except (OSError, ValueError, RecursionError) as error:
        raise ContractError(f"{path.name}: corrupt ({error})") from error
    found = (facts.get("schema"), facts.get("status")) if isinstance(facts, dict) else facts
    if found != (SCHEMA, status):
        raise ContractError(f"{path.name}: not of schema {SCHEMA} with status {status!r}")
    assert isinstance(facts, dict)
    return facts


def read_result(path: Path) -> dict[str, Any]:
    """A run's result; ContractError when it is missing, corrupt, incomplete or not finite."""
    try:
        result = json.loads(path.read_bytes())
    except FileNotFoundError:
        raise ContractError(f"{path.name}: missing, though every process ended well") from None
    except (OSError, ValueError, RecursionError) as error:
        raise ContractError(f"{path.name}: corrupt ({error})") from error
    if not isinstance(result, dict) or result.get("schema") != SCHEMA:
        raise ContractError(f"{path.name}: not a result of schema {SCHEMA}")
    if result.get("status") != "finished":
        raise ContractError(f"{path.name}: status is {result.get('status')!r}, not 'finished'")
    if not isinstance(result.get("metric"), str):
        raise ContractError(f"{path.name}: metric is {result.get('metric')!r}, not a name")
    for name in NUMBERS:
        value = result.get(name)
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise ContractError(f"{path.name}: {name} is {value!r}, not a number")
        if not is_finite(value):
            raise ContractError(f"{path.name}: {name} is {value}, not finite")
    return result


def is_finite(number: float) -> bool:
    """Whether a number fits a float; a whole number read from JSON may be of any length."""
    return abs(number) <= sys.float_info.max


def check_echo(
    overrides: Mapping[str, str], events: Iterable[Event], inherited: Iterable[str] = ()
) -> None:
    """ContractError unless the run's config event confirms every override.

    A misspelt environment name is otherwise silent: the run would train something else. So it
    would with a setting among the names that its environment has `inherited`.
    """
    config = next((event.get("config") for event in events if event["kind"] == "config"), None)
    if not isinstance(config, dict):
        raise ContractError("events.jsonl: no config event, so no override is confirmed")
    for name, asked in overrides.items():
        if name.lower() not in config:
            close = difflib.get_close_matches(name.lower(), list(config), n=1)
            hint = f"; did you mean {close[0].upper()}?" if close else ""
            raise ContractError(f"{name}: the run does not know this setting{hint}")
        found = config[name.lower()]
        if not same_value(asked, found):
            raise ContractError(f"{name}: asked for {asked!r}, the run took {found!r}")
    for name in inherited:
        if name.isupper() and name.lower() in config and name not in overrides:
            raise ContractError(
                f"{name}: the run takes it from the environment that it was started in, not from "
                "the spec; unset it there, or give it under [env]"
            )


def same_value(asked: str, found: object) -> bool:
    """Whether an environment string and an echoed JSON value mean the same."""
    text = asked.strip()
    if isinstance(found, bool):
        return text.lower() in (TRUE_WORDS if found else FALSE_WORDS)
    if found is None:
        return text.lower() in NONE_WORDS
    if isinstance(found, int | float):
        try:
            return math.isclose(float(text), found, rel_tol=1e-12, abs_tol=0.0)
        except (ValueError, OverflowError):
            return False
    if isinstance(found, list):
        parts = [part for part in text.split(",") if part.strip()]
        return len(parts) == len(found) and all(map(same_value, parts, found))
    return _items(text) == _items(str(found))


def _items(text: str) -> list[str]:
    """The parts of a list in text; `none` is an empty one."""
    if text.strip().lower() in NONE_WORDS:
        return []
    return [part for part in text.replace(" ", "").split(",") if part]


def first_error(events: Iterable[Event]) -> Event | None:
    """The earliest error event of any rank: the others often fail only in its wake.

    Those that say so themselves (`peer`) are no causes.
    """
    errors = [e for e in events if e["kind"] == "error" and e.get("code") != "peer"]
    return min(errors, key=_time, default=None)


def _time(event: Event) -> float:
    """When an event was written; one that does not say it properly comes last."""
    t = event.get("t")
    return t if isinstance(t, int | float) and is_finite(t) else math.inf
