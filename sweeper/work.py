"""One stage of a run in a slot: what is launched, and whether it is to be stopped."""

from __future__ import annotations

import time
from dataclasses import dataclass, field, replace

from sweeper.judge import wrong_settings
from sweeper.launch import LaunchRequest
from sweeper.layout import AttemptDir
from sweeper.logreader import RunReader
from sweeper.policy import seconds_left
from sweeper.reaping import Tag
from sweeper.rows import AttemptState, RunRow, StageRow, TrialRow
from sweeper.snapshot import Snapshot, launch_facts
from sweeper.spec import SweepSpec
from sweeper.stages import Stage
from sweeper.validations import Validations

# Beyond its grace, what a stopped run's guard and its slot may take to say that it is over.
STOP_MARGIN_SECONDS = 15.0


@dataclass(eq=False)
class Work:
    """A stage of a run in a slot, or the whole run."""

    run: RunRow
    trial: TrialRow
    launch: StageRow
    directory: AttemptDir
    node: str
    request: LaunchRequest
    deadline: float | None  # by the monotonic clock
    events: RunReader = field(init=False)
    validations: Validations | None = None  # where a search may prune by them
    confirmed: bool = False  # its echo has been seen, and is as asked
    ending: AttemptState | None = None  # what it is being stopped for
    reason: str | None = None
    kill_at: float | None = None

    def __post_init__(self) -> None:
        self.events = RunReader(self.directory, self.launch.events_from)

    @classmethod
    def of(
        cls,
        spec: SweepSpec,
        tag: Tag,
        run: RunRow,
        trial: TrialRow,
        directory: AttemptDir,
        launches: list[StageRow],
        node: str,
        snapshot: Snapshot | None = None,
    ) -> Work:
        """What is to be launched in a directory; the attempt's launches so far, this one last."""
        launch = launches[-1]
        resources, limits = spec.resources, spec.limits
        request = LaunchRequest(
            tag=tag,
            directory=str(directory.path),
            module=spec.workload.module,
            launch=spec.workload.launch,
            processes=resources.processes,
            cpus=resources.cpus_per_run,
            grace_seconds=limits.grace_seconds,
            env=trial.env | {"SEED": str(run.seed)},
            stage=launch.stage,
            number=directory.number,
            stall_seconds=limits.stall_seconds,
            events_from=launch.events_from,
            **launch_facts(spec, snapshot),
        )
        if launch.stage is Stage.PACK:
            request = _alone(spec, request)
        left = seconds_left(limits.max_seconds, launches)
        deadline = None if left is None else time.monotonic() + left
        work = cls(run, trial, launch, directory, node, request, deadline)
        if spec.search is not None and spec.search.pruner is not None:
            work.validations = Validations(directory, spec.search.pruner, launch.events_from)
        return work

    @property
    def attempt(self) -> int:
        return self.launch.attempt

    def check_echo(self) -> None:
        """Stop it if it took other settings than it was asked to, before that costs more."""
        if self.confirmed or self.ending is not None:
            return
        echoes = [event for event in self.events.read() if event["kind"] == "config"]
        if echoes:
            self.confirmed = True
            reason = wrong_settings(self.directory, self.request.env, echoes)
            if reason is not None:
                self.end(AttemptState.USER_ERROR, reason)

    def check_time(self, now: float, limit: float | None) -> None:
        """Stop it once it has had its time."""
        if self.ending is None and self.deadline is not None and now >= self.deadline:
            reason = f"took longer than limits.max_seconds = {limit:g}"
            self.end(AttemptState.TIMED_OUT, reason)

    def end(self, state: AttemptState, reason: str | None = None) -> None:
        """Have it stopped; this is what it will have ended as."""
        self.ending, self.reason = state, reason


def _alone(spec: SweepSpec, request: LaunchRequest) -> LaunchRequest:
    """The request for one process on processors alone."""
    request = replace(request, launch="exec", processes=1)
    packing = spec.packing
    return request if packing is None else replace(request, cpus=packing.cpus, nice=packing.nice)
