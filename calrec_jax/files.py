"""Files and folders that are complete or not there, whatever happens while they are written."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import pathlib
import shutil
import uuid
import zipfile
from collections.abc import Iterator
from typing import Any

import numpy as np

from calrec_jax.errors import CalrecError
from calrec_jax.locks import try_flock

DAMAGED_NPZ = (
    OSError,
    ValueError,
    KeyError,
    TypeError,
    EOFError,
    RuntimeError,  # of zipfile
    zipfile.BadZipFile,
)
"""What reading a damaged .npz file raises."""


@contextlib.contextmanager
def new_folder(target: pathlib.Path) -> Iterator[pathlib.Path]:
    """An empty folder beside `target`, which takes its place at the end; a failure leaves nothing.

    What a killed process left behind is removed when the folder is next made.

    Args:
      target: a folder that is empty or not there.

    Raises:
      CalrecError: another process is making it.
      OSError: it cannot be written.
    """
    target = target.absolute()
    making = target.with_name(f".making_{target.name}")
    missing = [parent for parent in making.parents if not parent.exists()]
    making.mkdir(parents=True, exist_ok=True)
    lock = os.open(making, os.O_RDONLY)
    try:
        if try_flock(lock) is False:
            raise CalrecError(f"another process is making {target}: wait until it has ended")
        try:
            _empty(making)
            yield making
            if target.exists():
                target.rmdir()
            making.rename(target)
        except BaseException:
            shutil.rmtree(making, ignore_errors=True)
            with contextlib.suppress(OSError):  # something else is there by now
                for parent in missing:
                    parent.rmdir()
            raise
    finally:
        os.close(lock)


@contextlib.contextmanager
def new_file(path: pathlib.Path) -> Iterator[pathlib.Path]:
    """A file beside `path`, which takes its place at the end; a failure leaves the old file.

    The folder of `path` must exist.

    Raises:
      OSError: `path` is a folder, or it cannot be written.
    """
    if path.is_dir():  # "." would have no file beside it
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
    # Processes that write the same file at once do not write into one another's.
    temporary = path.with_name(f"{path.name}.{uuid.uuid4().hex}.tmp")
    try:
        yield temporary
        os.replace(temporary, path)
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)


def write_text(path: pathlib.Path, text: str, errors: str = "strict") -> None:
    """Writes a file in UTF-8: all of it or, when that fails or is killed, nothing.

    Args:
      errors: see `str.encode`.
    """
    with new_file(path) as temporary:
        temporary.write_text(text, "utf-8", errors)


def write_json(path: pathlib.Path, value: Any) -> None:
    """Writes a JSON file, as `write_text` does. Raises ValueError for NaN, which is no JSON."""
    write_text(path, json.dumps(value, indent=2, allow_nan=False) + "\n")


def as_json(value: Any) -> Any:
    """`value` as it is read back from JSON: tuples have become lists."""
    return json.loads(json.dumps(value))


def save_npz(path: pathlib.Path, **arrays: np.ndarray) -> None:
    """Writes arrays into a .npz file: all of it or, when that fails or is killed, nothing."""
    with new_file(path) as temporary, temporary.open("wb") as file:
        np.savez(file, **arrays)


def _empty(folder: pathlib.Path) -> None:
    for path in folder.iterdir():
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink()
