"""manifest.json: what a MODEL_DIR was made with, held against whoever comes back to it."""

from __future__ import annotations

import json
import os
import pathlib
from collections.abc import Mapping
from typing import Any

from calrec_jax.errors import CalrecError

NAME = "manifest.json"


def read(model_dir: str | pathlib.Path) -> dict[str, Any] | None:
    """The manifest of `model_dir`, or None where there is none.

    Raises:
      CalrecError: it is not JSON.
    """
    path = pathlib.Path(model_dir) / NAME
    if not path.exists():
        return None
    try:
        return json.loads(path.read_text())
    except ValueError as error:
        raise CalrecError(f"{path} is damaged: {error}") from error


def claim(model_dir: str | pathlib.Path, manifest: Mapping[str, Any]) -> None:
    """Writes `manifest`, or holds it against the one that is there.

    `versions` may differ, and stages may be added; everything else must be equal.

    Raises:
      CalrecError: MODEL_DIR belongs to another configuration; the line names the first difference.
    """
    manifest = json.loads(json.dumps(manifest))  # as it will be read back: lists for tuples
    model_dir = pathlib.Path(model_dir)
    there = read(model_dir)
    if there is not None:
        both = there["stages"].keys() & manifest["stages"].keys()
        for name, a, b in [
            ("model", there["model"], manifest["model"]),
            ("vocabulary", there["vocabulary"], manifest["vocabulary"]),
            ("data", there["data"], manifest["data"]),
            *[(stage, there["stages"][stage], manifest["stages"][stage]) for stage in sorted(both)],
        ]:
            _require_equal(model_dir, name, a, b)
        manifest["stages"] = there["stages"] | manifest["stages"]
    model_dir.mkdir(parents=True, exist_ok=True)
    temporary = model_dir / f"{NAME}.tmp"
    temporary.write_text(json.dumps(manifest, indent=2, sort_keys=True) + "\n")
    os.replace(temporary, model_dir / NAME)


def _require_equal(model_dir: pathlib.Path, name: str, there: Any, here: Any) -> None:
    if isinstance(there, dict) and isinstance(here, dict):
        for key in sorted(there.keys() | here.keys()):
            _require_equal(model_dir, f"{name}.{key}", there.get(key), here.get(key))
    elif there != here:
        raise CalrecError(
            f"MODEL_DIR {model_dir} was made with {name} = {there!r}, this run has {here!r}: "
            f"give the run a MODEL_DIR of its own, or the old configuration"
        )
