"""Locks: one holder, on this machine and on those that share its disk."""

from __future__ import annotations

import dataclasses
import fcntl
import json
import os
import pathlib
import signal
import socket
import subprocess
import sys
import threading
import time

import pytest

from calrec_jax import locks
from calrec_jax.errors import CalrecError

ELSEWHERE = locks.Holder("elsewhere", 12, "another machine", "its token")
HOLDING = """
import pathlib, sys, time
from calrec_jax import locks
locks._BEAT_SECONDS = 0.1
with locks.locked(pathlib.Path(sys.argv[1]), str):
    print("held", flush=True)
    time.sleep(100)
"""


@pytest.fixture
def path(tmp_path, monkeypatch) -> pathlib.Path:
    """The path of a lock; a second of the module takes a hundredth."""
    for name in ("_BEAT_SECONDS", "_WATCH_SECONDS", "_POLL_SECONDS"):
        monkeypatch.setattr(locks, name, getattr(locks, name) / 100)
    return tmp_path / "lock"


def locked(path):
    return locks.locked(path, lambda holder: f"{holder} has it")


def write(path, holder: locks.Holder) -> None:
    path.write_text(json.dumps(dataclasses.asdict(holder)))


def no_locks(*_):
    raise OSError("Function not implemented")


def assert_taken_and_let_go(path) -> None:
    with locked(path):
        assert locks._read(path).pid == os.getpid()
    assert path.read_text() == ""


def test_the_second_one_is_refused_with_the_first_ones_host_and_process(path):
    with locked(path):
        with pytest.raises(CalrecError) as error, locked(path):
            raise AssertionError("both are in")
        assert str(error.value) == f"process {os.getpid()} on host {socket.gethostname()} has it"
        assert_taken_and_let_go(path.with_name("another"))
    assert_taken_and_let_go(path)


def test_a_holder_that_has_only_just_come_is_named_too(path, monkeypatch):
    """It holds the file, and has not yet written who it is."""
    monkeypatch.setattr(locks, "_POLL_SECONDS", 1.0)
    with path.open("a") as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        here = f"{locks._boot_id()}-{path.stat().st_dev}"
        holder = dataclasses.replace(ELSEWHERE, machine=here)
        threading.Timer(0.1, lambda: write(path, holder)).start()
        with (
            pytest.raises(CalrecError, match="^process 12 on host elsewhere has it$"),
            locked(path),
        ):
            raise AssertionError("both are in")


def test_an_error_lets_go(path):
    with pytest.raises(ZeroDivisionError), locked(path):
        raise ZeroDivisionError
    assert_taken_and_let_go(path)


def test_killed_it_leaves_no_lock(path):
    with subprocess.Popen(
        [sys.executable, "-c", HOLDING, str(path)], stdout=subprocess.PIPE
    ) as process:
        assert process.stdout.readline() == b"held\n"
        with pytest.raises(CalrecError, match=f"process {process.pid} on host"), locked(path):
            raise AssertionError("both are in")
        process.send_signal(signal.SIGKILL)
    before = time.monotonic()
    assert_taken_and_let_go(path)
    assert time.monotonic() - before < locks._WATCH_SECONDS


@pytest.mark.parametrize("text", [json.dumps(dataclasses.asdict(ELSEWHERE)), "{", "3", "[" * 9999])
def test_what_another_machine_left_is_taken_over(path, capsys, text):
    path.write_text(text)
    assert_taken_and_let_go(path)
    assert "waiting 1 s for a sign of it" in capsys.readouterr().err


