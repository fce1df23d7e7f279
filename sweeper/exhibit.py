"""A copy of a search's studies, to be shown in Optuna's dashboard.

The copy lives in memory and is made from the ledger, so that a browser can change nothing of a
search, a search under way is disturbed by nobody, and a study in any storage is shown alike.
"""

from __future__ import annotations

import hashlib
import io
import json
import mimetypes
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any, BinaryIO

import optuna_dashboard

from sweeper.entries import EntryState, Told
from sweeper.search import Direction, Search
from sweeper.study import MissingFileError, Study, open_memory

Span = tuple[float | None, float | None]  # Unix seconds
Application = Callable[[dict[str, Any], Callable[..., Any]], Iterable[bytes]]

UID = "shown"
HOSTS = ("127.0.0.1", "localhost")
CORS = "access-control-"


@dataclass(frozen=True, kw_only=True)
class Piece:
    """A file beside a trial. It is read whenever a browser asks for it, so it may still grow."""

    filename: str
    read: Callable[[], bytes]


class Exhibit:
    """The studies of a search, for Optuna's dashboard. One thread shows, others may look."""

    def __init__(self, search: Search) -> None:
        self._search = search
        self._storage = open_memory()
        self._studies: dict[str, Study] = {}
        self._notes: dict[tuple[str, int | None], str] = {}
        self._pieces: dict[str, Piece] = {}  # by the dashboard's name for them

    def open(self, name: str, senses: Sequence[Direction]) -> None:
        """A study, to be shown from now on."""
        if name not in self._studies:
            study = self._studies[name] = Study(self._storage, name, self._search, senses)
            study.sync([], UID)

    def show(self, name: str, told: Told, span: Span, note: str, pieces: Sequence[Piece]) -> None:
        """Bring a trial to what is told of it; once it is settled, no piece can be added.

        `span` is from when to when its runs were, as far as they have begun and ended.
        """
        study = self._studies[name]
        known = len(study.trials())
        if told.number == known:
            study.show(replace(told, state=EntryState.OPEN, values=None, constraints={}))
        trial = study.trials()[told.number]
        if not trial.state.is_finished():
            self._add(trial, pieces)
            study.show(told)
            _date(study.trials()[told.number], span)
        self._write(name, trial, note)

    def note(self, name: str, text: str) -> None:
        """What stands on a study's own page, as Markdown."""
        self._write(name, None, text)

    def app(self) -> Application:
        """The dashboard as a WSGI application; it answers who reads, on this machine."""
        return _read_only(optuna_dashboard.wsgi(self._storage, artifact_store=_Store(self._pieces)))

    def _add(self, trial: Any, pieces: Sequence[Piece]) -> None:
        for piece in pieces:
            identity = f"{trial._trial_id:x}-{_digest(piece.filename)}"
            self._pieces[identity] = piece
            key = f"artifacts:{identity}"
            if key in trial.system_attrs:
                continue
            mimetype, encoding = mimetypes.guess_type(piece.filename)
            facts = {
                "artifact_id": identity,
                "filename": piece.filename,
                "mimetype": mimetype or "text/plain",
                "encoding": encoding,
            }
            self._storage.set_trial_system_attr(trial._trial_id, key, json.dumps(facts))

    def _write(self, name: str, trial: Any | None, text: str) -> None:
        place = (name, None if trial is None else trial.number)
        if self._notes.get(place) == text:
            return
        self._notes[place] = text
        study = self._studies[name]
        noted = study.optuna_study if trial is None else study.optuna_trial(trial.number)
        optuna_dashboard.save_note(noted, text)


class _Store:
    """Optuna's idea of where files are kept, for files that are kept elsewhere."""

    def __init__(self, pieces: dict[str, Piece]) -> None:
        self._pieces = pieces

    def open_reader(self, artifact_id: str) -> BinaryIO:
        try:
            return io.BytesIO(self._pieces[artifact_id].read())
        except (KeyError, OSError) as error:
            raise MissingFileError(artifact_id) from error

    def write(self, artifact_id: str, content_body: BinaryIO) -> None:
        raise PermissionError("nothing is written from a browser")

    def remove(self, artifact_id: str) -> None:
        raise PermissionError("nothing is removed from a browser")


def _date(trial: Any, span: Span) -> None:
    """Else it would have begun and ended when it was shown; the storage keeps this very object."""
    begun, ended = span
    if begun is not None:
        trial.datetime_start = datetime.fromtimestamp(begun)
    if trial.state.is_finished() and ended is not None:
        trial.datetime_complete = datetime.fromtimestamp(ended)


def _digest(filename: str) -> str:
    """What the dashboard takes for a name: nothing but hexadecimal digits."""
    return hashlib.sha256(filename.encode()).hexdigest()[:16]


def _read_only(app: Application) -> Application:
    """Answers nothing but reading, and only to pages of this address.

    The dashboard lets any page of the internet read artifacts by a browser on this machine.
    """

    def answer(environ: dict[str, Any], start: Callable[..., Any]) -> Iterable[bytes]:
        def refuse(status: str, why: bytes) -> list[bytes]:
            start(status, [("Content-Type", "text/plain"), ("Content-Length", str(len(why)))])
            return [why]

        def begin(status: str, headers: list[tuple[str, str]], *rest: Any) -> Any:
            kept = [each for each in headers if not each[0].lower().startswith(CORS)]
            return start(status, kept, *rest)

        if environ.get("HTTP_HOST", "").rpartition(":")[0] not in HOSTS:
            return refuse("403 Forbidden", b"only for pages of this machine's own address")
        if environ["REQUEST_METHOD"] not in ("GET", "HEAD"):
            return refuse("405 Method Not Allowed", b"a copy is shown: nothing can be changed")
        return app(environ, begin)

    return answer
