"""Dense retrieval: exact nearest items by cosine, in blocks on the device."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from calrec_jax.errors import CalrecError


class DenseIndex:
    """All vectors of a catalogue on the device, to be searched exactly.

    Scores are cosines, products of vectors of length 1 summed in float32; a vector of zeros scores
    0. They are computed for a block of items at a time, always by the same program.

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
            jax.device_put(_padded(normalised(vectors[start : start + block]), block).astype(dtype))
            for start in self._starts
        ]

    def __len__(self) -> int:
        return self._items

    def top_k(self, queries: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
        """The k best items of each query, best first; equal scores in the catalogue's order.

        Compiles once for each number of queries.

        Args:
          queries: [queries, D], of any length but zero.

        Returns:
          float32 scores and int32 places, [queries, min(k, items)] each.

        Raises:
          CalrecError: a query is not finite.
        """
        k = min(k, self._items)
        best = (
            jnp.full((len(queries), k), -jnp.inf, jnp.float32),
            jnp.zeros((len(queries), k), jnp.int32),
        )
        for start, scores in self._scores(queries):
            best = _merged(best, scores, start)
        return jax.device_get(best)

    def rank_bounds(
        self, queries: np.ndarray, targets: Sequence[int]
    ) -> tuple[np.ndarray, np.ndarray]:
        """(low, high) rank of each query's target, as `metrics.rank_bounds` has them.

        Args:
          queries: [queries, D].
          targets: [queries], places.

        Returns:
          int64 [queries] each.

        Raises:
          CalrecError: a query is not finite.
          ValueError: not one target a query, or one that is no place of an item.
        """
        targets = np.asarray(targets, np.int32)
        if targets.shape != (len(queries),):
            raise ValueError(f"{len(queries)} queries for targets {targets.shape}")
        if ((targets < 0) | (targets >= self._items)).any():
            raise ValueError(f"targets must be places of the {self._items} items")
        mine = jnp.zeros(len(queries), jnp.float32)
        for start, scores in self._scores(queries):
            mine = _picked(mine, scores, targets - start)
        more = at_least = jnp.zeros(len(queries), jnp.int32)
        for _, scores in self._scores(queries):
            more, at_least = _counted(more, at_least, scores, mine)
        return 1 + np.asarray(more, np.int64), np.asarray(at_least, np.int64)

    def _scores(self, queries: np.ndarray) -> Iterator[tuple[int, jax.Array]]:
        """(place of its first item, float32 [queries, block]) of each block; -inf on padding."""
        queries = jax.device_put(normalised(queries).astype(np.float32))
        for start, vectors in zip(self._starts, self._blocks, strict=True):
            yield start, _block_scores(queries, vectors, self._items - start)


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


def _padded(vectors: np.ndarray, rows: int) -> np.ndarray:
    return np.pad(vectors.astype(np.float32), ((0, rows - len(vectors)), (0, 0)))


@jax.jit
def _block_scores(queries_QxD, vectors_NxD, items) -> jax.Array:
    scores_QxN = jnp.matmul(
        queries_QxD, vectors_NxD.astype(jnp.float32).T, precision=jax.lax.Precision.HIGHEST
    )
    return jnp.where(jnp.arange(vectors_NxD.shape[0])[None] < items, scores_QxN, -jnp.inf)


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
def _counted(more_Q, at_least_Q, scores_QxN, mine_Q) -> tuple[jax.Array, jax.Array]:
    more_Q += (scores_QxN > mine_Q[:, None]).sum(axis=1, dtype=jnp.int32)
    at_least_Q += (scores_QxN >= mine_Q[:, None]).sum(axis=1, dtype=jnp.int32)
    return more_Q, at_least_Q
