"""Baselines that need no training, on the same users and the same catalogue (docs/evaluation.md).

Symbols of the formulas: h_1 ... h_m is a user's history, oldest first, i an item, n(i) the events
of i in the training split, [.] is 1 where its statement holds and 0 otherwise.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Sequence

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
"""The weights of BM25 in the hybrid, of which validation chooses one."""

_MAX_CHOOSING_USERS = 10_000  # of validation
# Sums in another order differ by rounding. Scores that differ by less than this are a tie.
_DECIMALS = 9


SparseScore = Callable[[Sequence[Sequence[str]]], scipy.sparse.csr_matrix]
"""Histories of item ids -> scores, float64 [histories, items], not negative, mostly 0."""


@dataclasses.dataclass(frozen=True)
class BaselineData:
    """What baselines may learn from: never the test split.

    Attributes:
      train: the training sequences, in which all events count, targets as well.
      catalogue: the items that are ranked.
      validation: the users of the validation split, to choose by.
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
        """The training sequences, items by their places in the catalogue."""
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
        """{fields: (texts, their index)}, a cache that `texts` fills."""
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


def popularity(data: BaselineData) -> Score:
    """score(i) = n(i), the same for all users.

    The validation and the test item of a user are in no training sequence.
    """
    row = data.events.astype(np.float64)
    return lambda histories: np.broadcast_to(row, (len(histories), len(row)))


def last_item_repeated(data: BaselineData) -> Score:
    """score(i) = [i = h_m]; all other items tie."""

    def score(histories: Sequence[Sequence[str]]) -> np.ndarray:
        scores = np.zeros((len(histories), len(data.catalogue)))
        scores[np.arange(len(histories)), _last_places(histories, data.catalogue)] = 1.0
        return scores

    return score


def bm25(data: BaselineData, fields: tuple[str, ...], exclude_last: bool) -> Score:
    """score(i) = BM25(text of h_m as the query, text of i as the document), see `BM25Index`.

    Args:
      fields: the fields whose values make an item's text.
      exclude_last: h_m itself scores minus infinity. Otherwise it is the best answer to its own
        text.

    Raises:
      CalrecError: as `BaselineData.texts`.
    """
    texts, index = data.texts(fields)

    def score(histories: Sequence[Sequence[str]]) -> np.ndarray:
        last = _last_places(histories, data.catalogue)
        scores = index.scores([texts[place] for place in last])
        if exclude_last:
            scores[np.arange(len(last)), last] = -np.inf
        return scores

    return score


def co_occurrence(data: BaselineData) -> Score:
    """score(i) = how often i is the very next item after h_m in the training sequences.

    A first-order Markov chain (as in Rendle et al., WWW 2010, but counted). Ties, most of them at
    zero, go to the more popular item.
    """
    size = len(data.catalogue)
    pairs = [pair for places in data.places for pair in zip(places, places[1:], strict=False)]
    before, after = np.array(pairs, np.int64).reshape(-1, 2).T
    counts = scipy.sparse.csr_matrix((np.ones(len(pairs)), (before, after)), shape=(size, size))
    return _by_popularity(data, lambda histories: counts[_last_places(histories, data.catalogue)])


def item_knn(data: BaselineData) -> Score:
    """score(i) = sum over k of 1 / (m - k + 1) * cos(h_k, i), with all items as neighbours.

        cos(j, i) = |U(j) & U(i)| / sqrt(|U(j)| |U(i)|), and 0 for j = i

    where U(i) is the set of users who have i in their training sequence: item-based collaborative
    filtering with the cosine of binary vectors (Sarwar et al., WWW 2001; Deshpande & Karypis, ACM
    TOIS 2004), the items of the history weighted by how recent they are. Ties go to the more
    popular item. The similarities take memory for every pair of items that some user has.
    """
    similar = data.cosines

    def score(histories: Sequence[Sequence[str]]) -> scipy.sparse.csr_matrix:
        places = [data.catalogue.places(history) for history in histories]
        weights = [1 / np.arange(len(row), 0, -1) for row in places]
        splits = np.cumsum([0, *map(len, places)])
        shape = (len(places), len(data.catalogue))
        recent = scipy.sparse.csr_matrix(
            (_concatenated(weights, np.float64), _concatenated(places, np.int64), splits),
            shape=shape,
        )
        return recent @ similar

    return _by_popularity(data, score)


def _cosines(data: BaselineData) -> scipy.sparse.csr_matrix:
    """cos(j, i), float64 [items, items], with zeros on the diagonal."""
    distinct = [sorted(set(places)) for places in data.places]
    splits = np.cumsum([0, *map(len, distinct)])
    columns = _concatenated(distinct, np.int64)
    shape = (len(distinct), len(data.catalogue))
    has = scipy.sparse.csr_matrix((np.ones(len(columns)), columns, splits), shape=shape)
    users = np.asarray(has.sum(axis=0)).ravel()
    both = (has.T @ has).tocoo()
    values = both.data / np.sqrt(users[both.row] * users[both.col])
    values[both.row == both.col] = 0.0
    similar = scipy.sparse.csr_matrix((values, (both.row, both.col)), shape=both.shape)
    similar.eliminate_zeros()
    return similar


