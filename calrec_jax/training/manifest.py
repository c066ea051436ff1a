"""manifest.json: what a MODEL_DIR was made with. A run that comes back to it must have the same."""

from __future__ import annotations

import contextlib
import importlib.metadata
import json
import os
from collections.abc import Mapping
from typing import Any

import calrec_jax
from calrec_jax import files
from calrec_jax.errors import CalrecError
from calrec_jax.locks import locked_folder
from calrec_jax.model_dir import ModelDir

_BASE = "base"  # in the entry of a stage with LoRA, see `weights`
_PARTS_READ = {"versions", "vocabulary", "stages"}  # by the report, and to compare vocabularies


def read(model_dir: str | os.PathLike) -> dict[str, Any] | None:
    """The manifest of `model_dir`, or None where there is none.

    Raises:
      CalrecError: the file is damaged.
    """
    path = ModelDir(model_dir).manifest
    if not path.exists():
        return None
    try:
        manifest = json.loads(path.read_text())
    except (OSError, ValueError, RecursionError) as error:
        raise CalrecError(f"{path} is damaged: {error}") from error
    lacking = _PARTS_READ - manifest.keys() if isinstance(manifest, dict) else _PARTS_READ
    if lacking:
        raise CalrecError(f"{path} is damaged: it has no {', '.join(sorted(lacking))}")
    stages = manifest["stages"]
    if not isinstance(stages, dict) or not all(isinstance(s, dict) for s in stages.values()):
        raise CalrecError(f"{path} is damaged: its stages are no objects")
    return manifest


def versions() -> dict[str, str]:
    """The versions of the packages that decide what weights and optimizer states are."""
    packages = ("jax", "flax", "optax", "orbax-checkpoint")
    installed = {name: importlib.metadata.version(name) for name in packages}
    return {"calrec_jax": calrec_jax.__version__} | installed


def locked(model_dir: str | os.PathLike) -> contextlib.AbstractContextManager[None]:
    """While active, no other process trains in `model_dir`; any process may read there.

    Raises:
      CalrecError: another one does, or `model_dir` cannot be written.
    """
    return locked_folder(
        ModelDir(model_dir).lock,
        lambda holder: (
            f"{holder} trains in MODEL_DIR {model_dir}: wait for its end, or give this run a "
            f"MODEL_DIR of its own"
        ),
        f"cannot write MODEL_DIR {model_dir}",
    )


def claim(model_dir: str | os.PathLike, manifest: Mapping[str, Any]) -> None:
    """Writes `manifest`, once it is sure to agree with the one that is there.

    `versions` may differ, and stages may be added. A stage that has saved nothing yet may change;
    where none has, so may everything: a mistake that ended a run at its start is mended in place.
    Everything else must be equal.

    Raises:
      CalrecError: MODEL_DIR belongs to another configuration; the line names the first difference.
    """
    manifest, folder = files.as_json(manifest), ModelDir(model_dir)
    there = read(folder)
    stages = there["stages"] if there else {}
    saved = [name for name in stages if folder.stage(name).has_saved()]
    if saved:
        for part in ("model", "vocabulary", "data"):
            _require_equal(folder, part, there.get(part), manifest[part])
        for name in sorted(manifest["stages"].keys() & saved):
            if _BASE in stages[name]:
                manifest["stages"][name][_BASE] = stages[name][_BASE]
            _require_equal(folder, name, stages[name], manifest["stages"][name])
        manifest["stages"] = stages | manifest["stages"]
    folder.path.mkdir(parents=True, exist_ok=True)
    _write(folder, manifest)


def note_base(model_dir: str | os.PathLike, stage: str, base: Mapping[str, Any]) -> None:
    """Writes into the entry of a stage what its adapters are about to be trained on."""
    manifest = read(model_dir)
    manifest["stages"][stage][_BASE] = dict(base)
    _write(ModelDir(model_dir), manifest)


def _write(folder: ModelDir, manifest: Mapping[str, Any]) -> None:
    # Not `write_json`: a setting may be infinite.
    files.write_text(folder.manifest, json.dumps(manifest, indent=2, sort_keys=True) + "\n")


def require(model_dir: str | os.PathLike, required: Mapping[str, Any], source: str) -> None:
    """Raises CalrecError where weights were made with something else than a run requires.

    Args:
      model_dir: of the weights.
      required: a part of a manifest; only what it names is compared.
      source: the name of the weights, for the error.

    Raises:
      CalrecError: there is no manifest, or one that differs; the line names the first difference.
    """
    there = read(model_dir)
    if there is None:
        raise CalrecError(
            f"{source!r}: {model_dir} has no manifest.json, nothing says what it holds"
        )
    mismatch = _mismatch("", there, files.as_json(required))
    if mismatch:
        name, had, has = mismatch
        raise CalrecError(
            f"{source!r} was trained with {name} = {had!r}, this run has {has!r}: give both the "
            f"same, or other weights"
        )


def _mismatch(name: str, there: Any, required: Any) -> tuple[str, Any, Any] | None:
    """(name, value there, value required) of the first difference in what `required` names."""
    if not isinstance(required, dict):
        return None if there == required else (name, there, required)
    inner = there if isinstance(there, dict) else {}
    parts = (
        _mismatch(f"{name}.{key}".lstrip("."), inner.get(key), required[key]) for key in required
    )
    return next(filter(None, parts), None)


def _require_equal(folder: ModelDir, name: str, there: Any, here: Any) -> None:
    if isinstance(there, dict) and isinstance(here, dict):
        for key in sorted(there.keys() | here.keys()):
            _require_equal(folder, f"{name}.{key}", there.get(key), here.get(key))
    elif there != here:
        other = "the old data" if ".checksums." in name else "the old configuration"
        raise CalrecError(
            f"MODEL_DIR {folder} was made with {name} = {there!r}, this run has {here!r}: "
            f"give the run a MODEL_DIR of its own, or {other}"
        )
