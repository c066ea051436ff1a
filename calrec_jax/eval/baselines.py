"""Baselines that need no training, on the same users and the same catalogue (method: the bar).

Symbols of the formulas: h_1 ... h_m is a user's history, oldest first, i an item, n(i) the events
of i in the training split, [.] is 1 where its statement holds and else 0.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import scipy.sparse

from calrec_jax import metrics
from calrec_jax.errors import CalrecError
from calrec_jax.eval import outcomes
from calrec_jax.eval.outcomes import Score
from calrec_jax.retrieval import fusion
from calrec_jax.retrieval.bm25 import BM25Config, BM25Index
from calrec_jax.text.items import Catalogue, UserSequence

TITLE = ("title",)
TEXT = ("title", "brand", "category")
WEIGHTS = (0.1, 0.2, 0.5, 1.0, 2.0, 5.0)
"""Of BM25 in the hybrid, of which validation chooses one."""

_CHOOSING_USERS = 10_000  # of validation, at most
# Sums in another order differ by rounding. Scores that differ by less than this are a tie.
_DECIMALS = 9


@dataclasses.dataclass(frozen=True)
class BaselineData:
    """What baselines may learn from: never the test split.

    Attributes:
      train: the training sequences, in which all events count, targets as well.
      catalogue: whose items are ranked.
      validation: users of the validation split, to choose by.
      bm25: the parameters of the baselines that are made of BM25.
      seen: whether items of a history may be recommended, see `fusion.seen_places`.
    """

    train: Sequence[UserSequence]
    catalogue: Catalogue
    validation: Sequence[UserSequence] = ()
    bm25: BM25Config = BM25Config()
    seen: str = "allow"

    @functools.cached_property
    def places(self) -> list[list[int]]:
        """The training sequences as places in the catalogue."""
        return [self.catalogue.places(user.item_ids) for user in self.train]

    @functools.cached_property
    def events(self) -> np.ndarray:
        """n(i), int64 [items]."""
        flat = [place for places in self.places for place in places]
        return np.bincount(np.array(flat, np.int64), minlength=len(self.catalogue))

    @functools.cached_property
    def cosines(self) -> scipy.sparse.csr_matrix:
        """cos(j, i) of `item_knn`, float64 [items, items]."""
        return _cosines(self)

    @functools.cached_property
    def indexes(self) -> dict[tuple[str, ...], tuple[list[str], BM25Index]]:
        """{fields: (texts, their index)} of those that `texts` was asked for."""
        return {}

    def texts(self, fields: tuple[str, ...]) -> tuple[list[str], BM25Index]:
        """The values of `fields` of each item, joined by spaces, and their index; made once.

        Raises:
          CalrecError: no item has any of the fields.
        """
        if fields not in self.indexes:
            texts = [
                " ".join(filter(None, map(item.get, fields))) for item in self.catalogue.fields
            ]
            if not any(texts):
                raise CalrecError(
                    f"no item of {self.catalogue.domain} has {' or '.join(fields)}, of which BM25 "
                    f"baselines are made: leave them and the hybrid out of "
                    f"EvaluationConfig.baselines"
                )
            self.indexes[fields] = texts, BM25Index(texts, self.bm25)
        return self.indexes[fields]


def popularity(known: BaselineData) -> Score:
    """score(i) = n(i), the same for all users.

    The validation and the test item of a user are in no training sequence.
    """
    row = known.events.astype(np.float64)
    return lambda histories: np.broadcast_to(row, (len(histories), len(row)))


def last_item_repeated(known: BaselineData) -> Score:
    """score(i) = [i = h_m]; all other items tie."""

    def score(histories):
        scores = np.zeros((len(histories), len(known.catalogue)))
        scores[np.arange(len(histories)), _last_places(histories, known.catalogue)] = 1.0
        return scores

    return score


def bm25(known: BaselineData, fields: tuple[str, ...], exclude_last: bool) -> Score:
    """score(i) = BM25(text of h_m as the query, text of i as the document), see `BM25Index`.

    Args:
      fields: whose values make an item's text.
      exclude_last: h_m itself scores minus infinity. It is else the best answer to its own text.

    Raises:
      CalrecError: as `BaselineData.texts`.
    """
    texts, index = known.texts(fields)

    def score(histories):
        last = _last_places(histories, known.catalogue)
        scores = index.scores([texts[place] for place in last])
        if exclude_last:
            scores[np.arange(len(last)), last] = -np.inf
        return scores

    return score


def co_occurrence(known: BaselineData) -> Score:
    """score(i) = how often i is the very next item after h_m in the training sequences.

    A first-order Markov chain (as in Rendle et al., WWW 2010, but counted). Ties, most of them at
    zero, go to the more popular item.
    """
    size = len(known.catalogue)
    pairs = [pair for places in known.places for pair in zip(places, places[1:], strict=False)]
    before, after = np.array(pairs, np.int64).reshape(-1, 2).T
    counts = scipy.sparse.csr_matrix((np.ones(len(pairs)), (before, after)), shape=(size, size))
    return _by_popularity(known, lambda histories: counts[_last_places(histories, known.catalogue)])


def item_knn(known: BaselineData) -> Score:
    """score(i) = sum over k of 1 / (m - k + 1) * cos(h_k, i), with all items as neighbours.

        cos(j, i) = |U(j) & U(i)| / sqrt(|U(j)| |U(i)|), and 0 for j = i

    where U(i) are the users who have i in their training sequence: item-based collaborative
    filtering with the cosine of binary vectors (Sarwar et al., WWW 2001; Deshpande & Karypis, ACM
    TOIS 2004), the items of the history weighted by how recent they are. Ties go to the more
    popular item. The similarities take memory for every pair of items that some user has.
    """
    similar = known.cosines

    def score(histories):
        places = [known.catalogue.places(history) for history in histories]
        weights = [1 / np.arange(len(row), 0, -1) for row in places]
        splits = np.cumsum([0, *map(len, places)])
        shape = (len(places), len(known.catalogue))
        recent = scipy.sparse.csr_matrix(
            (_joined(weights, np.float64), _joined(places, np.int64), splits), shape=shape
        )
        return recent @ similar

    return _by_popularity(known, score)


def _cosines(known: BaselineData) -> scipy.sparse.csr_matrix:
    """float64 [items, items], the diagonal zero."""
    distinct = [sorted(set(places)) for places in known.places]
    splits = np.cumsum([0, *map(len, distinct)])
    columns = _joined(distinct, np.int64)
    shape = (len(distinct), len(known.catalogue))
    has = scipy.sparse.csr_matrix((np.ones(len(columns)), columns, splits), shape=shape)
    users = np.asarray(has.sum(axis=0)).ravel()
    both = (has.T @ has).tocoo()
    values = both.data / np.sqrt(users[both.row] * users[both.col])
    values[both.row == both.col] = 0.0
    similar = scipy.sparse.csr_matrix((values, (both.row, both.col)), shape=both.shape)
    similar.eliminate_zeros()
    return similar


def _by_popularity(known: BaselineData, part: Callable[[Sequence[Sequence[str]]], Any]) -> Score:
    """Rows of `part` divided by their maximum, and ties broken by popularity.

        score(i) = part(i) / max part, to 9 decimals, + 1e-10 r(i)

    where r(i) in [0, 1) is the place of n(i) among its distinct values, divided by their number.

    Args:
      part: histories -> sparse float64 [histories, items], not negative.
    """
    values, order = np.unique(known.events, return_inverse=True)
    rank = order.ravel() / len(values) * 10.0 ** -(_DECIMALS + 1)

    def score(histories):
        scores = part(histories).tocsr()
        scores.data = np.round(scores.data / _largest(scores), _DECIMALS)
        return scores.toarray() + rank

    return score


def _largest(scores: scipy.sparse.csr_matrix) -> np.ndarray:
    """The largest value of its row for each value that is stored; all are positive."""
    sizes = np.diff(scores.indptr)
    filled = sizes > 0
    # Rows follow each other without gaps. SciPy's own maximum would sort the columns first.
    starts = scores.indptr[:-1][filled]
    largest = np.maximum.reduceat(scores.data, starts) if len(starts) else np.zeros(0)
    return np.repeat(largest, sizes[filled])


@dataclasses.dataclass(frozen=True)
class HybridChoice:
    """What validation chose for the hybrid.

    Attributes:
      part: "item_knn" or "co_occurrence".
      weight: w of BM25.
      ndcg: NDCG@10 of that choice on validation.
      users: of validation, by whom it was chosen.
    """

    part: str
    weight: float
    ndcg: float
    users: int


class HybridBaseline:
    """score(i) = part(i) + w * bm25(i) / max bm25, and minus infinity for h_m.

    part is `item_knn` or `co_occurrence`, whose maximum is 1; bm25 that of `TEXT`, its maximum
    taken over the items other than h_m (the linear combination of Fox & Shaw, TREC-2 1994, scaled
    by the maximum). part and w in `WEIGHTS` are those of the best NDCG@10 on validation; of equal
    ones the first, parts in this order and weights ascending.

    Attributes:
      choice: part and w.

    Raises:
      CalrecError: there are no validation users, or as `BaselineData.texts`.
    """

    def __init__(self, known: BaselineData):
        if not known.validation:
            raise CalrecError(
                f"the hybrid baseline is chosen on the validation split, and that of "
                f"{known.catalogue.domain} is empty: leave it out of EvaluationConfig.baselines"
            )
        self._known = known
        self._bm25 = bm25(known, TEXT, exclude_last=True)
        self._parts = {"item_knn": item_knn(known), "co_occurrence": co_occurrence(known)}
        self.choice = self._choose(_sample(known.validation))

    def __call__(self, histories: Sequence[Sequence[str]]) -> np.ndarray:
        return self.scores(histories, self.choice.part, self.choice.weight)

    def scores(self, histories: Sequence[Sequence[str]], part: str, weight: float) -> np.ndarray:
        """float64 [histories, items] for any part and weight."""
        text = fusion.scaled(self._bm25(histories), "max")
        return self._parts[part](histories) + weight * text

    def _choose(self, users: Sequence[UserSequence]) -> HybridChoice:
        choices = [(part, weight) for part in self._parts for weight in WEIGHTS]
        bounds: list[list[tuple[int, int]]] = [[] for _ in choices]
        for some in outcomes.blocks(users, self._known.catalogue):
            histories = [user.history for user in some]
            places = [*map(self._known.catalogue.places, histories)]
            targets = self._known.catalogue.places([user.target for user in some])
            text = fusion.scaled(self._bm25(histories), "max")
            parts = {name: part(histories) for name, part in self._parts.items()}
            for found, (part, weight) in zip(bounds, choices, strict=True):
                rows = fusion.without_seen(parts[part] + weight * text, places, self._known.seen)
                found += map(metrics.rank_bounds, rows, targets)
        gains = [metrics.per_user(*np.array(found).T)["ndcg@10"].mean() for found in bounds]
        best = int(np.argmax(gains))
        return HybridChoice(*choices[best], float(gains[best]), len(users))


def _sample(users: Sequence[UserSequence]) -> list[UserSequence]:
    """All users, or so many of them, always the same."""
    if len(users) <= _CHOOSING_USERS:
        return list(users)
    drawn = np.random.default_rng(0).choice(len(users), _CHOOSING_USERS, replace=False)
    return [users[i] for i in np.sort(drawn)]


BASELINES: dict[str, Callable[[BaselineData], Score]] = {
    "popularity": popularity,
    "last_item_repeated": last_item_repeated,
    "bm25_title": functools.partial(bm25, fields=TITLE, exclude_last=False),
    "bm25_title_others": functools.partial(bm25, fields=TITLE, exclude_last=True),
    "bm25_text": functools.partial(bm25, fields=TEXT, exclude_last=False),
    "bm25_text_others": functools.partial(bm25, fields=TEXT, exclude_last=True),
    "co_occurrence": co_occurrence,
    "item_knn": item_knn,
    "hybrid": HybridBaseline,
}
"""Makers by name: BaselineData -> Score. "others" are the items other than the last one."""


def _last_places(histories: Sequence[Sequence[str]], catalogue: Catalogue) -> list[int]:
    return catalogue.places([history[-1] for history in histories])


def _joined(rows: Sequence[Sequence], dtype: type) -> np.ndarray:
    return np.concatenate([np.zeros(0, dtype), *(np.asarray(row, dtype) for row in rows)])
