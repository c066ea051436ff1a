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
      item_id: the id of the item.
      score: the score of quasi-round-robin, in [0, 1]; with retrieval "dense" a cosine, with
        "hybrid" a number from 0 to 1 + the weight.
      fields: the item's fields, {name: text}.
    """

    item_id: str
    score: float
    fields: Fields


class Recommender:
    """Ranks a domain's catalogue for histories of item ids. `load` makes one."""

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
          model_dir: MODEL_DIR of the run; its config.gin names the store and the vocabulary.
          domain: the domain to rank; None = the first that the run evaluates.
          checkpoint: a checkpoint of the run, "stage1:best"; None = the one that it evaluates.
          bindings: "NAME=VALUE" of gin, over those of config.gin: `DATA_DIR='store'` if the store
            has moved, `mesh.MeshConfig.model=1` on another machine.

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
          histories: item ids, oldest first, at least one in each history; strings or integers, as
            `calrec prepare` takes them. `users_per_batch` of the evaluation are ranked at once.
          k: at least 1.

        Raises:
          CalrecError: a history is empty or names unknown items, which the line lists; or k is 0.
        """
        if k < 1:
            raise CalrecError(f"k is {k}: at least one item must be asked for")
        item_ids = []
        for number, history in enumerate(histories):
            try:
                item_ids.append(self._item_ids(history))
            except CalrecError as error:
                raise CalrecError(f"history {number}: {error}") from None
        starts = range(0, len(item_ids), self._batch_size)
        return [
            recommendations
            for start in starts
            for recommendations in self._recommend(item_ids[start : start + self._batch_size], k)
        ]

    def _recommend(
        self, histories: Sequence[Sequence[str]], k: int
    ) -> Iterator[list[Recommendation]]:
        """The recommendations for histories that the model reads together."""
        # Samples are seeded by these names, so the same history has the same answer.
        names = ["\x1f".join(history) for history in histories]
        for ranking in self._retriever(histories, names, None, k):
            yield [
                Recommendation(
                    self.catalogue.item_ids[place], float(score), self.catalogue.fields[place]
                )
                for place, score in zip(ranking.places, ranking.scores, strict=True)
            ]

    def check(self, history: Sequence[str | int]) -> None:
        """Raises CalrecError for a history that `recommend` does not accept."""
        self._item_ids(history)

    def _item_ids(self, history: Sequence[str | int]) -> list[str]:
        """The item ids as the catalogue has them. Raises as `check`."""
        if len(history) == 0:  # not `if not history`: it may be an array
            raise CalrecError("an empty history: give at least one item id")
        try:
            item_ids = [records.id_text(item_id, "item id") for item_id in history]
        except records.Reject as reason:
            raise CalrecError(f"{reason}, in the history") from None
        self.catalogue.places(item_ids)
        return item_ids
