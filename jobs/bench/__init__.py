"""Where speed is measured: ratios within one run, as tables and JSON. No test depends on them."""
