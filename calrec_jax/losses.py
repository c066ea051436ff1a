"""CALRec's three losses: next-item cross-entropy (L_NIG) and two InfoNCE losses (L_TT, L_UT).

    L = (1 - alpha - beta) L_NIG + alpha L_TT + beta L_UT          (method: Loss)

All are means over the *global* batch: the arrays may be sharded over any mesh, and jit inserts the
communication that the sums need.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp

from calrec_jax.errors import CalrecError

DIRECTIONS = ("users", "items", "both")


@dataclasses.dataclass(frozen=True)
class LossConfig:
    """Weights and variants of the losses. With alpha = beta = 0 the item tower is not computed.

    Attributes:
      alpha, beta: weights of L_TT and L_UT (unverified: from one secondary source).
      temperature: tau of InfoNCE (unverified).
      direction: what InfoNCE's denominator sums over: "users" for a fixed item (the paper's
        formula), "items" for a fixed user, or the mean of "both" (unverified).
      mask_same_target: leave pairs of different joint sequences with the same target item, which
        are false negatives, out of the denominators (beyond the paper).
      same_domain_negatives: only negatives of the pair's own domain (beyond the paper).
    """

    alpha: float = 0.125  # unverified
    beta: float = 0.025  # unverified; one source prints -0.025
    temperature: float = 0.5  # unverified
    direction: str = "users"  # unverified
    mask_same_target: bool = False
    same_domain_negatives: bool = False

    def __post_init__(self):
        if self.direction not in DIRECTIONS:
            raise CalrecError(f"LossConfig.direction {self.direction!r} is none of {DIRECTIONS}")
        if self.temperature <= 0:
            raise CalrecError(f"LossConfig.temperature {self.temperature} is not positive")

    @property
    def contrastive(self) -> bool:
        """Whether the item tower is needed."""
        return self.alpha != 0 or self.beta != 0


def next_item_nll(
    hidden_BxSxD: jax.Array,
    unembed: Callable[[jax.Array], jax.Array],
    targets_BxS: jax.Array,
    weights_BxS: jax.Array,
    max_loss_tokens: int,
) -> tuple[jax.Array, jax.Array]:
    """Negative log-likelihood of the target items' tokens (L_NIG, before the mean).

    Hidden states are gathered at the positions of a row that carry weight, at most
    `max_loss_tokens`, so that logits exist for these alone.

    Args:
      hidden_BxSxD: the decoder's hidden states.
      unembed: hidden states [..., D] -> logits [..., V].
      targets_BxS: int32, the token to predict at each position.
      weights_BxS: float32, 0 where nothing is predicted.
      max_loss_tokens: M.

    Returns:
      (sum of weighted -log p, sum of weights), float32 scalars.
    """
    weightless_BxS = (weights_BxS == 0).astype(jnp.int32)
    positions_BxM = jnp.argsort(weightless_BxS, axis=1, stable=True)[:, :max_loss_tokens]
    hidden_BxMxD = jnp.take_along_axis(hidden_BxSxD, positions_BxM[:, :, None], axis=1)
    targets_BxM = jnp.take_along_axis(targets_BxS, positions_BxM, axis=1)
    weights_BxM = jnp.take_along_axis(weights_BxS, positions_BxM, axis=1)

    logits_BxMxV = unembed(hidden_BxMxD).astype(jnp.float32)
    target_logits_BxM = jnp.take_along_axis(logits_BxMxV, targets_BxM[:, :, None], axis=-1)[..., 0]
    nll_BxM = jax.nn.logsumexp(logits_BxMxV, axis=-1) - target_logits_BxM
    return jnp.sum(nll_BxM * weights_BxM), jnp.sum(weights_BxM)


def _unit(x_NxD: jax.Array) -> jax.Array:
    """Rows scaled to length 1; zero rows (empty slots) stay zero, with a finite gradient."""
    square_Nx1 = jnp.sum(x_NxD * x_NxD, axis=-1, keepdims=True)
    return x_NxD * jax.lax.rsqrt(jnp.maximum(square_Nx1, 1e-24))


def info_nce(
    a_NxD: jax.Array,
    b_NxD: jax.Array,
    allowed_NxN: jax.Array,
    temperature: float,
    direction: str,
) -> jax.Array:
    """The sum over i of -log softmax of cos(a_i, b_i) / tau among the allowed pairs.

    "users" compares a_i with all a_j for the fixed b_i, "items" compares b_i with all b_j for the
    fixed a_i, "both" is their mean (method: Loss).

    Args:
      a_NxD, b_NxD: float32, matching rows; rows of empty slots may be anything finite.
      allowed_NxN: bool, which (a_j, b_i) are in the denominators; False on the diagonal for empty
        slots.
      temperature, direction: see `LossConfig`.

    Returns:
      float32 scalar, not yet divided by the number of rows.
    """
    similarity_NxN = (
        jnp.matmul(_unit(a_NxD), _unit(b_NxD).T, precision=jax.lax.Precision.HIGHEST) / temperature
    )
    present_N = jnp.diagonal(allowed_NxN)
    positive_N = jnp.diagonal(similarity_NxN)
    masked_NxN = jnp.where(allowed_NxN, similarity_NxN, -1e30)

    def one_way(axis: int) -> jax.Array:
        losses_N = jax.nn.logsumexp(masked_NxN, axis=axis) - positive_N
        return jnp.sum(jnp.where(present_N, losses_N, 0.0))

    if direction == "users":
        return one_way(axis=0)
    if direction == "items":
        return one_way(axis=1)
    return (one_way(axis=0) + one_way(axis=1)) / 2


def allowed_pairs(item_ids_N: jax.Array, domain_ids_N: jax.Array, config: LossConfig) -> jax.Array:
    """[N, N] bool: which pairs InfoNCE may compare. Empty slots (item id 0) pair with nothing."""
    n = item_ids_N.shape[0]
    present_N = item_ids_N != 0
    allowed_NxN = present_N[:, None] & present_N[None, :]
    if config.mask_same_target:
        same_target_NxN = item_ids_N[:, None] == item_ids_N[None, :]
        allowed_NxN &= ~same_target_NxN | jnp.eye(n, dtype=bool)
    if config.same_domain_negatives:
        allowed_NxN &= domain_ids_N[:, None] == domain_ids_N[None, :]
    return allowed_NxN


@jax.tree_util.register_dataclass
@dataclasses.dataclass
class LossSums:
    """Sums over a batch, so that losses of several batches can be added exactly.

    Attributes:
      nll, tokens: for L_NIG, the sum of -log p and the number of target tokens.
      tt, ut, examples: for L_TT and L_UT, the sums of InfoNCE terms and the number of joint
        sequences.
    """

    nll: jax.Array
    tokens: jax.Array
    tt: jax.Array
    ut: jax.Array
    examples: jax.Array

    def means(self, config: LossConfig) -> dict[str, jax.Array]:
        """{"loss", "nig"[, "tt", "ut"]}, float32 scalars (method: Loss).

        For the sums of several batches, the contrastive terms are means of in-batch losses.
        """
        nig = self.nll / jnp.maximum(self.tokens, 1.0)
        if not config.contrastive:
            return {"loss": nig, "nig": nig}
        examples = jnp.maximum(self.examples, 1.0)
        tt, ut = self.tt / examples, self.ut / examples
        nig_weight = 1.0 - config.alpha - config.beta
        loss = nig_weight * nig + config.alpha * tt + config.beta * ut
        return {"loss": loss, "nig": nig, "tt": tt, "ut": ut}
