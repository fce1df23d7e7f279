"""What `ray job submit` and the command line run as processes: sweeps, data, benches."""
