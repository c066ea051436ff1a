"""Finds and opens raw files, on local disks and at fsspec URLs."""

from __future__ import annotations

import contextlib
import dataclasses
import fnmatch
import glob
import gzip
import io
import itertools
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
_OTHER_KINDS = {
    b"PAR1": "a Parquet file: read it with --source=parquet",
    b"\xff\xfe": "UTF-16: save it as UTF-8, which alone is read",
    b"\xfe\xff": "UTF-16: save it as UTF-8, which alone is read",
}
_MARKERS = ("_SUCCESS", "_committed_*", "_started_*", "_metadata", "_common_metadata")  # Spark's


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
      input_dir: a folder (a local path or an fsspec URL), searched by `source`'s patterns for the
        files that `events` and `items` do not name.
      events, items: the files to read instead. Each is a local path or an fsspec URL
        (gs://bucket/name), both with the wild cards *, ? and [, or an http(s) URL, which may end in
        #sha256=HEX (see `downloads.download`). A folder stands for its parts, see `_parts`.
      download_dir: where files of the web are kept.

    Returns:
      The files in the order given; those that one pattern matches are sorted.

    Raises:
      CalrecError: nothing matches a pattern, a folder or a URL cannot be read, a download fails,
        or it is ambiguous which files of a folder to read.
    """
    return RawFiles(
        _find(source, "events", input_dir, events, download_dir),
        _find(source, "items", input_dir, items, download_dir),
    )


def _find(
    source: Source,
    kind: str,
    input_dir: str | None,
    patterns: Sequence[str],
    download_dir: str | os.PathLike,
) -> tuple[str, ...]:
    """The files of `kind`, "events" or "items": those that `patterns` name, or of `input_dir`."""
    if patterns:
        matches = [path for pattern in patterns for path in _matches(pattern, download_dir)]
        return tuple(dict.fromkeys(matches))
    if input_dir is None:
        raise CalrecError(f"no files of {kind}: name them with --{kind}, or give --input_dir")
    return _in_folder(source, kind, os.fspath(input_dir))


def _in_folder(source: Source, kind: str, folder: str) -> tuple[str, ...]:
    patterns = source.item_names if kind == "items" else source.event_names
    fitting = {_name(path): path for path in _list_folder(folder) if _fits(_name(path), patterns)}
    if kind == "events":
        fitting = {n: path for n, path in fitting.items() if not _fits(n, source.item_names)}
    files_by_name = {name: files for name, path in fitting.items() if (files := _expand(path))}
    names = sorted(files_by_name)
    if not names:
        plain = [pattern for pattern in patterns if not pattern.endswith(".gz")]
        raise CalrecError(
            f"no {kind} in {folder}: {source.name} reads them from {' or '.join(plain)}"
            f"{' (or .gz of that)' * (plain != list(patterns))}; name the files with --{kind} "
            f"where they are called otherwise"
        )
    twice = [[name, f"{name}.gz"] for name in names if f"{name}.gz" in names]
    for one, other in twice or ([] if source.several else itertools.pairwise(names)):
        raise CalrecError(
            f"{folder} has both {one} and {other}: name the one to read with --{kind}"
        )
    return tuple(path for name in names for path in files_by_name[name])


def _fits(name: str, patterns: Sequence[str]) -> bool:
    hidden = name.startswith(".")
    return not hidden and any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns)


def _name(path: str) -> str:
    return os.path.basename(path.rstrip("/"))


def _list_folder(folder: str) -> list[str]:
    """The files and folders in a folder; the paths of folders end in a slash."""
    if is_web(folder):
        raise CalrecError(
            f"{folder} is no folder that can be listed: name the files with --events and --items"
        )
    if "://" in folder:
        return _remote_matches(folder.rstrip("/") + "/*")
    if os.path.isfile(folder):
        raise CalrecError(f"{folder} is a file, no folder: name files with --events and --items")
    if not os.path.isdir(folder):
        raise CalrecError(f"there is no folder {folder}")
    return [_with_slash(str(path)) for path in pathlib.Path(folder).iterdir()]


def _with_slash(path: str) -> str:
    """A local path, ending in a slash where it is a folder."""
    return path.rstrip("/") + "/" if os.path.isdir(path) else path


def _matches(pattern: str, download_dir: str | os.PathLike) -> list[str]:
    """The files that one pattern stands for, sorted. Raises CalrecError where there is none."""
    pattern = os.fspath(pattern)
    if is_web(pattern):
        return [download(pattern, pathlib.Path(download_dir))]
    if "://" in pattern:
        matching = _remote_matches(pattern)
    elif os.path.exists(pattern):
        matching = [_with_slash(pattern)]
    else:
        matching = map(_with_slash, glob.glob(pattern, recursive=True))
        matching = [path for path in matching if not _is_marker(path)]
    files = [file for path in sorted(matching) for file in _expand(path)]
    if not files:
        name = pattern.rstrip("/")
        hint = f": it is a folder; name its files ({name}/*)" if os.path.isdir(pattern) else ""
        raise CalrecError(f"no file matches {pattern}{hint}")
    return files


def _expand(path: str) -> list[str]:
    """[path] of a file, or the parts of a folder, whose path ends in a slash."""
    return _parts(path) if path.endswith("/") else [path]


def _parts(folder: str) -> list[str]:
    """The files part* of a folder, as Spark writes a table, sorted; [] where it has none.

    Raises:
      CalrecError: the folder has parts and other files: which of them to read is not clear.
    """
    inside = sorted(path for path in _list_folder(folder) if not _name(path).startswith("."))
    inside = [path for path in inside if not _is_marker(path)]
    parts = [path for path in inside if _name(path).startswith("part") and path[-1] != "/"]
    others = [path for path in inside if path not in parts]
    if parts and others:
        raise CalrecError(
            f"{folder} holds {_name(others[0])} beside its parts: name the files to read with "
            f"--events and --items"
        )
    return parts


def _is_marker(path: str) -> bool:
    """Whether `path` is one of the files that Spark writes beside a table's parts."""
    return any(fnmatch.fnmatchcase(_name(path), marker) for marker in _MARKERS)


def _remote_matches(pattern: str) -> list[str]:
    """The URLs that match a URL with wild cards; those of folders end in a slash."""
    with _remote_errors(pattern):
        system, path = fsspec.core.url_to_fs(pattern)
        matches = system.glob(path, detail=True)
        names = {name: "/" * (info["type"] == "directory") for name, info in matches.items()}
        # Some file systems keep the protocol in their names.
        urls = [
            (name if "://" in name else system.unstrip_protocol(name)).rstrip("/") + slash
            for name, slash in names.items()
        ]
        return [url for url in urls if not _is_marker(url)]


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
    """Opens a file without unpacking it; it is seekable. Raises CalrecError where it cannot be."""
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
    """Turns the errors that a damaged file raises while it is read into CalrecErrors."""
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
    """Opens a text file for bytes, unpacked if its content is gzip, without a byte order mark.

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
        for magic, kind in _OTHER_KINDS.items():
            if start.startswith(magic):
                raise CalrecError(f"{path} is {kind}")
        if start.startswith(_GZIP):
            unpacked = io.BufferedReader(gzip.GzipFile(fileobj=packed), 2**18)
        else:
            unpacked = packed
        if unpacked.peek(3).startswith(_BOM):
            unpacked.read(3)
        yield unpacked
