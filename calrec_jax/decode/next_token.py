"""Which token follows: filters of logits, draws, and beams.

F candidates: the whole vocabulary, or the children of a trie's node. Those with a logit of -inf are
never chosen, as long as another is there.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

_COLUMNS = 128


def sample(logits, uniforms, temperature: float, top_k: int | None, top_p: float) -> jax.Array:
    """Places among F of what is drawn by the tempered softmax of what the filters leave.

    Args:
      logits: float32 [..., F].
      uniforms: [..., 2] random numbers in [0, 1).
      temperature: 0 = the likeliest.
      top_k: only the likeliest k, or None; of equal ones those first in F.
      top_p: see `nucleus`; it comes after temperature and top_k.

    Returns:
      int32 [...].
    """
    if temperature == 0:
        return jnp.argmax(logits, axis=-1).astype(jnp.int32)
    places = None
    if top_k is not None and top_k < logits.shape[-1]:
        logits, places = jax.lax.top_k(logits, top_k)
    logits = logits / temperature
    if top_p < 1:
        logits = nucleus(logits, top_p)
    drawn = draw(logits, uniforms)
    return drawn if places is None else _take(places, drawn)


def nucleus(logits: jax.Array, top_p: float) -> jax.Array:
    """The smallest set of likeliest candidates of at least `top_p` of the probability, else -inf.

    Candidates as likely as its least likely one are in it too. (Holtzman et al. 2020, arXiv
    1904.09751)

    Args:
      logits: float32 [..., F].
    """
    weights = jnp.exp(logits - logits.max(axis=-1, keepdims=True))
    needed = top_p * weights.sum(axis=-1, keepdims=True)

    def halve(_, bounds):
        """Looks for the largest weight such that it and all above are enough: a float's bits are in
        its order, so that 30 passes find it exactly, where a sort of F would cost far more."""
        enough, too_few = bounds
        middle = (enough + too_few) // 2
        least = jax.lax.bitcast_convert_type(middle, jnp.float32)
        mass = jnp.where(weights >= least, weights, 0.0).sum(axis=-1, keepdims=True)
        is_enough = mass >= needed
        return jnp.where(is_enough, middle, enough), jnp.where(is_enough, too_few, middle)

    above_one = jax.lax.bitcast_convert_type(jnp.float32(1), jnp.int32) + 1
    zero = jnp.zeros(needed.shape, jnp.int32)
    enough, _ = jax.lax.fori_loop(0, 30, halve, (zero, zero + above_one))
    least = jax.lax.bitcast_convert_type(enough, jnp.float32)
    return jnp.where(weights >= least, logits, -jnp.inf)


def draw(logits: jax.Array, uniforms: jax.Array) -> jax.Array:
    """Places drawn by the softmax of logits, by inversion of its distribution function.

    In two steps, a column of a table of all candidates and a row of the column: that takes two
    random numbers and no sums along F, where Gumbel noise would take F random numbers.

    Args:
      logits: float32 [..., F].
      uniforms: [..., 2] in [0, 1).

    Returns:
      int32 [...].
    """
    *batch, size = logits.shape
    rows = -(-size // _COLUMNS)
    pad = [(0, 0)] * len(batch) + [(0, rows * _COLUMNS - size)]
    table = jnp.pad(logits, pad, constant_values=-jnp.inf).reshape(*batch, rows, _COLUMNS)
    top = logits.max(axis=-1)[..., None, None]
    column = _invert(jnp.exp(table - top).sum(axis=-2), uniforms[..., 0])
    of_column = jnp.take_along_axis(table, column[..., None, None], axis=-1)[..., 0]
    weights = jnp.exp(of_column - of_column.max(axis=-1, keepdims=True))
    return _invert(weights, uniforms[..., 1]) * _COLUMNS + column


def _invert(weights: jax.Array, uniform: jax.Array) -> jax.Array:
    """The first place where the sum of weights is above `uniform` of all; never one of weight 0."""
    # Roundings may let the sum grow at a weight of 0: those count for nothing, in `total` too.
    reached = jnp.where(weights > 0, jnp.cumsum(weights, axis=-1), 0.0)
    total = reached.max(axis=-1)
    return jnp.argmax(reached > (uniform * total)[..., None], axis=-1).astype(jnp.int32)


def beams(log_probs, sums, ended) -> tuple[jax.Array, jax.Array, jax.Array]:
    """The N best continuations of N beams; one that has ended continues as it is.

    Args:
      log_probs: [B, N, F] of the candidates.
      sums: [B, N] of the beams so far; -inf = there is no such beam.
      ended: [B, N] bool.

    Returns:
      (beams that are continued, places among F, sums) [B, N], int32 and float32, the best first; of
      equal ones those of the better beam, then those first in F. Where there are fewer than N, sums
      of -inf, and what goes with them means nothing.
    """
    _, n, size = log_probs.shape
    as_it_is = jnp.where(jnp.arange(size) == 0, 0.0, -jnp.inf)[None, None]
    log_probs = jnp.where(ended[..., None], as_it_is, log_probs)
    k = min(n, size)
    best, places = jax.lax.top_k(log_probs, k)  # no beam has more than N of the N best
    flat = (sums[..., None] + best).reshape(-1, n * k)
    sums, chosen = jax.lax.top_k(flat, n)
    places = jnp.take_along_axis(places.reshape(flat.shape), chosen, axis=-1)
    return (chosen // k).astype(jnp.int32), places.astype(jnp.int32), sums


def _take(values: jax.Array, places: jax.Array) -> jax.Array:
    return jnp.take_along_axis(values, places[..., None], axis=-1)[..., 0]
