"""Checkpoints that are not whole, half copied for example: told in one line, never read wrongly."""

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

from calrec_jax.errors import CalrecError

PREFIX = "checkpoint"
METADATA = "_CHECKPOINT_METADATA"
_ITEMS = "item_handlers"  # in METADATA: what was saved together
_FILES = {"position": "metadata", "metrics": "metrics"}  # of JSON; arrays have a _METADATA
_PATIENCE = 2.0  # seconds
_LONGEST = 200  # characters of what a library says
_UNREADABLE = "Encountered error while reading array"  # Orbax's words for what TensorStore tells


def folder_of(directory: pathlib.Path, step: int) -> pathlib.Path:
    """Of a checkpoint."""
    return directory / f"{PREFIX}_{step}"


def steps(directory: pathlib.Path) -> list[int]:
    """Those of the checkpoints in a directory, half written ones left out, the first first."""
    found = (re.fullmatch(rf"{PREFIX}_(\d+)", path.name) for path in directory.glob(f"{PREFIX}_*"))
    return sorted(int(match[1]) for match in found if match)


@contextlib.contextmanager
def reading(directory: pathlib.Path, step: int) -> Iterator[None]:
    """While active, what a damaged checkpoint makes Orbax and TensorStore raise is one line.

    Raises:
      CalrecError: a part of it is missing or damaged, or it was removed meanwhile.
    """
    folder = folder_of(directory, step)

    def told(error: Exception) -> CalrecError:
        if not _goes(folder):
            return _damaged(directory, step, error)
        return CalrecError(
            f"checkpoint {step} in {directory} was removed while it was read, as by a training "
            f"that has a better one: run the same command again"
        )

    with _told(told):
        _require_items(folder)
        yield


@contextlib.contextmanager
def reading_t5xs(folder: pathlib.Path) -> Iterator[None]:
    """As `reading`, of the folder of one of T5X's checkpoints."""

    def told(error: Exception) -> CalrecError:
        return CalrecError(f"{folder} is damaged ({_what(folder, error)}): copy it whole")

    with _told(told):
        if not (folder / "state" / "_METADATA").is_file():
            raise NotWhole("state/_METADATA is missing")
        yield


@contextlib.contextmanager
def _told(make_error: Callable[[Exception], CalrecError]) -> Iterator[None]:
    before = sys.unraisablehook
    sys.unraisablehook = functools.partial(_tell_unraisable, before)
    try:
        yield
    except Exception as error:
        if not _tells_of_damage(error):
            sys.unraisablehook = before
            raise
        told = make_error(error)
        _settle(error)
        raise told from error
    sys.unraisablehook = before


def _settle(error: Exception) -> None:
    """Lets the reads that are still under way end here, and what they leave go.

    Later, what they raise on their way out would come up wherever Python is just then.
    """
    traceback.clear_frames(error.__traceback__)
    for _ in range(3):
        time.sleep(0.1)
        with contextlib.suppress(Exception):
            gc.collect()


def _tell_unraisable(before: Callable, unraisable) -> None:
    """The first array that cannot be read ends Orbax's event loop. The reads of the others, still
    under way, would each tell in a traceback, then or later, that they have nowhere to go."""
    text = str(unraisable.exc_value)
    if text != "Event loop is closed" and not text.startswith(_UNREADABLE):
        before(unraisable)


def require_losses(directory: pathlib.Path) -> None:
    """Holds that the losses, by which checkpoints are ranked, are there as they were saved.

    Raises:
      CalrecError: those of a checkpoint are missing or damaged.
    """
    for step in steps(directory):
        folder = folder_of(directory, step)
        losses = folder / "metrics" / _FILES["metrics"]
        try:
            if losses.is_file():
                json.loads(losses.read_text())
            elif losses.parent.is_dir() or (
                (folder / METADATA).is_file() and "metrics" in _items(folder)
            ):
                raise NotWhole("metrics/metrics is missing")
        except (OSError, ValueError, NotWhole) as error:
            if not _goes(folder):
                raise _damaged(directory, step, error) from error


def _goes(folder: pathlib.Path) -> bool:
    """Whether a checkpoint is just being removed, by a training that has a better one."""
    deadline = time.monotonic() + _PATIENCE
    while folder.exists():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.05)
    return True


def _tells_of_damage(error: Exception) -> bool:
    """What TensorStore raises is a ValueError that begins as "DATA_LOSS: "; Orbax hides some."""
    if isinstance(error, (OSError, json.JSONDecodeError, UnicodeDecodeError, NotWhole)):
        return True
    text = str(error)
    if isinstance(error, ValueError):
        return re.match("[A-Z_]+: ", text) is not None
    return type(error) is Exception and text.startswith(_UNREADABLE)


class NotWhole(Exception):
    """What is missing, in words."""


def _require_items(folder: pathlib.Path) -> None:
    """Raises NotWhole where something that was saved is not there, or as `_items`."""
    for item in _items(folder):
        name = f"{item}/{_FILES.get(item, '_METADATA')}"
        if not (folder / name).is_file():
            raise NotWhole(f"{name} is missing")


def _items(folder: pathlib.Path) -> list[str]:
    """What was saved together. Raises NotWhole or JSONDecodeError where nothing says so."""
    path = folder / METADATA
    if not path.is_file():
        raise NotWhole(f"{METADATA} is missing")
    described = json.loads(path.read_text())
    if not isinstance(described, dict) or not isinstance(described.get(_ITEMS), dict):
        raise NotWhole(f"{METADATA} does not say what was saved")
    return list(described[_ITEMS])


def _damaged(directory: pathlib.Path, step: int, error: Exception) -> CalrecError:
    others = [other for other in steps(directory) if other != step]
    before = [other for other in others if other < step]
    stage, folder = directory.parent.name, folder_of(directory, step).name
    if before:
        remedy = f"or remove {folder}: the one before it is {stage}:{before[-1]}"
    elif others:
        remedy = f"or remove {folder}: none is before it, and {stage}:{others[0]} comes after it"
    else:
        remedy = "there is no other"
    what = _what(directory / folder, error)
    return CalrecError(
        f"checkpoint {step} in {directory} is damaged ({what}): copy it whole, {remedy}"
    )


def _what(folder: pathlib.Path, error: Exception) -> str:
    """What is wrong, by the file where one is empty or cut, else as the error says it."""
    if isinstance(error, NotWhole):
        return str(error)
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        if not path.stat().st_size:
            return f"{path.relative_to(folder)} is empty"
        if isinstance(error, json.JSONDecodeError) and path.read_bytes() == error.doc.encode():
            return f"{path.relative_to(folder)} is no JSON"
    text = (str(error) or type(error).__name__).splitlines()[0]
    return text if len(text) <= _LONGEST else f"{text[:_LONGEST]} ..."
