"""Sweeps: what a YAML file describes, the trials that are run, and how they compare."""
