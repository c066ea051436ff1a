"""manifest.json: what a MODEL_DIR was made with, held against whoever comes back to it."""

from __future__ import annotations

import contextlib
import importlib.metadata
import json
import pathlib
from collections.abc import Mapping
from typing import Any

import calrec_jax
from calrec_jax import files
from calrec_jax.errors import CalrecError
from calrec_jax.locks import locked_folder

NAME = "manifest.json"
_BASE = "base"  # of a stage with LoRA, see `weights`
_READ = {"versions", "vocabulary", "stages"}  # by the report, and to compare vocabularies


def read(model_dir: str | pathlib.Path) -> dict[str, Any] | None:
    """The manifest of `model_dir`, or None where there is none.

    Raises:
      CalrecError: it is no manifest.
    """
    path = pathlib.Path(model_dir) / NAME
    if not path.exists():
        return None
    try:
        manifest = json.loads(path.read_text())
    except (OSError, ValueError, RecursionError) as error:
        raise CalrecError(f"{path} is damaged: {error}") from error
    lacking = _READ - manifest.keys() if isinstance(manifest, dict) else _READ
    if lacking:
        raise CalrecError(f"{path} is damaged: it has no {', '.join(sorted(lacking))}")
    stages = manifest["stages"]
    if not isinstance(stages, dict) or not all(isinstance(s, dict) for s in stages.values()):
        raise CalrecError(f"{path} is damaged: its stages are none")
    return manifest


def versions() -> dict[str, str]:
    """Of the packages that make what weights and optimizer states are."""
    packages = ("jax", "flax", "optax", "orbax-checkpoint")
    found = {name: importlib.metadata.version(name) for name in packages}
    return {"calrec_jax": calrec_jax.__version__} | found


def locked(model_dir: str | pathlib.Path) -> contextlib.AbstractContextManager[None]:
    """While active, no other process trains in `model_dir`; any process may read there.

    Raises:
      CalrecError: another one does, or `model_dir` cannot be written.
    """
    return locked_folder(
        pathlib.Path(model_dir) / "lock",
        lambda holder: (
            f"{holder} trains in MODEL_DIR {model_dir}: wait for its end, or give this run a "
            f"MODEL_DIR of its own"
        ),
        f"cannot write MODEL_DIR {model_dir}",
    )


def claim(model_dir: str | pathlib.Path, manifest: Mapping[str, Any]) -> None:
    """Writes `manifest`, or holds it against the one that is there.

    `versions` may differ, and stages may be added. A stage that has saved nothing yet may change,
    and where none has, so may everything: a mistake that ended a run at its start is mended in
    place. Everything else must be equal.

    Raises:
      CalrecError: MODEL_DIR belongs to another configuration; the line names the first difference.
    """
    manifest = files.as_json(manifest)
    model_dir = pathlib.Path(model_dir)
    there = read(model_dir)
    stages = there["stages"] if there else {}
    saved = [stage for stage in stages if has_saved(model_dir / stage)]
    if saved:
        for part in ("model", "vocabulary", "data"):
            _require_equal(model_dir, part, there.get(part), manifest[part])
        for stage in sorted(manifest["stages"].keys() & saved):
            if _BASE in stages[stage]:
                manifest["stages"][stage][_BASE] = stages[stage][_BASE]
            _require_equal(model_dir, stage, stages[stage], manifest["stages"][stage])
        manifest["stages"] = stages | manifest["stages"]
    model_dir.mkdir(parents=True, exist_ok=True)
    _write(model_dir, manifest)


def note_base(model_dir: pathlib.Path, stage: str, base: Mapping[str, Any]) -> None:
    """Writes into the entry of a stage what its adapters are about to be trained on."""
    manifest = read(model_dir)
    manifest["stages"][stage][_BASE] = dict(base)
    _write(model_dir, manifest)


def _write(model_dir: pathlib.Path, manifest: Mapping[str, Any]) -> None:
    files.write_text(model_dir / NAME, json.dumps(manifest, indent=2, sort_keys=True) + "\n")


def require(model_dir: str | pathlib.Path, needs: Mapping[str, Any], source: str) -> None:
    """Holds what a run needs of weights against what they were made with.

    Args:
      needs: a part of a manifest; only what it names is compared.
      source: what the weights are called, for the error.

    Raises:
      CalrecError: there is no manifest, or the line names the first difference.
    """
    there = read(model_dir)
    if there is None:
        raise CalrecError(f"{source!r}: {model_dir} has no {NAME}, nothing says what it holds")
    found = _mismatch("", there, files.as_json(needs))
    if found:
        name, had, has = found
        raise CalrecError(
            f"{source!r} was trained with {name} = {had!r}, this run has {has!r}: give both the "
            f"same, or other weights"
        )


def _mismatch(name: str, there: Any, needs: Any) -> tuple[str, Any, Any] | None:
    """(name, value there, value needed) of the first difference in what `needs` names."""
    if not isinstance(needs, dict):
        return None if there == needs else (name, there, needs)
    inner = there if isinstance(there, dict) else {}
    found = (_mismatch(f"{name}.{key}".lstrip("."), inner.get(key), needs[key]) for key in needs)
    return next(filter(None, found), None)


def has_saved(stage_dir: pathlib.Path) -> bool:
    """Whether a stage has a checkpoint, and so needs no other start."""
    return any((stage_dir / "checkpoints").glob("checkpoint_*[0-9]"))  # not those half written


def _require_equal(model_dir: pathlib.Path, name: str, there: Any, here: Any) -> None:
    if isinstance(there, dict) and isinstance(here, dict):
        for key in sorted(there.keys() | here.keys()):
            _require_equal(model_dir, f"{name}.{key}", there.get(key), here.get(key))
    elif there != here:
        other = "the old data" if ".checksums." in name else "the old configuration"
        raise CalrecError(
            f"MODEL_DIR {model_dir} was made with {name} = {there!r}, this run has {here!r}: "
            f"give the run a MODEL_DIR of its own, or {other}"
        )
