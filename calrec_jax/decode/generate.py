"""The program that continues prompts: a prefill, then one token of each continuation per step."""

from __future__ import annotations

import functools

import flax.struct
import jax
import jax.numpy as jnp

from calrec_jax.decode import next_token
from calrec_jax.decode.sampling import SamplingConfig
from calrec_jax.decode.trie import TrieArrays
from calrec_jax.models.decoder import Decoder
from calrec_jax.models.kv_cache import Continuations
from calrec_jax.models.params import Params


@flax.struct.dataclass
class GeneratedTokens:
    """N continuations of each of B prompts, finished or not.

    Attributes:
      tokens: [B, N, T] int32, without EOS, 0 after the end.
      lengths: [B, N] int32, tokens before EOS.
      log_probs: [B, N] float32, sums over tokens and EOS; -inf = there is no such beam.
      ended: [B, N] bool, whether EOS was chosen.
      nodes: [B, N] int32, the nodes of the trie that are reached; None without a trie.
    """

    tokens: jax.Array
    lengths: jax.Array
    log_probs: jax.Array
    ended: jax.Array
    nodes: jax.Array | None

    @classmethod
    def empty(cls, config: SamplingConfig, batch: int, in_trie: bool) -> GeneratedTokens:
        """Continuations without a token; with beams, the first of each prompt alone is there."""
        b, n, t = batch, config.num_samples, config.max_new_tokens
        log_probs_BxN = jnp.zeros((b, n), jnp.float32)
        if config.method == "beam":  # N equal beams would stay equal
            log_probs_BxN = log_probs_BxN.at[:, 1:].set(-jnp.inf)
        return cls(
            tokens=jnp.zeros((b, n, t), jnp.int32),
            lengths=jnp.zeros((b, n), jnp.int32),
            log_probs=log_probs_BxN,
            ended=jnp.zeros((b, n), bool),
            nodes=jnp.zeros((b, n), jnp.int32) if in_trie else None,
        )

    def reordered(self, parents_BxN: jax.Array) -> GeneratedTokens:
        """Continuation n becomes a copy of `parents_BxN[:, n]`."""

        def reorder(field: jax.Array) -> jax.Array:
            indices = parents_BxN.reshape(*parents_BxN.shape, *[1] * (field.ndim - 2))
            return jnp.take_along_axis(field, indices, axis=1)

        return jax.tree.map(reorder, self)

    def with_next(self, chosen: _NextTokens, step: jax.Array, eos_id: int) -> GeneratedTokens:
        """One more token at index `step` of each continuation that has not ended."""
        going_BxN, is_end_BxN = ~self.ended, chosen.tokens == eos_id
        kept_BxN = going_BxN & ~is_end_BxN
        return GeneratedTokens(
            tokens=jax.lax.dynamic_update_index_in_dim(
                self.tokens, jnp.where(kept_BxN, chosen.tokens, 0), step, axis=2
            ),
            lengths=self.lengths + kept_BxN.astype(jnp.int32),
            log_probs=chosen.log_probs,
            ended=self.ended | is_end_BxN,
            nodes=None if self.nodes is None else jnp.where(going_BxN, chosen.nodes, self.nodes),
        )


@flax.struct.dataclass
class _NextTokens:
    """The token that each continuation goes on with.

    Attributes:
      tokens: [B, N] int32.
      log_probs: [B, N] float32, sums that include the token.
      nodes: [B, N] int32, the token's nodes of the trie; None without a trie.
      parents: [B, N] int32, the continuation that each one goes on from; None = itself.
    """

    tokens: jax.Array
    log_probs: jax.Array
    nodes: jax.Array | None
    parents: jax.Array | None


@flax.struct.dataclass
class _LoopState:
    """What a step of the loop changes. `last_tokens` [B, N] int32 were chosen, but not read yet."""

    written: Continuations
    last_tokens: jax.Array
    generated: GeneratedTokens


def generate(
    decoder: Decoder,
    config: SamplingConfig,
    eos_id: int,
    fan_outs: tuple[int, ...],
    params: Params,
    trie: TrieArrays | None,
    tokens_BxP: jax.Array,
    mask_BxP: jax.Array,
    seeds_B: jax.Array,
) -> GeneratedTokens:
    """N continuations of each prompt. The first four arguments are static.

    Args:
      decoder, params: as `for_generation` made them.
      fan_outs, trie: see `TokenTrie`; () and None = any token may follow.
      tokens_BxP: int32, prompts with BOS, padded on the right.
      mask_BxP: bool, False on padding.
      seeds_B: uint32, one a prompt.
    """
    b, n, t = tokens_BxP.shape[0], config.num_samples, config.max_new_tokens
    apply = functools.partial(decoder.apply, {"params": params})
    keys_B = jax.vmap(jax.random.key)(seeds_B)

    def choose_next(state: _LoopState, hidden_BxNxD: jax.Array, step: jax.Array) -> _LoopState:
        """Chooses token number `step` of each continuation, which follows the hidden states."""
        logits_BxNxV = apply(hidden_BxNxD, method="unembed")
        step_keys_B = jax.vmap(lambda key: jax.random.fold_in(key, step))(keys_B)
        uniforms_BxNx2 = jax.vmap(lambda key: jax.random.uniform(key, (n, 2)))(step_keys_B)
        generated, written = state.generated, state.written
        chosen = _next_tokens(config, fan_outs, trie, generated, logits_BxNxV, uniforms_BxNx2, step)
        if chosen.parents is not None:
            generated = generated.reordered(chosen.parents)
            written = written.reordered(chosen.parents)
        return _LoopState(written, chosen.tokens, generated.with_next(chosen, step, eos_id))

    def is_unfinished(state: _LoopState) -> jax.Array:
        missing_BxN = jnp.isneginf(state.generated.log_probs)
        return (state.written.length < t - 1) & ~jnp.all(state.generated.ended | missing_BxN)

    def read_and_choose(state: _LoopState) -> _LoopState:
        hidden_BxNxD, written = apply(state.last_tokens, prefix, state.written, method="decode")
        return choose_next(state.replace(written=written), hidden_BxNxD, written.length)

    last_hidden_BxD, prefix = apply(tokens_BxP, mask_BxP, method="prefill")
    hidden_BxNxD = jnp.broadcast_to(last_hidden_BxD[:, None], (b, n, last_hidden_BxD.shape[-1]))
    start = _LoopState(
        written=Continuations.empty(decoder.config, b, n, t),
        last_tokens=jnp.zeros((b, n), jnp.int32),
        generated=GeneratedTokens.empty(config, b, in_trie=trie is not None),
    )
    start = choose_next(start, hidden_BxNxD, jnp.zeros((), jnp.int32))
    return jax.lax.while_loop(is_unfinished, read_and_choose, start).generated


