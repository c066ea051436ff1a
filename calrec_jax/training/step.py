"""One training step and one validation step, as pure functions to be jitted."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import optax

from calrec_jax import losses
from calrec_jax.batch import HISTORY, TARGET
from calrec_jax.losses import LossConfig, LossSums
from calrec_jax.models import lora, pooling
from calrec_jax.models.decoder import Decoder
from calrec_jax.training.state import TrainState


def item_vectors(decoder: Decoder, params, item_tokens_BxKxI, item_mask_BxKxI) -> jax.Array:
    """v_t of every slot: the target read alone, as its own sequence. [B*K, D] float32."""
    return decoder.apply(
        {"params": params}, item_tokens_BxKxI, item_mask_BxKxI, method=_item_vectors
    )


def _item_vectors(decoder: Decoder, item_tokens_BxKxI, item_mask_BxKxI) -> jax.Array:
    b, k, i = item_tokens_BxKxI.shape
    tokens_NxI = item_tokens_BxKxI.reshape(b * k, i)
    mask_NxI = item_mask_BxKxI.reshape(b * k, i)
    positions_NxI = jnp.broadcast_to(jnp.arange(i)[None], tokens_NxI.shape)
    # BOS (position 0) is read but enters no mean; padding is last, so no token attends to it.
    hidden_NxIxD = decoder(tokens_NxI, positions_NxI, jnp.ones_like(tokens_NxI))
    return pooling.pool_items(hidden_NxIxD, mask_NxI)


def loss_sums(
    decoder: Decoder, params, batch: dict[str, jax.Array], config: LossConfig, max_loss_tokens: int
) -> LossSums:
    """The three losses of a global batch (`batch.BatchSpec`), as sums."""
    # Both towers in one apply, which shares the embeddings.
    return decoder.apply({"params": params}, batch, config, max_loss_tokens, method=_loss_sums)


def _loss_sums(
    decoder: Decoder, batch: dict[str, jax.Array], config: LossConfig, max_loss_tokens: int
) -> LossSums:
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

    def pool(span):
        k = item_ids_BxK.shape[1]
        v_BxKxD = pooling.pool_span(
            hidden_BxSxD, segment_ids_BxS, batch["decoder_span_ids"], span, k
        )
        return v_BxKxD.reshape(-1, v_BxKxD.shape[-1])

    v_u, v_tu = pool(HISTORY), pool(TARGET)
    v_t = _item_vectors(decoder, batch["item_tokens"], batch["item_mask"])
    allowed = losses.allowed_pairs(item_ids_BxK.ravel(), batch["domain_ids"].ravel(), config)
    return LossSums(
        nll=nll,
        tokens=tokens,
        tt=losses.info_nce(v_tu, v_t, allowed, config.temperature, config.direction),
        ut=losses.info_nce(v_u, v_t, allowed, config.temperature, config.direction),
        examples=examples,
    )


def make_train_step(
    decoder: Decoder,
    tx: optax.GradientTransformation,
    schedule: optax.Schedule,
    config: LossConfig,
    max_loss_tokens: int,
):
    """train_step(state, frozen, batch) -> (state, metrics).

    `frozen` is what the decoder's parameters have besides those of the state, {} without adapters:
    there is no gradient of it, and the caller's arrays stay his.

    Metrics, float32 scalars: those of `LossSums.means`, and tokens, examples, grad_norm,
    learning_rate (the one this update used).
    """

    def loss_fn(trained, frozen, batch):
        params = lora.join(trained, frozen)
        sums = loss_sums(decoder, params, batch, config, max_loss_tokens)
        means = sums.means(config)
        return means["loss"], (means, sums)

    def train_step(state: TrainState, frozen, batch):
        grads, (means, sums) = jax.grad(loss_fn, has_aux=True)(state.params, frozen, batch)
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


def make_validation_step(decoder: Decoder, config: LossConfig, max_loss_tokens: int):
    """validation_step(params, batch) -> LossSums, of all of the decoder's parameters."""

    def validation_step(params, batch):
        return loss_sums(decoder, params, batch, config, max_loss_tokens)

    return validation_step
