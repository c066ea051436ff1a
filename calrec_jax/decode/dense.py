"""Dense retrieval: exact nearest items by cosine, in blocks on the device."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from calrec_jax.errors import CalrecError

_NOWHERE = np.iinfo(np.int32).max  # a place that no block has


class DenseIndex:
    """All vectors of a catalogue on the device, to be searched exactly.

    Scores are cosines, products of vectors of length 1 summed in float32; a vector of zeros scores
    0. They are computed for a block of items at a time, always by the same program.

    Queries are padded to a power of two of them, and so are the items excluded from each: programs
    are compiled for each such number, `top_k`'s for each k as well, and not for each batch.

    Args:
      vectors: [items, D], one an item, in the catalogue's order.
      dtype: how they are stored, "float32" or "bfloat16" (half the memory, items rounded).
      block: items whose scores are held at a time, float32 [queries, block].

    Raises:
      CalrecError: there are no vectors, some are not finite, or another dtype.
    """

    def __init__(self, vectors: np.ndarray, *, dtype: str = "float32", block: int = 65_536):
        if dtype not in ("float32", "bfloat16"):
            raise CalrecError(f"vectors are stored as float32 or bfloat16, not as {dtype!r}")
        if not len(vectors):
            raise CalrecError("no vectors to search: the catalogue is empty")
        self._items = len(vectors)
        block = min(block, self._items)
        self._starts = range(0, self._items, block)
        self._blocks = [
            jax.device_put(_padded(_stored(vectors[start : start + block], dtype), block))
            for start in self._starts
        ]

    def __len__(self) -> int:
        return self._items

    def scores(self, queries: np.ndarray) -> np.ndarray:
        """All scores on the host, to the bit those that `top_k` has of the same queries.

        Args:
          queries: [queries, D], of any length but zero.

        Returns:
          float32 [queries, items].

        Raises:
          CalrecError: a query is not finite.
        """
        scores = np.empty((len(queries), self._items), np.float32)
        for start, block in self._scores(queries, None):
            there = scores[:, start : start + block.shape[1]]
            there[:] = np.asarray(block)[: len(queries), : there.shape[1]]
        return scores

    def top_k(
        self, queries: np.ndarray, k: int, excluded: Sequence[Sequence[int]] | None = None
    ) -> tuple[np.ndarray, np.ndarray]:
        """The k best items of each query, best first; equal scores in the catalogue's order.

        Args:
          queries: [queries, D], of any length but zero.
          excluded: places of the items that each query must not find, none by default.

        Returns:
          float32 scores and int32 places, [queries, min(k, items)] each. Where fewer items are
          left, scores end in -inf, and the places there are of no meaning.

        Raises:
          CalrecError: a query is not finite.
          ValueError: excluded are not lists of places, one a query.
        """
        k, rows = min(k, self._items), _power_of_two(len(queries))
        best = (jnp.full((rows, k), -jnp.inf, jnp.float32), jnp.zeros((rows, k), jnp.int32))
        for start, scores in self._scores(queries, excluded):
            best = _merged(best, scores, start)
        scores, places = jax.device_get(best)
        return scores[: len(queries)], places[: len(queries)]

    def rank_bounds(
        self,
        queries: np.ndarray,
        targets: Sequence[int],
        excluded: Sequence[Sequence[int]] | None = None,
    ) -> tuple[np.ndarray, np.ndarray]:
        """(low, high) rank of each query's target, as `metrics.rank_bounds` has them.

        A target that is itself excluded ties with all others that are, below the rest.

        Args:
          queries: [queries, D].
          targets: [queries], places.
          excluded: as of `top_k`.

        Returns:
          int64 [queries] each.

        Raises:
          CalrecError: a query is not finite.
          ValueError: not one target a query, or one that is no place of an item; excluded as in
            `top_k`.
        """
        n = len(queries)
        targets = self._places(targets, "targets")
        if targets.shape != (n,):
            raise ValueError(f"{n} queries for targets {targets.shape}")
        targets = _padded(targets, _power_of_two(n))
        mine = jnp.zeros(len(targets), jnp.float32)
        for start, scores in self._scores(queries, excluded):
            mine = _picked(mine, scores, targets - start)
        more = at_least = jnp.zeros(len(targets), jnp.int32)
        for start, scores in self._scores(queries, excluded):
            more, at_least = _counted(more, at_least, scores, mine, self._items - start)
        more, at_least = np.asarray(more, np.int64)[:n], np.asarray(at_least, np.int64)[:n]
        return 1 + more, at_least

    def _scores(
        self, queries: np.ndarray, excluded: Sequence[Sequence[int]] | None
    ) -> Iterator[tuple[int, jax.Array]]:
        """(place of its first item, float32 [padded queries, block]) of each block; none of none.

        -inf on padding and on items that are excluded.
        """
        if excluded is not None:
            excluded = self._as_array(excluded, len(queries))
        if not len(queries):
            return
        rows = _power_of_two(len(queries))
        queries = jax.device_put(_padded(normalised(queries).astype(np.float32), rows))
        for start, vectors in zip(self._starts, self._blocks, strict=True):
            scores = _block_scores(queries, vectors, self._items - start)
            if excluded is not None:
                scores = _without(scores, excluded, start)
            yield start, scores

    def _as_array(self, excluded: Sequence[Sequence[int]], queries: int) -> jax.Array:
        """int32 [padded queries, most that are excluded, padded]; `_NOWHERE` on padding."""
        if len(excluded) != queries:
            raise ValueError(f"{queries} queries for {len(excluded)} lists of excluded items")
        most = _power_of_two(max(map(len, excluded), default=0))
        array = np.full((_power_of_two(queries), most), _NOWHERE, np.int32)
        for row, places in zip(array, excluded, strict=False):
            row[: len(places)] = self._places(places, "excluded items")
        return jax.device_put(array)

    def _places(self, places: Sequence[int], name: str) -> np.ndarray:
        places = np.asarray(places, np.int32)
        if ((places < 0) | (places >= self._items)).any():
            raise ValueError(f"{name} must be places of the {self._items} items")
        return places


def normalised(vectors: np.ndarray) -> np.ndarray:
    """Vectors of length 1, those of zeros as they are. float64 [n, D].

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
    """The least that is no less than n; 0 of 0."""
    return 1 << (n - 1).bit_length() if n else 0


