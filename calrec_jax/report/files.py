"""Reading what the report shows of a run: its manifest and the files of its evaluations."""

from __future__ import annotations

import json
import os
import pathlib
from collections.abc import Iterable, Mapping
from typing import Any

from calrec_jax.errors import CalrecError
from calrec_jax.metrics import METRICS
from calrec_jax.model_dir import ModelDir
from calrec_jax.training import manifest as manifests

_REMEDY = "run `calrec eval` again, which keeps the predictions"
_PARTS = (
    "model",
    "n",
    "users",
    "items",
    "domain",
    "split",
    "config",
    "metrics",
    "baselines",
    "paired",
    "beyond_accuracy",
    "slices",
    "histories",
    "choices",
    "data",
)
_SETTINGS = ("checkpoint", "retrieval", "seen", "shuffle_history", "bootstrap_samples", "seed")


def read_manifest(model_dir: str | os.PathLike) -> Mapping[str, Any]:
    """The manifest of a run. Raises CalrecError where there is none, or it is damaged."""
    manifest = manifests.read(model_dir)
    if manifest is None:
        raise CalrecError(
            f"{model_dir} is no MODEL_DIR: it has no manifest.json; give the folder that "
            f"`calrec train` wrote"
        )
    return manifest


def read_json(path: pathlib.Path) -> Any:
    """What a JSON file holds. Raises CalrecError where it is damaged."""
    try:
        return json.loads(path.read_text("utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise CalrecError(f"{path} is damaged: remove it, and make it again ({error})") from error


def require(path: pathlib.Path, value: Any, names: Iterable[str], remedy: str) -> None:
    """Raises CalrecError where a value is no object, or lacks a name that this version writes.

    Args:
      path: the file that the value is from.
      remedy: what the user can do, for the error.
    """
    if not isinstance(value, dict):
        raise CalrecError(f"{path} is damaged, with {str(value)[:20]!r} for an object: {remedy}")
    for name in names:
        if name not in value:
            raise CalrecError(f"{path} has no {name!r}: an earlier version made it; {remedy}")


def read_metrics(path: pathlib.Path) -> dict[str, Any]:
    """What a metrics.json holds.

    Raises:
      CalrecError: it is damaged, or lacks what this version writes.
    """
    result = read_json(path)
    require(path, result, _PARTS, _REMEDY)
    require(path, result["config"], _SETTINGS, _REMEDY)
    require(path, result["metrics"], METRICS, _REMEDY)
    for part in ("baselines", "paired", "beyond_accuracy", "slices", "histories", "choices"):
        require(path, result[part], (), _REMEDY)
    return result


def read_slices(path: pathlib.Path, slicings: Iterable[str]) -> dict[str, dict[str, Any]]:
    """What a slices.json holds: {domain: {user: {slicing: slice}}}.

    Args:
      slicings: the names of the slicings in the metrics.json beside it.

    Raises:
      CalrecError: it is damaged.
    """
    slicings, domains = list(slicings), read_json(path)
    require(path, domains, (), _REMEDY)
    for users in domains.values():
        require(path, users, (), _REMEDY)
        for slices_of_user in users.values():
            require(path, slices_of_user, slicings, _REMEDY)
    return domains


def evaluations(model_dir: str | os.PathLike) -> dict[str, dict[str, Any]]:
    """{name: what its metrics.json holds} of the finished evaluations.

    Evaluations that are named as their split come first; within both groups they are by name.

    Raises:
      CalrecError: `model_dir` is no MODEL_DIR, or as `read_metrics`.
    """
    read_manifest(model_dir)
    folders = [folder for folder in ModelDir(model_dir).evaluations() if folder.metrics.exists()]
    found = {folder.name: read_metrics(folder.metrics) for folder in folders}
    return dict(sorted(found.items(), key=lambda item: item[0] != item[1]["split"]))