def _by_popularity(data: BaselineData, sparse_score: SparseScore) -> Score:
    """Scores divided by their maximum, ties broken by popularity.

        score(i) = sparse_score(i) / max sparse_score, to 9 decimals, + 1e-10 r(i)

    where r(i) in [0, 1) is the index of n(i) among its distinct values, divided by their number.
    """
    values, order = np.unique(data.events, return_inverse=True)
    popularity_rank = order.ravel() / len(values) * 10.0 ** -(_DECIMALS + 1)

    def score(histories: Sequence[Sequence[str]]) -> np.ndarray:
        scores = sparse_score(histories).tocsr()
        scores.data = np.round(scores.data / _row_maxima(scores), _DECIMALS)
        return scores.toarray() + popularity_rank

    return score


def _row_maxima(scores: scipy.sparse.csr_matrix) -> np.ndarray:
    """For each stored value the maximum of its row. All stored values are positive."""
    sizes = np.diff(scores.indptr)
    filled = sizes > 0
    # Rows follow each other without gaps. SciPy's own maximum would sort the columns first.
    starts = scores.indptr[:-1][filled]
    maxima = np.maximum.reduceat(scores.data, starts) if len(starts) else np.zeros(0)
    return np.repeat(maxima, sizes[filled])


@dataclasses.dataclass(frozen=True)
class HybridChoice:
    """What validation chose for the hybrid.

    Attributes:
      part: "item_knn" or "co_occurrence".
      weight: w of BM25.
      ndcg: NDCG@10 with that choice on validation.
      users: the number of validation users by whom it was chosen.
    """

    part: str
    weight: float
    ndcg: float
    users: int


class HybridBaseline:
    """score(i) = part(i) + w * bm25(i) / max bm25, and minus infinity for h_m.

    part is `item_knn` or `co_occurrence`, whose maximum is 1; bm25 is that of `TEXT`, and its
    maximum is over the items other than h_m (the linear combination of Fox & Shaw, TREC-2 1994,
    scaled by the maximum). part, and w of `WEIGHTS`, have the best NDCG@10 on validation; of
    equally good choices the first counts, parts in this order and weights ascending.

    Attributes:
      choice: part and w.

    Raises:
      CalrecError: there are no validation users, or as `BaselineData.texts`.
    """

    def __init__(self, data: BaselineData) -> None:
        if not data.validation:
            raise CalrecError(
                f"the hybrid baseline is chosen on the validation split, and that of "
                f"{data.catalogue.domain} is empty: leave it out of EvaluationConfig.baselines"
            )
        self._data = data
        self._bm25 = bm25(data, TEXT, exclude_last=True)
        self._parts = {"item_knn": item_knn(data), "co_occurrence": co_occurrence(data)}
        self.choice = self._choose(_choosing_users(data.validation))

    def __call__(self, histories: Sequence[Sequence[str]]) -> np.ndarray:
        return self.scores(histories, self.choice.part, self.choice.weight)

    def scores(self, histories: Sequence[Sequence[str]], part: str, weight: float) -> np.ndarray:
        """The scores with any part and weight, float64 [histories, items]."""
        text = fusion.scaled(self._bm25(histories), "max")
        return self._parts[part](histories) + weight * text

    def _choose(self, users: Sequence[UserSequence]) -> HybridChoice:
        choices = [(part, weight) for part in self._parts for weight in WEIGHTS]
        bounds: list[list[tuple[int, int]]] = [[] for _ in choices]
        for block in outcomes.user_blocks(users, self._data.catalogue):
            histories = [user.history for user in block]
            places = [*map(self._data.catalogue.places, histories)]
            targets = self._data.catalogue.places([user.target for user in block])
            text = fusion.scaled(self._bm25(histories), "max")
            parts = {name: part(histories) for name, part in self._parts.items()}
            for choice_bounds, (part, weight) in zip(bounds, choices, strict=True):
                rows = fusion.without_seen(parts[part] + weight * text, places, self._data.seen)
                choice_bounds += map(metrics.rank_bounds, rows, targets)
        ndcgs = [metrics.per_user(*np.array(pairs).T)["ndcg@10"].mean() for pairs in bounds]
        best = int(np.argmax(ndcgs))
        return HybridChoice(*choices[best], float(ndcgs[best]), len(users))


def _choosing_users(users: Sequence[UserSequence]) -> list[UserSequence]:
    """All users, or a sample of `_MAX_CHOOSING_USERS`, always the same."""
    if len(users) <= _MAX_CHOOSING_USERS:
        return list(users)
    drawn = np.random.default_rng(0).choice(len(users), _MAX_CHOOSING_USERS, replace=False)
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
"""Baselines by name: BaselineData -> Score. "others" are the items other than the last one."""


def _last_places(histories: Sequence[Sequence[str]], catalogue: Catalogue) -> list[int]:
    """The places of the last items of histories."""
    return catalogue.places([history[-1] for history in histories])


def _concatenated(rows: Sequence[Sequence], dtype: type) -> np.ndarray:
    """The values of all rows in one array; there may be no rows."""
    return np.concatenate([np.zeros(0, dtype), *(np.asarray(row, dtype) for row in rows)])
