"""What becomes of a run whose work in a slot has ended, and of the node where it was.

`judge` says how it ended, `policy` and `Suspects` what follows; here both are acted upon.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from sweeper.agenda import Agenda
from sweeper.cluster import Cluster
from sweeper.judge import Outcome, judge
from sweeper.ledger import Ledger
from sweeper.policy import Verdict, after_attempt, may_quarantine
from sweeper.room import Room
from sweeper.rows import AttemptState, RunState
from sweeper.settle import can_go_on, record_end, record_stage
from sweeper.slots import Slot
from sweeper.spec import SweepSpec
from sweeper.suspects import End, Suspects
from sweeper.telling import Teller
from sweeper.work import Work

if TYPE_CHECKING:
    from sweeper.planner import Planner

UNASKED = "it was ended by a SIGTERM to its guard that did not come from the sweep"


@dataclass(eq=False)
class Verdicts:
    """Writes down what becomes of runs, knowing how all others of this session have ended."""

    spec: SweepSpec
    ledger: Ledger
    cluster: Cluster
    teller: Teller
    agenda: Agenda
    room: Room
    planner: Planner | None = None
    _ends: dict[int, list[AttemptState]] = field(default_factory=dict)  # by run, this session's
    _suspects: Suspects = field(default_factory=Suspects)
    _failed_on: dict[int, set[str]] = field(default_factory=dict)  # run -> nodes

    def settle(self, work: Work, slot: Slot) -> None:
        """Judge what has ended in a slot and write down what becomes of the run."""
        self.room.note_size(work.directory.path)
        outcome = self._judge(work, slot)
        if outcome.state is AttemptState.LAUNCHED:
            record_stage(self.ledger, work.attempt, work.directory, outcome)
            self.agenda.add(work.run.id, attempt=self.ledger.attempt(work.attempt))
            return
        ends = self._ends.setdefault(work.run.id, [])
        ends.append(outcome.state)
        limits = self.spec.limits
        verdict = after_attempt(
            ends, max_attempts=limits.max_attempts, backoff_seconds=limits.backoff_seconds
        )
        node = slot.blamed or work.node
        self._suspects.note(
            node, End(trial=work.run.trial, state=outcome.state, message=outcome.message)
        )
        self._judge_nodes()
        if verdict.state is RunState.PENDING:
            self._try_again(work, outcome, verdict, node)
            return
        record_end(
            *(self.ledger, work.attempt, work.directory, outcome, verdict.state),
            remove=self.spec.disk.remove,
        )
        self.teller.attempt_over(work.directory.path)
        self.agenda.over(work.run.id)
        if self.planner is not None:
            self.planner.over(work.run, verdict.state, outcome.result, outcome.message)

    def _judge(self, work: Work, slot: Slot) -> Outcome:
        """How it ended: by its directory, by what it was stopped for, and by what its slot says."""
        outcome = judge(work.directory, work.request.env, work.launch.events_from)
        if outcome.state in (AttemptState.LAUNCHED, AttemptState.FINISHED):
            return outcome
        if slot.hung is not None and work.ending is None:
            work.end(AttemptState.STALLED, slot.hung)
            self.teller.note("stall", f"{work.trial.name}, seed {work.run.seed}: {slot.hung}")
        if work.ending is not None:
            return replace(outcome, state=work.ending, message=work.reason or outcome.message)
        # What its ranks say that were told to end because the slot had died is no crash.
        was_lost = {AttemptState.LOST}
        if slot.died:
            was_lost |= {AttemptState.CRASHED, AttemptState.STOPPED}
        if outcome.state in was_lost and slot.failure is not None:
            state = AttemptState.NODE_LOST if slot.node_lost else AttemptState.LOST
            outcome = replace(outcome, state=state, message=slot.failure)
        if outcome.state is AttemptState.STOPPED:
            outcome = replace(outcome, state=AttemptState.LOST, message=UNASKED)
        return self.room.explain(outcome, work.launch.launched)

    def _try_again(self, work: Work, outcome: Outcome, verdict: Verdict, node: str) -> None:
        """Let a run wait for its next try, after one that ended badly on a node.

        That is of the stage alone where it is enough.
        """
        attempt = None
        if can_go_on(work.directory):
            record_stage(self.ledger, work.attempt, work.directory, outcome)
            attempt = self.ledger.attempt(work.attempt)
        else:
            record_end(self.ledger, work.attempt, work.directory, outcome, RunState.PENDING)
            self.teller.attempt_over(work.directory.path)
        failed_on = self._failed_on.setdefault(work.run.id, set())
        if verdict.elsewhere:
            failed_on.add(node)
        self.agenda.add(
            work.run.id,
            attempt=attempt,
            not_before=time.monotonic() + verdict.wait_seconds,
            avoid=failed_on,
        )

    def _judge_nodes(self) -> None:
        """Take nodes out of the sweep that keep failing, for as long as nothing clears them."""
        quarantined, at_fault = self.cluster.quarantined, self._suspects.at_fault()
        for node in quarantined.keys() - at_fault:
            why = "what failed on it has failed elsewhere as well"
            self.teller.release(node, self.cluster.release(node), why)
        for node in at_fault - quarantined.keys():
            usable, needed = self.cluster.usable_nodes(), self.spec.resources.nodes_per_run
            if may_quarantine(node, usable, quarantined, needed):
                self.teller.quarantine(
                    node, self.cluster.quarantine(node), self._suspects.why(node)
                )
