"""How an attempt, or a stage of it, ended; judged by what is in its directory, by that alone."""

from __future__ import annotations

import contextlib
import json
import signal
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sweeper import guard
from sweeper.adapters import LogFacts
from sweeper.contract import EventReader, check_echo, first_error, read_handoff, read_result
from sweeper.errors import ContractError
from sweeper.failure import Failure, find_failure, is_full_disk
from sweeper.layout import AttemptDir
from sweeper.rows import AttemptState
from sweeper.scripts import NonFiniteError, log_result, read_attempt, script_of, wrong_setting
from sweeper.stages import Stage

KINDS = {
    "nonfinite": AttemptState.NONFINITE,
    "oom": AttemptState.OUT_OF_MEMORY,
    "space": AttemptState.NO_SPACE,
}
ERROR_STATES = {
    "user": AttemptState.USER_ERROR,
    "nonfinite": AttemptState.NONFINITE,
    "oom": AttemptState.OUT_OF_MEMORY,
}


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """How an attempt ended, with the result when it finished and the cause when it did not."""

    state: AttemptState
    exit_code: int | None = None
    message: str | None = None
    traceback: str | None = None
    result: dict[str, Any] | None = None


def judge(attempt: AttemptDir, overrides: Mapping[str, str], begins: int = 0) -> Outcome:
    """Decide, from its directory alone, how an attempt ended, or this stage of it.

    It finished only if every process ended well and a valid result is there and the run confirms
    every override and the artifact is what the result says. A stage that ended well with others
    to come leaves the attempt LAUNCHED. The stage's events are those from byte `begins` on. A run
    that was ended because its launcher died is LOST, unless it came to its end before.
    """
    try:
        ended = json.loads(attempt.exit.read_bytes())
        code, asked = int(ended["exit_code"]), ended["stop_reason"]
    except (OSError, ValueError, KeyError, TypeError):
        return _judge_unended(attempt, begins)
    events = EventReader(attempt.events, begins).read()
    if code != 0:
        # Of several nodes, what the one at fault has logged says why.
        failed = attempt.on(int(ended["node"])) if "node" in ended else attempt
        return _judge_failure(failed, events, code, asked)
    outcome = _judge_well(attempt, overrides, events, code)
    came_to_end = outcome.state in (AttemptState.FINISHED, AttemptState.LAUNCHED)
    return outcome if came_to_end or asked != guard.LAUNCHER_DIED else _lost_with_launcher(code)


def _judge_well(
    attempt: AttemptDir, overrides: Mapping[str, str], events: list[dict[str, Any]], code: int
) -> Outcome:
    """How an attempt ended of which every process ended well."""
    script = script_of(attempt)
    if script is not None and not attempt.result.exists() and not attempt.trained.exists():
        return _judge_log(attempt, script, overrides, code)
    try:
        result = _read_outcome(attempt)
    except ContractError as error:
        return Outcome(state=AttemptState.BAD_RESULT, exit_code=code, message=str(error))
    if script is not None and result is not None:
        result |= {"adapter": "contract"}
    wrong = wrong_settings(attempt, overrides, events)
    if wrong is not None:
        return Outcome(state=AttemptState.USER_ERROR, exit_code=code, message=wrong)
    state = AttemptState.LAUNCHED if result is None else AttemptState.FINISHED
    return Outcome(state=state, exit_code=code, result=result)


def _judge_log(
    attempt: AttemptDir, script: Mapping[str, Any], overrides: Mapping[str, str], code: int
) -> Outcome:
    """How a script ended that ended well and left no result: by its log, and by its files."""
    facts = read_attempt(attempt)
    wrong = wrong_setting(facts, overrides, script.get("inherited") or ())
    if wrong is not None:
        return Outcome(state=AttemptState.USER_ERROR, exit_code=code, message=wrong)
    try:
        result = log_result(attempt, script, facts, overrides)
    except ContractError as error:
        nonfinite = isinstance(error, NonFiniteError)
        state = AttemptState.NONFINITE if nonfinite else AttemptState.BAD_RESULT
        return Outcome(state=state, exit_code=code, message=str(error))
    return Outcome(state=AttemptState.FINISHED, exit_code=code, result=result)


def next_stage(attempt: AttemptDir) -> Stage:
    """The first stage that has not left, whole, what those after it need."""
    with contextlib.suppress(ContractError):
        _check_packed(attempt)
        return Stage.SCORE
    with contextlib.suppress(ContractError):
        _check_trained(attempt)
        return Stage.PACK
    return Stage.TRAIN


def ended_at(attempt: AttemptDir) -> float | None:
    """When a stage ended that nobody was there to see, in Unix seconds; None where none can say."""
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
        return float(json.loads(attempt.exit.read_bytes())["ended"])
    with contextlib.suppress(OSError):
        return attempt.events.stat().st_mtime
    return None


def _read_outcome(attempt: AttemptDir) -> dict[str, Any] | None:
    """The result of a stage that is the last, None of another; ContractError where it is wanting.

    A workload that knows no stages takes `train` for the whole run: its result is one.
    """
    if attempt.stage is Stage.TRAIN and (attempt.trained.exists() or not attempt.result.exists()):
        try:
            _check_trained(attempt)
        except ContractError as error:
            raise ContractError(
                f"{error}; if the workload cannot run in stages, leave [packing] out of the spec"
            ) from error
        return None
    if attempt.stage is Stage.PACK:
        _check_packed(attempt)
        return None
    result = read_result(attempt.result)
    _check_artifact(attempt, result)
    return result


