"""A sweep's YAML file: the trials that it describes. It has

    base_args: [--gin_file=gin/runs/quickstart.gin]     the arguments of `calrec train`
    metric: {name: ndcg@10, mode: max, split: validation}   what trials are compared by

and one of

    grid: {losses.LossConfig.alpha: [0, 0.125], BATCH_SIZE: [16, 32]}     all combinations
    zip:  {losses.LossConfig.alpha: [0, 0.125], BATCH_SIZE: [16, 32]}     first with first, ...
    list: [{name: no contrast, overrides: {losses.LossConfig.alpha: 0}}]  one by one

Values are gin literals, so a string needs quotes in its quotes: '"items"'. An axis of a grid may
give its points names, each with overrides: {stages: {first: {STAGES: ..., CHECKPOINT: ...}, ...}}.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import itertools
import pathlib
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import yaml

from calrec_jax.configs.gin_errors import hint
from calrec_jax.errors import CalrecError
from calrec_jax.metrics import METRICS

_KEYS = ("base_args", "metric", "grid", "zip", "list")
_NAME = re.compile(r"[\w./]+")

Point = tuple[str, dict[str, str]]
"""(name, {gin name: gin literal})."""


@dataclasses.dataclass(frozen=True)
class Trial:
    """One point of a sweep.

    Attributes:
      name: what tables show.
      overrides: {gin name: gin literal}.
    """

    name: str
    overrides: Mapping[str, str]

    @functools.cached_property
    def id(self) -> str:
        """A hash of the overrides, the same in every version. It names the trial's folder."""
        text = "\n".join(f"{name}={value}" for name, value in sorted(self.overrides.items()))
        return hashlib.sha1(text.encode()).hexdigest()[:10]


@dataclasses.dataclass(frozen=True)
class Sweep:
    """A sweep, as its file describes it.

    Attributes:
      base_args: arguments of `calrec train` that all trials share.
      metric, mode: what trials are compared by, and whether "max" or "min" is best.
      split: the split that is evaluated.
    """

    base_args: tuple[str, ...]
    metric: str
    mode: str
    split: str
    trials: tuple[Trial, ...]

    @property
    def settings(self) -> dict[str, Any]:
        """The settings that all trials of a sweep directory share."""
        return {"base_args": list(self.base_args), "split": self.split}


def read(path: str | pathlib.Path) -> Sweep:
    """The sweep that a YAML file describes.

    Raises:
      CalrecError: the file cannot be read, or is not as above; the line says where.
    """
    try:
        return _sweep(yaml.safe_load(pathlib.Path(path).read_text("utf-8")))
    except OSError as error:
        raise CalrecError(f"cannot read {path}: {error.strerror}") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        place = getattr(error, "problem_mark", None)
        line = f" in line {place.line + 1}" if place else ""
        reason = getattr(error, "problem", None) or error
        raise CalrecError(f"{path} is not YAML{line}: {reason}") from error
    except CalrecError as error:
        raise CalrecError(f"{path}: {error}") from None


def _sweep(document: Any) -> Sweep:
    if not isinstance(document, dict):
        raise CalrecError(f"not a mapping with {', '.join(_KEYS)}")
    for key in document:
        if key not in _KEYS:
            raise CalrecError(f"unknown key {key}{hint(str(key), _KEYS)}")
    kinds = [kind for kind in _POINTS if kind in document]
    if len(kinds) != 1:
        raise CalrecError(f"give one of grid, zip and list, not {', '.join(kinds) or 'none'}")
    points = list(_POINTS[kinds[0]](document[kinds[0]]))
    trials = [Trial(name, overrides) for name, overrides in points]
    if not trials:
        raise CalrecError(f"{kinds[0]} describes no trial")
    names: dict[str, str] = {}
    for trial in trials:
        if trial.id in names:
            raise CalrecError(f"{names[trial.id]!r} and {trial.name!r} have the same overrides")
        names[trial.id] = trial.name
    return Sweep(_base_args(document), *_metric(document), tuple(trials))


