"""What holds for all tests."""

from __future__ import annotations

import os

from hypothesis import settings

# Several test processes share few cores, and threads that wait for each other spin.
os.environ.setdefault("OMP_NUM_THREADS", "1")

# Timing never decides a test.
settings.register_profile("no deadline", deadline=None)
settings.load_profile("no deadline")
