"""The decoder: hidden states of packed rows, prefill, and one-token steps over a shared prefix.

It returns hidden states and never logits for whole rows: the loss and the sampler own the
unembedding and apply it only where it is needed.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp

from calrec_jax.models import attention
from calrec_jax.models.attention import Attention, PerAttentionKind
from calrec_jax.models.config import DecoderConfig
from calrec_jax.models.kv_cache import Continuations, Prefix
from calrec_jax.models.layers import GatedMLP, RMSNorm, soft_cap
from calrec_jax.parallel.partitioning import (
    constrain,
    gathered,
    keeps_all_but_gathered,
    unplaced,
)

_HIDDEN = ("batch", "length", "embed")
_TABLE = ("vocab", "embed")


@flax.struct.dataclass
class _Rows:
    """What all layers share when whole rows are read. `keep` = hand out keys and values."""

    rotations: PerAttentionKind
    masks: PerAttentionKind
    keep: bool = flax.struct.field(pytree_node=False, default=False)


@flax.struct.dataclass
class _Step:
    """What all layers share when each continuation gets one token, at place `step`."""

    rotations: PerAttentionKind
    masks: PerAttentionKind
    step: jax.Array


class Block(nn.Module):
    """x + attention(norm(x)), then x + mlp(norm(x)). In the form that `nn.scan` wants."""

    config: DecoderConfig

    @nn.compact
    def __call__(self, x, shared: _Rows | _Step, layer: tuple[Any, Any]):
        c = self.config
        kind, cache = layer
        rotation, mask = shared.rotations.of(kind), shared.masks.of(kind)
        attend, normed = Attention(c, name="attention"), RMSNorm(c, name="attention_norm")(x)
        if isinstance(shared, _Step):
            out, kv = attend.decode(normed, rotation, mask, *cache, shared.step)
        else:
            out, kv = attend(normed, rotation, mask)
            kv = kv if shared.keep else None
        if c.post_norms:
            out = RMSNorm(c, name="attention_post_norm")(out)
        x = constrain(x + out, _HIDDEN)
        out = GatedMLP(c, name="mlp")(RMSNorm(c, name="mlp_norm")(x))
        if c.post_norms:
            out = RMSNorm(c, name="mlp_post_norm")(out)
        return constrain(x + out, _HIDDEN), kv


_REMAT_POLICIES = {
    "none": keeps_all_but_gathered,
    "dots": jax.checkpoint_policies.checkpoint_dots_with_no_batch_dims,
    "full": jax.checkpoint_policies.nothing_saveable,
}


class Decoder(nn.Module):
    """A causal decoder of `config.num_layers` blocks.

    Parameters carry logical axis names (vocab, embed, heads, kv_heads, kv, mlp, layers); what they
    map to on a mesh is `parallel.partitioning`'s business.
    """

    config: DecoderConfig

    def setup(self):
        c = self.config
        self.embedding = self._table("embedding")
        if not c.tie_embeddings:
            self.unembedding = self._table("unembedding")
        block = Block
        if c.remat != "none" or c.scan_layers:
            block = nn.remat(Block, policy=_REMAT_POLICIES[c.remat], prevent_cse=not c.scan_layers)
        if c.scan_layers:
            self.layers = nn.scan(
                block,
                variable_axes={"params": 0},
                split_rngs={"params": True},
                in_axes=(nn.broadcast, 0),
                length=c.num_layers,
                metadata_params={nn.PARTITION_NAME: "layers"},
            )(c)
        else:
            self.layers = [block(c) for _ in range(c.num_layers)]
        self.final_norm = RMSNorm(c)

    def _table(self, name: str) -> jax.Array:
        """A parameter [V, D], as it is computed with.

        All that reads it in one `apply` shares it, and so the sum of its gradient over devices.
        """
        c = self.config
        normal = nn.initializers.normal(c.d_model**-0.5)
        init = nn.with_logical_partitioning(normal, _TABLE)
        value = self.param(name, init, (c.vocab_size, c.d_model), jnp.dtype(c.param_dtype))
        return gathered(value.astype(c.dtype), _TABLE)

    def _run_layers(self, x, shared, cache=None):
        """All blocks. `cache` and the returned keys and values are one each layer.

        Those of scanned layers are not kept.
        """
        kinds = PerAttentionKind.places(self.config)
        if self.config.scan_layers:
            return self.layers(x, shared, (jnp.asarray(kinds, jnp.int32), None))
        kept = []
        for i, layer in enumerate(self.layers):
            x, kv = layer(x, shared, (kinds[i], cache and cache[i]))
            kept.append(kv)
        return x, tuple(kept)

    def _embed(self, tokens: jax.Array) -> jax.Array:
        x = jnp.take(self.embedding, tokens, axis=0)
        if self.config.scale_embedding:
            x = x * jnp.asarray(self.config.d_model**0.5, x.dtype)
        return constrain(x, _HIDDEN)

    def _rows(self, positions_BxS, segment_ids_BxS, keep: bool = False) -> _Rows:
        rotations = attention.rotations(self.config, positions_BxS)
        return _Rows(rotations, attention.packed_masks(self.config, segment_ids_BxS), keep)

    def __call__(self, tokens_BxS, positions_BxS, segment_ids_BxS) -> jax.Array:
        """Hidden states of packed rows, after the final norm.

        Args:
          tokens_BxS, positions_BxS, segment_ids_BxS: int32; segment 0 is padding, and attention
            never crosses segments.

        Returns:
          [B, S, D] in the compute dtype.
        """
        shared = self._rows(positions_BxS, segment_ids_BxS)
        x_BxSxD, _ = self._run_layers(self._embed(tokens_BxS), shared)
        return self.final_norm(x_BxSxD)

    def unembed(self, hidden: jax.Array) -> jax.Array:
        """Logits of hidden states: [..., D] -> [..., V], float32."""
        table_VxD = self.embedding if self.config.tie_embeddings else self.unembedding
        logits = jnp.matmul(hidden, table_VxD.T, preferred_element_type=jnp.float32)
        logits = constrain(logits, ("batch", *[None] * (logits.ndim - 2), "vocab"))
        return soft_cap(logits, self.config.logit_softcap)

    def prefill(self, tokens_BxP, mask_BxP) -> tuple[jax.Array, Prefix]:
        """Reads whole prompts, padded on the right; of a decoder made by `for_generation`.

        Args:
          tokens_BxP: int32, BOS included.
          mask_BxP: bool, False on padding.

        Returns:
          Hidden states of each prompt's last token, [B, D], and the prompts' keys and values.

        Raises:
          ValueError: layers are scanned.
        """
        if self.config.scan_layers:
            raise ValueError("scanned layers keep no caches: see `for_generation`")
        length = tokens_BxP.shape[1]
        positions = jnp.broadcast_to(jnp.arange(length)[None], tokens_BxP.shape)
        shared = self._rows(positions, mask_BxP.astype(jnp.int32), keep=True)
        x_BxPxD, layers = self._run_layers(self._embed(tokens_BxP), shared)
        layers = jax.tree.map(lambda a_BxPxGxK: jnp.swapaxes(a_BxPxGxK, 1, 2), layers)
        lengths_B = mask_BxP.sum(axis=1).astype(jnp.int32)
        last = jnp.take_along_axis(x_BxPxD, (lengths_B - 1)[:, None, None], axis=1)[:, 0]
        return self.final_norm(last), Prefix(layers, mask_BxP, lengths_B)

    def decode(
        self, tokens_BxN, prefix: Prefix, written: Continuations
    ) -> tuple[jax.Array, Continuations]:
        """One more token of each of N continuations of each prompt.

        Args:
          tokens_BxN: int32, the tokens to read (those sampled last).

        Returns:
          Hidden states [B, N, D] and the cache with this token's keys and values.
        """
        c, step = self.config, written.length
        positions = jnp.broadcast_to((prefix.lengths + step)[:, None], tokens_BxN.shape)
        room = written.layers[0][0].shape[3]
        masks = attention.step_masks(c, prefix.mask, prefix.lengths, room, step)
        shared = _Step(attention.rotations(c, positions), masks, step)
        cache = tuple(zip(prefix.layers, written.layers, strict=True))
        x_BxNxD, layers = self._run_layers(self._embed(tokens_BxN), shared, cache)
        return self.final_norm(x_BxNxD), Continuations(layers, step + 1)


def boxed_params(decoder: Decoder, key: jax.Array):
    """Fresh parameters, boxed with their logical axes."""
    tokens = jnp.zeros((1, 1), jnp.int32)
    # The one row is there to ask for parameters, and lies along no mesh.
    with unplaced():
        return decoder.init(key, tokens, tokens, tokens)["params"]


def unboxed(boxed):
    """The parameters alone."""
    # flax would constrain them, and they are split by `partitioning.param_shardings`.
    with unplaced():
        return nn.meta.unbox(boxed)


def for_generation(decoder: Decoder, params) -> tuple[Decoder, Any]:
    """The same function as a decoder that generates fast, and its parameters.

    Layers stand in a loop, so that a step reads their parameters and caches where they lie and
    copies no slices of them; parameters are of the type that is computed with, where the decoder
    would round them at each step. Norms' scales stay: they are computed with in float32.
    """
    c = decoder.config

    def rounded(path, leaf):
        return leaf if path[-1].key == "scale" else leaf.astype(c.dtype)

    def converted(params):
        params = jax.tree_util.tree_map_with_path(rounded, params)
        if not c.scan_layers:
            return params
        layers = {
            f"layers_{i}": jax.tree.map(lambda leaf, i=i: leaf[i], params["layers"])
            for i in range(c.num_layers)
        }
        return {name: leaf for name, leaf in params.items() if name != "layers"} | layers

    alone = Decoder(dataclasses.replace(c, scan_layers=False, remat="none"))
    return alone, jax.jit(converted)(params)
