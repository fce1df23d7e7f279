"""What holds for all tests."""

from __future__ import annotations

import os
import signal

from hypothesis import settings

# Several test processes share few cores, and threads that wait for each other spin.
os.environ.setdefault("OMP_NUM_THREADS", "1")

# Timing never decides a test.
settings.register_profile("no deadline", deadline=None)
settings.load_profile("no deadline")

# Started in the background, `make test` has SIGINT ignored, and so would all that is tested.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)
