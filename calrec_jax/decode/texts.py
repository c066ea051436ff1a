"""From histories of item ids to generated texts with their log-probabilities."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence

from calrec_jax.decode.sample import Sampler
from calrec_jax.text.items import stable_id
from calrec_jax.text.prompts import TokenizedCatalogue


@dataclasses.dataclass(frozen=True)
class Generated:
    """One sampled continuation: its text, and the sum of its tokens' log-probabilities."""

    text: str
    log_prob: float


class TextGenerator:
    """Writes the next item of histories.

    Args:
      sampler: the model.
      tokens: the domain's catalogue; makes the same prompts as in training.
      decode: token ids -> text.
      seed: with a user's name, the seed of that user's samples.
    """

    def __init__(
        self,
        sampler: Sampler,
        tokens: TokenizedCatalogue,
        decode: Callable[[list[int]], str],
        seed: int,
    ):
        self.tokens = tokens
        self._sampler, self._decode, self._seed = sampler, decode, seed

    def __call__(
        self, histories: Sequence[Sequence[str]], names: Sequence[str]
    ) -> list[list[Generated]]:
        """Continuations of each history of item ids, oldest first.

        Args:
          names: of the users; the same name, history and seed give the same samples in any batch.

        Raises:
          CalrecError: a history is empty or holds ids that are not in the catalogue.
        """
        prompts = [self.tokens.prompt(history) for history in histories]
        seeds = [stable_id(str(self._seed), name) for name in names]
        samples = self._sampler(prompts, seeds)
        return [
            [
                Generated(self._decode(row[:length].tolist()), float(log_prob))
                for row, length, log_prob in zip(*user, strict=True)
            ]
            for user in zip(samples.tokens, samples.lengths, samples.log_probs, strict=True)
        ]
