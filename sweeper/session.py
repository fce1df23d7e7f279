"""One session of a sweep: everything that its driver holds, from the lock to the last word."""

from __future__ import annotations

import secrets
from collections.abc import Iterator
from contextlib import closing, contextmanager
from functools import partial
from typing import TYPE_CHECKING

from sweeper import snapshot as code
from sweeper import storage
from sweeper.cluster import Cluster, ClusterOptions, Gauges
from sweeper.driver import Interrupts, hold
from sweeper.layout import SweepDir
from sweeper.ledger import Ledger
from sweeper.loop import Loop
from sweeper.metrics import GAUGES, Metrics
from sweeper.progress import Progress
from sweeper.provenance import record_spec
from sweeper.reader import room_told
from sweeper.rows import RunState
from sweeper.settle import recover
from sweeper.spec import SweepSpec
from sweeper.telling import Teller
from sweeper.view import Observer, SweepView

if TYPE_CHECKING:
    from sweeper.planner import Planner

# What there is to put the last results in, after the last run or after an interrupt.
STORE_SECONDS, INTERRUPTED_STORE_SECONDS = 120.0, 0.5


def run_sweep(
    spec: SweepSpec,
    sweep: SweepDir,
    options: ClusterOptions,
    *,
    spec_text: str,
    progress: Progress,
    extend: bool = False,
    update_code: bool = False,
    leave_failed: bool = False,
    stop_seconds: float | None = None,
) -> SweepView:
    """Run what is left of a sweep and return how it stands.

    With `extend` the spec may have more trials and seeds than the sweep has had so far; with
    `update_code` what is left runs today's code, else what the sweep began with; runs that have
    failed before are tried again, unless they are to be left (`leave_failed`). After an interrupt
    everything is over within about `stop_seconds`, or within the runs' grace.

    Raises UserError when another driver holds the sweep, when its ledger is of another spec, or
    when no node of the cluster can hold a run. On SIGINT or SIGTERM the runs at work are stopped
    within their grace and wait for the next call; then KeyboardInterrupt is raised.
    """
    unchecked = code.check(spec, sweep)
    if spec.storage is not None:
        storage.check(spec.storage.url)
    with (
        hold(sweep),
        room_told(sweep.ledger),
        closing(Ledger.open_for_writing(sweep.ledger, spec, extend=extend)) as ledger,
    ):
        sweep.pulse.unlink(missing_ok=True)  # the last word of a driver that is no more
        session = secrets.token_hex(8)
        recover(sweep, ledger, session, spec.disk.remove)
        # In a search, what has failed has been judged by.
        if spec.search is None and not leave_failed:
            ledger.reopen_failed()
        observer = Observer(sweep, ledger)
        before = observer.look()
        teller = Teller(sweep, ledger, progress, observer)
        planner = None if spec.search is None else _planner(spec, sweep, ledger, teller)
        if before.over and (planner is None or planner.done):
            with _stored(spec, sweep, teller, Interrupts()):
                return before
        finished = before.count(RunState.FINISHED) > 0
        snapshot, told = code.prepare(spec.workload, sweep, finished=finished, update=update_code)
        record_spec(sweep, spec, spec_text, snapshot, again=extend)
        with (
            Interrupts().catch() as interrupts,
            progress.show(),
            _stored(spec, sweep, teller, interrupts),
        ):
            for text in filter(None, (unchecked, told)):
                teller.note("code", text)
            progress.update(before)
            with Cluster(spec, options, sweep) as cluster:
                teller.metrics = Metrics(sweep.name, Gauges(GAUGES).set)
                loop = Loop(
                    *(spec, sweep, ledger, cluster, teller, interrupts, session),
                    stop_seconds=stop_seconds,
                    snapshot=snapshot,
                    planner=planner,
                )
                loop.run()
        if interrupts.count:
            raise KeyboardInterrupt
        return observer.look()


def _planner(spec: SweepSpec, sweep: SweepDir, ledger: Ledger, teller: Teller) -> Planner:
    from sweeper.planner import Planner  # whose imports take a second

    return Planner(spec, sweep, ledger, partial(teller.note, "search"))


@contextmanager
def _stored(
    spec: SweepSpec, sweep: SweepDir, teller: Teller, interrupts: Interrupts
) -> Iterator[None]:
    """Let the results go to the spec's storage as well, all of them by the end of the block."""
    if spec.storage is None:
        yield
        return
    teller.store = store = storage.Store(spec.storage.url, sweep)
    seconds = 0.0
    try:
        yield
        if not interrupts.count:
            from sweeper.aggregate import write_report  # which takes a second

            write_report(sweep)
            seconds = STORE_SECONDS
    finally:
        store.close(max(seconds, INTERRUPTED_STORE_SECONDS))
        teller.tell_of_store()
