"""Names of earlier versions in gin files and bindings: they are read as today's names."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from gin import config as gin_config
from gin import config_parser
from gin.config_parser import BindingStatement, BlockDeclaration, ImportStatement

Statement = Any  # of gin's parser: a binding, an import, an include or the beginning of a block

# Names of version 0.1; version 0.3 will not know them.
_MODULES = {  # modules and packages
    "calrec_jax.cli.baseline_run": "calrec_jax.runs.baseline",
    "calrec_jax.cli.run": "calrec_jax.runs.run",
    "calrec_jax.eval.evaluator": "calrec_jax.eval.evaluation",
    "calrec_jax.train": "calrec_jax.training",
}
_CLASSES = {  # with the last part of their module
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
    """Turns names of earlier versions into today's.

    Attributes:
      renamed: {name of an earlier version: today's name}, of all names that were met.
    """

    def __init__(self) -> None:
        self.renamed: dict[str, str] = {}

    def statements(
        self, statement: Statement, delegate: config_parser.ParserDelegate
    ) -> Iterator[Statement]:
        """The statements, one or several, that mean in today's names what `statement` does.

        Args:
          delegate: the parser's delegate, which makes references.
        """
        if isinstance(statement, ImportStatement):
            module = self._noted(statement.module, _todays_module(statement.module))
            yield statement._replace(module=module)
        elif isinstance(statement, BindingStatement) and _is_evaluation(statement.selector):
            yield from self._evaluation_binding(statement, delegate)
        elif isinstance(statement, (BindingStatement, BlockDeclaration)):
            yield statement._replace(selector=self.selector(statement.selector))
        else:
            yield statement

    def selector(self, scoped: str) -> str:
        """Today's name of "scope/module.Class"; the module may have its packages before it."""
        scope, slash, name = scoped.rpartition("/")
        today = _todays_module(name)
        for old, new in _CLASSES.items():
            if f".{today}".endswith(f".{old}"):
                today = today.removesuffix(old) + new
        return f"{scope}{slash}{self._noted(name, today)}"

    def parser(self) -> type[config_parser.ConfigParser]:
        """A class of gin's parser whose statements have today's names."""
        renamer = self

        class Parser(config_parser.ConfigParser):
            _renamed: Iterator[Statement] = iter(())

            def parse_statement(self) -> Statement | None:
                # One at a time: gin must have imported a module before a reference to it is made.
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
        """The statements for a binding of EvaluationConfig, whose parameter may have moved."""
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

    def _noted(self, old: str, new: str) -> str:
        if old != new:
            self.renamed[old] = new
        return new


def _todays_module(name: str) -> str:
    """A module, or something in it, with today's name of the module."""
    for old, new in _MODULES.items():
        if f"{name}.".startswith(f"{old}."):
            return new + name.removeprefix(old)
    return name


def _is_evaluation(selector: str) -> bool:
    """Whether a selector without its scope names EvaluationConfig."""
    return selector.rpartition(".")[2] == "EvaluationConfig"


def _is_bound(field: str) -> bool:
    """Whether a parameter of EvaluationConfig is bound outside of all scopes."""
    return any(
        field in parameters
        for (scope, selector), parameters in gin_config._CONFIG.items()
        if not scope and _is_evaluation(selector)
    )
