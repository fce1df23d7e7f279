"""Multi-seed sweeps on Ray: choose, launch, judge. Never imports `model`."""
