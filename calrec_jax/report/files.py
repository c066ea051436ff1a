"""What the report reads of a run: its manifest and the files of its evaluations."""

from __future__ import annotations

import json
import pathlib
from collections.abc import Mapping
from typing import Any

from calrec_jax.errors import CalrecError
from calrec_jax.train import manifest as manifests

_PARTS = ("model", "choices", "beyond_accuracy", "slices", "histories")


def read_manifest(model_dir: str | pathlib.Path) -> Mapping[str, Any]:
    """The manifest of a run. Raises CalrecError where there is none, or it is damaged."""
    manifest = manifests.read(model_dir)
    if manifest is None:
        raise CalrecError(
            f"{model_dir} is no MODEL_DIR: it has no {manifests.NAME}; give the folder that "
            f"`calrec train` wrote"
        )
    return manifest


def read_json(path: pathlib.Path) -> Any:
    """What a JSON file holds. Raises CalrecError where it is damaged."""
    try:
        return json.loads(path.read_text("utf-8"))
    except ValueError as error:
        raise CalrecError(f"{path} is damaged: remove it, and make it again ({error})") from error


def read_metrics(path: pathlib.Path) -> dict[str, Any]:
    """What a metrics.json holds.

    Raises:
      CalrecError: it is damaged, or lacks what this version writes.
    """
    metrics = read_json(path)
    lacking = [part for part in _PARTS if not isinstance(metrics, dict) or part not in metrics]
    if lacking:
        raise CalrecError(
            f"{path} has no {lacking[0]!r}: an earlier version made it; run `calrec eval` again, "
            f"which keeps the predictions"
        )
    return metrics


def evaluations(model_dir: str | pathlib.Path) -> dict[str, dict[str, Any]]:
    """{name: what its metrics.json holds} of the evaluations that are finished, by name.

    Raises:
      CalrecError: `model_dir` is no MODEL_DIR, or as `read_metrics`.
    """
    read_manifest(model_dir)
    paths = sorted(pathlib.Path(model_dir).glob("eval/*/metrics.json"))
    return {path.parent.name: read_metrics(path) for path in paths}
