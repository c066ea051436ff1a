"""Retrievers: from histories to rankings of a catalogue, by generated texts, vectors or scores."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Protocol

import numpy as np

from calrec_jax import metrics
from calrec_jax.errors import CalrecError
from calrec_jax.eval.outcomes import MAX_SCORES, Score
from calrec_jax.retrieval import fusion, round_robin
from calrec_jax.retrieval.bm25 import BM25Index
from calrec_jax.retrieval.words import words
from calrec_jax.text.generated import Generated
from calrec_jax.text.items import Catalogue
from calrec_jax.text.templates import Template

if TYPE_CHECKING:  # it would bring JAX along, which measuring does not need
    from calrec_jax.decode.dense import DenseIndex

Histories = Sequence[Sequence[str]]
"""Item ids, oldest first."""

Generate = Callable[[Histories, Sequence[str]], list[list[Generated]]]
"""The model as a generator of texts: (histories, user ids) -> continuations of each history."""

Embed = Callable[[Histories], np.ndarray]
"""The model as the user tower: histories -> their vectors v_u, [histories, D]."""


@dataclasses.dataclass(frozen=True)
class Ranking:
    """The ranking of the catalogue for one history.

    Attributes:
      places: int64 [k], places of the best items, best first; fewer where fewer may be recommended.
      scores: float64 [k], their scores.
      bounds: (low, high) rank of the target in the whole catalogue; None where no target was given.
      generated: the distinct generated texts, the likeliest first.
    """

    places: np.ndarray
    scores: np.ndarray
    bounds: tuple[int, int] | None
    generated: tuple[Generated, ...] = ()


class Retriever(Protocol):
    """Ranks a catalogue for histories."""

    def __call__(
        self, histories: Histories, names: Sequence[str], targets: Sequence[str] | None, k: int
    ) -> Iterator[Ranking]:
        """A ranking for each history.

        Args:
          names: of the users; the samples of a user's texts depend on the name.
          targets: ids of the items whose ranks are wanted, one a history; or None.
          k: the largest number of items in a ranking.

        Raises:
          CalrecError: an item is not in the catalogue, or the model has diverged.
        """


VotingTexts = tuple[list[str], np.ndarray]
"""Texts of one user that are looked up, and their log-probabilities, float64 [texts]."""


class BM25Lookup:
    """Scores of the whole catalogue from generated texts, by BM25 (method: Inference 2-3).

    A text votes if it has a word of an item, labels such as "Title:" not counted. All items have
    the labels: scaled to [0, 1], what these alone score would be a vote for the shortest item.

    Args:
      index: of all items' texts, as `template` renders them, in the catalogue's order.
      catalogue: the items.
      template: renders items as texts.
      epsilon: of quasi-round-robin.
    """

    def __init__(
        self, index: BM25Index, catalogue: Catalogue, template: Template, epsilon: float
    ) -> None:
        self._index, self._epsilon = index, epsilon
        self._template = template
        self._label_words = _label_words(catalogue, template)

    def scores(self, outputs: Sequence[Sequence[Generated]]) -> Iterator[np.ndarray]:
        """float64 [items] for each user's outputs.

        The texts of as many users as memory allows are looked up together.
        """
        waiting = [self._voting_texts(generated) for generated in outputs]
        while waiting:
            block, waiting = self._split_first_block(waiting)
            rows = self._index.scores([text for texts, _ in block for text in texts])
            ends = np.cumsum([len(texts) for texts, _ in block])
            for (_, log_probs), scores in zip(block, np.split(rows, ends[:-1]), strict=True):
                yield round_robin.quasi_round_robin(scores, log_probs, self._epsilon)

    def _voting_texts(self, generated: Sequence[Generated]) -> VotingTexts:
        """One user's distinct texts that have a word of an item, with their log-probabilities."""
        texts, log_probs = merge(generated)
        places = [place for place, text in enumerate(texts) if self._has_word_of_an_item(text)]
        return [texts[place] for place in places], log_probs[places]

    def _has_word_of_an_item(self, text: str) -> bool:
        text_words = words(self._template.without_labels(text))
        return any(word in self._index and word not in self._label_words for word in text_words)

    def _split_first_block(
        self, users: list[VotingTexts]
    ) -> tuple[list[VotingTexts], list[VotingTexts]]:
        """(the first users, with at most `MAX_SCORES` scores, but one at least; the others)."""
        sizes = np.cumsum([len(texts) for texts, _ in users]) * self._index.num_items
        count = max(1, int(np.searchsorted(sizes, MAX_SCORES, side="right")))
        return users[:count], users[count:]


