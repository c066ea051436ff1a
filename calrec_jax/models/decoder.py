"""The decoder: hidden states of packed rows, prefill, and one-token steps over a shared prefix.

It returns hidden states and never logits of whole rows: the loss and the sampler apply `unembed`,
and only where they need it.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp

from calrec_jax.models import attention
from calrec_jax.models.attention import Attention, PerAttentionKind
from calrec_jax.models.config import DecoderConfig
from calrec_jax.models.kv_cache import Continuations, KeysAndValues, Prefix
from calrec_jax.models.layers import GatedMLP, RMSNorm, soft_cap
from calrec_jax.models.params import Params
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
    """Inputs that all layers share when whole rows are read.

    Attributes:
      rotations, masks: see `attention.rotations`, `attention.packed_masks`.
      keep_cache: layers return their keys and values.
    """

    rotations: PerAttentionKind
    masks: PerAttentionKind
    keep_cache: bool = flax.struct.field(pytree_node=False, default=False)


@flax.struct.dataclass
class _Step:
    """Inputs that all layers share when each continuation gets one token.

    Attributes:
      rotations, masks: see `attention.rotations`, `attention.step_masks`.
      step: [] int32, the index of the token among the new ones.
    """

    rotations: PerAttentionKind
    masks: PerAttentionKind
    step: jax.Array


_LayerCache = tuple[KeysAndValues, KeysAndValues]
"""(prefix, written) of one layer, see `Attention.decode`."""
_LayerInputs = tuple[int | jax.Array, _LayerCache | None]
"""(index of the layer's kind of attention, its cache where it decodes)."""


class Block(nn.Module):
    """x + attention(norm(x)), then x + mlp(norm(x)). In the form that `nn.scan` wants."""

    config: DecoderConfig

    @nn.compact
    def __call__(
        self, x_BxSxD: jax.Array, shared: _Rows | _Step, layer: _LayerInputs
    ) -> tuple[jax.Array, KeysAndValues | None]:
        """One layer's output [B, S, D], and its keys and values where they are kept.

        Under `_Step` the axis S is N, the continuations, and the keys and values are `written` with
        the new token's; under `_Rows` they are [B, S, G, K].
        """
        c = self.config
        kind_index, cache = layer
        rotation, mask = shared.rotations.of(kind_index), shared.masks.of(kind_index)
        attend = Attention(c, name="attention")
        normed_BxSxD = RMSNorm(c, name="attention_norm")(x_BxSxD)
        if isinstance(shared, _Step):
            prefix, written = cache
            out_BxSxD, kv = attend.decode(
                normed_BxSxD, rotation, mask, prefix, written, shared.step
            )
        else:
            out_BxSxD, kv = attend(normed_BxSxD, rotation, mask)
            kv = kv if shared.keep_cache else None
        if c.post_norms:
            out_BxSxD = RMSNorm(c, name="attention_post_norm")(out_BxSxD)
        x_BxSxD = constrain(x_BxSxD + out_BxSxD, _HIDDEN)
        out_BxSxD = GatedMLP(c, name="mlp")(RMSNorm(c, name="mlp_norm")(x_BxSxD))
        if c.post_norms:
            out_BxSxD = RMSNorm(c, name="mlp_post_norm")(out_BxSxD)
        return constrain(x_BxSxD + out_BxSxD, _HIDDEN), kv


_REMAT_POLICIES = {
    "none": keeps_all_but_gathered,
    "dots": jax.checkpoint_policies.checkpoint_dots_with_no_batch_dims,
    "full": jax.checkpoint_policies.nothing_saveable,
}


class Decoder(nn.Module):
    """A causal decoder of `config.num_layers` blocks.

    Parameters carry logical axis names (vocab, embed, heads, kv_heads, kv, mlp, layers); what they
    map to on a mesh is decided by `parallel.partitioning`.
    """

    config: DecoderConfig

    def setup(self) -> None:
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
        """A parameter [V, D], gathered and in the compute dtype.

        All uses of it within one `apply` share the gathered array, and with it the sum of its
        gradient over devices.
        """
        c = self.config
        normal = nn.initializers.normal(c.d_model**-0.5)
        init = nn.with_logical_partitioning(normal, _TABLE)
        value = self.param(name, init, (c.vocab_size, c.d_model), jnp.dtype(c.param_dtype))
        return gathered(value.astype(c.dtype), _TABLE)

    def _run_layers(
        self,
        x_BxSxD: jax.Array,
        shared: _Rows | _Step,
        caches: Sequence[_LayerCache] | None = None,
    ) -> tuple[jax.Array, tuple[KeysAndValues | None, ...] | None]:
        """The output of the last block [B, S, D], and each block's keys and values.

        Scanned layers neither take nor return keys and values.
        """
        kind_indices = PerAttentionKind.layer_indices(self.config)
        if self.config.scan_layers:
            return self.layers(x_BxSxD, shared, (jnp.asarray(kind_indices, jnp.int32), None))
        kept = []
        for i, layer in enumerate(self.layers):
            x_BxSxD, kv = layer(x_BxSxD, shared, (kind_indices[i], caches and caches[i]))
            kept.append(kv)
        return x_BxSxD, tuple(kept)

    def _embed(self, tokens_BxS: jax.Array) -> jax.Array:
        x_BxSxD = jnp.take(self.embedding, tokens_BxS, axis=0)
        if self.config.scale_embedding:
            x_BxSxD = x_BxSxD * jnp.asarray(self.config.d_model**0.5, x_BxSxD.dtype)
        return constrain(x_BxSxD, _HIDDEN)

    def _rows(
        self, positions_BxS: jax.Array, segment_ids_BxS: jax.Array, keep_cache: bool = False
    ) -> _Rows:
        rotations = attention.rotations(self.config, positions_BxS)
        return _Rows(rotations, attention.packed_masks(self.config, segment_ids_BxS), keep_cache)

    def __call__(
        self, tokens_BxS: jax.Array, positions_BxS: jax.Array, segment_ids_BxS: jax.Array
    ) -> jax.Array:
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

    def prefill(self, tokens_BxP: jax.Array, mask_BxP: jax.Array) -> tuple[jax.Array, Prefix]:
        """Reads whole prompts, padded on the right. The decoder is one made by `for_generation`.

        Args:
          tokens_BxP: int32, BOS included.
          mask_BxP: bool, False on padding.

        Returns:
          Hidden states of each prompt's last token, [B, D] in the compute dtype, and the prompts'
          keys and values.

        Raises:
          ValueError: layers are scanned.
        """
        if self.config.scan_layers:
            raise ValueError("scanned layers keep no caches: see `for_generation`")
        length = tokens_BxP.shape[1]
        positions_BxP = jnp.broadcast_to(jnp.arange(length)[None], tokens_BxP.shape)
        shared = self._rows(positions_BxP, mask_BxP.astype(jnp.int32), keep_cache=True)
        x_BxPxD, layers = self._run_layers(self._embed(tokens_BxP), shared)
        layers = jax.tree.map(lambda a_BxPxGxK: jnp.swapaxes(a_BxPxGxK, 1, 2), layers)
        lengths_B = mask_BxP.sum(axis=1).astype(jnp.int32)
        last_BxD = jnp.take_along_axis(x_BxPxD, (lengths_B - 1)[:, None, None], axis=1)[:, 0]
        return self.final_norm(last_BxD), Prefix(layers, mask_BxP, lengths_B)

    def decode(
        self, tokens_BxN: jax.Array, prefix: Prefix, written: Continuations
    ) -> tuple[jax.Array, Continuations]:
        """Reads one more token of each of N continuations of each prompt.

        Args:
          tokens_BxN: int32, the tokens to read, which are those chosen last.

        Returns:
          Hidden states [B, N, D] in the compute dtype, and `written` with the tokens' keys and
          values.
        """
        c, step = self.config, written.length
        positions_BxN = jnp.broadcast_to((prefix.lengths + step)[:, None], tokens_BxN.shape)
        max_new_tokens = written.layers[0][0].shape[3]
        masks = attention.step_masks(c, prefix.mask, prefix.lengths, max_new_tokens, step)
        shared = _Step(attention.rotations(c, positions_BxN), masks, step)
        caches = tuple(zip(prefix.layers, written.layers, strict=True))
        x_BxNxD, layers = self._run_layers(self._embed(tokens_BxN), shared, caches)
        return self.final_norm(x_BxNxD), Continuations(layers, step + 1)


def boxed_params(decoder: Decoder, key: jax.Array) -> Params:
    """Fresh parameters, boxed with their logical axes."""
    tokens_1x1 = jnp.zeros((1, 1), jnp.int32)
    # The one row is only there to initialise parameters, and lies along no mesh.
    with unplaced():
        return decoder.init(key, tokens_1x1, tokens_1x1, tokens_1x1)["params"]


def unboxed(boxed: Params) -> Params:
    """Parameters without the boxes that name their logical axes."""
    # flax would constrain them, but `partitioning.param_shardings` decides how they are split.
    with unplaced():
        return nn.meta.unbox(boxed)


def for_generation(decoder: Decoder, params: Params) -> tuple[Decoder, Params]:
    """A decoder of the same function that generates fast, and its parameters.

    Its layers are in a loop, so that a step reads their parameters and caches in place and copies
    no slices of them. Its parameters are rounded to the compute dtype once, where the decoder would
    round them at each step; scales of norms, which are used in float32, stay as they are.
    """
    c = decoder.config

    def rounded(path: tuple[Any, ...], leaf: jax.Array) -> jax.Array:
        return leaf if path[-1].key == "scale" else leaf.astype(c.dtype)

    def converted(params: Params) -> Params:
        params = jax.tree_util.tree_map_with_path(rounded, params)
        if not c.scan_layers:
            return params
        layers = {
            f"layers_{i}": jax.tree.map(lambda leaf, i=i: leaf[i], params["layers"])
            for i in range(c.num_layers)
        }
        return {name: leaf for name, leaf in params.items() if name != "layers"} | layers

    generator = Decoder(dataclasses.replace(c, scan_layers=False, remat="none"))
    return generator, jax.jit(converted)(params)
