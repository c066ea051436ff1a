"""Where raw files are found, and how they are opened: local ones, and those of fsspec's URLs."""

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


_MARKERS = ("_SUCCESS", "_committed_*", "_started_*", "_metadata", "_common_metadata")


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
        #sha256=HEX may say what it must hold. A folder stands for its parts, see `_parts`.
      download_dir: where files of the web are kept.

    Returns:
      Each kind in the order given; what one pattern matches is sorted.

    Raises:
      CalrecError: nothing matches a pattern, a folder or a URL cannot be read, a download fails,
        or which files of a folder are meant is not clear.
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
    fitting = {_name(path): path for path in _folder(folder) if _fits(_name(path), patterns)}
    if kind == "events":
        fitting = {n: path for n, path in fitting.items() if not _fits(n, source.item_names)}
    found = {name: files for name, path in fitting.items() if (files := _files_of(path))}
    names = sorted(found)
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
    return tuple(path for name in names for path in found[name])


def _fits(name: str, patterns: Sequence[str]) -> bool:
    hidden = name.startswith(".")
    return not hidden and any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns)


def _name(path: str) -> str:
    return os.path.basename(path.rstrip("/"))


def _folder(folder: str) -> list[str]:
    """What is in a folder: files, and folders, with a slash at their end."""
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
    return [_marked(str(path)) for path in pathlib.Path(folder).iterdir()]


def _marked(path: str) -> str:
    """A local path, with a slash at its end where it is a folder."""
    return path.rstrip("/") + "/" if os.path.isdir(path) else path


def _matches(pattern: str, download_dir) -> list[str]:
    """The files that one pattern stands for, sorted; at least one."""
    pattern = os.fspath(pattern)
    if is_web(pattern):
        return [download(pattern, pathlib.Path(download_dir))]
    if "://" in pattern:
        matching = _remote(pattern)
    elif os.path.exists(pattern):
        matching = [_marked(pattern)]
    else:
        matching = map(_marked, glob.glob(pattern, recursive=True))
        matching = [path for path in matching if not _is_marker(path)]
    found = [file for path in sorted(matching) for file in _files_of(path)]
    if not found:
        name = pattern.rstrip("/")
        hint = f": it is a folder; name its files ({name}/*)" if os.path.isdir(pattern) else ""
        raise CalrecError(f"no file matches {pattern}{hint}")
    return found


def _files_of(path: str) -> list[str]:
    """The file itself; of a folder, its parts."""
    return _parts(path) if path.endswith("/") else [path]


def _parts(folder: str) -> list[str]:
    """The files part* of a folder, sorted, as Spark writes a table; none where it has none.

    Raises:
      CalrecError: it holds something else, too: how to read that is not known.
    """
    inside = sorted(path for path in _folder(folder) if not _name(path).startswith("."))
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
    """Whether it is a file that Spark writes beside a table's parts."""
    return any(fnmatch.fnmatchcase(_name(path), marker) for marker in _MARKERS)


def _remote(pattern: str) -> list[str]:
    """The URLs that match a URL, which may have wild cards; those of folders end in a slash."""
    with _remote_errors(pattern):
        system, path = fsspec.core.url_to_fs(pattern)
        found = system.glob(path, detail=True)
        names = {name: "/" * (info["type"] == "directory") for name, info in found.items()}
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
