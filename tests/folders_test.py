"""Folders that are whole or not there."""

from __future__ import annotations

import fcntl
import os

import pytest

from calrec_jax.errors import CalrecError
from calrec_jax.folders import made_whole


@pytest.mark.parametrize("empty", [False, True])
def test_it_is_there_at_the_end_with_all_that_was_written(tmp_path, empty):
    target = tmp_path / "new" / "folder"
    if empty:
        target.mkdir(parents=True)
    with made_whole(target) as making:
        (making / "file").write_text("whole")
        assert not target.exists() or not list(target.iterdir())
    assert (target / "file").read_text() == "whole"
    assert list(target.parent.iterdir()) == [target]


@pytest.mark.parametrize("error", [OSError, TypeError, KeyboardInterrupt])
def test_any_failure_leaves_nothing(tmp_path, error):
    with pytest.raises(error), made_whole(tmp_path / "new" / "folder") as making:
        (making / "file").write_text("half")
        raise error
    assert not list(tmp_path.iterdir())


def test_a_failure_leaves_what_others_wrote_beside_it(tmp_path):
    with pytest.raises(OSError), made_whole(tmp_path / "new" / "folder"):
        (tmp_path / "new" / "theirs").write_text("kept")
        raise OSError
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["theirs"]


def test_what_a_kill_left_is_no_part_of_it(tmp_path):
    (tmp_path / ".making_folder" / "inner").mkdir(parents=True)
    (tmp_path / ".making_folder" / "inner" / "old").write_text("old")
    (tmp_path / ".making_folder" / "old").symlink_to(tmp_path)
    with made_whole(tmp_path / "folder") as making:
        assert not list(making.iterdir())
    assert [path.name for path in tmp_path.iterdir()] == ["folder"]


def test_two_processes_do_not_make_the_same_one(tmp_path):
    (tmp_path / ".making_folder").mkdir()
    (tmp_path / ".making_folder" / "theirs").write_text("kept")
    lock = os.open(tmp_path / ".making_folder", os.O_RDONLY)
    fcntl.flock(lock, fcntl.LOCK_EX)
    with pytest.raises(CalrecError, match=f"another process is making {tmp_path}/folder: wait"):
        with made_whole(tmp_path / "folder"):
            raise AssertionError("both are in")
    os.close(lock)
    assert (tmp_path / ".making_folder" / "theirs").read_text() == "kept"
