"""Errors and exit codes: the one exception that users read, and what is turned into it."""

from __future__ import annotations

import contextlib
import errno
import os
import pathlib
import re
from collections.abc import Iterator

_FULL = (errno.ENOSPC, errno.EDQUOT)
_READ_ONLY = (errno.EROFS, errno.EACCES, errno.EPERM)


EXIT_STOPPED = 42
"""The exit code of a command that was stopped and has saved. Launchers start it again."""


class CalrecError(Exception):
    """A mistake that the user can mend: one line that says what is wrong, where, and what to do.

    The command line prints it without a traceback and exits with a non-zero code. Everything else
    that is raised is a defect of calrec_jax or of the machine and keeps its traceback.
    """


def local_path(path: str | os.PathLike, name: str) -> pathlib.Path:
    """`path`, unless it is a URL, which would otherwise become a folder of that name.

    Args:
      name: what the path is, for the error.

    Raises:
      CalrecError: it is a URL.
    """
    if "://" in str(path):
        raise CalrecError(
            f"{name} is {path}, and only paths of a file system are read and written: mount the "
            f"bucket (with gcsfuse, for example) and give the path where it is"
        )
    return pathlib.Path(path)


@contextlib.contextmanager
def full_disk_named(place: str | os.PathLike) -> Iterator[None]:
    """Turns the error of a full disk, however deep it was raised, into one that names `place`.

    Raises:
      CalrecError: the disk is full. Names the file, where the error does.
    """
    try:
        yield
    except CalrecError:
        raise
    except Exception as error:
        cause: BaseException | None = error
        while cause is not None and not is_full_disk(cause):
            cause = cause.__cause__ or cause.__context__
        if cause is None:
            raise
        raise CalrecError(
            f"no space left on the disk of {_path_in(cause) or place}: free some and run the same "
            f"command again; nothing that was saved before is lost"
        ) from error


@contextlib.contextmanager
def unwritable_named(message: str) -> Iterator[None]:
    """Turns the system's error for a place that cannot be written into one line.

    The error of a full disk is raised unchanged, for `full_disk_named`.

    Args:
      message: the beginning of the line, "cannot write MODEL_DIR runs/a".

    Raises:
      CalrecError: something cannot be written; names the file, where the system does.
    """
    try:
        yield
    except OSError as error:
        if is_full_disk(error):
            raise
        file = f" ({error.filename})" if error.filename else ""
        raise CalrecError(f"{message}: {error.strerror}{file}") from error


def is_full_disk(error: BaseException) -> bool:
    """Whether `error` says that the disk is full: by its number or, for TensorFlow's and
    TensorStore's errors, in words."""
    if isinstance(error, OSError) and error.errno is not None:
        return error.errno in _FULL
    # RESOURCE_EXHAUSTED alone may be the device's memory.
    return any(os.strerror(code) in str(error) for code in _FULL)


def is_read_only(error: OSError) -> bool:
    """Whether `error` reports a place where nothing may be written."""
    return error.errno in _READ_ONLY


def _path_in(error: BaseException) -> str | None:
    if isinstance(error, OSError) and error.filename:
        return str(error.filename2 or error.filename)  # the second is written, where there are two
    found = re.search(r"""["'](/[^"']+)["']""", str(error))
    return found[1] if found else None