def _padded(array: np.ndarray, rows: int) -> np.ndarray:
    """`array` with zeros below, [rows, ...]."""
    return np.pad(array, [(0, rows - len(array)), *[(0, 0)] * (array.ndim - 1)])


@jax.jit
def _block_scores(queries_QxD, vectors_NxD, items) -> jax.Array:
    scores_QxN = jnp.matmul(
        queries_QxD, vectors_NxD.astype(jnp.float32).T, precision=jax.lax.Precision.HIGHEST
    )
    scores_QxN = jnp.where(scores_QxN == 0, 0.0, scores_QxN)  # `top_k` would put -0 below 0
    return jnp.where(jnp.arange(vectors_NxD.shape[0])[None] < items, scores_QxN, -jnp.inf)


@functools.partial(jax.jit, donate_argnums=0)
def _without(scores_QxN, excluded_QxE, start) -> jax.Array:
    n = scores_QxN.shape[1]
    places = excluded_QxE - start
    places = jnp.where((places >= 0) & (places < n), places, n)  # negative ones would count back
    queries = jnp.arange(len(scores_QxN))[:, None]
    return scores_QxN.at[queries, places].set(-jnp.inf, mode="drop")


@functools.partial(jax.jit, donate_argnums=0)
def _merged(best, scores_QxN, start) -> tuple[jax.Array, jax.Array]:
    """The best of those so far and of a block. `top_k` puts the first of equal scores first."""
    best_scores, best_places = best
    k = best_scores.shape[1]
    new_scores, new_places = jax.lax.top_k(scores_QxN, min(k, scores_QxN.shape[1]))
    scores = jnp.concatenate([best_scores, new_scores], axis=1)
    places = jnp.concatenate([best_places, new_places + start], axis=1)
    scores, chosen = jax.lax.top_k(scores, k)
    return scores, jnp.take_along_axis(places, chosen, axis=1)


@jax.jit
def _picked(mine_Q, scores_QxN, places_Q) -> jax.Array:
    """The targets' scores where the targets lie in this block, else what there was."""
    n = scores_QxN.shape[1]
    here = (places_Q >= 0) & (places_Q < n)
    found = jnp.take_along_axis(scores_QxN, jnp.clip(places_Q, 0, n - 1)[:, None], axis=1)
    return jnp.where(here, found[:, 0], mine_Q)


@jax.jit
def _counted(more_Q, at_least_Q, scores_QxN, mine_Q, items) -> tuple[jax.Array, jax.Array]:
    there = jnp.arange(scores_QxN.shape[1])[None] < items  # padding scores as excluded items do
    more_Q += (scores_QxN > mine_Q[:, None]).sum(axis=1, dtype=jnp.int32)
    at_least_Q += (there & (scores_QxN >= mine_Q[:, None])).sum(axis=1, dtype=jnp.int32)
    return more_Q, at_least_Q