def _check_trained(attempt: AttemptDir) -> None:
    read_handoff(attempt.trained, "trained")
    if not attempt.trained_tensors.is_file():
        raise ContractError(f"{attempt.trained_tensors.name}: missing")


def _check_packed(attempt: AttemptDir) -> None:
    size = read_handoff(attempt.packed, "packed").get("bytes_model")
    try:
        found = attempt.artifact.stat().st_size
    except OSError as error:
        raise ContractError(f"{attempt.artifact.name}: missing") from error
    if size not in (None, found):
        raise ContractError(f"{attempt.artifact.name}: has {found} bytes, packing said {size}")


def wrong_settings(
    attempt: AttemptDir, overrides: Mapping[str, str], events: Collection[dict[str, Any]]
) -> str | None:
    """How a run's settings differ from those it was asked to take, by its echo; None if not.

    What a script's log echoes is only a part of them.
    """
    try:
        inherited = json.loads(attempt.request.read_bytes())["inherited"]
    except (OSError, ValueError, KeyError):
        inherited = ()  # of another host, and not here yet
    echo = next((event for event in events if event["kind"] == "config"), {})
    if "adapter" in echo:
        facts = LogFacts(form=echo["adapter"], hyperparameters=echo["config"])
        return wrong_setting(facts, overrides, inherited)
    try:
        check_echo(overrides, events, inherited)
    except ContractError as error:
        return str(error)
    return None


def _check_artifact(attempt: AttemptDir, result: Mapping[str, Any]) -> None:
    """ContractError unless the artifact on disk has the size that the result claims."""
    name = result.get("artifact")
    if not isinstance(name, str) or Path(name).name != name:
        raise ContractError(f"{attempt.result.name}: artifact is {name!r}, not a file name")
    try:
        found = (attempt.path / name).stat().st_size
    except OSError as error:
        raise ContractError(f"{name}: the artifact cannot be read ({error.strerror})") from error
    if found != result["bytes_model"]:
        raise ContractError(
            f"{name}: has {found} bytes on disk, the result says {result['bytes_model']}"
        )
    if result["bytes_total"] != found + result["bytes_code"]:
        raise ContractError(
            f"{attempt.result.name}: bytes_total is {result['bytes_total']}, not the artifact's "
            f"{found} + the code's {result['bytes_code']}"
        )


def _judge_unended(attempt: AttemptDir, begins: int) -> Outcome:
    """An attempt whose guard left no word: killed with it, or with no room to write it."""
    error = first_error(EventReader(attempt.events, begins).read())
    if error is not None and error.get("code") in ERROR_STATES:
        return _of_error(error, None)
    return Outcome(
        state=AttemptState.LOST, message="its processes were killed together with their guard"
    )


def _of_error(error: Mapping[str, Any], code: int | None) -> Outcome:
    """The outcome that a run's own error event tells."""
    state = ERROR_STATES.get(str(error.get("code")), AttemptState.CRASHED)
    rank = error.get("rank", 0)
    where = f" (rank {rank})" if rank else ""
    message = f"{error.get('error', 'error')}{where}: {error.get('message', '')}"
    trace = str(error.get("traceback", "")) or None
    if is_full_disk(message):
        state = AttemptState.NO_SPACE
    return Outcome(state=state, exit_code=code, message=message, traceback=trace)


def _judge_failure(
    attempt: AttemptDir, events: list[dict[str, Any]], code: int, asked: str | None
) -> Outcome:
    error = first_error(events)
    if error is not None:
        return _of_error(error, code)
    # What the run says of having stopped is no evidence: torchrun stops the ranks of a dead one.
    if asked == guard.ASKED:
        return Outcome(state=AttemptState.STOPPED, exit_code=code, message="stopped on request")
    if asked == guard.LAUNCHER_DIED:
        return _lost_with_launcher(code)
    failure = find_failure(attempt)
    state = KINDS.get(failure.kind, AttemptState.CRASHED)
    message = _describe_failure(failure, code)
    if attempt.node is not None:
        message = f"node {attempt.node}: {message}"
    return Outcome(state=state, exit_code=code, message=message, traceback=failure.text)


def _lost_with_launcher(code: int) -> Outcome:
    message = "it was ended because the process that launched it died"
    return Outcome(state=AttemptState.LOST, exit_code=code, message=message)


def _describe_failure(failure: Failure, code: int) -> str:
    """What a run died of, in a line; what its exception says is better than its exit code."""
    where = "" if failure.rank is None else f"rank {failure.rank} "
    ended = f"{where}ended with {_describe_code(failure.code or code)}"
    return ended if failure.exception is None else f"{failure.exception} ({ended})"


def _describe_code(code: int) -> str:
    if code >= 0:
        return f"exit code {code}"
    with contextlib.suppress(ValueError):
        return f"signal {signal.Signals(-code).name}"
    return f"signal {-code}"
