"""Domains and mixtures as a run reads them: with its store, vocabulary and template filled in.

`specs` holds what is registered. Only the reading of a store needs TensorFlow.
"""

from __future__ import annotations

import dataclasses
import difflib
import functools
from collections.abc import Mapping
from types import ModuleType
from typing import Any

from calrec_jax.data import specs, vocabularies
from calrec_jax.data.specs import DomainSpec, MixtureSpec
from calrec_jax.data.store import arrays
from calrec_jax.data.vocabularies import VocabularyLike
from calrec_jax.errors import CalrecError
from calrec_jax.text.items import Catalogue, PlacedSequences, UserSequence
from calrec_jax.text.prompts import TextTokens, TokenizedCatalogue
from calrec_jax.text.templates import Template


@dataclasses.dataclass(frozen=True)
class DataConfig:
    """A run's store, vocabulary and template. A domain may be registered with some of its own.

    Attributes:
      data_dir: the store, or arrays that `calrec batches` made of it.
      vocabulary: the vocabulary of the model, see `vocabularies`, or any seqio.Vocabulary.
      template: how items and histories are written as text.
    """

    data_dir: str
    vocabulary: VocabularyLike
    template: Template = Template()


@dataclasses.dataclass(frozen=True)
class Domain:
    """A domain as a run reads it. What is read stays in memory as long as this object does.

    Attributes:
      name: the name that it is registered by.
      dataset: its name in the store.
      data_dir: the store, or saved arrays.
      template, vocabulary: how its text becomes tokens.
      has_own_template: whether the template was registered with the domain, and is not the run's.
    """

    name: str
    dataset: str
    data_dir: str
    template: Template
    vocabulary: VocabularyLike
    has_own_template: bool = False

    @functools.cached_property
    def catalogue(self) -> Catalogue:
        """All items. Raises CalrecError if the dataset is missing."""
        return self._reader.read_catalogue(self.data_dir, self.dataset)

    def sequences(self, split: str) -> list[UserSequence]:
        """The sequences of a split. Raises CalrecError if there is no such dataset or split."""
        return self._reader.read_sequences(self.data_dir, self.dataset, split)

    def num_sequences(self, split: str) -> int:
        """The number of sequences in a split. Raises as `sequences`."""
        return self._reader.num_examples(self.data_dir, self.dataset, split)

    def placed_sequences(self, split: str) -> PlacedSequences:
        """The sequences of a split as places in the catalogue.

        Raises:
          CalrecError: there is no such dataset or split, or it is damaged.
        """
        if split not in self._placed:
            self._placed[split] = self._reader.read_placed(
                self.data_dir, self.dataset, split, self.catalogue
            )
        return self._placed[split]

    def checksums(self) -> dict[str, str]:
        """{part of the dataset: checksum}, the same wherever the same data lies."""
        return self._reader.checksums(self.data_dir, self.dataset)

    @functools.cached_property
    def text(self) -> TextTokens:
        """All of the domain's text as tokens.

        Raises:
          CalrecError: there is no such dataset, its items and the template do not go together, or
            arrays were saved with another template or vocabulary.
        """
        check_fields(self.catalogue, self.template)
        if arrays.is_saved(self.data_dir):
            return arrays.read_text(self.data_dir, self.dataset, self.template, self.vocabulary)
        encode_template = functools.partial(vocabularies.encode_template, self.vocabulary)
        return TextTokens.encode(
            self.catalogue, self.template, self.vocabulary.encode, encode_template
        )

    def tokens(self, lengths: Mapping[str, int]) -> TokenizedCatalogue:
        """The catalogue in tokens, cut to TASK_FEATURE_LENGTHS `lengths`. Raises as `text`."""
        return TokenizedCatalogue(self.catalogue, self.text, lengths)

    def item_texts(self) -> list[str]:
        """The text of each item as the template writes it, in the catalogue's order."""
        return [self.template.render_item(fields) for fields in self.catalogue.fields]

    @functools.cached_property
    def _placed(self) -> dict[str, PlacedSequences]:
        return {}

    @functools.cached_property
    def _reader(self) -> ModuleType:
        """The module that reads the dataset: for saved arrays, or for a store, with TensorFlow."""
        if arrays.is_saved(self.data_dir):
            return arrays
        from calrec_jax.data.store import reader

        return reader


def check_fields(catalogue: Catalogue, template: Template) -> None:
    """Raises CalrecError for a field that no item has, and for items that would have no text."""
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
    """A mixture as a run reads it.

    Attributes:
      spec: its name and rates.
      domains: the domains, in the order of the spec.
    """

    spec: MixtureSpec
    domains: tuple[Domain, ...]

    @property
    def name(self) -> str:
        """The name that it is registered by."""
        return self.spec.name


class Domains:
    """The domains and mixtures that a run may name. Each is resolved, and read, once.

    If the run's data is saved arrays, they are those that were saved; otherwise those that are
    registered.

    Args:
      config: the data settings of the run.

    Raises:
      CalrecError: saved arrays are damaged.
    """

    def __init__(self, config: DataConfig):
        self.config = config
        self._specs, self._mixtures = specs.domains, specs.mixtures
        if arrays.is_saved(config.data_dir):
            self._specs, self._mixtures = _saved_specs(arrays.read_index(config.data_dir))
        self._resolved: dict[str, Domain] = {}

    def domain(self, name: str) -> Domain:
        """The domain `name`.

        Raises:
          CalrecError: there is none of that name; the line lists all names.
        """
        if name not in self._specs:
            raise CalrecError(specs.unknown_name("domain", name, self._specs))
        if name not in self._resolved:
            self._resolved[name] = resolved(self._specs[name], self.config)
        return self._resolved[name]

    def mixture(self, name: str) -> Mixture:
        """The mixture `name`, or the domain of that name as a mixture of one.

        Raises:
          CalrecError: there is none of that name; the line lists all names.
        """
        known = [*self._mixtures, *self._specs]
        if name not in known:
            raise CalrecError(specs.unknown_name("mixture or task", name, known))
        spec = MixtureSpec(name, (name,)) if name in self._specs else self._mixtures[name]
        return Mixture(spec, tuple(map(self.domain, spec.domains)))


def _saved_specs(
    index: Mapping[str, Any],
) -> tuple[dict[str, DomainSpec], dict[str, MixtureSpec]]:
    """The domains and mixtures that arrays.json describes."""
    domains, mixtures = {}, {}
    for name, saved in index["domains"].items():
        own = saved["template"] if saved["own_template"] else None
        template = own and Template(**own | {"fields": tuple(own["fields"])})
        domains[name] = DomainSpec(name, name, template=template)
    for name, saved in index["mixtures"].items():
        rates = saved["rates"]
        rates = rates if isinstance(rates, str) else tuple(rates)
        mixtures[name] = MixtureSpec(name, tuple(saved["domains"]), rates, saved["temperature"])
    return domains, mixtures


def resolved(spec: DomainSpec, config: DataConfig | None = None) -> Domain:
    """A registered domain as a run with `config` reads it; None for a domain that is complete."""
    return Domain(
        spec.name,
        spec.dataset,
        spec.data_dir or config.data_dir,
        spec.template or config.template,
        spec.vocabulary or config.vocabulary,
        has_own_template=spec.template is not None,
    )