def _base_args(document: Mapping[str, Any]) -> tuple[str, ...]:
    args = document.get("base_args")
    if not isinstance(args, list) or not args or not all(isinstance(arg, str) for arg in args):
        raise CalrecError("base_args must be a list of arguments of `calrec train`")
    if any(arg.startswith("--gin.MODEL_DIR=") for arg in args):
        raise CalrecError("base_args set MODEL_DIR: each trial has one of its own")
    return tuple(args)


def _metric(document: Mapping[str, Any]) -> tuple[str, str, str]:
    metric = document.get("metric")
    if not isinstance(metric, dict) or not {"name"} <= metric.keys() <= {"name", "mode", "split"}:
        raise CalrecError("metric must be {name: ..., mode: max or min, split: test or validation}")
    name, mode, split = metric["name"], metric.get("mode", "max"), metric.get("split", "validation")
    for key, value, known in (
        ("name", name, METRICS),
        ("mode", mode, ("max", "min")),
        ("split", split, ("test", "validation")),
    ):
        if value not in known:
            raise CalrecError(f"metric has the unknown {key} {value}{hint(str(value), known)}")
    return name, mode, split


def _grid(axes: Any) -> Iterator[Point]:
    columns = []
    for axis, values in _axes("grid", axes).items():
        if isinstance(values, dict):
            columns.append([(str(label), _overrides(bound)) for label, bound in values.items()])
        else:
            columns.append(_column(axis, values))
    for points in itertools.product(*columns):
        yield _joined(points)


def _zip(axes: Any) -> Iterator[Point]:
    columns = [_column(axis, values) for axis, values in _axes("zip", axes).items()]
    lengths = {len(column) for column in columns}
    if len(lengths) > 1:
        raise CalrecError(f"the axes of zip have different lengths: {sorted(lengths)}")
    for points in zip(*columns, strict=True):
        yield _joined(points)


def _list(entries: Any) -> Iterator[Point]:
    if not isinstance(entries, list):
        raise CalrecError("list must be a list of {name, overrides}")
    for entry in entries:
        if not isinstance(entry, dict) or entry.keys() != {"name", "overrides"}:
            raise CalrecError(f"an entry of list must be {{name, overrides}}, not {entry!r}")
        yield str(entry["name"]), _overrides(entry["overrides"])


_POINTS = {"grid": _grid, "zip": _zip, "list": _list}


def _axes(kind: str, axes: Any) -> dict[str, Any]:
    if not isinstance(axes, dict):
        raise CalrecError(f"{kind} must be a mapping from gin names to lists of values")
    for axis, values in axes.items():
        if not values or not isinstance(values, (list, dict) if kind == "grid" else list):
            raise CalrecError(f"the axis {axis} of {kind} needs a list of values, not {values!r}")
    return axes


def _column(axis: str, values: Sequence[Any]) -> list[Point]:
    """The points of an axis that is one gin name."""
    overrides = [_overrides({axis: value}) for value in values]
    short = str(axis).rpartition(".")[2]
    return [(f"{short}={bound[axis]}", bound) for bound in overrides]


def _joined(points: Sequence[Point]) -> Point:
    """One point that has the overrides of all of `points`."""
    overrides: dict[str, str] = {}
    for _, bound in points:
        if twice := overrides.keys() & bound.keys():
            raise CalrecError(f"two axes set {', '.join(sorted(twice))}")
        overrides |= bound
    return ", ".join(name for name, _ in points), overrides


def _overrides(bindings: Any) -> dict[str, str]:
    """{gin name: gin literal} of an entry of the file."""
    if not isinstance(bindings, dict):
        raise CalrecError(f"overrides must map gin names to values, not {bindings!r}")
    for name in bindings:
        if not isinstance(name, str) or not _NAME.fullmatch(name):
            raise CalrecError(f"{name!r} is no gin name")
        if name == "MODEL_DIR":
            raise CalrecError("overrides set MODEL_DIR: each trial has one of its own")
    return {name: _literal(name, value) for name, value in bindings.items()}


def _literal(name: str, value: Any) -> str:
    """The gin literal of a value of the file; a string is one already."""
    if isinstance(value, str) and value.strip() and "\n" not in value.strip():
        return value.strip()
    if value is None or isinstance(value, (bool, int, float, list, dict)):
        return repr(value)
    raise CalrecError(f"{name}: {value!r} is no gin literal")
