"""`ray job submit --working-dir . -- python -m jobs.sweep SPEC`: a sweep as a Ray job.

The same command line as `sweeper run`; Ray tells the job its cluster's address. Give `--root` a
directory that outlives the job's own copy of the project.
"""

from __future__ import annotations

import sys

from sweeper.cli import main

if __name__ == "__main__":
    sys.exit(main(["run", *sys.argv[1:]]))
