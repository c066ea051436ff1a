"""Files and folders that are complete or not there."""

from __future__ import annotations

import fcntl
import json
import math
import os
import pathlib

import numpy as np
import pytest

from calrec_jax import files
from calrec_jax.errors import CalrecError


@pytest.mark.parametrize("empty", [False, True])
def test_it_is_there_at_the_end_with_all_that_was_written(tmp_path, empty):
    target = tmp_path / "new" / "folder"
    if empty:
        target.mkdir(parents=True)
    with files.new_folder(target) as making:
        (making / "file").write_text("whole")
        assert not target.exists() or not list(target.iterdir())
    assert (target / "file").read_text() == "whole"
    assert list(target.parent.iterdir()) == [target]


@pytest.mark.parametrize("error", [OSError, TypeError, KeyboardInterrupt])
def test_any_failure_leaves_nothing(tmp_path, error):
    with pytest.raises(error), files.new_folder(tmp_path / "new" / "folder") as making:
        (making / "file").write_text("half")
        raise error
    assert not list(tmp_path.iterdir())


def test_a_failure_leaves_what_others_wrote_beside_it(tmp_path):
    with pytest.raises(OSError), files.new_folder(tmp_path / "new" / "folder"):
        (tmp_path / "new" / "other").write_text("kept")
        raise OSError
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["other"]


def test_what_a_kill_left_is_no_part_of_it(tmp_path):
    (tmp_path / ".making_folder" / "inner").mkdir(parents=True)
    (tmp_path / ".making_folder" / "inner" / "old").write_text("old")
    (tmp_path / ".making_folder" / "old").symlink_to(tmp_path)
    with files.new_folder(tmp_path / "folder") as making:
        assert not list(making.iterdir())
    assert [path.name for path in tmp_path.iterdir()] == ["folder"]


def test_two_processes_do_not_make_the_same_one(tmp_path):
    (tmp_path / ".making_folder").mkdir()
    (tmp_path / ".making_folder" / "other").write_text("kept")
    lock = os.open(tmp_path / ".making_folder", os.O_RDONLY)
    fcntl.flock(lock, fcntl.LOCK_EX)
    with pytest.raises(CalrecError, match=f"another process is making {tmp_path}/folder: wait"):
        with files.new_folder(tmp_path / "folder"):
            raise AssertionError("both are in")
    os.close(lock)
    assert (tmp_path / ".making_folder" / "other").read_text() == "kept"


def test_a_file_is_replaced(tmp_path):
    path = tmp_path / "file"
    for text in ("old", "new, and an umlaut: \u00e4"):
        files.write_text(path, text)
        assert path.read_text("utf-8") == text
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("error", [OSError, KeyboardInterrupt])
def test_a_failed_write_leaves_the_old_file_and_no_other(tmp_path, monkeypatch, error):
    path = tmp_path / "file"
    files.write_text(path, "old")

    def fails(*_):
        raise error

    with monkeypatch.context() as patch, pytest.raises(error):
        patch.setattr("os.replace", fails)
        files.write_text(path, "new")
    assert path.read_text() == "old" and list(tmp_path.iterdir()) == [path]


def test_processes_that_write_the_same_file_at_once_do_not_meet(tmp_path, monkeypatch):
    """The second writes all of its own between the first one's two halves."""
    path, replace = tmp_path / "file", os.replace

    def second_comes_between(*args):
        monkeypatch.setattr("os.replace", replace)
        files.write_text(path, "second")
        replace(*args)

    monkeypatch.setattr("os.replace", second_comes_between)
    files.write_text(path, "first")
    assert path.read_text() == "first" and list(tmp_path.iterdir()) == [path]


def test_what_is_no_text_is_written_as_is_said(tmp_path):
    files.write_text(tmp_path / "file", "half \ud800", "replace")
    assert (tmp_path / "file").read_text() == "half ?"


@pytest.mark.parametrize("value", [math.nan, [math.inf], {"a": object()}])
def test_what_is_no_json_leaves_the_old_file(tmp_path, value):
    path = tmp_path / "file"
    files.write_json(path, {"n": (1, 2)})
    assert path.read_text() == '{\n  "n": [\n    1,\n    2\n  ]\n}\n'
    with pytest.raises((ValueError, TypeError)):
        files.write_json(path, value)
    assert json.loads(path.read_text()) == files.as_json({"n": (1, 2)}) == {"n": [1, 2]}
    assert list(tmp_path.iterdir()) == [path]


def test_arrays_are_replaced_all_at_once(tmp_path, monkeypatch):
    path = tmp_path / "file.npz"
    files.save_npz(path, a=np.arange(3), b=np.array("text"))
    before = path.read_bytes()

    def torn(file, **_):
        file.write(b"half")
        raise OSError("no space")

    with monkeypatch.context() as patch, pytest.raises(OSError, match="no space"):
        patch.setattr(np, "savez", torn)
        files.save_npz(path, a=np.zeros(2))
    assert path.read_bytes() == before and list(tmp_path.iterdir()) == [path]
    with np.load(path) as saved:
        assert saved["a"].tolist() == [0, 1, 2] and str(saved["b"]) == "text"


@pytest.mark.parametrize("content", [b"", b"text", "whole"])
def test_a_damaged_npz_is_known_by_what_it_raises(tmp_path, content):
    """Cut anywhere, or with one byte changed, it raises nothing else (or can still be read)."""
    path = tmp_path / "file.npz"
    files.save_npz(path, a=np.arange(100))
    whole = path.read_bytes()
    contents = [content]
    if content == "whole":
        changed = [whole[:i] + bytes([whole[i] ^ 0xFF]) + whole[i + 1 :] for i in range(len(whole))]
        contents = [*changed, *(whole[:i] for i in range(0, len(whole), 7))]
    refused = 0
    for data in contents:
        path.write_bytes(data)
        try:
            with np.load(path) as saved:
                saved["a"]
        except files.DAMAGED_NPZ:
            refused += 1
    assert refused >= max(1, len(contents) // 6)


@pytest.mark.parametrize("path", [".", "/", "folder"])
def test_a_folder_is_no_file_to_write(tmp_path, monkeypatch, path):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "folder").mkdir()
    with pytest.raises(IsADirectoryError, match="Is a directory"):
        files.write_text(pathlib.Path(path), "text")
    assert list(tmp_path.iterdir()) == [tmp_path / "folder"]
