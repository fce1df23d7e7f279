"""What a Ray job runs: `python -m jobs.sweep SPEC --root DIR`; see `sweeper submit`.

The same command line as `sweeper run`; Ray tells the job its cluster's address. The root is a
directory that outlives the job's own copy of the project, `~` is the home of who runs the cluster.
"""

from __future__ import annotations

import os
import sys

from sweeper.cli import main

# Ray gives a job three seconds between SIGTERM and SIGKILL: time for the runs, and for the ledger.
STOP_SECONDS = "1.5"


def with_defaults(arguments: list[str]) -> list[str]:
    """The command line of `sweeper run`, for a job."""
    expanded = [os.path.expanduser(text) if text.startswith("~") else text for text in arguments]
    return ["run", "--stop-seconds", STOP_SECONDS, *expanded]


if __name__ == "__main__":
    sys.exit(main(with_defaults(sys.argv[1:])))
