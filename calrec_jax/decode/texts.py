"""Texts that continue histories of item ids, with their log-probabilities."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from calrec_jax.decode.sample import Sampler, Samples
from calrec_jax.decode.trie import TokenTrie
from calrec_jax.text.generated import Generated
from calrec_jax.text.items import stable_id
from calrec_jax.text.prompts import TokenizedCatalogue


class TextGenerator:
    """Generates texts of the item that follows each history.

    Args:
      sampler: continues prompts with the model.
      tokens: the tokenized catalogue of the domain; it makes the same prompts as in training.
      decode: token ids -> text.
      seed: together with a user's name, it seeds that user's samples.
      trie: the sampler's trie, if it has one.
    """

    def __init__(
        self,
        sampler: Sampler,
        tokens: TokenizedCatalogue,
        decode: Callable[[list[int]], str],
        seed: int,
        trie: TokenTrie | None = None,
    ):
        self.tokens, self._trie = tokens, trie
        self._sampler, self._decode, self._seed = sampler, decode, seed

    def __call__(
        self, histories: Sequence[Sequence[str]], names: Sequence[str]
    ) -> list[list[Generated]]:
        """The continuations of each history: N, or fewer where beam search found fewer.

        Args:
          histories: item ids, the oldest first.
          names: the users' names; the same name, history and seed give the same samples in any
            batch.

        Raises:
          CalrecError: a history is empty or holds ids that are not in the catalogue.
        """
        prompts = [self.tokens.prompt(history) for history in histories]
        seeds = [stable_id(str(self._seed), name) for name in names]
        samples = self._sampler(prompts, seeds)
        return [self._generated(samples, row) for row in range(len(prompts))]

    def _generated(self, samples: Samples, row: int) -> list[Generated]:
        """The continuations of one prompt."""
        texts = []
        for n in np.flatnonzero(~np.isneginf(samples.log_probs[row])):
            text = self._decode(samples.tokens[row, n, : samples.lengths[row, n]].tolist())
            items = () if self._trie is None else self._trie.items(int(samples.leaves[row, n]))
            texts.append(Generated(text, float(samples.log_probs[row, n]), items))
        return texts
