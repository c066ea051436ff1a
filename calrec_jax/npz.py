"""Arrays in a file of NumPy's that is whole or not there."""

from __future__ import annotations

import pathlib
import zipfile

import numpy as np

from calrec_jax import files

DAMAGED = (OSError, ValueError, KeyError, TypeError, EOFError, RuntimeError, zipfile.BadZipFile)
"""What reading a damaged file raises: a RuntimeError is one of zipfile."""


def save(path: pathlib.Path, **arrays: np.ndarray) -> None:
    """Writes the whole file or, when it fails or is killed, none of it; its folder is there."""
    with files.written(path) as temporary, temporary.open("wb") as file:
        np.savez(file, **arrays)
