"""Where raw files are found, and how they are opened: local ones, and those of fsspec's URLs."""

from __future__ import annotations

import contextlib
import dataclasses
import fnmatch
import glob
import gzip
import io
import os
import pathlib
import zlib
from collections.abc import Iterator, Sequence
from typing import BinaryIO

import fsspec

from calrec_jax.data.sources.downloads import download, is_web
from calrec_jax.data.sources.source import Source, first_line
from calrec_jax.errors import CalrecError

_GZIP = b"\x1f\x8b"
_BOM = b"\xef\xbb\xbf"
_OTHER_PACKING = {
    b"PK\x03\x04": "a zip archive",
    b"BZh": "packed with bzip2",
    b"\xfd7zXZ": "packed with xz",
    b"\x28\xb5\x2f\xfd": "packed with zstd",
}


@dataclasses.dataclass(frozen=True)
class RawFiles:
    """The raw files of a domain: local paths and fsspec URLs, without duplicates."""

    events: tuple[str, ...]
    items: tuple[str, ...]


def find_files(
    source: Source,
    input_dir: str | None,
    events: Sequence[str] = (),
    items: Sequence[str] = (),
    *,
    download_dir: str | os.PathLike,
) -> RawFiles:
    """Finds the files of events and of items, and downloads those of the web.

    Args:
      input_dir: a folder, local or an fsspec URL, where files that are not named are looked for
        by `source`'s names.
      events, items: files instead of those in `input_dir`. Each is a local path, an fsspec URL
        (gs://bucket/name), either with the wild cards *, ? and [, or an http(s) URL, after which
        #sha256=HEX may say what it must hold.
      download_dir: where files of the web are kept.

    Returns:
      Each kind in the order given; what one pattern matches is sorted.

    Raises:
      CalrecError: nothing matches a pattern, a folder or a URL cannot be read, a download fails,
        or a folder holds a file twice, plain and as gzip.
    """
    return RawFiles(
        _find(source, "events", input_dir, events, download_dir),
        _find(source, "items", input_dir, items, download_dir),
    )


def _find(source: Source, kind: str, input_dir, given, download_dir) -> tuple[str, ...]:
    if given:
        found = [path for pattern in given for path in _matches(pattern, download_dir)]
        return tuple(dict.fromkeys(found))
    if input_dir is None:
        raise CalrecError(f"no files of {kind}: name them with --{kind}, or give --input_dir")
    return _in_folder(source, kind, os.fspath(input_dir))


def _in_folder(source: Source, kind: str, folder: str) -> tuple[str, ...]:
    patterns = source.item_names if kind == "items" else source.event_names
    paths = {os.path.basename(path): path for path in _folder(folder)}
    names = [name for name in sorted(paths) if _fits(name, patterns)]
    if kind == "events":
        names = [name for name in names if not _fits(name, source.item_names)]
    if not names:
        raise CalrecError(
            f"no {kind} in {folder}: {source.name} reads them from {' or '.join(patterns)}; "
            f"name the files with --{kind} where they are called otherwise"
        )
    for name in names:
        if f"{name}.gz" in names:
            raise CalrecError(
                f"{folder} has both {name} and {name}.gz: name the one to read with --{kind}"
            )
    return tuple(paths[name] for name in names)


def _fits(name: str, patterns: Sequence[str]) -> bool:
    hidden = name.startswith(".")
    return not hidden and any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns)


def _folder(folder: str) -> list[str]:
    """The files in a folder."""
    if is_web(folder):
        raise CalrecError(
            f"{folder} is no folder that can be listed: name the files with --events and --items"
        )
    if "://" in folder:
        return _remote(folder.rstrip("/") + "/*")
    if os.path.isfile(folder):
        raise CalrecError(f"{folder} is a file, no folder: name files with --events and --items")
    if not os.path.isdir(folder):
        raise CalrecError(f"there is no folder {folder}")
    return [str(path) for path in pathlib.Path(folder).iterdir() if path.is_file()]


def _matches(pattern: str, download_dir) -> list[str]:
    """The files that one pattern stands for, sorted; at least one."""
    pattern = os.fspath(pattern)
    if is_web(pattern):
        return [download(pattern, pathlib.Path(download_dir))]
    if "://" in pattern:
        found = _remote(pattern)
    elif os.path.exists(pattern):
        found = [pattern]
    else:
        found = glob.glob(pattern, recursive=True)
    found = sorted(path for path in found if "://" in path or os.path.isfile(path))
    if not found:
        name = pattern.rstrip("/")
        hint = f": it is a folder; name its files ({name}/*)" if os.path.isdir(pattern) else ""
        raise CalrecError(f"no file matches {pattern}{hint}")
    return found


def _remote(pattern: str) -> list[str]:
    """The URLs of the files that match a URL, which may have wild cards."""
    with _remote_errors(pattern):
        system, path = fsspec.core.url_to_fs(pattern)
        found = system.glob(path, detail=True)
        names = [name for name, info in found.items() if info["type"] == "file"]
        # Some file systems keep the protocol in their names.
        return [name if "://" in name else system.unstrip_protocol(name) for name in names]


@contextlib.contextmanager
def _remote_errors(url: str) -> Iterator[None]:
    protocol = url.split("://")[0]
    try:
        yield
    except ImportError as error:
        if protocol in ("gs", "gcs"):
            needed = "install what reads Google Cloud Storage with: pip install 'calrec_jax[gcs]'"
        else:
            needed = first_line(error)
        raise CalrecError(f"{url} cannot be read: {needed}") from error
    except CalrecError:
        raise
    except Exception as error:  # each of fsspec's file systems has errors of its own
        raise CalrecError(f"{url} cannot be read: {first_line(error)}") from error


@contextlib.contextmanager
def opened_as_is(path: str) -> Iterator[BinaryIO]:
    """A file as it is, which must be seekable. Raises CalrecError where it cannot be opened."""
    if "://" in path:
        with _remote_errors(path):
            system, name = fsspec.core.url_to_fs(path)
            file = system.open(name, "rb")
    else:
        try:
            file = open(path, "rb")
        except OSError as error:
            raise CalrecError(f"{path} cannot be opened: {error.strerror}") from error
    with file:
        yield file


@contextlib.contextmanager
def reading(path: str) -> Iterator[None]:
    """Turns what a damaged file raises while it is read into one line."""
    try:
        yield
    except CalrecError:
        raise
    except Exception as error:  # each of fsspec's file systems has errors of its own
        if "://" not in path and not isinstance(error, (EOFError, OSError, zlib.error)):
            raise
        raise CalrecError(f"{path} cannot be read to its end: {first_line(error)}") from error


@contextlib.contextmanager
def opened(path: str) -> Iterator[BinaryIO]:
    """A text file's bytes, unpacked where it is gzip (by content), without a byte order mark.

    Raises:
      CalrecError: the file cannot be opened, or (while the context lasts) not read to its end.
    """
    with reading(path), opened_as_is(path) as file:
        packed = io.BufferedReader(file)
        start = packed.peek(6)
        if not start and path.endswith(".gz"):
            raise EOFError("it is empty, which no gzip file is")
        for magic, packing in _OTHER_PACKING.items():
            if start.startswith(magic):
                raise CalrecError(f"{path} is {packing}: unpack it first (gzip alone is read)")
        if start.startswith(_GZIP):
            unpacked = io.BufferedReader(gzip.GzipFile(fileobj=packed), 2**18)
        else:
            unpacked = packed
        if unpacked.peek(3).startswith(_BOM):
            unpacked.read(3)
        yield unpacked
