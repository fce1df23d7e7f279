"""A torchrun of the next run in a slot, made ahead while one is at work; no ray.

It has done its imports and waits below its guard (sweeper/guard.py). Only torchrun's own process
is made ahead. The ranks are not: a script may set what torch reads as it is imported before it
imports it, and would find torch there already.
"""

from __future__ import annotations

import contextlib
import socket
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass

from sweeper import guard


@dataclass(frozen=True, kw_only=True)
class Fit:
    """What a standby is started with, and a run must have in common with it to get it."""

    env: Mapping[str, str]
    nice: int


@dataclass(frozen=True, kw_only=True)
class _Made:
    process: subprocess.Popen[bytes]
    channel: socket.socket
    fit: Fit


class Standby:
    """A slot's torchrun in waiting, if there is one. It ends with this process; from one thread.

    That there is none, or that it has died, is never an error: then a run starts without.
    """

    def __init__(self) -> None:
        self._made: _Made | None = None

    @property
    def ready(self) -> bool:
        """Whether there is one that has done its imports, and lives."""
        made = self._made
        if made is None or made.process.poll() is not None:
            return False
        with contextlib.suppress(OSError):
            said = made.channel.recv(1, socket.MSG_PEEK | socket.MSG_DONTWAIT)
            return said == guard.READY
        return False

    def prepare(self, fit: Fit) -> None:
        """Have one for a run like this. Returns at once; it is ready some seconds later."""
        made = self._made
        if made is not None and made.fit == fit and made.process.poll() is None:
            return
        self.close()
        channel, its_end = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with its_end:
            command = [sys.executable, "-I", "-S", guard.__file__, "standby"]
            command += [f"--alive={its_end.fileno()}", f"--nice={fit.nice}"]
            with contextlib.suppress(OSError):  # no room for a process, or no memory
                process = subprocess.Popen(
                    command,
                    env=fit.env,
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.DEVNULL,
                    stderr=subprocess.DEVNULL,
                    start_new_session=True,
                    pass_fds=[its_end.fileno()],
                )
                self._made = _Made(process=process, channel=channel, fit=fit)
                return
        channel.close()

    def take(
        self, fit: Fit, order: guard.Order, stdout: int, stderr: int
    ) -> tuple[subprocess.Popen[bytes], int] | None:
        """The guard of a run that has begun by this, and the file whose closing lets go of it.

        None where no standby is ready that fits; there is none afterwards.
        """
        made = self._made
        if made is not None and made.fit == fit and self.ready:
            with contextlib.suppress(OSError):  # it has just died, or there is too much to tell
                made.channel.recv(len(guard.READY))
                order.send(made.channel, (stdout, stderr))
                self._made = None
                return made.process, made.channel.detach()
        self.close()
        return None

    def close(self) -> None:
        """End the one there is."""
        if self._made is not None:
            self._made.process.kill()
            self._made.process.wait()
            self._made.channel.close()
            self._made = None
