"""What the driver tells those who look on: the display, the pulse, and notes of what happened."""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from sweeper import pulse
from sweeper.agenda import Agenda
from sweeper.cluster import Cluster
from sweeper.layout import SweepDir
from sweeper.ledger import Ledger
from sweeper.metrics import Metrics
from sweeper.progress import Progress
from sweeper.pulse import Pulse, Quarantined, SlotPulse, SlotState
from sweeper.slots import Slot
from sweeper.storage import Store
from sweeper.view import Observer
from sweeper.work import Work

# How often, at most: looking takes time from the one thread that fills the slots.
LOOK_SECONDS = 0.5
PULSE_SECONDS = 1.0


@dataclass(eq=False)
class Teller:
    """Tells how a sweep stands, not too often."""

    sweep: SweepDir
    ledger: Ledger
    progress: Progress
    observer: Observer
    metrics: Metrics | None = None
    store: Store | None = None
    paused: str | None = None  # why nothing is launched
    _started: float = field(default_factory=time.time)
    _next_look: float = 0.0
    _next_pulse: float = 0.0
    _quarantined: tuple[Quarantined, ...] = ()

    def note(self, kind: str, text: str) -> None:
        """Say what has happened, and keep it in the ledger."""
        self.progress.note(text)
        self.ledger.note(kind, text)

    def attempt_over(self, directory: Path) -> None:
        """Put what an attempt has left where the results go as well."""
        if self.store is not None:
            self.store.put_attempt(directory)

    def tell_of_store(self) -> None:
        """Say what has gone wrong there."""
        for text in [] if self.store is None else self.store.news():
            self.note("storage", text)

    def pause(self, why: str | None) -> None:
        """Say that nothing is launched for a reason, or, without one, that the sweep goes on."""
        if why is not None and self.paused is None:
            # Not in the ledger: it may be its disk that has no room.
            self.progress.note(f"paused: {why}")
        elif why is None and self.paused is not None:
            self.note("pause", f"was paused, goes on now: {self.paused}")
        self.paused = why

    def quarantine(self, node: str, host: str, why: str) -> None:
        """Say that a node takes no more runs."""
        self._quarantined += (Quarantined(node=node, host=host, why=why),)
        self.note("quarantine", f"{host}: no more runs go to this node ({node[:12]}): {why}")

    def release(self, node: str, host: str, why: str) -> None:
        """Say that a node takes runs again."""
        self._quarantined = tuple(one for one in self._quarantined if one.node != node)
        self.note("quarantine", f"{host}: runs go to this node ({node[:12]}) again: {why}")

    def look(
        self, cluster: Cluster, work: Mapping[Slot, Work], agenda: Agenda, *, now: bool = False
    ) -> None:
        """Show the sweep as it is, if it is time for that."""
        clock = time.monotonic()
        self.tell_of_store()
        if now or clock >= self._next_pulse:
            self._next_pulse = clock + PULSE_SECONDS
            pulse.write(self.sweep.pulse, self._pulse(cluster, work, agenda))
        if now or clock >= self._next_look:
            view = self.observer.look()
            self.progress.update(view)
            if self.metrics is not None:
                self.metrics.update(view)
            self._next_look = time.monotonic() + LOOK_SECONDS

    def _pulse(self, cluster: Cluster, work: Mapping[Slot, Work], agenda: Agenda) -> Pulse:
        return Pulse(
            pid=os.getpid(),
            host=socket.gethostname(),
            started=self._started,
            t=time.time(),
            paused=self.paused,
            slots=tuple(
                _slot_pulse(pool is cluster.runs, slot, work.get(slot))
                for pool in cluster.pools
                for slot in pool.slots
            ),
            quarantined=self._quarantined,
            waiting=agenda.waiting(True) + agenda.waiting(False),
            backing_off=agenda.delayed(time.monotonic()),
        )


def _slot_pulse(runs: bool, slot: Slot, work: Work | None) -> SlotPulse:
    pool = "runs" if runs else "packing"
    if slot.facts is None:
        return SlotPulse(pool=pool, state=SlotState.OPENING)
    return SlotPulse(
        pool=pool,
        state=SlotState.IDLE if work is None else SlotState.BUSY,
        node=slot.facts.node,
        host=slot.facts.host,
        gpus=",".join(slot.facts.gpus),
        trial=None if work is None else work.trial.name,
        seed=None if work is None else work.run.seed,
        stage=None if work is None else work.launch.stage,
    )