def _label_words(catalogue: Catalogue, template: Template) -> set[str]:
    """The words of labels that no item has in a value."""
    in_no_item = {word for label in template.labels for word in words(label)}
    for fields in catalogue.fields:
        if not in_no_item:
            break
        values = " ".join(fields.get(name) or "" for name in template.fields)
        in_no_item.difference_update(words(values))
    return in_no_item


class TrieLookup:
    """Scores of the whole catalogue from texts under a trie, which know their items.

    Args:
      num_items: of the catalogue.
      epsilon: an item scores exp(epsilon * log-probability of its text), which is what
        quasi-round-robin gives where a text finds its own items alone.
    """

    def __init__(self, num_items: int, epsilon: float) -> None:
        self._num_items, self._epsilon = num_items, epsilon

    def scores(self, outputs: Sequence[Sequence[Generated]]) -> Iterator[np.ndarray]:
        """float64 [items] for each user's outputs: exp(epsilon * log-probability), 0 for items that
        no output names. Items with the same text tie.

        Raises:
          CalrecError: a log-probability is NaN.
        """
        for generated in outputs:
            if np.isnan([text.log_prob for text in generated]).any():
                raise CalrecError(round_robin.NOT_A_NUMBER)
            scores = np.zeros(self._num_items)
            for text in generated:
                places = list(text.items)
                score = np.exp(self._epsilon * text.log_prob)
                scores[places] = np.maximum(scores[places], score)
            yield scores


def merge(generated: Sequence[Generated]) -> tuple[list[str], np.ndarray]:
    """The distinct texts of one user and their log-probabilities, the likeliest first."""
    texts, log_probs = [x.text for x in generated], [x.log_prob for x in generated]
    return round_robin.merge_outputs(texts, log_probs)


class TextRetriever:
    """The method's retriever: the model generates texts of items, which are looked up.

    A user whose texts find no item has zeros for all items: a tie over the whole catalogue.

    Args:
      generate: the model.
      lookup: scores items by the generated texts.
      catalogue: the items that are ranked.
      seen: whether items of the history may be recommended, see `fusion.seen_places`.
    """

    def __init__(
        self, generate: Generate, lookup: BM25Lookup | TrieLookup, catalogue: Catalogue, seen: str
    ) -> None:
        self.generate, self._lookup = generate, lookup
        self._catalogue, self._seen = catalogue, seen

    def scores(self, outputs: Sequence[Sequence[Generated]], histories: Histories) -> np.ndarray:
        """float64 [histories, items] by the texts generated for them; -inf = excluded."""
        rows = np.array([*self._lookup.scores(outputs)]).reshape(-1, len(self._catalogue))
        return without_seen(rows, histories, self._catalogue, self._seen)

    def __call__(
        self, histories: Histories, names: Sequence[str], targets: Sequence[str] | None, k: int
    ) -> Iterator[Ranking]:
        """See `Retriever`."""
        outputs = self.generate(histories, names)
        rows = self.scores(outputs, histories)
        yield from rankings(rows, targets, self._catalogue, k, outputs)


