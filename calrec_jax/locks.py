"""Locks on folders that one process at a time may write, on one machine or on several.

A lock is a file that names its holder. On one machine the kernel keeps the lock (flock) and
releases it when the process ends, however it ends. Other machines that share the disk may not see
that lock (on a mounted bucket), or may see it for longer than the process lives (NFS 3). For them,
the holder touches the file every few seconds; a lock that was left by another machine and is no
longer touched is taken over.
"""

from __future__ import annotations

import contextlib
import dataclasses
import fcntl
import json
import os
import pathlib
import socket
import sys
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from typing import IO

from calrec_jax.errors import CalrecError, unwritable_named

_BEAT_SECONDS = 10.0
# Longer than a file system caches the attributes of a file: a minute with NFS and gcsfuse.
_WATCH_SECONDS = 120.0
_POLL_SECONDS = 1.0
_BOOT_ID = pathlib.Path("/proc/sys/kernel/random/boot_id")


@dataclasses.dataclass(frozen=True)
class Holder:
    """The process that holds a lock.

    Attributes:
      host, pid: shown to users.
      machine: where flock decides: a running kernel, and the file system as that kernel mounted it.
      token: a new one each time a lock is taken.
    """

    host: str
    pid: int
    machine: str
    token: str

    def __str__(self) -> str:
        return f"process {self.pid} on host {self.host}"


def try_flock(file: IO | int) -> bool | None:
    """Locks an open file or folder for this process and its children, if no other process has.

    Returns:
      Whether it is locked now; None where the file system does not support locks.
    """
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        return None
    return True


@contextlib.contextmanager
def locked_folder(
    lock: pathlib.Path, refusal: Callable[[str], str], unwritable: str
) -> Iterator[None]:
    """While active, no other process holds the lock of a folder, which is made where it is missing.

    Args:
      lock: its lock file, see `locked`.
      refusal: see `locked`.
      unwritable: the beginning of the error where nothing can be written there, "cannot write a/b".

    Raises:
      CalrecError: another process holds the lock, or it cannot be written.
      OSError: the disk is full.
    """
    with contextlib.ExitStack() as stack:
        with unwritable_named(unwritable):
            lock.parent.mkdir(parents=True, exist_ok=True)
            stack.enter_context(locked(lock, refusal))
        yield


@contextlib.contextmanager
def locked(path: pathlib.Path, refusal: Callable[[str], str]) -> Iterator[None]:
    """While active, no other process holds the lock at `path`.

    A process that hung for minutes may find that another machine has taken its lock over: it ends
    at once, with one line of error and code 1, before it writes anything else.

    Args:
      path: the lock file, which stays; its folder must exist.
      refusal: the holder, as text -> the message of the error for a second process.

    Raises:
      CalrecError: another process holds it.
      OSError: the file cannot be written.
    """
    file, me = _acquire(path, refusal)
    ended = threading.Event()
    beats = threading.Thread(target=_beat, args=(path, me, refusal, ended), daemon=True)
    beats.start()
    try:
        yield
    finally:
        ended.set()
        beats.join()
        with file, contextlib.suppress(OSError):
            if _read(path) == me:
                file.truncate(0)


def _acquire(path: pathlib.Path, refusal: Callable[[str], str]) -> tuple[IO, Holder]:
    """The open lock file, which names this process as its holder now."""
    with contextlib.ExitStack() as opened:
        file = opened.enter_context(path.open("a"))
        locked, holder = try_flock(file), _read(path)
        if locked is False and holder is None:  # it is just being taken or released
            time.sleep(_POLL_SECONDS)
            holder = _read(path)
        machine = f"{_boot_id()}-{os.fstat(file.fileno()).st_dev}"
        on_this_machine = holder is None or holder.machine == machine
        if locked is False and on_this_machine:
            raise CalrecError(refusal(str(holder or "another process")))
        if holder is not None and not (locked and on_this_machine):
            _require_untouched(path, holder, refusal)
        me = Holder(socket.gethostname(), os.getpid(), machine, uuid.uuid4().hex)
        if locked is False:  # and stays so: the machine that locked it is gone
            file = opened.enter_context(_new_file(path, me.token))
        file.truncate(0)
        file.write(json.dumps(dataclasses.asdict(me)))
        file.flush()
        if locked is False:
            os.replace(file.name, path)
        opened.pop_all()
        return file, me


def _new_file(path: pathlib.Path, token: str) -> IO:
    file = path.with_name(f"{path.name}.{token}.tmp").open("a")
    try_flock(file)
    return file


def _require_untouched(path: pathlib.Path, holder: Holder, refusal: Callable[[str], str]) -> None:
    """Raises CalrecError where a holder that this kernel cannot see is alive."""
    print(
        f"{path} is held by {holder}, which may be gone: waiting {_WATCH_SECONDS:.0f} s for a sign "
        f"of it",
        file=sys.stderr,
        flush=True,
    )
    before, deadline = _mtime_ns(path), time.monotonic() + _WATCH_SECONDS
    while time.monotonic() < deadline:
        time.sleep(_POLL_SECONDS)
        if _mtime_ns(path) != before:
            now = _read(path)
            if now is None:  # it was released
                return
            raise CalrecError(refusal(str(now)))


def _mtime_ns(path: pathlib.Path) -> int:
    """When the file was written or touched. It is opened, because NFS asks its server then."""
    with path.open() as file:
        return os.fstat(file.fileno()).st_mtime_ns


def _read(path: pathlib.Path) -> Holder | None:
    """The holder that a lock file names; None where it names none."""
    try:
        text = path.read_text("utf-8", "replace")
    except FileNotFoundError:
        return None
    if not text:
        return None
    try:
        return Holder(**json.loads(text))
    except (ValueError, TypeError, RecursionError):  # half written
        return Holder("unknown", 0, "", "")


def _beat(
    path: pathlib.Path, me: Holder, refusal: Callable[[str], str], ended: threading.Event
) -> None:
    """Shows other machines that this process is alive, until it has ended or lost the lock."""
    while not ended.wait(_BEAT_SECONDS):
        with contextlib.suppress(OSError):  # of the network: the next beat may succeed
            now = _read(path)
            if now != me:
                line = refusal(str(now)) if now else f"{path} was removed"
                sys.stderr.write(f"calrec: error: stopped: {line}\n")
                sys.stderr.flush()
                os._exit(1)
            os.utime(path)


def _boot_id() -> str:
    return _BOOT_ID.read_text().strip() if _BOOT_ID.exists() else socket.gethostname()