@pytest.mark.parametrize("unsupported", [False, True])
def test_another_machine_that_is_alive_is_named(path, monkeypatch, unsupported):
    """Also where the file system does not support locks, as some network file systems."""
    write(path, ELSEWHERE)
    if unsupported:
        monkeypatch.setattr(fcntl, "flock", no_locks)
    ended = threading.Event()

    def beat():
        while not ended.wait(0.05):
            os.utime(path)

    beats = threading.Thread(target=beat)
    beats.start()
    try:
        with (
            pytest.raises(CalrecError, match="^process 12 on host elsewhere has it$"),
            locked(path),
        ):
            raise AssertionError("both are in")
    finally:
        ended.set()
        beats.join()
    assert locks._read(path) == ELSEWHERE


def test_another_machine_that_lets_go_while_it_is_watched_is_followed(path):
    write(path, ELSEWHERE)
    threading.Timer(0.2, lambda: path.write_text("")).start()
    assert_taken_and_let_go(path)


def test_a_lock_that_a_server_keeps_for_a_machine_that_is_gone_is_replaced(path):
    write(path, ELSEWHERE)
    with path.open() as kept:
        fcntl.flock(kept, fcntl.LOCK_EX)
        with locked(path):
            with pytest.raises(CalrecError, match=f"process {os.getpid()} "), locked(path):
                raise AssertionError("both are in")
    assert path.read_text() == "" and list(path.parent.iterdir()) == [path]


def test_where_the_file_system_knows_no_locks_the_heartbeat_alone_decides(path, monkeypatch):
    monkeypatch.setattr(fcntl, "flock", no_locks)
    with locked(path):
        with pytest.raises(CalrecError, match=f"process {os.getpid()} "), locked(path):
            raise AssertionError("both are in")
    assert_taken_and_let_go(path)


def test_it_shows_that_it_is_alive(path):
    with locked(path):
        before, deadline = locks._mtime_ns(path), time.monotonic() + 30
        while locks._mtime_ns(path) == before:
            assert time.monotonic() < deadline
            time.sleep(0.01)


@pytest.mark.parametrize("how", ["taken over", "removed"])
def test_a_process_that_has_lost_it_ends_and_leaves_the_others_alone(path, how):
    with subprocess.Popen(
        [sys.executable, "-c", HOLDING, str(path)],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    ) as process:  # fmt: skip
        assert process.stdout.readline() == "held\n"
        path.unlink()
        if how == "taken over":
            write(path, ELSEWHERE)
        _, stderr = process.communicate(timeout=60)
    assert process.returncode == 1
    line = str(ELSEWHERE) if how == "taken over" else f"{path} was removed"
    assert stderr == f"calrec: error: stopped: {line}\n"
    assert not path.exists() or locks._read(path) == ELSEWHERE


def test_a_place_that_cannot_be_written_is_an_oserror(path):
    with pytest.raises(FileNotFoundError), locked(path.parent / "nowhere" / "lock"):
        raise AssertionError("it is in")


def locked_folder(folder: pathlib.Path):
    return locks.locked_folder(
        folder / "lock", lambda holder: f"{holder} has it", f"cannot write {folder.name}"
    )


def test_a_folder_is_made_and_locked(path):
    folder = path.parent / "new" / "folder"
    with locked_folder(folder):
        with pytest.raises(CalrecError, match=f"process {os.getpid()} "), locked_folder(folder):
            raise AssertionError("both are in")
    assert_taken_and_let_go(folder / "lock")


def test_a_folder_that_cannot_be_made_is_one_line(path):
    path.write_text("a file")
    with pytest.raises(CalrecError) as error, locked_folder(path / "folder"):
        raise AssertionError("it is in")
    assert str(error.value) == f"cannot write folder: Not a directory ({path}/folder)"


def test_what_fails_while_a_folder_is_locked_is_not_reworded(path):
    with pytest.raises(OSError, match="^mine$"), locked_folder(path.parent / "folder"):
        raise OSError("mine")


def test_a_full_disk_stays_what_it_is(path, monkeypatch):
    def full(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(pathlib.Path, "mkdir", full)
    with pytest.raises(OSError, match="No space"), locked_folder(path.parent / "folder"):
        raise AssertionError("it is in")
