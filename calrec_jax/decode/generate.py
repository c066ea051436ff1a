"""The program that continues prompts: one prefill, then a token of each continuation a step."""

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


@flax.struct.dataclass
class GeneratedTokens:
    """Continuations, finished or not.

    Attributes:
      tokens: [B, N, T] int32, without EOS, 0 after the end.
      lengths: [B, N] int32.
      log_probs: [B, N] float32 sums; -inf = there is no such beam.
      ended: [B, N] bool.
      nodes: [B, N] int32 of the trie, or None.
    """

    tokens: jax.Array
    lengths: jax.Array
    log_probs: jax.Array
    ended: jax.Array
    nodes: jax.Array | None


@flax.struct.dataclass
class _Loop:
    written: Continuations
    last: jax.Array  # [B, N] the token chosen last
    texts: GeneratedTokens


@flax.struct.dataclass
class _Chosen:
    """[B, N] each: token, sum with it, the trie's node, and the continuation that it goes on."""

    tokens: jax.Array
    sums: jax.Array
    nodes: jax.Array | None
    parents: jax.Array | None  # None = its own


def generate(
    decoder: Decoder,
    config: SamplingConfig,
    eos_id: int,
    fan_outs: tuple[int, ...],
    params,
    trie: TrieArrays | None,
    tokens,
    mask,
    seeds,
) -> GeneratedTokens:
    """N continuations of each prompt. Its first four arguments are static.

    Args:
      decoder, params: as `for_generation` made them.
      fan_outs, trie: see `TokenTrie`; () and None = any token may follow.
      tokens, mask: [B, P] prompts, padded on the right.
      seeds: uint32 [B].
    """
    b, n, t = tokens.shape[0], config.num_samples, config.max_new_tokens
    apply = functools.partial(decoder.apply, {"params": params})
    keys_B = jax.vmap(jax.random.key)(seeds)

    def advance(loop: _Loop, hidden_BxNxD, step) -> _Loop:
        """Chooses what follows the hidden states."""
        logits_BxNxV = apply(hidden_BxNxD, method="unembed")
        step_keys_B = jax.vmap(lambda key: jax.random.fold_in(key, step))(keys_B)
        uniforms = jax.vmap(lambda key: jax.random.uniform(key, (n, 2)))(step_keys_B)
        chosen = _choose(config, fan_outs, trie, loop.texts, logits_BxNxV, uniforms, step)
        texts, written = loop.texts, loop.written
        if chosen.parents is not None:
            texts, written = _of(texts, chosen.parents), written.reordered(chosen.parents)
        return _Loop(written, chosen.tokens, _extended(texts, chosen, step, eos_id))

    def unfinished(loop: _Loop):
        missing = jnp.isneginf(loop.texts.log_probs)
        return (loop.written.length < t - 1) & ~jnp.all(loop.texts.ended | missing)

    def step(loop: _Loop) -> _Loop:
        hidden, written = apply(loop.last, prefix, loop.written, method="decode")
        return advance(loop.replace(written=written), hidden, written.length)

    last_hidden_BxD, prefix = apply(tokens, mask, method="prefill")
    hidden_BxNxD = jnp.broadcast_to(last_hidden_BxD[:, None], (b, n, last_hidden_BxD.shape[-1]))
    start = _Loop(
        written=Continuations.empty(decoder.config, b, n, t),
        last=jnp.zeros((b, n), jnp.int32),
        texts=_no_texts(config, b, trie is not None),
    )
    start = advance(start, hidden_BxNxD, jnp.zeros((), jnp.int32))
    return jax.lax.while_loop(unfinished, step, start).texts


def _no_texts(config: SamplingConfig, b: int, constrained: bool) -> GeneratedTokens:
    n, t = config.num_samples, config.max_new_tokens
    log_probs = jnp.zeros((b, n), jnp.float32)
    if config.method == "beam":  # N equal ones would stay equal
        log_probs = log_probs.at[:, 1:].set(-jnp.inf)
    return GeneratedTokens(
        tokens=jnp.zeros((b, n, t), jnp.int32),
        lengths=jnp.zeros((b, n), jnp.int32),
        log_probs=log_probs,
        ended=jnp.zeros((b, n), bool),
        nodes=jnp.zeros((b, n), jnp.int32) if constrained else None,
    )


