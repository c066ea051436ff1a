"""From histories to rankings of a catalogue: what a model says, and how it becomes items."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Protocol

import numpy as np

from calrec_jax import metrics
from calrec_jax.errors import CalrecError
from calrec_jax.eval.outcomes import MOST_SCORES, Score
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

# The model as a writer: (histories, names of the users) -> continuations of each history.
Generate = Callable[[Histories, Sequence[str]], list[list[Generated]]]

# The model as a tower: histories -> their vectors v_u, [histories, D].
Embed = Callable[[Histories], np.ndarray]


@dataclasses.dataclass(frozen=True)
class Ranking:
    """What was found for one history.

    Attributes:
      places: int64 [k] of the best items, best first; fewer where fewer may be recommended.
      scores: float64 [k].
      bounds: (low, high) rank of the target in the whole catalogue; None where no target was given.
      generated: distinct texts, the likeliest first.
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
        """A ranking of each history.

        Args:
          names: of the users; what is drawn for a user depends on it.
          targets: item ids, whose ranks are wanted; or None.
          k: items of a ranking, at most.

        Raises:
          CalrecError: an item is not in the catalogue, or the model has diverged.
        """


class BM25Lookup:
    """From generated texts to scores of the whole catalogue (method: Inference 2-3).

    A text none of whose words, labels aside, is in any item scores nothing. All items have the
    labels: scaled to [0, 1], what these score would be a vote for the shortest item.

    Args:
      index: of all items' texts, as `template` writes them.
      catalogue: whose items they are, in the same order.
      epsilon: of quasi-round-robin.
    """

    def __init__(self, index: BM25Index, catalogue: Catalogue, template: Template, epsilon: float):
        self._index, self._epsilon = index, epsilon
        self._template = template
        self._label_words = _label_words(catalogue, template)

    def scores(self, outputs: Sequence[Sequence[Generated]]) -> Iterator[np.ndarray]:
        """float64 [items] for each user's outputs.

        The texts of as many users as memory allows are looked up together.
        """
        voting = [self._voting(some) for some in outputs]
        while voting:
            together, voting = self._some(voting)
            rows = self._index.scores([text for texts, _ in together for text in texts])
            ends = np.cumsum([len(texts) for texts, _ in together])
            for (_, log_probs), of_user in zip(together, np.split(rows, ends[:-1]), strict=True):
                yield round_robin.quasi_round_robin(of_user, log_probs, self._epsilon)

    def _voting(self, outputs: Sequence[Generated]) -> tuple[list[str], np.ndarray]:
        """Those of one user's distinct texts that have a word of an item, and what `merge` says."""
        texts, log_probs = merge(outputs)
        places = [place for place, text in enumerate(texts) if self._has_word_of_an_item(text)]
        return [texts[place] for place in places], log_probs[places]

    def _has_word_of_an_item(self, text: str) -> bool:
        said = words(self._template.without_labels(text))
        return any(word in self._index and word not in self._label_words for word in said)

    def _some(self, voting: list) -> tuple[list, list]:
        """(the users whose scores are at most `MOST_SCORES`, but one at least; the others)."""
        sizes = np.cumsum([len(texts) for texts, _ in voting]) * self._index.num_items
        users = max(1, int(np.searchsorted(sizes, MOST_SCORES, side="right")))
        return voting[:users], voting[users:]


def _label_words(catalogue: Catalogue, template: Template) -> set[str]:
    """Words of the labels that no item has in a value."""
    left = {word for label in template.labels for word in words(label)}
    for fields in catalogue.fields:
        if not left:
            break
        left.difference_update(words(" ".join(fields.get(name) or "" for name in template.fields)))
    return left


class TrieLookup:
    """From texts of items to scores of the whole catalogue: nothing needs to be looked up.

    Args:
      items: of the catalogue.
      epsilon: as in quasi-round-robin, where each output would find its own items and no others.
    """

    def __init__(self, items: int, epsilon: float):
        self._items, self._epsilon = items, epsilon

    def scores(self, outputs: Sequence[Sequence[Generated]]) -> Iterator[np.ndarray]:
        """float64 [items] for each user's outputs: exp(epsilon * log-probability), 0 for items that
        no output names. Items with the same text tie.

        Raises:
          CalrecError: a log-probability is NaN.
        """
        for some in outputs:
            if np.isnan([generated.log_prob for generated in some]).any():
                raise CalrecError(round_robin.NOT_A_NUMBER)
            scores = np.zeros(self._items)
            for generated in some:
                places = list(generated.items)
                score = np.exp(self._epsilon * generated.log_prob)
                scores[places] = np.maximum(scores[places], score)
            yield scores


def merge(outputs: Sequence[Generated]) -> tuple[list[str], np.ndarray]:
    """The distinct texts of one user and their log-probabilities, the likeliest first."""
    return round_robin.merge_outputs([g.text for g in outputs], [g.log_prob for g in outputs])


