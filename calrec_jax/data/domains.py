"""The domains and mixtures that a run may name, and what a run decides about them.

They are registered in `registry`, which makes SeqIO tasks of them too, or come with saved arrays.
Nothing here needs TensorFlow but the reading of a store.
"""

from __future__ import annotations

import dataclasses
import difflib
import functools
import importlib
from collections.abc import Mapping, Sequence
from typing import Any, Protocol, runtime_checkable

import numpy as np

from calrec_jax.data import vocabularies
from calrec_jax.data.store import arrays
from calrec_jax.errors import CalrecError
from calrec_jax.text.items import Catalogue, PlacedSequences, UserSequence
from calrec_jax.text.prompts import TextTokens, TokenizedCatalogue
from calrec_jax.text.templates import Template

Rate = str | Mapping[str, float]


@runtime_checkable
class VocabularyLike(Protocol):
    """What is needed of a vocabulary: those of `vocabularies` have it, and any of SeqIO's."""

    vocab_size: int
    eos_id: int
    pad_id: int

    def encode(self, text: str) -> Sequence[int]:
        """Token ids, without BOS or EOS."""

    def decode(self, ids: Sequence[int]) -> str:
        """The text up to the first EOS."""


@dataclasses.dataclass(frozen=True)
class DataConfig:
    """What a run decides about data and domains leave open.

    Attributes:
      data_dir: the store, or arrays that `calrec batches` made of it.
      vocabulary: the model's, see `vocabularies`; or any seqio.Vocabulary.
      template: how items and histories are written.
    """

    data_dir: str
    vocabulary: VocabularyLike
    template: Template = Template()


@dataclasses.dataclass(frozen=True)
class Domain:
    """A registered domain. None = the run decides.

    Attributes:
      name: of the task.
      dataset: its name in the store.
    """

    name: str
    dataset: str
    data_dir: str | None = None
    template: Template | None = None
    vocabulary: VocabularyLike | None = None

    def resolved(self) -> Domain:
        """This domain with what the run decides filled in.

        Raises:
          CalrecError: the run's DataConfig is needed and `use` was not called.
        """
        if None not in (self.data_dir, self.template, self.vocabulary):
            return self
        run = _run_config()
        return dataclasses.replace(
            self,
            data_dir=self.data_dir or run.data_dir,
            template=self.template or run.template,
            vocabulary=self.vocabulary or run.vocabulary,
        )

    def catalogue(self) -> Catalogue:
        """All items; read once a process. Raises CalrecError where the dataset is missing."""
        domain = self.resolved()
        return _made_once(
            ("catalogue", domain.data_dir, domain.dataset),
            lambda: _reader(domain).read_catalogue(domain.data_dir, domain.dataset),
        )

    def sequences(self, split: str) -> list[UserSequence]:
        """The sequences of a split. Raises CalrecError where there is no such dataset or split."""
        domain = self.resolved()
        return _reader(domain).read_sequences(domain.data_dir, domain.dataset, split)

    def num_sequences(self, split: str) -> int:
        """How many sequences a split holds. Raises as `sequences`."""
        domain = self.resolved()
        return _reader(domain).num_examples(domain.data_dir, domain.dataset, split)

    def placed_sequences(self, split: str) -> PlacedSequences:
        """The sequences of a split as places in the catalogue; read once a process.

        Raises:
          CalrecError: there is no such dataset or split, or it is damaged.
        """
        domain = self.resolved()
        return _made_once(
            ("placed", domain.data_dir, domain.dataset, split),
            lambda: _reader(domain).read_placed(
                domain.data_dir, domain.dataset, split, self.catalogue()
            ),
        )

    def checksums(self) -> dict[str, str]:
        """What the dataset holds, as {part: checksum}; the same for the same data anywhere."""
        domain = self.resolved()
        return _reader(domain).checksums(domain.data_dir, domain.dataset)

    def text(self) -> TextTokens:
        """All of the domain's text as tokens; made once a process.

        Raises:
          CalrecError: there is no such dataset, its items and the template do not go together, or
            arrays were saved with another template or vocabulary.
        """
        domain = self.resolved()
        kind = vocabularies.fingerprint(domain.vocabulary)
        return _made_once(
            ("text", domain.data_dir, domain.dataset, domain.template, kind), self._read_text
        )

    def tokens(self, lengths: Mapping[str, int]) -> TokenizedCatalogue:
        """The catalogue in tokens, cut to TASK_FEATURE_LENGTHS `lengths`. Raises as `text`."""
        return TokenizedCatalogue(self.catalogue(), self.text(), lengths)

    def _read_text(self) -> TextTokens:
        domain = self.resolved()
        catalogue = self.catalogue()
        check_fields(catalogue, domain.template)
        if arrays.is_saved(domain.data_dir):
            return arrays.read_text(
                domain.data_dir, domain.dataset, domain.template, domain.vocabulary
            )
        encode_template = functools.partial(vocabularies.encode_template, domain.vocabulary)
        return TextTokens.encode(
            catalogue, domain.template, domain.vocabulary.encode, encode_template
        )


