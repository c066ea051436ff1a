"""A disk that can be filled, for tests of what happens then."""

from __future__ import annotations

import contextlib
import os
import pathlib
import subprocess
from collections.abc import Iterator

import pytest


@contextlib.contextmanager
def small_disk(folder: pathlib.Path, kilobytes: int) -> Iterator[pathlib.Path]:
    """A disk of its own at `folder`; skips, saying so, where this user may not mount one."""
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", f"size={kilobytes}k", "tmpfs", str(folder)]
    try:
        done = subprocess.run(mount, capture_output=True, text=True)
    except OSError as error:
        pytest.skip(f"no disk to fill: {error}")
    if done.returncode:
        pytest.skip(f"no disk to fill, it needs root: {done.stderr.strip()}")
    try:
        yield folder
    finally:
        subprocess.run(["umount", str(folder)], check=True)


def fill(folder: pathlib.Path, free: int) -> pathlib.Path:
    """Leaves about `free` bytes; returns the file that takes the rest."""
    stat = os.statvfs(folder)
    filler = folder / "filler"
    filler.write_bytes(bytes(max(0, stat.f_bavail * stat.f_frsize - free)))
    return filler
