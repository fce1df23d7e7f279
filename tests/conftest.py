"""One thread a test process: several of them share few cores, and threads that wait spin."""

from __future__ import annotations

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")