def _reader(domain: Domain):
    """What reads a domain: saved arrays, or the store, whose reading needs TensorFlow."""
    if arrays.is_saved(domain.data_dir):
        return arrays
    from calrec_jax.data.store import reader

    return reader


def check_fields(catalogue: Catalogue, template: Template) -> None:
    """Raises CalrecError for a field that is misspelt, and for items that would have no text."""
    known = {*Template().fields, *(name for fields in catalogue.fields for name in fields)}
    for name in template.fields:
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1)
            raise CalrecError(
                f"Template.fields names {name!r}, which no item of {catalogue.domain} has"
                f"{f': did you mean {near[0]!r}?' if near else ''}; known: {sorted(known)}"
            )
    empty = sum(not template.render_item(fields) for fields in catalogue.fields)
    if empty:
        raise CalrecError(
            f"{empty} items of {catalogue.domain} have none of the fields "
            f"{', '.join(template.fields)}, and would have no text: add a field to Template.fields"
        )


@dataclasses.dataclass(frozen=True)
class Mixture:
    """Domains that are trained on together.

    Attributes:
      rates: {domain: share of the examples, in any unit}, or "proportional" or "equal" for all.
      temperature: rates are taken to the power of 1 / temperature.
    """

    name: str
    domains: tuple[str, ...]
    rates: str | tuple[float, ...] = "proportional"
    temperature: float = 1.0

    def weights(self, sizes: Sequence[int]) -> np.ndarray:
        """float64 [domains], relative shares of examples.

        Args:
          sizes: examples of an epoch of each domain.
        """
        if self.rates == "proportional":
            rates = np.array(sizes, np.float64)
        elif self.rates == "equal":
            rates = np.ones(len(self.domains))
        else:
            rates = np.array(self.rates, np.float64)
        return rates ** (1.0 / self.temperature)


_domains: dict[str, Domain] = {}
_mixtures: dict[str, Mixture] = {}
_made: dict[tuple, Any] = {}
_run: list[DataConfig] = []
_saved: list[tuple[dict[str, Domain], dict[str, Mixture]]] = []


def use(config: DataConfig) -> None:
    """Makes `config` what all domains resolve to from now on.

    Where its data_dir holds saved arrays, their domains and mixtures are those that there are.

    Raises:
      CalrecError: saved arrays are damaged.
    """
    _run[:] = [config]
    _made.clear()  # the store may have been written anew
    _saved[:] = []
    if arrays.is_saved(config.data_dir):
        _saved[:] = [_saved_tables(arrays.read_index(config.data_dir))]


def _saved_tables(index: Mapping[str, Any]) -> tuple[dict[str, Domain], dict[str, Mixture]]:
    domains, mixtures = {}, {}
    for name, saved in index["domains"].items():
        own = saved["template"] if saved["own_template"] else None
        template = own and Template(**own | {"fields": tuple(own["fields"])})
        domains[name] = Domain(name, name, template=template)
    for name, saved in index["mixtures"].items():
        rates = saved["rates"]
        rates = rates if isinstance(rates, str) else tuple(rates)
        mixtures[name] = Mixture(name, tuple(saved["domains"]), rates, saved["temperature"])
    return domains, mixtures