def _of(texts: GeneratedTokens, parents_BxN: jax.Array) -> GeneratedTokens:
    def reorder(a):
        places = parents_BxN.reshape(*parents_BxN.shape, *[1] * (a.ndim - 2))
        return jnp.take_along_axis(a, places, axis=1)

    return jax.tree.map(reorder, texts)


def _extended(texts: GeneratedTokens, chosen: _Chosen, step, eos_id: int) -> GeneratedTokens:
    """Texts with a token more, but for those that have ended."""
    going, is_end = ~texts.ended, chosen.tokens == eos_id
    kept = going & ~is_end
    return GeneratedTokens(
        tokens=jax.lax.dynamic_update_index_in_dim(
            texts.tokens, jnp.where(kept, chosen.tokens, 0), step, axis=2
        ),
        lengths=texts.lengths + kept.astype(jnp.int32),
        log_probs=chosen.sums,
        ended=texts.ended | is_end,
        nodes=None if texts.nodes is None else jnp.where(going, chosen.nodes, texts.nodes),
    )


def _choose(
    config, fan_outs, trie, texts: GeneratedTokens, logits_BxNxV, uniforms, step
) -> _Chosen:
    """The next tokens. Log-probabilities are of all the vocabulary, untempered and unfiltered."""
    total = jax.nn.logsumexp(logits_BxNxV, axis=-1)
    if trie is None:
        return _among(config, texts, logits_BxNxV, total, None, None, uniforms)

    def among_children(size: int):
        first_BxN = trie.first_edge[texts.nodes]
        count_BxN = trie.first_edge[texts.nodes + 1] - first_BxN
        places = jnp.arange(size)[None, None]
        edges = jnp.minimum(first_BxN[..., None] + places, trie.tokens.shape[0] - 1)
        tokens = trie.tokens[edges]
        logits = jnp.take_along_axis(logits_BxNxV, tokens, axis=-1)
        logits = jnp.where(places < count_BxN[..., None], logits, -jnp.inf)
        return _among(config, texts, logits, total, tokens, first_BxN, uniforms)

    # All continuations are at one depth, and few depths have nodes of many children.
    widths = [min(_rounded_up(fan_out), max(fan_outs)) for fan_out in fan_outs]
    branches = sorted(set(widths))
    branch = jnp.asarray([branches.index(width) for width in widths])[step]
    return jax.lax.switch(branch, [functools.partial(among_children, w) for w in branches])


def _rounded_up(fan_out: int) -> int:
    """To a power of 8: few programs, little padding."""
    power = 1
    while power < fan_out:
        power *= 8
    return power


def _among(config, texts: GeneratedTokens, logits, total, tokens, first_edge, uniforms) -> _Chosen:
    """Of F candidates; of a trie's, tokens [B, N, F] and the first edges [B, N] are given."""
    if config.method == "beam":
        log_probs = logits - total[..., None]
        parents, places, sums = next_token.beams(log_probs, texts.log_probs, texts.ended)

        def pick(a_BxNxF):
            return jax.vmap(lambda a, parent, place: a[parent, place])(a_BxNxF, parents, places)
    else:
        parents = None
        places = next_token.sample(logits, uniforms, config.temperature, config.top_k, config.top_p)

        def pick(a_BxNxF):
            return jnp.take_along_axis(a_BxNxF, places[..., None], axis=-1)[..., 0]

        sums = texts.log_probs + jnp.where(texts.ended, 0.0, pick(logits) - total)
    if tokens is None:
        return _Chosen(places, sums, None, parents)
    if parents is not None:
        first_edge = jnp.take_along_axis(first_edge, parents, axis=1)
    return _Chosen(pick(tokens), sums, first_edge + places + 1, parents)
