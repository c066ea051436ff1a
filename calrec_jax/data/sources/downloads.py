"""Files of the web: downloaded once, by TFDS's download manager, and checked at every later use."""

from __future__ import annotations

import hashlib
import importlib
import logging
import os
import pathlib
import re
import shutil
import sys
import urllib.parse
from typing import Any

from calrec_jax.data.sources.source import first_line
from calrec_jax.errors import CalrecError

CHECKSUMS = "checksums.tsv"
_RETRIES = 3  # in two seconds; with TFDS's ten, a misspelt host takes minutes to fail
_PIN = re.compile(r"sha256=([0-9a-fA-F]{64})")


def is_web(path: str) -> bool:
    """Whether `path` is an http or https URL."""
    return path.startswith(("http://", "https://"))


def download(url: str, download_dir: pathlib.Path) -> str:
    """Downloads a file, unless it was downloaded before.

    The size and the SHA-256 of the first download are kept in DOWNLOAD_DIR/checksums.tsv, and the
    file must have them whenever it is used later.

    Args:
      url: http or https; `#sha256=HEX` at its end is the SHA-256 that the file must have.

    Returns:
      The local path; its name is derived from the URL and has the URL's ending.

    Raises:
      CalrecError: the file cannot be downloaded completely, or its content is not the one that was
        recorded or given.
    """
    url, pinned = _split_pin(url)
    recorded = _recorded(download_dir / CHECKSUMS).get(url)
    if recorded is None or (pinned and recorded != pinned):
        path = _first_download(url, download_dir)
        recorded = _recorded(download_dir / CHECKSUMS)[url]
    else:
        path = _again(url, download_dir)
    if pinned and recorded != pinned:
        raise CalrecError(
            f"{url} has the wrong content: its sha256 is {recorded}, not {pinned} as its #sha256= "
            f"says"
        )
    if _sha256(path) != recorded:
        raise CalrecError(f"{path} has changed since it was downloaded: delete it to do so again")
    return str(path)


def _split_pin(url: str) -> tuple[str, str | None]:
    """(the URL without its pin, the SHA-256 that the file must have or None)."""
    address, fragment = urllib.parse.urldefrag(url)
    if not fragment:
        return address, None
    pin = _PIN.fullmatch(fragment)
    if not pin:
        raise CalrecError(f"{url}: after # only sha256= and 64 hexadecimal digits are understood")
    return address, pin[1].lower()


def _sha256(path: pathlib.Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _recorded(path: pathlib.Path) -> dict[str, str]:
    """{URL: SHA-256} of the files that were downloaded before."""
    if not path.exists():
        return {}
    try:
        rows = [line.split("\t") for line in path.read_text().splitlines()]
        return {url: checksum for url, _size, checksum, _name in rows}
    except ValueError as error:
        raise CalrecError(f"{path} is damaged: delete it to download its files again") from error


def _first_download(url: str, download_dir: pathlib.Path) -> pathlib.Path:
    return _fetch(
        url,
        download_dir,
        register_checksums=True,
        register_checksums_path=download_dir / CHECKSUMS,
        force_download=True,
    )


def _again(url: str, download_dir: pathlib.Path) -> pathlib.Path:
    from calrec_jax.data.store.quiet_tensorflow import tfds

    manager = tfds.core.download.download_manager
    infos = manager.checksums.load_url_infos(download_dir / CHECKSUMS)
    try:
        return _fetch(url, download_dir, url_infos={url: infos[url]})
    except manager.NonMatchingChecksumError as error:
        raise CalrecError(
            f"{url} is not what it was when it was first downloaded: to take it as it is now, "
            f"delete its line in {download_dir / CHECKSUMS}"
        ) from error


def _fetch(url: str, download_dir: pathlib.Path, **options: Any) -> pathlib.Path:
    """Downloads with TFDS's download manager; a failed download leaves nothing behind.

    Args:
      options: further arguments of the download manager.
    """
    from calrec_jax.data.store.quiet_tensorflow import tfds

    importlib.import_module(f"{tfds.__name__}.core.download.downloader").MAX_RETRIES = _RETRIES
    logging.getLogger("urllib3").setLevel(logging.ERROR)  # it would log a line per retry
    tfds.display_progress_bar(sys.stderr.isatty())
    try:
        download_dir.mkdir(parents=True, exist_ok=True)
        before = set(download_dir.glob("*.tmp.*"))
        manager = tfds.download.DownloadManager(
            download_dir=download_dir, extract_dir=download_dir, **options
        )
        return pathlib.Path(os.fspath(manager.download(url)))
    except (OSError, tfds.download.DownloadError) as error:
        raise CalrecError(f"{url} cannot be downloaded: {first_line(error)}") from error
    finally:
        tfds.disable_progress_bar()
        for leftover in set(download_dir.glob("*.tmp.*")) - before:
            shutil.rmtree(leftover, ignore_errors=True)
