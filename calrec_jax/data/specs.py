"""Domains and mixtures as they are registered: their names, and the settings of their own."""

from __future__ import annotations

import dataclasses
import difflib
import importlib
from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from calrec_jax.data.vocabularies import VocabularyLike
from calrec_jax.errors import CalrecError
from calrec_jax.text.templates import Template

Rate = str | Mapping[str, float]


@dataclasses.dataclass(frozen=True)
class DomainSpec:
    """A registered domain. The settings that are None are the run's.

    Attributes:
      name: the name that it is registered by.
      dataset: its name in the store.
    """

    name: str
    dataset: str
    data_dir: str | None = None
    template: Template | None = None
    vocabulary: VocabularyLike | None = None

    @property
    def is_complete(self) -> bool:
        """Whether the domain leaves no setting to a run."""
        return None not in (self.data_dir, self.template, self.vocabulary)


@dataclasses.dataclass(frozen=True)
class MixtureSpec:
    """Registered domains that are trained on together.

    Attributes:
      name: as `Stage.mixture` has it.
      domains: their names, sorted.
      rates: "proportional", "equal", or a share of the examples for each of `domains`, in any unit.
      temperature: rates are taken to the power of 1 / temperature.
    """

    name: str
    domains: tuple[str, ...]
    rates: str | tuple[float, ...] = "proportional"
    temperature: float = 1.0

    def weights(self, sizes: Sequence[int]) -> np.ndarray:
        """float64 [domains], each domain's share of the examples, in any unit.

        Args:
          sizes: the number of examples in an epoch of each domain.
        """
        if self.rates == "proportional":
            rates = np.array(sizes, np.float64)
        elif self.rates == "equal":
            rates = np.ones(len(self.domains))
        else:
            rates = np.array(self.rates, np.float64)
        return rates ** (1.0 / self.temperature)


domains: dict[str, DomainSpec] = {}
"""Every domain that this process has registered, by its name."""

mixtures: dict[str, MixtureSpec] = {}
"""Every mixture that this process has registered, by its name."""


def add_domain(spec: DomainSpec) -> bool:
    """Registers a domain. Returns False if the same domain is registered already.

    Raises:
      CalrecError: the name is taken by something else.
    """
    if domains.get(spec.name) == spec:
        return False
    _require_free(spec.name)
    domains[spec.name] = spec
    return True


def add_mixture(
    name: str, names: Sequence[str], rate: Rate = "proportional", temperature: float = 1.0
) -> MixtureSpec | None:
    """Registers a mixture. Returns it, or None if the same mixture is registered already.

    Args:
      names: the domains.
      rate: "proportional" to the training examples, "equal", or {domain: rate}.
      temperature: rates are taken to the power of 1 / temperature; 1 leaves them as they are, more
        makes them more equal.

    Raises:
      CalrecError: a domain is not registered or named twice, the rates are not one for each domain,
        the temperature is not positive, or the name is taken by something else.
    """
    for domain in names:
        if domain not in domains:
            raise CalrecError(unknown_name("domain", domain, domains))
    if len(set(names)) < len(names) or not names:
        raise CalrecError(f"mixture {name!r} needs domains, each once, not {list(names)}")
    if not 0 < temperature < float("inf"):
        raise CalrecError(f"temperature {temperature} of mixture {name!r}: it must be positive")
    # Sorted, so that the order in which domains are listed makes no difference.
    ordered = tuple(sorted(names))
    spec = MixtureSpec(name, ordered, _rates(name, ordered, rate), float(temperature))
    if mixtures.get(name) == spec:
        return None
    _require_free(name)
    mixtures[name] = spec
    return spec


def _rates(name: str, names: Sequence[str], rate: Rate) -> str | tuple[float, ...]:
    if rate in ("proportional", "equal"):
        return rate
    if isinstance(rate, Mapping) and rate.keys() == set(names) and min(rate.values()) > 0:
        return tuple(float(rate[domain]) for domain in names)
    raise CalrecError(
        f"rate {rate!r} of mixture {name!r}: give 'proportional', 'equal', or a positive rate for "
        f"each of its domains, {', '.join(names)}"
    )


def is_registered(name: str) -> bool:
    """Whether a domain or a mixture of this name is registered."""
    return name in domains or name in mixtures


def _require_free(name: str) -> None:
    if is_registered(name):
        raise CalrecError(f"{name!r} is registered already, as something else: choose another name")


def import_modules(modules: Sequence[str]) -> None:
    """Imports the modules that register domains and mixtures.

    Raises:
      CalrecError: one cannot be imported.
    """
    for module in modules:
        try:
            importlib.import_module(module)
        except CalrecError:
            raise
        except Exception as error:
            raise CalrecError(
                f"MIXTURE_OR_TASK_MODULE {module!r} cannot be imported: "
                f"{type(error).__name__}: {error}"
            ) from error


def unknown_name(kind: str, name: str, known: Iterable[str]) -> str:
    """The message about an unknown name: lists the known names, those that are like it first."""
    known = list(known)
    near = difflib.get_close_matches(name, known, n=3)
    others = sorted(set(known) - set(near))
    listed = ", ".join([*near, *others]) or "none; set MIXTURE_OR_TASK_MODULE"
    hint = f" (did you mean {near[0]!r}?)" if near else ""
    return f"no {kind} {name!r}{hint}; registered: {listed}"
