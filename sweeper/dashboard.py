"""A search in Optuna's dashboard: what is shown with each trial, and the server of it."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from functools import partial
from socketserver import ThreadingMixIn
from typing import Any
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer, make_server

from sweeper import search_tables
from sweeper.aggregate import runs_frame
from sweeper.curves import curves_of, last_attempts
from sweeper.drawing import as_png
from sweeper.entries import EntryState
from sweeper.errors import UserError
from sweeper.exhibit import Exhibit, Piece, Span
from sweeper.figures import draw_curves
from sweeper.findings import find
from sweeper.layout import AttemptDir, SweepDir
from sweeper.ledger import Ledger
from sweeper.logreader import find_logs
from sweeper.rows import AttemptRow
from sweeper.standings import Standing, Standings, read_standings
from sweeper.tables import records

HOST = "127.0.0.1"
# Column of the runs' table -> heading, and how its numbers are written.
SEED_COLUMNS = {
    "state": ("state", ""),
    "val_bpb": ("val_bpb", ".5f"),
    "bytes_total": ("bytes", ",.0f"),
    "steps": ("steps", ",.0f"),
    "step_avg_ms": ("ms/step", ",.1f"),
    "gpu_s_reserved": ("GPU s", ",.0f"),
    "attempts": ("attempts", "d"),
    "message": ("what it said", ""),
}
LOG_TAIL = 1 << 20  # bytes of a log that are shown
REFRESH_SECONDS = 3.0

Attempts = Mapping[tuple[int, int], AttemptRow]  # by trial and seed
Runs = Mapping[tuple[str, int], dict[str, Any]]  # rows of the runs' table


class Gallery:
    """A search as the dashboard shows it; `refresh` brings it to what the ledger says.

    What runs have written is read where it lies, when a browser asks for it.
    """

    def __init__(self, sweep: SweepDir, ledger: Ledger) -> None:
        """UserError where the sweep is no search. The ledger stays the caller's."""
        if ledger.spec.search is None:
            raise UserError(f"{sweep.name} is no search; `sweeper report {sweep.name}` shows it")
        self._sweep, self._ledger = sweep, ledger
        self.exhibit = Exhibit(ledger.spec.search)
        self._version = -1
        self._settled: dict[str, set[int]] = {}  # by stage: the trials that will not change

    def refresh(self) -> None:
        """Show what is new."""
        version = int(self._ledger.db.execute("PRAGMA data_version").fetchone()[0])
        with self._ledger.snapshot():
            stages = read_standings(self._ledger)
            at_work = any(row.state is EntryState.OPEN for stage in stages for row in stage.rows)
            if version == self._version and not at_work:
                return
            self._version = version
            attempts = last_attempts(self._ledger)
            runs = {(row["trial"], row["seed"]): row for row in records(runs_frame(self._ledger))}
            before = sum(map(len, self._settled.values()))
            for stage in stages:
                self._show(stage, attempts, runs)
            if before < sum(map(len, self._settled.values())):
                text = search_tables.as_markdown(find(self._ledger))
                for stage in stages:
                    self.exhibit.note(self._study(stage), text)

    def _show(self, stage: Standings, attempts: Attempts, runs: Runs) -> None:
        name = self._study(stage)
        self.exhibit.open(name, stage.senses)
        settled = self._settled.setdefault(name, set())
        for row in stage.rows:
            if row.entry.number in settled:
                continue
            span, pieces = _span(row, attempts), self._pieces(row, attempts)
            self.exhibit.show(name, stage.told(row), span, _note(row, runs), pieces)
            if row.state is not EntryState.OPEN:
                settled.add(row.entry.number)

    def _study(self, stage: Standings) -> str:
        """As the study is called in the search's own storage."""
        spec = self._ledger.spec
        return spec.name if len(spec.rungs) == 1 else f"{spec.name}/{stage.rung.name}"

    def _pieces(self, row: Standing, attempts: Attempts) -> list[Piece]:
        """The losses of all seeds in one picture, and each seed's log and result."""
        trial, seeds = row.entry.trial, [s for s in row.runs if (row.entry.trial, s) in attempts]
        places = {seed: AttemptDir(self._sweep.path / attempts[trial, seed].path) for seed in seeds}
        pieces = []
        if any(_has_begun(place) for place in places.values()):
            draw = partial(_picture, self._sweep, attempts, trial, seeds)
            pieces.append(Piece(filename="losses.png", read=draw))
        for seed, place in places.items():
            if find_logs(place):
                pieces.append(Piece(filename=f"seed{seed}.log", read=partial(_log, place)))
            if place.result.exists():
                read = place.result.read_bytes
                pieces.append(Piece(filename=f"seed{seed}-result.json", read=read))
        return pieces


