"""The training recipe: one (config, seed) becomes one scored artifact. Imports nothing of ours."""
