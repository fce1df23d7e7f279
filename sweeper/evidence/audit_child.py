"""A process of its own for work on data that may be made to be slow or large.

Nothing of the data is executed there either; it is what time and memory are limited by.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

CPU_SECONDS = 15
MEMORY_BYTES = 960 << 20  # of address space
WALL_SECONDS = 120.0  # where others have the processors
TOO_MUCH = 3  # the exit code of what ran out of memory
ROOT = Path(__file__).resolve().parents[2]
START = "import sys; sys.path.insert(0, {root!r}); {given}; "
START += "from sweeper.evidence.audit_child import serve; serve(run)"


def limited(
    given: str, arguments: Sequence[str], data: bytes, *, cpu_seconds: int = CPU_SECONDS
) -> bytes | None:
    """What `run` makes of data in a process of its own; None where it takes more than it may.

    `given` is the line of Python that brings `run` there; it takes the data and the arguments.
    RuntimeError where it fails otherwise, with what it said.
    """
    code = START.format(root=str(ROOT), given=given)
    command = [sys.executable, "-I", "-B", "-c", code, json.dumps([cpu_seconds, *arguments])]
    try:
        done = subprocess.run(
            command, input=data, capture_output=True, check=False, timeout=WALL_SECONDS
        )
    except subprocess.TimeoutExpired:
        return None
    if done.returncode < 0 or done.returncode == TOO_MUCH:
        return None
    if done.returncode != 0:
        said = done.stderr.decode("utf-8", "replace").strip()
        raise RuntimeError(f"reading failed with exit code {done.returncode}: {said[-2000:]}")
    return done.stdout


def serve(run: Callable[..., bytes]) -> None:
    """The process itself: its data on stdin, its result on stdout."""
    cpu_seconds, *arguments = json.loads(sys.argv[-1])
    limit(cpu_seconds)
    try:
        found = run(sys.stdin.buffer.read(), *arguments)
    except MemoryError:
        sys.exit(TOO_MUCH)
    sys.stdout.buffer.write(found)


def limit(cpu_seconds: int) -> None:
    """No more time and memory than may be had, where the machine has such limits."""
    try:
        import resource
    except ImportError:
        return
    resource.setrlimit(resource.RLIMIT_CPU, (cpu_seconds, cpu_seconds))
    hard = resource.getrlimit(resource.RLIMIT_AS)[1]
    most = MEMORY_BYTES if hard == resource.RLIM_INFINITY else min(MEMORY_BYTES, hard)
    resource.setrlimit(resource.RLIMIT_AS, (most, hard))
