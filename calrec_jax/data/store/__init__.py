"""Datasets on disk: the TFDS store that `calrec prepare` writes, and arrays saved in its place."""
