"""Gin names of earlier versions, which are read as those of today, and told."""

from __future__ import annotations

from gin import config_parser
from gin.config_parser import BindingStatement, ImportStatement

# Names of 0.1, to go in 0.3.
_MODULES = {  # and what is in them
    "calrec_jax.cli.baseline_run": "calrec_jax.runs.baseline",
    "calrec_jax.cli.run": "calrec_jax.runs.run",
    "calrec_jax.train": "calrec_jax.training",
}
_CLASSES = {"baseline_run.BaselineRun": "baseline.BaselineRun"}


class Renamer:
    """Reads names of earlier versions as those of today.

    Attributes:
      found: {name of an earlier version: today's} of all that were met.
    """

    def __init__(self):
        self.found: dict[str, str] = {}

    def statement(self, statement):
        """A statement as gin's parser gives it, in today's names."""
        if isinstance(statement, ImportStatement):
            return statement._replace(module=self._module(statement.module))
        if isinstance(statement, BindingStatement):
            return statement._replace(selector=self.selector(statement.selector))
        return statement

    def selector(self, scoped: str) -> str:
        """What "scope/module.Class" is called today."""
        scope, slash, name = scoped.rpartition("/")
        return f"{scope}{slash}{self._noted(name, _CLASSES.get(name, name))}"

    def _module(self, module: str) -> str:
        for old, new in _MODULES.items():
            if f"{module}.".startswith(f"{old}."):
                return self._noted(module, new + module.removeprefix(old))
        return module

    def _noted(self, old: str, new: str) -> str:
        if old != new:
            self.found[old] = new
        return new

    def parser(self) -> type[config_parser.ConfigParser]:
        """Gin's parser, whose statements are in today's names."""
        renamer = self

        class Parser(config_parser.ConfigParser):
            def parse_statement(self):
                return renamer.statement(super().parse_statement())

        return Parser
