"""Incomplete checkpoints, half copied ones for example: one line of error, never wrong numbers."""

from __future__ import annotations

import contextlib
import functools
import gc
import json
import pathlib
import re
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from typing import Any

from calrec_jax.errors import CalrecError
from calrec_jax.model_dir import checkpoint_folder, saved_steps

METADATA = "_CHECKPOINT_METADATA"
_ITEMS = "item_handlers"  # in METADATA: what was saved together
_FILES = {"position": "metadata", "metrics": "metrics"}  # of JSON; arrays have a _METADATA
_PATIENCE = 2.0  # seconds
_LONGEST = 200  # characters of a library's message
_UNREADABLE = "Encountered error while reading array"  # Orbax's words for TensorStore's errors


@contextlib.contextmanager
def reading(directory: pathlib.Path, step: int) -> Iterator[None]:
    """While active, what a damaged checkpoint makes Orbax and TensorStore raise is one line.

    Raises:
      CalrecError: a part of it is missing or damaged, or it was removed meanwhile.
    """
    folder = checkpoint_folder(directory, step)

    def as_one_line(error: Exception) -> CalrecError:
        if not _is_being_removed(folder):
            return _damaged(directory, step, error)
        return CalrecError(
            f"checkpoint {step} in {directory} was removed while it was read, as by a training "
            f"that has a better one: run the same command again"
        )

    with _damage_named(as_one_line):
        _require_items(folder)
        yield


@contextlib.contextmanager
def reading_t5x(folder: pathlib.Path) -> Iterator[None]:
    """As `reading`, for the folder of a checkpoint that T5X wrote."""

    def as_one_line(error: Exception) -> CalrecError:
        return CalrecError(f"{folder} is damaged ({_cause(folder, error)}): copy it whole")

    with _damage_named(as_one_line):
        if not (folder / "state" / "_METADATA").is_file():
            raise NotWhole("state/_METADATA is missing")
        yield


@contextlib.contextmanager
def _damage_named(as_one_line: Callable[[Exception], CalrecError]) -> Iterator[None]:
    """While active, an exception that a damaged file causes is raised as `as_one_line` gives it."""
    before = sys.unraisablehook
    sys.unraisablehook = functools.partial(_show_unraisable, before)
    try:
        yield
    except Exception as error:
        if not _is_damage(error):
            sys.unraisablehook = before
            raise
        line = as_one_line(error)
        _settle(error)
        raise line from error
    sys.unraisablehook = before


def _settle(error: Exception) -> None:
    """Waits for reads that are still under way, and collects what they leave.

    Otherwise what they raise on their way out would appear later, anywhere in the program.
    """
    traceback.clear_frames(error.__traceback__)
    for _ in range(3):
        time.sleep(0.1)
        with contextlib.suppress(Exception):
            gc.collect()


def _show_unraisable(before: Callable[[Any], None], unraisable: Any) -> None:
    """Calls the hook `before`, except for what follows from the first array that cannot be read.

    That one ends Orbax's event loop; the reads of the others, still under way, would each show a
    traceback, then or later, because they have no loop to return to.

    Args:
      unraisable: see `sys.unraisablehook`.
    """
    text = str(unraisable.exc_value)
    if text != "Event loop is closed" and not text.startswith(_UNREADABLE):
        before(unraisable)


def require_losses(directory: pathlib.Path) -> None:
    """Checks that the losses, by which checkpoints are ranked, are there as they were saved.

    Raises:
      CalrecError: the losses of a checkpoint are missing or damaged.
    """
    for step in saved_steps(directory):
        folder = checkpoint_folder(directory, step)
        losses = folder / "metrics" / _FILES["metrics"]
        try:
            if losses.is_file():
                json.loads(losses.read_text())
            elif losses.parent.is_dir() or (
                (folder / METADATA).is_file() and "metrics" in _items(folder)
            ):
                raise NotWhole("metrics/metrics is missing")
        except (OSError, ValueError, NotWhole) as error:
            if not _is_being_removed(folder):
                raise _damaged(directory, step, error) from error


def _is_being_removed(folder: pathlib.Path) -> bool:
    """Whether a checkpoint is gone in a moment, removed by a training that has a better one."""
    deadline = time.monotonic() + _PATIENCE
    while folder.exists():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.05)
    return True


def _is_damage(error: Exception) -> bool:
    """Whether an exception is one that damaged files cause.

    TensorStore's are ValueErrors that begin as "DATA_LOSS: "; Orbax wraps some of them.
    """
    if isinstance(error, (OSError, json.JSONDecodeError, UnicodeDecodeError, NotWhole)):
        return True
    text = str(error)
    if isinstance(error, ValueError):
        return re.match("[A-Z_]+: ", text) is not None
    return type(error) is Exception and text.startswith(_UNREADABLE)


class NotWhole(Exception):
    """A part of a checkpoint is missing; the message says which."""


def _require_items(folder: pathlib.Path) -> None:
    """Raises NotWhole where something that was saved is not there, or as `_items`."""
    for item in _items(folder):
        name = f"{item}/{_FILES.get(item, '_METADATA')}"
        if not (folder / name).is_file():
            raise NotWhole(f"{name} is missing")


def _items(folder: pathlib.Path) -> list[str]:
    """The items that were saved together. Raises NotWhole or JSONDecodeError: none are named."""
    path = folder / METADATA
    if not path.is_file():
        raise NotWhole(f"{METADATA} is missing")
    described = json.loads(path.read_text())
    if not isinstance(described, dict) or not isinstance(described.get(_ITEMS), dict):
        raise NotWhole(f"{METADATA} does not say what was saved")
    return list(described[_ITEMS])


def _damaged(directory: pathlib.Path, step: int, error: Exception) -> CalrecError:
    others = [other for other in saved_steps(directory) if other != step]
    before = [other for other in others if other < step]
    stage, folder = directory.parent.name, checkpoint_folder(directory, step).name
    if before:
        remedy = f"or remove {folder}: the one before it is {stage}:{before[-1]}"
    elif others:
        remedy = f"or remove {folder}: none is before it, and {stage}:{others[0]} comes after it"
    else:
        remedy = "there is no other"
    cause = _cause(directory / folder, error)
    return CalrecError(
        f"checkpoint {step} in {directory} is damaged ({cause}): copy it whole, {remedy}"
    )


def _cause(folder: pathlib.Path, error: Exception) -> str:
    """What is wrong: the file that is empty or cut, where there is one, otherwise the error."""
    if isinstance(error, NotWhole):
        return str(error)
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        if not path.stat().st_size:
            return f"{path.relative_to(folder)} is empty"
        if isinstance(error, json.JSONDecodeError) and path.read_bytes() == error.doc.encode():
            return f"{path.relative_to(folder)} is no JSON"
    text = (str(error) or type(error).__name__).splitlines()[0]
    return text if len(text) <= _LONGEST else f"{text[:_LONGEST]} ..."