def _known() -> tuple[dict[str, Domain], dict[str, Mixture]]:
    """The domains and mixtures that there are: those that saved arrays bring, or the registered."""
    return _saved[0] if _saved else (_domains, _mixtures)


def _run_config() -> DataConfig:
    if not _run:
        raise CalrecError("no DataConfig is in use: call calrec_jax.data.domains.use(...) first")
    return _run[0]


def _made_once(key: tuple, make):
    if key not in _made:
        _made[key] = make()
    return _made[key]


def add_domain(domain: Domain) -> bool:
    """Makes `domain` known. False where it is already.

    Raises:
      CalrecError: the name is taken by something else.
    """
    if _domains.get(domain.name) == domain:
        return False
    _require_free(domain.name)
    _domains[domain.name] = domain
    return True


def add_mixture(
    name: str, domains: Sequence[str], rate: Rate = "proportional", temperature: float = 1.0
) -> Mixture | None:
    """Makes a mixture known and returns it, or None where it is already.

    Args:
      rate: "proportional" to the training examples, "equal", or {domain: rate}.
      temperature: rates are taken to the power of 1 / temperature; 1 leaves them as they are, more
        makes them more equal.

    Raises:
      CalrecError: a domain is not registered or there twice, the rates are not one for each domain,
        the temperature is not positive, or the name is taken by something else.
    """
    for domain in domains:
        get_domain(domain)
    if len(set(domains)) < len(domains) or not domains:
        raise CalrecError(f"mixture {name!r} needs domains, each once, not {list(domains)}")
    if not 0 < temperature < float("inf"):
        raise CalrecError(f"temperature {temperature} of mixture {name!r}: it must be positive")
    # In the order of names: the same mixture, however its domains are listed.
    ordered = tuple(sorted(domains))
    mixture = Mixture(name, ordered, _rates(name, ordered, rate), float(temperature))
    if _mixtures.get(name) == mixture:
        return None
    _require_free(name)
    _mixtures[name] = mixture
    return mixture


def _rates(name: str, domains: Sequence[str], rate: Rate) -> str | tuple[float, ...]:
    if rate in ("proportional", "equal"):
        return rate
    if isinstance(rate, Mapping) and rate.keys() == set(domains) and min(rate.values()) > 0:
        return tuple(float(rate[domain]) for domain in domains)
    raise CalrecError(
        f"rate {rate!r} of mixture {name!r}: give 'proportional', 'equal', or a positive rate for "
        f"each of its domains, {', '.join(domains)}"
    )


def is_known(name: str) -> bool:
    """Whether a domain or a mixture has this name."""
    return name in _domains or name in _mixtures


def _require_free(name: str) -> None:
    if is_known(name):
        raise CalrecError(f"{name!r} is registered already, as something else: choose another name")


def get_domain(name: str) -> Domain:
    """The registered domain `name`.

    Raises:
      CalrecError: there is none; lists those there are.
    """
    domains, _ = _known()
    if name not in domains:
        raise CalrecError(_unknown("domain", name, domains))
    return domains[name]


def get_mixture(name: str) -> Mixture:
    """The mixture `name`, or the domain of that name as a mixture of one.

    Raises:
      CalrecError: there is none; lists those there are.
    """
    domains, mixtures = _known()
    if name in domains:
        return Mixture(name, (name,))
    if name not in mixtures:
        raise CalrecError(_unknown("mixture or task", name, [*mixtures, *domains]))
    return mixtures[name]


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


def _unknown(kind: str, name: str, known) -> str:
    near = difflib.get_close_matches(name, known, n=3)
    others = sorted(set(known) - set(near))
    listed = ", ".join([*near, *others]) or "none; set MIXTURE_OR_TASK_MODULE"
    hint = f" (did you mean {near[0]!r}?)" if near else ""
    return f"no {kind} {name!r}{hint}; registered: {listed}"
