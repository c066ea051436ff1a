"""Runs, as gin files describe them."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Sequence

from calrec_jax.configs import gin_config
from calrec_jax.configs.gin_config import Config
from calrec_jax.errors import CalrecError
from calrec_jax.model_dir import ModelDir
from calrec_jax.runs.baseline import BaselineRun
from calrec_jax.runs.run import Run

_PATHS = ("DATA_DIR", "MODEL_DIR", "VOCABULARY_PATH", "PRETRAINED")  # macros


def from_gin(files: Sequence[str], bindings: Sequence[str] = (), search_paths: str = "") -> Run:
    """The run that gin files and bindings describe.

    Raises:
      CalrecError: as `gin_config.parse` and `configured`.
    """
    return _configured(Run, files, bindings, search_paths)


def baseline_from_gin(
    files: Sequence[str], bindings: Sequence[str] = (), search_paths: str = ""
) -> BaselineRun:
    """The run of a baseline that gin files and bindings describe. Raises as `from_gin`."""
    return _configured(BaselineRun, files, bindings, search_paths)


def load_run(
    model_dir: str | os.PathLike, bindings: Sequence[str] = (), search_paths: str = ""
) -> Run:
    """The run that made MODEL_DIR, from its config.gin.

    Args:
      bindings: "NAME=VALUE" of gin, over those of config.gin.

    Raises:
      CalrecError: as `from_gin`, or `model_dir` has no config.gin.
    """
    path = ModelDir(model_dir).config
    if not path.is_file():
        raise CalrecError(f"{model_dir} is no MODEL_DIR of `calrec train`: it has no {path.name}")
    run = from_gin([str(path)], bindings, search_paths)
    # The folder may have been moved since it was made.
    return dataclasses.replace(run, model_dir=os.path.abspath(model_dir))


def _configured(
    cls: type[Config], files: Sequence[str], bindings: Sequence[str], search_paths: str
) -> Config:
    gin_config.parse(files, bindings, search_paths)
    gin_config.make_absolute(_PATHS)
    return gin_config.configured(cls)
