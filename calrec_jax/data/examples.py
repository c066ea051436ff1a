"""Training examples of a domain: the parts of its histories that each epoch uses. Pure NumPy."""

from __future__ import annotations

import dataclasses

import numpy as np

from calrec_jax.batch import TARGETS
from calrec_jax.data.packing import Example
from calrec_jax.errors import CalrecError
from calrec_jax.text.items import PlacedSequences, stable_id
from calrec_jax.text.prompts import TokenizedCatalogue


@dataclasses.dataclass(frozen=True)
class Spans:
    """The examples of one epoch. An example is `places[start:end]`, whose last item is the target.

    Attributes:
      start, end: int64 [n], indices into `PlacedSequences.places`; the oldest items that do not fit
        into the prompt are before `start`.
      lengths: int64 [n], the number of tokens of the joint sequence: prompt, target and EOS.
      loss_lengths: int64 [n], how many of them carry loss weight: target and EOS.
      truncated: bool [n], whether the oldest items are left out.
    """

    start: np.ndarray
    end: np.ndarray
    lengths: np.ndarray
    loss_lengths: np.ndarray
    truncated: np.ndarray

    def __len__(self) -> int:
        return len(self.start)


class Examples:
    """The examples of one split of a domain.

    Args:
      tokens: the tokens of the domain's items and prompts.
      histories: the sequences of the split.
      targets: one of `batch.TARGETS`.
      seed: the seed of random targets.
      eos_id: the token that ends every target.
    """

    def __init__(
        self,
        tokens: TokenizedCatalogue,
        histories: PlacedSequences,
        targets: str,
        seed: int,
        eos_id: int,
    ):
        if targets not in TARGETS:
            raise CalrecError(f"targets {targets!r} is none of {', '.join(TARGETS)}")
        self.tokens, self.histories, self.targets, self._seed = tokens, histories, targets, seed
        self._eos = np.array([eos_id], np.int32)
        domain = tokens.catalogue.domain
        self.domain_id = stable_id(domain)
        self._item_lengths = tokens.item_lengths
        # Tokens of all items, with a separator each, before each index: a difference of two entries
        # is the number of tokens that the items in between take.
        separator = len(tokens.text.separator)
        self._before = np.zeros(len(histories.places) + 1, np.int64)
        np.cumsum(self._item_lengths[histories.places] + separator, out=self._before[1:])

    @property
    def varies(self) -> bool:
        """Whether epochs differ in their examples, and not only in the order of them."""
        return self.targets == "random"

    def spans(self, epoch: int, attempt: int = 0) -> Spans:
        """All examples of an epoch, in the order of the split.

        Args:
          attempt: a number that changes the draw of random targets.
        """
        splits = self.histories.splits
        start, last = splits[:-1], splits[1:]
        if self.targets == "last":
            return self._fit(start, last)
        if self.targets == "random":
            key = stable_id("targets", str(self._seed), str(self.domain_id), str(epoch))
            rng = np.random.Generator(np.random.Philox(key=[key, attempt]))
            return self._fit(start, rng.integers(start + 2, last + 1))
        counts = last - start - 1
        first = np.repeat(start, counts)
        within = np.arange(len(first)) - np.repeat(np.cumsum(counts) - counts, counts)
        return self._fit(first, first + 2 + within)

    def _fit(self, first: np.ndarray, end: np.ndarray) -> Spans:
        """The examples from `first` to `end`, without the oldest items that do not fit a prompt."""
        tokens, before = self.tokens, self._before
        separator = len(tokens.text.separator)
        room = tokens.max_history_tokens - tokens.frame
        # The oldest item that fits together with all after it: see TokenizedCatalogue.prompt_at.
        newest = before[end - 1] - separator
        start = np.maximum(first, np.searchsorted(before, newest - room, side="left"))
        prompts = tokens.frame + newest - before[start]
        targets = self._item_lengths[self.histories.places[end - 1]] + 1
        return Spans(start, end, prompts + targets, targets, start > first)

    def example(self, start: int, end: int) -> Example:
        """The example `places[start:end]`, see `Spans`, with its tokens."""
        *history, target = self.histories.places[start:end].tolist()
        return Example(
            self.tokens.prompt_at(history),
            np.concatenate([self.tokens.item_at(target), self._eos]),
            self.item_id(target),
            self.domain_id,
        )

    def item_id(self, place: int) -> int:
        """The stable id of the item at `place`."""
        catalogue = self.tokens.catalogue
        return stable_id(catalogue.domain, catalogue.item_ids[place])