class DenseRetriever:
    """The towers as a retriever: the cosine of v_u and every item's v_t (method: Two towers).

    Args:
      embed: the model.
      index: of all items' vectors, in the catalogue's order.
      catalogue, seen: as in `TextRetriever`.
    """

    def __init__(self, embed: Embed, index: DenseIndex, catalogue: Catalogue, seen: str) -> None:
        self._embed, self._index = embed, index
        self._catalogue, self._seen = catalogue, seen

    def scores(self, histories: Histories) -> np.ndarray:
        """float64 [histories, items]; -inf = excluded."""
        rows = self._index.scores(self._embed(histories))
        return without_seen(rows, histories, self._catalogue, self._seen)

    def __call__(
        self, histories: Histories, names: Sequence[str], targets: Sequence[str] | None, k: int
    ) -> Iterator[Ranking]:
        """See `Retriever`. The catalogue is searched on the device, and its scores stay there."""
        vectors = self._embed(histories)
        history_places = map(self._catalogue.places, histories)
        excluded = [fusion.seen_places(history, self._seen) for history in history_places]
        all_scores, all_places = self._index.top_k(vectors, k, excluded)
        bounds: list[tuple[int, int] | None] = [None] * len(histories)
        if targets is not None:
            lows_and_highs = self._index.rank_bounds(
                vectors, self._catalogue.places(targets), excluded
            )
            bounds = [(int(low), int(high)) for low, high in zip(*lows_and_highs, strict=True)]
        for scores, places, bound in zip(all_scores, all_places, bounds, strict=True):
            kept = ~np.isneginf(scores)
            yield Ranking(places[kept].astype(np.int64), scores[kept].astype(np.float64), bound)


class HybridRetriever:
    """Texts and towers together: the scores of texts + `weight` * those of the towers.

    Each user's scores are scaled to [0, 1] before.

    Args:
      texts, dense: of the same catalogue and the same policy for seen items.
      catalogue: the items that are ranked.
      weight: of the towers.
    """

    SCALE = "min_max"  # cosines of one model's vectors are all alike: their maximum says nothing

    def __init__(
        self, texts: TextRetriever, dense: DenseRetriever, catalogue: Catalogue, weight: float
    ) -> None:
        self._texts, self._dense, self._catalogue = texts, dense, catalogue
        self.weight = weight

    def __call__(
        self, histories: Histories, names: Sequence[str], targets: Sequence[str] | None, k: int
    ) -> Iterator[Ranking]:
        """See `Retriever`."""
        outputs = self._texts.generate(histories, names)
        a, b = self._texts.scores(outputs, histories), self._dense.scores(histories)
        rows = fusion.fuse(a, b, self.weight, self.SCALE)
        yield from rankings(rows, targets, self._catalogue, k, outputs)


class ScoreRetriever:
    """A model that scores the items itself, as baselines do.

    Args:
      score: the model.
      catalogue, seen: as in `TextRetriever`.
    """

    def __init__(self, score: Score, catalogue: Catalogue, seen: str) -> None:
        self._score, self._catalogue, self._seen = score, catalogue, seen

    def __call__(
        self, histories: Histories, names: Sequence[str], targets: Sequence[str] | None, k: int
    ) -> Iterator[Ranking]:
        """See `Retriever`. As many histories as memory allows are scored together."""
        size = max(1, MAX_SCORES // len(self._catalogue))
        for start in range(0, len(histories), size):
            block = histories[start : start + size]
            block_targets = None if targets is None else targets[start : start + size]
            rows = without_seen(self._score(block), block, self._catalogue, self._seen)
            yield from rankings(rows, block_targets, self._catalogue, k, [()] * len(block))


def without_seen(
    scores: np.ndarray, histories: Histories, catalogue: Catalogue, seen: str
) -> np.ndarray:
    """`fusion.without_seen` with histories of item ids."""
    return fusion.without_seen(scores, [*map(catalogue.places, histories)], seen)


def rankings(
    rows: np.ndarray,
    targets: Sequence[str] | None,
    catalogue: Catalogue,
    k: int,
    outputs: Sequence[Sequence[Generated]],
) -> Iterator[Ranking]:
    """Rankings of the catalogue by scores.

    Args:
      rows: float64 [histories, items], the scores.
      targets, k: as in `Retriever`.
      outputs: what was generated for each history.
    """
    target_places = [None] * len(rows) if targets is None else catalogue.places(targets)
    for row, target, generated in zip(rows, target_places, outputs, strict=True):
        places = round_robin.ranked(row, k)
        places = places[~np.isneginf(row[places])]
        bounds = None if target is None else metrics.rank_bounds(row, target)
        yield Ranking(places, row[places], bounds, _distinct(generated))


def _distinct(generated: Sequence[Generated]) -> tuple[Generated, ...]:
    """Each distinct text once, the likeliest first."""
    items = {one.text: one.items for one in generated}
    texts, log_probs = merge(generated)
    pairs = zip(texts, log_probs, strict=True)
    return tuple(Generated(text, float(log_prob), items[text]) for text, log_prob in pairs)
