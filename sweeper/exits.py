"""Exit codes of the command line, for scripts; docs/OPERATIONS.md says what follows from each."""

from __future__ import annotations

OK = 0
SOME_FAILED = 1  # the sweep is over, and not all of its runs have finished
WRONG_USE = 2  # said in a line that begins with `error:`
OUR_FAULT = 70  # a traceback: the sweeper's own mistake, not the runs'
GO_ON_LATER = 75  # the cluster has gone: the same command goes on once there is one again
INTERRUPTED = 130
