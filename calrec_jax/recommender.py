"""A trained run as a recommender in Python."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Iterator, Sequence

from calrec_jax.configs import load
from calrec_jax.data.sources import records
from calrec_jax.errors import CalrecError
from calrec_jax.eval.retrievers import Retriever
from calrec_jax.runs.evaluate import chosen_weight
from calrec_jax.runs.trained_model import TrainedModel
from calrec_jax.text.items import Catalogue, Fields


@dataclasses.dataclass(frozen=True)
class Recommendation:
    """One item of a ranking.

    Attributes:
      item_id: an item is its id.
      score: of quasi-round-robin, in [0, 1]; a cosine with retrieval "dense"; from 0 to 1 + the
        weight with "hybrid".
      fields: the item's text.
    """

    item_id: str
    score: float
    fields: Fields


class Recommender:
    """Ranks a domain's catalogue for histories of item ids. Make it with `load`."""

    def __init__(self, retriever: Retriever, catalogue: Catalogue, batch_size: int = 32):
        self._retriever, self._batch_size = retriever, batch_size
        self.catalogue = catalogue

    @classmethod
    def load(
        cls,
        model_dir: str | os.PathLike,
        domain: str | None = None,
        checkpoint: str | None = None,
        bindings: Sequence[str] = (),
    ) -> Recommender:
        """The recommender that a run trained.

        Args:
          model_dir: MODEL_DIR of the run; its config.gin says where the store and vocabulary are.
          domain: if not the one, or the first, that the run evaluates.
          checkpoint: if not the one that the run evaluates, "stage1:best".
          bindings: "NAME=VALUE" of gin, over those of config.gin: `DATA_DIR='store'`, where it has
            moved, or `mesh.MeshConfig.model=1`, on another machine.

        Raises:
          CalrecError: no such run, domain, or checkpoint; the run has no evaluation; or the weight
            of retrieval "hybrid" is neither bound nor chosen by an evaluation.
        """
        run = load.load_run(model_dir, bindings)
        config = run.require_evaluation()
        resolved = run.domain(domain or config.domains[0])
        model = TrainedModel(run, checkpoint)
        retriever = model.retriever(resolved, lambda *_: chosen_weight(run, model, resolved))
        return cls(retriever, resolved.catalogue, config.users_per_batch)

    def recommend(
        self, histories: Sequence[Sequence[str | int]], k: int = 10
    ) -> list[list[Recommendation]]:
        """The k best items for each history, best first; fewer where fewer may be recommended.

        Args:
          histories: item ids, oldest first, at least one each, strings or integers as `calrec
            prepare` takes them; answered `users_per_batch` of the run's evaluation at a time.
          k: at least 1.

        Raises:
          CalrecError: a history is empty or names unknown items, the line says which; or k is 0.
        """
        if k < 1:
            raise CalrecError(f"k is {k}: at least one item must be asked for")
        checked = []
        for place, history in enumerate(histories):
            try:
                checked.append(self._checked(history))
            except CalrecError as error:
                raise CalrecError(f"history {place}: {error}") from None
        blocks = range(0, len(checked), self._batch_size)
        return [
            recommendations
            for start in blocks
            for recommendations in self._recommend(checked[start : start + self._batch_size], k)
        ]

    def _recommend(
        self, histories: Sequence[Sequence[str]], k: int
    ) -> Iterator[list[Recommendation]]:
        """`recommend` for histories that are read together."""
        # The samples of a history are seeded by its items: the same history, the same answer.
        names = ["\x1f".join(history) for history in histories]
        for found in self._retriever(histories, names, None, k):
            yield [
                Recommendation(
                    self.catalogue.item_ids[place], float(score), self.catalogue.fields[place]
                )
                for place, score in zip(found.places, found.scores, strict=True)
            ]

    def check(self, history: Sequence[str | int]) -> None:
        """Raises CalrecError where `recommend` could not take `history`."""
        self._checked(history)

    def _checked(self, history: Sequence[str | int]) -> list[str]:
        """The item ids as the catalogue has them. Raises as `check`."""
        if len(history) == 0:  # an array has no truth
            raise CalrecError("an empty history: give at least one item id")
        try:
            item_ids = [records.id_text(item_id, "item id") for item_id in history]
        except records.Reject as reason:
            raise CalrecError(f"{reason}, in the history") from None
        self.catalogue.places(item_ids)
        return item_ids
