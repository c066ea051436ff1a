"""A trained run as a recommender in Python."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Sequence

from calrec_jax.errors import CalrecError
from calrec_jax.text.items import Fields


@dataclasses.dataclass(frozen=True)
class Recommendation:
    """One item of a ranking.

    Attributes:
      item_id: an item is its id.
      score: quasi-round-robin's, in [0, 1].
      fields: the item's text.
    """

    item_id: str
    score: float
    fields: Fields


class Recommender:
    """Ranks a domain's catalogue for histories of item ids. Make it with `load`."""

    def __init__(self, generator, retriever):
        self._generator, self._retriever = generator, retriever
        self.catalogue = generator.tokens.catalogue

    @classmethod
    def load(
        cls,
        model_dir: str | os.PathLike,
        domain: str | None = None,
        checkpoint: str | None = None,
    ) -> Recommender:
        """The recommender that a run trained.

        Args:
          model_dir: MODEL_DIR of the run; its config.gin says where the store and vocabulary are.
          domain: if not the one that the run evaluates.
          checkpoint: if not the one that the run evaluates, "stage1:best".

        Raises:
          CalrecError: no such run, domain, or checkpoint.
        """
        from calrec_jax.cli import run as runs
        from calrec_jax.eval.predictions import Retriever

        run = runs.from_model_dir(model_dir)
        config = run.evaluation
        generator = runs.text_generator(run, domain or config.domain, checkpoint)
        render = generator.tokens.builder.template.render_item
        texts = [render(fields) for fields in generator.tokens.catalogue.fields]
        return cls(generator, Retriever(texts, config.k1, config.b, config.epsilon))

    def recommend(
        self, histories: Sequence[Sequence[str]], k: int = 10
    ) -> list[list[Recommendation]]:
        """The k best items for each history, best first; seen items may be among them.

        Args:
          histories: item ids, oldest first, at least one each.

        Raises:
          CalrecError: a history is empty or names unknown items; the line says which.
        """
        from calrec_jax.retrieval import round_robin

        if not histories:
            return []
        for place, history in enumerate(histories):
            try:
                self.check(history)
            except CalrecError as error:
                raise CalrecError(f"history {place}: {error}") from None
        # The samples of a history are seeded by its items: the same history, the same answer.
        outputs = self._generator(histories, ["\x1f".join(history) for history in histories])
        merged = [
            round_robin.merge_outputs([g.text for g in some], [g.log_prob for g in some])
            for some in outputs
        ]
        return [
            [
                Recommendation(
                    self.catalogue.item_ids[i], float(scores[i]), self.catalogue.fields[i]
                )
                for i in round_robin.ranked(scores, k)
            ]
            for scores in self._retriever.scores(merged)
        ]

    def check(self, history: Sequence[str]) -> None:
        """Raises CalrecError where `recommend` could not take `history`."""
        if not history:
            raise CalrecError("an empty history: give at least one item id")
        self.catalogue.places(history)