def _span(row: Standing, attempts: Attempts) -> Span:
    """From when to when the runs of a configuration were, by their last attempts."""
    mine = [attempts[row.entry.trial, s] for s in row.runs if (row.entry.trial, s) in attempts]
    ends = [attempt.ended for attempt in mine if attempt.ended is not None]
    return min((each.launched for each in mine), default=None), max(ends, default=None)


def _has_begun(place: AttemptDir) -> bool:
    return place.events.exists() or bool(find_logs(place))


def _picture(sweep: SweepDir, attempts: Attempts, trial: int, seeds: Sequence[int]) -> bytes:
    curves = curves_of(sweep, attempts, trial, seeds)
    return as_png(partial(draw_curves, curves))


def _log(place: AttemptDir) -> bytes:
    """The end of what the first rank has printed."""
    path = find_logs(place)[0]
    with path.open("rb") as file:
        file.seek(max(0, path.stat().st_size - LOG_TAIL))
        return file.read()


def _note(row: Standing, runs: Runs) -> str:
    """A trial's seeds, a row each, as Markdown."""
    shown = [(seed, runs[row.name, seed]) for seed in row.runs]
    # Without GPUs there are no seconds of them.
    names = [name for name in SEED_COLUMNS if any(run[name] not in (None, 0) for _, run in shown)]
    table = [["seed", *(SEED_COLUMNS[name][0] for name in names)]]
    table.append(["--:"] * len(table[0]))
    table += [
        [str(seed), *(_cell(run[name], SEED_COLUMNS[name][1]) for name in names)]
        for seed, run in shown
    ]
    lines = ["| " + " | ".join(cells) + " |" for cells in table]
    reason = f"\n\n{row.entry.reason}" if row.entry.reason else ""
    return f"**{row.name}**: {row.state}{reason}\n\n" + "\n".join(lines)


def _cell(value: Any, form: str) -> str:
    text = "–" if value is None else format(value, form)
    return text.partition("\n")[0].replace("|", "\\|")


# ---- the server


class _Server(ThreadingMixIn, WSGIServer):
    daemon_threads = True


class _Quiet(WSGIRequestHandler):
    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002
        """Says nothing: a line for each request would be all that is seen."""


@contextmanager
def serving(app: Any, port: int) -> Iterator[str]:
    """Answer on this machine's own address while the block runs; gives the URL.

    Port 0 is any that is free. Raises UserError where it is taken.
    """
    try:
        server = make_server(HOST, port, app, server_class=_Server, handler_class=_Quiet)
    except OSError as error:
        raise UserError(f"port {port}: {error.strerror}; give another --port") from error
    thread = threading.Thread(target=server.serve_forever, args=(0.1,), daemon=True)
    thread.start()
    try:
        yield f"http://{HOST}:{server.server_port}/"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def show(sweep: SweepDir, port: int, say: Callable[[str], None], over: threading.Event) -> None:
    """Serve a search's dashboard, ever up to date, until it is over."""
    with closing(Ledger.open_for_reading(sweep.ledger)) as ledger:
        gallery = Gallery(sweep, ledger)
        gallery.refresh()
        with serving(gallery.exhibit.app(), port) as url:
            say(url)
            while not over.wait(REFRESH_SECONDS):
                gallery.refresh()
