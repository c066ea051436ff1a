"""Dense retrieval: the exact nearest items by cosine, in blocks on the device.

In shapes: Q queries, I items of the catalogue, N items of a block, E excluded items of a query.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from calrec_jax.errors import CalrecError

_NO_PLACE = np.iinfo(np.int32).max  # beyond the places of all blocks


class DenseIndex:
    """All vectors of a catalogue on the device, for exact search.

    Scores are cosines: dot products of vectors of length 1, summed in float32; a vector of zeros
    scores 0. They are computed for one block of items at a time, always by the same program.

    The number of queries is padded to a power of two, and so is the number of items excluded from
    each. Programs are compiled for each such number (those of `top_k` for each k as well), and not
    for each batch.

    Args:
      vectors: [I, D], in the catalogue's order.
      dtype: how the vectors are stored, "float32" or "bfloat16" (half the memory, items rounded).
      block: N, items whose scores are held at a time, float32 [Q, N].

    Raises:
      CalrecError: there are no vectors, some are not finite, or the dtype is another one.
    """

    def __init__(self, vectors: np.ndarray, *, dtype: str = "float32", block: int = 65_536):
        if dtype not in ("float32", "bfloat16"):
            raise CalrecError(f"vectors are stored as float32 or bfloat16, not as {dtype!r}")
        if not len(vectors):
            raise CalrecError("no vectors to search: the catalogue is empty")
        self._num_items = len(vectors)
        block = min(block, self._num_items)
        self._starts = range(0, self._num_items, block)
        self._blocks = [
            jax.device_put(_padded(_stored(vectors[start : start + block], dtype), block))
            for start in self._starts
        ]

    def __len__(self) -> int:
        return self._num_items

    def scores(self, queries: np.ndarray) -> np.ndarray:
        """All scores, on the host, bit for bit those that `top_k` finds for the same queries.

        Args:
          queries: [Q, D], vectors of any length but zero.

        Returns:
          float32 [Q, I].

        Raises:
          CalrecError: a query is not finite.
        """
        scores = np.empty((len(queries), self._num_items), np.float32)
        for start, block in self._scores(queries, None):
            of_block = scores[:, start : start + block.shape[1]]
            of_block[:] = np.asarray(block)[: len(queries), : of_block.shape[1]]
        return scores

    def top_k(
        self, queries: np.ndarray, k: int, excluded: Sequence[Sequence[int]] | None = None
    ) -> tuple[np.ndarray, np.ndarray]:
        """The k best items of each query, best first; equal scores in the catalogue's order.

        Args:
          queries: [Q, D], vectors of any length but zero.
          excluded: places of the items that each query must not find, none by default.

        Returns:
          float32 scores and int32 places, [Q, min(k, I)] each. Where fewer items are left, scores
          end in -inf, and the places there are meaningless.

        Raises:
          CalrecError: a query is not finite.
          ValueError: `excluded` is not one list of places for each query.
        """
        k, rows = min(k, self._num_items), _power_of_two(len(queries))
        best = (jnp.full((rows, k), -jnp.inf, jnp.float32), jnp.zeros((rows, k), jnp.int32))
        for start, scores in self._scores(queries, excluded):
            best = _merge_best(best, scores, start)
        scores, places = jax.device_get(best)
        return scores[: len(queries)], places[: len(queries)]

    def rank_bounds(
        self,
        queries: np.ndarray,
        targets: Sequence[int],
        excluded: Sequence[Sequence[int]] | None = None,
    ) -> tuple[np.ndarray, np.ndarray]:
        """The (low, high) ranks of each query's target, as in `metrics.rank_bounds`.

        A target that is itself excluded ties with all other excluded items, below the rest.

        Args:
          queries: [Q, D].
          targets: [Q], the targets' places.
          excluded: as in `top_k`.

        Returns:
          int64 [Q] each.

        Raises:
          CalrecError: a query is not finite.
          ValueError: there is not one target for each query, or one is not a place of an item; or
            for `excluded`, as `top_k`.
        """
        n = len(queries)
        targets = self._places(targets, "targets")
        if targets.shape != (n,):
            raise ValueError(f"{n} queries for targets {targets.shape}")
        targets = _padded(targets, _power_of_two(n))
        target_scores = jnp.zeros(len(targets), jnp.float32)
        for start, scores in self._scores(queries, excluded):
            target_scores = _pick_targets(target_scores, scores, targets - start)
        more = at_least = jnp.zeros(len(targets), jnp.int32)
        for start, scores in self._scores(queries, excluded):
            items_left = self._num_items - start
            more, at_least = _count_better(more, at_least, scores, target_scores, items_left)
        more, at_least = np.asarray(more, np.int64)[:n], np.asarray(at_least, np.int64)[:n]
        return 1 + more, at_least

    def _scores(
        self, queries: np.ndarray, excluded: Sequence[Sequence[int]] | None
    ) -> Iterator[tuple[int, jax.Array]]:
        """For each block, (the place of its first item, scores float32 [Q padded, N]).

        Scores are -inf on padding and on excluded items. Without queries there are no blocks.
        """
        if excluded is not None:
            excluded = self._padded_places(excluded, len(queries))
        if not len(queries):
            return
        rows = _power_of_two(len(queries))
        queries = jax.device_put(_padded(normalised(queries).astype(np.float32), rows))
        for start, vectors in zip(self._starts, self._blocks, strict=True):
            scores = _block_scores(queries, vectors, self._num_items - start)
            if excluded is not None:
                scores = _exclude(scores, excluded, start)
            yield start, scores

    def _padded_places(self, excluded: Sequence[Sequence[int]], num_queries: int) -> jax.Array:
        """The excluded places, int32 [Q padded, E padded]; `_NO_PLACE` on padding."""
        if len(excluded) != num_queries:
            raise ValueError(f"{num_queries} queries for {len(excluded)} lists of excluded items")
        most = _power_of_two(max(map(len, excluded), default=0))
        array = np.full((_power_of_two(num_queries), most), _NO_PLACE, np.int32)
        for row, places in zip(array, excluded, strict=False):
            row[: len(places)] = self._places(places, "excluded items")
        return jax.device_put(array)

    def _places(self, places: Sequence[int], name: str) -> np.ndarray:
        places = np.asarray(places, np.int32)
        if ((places < 0) | (places >= self._num_items)).any():
            raise ValueError(f"{name} must be places of the {self._num_items} items")
        return places


def normalised(vectors: np.ndarray) -> np.ndarray:
    """Vectors scaled to length 1; vectors of zeros stay as they are. float64 [n, D].

    Raises:
      CalrecError: a number is not finite.
    """
    vectors = np.asarray(vectors, np.float64)
    if not np.isfinite(vectors).all():
        raise CalrecError("vectors hold NaN or infinities: the model's weights have diverged")
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    return vectors / np.where(lengths > 0, lengths, 1.0)


def _stored(vectors: np.ndarray, dtype: str) -> np.ndarray:
    return normalised(vectors).astype(np.float32).astype(dtype)


def _power_of_two(n: int) -> int:
    """The least power of two that is no less than n; 0 for 0."""
    return 1 << (n - 1).bit_length() if n else 0


def _padded(array: np.ndarray, rows: int) -> np.ndarray:
    """`array` with rows of zeros appended, [rows, ...]."""
    return np.pad(array, [(0, rows - len(array)), *[(0, 0)] * (array.ndim - 1)])


@jax.jit
def _block_scores(queries_QxD: jax.Array, vectors_NxD: jax.Array, items_left: int) -> jax.Array:
    """Scores [Q, N] float32 of a block; -inf behind its first `items_left` items, on padding."""
    scores_QxN = jnp.matmul(
        queries_QxD, vectors_NxD.astype(jnp.float32).T, precision=jax.lax.Precision.HIGHEST
    )
    scores_QxN = jnp.where(scores_QxN == 0, 0.0, scores_QxN)  # `top_k` would put -0 below 0
    return jnp.where(jnp.arange(vectors_NxD.shape[0])[None] < items_left, scores_QxN, -jnp.inf)


@functools.partial(jax.jit, donate_argnums=0)
def _exclude(scores_QxN: jax.Array, excluded_QxE: jax.Array, start: int) -> jax.Array:
    """Scores with -inf on the excluded items, which are given by their places in the catalogue."""
    n = scores_QxN.shape[1]
    in_block_QxE = excluded_QxE - start
    # Negative indices would count from the end.
    in_block_QxE = jnp.where((in_block_QxE >= 0) & (in_block_QxE < n), in_block_QxE, n)
    query_Qx1 = jnp.arange(len(scores_QxN))[:, None]
    return scores_QxN.at[query_Qx1, in_block_QxE].set(-jnp.inf, mode="drop")


@functools.partial(jax.jit, donate_argnums=0)
def _merge_best(
    best: tuple[jax.Array, jax.Array], scores_QxN: jax.Array, start: int
) -> tuple[jax.Array, jax.Array]:
    """The best scores and places [Q, k] of earlier blocks and this one.

    `top_k` puts the first of equal scores first, so that these stay in the catalogue's order.
    """
    best_scores_QxK, best_places_QxK = best
    k = best_scores_QxK.shape[1]
    new_scores, new_indices = jax.lax.top_k(scores_QxN, min(k, scores_QxN.shape[1]))
    scores = jnp.concatenate([best_scores_QxK, new_scores], axis=1)
    places = jnp.concatenate([best_places_QxK, new_indices + start], axis=1)
    scores_QxK, chosen_QxK = jax.lax.top_k(scores, k)
    return scores_QxK, jnp.take_along_axis(places, chosen_QxK, axis=1)


@jax.jit
def _pick_targets(
    target_scores_Q: jax.Array, scores_QxN: jax.Array, in_block_Q: jax.Array
) -> jax.Array:
    """The targets' scores [Q], updated for the targets whose indices lie in this block."""
    n = scores_QxN.shape[1]
    is_here_Q = (in_block_Q >= 0) & (in_block_Q < n)
    index_Qx1 = jnp.clip(in_block_Q, 0, n - 1)[:, None]
    picked_Qx1 = jnp.take_along_axis(scores_QxN, index_Qx1, axis=1)
    return jnp.where(is_here_Q, picked_Qx1[:, 0], target_scores_Q)


@jax.jit
def _count_better(
    more_Q: jax.Array,
    at_least_Q: jax.Array,
    scores_QxN: jax.Array,
    target_scores_Q: jax.Array,
    items_left: int,
) -> tuple[jax.Array, jax.Array]:
    """The counts of items that score more than the target and at least as much, with this block."""
    # Padding has the same score as excluded items.
    is_item_1xN = jnp.arange(scores_QxN.shape[1])[None] < items_left
    targets_Qx1 = target_scores_Q[:, None]
    more_Q += (scores_QxN > targets_Qx1).sum(axis=1, dtype=jnp.int32)
    at_least_Q += (is_item_1xN & (scores_QxN >= targets_Qx1)).sum(axis=1, dtype=jnp.int32)
    return more_Q, at_least_Q
