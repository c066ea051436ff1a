"""The type of a tree of parameters."""

from typing import Any

Params = Any
"""Nested dicts of a model's parameters, or of a part of them: arrays, or ShapeDtypeStructs."""
