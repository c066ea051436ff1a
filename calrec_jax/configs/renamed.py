"""Gin names of earlier versions, which are read as today's names, and listed."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from gin import config as gin_config
from gin import config_parser
from gin.config_parser import BindingStatement, BlockDeclaration, ImportStatement

Statement = Any  # what gin's parser gives: a binding, an import, an include or a block's beginning

# Names of 0.1, to go in 0.3.
_MODULES = {  # and what is in them
    "calrec_jax.cli.baseline_run": "calrec_jax.runs.baseline",
    "calrec_jax.cli.run": "calrec_jax.runs.run",
    "calrec_jax.eval.evaluator": "calrec_jax.eval.evaluation",
    "calrec_jax.train": "calrec_jax.training",
}
_CLASSES = {  # as gin files write them
    "baseline_run.BaselineRun": "baseline.BaselineRun",
    "evaluator.EvaluationConfig": "evaluation.EvaluationConfig",
}
_EVALUATION = "evaluation.EvaluationConfig"
_PARAMETERS = {"domain": "domains"}  # of EvaluationConfig
# Parameters of EvaluationConfig that have moved: {name: (today's field of EvaluationConfig, whose
# value is another configuration; the parameter of that configuration)}.
_MOVED = {
    "num_samples": ("sampling", "num_samples"),
    "temperature": ("sampling", "temperature"),
    "max_new_tokens": ("sampling", "max_new_tokens"),
    "decoding": ("sampling", "method"),
    "sampling_top_k": ("sampling", "top_k"),
    "sampling_top_p": ("sampling", "top_p"),
    "k1": ("bm25", "k1"),
    "b": ("bm25", "b"),
}
_FIELDS = {  # {field of EvaluationConfig: (module of its class, the class as gin files write it)}
    "sampling": ("calrec_jax.decode.sampling", "sampling.SamplingConfig"),
    "bm25": ("calrec_jax.retrieval.bm25", "bm25.BM25Config"),
}


class Renamer:
    """Reads names of earlier versions as those of today.

    Attributes:
      found: {name of an earlier version: today's} of all that were met.
    """

    def __init__(self) -> None:
        self.found: dict[str, str] = {}

    def statements(
        self, statement: Statement, delegate: config_parser.ParserDelegate
    ) -> Iterator[Statement]:
        """A statement as gin's parser gives it, in today's names: one statement or several.

        Args:
          delegate: the parser's, which makes references.
        """
        if isinstance(statement, ImportStatement):
            yield statement._replace(module=self._module(statement.module))
        elif isinstance(statement, BindingStatement) and _is_evaluation(statement.selector):
            yield from self._evaluation_binding(statement, delegate)
        elif isinstance(statement, (BindingStatement, BlockDeclaration)):
            yield statement._replace(selector=self.selector(statement.selector))
        else:
            yield statement

    def selector(self, scoped: str) -> str:
        """What "scope/module.Class" is called today."""
        scope, slash, name = scoped.rpartition("/")
        for old, new in _CLASSES.items():
            if f".{name}".endswith(f".{old}"):
                name = self._noted(name, name.removesuffix(old) + new)
        return f"{scope}{slash}{name}"

    def parser(self) -> type[config_parser.ConfigParser]:
        """Gin's parser, whose statements are in today's names."""
        renamer = self

        class Parser(config_parser.ConfigParser):
            _renamed: Iterator[Statement] = iter(())

            def parse_statement(self) -> Statement | None:
                # One at a time: a reference can be made once its module's import was processed.
                statement = next(self._renamed, None)
                if statement is None:
                    parsed = super().parse_statement()
                    if parsed is None:
                        return None
                    self._renamed = renamer.statements(parsed, self._delegate)
                    statement = next(self._renamed)
                return statement

        return Parser

    def _evaluation_binding(
        self, statement: BindingStatement, delegate: config_parser.ParserDelegate
    ) -> Iterator[Statement]:
        """A binding of a parameter that EvaluationConfig has, or had in an earlier version."""
        written = f"{statement.selector}.{statement.arg_name}"
        if statement.arg_name not in _MOVED:
            name = _PARAMETERS.get(statement.arg_name, statement.arg_name)
            selector = self.selector(statement.selector)
            if name != statement.arg_name:
                self._noted(written, f"{_EVALUATION}.{name}")
            yield statement._replace(selector=selector, arg_name=name)
            return
        field, name = _MOVED[statement.arg_name]
        module, cls = _FIELDS[field]
        self._noted(written, f"{cls}.{name}")
        for needed in ("calrec_jax.eval.evaluation", module):
            yield ImportStatement(needed, is_from=True, alias=None, location=statement.location)
        if not _is_bound(field):
            reference = delegate.configurable_reference(cls, True)
            yield BindingStatement("", _EVALUATION, field, reference, statement.location)
        yield statement._replace(selector=cls, arg_name=name)

    def _module(self, module: str) -> str:
        for old, new in _MODULES.items():
            if f"{module}.".startswith(f"{old}."):
                return self._noted(module, new + module.removeprefix(old))
        return module

    def _noted(self, old: str, new: str) -> str:
        if old != new:
            self.found[old] = new
        return new


def _is_evaluation(selector: str) -> bool:
    """Whether a binding's selector, without its scope, is that of EvaluationConfig."""
    return selector.rpartition(".")[2] == "EvaluationConfig"


def _is_bound(field: str) -> bool:
    """Whether a parameter of EvaluationConfig is bound, outside of all scopes."""
    return any(
        field in parameters
        for (scope, selector), parameters in gin_config._CONFIG.items()
        if not scope and _is_evaluation(selector)
    )
