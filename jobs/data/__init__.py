"""Data sets in the challenge's format: sampled from this machine, prepared from documents, or
fetched from a hub. Run as `python -m jobs.data`, which `sweeper data` does.
"""
