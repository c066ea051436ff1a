"""Arrays in a file of NumPy's that is whole or not there."""

from __future__ import annotations

import contextlib
import os
import pathlib
import uuid
import zipfile

import numpy as np

DAMAGED = (OSError, ValueError, KeyError, TypeError, EOFError, RuntimeError, zipfile.BadZipFile)
"""What reading a damaged file raises: a RuntimeError is one of zipfile."""


def save(path: pathlib.Path, **arrays: np.ndarray) -> None:
    """Writes the whole file or, when it fails or is killed, none of it; its folder is there."""
    # Processes that save the same file at once do not write into one another's.
    temporary = path.with_name(f"{path.name}.{uuid.uuid4().hex}.tmp")
    try:
        with temporary.open("wb") as file:
            np.savez(file, **arrays)
        os.replace(temporary, path)
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