class TextRetriever:
    """The method's way: the model writes items, and they are looked up.

    A user whose texts find no item has zeros for all of them: a tie over the whole catalogue.

    Args:
      generate: the model.
      lookup: makes items of its texts.
      catalogue: which is ranked.
      seen: whether items of the history may be recommended, see `fusion.seen_places`.
    """

    def __init__(
        self, generate: Generate, lookup: BM25Lookup | TrieLookup, catalogue: Catalogue, seen: str
    ):
        self.generate, self._lookup = generate, lookup
        self._catalogue, self._seen = catalogue, seen

    def scores(self, outputs: Sequence[Sequence[Generated]], histories: Histories) -> np.ndarray:
        """float64 [histories, items] of what was generated for them; -inf = excluded."""
        rows = np.array([*self._lookup.scores(outputs)]).reshape(-1, len(self._catalogue))
        return without_seen(rows, histories, self._catalogue, self._seen)

    def __call__(self, histories, names, targets, k):
        """See `Retriever`."""
        outputs = self.generate(histories, names)
        rows = self.scores(outputs, histories)
        yield from rankings(rows, targets, self._catalogue, k, outputs)


class DenseRetriever:
    """The towers as a retriever: the cosine of v_u and every item's v_t (method: Two towers).

    Args:
      embed: the model.
      index: of all items' vectors, in the catalogue's order.
      catalogue, seen: as of `TextRetriever`.
    """

    def __init__(self, embed: Embed, index: DenseIndex, catalogue: Catalogue, seen: str):
        self._embed, self._index = embed, index
        self._catalogue, self._seen = catalogue, seen

    def scores(self, histories: Histories) -> np.ndarray:
        """float64 [histories, items]; -inf = excluded."""
        rows = self._index.scores(self._embed(histories))
        return without_seen(rows, histories, self._catalogue, self._seen)

    def __call__(self, histories, names, targets, k):
        """See `Retriever`. The catalogue is searched on the device, no scores are brought here."""
        vectors = self._embed(histories)
        places = map(self._catalogue.places, histories)
        excluded = [fusion.seen_places(history, self._seen) for history in places]
        scores, best = self._index.top_k(vectors, k, excluded)
        bounds = [None] * len(histories)
        if targets is not None:
            of_targets = self._index.rank_bounds(vectors, self._catalogue.places(targets), excluded)
            bounds = [(int(low), int(high)) for low, high in zip(*of_targets, strict=True)]
        for row, some, bound in zip(scores, best, bounds, strict=True):
            kept = ~np.isneginf(row)
            yield Ranking(some[kept].astype(np.int64), row[kept].astype(np.float64), bound)


class HybridRetriever:
    """Both: the scores of texts, and `weight` times those of the towers, each from 0 to 1.

    Args:
      texts, dense: of the same catalogue and the same policy for seen items.
      weight: of the towers.
    """

    SCALE = "min_max"  # cosines of one model's vectors are all alike: their maximum says nothing

    def __init__(
        self, texts: TextRetriever, dense: DenseRetriever, catalogue: Catalogue, weight: float
    ):
        self._texts, self._dense, self._catalogue = texts, dense, catalogue
        self.weight = weight

    def __call__(self, histories, names, targets, k):
        """See `Retriever`."""
        outputs = self._texts.generate(histories, names)
        a, b = self._texts.scores(outputs, histories), self._dense.scores(histories)
        rows = fusion.fuse(a, b, self.weight, self.SCALE)
        yield from rankings(rows, targets, self._catalogue, k, outputs)


class ScoreRetriever:
    """A model that scores the items itself: a baseline.

    Args:
      score: the model.
      catalogue, seen: as of `TextRetriever`.
    """

    def __init__(self, score: Score, catalogue: Catalogue, seen: str):
        self._score, self._catalogue, self._seen = score, catalogue, seen

    def __call__(self, histories, names, targets, k):
        """See `Retriever`. As many histories as memory allows are scored together."""
        size = max(1, MOST_SCORES // len(self._catalogue))
        for start in range(0, len(histories), size):
            some = histories[start : start + size]
            wanted = None if targets is None else targets[start : start + size]
            rows = without_seen(self._score(some), some, self._catalogue, self._seen)
            yield from rankings(rows, wanted, self._catalogue, k, [()] * len(some))


def without_seen(
    scores: np.ndarray, histories: Histories, catalogue: Catalogue, seen: str
) -> np.ndarray:
    """`fusion.without_seen` of item ids."""
    return fusion.without_seen(scores, [*map(catalogue.places, histories)], seen)


def rankings(
    rows: np.ndarray,
    targets: Sequence[str] | None,
    catalogue: Catalogue,
    k: int,
    outputs: Sequence[Sequence[Generated]],
) -> Iterator[Ranking]:
    """Rankings by scores, float64 [histories, items]."""
    of_targets = [None] * len(rows) if targets is None else catalogue.places(targets)
    for row, target, some in zip(rows, of_targets, outputs, strict=True):
        places = round_robin.ranked(row, k)
        places = places[~np.isneginf(row[places])]
        bounds = None if target is None else metrics.rank_bounds(row, target)
        items = {generated.text: generated.items for generated in some}
        merged = zip(*merge(some), strict=True)
        generated = tuple(Generated(text, float(p), items[text]) for text, p in merged)
        yield Ranking(places, row[places], bounds, generated)
