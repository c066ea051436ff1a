"""The losses of a batch and one training step, as pure functions to be jitted."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp
import optax

from calrec_jax import losses
from calrec_jax.batch import HISTORY, TARGET
from calrec_jax.losses import LossConfig, LossSums
from calrec_jax.models import lora, towers
from calrec_jax.models.decoder import Decoder
from calrec_jax.models.params import Params
from calrec_jax.training.state import TrainState

Batch = Mapping[str, jax.Array]
"""A global batch on the device, see `batch.BatchSpec`."""


def loss_sums(
    decoder: Decoder, params: Params, batch: Batch, config: LossConfig, max_loss_tokens: int
) -> LossSums:
    """The three losses of a global batch (`batch.BatchSpec`), as sums."""
    # One apply for both towers and the logits: the embeddings are gathered once for all of them.
    return decoder.apply({"params": params}, batch, config, max_loss_tokens, method=_loss_sums)


def _loss_sums(
    decoder: Decoder, batch: Batch, config: LossConfig, max_loss_tokens: int
) -> LossSums:
    """`loss_sums` of a decoder that is bound to its parameters."""
    segment_ids_BxS = batch["decoder_segment_ids"]
    hidden_BxSxD = decoder(
        batch["decoder_input_tokens"], batch["decoder_positions"], segment_ids_BxS
    )
    nll, tokens = losses.next_item_nll(
        hidden_BxSxD,
        decoder.unembed,
        batch["decoder_target_tokens"],
        batch["decoder_loss_weights"],
        max_loss_tokens,
    )
    item_ids_BxK = batch["target_item_ids"]
    examples = jnp.sum(item_ids_BxK != 0).astype(jnp.float32)
    if not config.contrastive:
        zero = jnp.zeros((), jnp.float32)
        return LossSums(nll=nll, tokens=tokens, tt=zero, ut=zero, examples=examples)

    def pool(span: int) -> jax.Array:
        span_ids_BxS, k = batch["decoder_span_ids"], item_ids_BxK.shape[1]
        return towers.span_vectors(hidden_BxSxD, segment_ids_BxS, span_ids_BxS, span, k)

    v_u_NxD, v_tu_NxD = pool(HISTORY), pool(TARGET)
    v_t_NxD = towers.item_tower(decoder, batch["item_tokens"], batch["item_mask"])
    allowed_NxN = losses.allowed_pairs(item_ids_BxK.ravel(), batch["domain_ids"].ravel(), config)
    return LossSums(
        nll=nll,
        tokens=tokens,
        tt=losses.info_nce(v_tu_NxD, v_t_NxD, allowed_NxN, config.temperature, config.direction),
        ut=losses.info_nce(v_u_NxD, v_t_NxD, allowed_NxN, config.temperature, config.direction),
        examples=examples,
    )


def make_train_step(
    decoder: Decoder,
    tx: optax.GradientTransformation,
    schedule: optax.Schedule,
    config: LossConfig,
    max_loss_tokens: int,
) -> Callable[[TrainState, Params, Batch], tuple[TrainState, dict[str, jax.Array]]]:
    """train_step(state, frozen, batch) -> (state, metrics).

    `frozen` holds the decoder's parameters that are not in the state, {} without adapters. They
    have no gradient, and their arrays are not donated.

    Metrics are float32 scalars: those of `LossSums.means`, and tokens, examples, grad_norm,
    learning_rate (the one that this update used).
    """

    def loss(trained: Params, frozen: Params, batch: Batch) -> tuple[jax.Array, tuple]:
        params = lora.join(trained, frozen)
        sums = loss_sums(decoder, params, batch, config, max_loss_tokens)
        means = sums.means(config)
        return means["loss"], (means, sums)

    def train_step(
        state: TrainState, frozen: Params, batch: Batch
    ) -> tuple[TrainState, dict[str, jax.Array]]:
        grads, (means, sums) = jax.grad(loss, has_aux=True)(state.params, frozen, batch)
        updates, opt_state = tx.update(grads, state.opt_state, state.params)
        metrics = means | {
            "tokens": jnp.sum(batch["decoder_segment_ids"] != 0).astype(jnp.float32),
            "examples": sums.examples,
            "grad_norm": optax.tree.norm(grads),
            "learning_rate": jnp.asarray(schedule(state.step), jnp.float32),
        }
        params = optax.apply_updates(state.params, updates)
        return TrainState(state.step + 1, params, opt_state), metrics

    return train_step
