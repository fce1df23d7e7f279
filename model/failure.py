"""How a rank ends other than well: one event that says what to change, and an exit at once."""

from __future__ import annotations

import errno
import os
import signal
import threading
import time
from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.distributed as dist

from model.artifact import ArtifactError
from model.fields import ConfigError
from model.gptq import GptqError
from model.handoff import HandoffError
from model.shards import ShardError
from model.tokens import TokenizerError

EXIT_OK, EXIT_CRASH, EXIT_USER, EXIT_NONFINITE, EXIT_OOM, EXIT_STOPPED = 0, 1, 2, 3, 4, 75
USER_ERRORS = (ArtifactError, ConfigError, GptqError, HandoffError, ShardError, TokenizerError)
NO_SPACE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
# In the words of torch's CPU allocator and of its collectives, which have no types of their own.
NO_MEMORY_WORDS = ("can't allocate memory", "not enough memory")
PEER_WORDS = ("gloo", "NCCL", "Connection closed by peer", "Connection reset by peer")
# Python's handler of a signal runs between two bytecodes: a rank that is stuck in a collective
# never gets there. Anything else gets there far sooner.
STUCK_SECONDS = 5.0


class NonFiniteLossError(ArithmeticError):
    """The loss of a step was infinite or no number; the step's update was not made."""

    def __init__(self, step: int, loss: float) -> None:
        self.step = step
        super().__init__(
            f"the loss of step {step} is {loss}; lower the learning rates or GRAD_CLIP_NORM, or "
            "look at the data of this step"
        )


class StopRequest(Exception):  # noqa: N818 - a request, not an error
    """The run was asked to stop (SIGTERM); `step` is the last one that it finished, if known."""

    def __init__(self, step: int | None = None) -> None:
        self.step = step
        super().__init__("asked to stop by SIGTERM")


class Failure(NamedTuple):
    """What an error comes down to: the contract's word for it, the exit code, what to do."""

    code: str
    exit_code: int
    advice: str = ""


def classify(error: Exception) -> Failure:
    """Tell the user's errors from the machine's, and both from the consequences of another's."""
    match error:
        case NonFiniteLossError():
            return Failure("nonfinite", EXIT_NONFINITE)
        case torch.OutOfMemoryError() | MemoryError():
            return _out_of_memory()
        case OSError(errno=number) if number in NO_SPACE:
            return Failure("user", EXIT_USER, "make room on that disk, or set another RUN_DIR")
        case RuntimeError() if any(words in str(error) for words in NO_MEMORY_WORDS):
            return _out_of_memory()
        case RuntimeError() if isinstance(error, dist.DistError) or _of_a_peer(error):
            return Failure("peer", EXIT_CRASH, "another rank has failed; its own log says why")
    return Failure("user", EXIT_USER) if isinstance(error, USER_ERRORS) else _crash()


def _crash() -> Failure:
    return Failure("crash", EXIT_CRASH)


def _out_of_memory() -> Failure:
    return Failure(
        "oom",
        EXIT_OOM,
        "raise GRAD_ACCUM_STEPS, or lower TRAIN_BATCH_TOKENS or VAL_BATCH_TOKENS",
    )


def _of_a_peer(error: RuntimeError) -> bool:
    return dist.is_initialized() and any(words in str(error) for words in PEER_WORDS)


@dataclass
class StopSignal:
    """Remembers SIGTERM, or raises at once where nothing has to be finished first."""

    requested: bool = False
    at_once: bool = True

    def install(self) -> None:
        """Take SIGTERM from now on; in the main thread, once per process."""
        signal.signal(signal.SIGTERM, self._receive)
        wake, wake_end = os.pipe()
        os.set_blocking(wake_end, False)
        signal.set_wakeup_fd(wake_end)
        threading.Thread(target=self._watch, args=(wake,), daemon=True).start()

    def _watch(self, wake: int) -> None:
        """End the process if the main thread does not come round to its signal."""
        while number := os.read(wake, 1):
            if number[0] == signal.SIGTERM:
                time.sleep(STUCK_SECONDS)
                if not self.requested:
                    os._exit(EXIT_STOPPED)

    def _receive(self, *_: object) -> None:
        self.requested = True
        if self.at_once:
            raise StopRequest
