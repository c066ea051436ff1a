"""config.gin of a run that was made in Python: a gin file by which the same run is made again."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping
from typing import Any

import numpy as np

from calrec_jax.data.vocabularies import Vocabulary
from calrec_jax.runs.run import Run
from calrec_jax.training.stages import Stage


def of_run(run: Run) -> str:
    """A gin file that describes `run`, and needs no other file.

    MODEL_DIR, DATA_DIR and VOCABULARY are macros, so that they can be given anew. A vocabulary that
    is none of `vocabularies` cannot be written down: its macro has to be given with the file.
    """
    gin = _GinFile()
    run = dataclasses.replace(run, model_dir=os.path.abspath(run.model_dir))
    gin.macros["MODEL_DIR"] = repr(run.model_dir)
    gin.macros["DATA_DIR"] = repr(os.path.abspath(run.data.data_dir))
    gin.macros["VOCABULARY"] = gin.vocabulary(run.data.vocabulary)
    gin.bind(run)
    return gin.text()


class _GinFile:
    """Imports, macros and bindings, as they come together."""

    _MACROS = {
        ("Run", "model_dir"): "MODEL_DIR",
        ("DataConfig", "data_dir"): "DATA_DIR",
        ("DataConfig", "vocabulary"): "VOCABULARY",
    }

    def __init__(self):
        self.macros: dict[str, str] = {}
        self._imports: dict[str, str] = {}  # {name in the file: module}
        self._bindings: dict[str, str] = {}

    def bind(self, config: Any, scope: str = "") -> str:
        """Binds all fields of a dataclass, in `scope` ("stage1/"). Returns the reference to it."""
        selector = self._selector(type(config))
        for field in dataclasses.fields(config):
            macro = self._MACROS.get((type(config).__name__, field.name))
            value = getattr(config, field.name)
            self._bindings[f"{scope}{selector}.{field.name}"] = (
                f"%{macro}" if macro else self._value(value, scope)
            )
        return f"@{scope}{selector}()"

    def vocabulary(self, vocabulary: Any) -> str:
        """The reference to a vocabulary, whose arguments are bound."""
        self._selector(Vocabulary)  # so that VOCABULARY=@vocabularies.byte() can be given, too
        if not isinstance(vocabulary, Vocabulary):
            return "%gin.REQUIRED"
        selector = self._selector(type(vocabulary))
        for name, value in vocabulary.arguments.items():
            self._bindings[f"{selector}.{name}"] = repr(value)
        return f"@{selector}()"

    def _selector(self, cls: type) -> str:
        package, _, name = cls.__module__.rpartition(".")
        if self._imports.setdefault(name, cls.__module__) != cls.__module__:
            name = cls.__module__.replace(".", "_")
            self._imports[name] = cls.__module__
        return f"{name}.{cls.__name__}"

    def _value(self, value: Any, scope: str) -> str:
        if dataclasses.is_dataclass(value):
            return self.bind(value, scope or _stage_scope(value))
        if isinstance(value, (list, tuple)):
            parts = "".join(f"{self._value(part, scope)}, " for part in value)
            return f"[{parts}]" if isinstance(value, list) else f"({parts})"
        if isinstance(value, Mapping):
            pairs = (f"{name!r}: {self._value(part, scope)}" for name, part in value.items())
            return f"{{{', '.join(pairs)}}}"
        if isinstance(value, np.generic):
            value = value.item()
        return repr(value).replace("inf", "1e999") if isinstance(value, float) else repr(value)

    def text(self) -> str:
        """The file."""
        imports = ["from __gin__ import dynamic_registration"]
        for name, module in sorted(self._imports.items(), key=lambda pair: pair[1]):
            package, _, last = module.rpartition(".")
            alias = "" if name == last else f" as {name}"
            imports.append(f"from {package} import {last}{alias}")
        macros = [f"{name} = {value}" for name, value in self.macros.items()]
        bindings = [f"{name} = {value}" for name, value in sorted(self._bindings.items())]
        return "\n".join([*imports, "", *macros, "", *bindings, ""])


def _stage_scope(config: Any) -> str:
    """The scope of a stage and of what is in it: its name, spelled so that gin can read it."""
    if not isinstance(config, Stage):
        return ""
    name = config.name
    return f"{name}/" if name.isidentifier() else f"stage_{name.encode().hex()}/"
