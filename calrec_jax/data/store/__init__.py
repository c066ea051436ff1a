"""Datasets on disk: the TFDS store that `calrec prepare` writes, and arrays that can replace it."""
