"""The choice of the next token: filters of logits, random draws, and beams.

There are F candidates: the whole vocabulary, or the children of a trie's node. A candidate with a
logit of -inf is never chosen as long as there is another.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

_COLUMNS = 128


def sample(
    logits: jax.Array, uniforms: jax.Array, temperature: float, top_k: int | None, top_p: float
) -> jax.Array:
    """Indices of candidates drawn by the tempered softmax over those that the filters leave.

    Args:
      logits: [..., F] float32.
      uniforms: [..., 2] float32, random numbers in [0, 1).
      temperature: divides the logits; 0 = the likeliest candidate.
      top_k: only the likeliest k are left, the first in F among equals; None = all.
      top_p: see `nucleus`, which is applied after temperature and top_k.

    Returns:
      [...] int32.
    """
    if temperature == 0:
        return jnp.argmax(logits, axis=-1).astype(jnp.int32)
    indices = None
    if top_k is not None and top_k < logits.shape[-1]:
        logits, indices = jax.lax.top_k(logits, top_k)
    logits = logits / temperature
    if top_p < 1:
        logits = nucleus(logits, top_p)
    drawn = draw(logits, uniforms)
    if indices is None:
        return drawn
    return jnp.take_along_axis(indices, drawn[..., None], axis=-1)[..., 0]


def nucleus(logits: jax.Array, top_p: float) -> jax.Array:
    """The logits of the smallest set of likeliest candidates that has at least `top_p` of the
    probability, -inf for all others.

    Candidates as likely as the least likely one of the set are in it too. (Holtzman et al. 2020,
    arXiv 1904.09751)

    Args:
      logits: [..., F] float32.

    Returns:
      [..., F] float32.
    """
    weights = jnp.exp(logits - logits.max(axis=-1, keepdims=True))
    needed = top_p * weights.sum(axis=-1, keepdims=True)

    def halve(_: jax.Array, bounds: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        """One step of the bisection for the largest weight that, with all above it, is enough.

        Positive floats are ordered as their bits are, so that 30 steps find that weight exactly; a
        sort of F candidates would cost far more.
        """
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
    """Indices of candidates drawn by the softmax of logits, by inversion of its CDF.

    Two draws choose a column of a table of all candidates, then a row in that column. They need two
    random numbers and no sum along F, where Gumbel noise would need F random numbers.

    Args:
      logits: [..., F] float32.
      uniforms: [..., 2] float32 in [0, 1).

    Returns:
      [...] int32.
    """
    *batch, size = logits.shape
    rows = -(-size // _COLUMNS)
    pad = [(0, 0)] * len(batch) + [(0, rows * _COLUMNS - size)]
    table = jnp.pad(logits, pad, constant_values=-jnp.inf).reshape(*batch, rows, _COLUMNS)
    top = logits.max(axis=-1)[..., None, None]
    column = _inverse_cdf(jnp.exp(table - top).sum(axis=-2), uniforms[..., 0])
    in_column = jnp.take_along_axis(table, column[..., None, None], axis=-1)[..., 0]
    weights = jnp.exp(in_column - in_column.max(axis=-1, keepdims=True))
    return _inverse_cdf(weights, uniforms[..., 1]) * _COLUMNS + column


def _inverse_cdf(weights: jax.Array, uniform: jax.Array) -> jax.Array:
    """The first index at which the cumulative weight exceeds `uniform` times the total.

    An index of weight 0 is never returned.

    Args:
      weights: [..., F] float32, not negative.
      uniform: [...] float32 in [0, 1).

    Returns:
      [...] int32.
    """
    # Rounding may let the sum grow at a weight of 0; such indices are left out, of `total` too.
    cumulative = jnp.where(weights > 0, jnp.cumsum(weights, axis=-1), 0.0)
    total = cumulative.max(axis=-1)
    return jnp.argmax(cumulative > (uniform * total)[..., None], axis=-1).astype(jnp.int32)


def extend_beams(
    log_probs_BxNxF: jax.Array, sums_BxN: jax.Array, ended_BxN: jax.Array
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """The N best continuations of N beams. A beam that has ended continues unchanged.

    Args:
      log_probs_BxNxF: float32, of the candidates.
      sums_BxN: float32, log-probabilities of the beams so far; -inf = there is no such beam.
      ended_BxN: bool.

    Returns:
      (parents, the beams that are continued; indices of their candidates; sums), [B, N] int32,
      int32 and float32. The best comes first; of equal ones, that of the better beam, then the
      first in F. Where there are fewer than N, their sums are -inf and the rest is meaningless.
    """
    _, n, size = log_probs_BxNxF.shape
    unchanged_1x1xF = jnp.where(jnp.arange(size) == 0, 0.0, -jnp.inf)[None, None]
    log_probs_BxNxF = jnp.where(ended_BxN[..., None], unchanged_1x1xF, log_probs_BxNxF)
    k = min(n, size)  # no beam has more than N of the N best
    best_BxNxK, indices_BxNxK = jax.lax.top_k(log_probs_BxNxF, k)
    sums_BxNK = (sums_BxN[..., None] + best_BxNxK).reshape(-1, n * k)
    sums_BxN, chosen_BxN = jax.lax.top_k(sums_BxNK, n)
    indices_BxN = jnp.take_along_axis(indices_BxNxK.reshape(sums_BxNK.shape), chosen_BxN, axis=-1)
    return (chosen_BxN // k).astype(jnp.int32), indices_BxN.astype(jnp.int32), sums_BxN
