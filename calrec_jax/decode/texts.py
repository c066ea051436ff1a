"""From histories of item ids to generated texts with their log-probabilities."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from calrec_jax.decode.sample import Sampler, Samples
from calrec_jax.decode.trie import TokenTrie
from calrec_jax.text.generated import Generated
from calrec_jax.text.items import stable_id
from calrec_jax.text.prompts import TokenizedCatalogue


class TextGenerator:
    """Writes the next item of histories.

    Args:
      sampler: the model.
      tokens: the domain's catalogue; makes the same prompts as in training.
      decode: token ids -> text.
      seed: with a user's name, the seed of that user's samples.
      trie: the sampler's, where it has one.
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
        """Continuations of each history of item ids, oldest first; N, or all that a beam found.

        Args:
          names: of the users; the same name, history and seed give the same samples in any batch.

        Raises:
          CalrecError: a history is empty or holds ids that are not in the catalogue.
        """
        prompts = [self.tokens.prompt(history) for history in histories]
        seeds = [stable_id(str(self._seed), name) for name in names]
        samples = self._sampler(prompts, seeds)
        return [self._generated(samples, row) for row in range(len(prompts))]

    def _generated(self, samples: Samples, row: int) -> list[Generated]:
        """Of one prompt."""
        found = []
        for n in np.flatnonzero(~np.isneginf(samples.log_probs[row])):
            text = self._decode(samples.tokens[row, n, : samples.lengths[row, n]].tolist())
            items = () if self._trie is None else self._trie.items(int(samples.leaves[row, n]))
            found.append(Generated(text, float(samples.log_probs[row, n]), items))
        return found
