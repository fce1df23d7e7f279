"""What a Ray job runs: `python -m jobs.sweep SPEC --root DIR`; see `sweeper submit`.

The same command line as `sweeper run`; Ray tells the job its cluster's address. The root is a
directory that outlives the job's own copy of the project, `~` is the home of who runs the cluster.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping

from sweeper.cli import main

# What Ray waits between SIGTERM and SIGKILL, unless this says otherwise.
WAIT_NAME, WAIT_SECONDS = "RAY_JOB_STOP_WAIT_TIME_S", 3


def with_defaults(arguments: list[str], env: Mapping[str, str]) -> list[str]:
    """The command line of `sweeper run`, for a job; of the time to end in, the runs have half."""
    expanded = [os.path.expanduser(text) if text.startswith("~") else text for text in arguments]
    stop_seconds = int(env.get(WAIT_NAME, WAIT_SECONDS)) / 2
    return ["run", "--stop-seconds", str(stop_seconds), *expanded]


if __name__ == "__main__":
    sys.exit(main(with_defaults(sys.argv[1:], os.environ)))
