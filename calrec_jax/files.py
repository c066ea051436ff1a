"""Folders and files that are whole or not there."""

from __future__ import annotations

import contextlib
import os
import pathlib
import shutil
import uuid
from collections.abc import Iterator

from calrec_jax.errors import CalrecError
from calrec_jax.locks import try_flock


@contextlib.contextmanager
def made(target: pathlib.Path) -> Iterator[pathlib.Path]:
    """An empty folder beside `target`, which it becomes at the end; a failure leaves nothing.

    What a kill has left of it goes when it is made again.

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
def written(path: pathlib.Path) -> Iterator[pathlib.Path]:
    """A file beside `path`, which it becomes at the end; a failure leaves nothing of it."""
    # Processes that write the same file at once do not write into one another's.
    temporary = path.with_name(f"{path.name}.{uuid.uuid4().hex}.tmp")
    try:
        yield temporary
        os.replace(temporary, path)
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)


def write_text(path: pathlib.Path, text: str, errors: str = "strict") -> None:
    """Writes the whole file, in UTF-8, or, when it fails or is killed, none of it.

    Args:
      errors: see `str.encode`.
    """
    with written(path) as temporary:
        temporary.write_text(text, "utf-8", errors)


def _empty(folder: pathlib.Path) -> None:
    for path in folder.iterdir():
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink()
