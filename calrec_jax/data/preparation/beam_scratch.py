"""A run's own folder, in which Apache Beam's workers leave files for each other and for the driver.

It may be in any of Beam's file systems: a folder that all machines mount, or in an object store.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import pathlib
import pickle
import shutil
import tempfile
import uuid
import warnings
from collections.abc import Iterator
from typing import Any, BinaryIO

from calrec_jax.data.preparation.quiet_beam import BeamIOError, FileSystems
from calrec_jax.data.sources.source import first_line
from calrec_jax.errors import CalrecError


@dataclasses.dataclass(frozen=True)
class Scratch:
    """Files by name, which driver and workers can reach alike.

    Workers may do the same work twice, even at the same time. So a file gets its name only when it
    is complete, and files of the same name are interchangeable. Incomplete files stay until the
    folder is deleted.

    Attributes:
      folder: a path, absolute where there are several machines, or a URL.
    """

    folder: str

    def path(self, name: str) -> str:
        """The path or URL of a file."""
        return FileSystems.join(self.folder, name)

    @contextlib.contextmanager
    def create(self, name: str) -> Iterator[BinaryIO]:
        """Opens a file to write, which gets the name `name` if nothing is raised."""
        incomplete, complete = self.path(f"incomplete_{uuid.uuid4().hex}"), self.path(name)
        with FileSystems.create(incomplete) as file:
            yield file
        try:
            FileSystems.rename([incomplete], [complete])
        except BeamIOError:  # some file systems do not replace a file
            if not FileSystems.exists(complete):
                raise

    def open(self, name: str) -> BinaryIO:
        """The file `name`, opened to read; it is closed as a context manager."""
        return FileSystems.open(self.path(name))

    def save(self, value: Any, name: str) -> None:
        """Saves a small value for `load`."""
        with self.create(name) as file:
            file.write(pickle.dumps(value))

    def load(self, name: str) -> Any:
        """The value that was saved as `name`."""
        with self.open(name) as file:
            return pickle.loads(file.read())

    def put(self, path: pathlib.Path, name: str) -> None:
        """Copies a local file into the file `name`."""
        with path.open("rb") as local, self.create(name) as file:
            shutil.copyfileobj(local, file, _PIECE)

    def take(self, name: str, path: pathlib.Path) -> None:
        """Moves the file `name` to a local path; it may stay here as well."""
        if FileSystems.get_scheme(self.folder) is None:
            shutil.move(self.path(name), path)
            return
        with self.open(name) as file, path.open("wb") as local:
            shutil.copyfileobj(file, local, _PIECE)

    def delete_folder(self, name: str) -> None:
        """Deletes all files whose names begin with `name` and a slash."""
        _delete_folder(self.path(name))


_PIECE = 1 << 20  # bytes


@contextlib.contextmanager
def temporary_files_in(folder: pathlib.Path) -> Iterator[None]:
    """Makes `folder` the place of this process's temporary files: Beam leaves some behind."""
    folder.mkdir()
    before, tempfile.tempdir = tempfile.tempdir, str(folder)
    try:
        yield
    finally:
        tempfile.tempdir = before


@contextlib.contextmanager
def own_folder(parent: str, domain: str) -> Iterator[Scratch]:
    """A folder of this run alone in `parent`, deleted when the run ends, also when it fails.

    Args:
      parent: a path or a URL; it is made if need be.

    Raises:
      CalrecError: nothing can be written there.
    """
    scratch = _make(parent, domain)
    try:
        yield scratch
    finally:
        try:
            _delete_folder(scratch.folder)
        except Exception as error:  # each file system has errors of its own
            warnings.warn(
                f"{scratch.folder} could not be deleted, and nobody needs it any more: "
                f"{first_line(error)}",
                stacklevel=2,
            )


def _make(parent: str, domain: str) -> Scratch:
    if any(character in "*?[" for character in parent):
        raise CalrecError(
            f"the engine 'beam' cannot work in {parent}: Beam would take * ? and [ for wild "
            f"cards; choose another folder with --beam_scratch"
        )
    try:
        if FileSystems.get_scheme(parent) is None:
            parent = os.path.abspath(parent)
        scratch = Scratch(FileSystems.join(parent, f"calrec_{domain}_{uuid.uuid4().hex}"))
        with scratch.create("empty"):  # Beam cannot write it to S3, for example
            pass
    except Exception as error:  # each file system has errors of its own
        raise CalrecError(
            f"the engine 'beam' cannot work in {parent}: {first_line(error)}; choose another "
            f"folder with --beam_scratch"
        ) from error
    return scratch


def _delete_folder(folder: str) -> None:
    """Deletes all files in a folder, which in an object store is only a prefix with a slash."""
    has_folders = FileSystems.get_filesystem(folder).has_dirs()
    FileSystems.delete([folder if has_folders else f"{folder}/"])
