"""Libraries that only some vocabularies need."""

from __future__ import annotations

import importlib
from types import ModuleType

from calrec_jax.errors import CalrecError


def optional_library(name: str) -> ModuleType:
    """The module `name`. Raises CalrecError where it cannot be imported."""
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise CalrecError(
            f"this vocabulary needs the library {name}, which cannot be imported ({error}): "
            f"pip install {name}"
        ) from error