def _next_tokens(
    config: SamplingConfig,
    fan_outs: tuple[int, ...],
    trie: TrieArrays | None,
    generated: GeneratedTokens,
    logits_BxNxV: jax.Array,
    uniforms_BxNx2: jax.Array,
    step: jax.Array,
) -> _NextTokens:
    """The next token of each continuation, among all tokens or those that the trie allows.

    Log-probabilities are over the whole vocabulary, untempered and unfiltered.
    """
    log_total_BxN = jax.nn.logsumexp(logits_BxNxV, axis=-1)
    if trie is None:
        return _choose_candidates(
            config, generated, logits_BxNxV, log_total_BxN, uniforms_BxNx2, None, None
        )

    def among_children(max_children: int) -> _NextTokens:
        first_edge_BxN = trie.first_edge[generated.nodes]
        count_BxN = trie.first_edge[generated.nodes + 1] - first_edge_BxN
        child_1x1xF = jnp.arange(max_children)[None, None]
        edges_BxNxF = jnp.minimum(first_edge_BxN[..., None] + child_1x1xF, len(trie.tokens) - 1)
        tokens_BxNxF = trie.tokens[edges_BxNxF]
        logits_BxNxF = jnp.take_along_axis(logits_BxNxV, tokens_BxNxF, axis=-1)
        logits_BxNxF = jnp.where(child_1x1xF < count_BxN[..., None], logits_BxNxF, -jnp.inf)
        return _choose_candidates(
            config,
            generated,
            logits_BxNxF,
            log_total_BxN,
            uniforms_BxNx2,
            tokens_BxNxF,
            first_edge_BxN,
        )

    # All continuations are at the same depth, and few depths have nodes with many children.
    widths = [min(_next_power_of_8(fan_out), max(fan_outs)) for fan_out in fan_outs]
    branches = sorted(set(widths))
    branch = jnp.asarray([branches.index(width) for width in widths])[step]
    return jax.lax.switch(branch, [functools.partial(among_children, w) for w in branches])


def _next_power_of_8(fan_out: int) -> int:
    """The least power of 8 that is no less: few programs, little padding."""
    power = 1
    while power < fan_out:
        power *= 8
    return power


def _choose_candidates(
    config: SamplingConfig,
    generated: GeneratedTokens,
    logits_BxNxF: jax.Array,
    log_total_BxN: jax.Array,
    uniforms_BxNx2: jax.Array,
    tokens_BxNxF: jax.Array | None,
    first_edge_BxN: jax.Array | None,
) -> _NextTokens:
    """The candidate that each continuation goes on with, by sampling or beam search.

    Args:
      logits_BxNxF: float32; -inf = not a candidate.
      log_total_BxN: float32, log of the sum of exp(logit) over the whole vocabulary.
      tokens_BxNxF: int32, the candidates' tokens; None = F is the vocabulary.
      first_edge_BxN: int32, the trie's edge that leads to candidate 0; None without a trie.
    """
    if config.method == "beam":
        log_probs_BxNxF = logits_BxNxF - log_total_BxN[..., None]
        parents_BxN, indices_BxN, log_probs_BxN = next_token.extend_beams(
            log_probs_BxNxF, generated.log_probs, generated.ended
        )

        def pick(values_BxNxF: jax.Array) -> jax.Array:
            pick_of_prompt = jax.vmap(lambda values, parents, indices: values[parents, indices])
            return pick_of_prompt(values_BxNxF, parents_BxN, indices_BxN)
    else:
        parents_BxN = None
        indices_BxN = next_token.sample(
            logits_BxNxF, uniforms_BxNx2, config.temperature, config.top_k, config.top_p
        )

        def pick(values_BxNxF: jax.Array) -> jax.Array:
            return jnp.take_along_axis(values_BxNxF, indices_BxN[..., None], axis=-1)[..., 0]

        log_probs_BxN = generated.log_probs + jnp.where(
            generated.ended, 0.0, pick(logits_BxNxF) - log_total_BxN
        )
    if tokens_BxNxF is None:
        return _NextTokens(indices_BxN, log_probs_BxN, None, parents_BxN)
    if parents_BxN is not None:
        first_edge_BxN = jnp.take_along_axis(first_edge_BxN, parents_BxN, axis=1)
    tokens_BxN = pick(tokens_BxNxF)
    nodes_BxN = first_edge_BxN + indices_BxN + 1  # edge e leads to node e + 1
    return _NextTokens(tokens_BxN, log_probs_BxN, nodes_BxN, parents_BxN)
