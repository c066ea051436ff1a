"""Sampling continuations: a prompt is read once, its N continuations share the prefix's cache."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from calrec_jax.errors import CalrecError
from calrec_jax.models.decoder import Decoder
from calrec_jax.models.kv_cache import Continuations
from calrec_jax.parallel import partitioning
from calrec_jax.parallel.mesh import MeshConfig


@dataclasses.dataclass(frozen=True)
class SamplingConfig:
    """How continuations are drawn (method: Inference 1).

    Attributes:
      num_samples: N continuations a prompt (unverified).
      temperature: of sampling (unverified); 0 = the likeliest token.
      max_new_tokens: T, tokens at most, with EOS (unverified).
    """

    num_samples: int = 32
    temperature: float = 0.5
    max_new_tokens: int = 80

    def __post_init__(self):
        if self.num_samples < 1 or self.max_new_tokens < 1 or self.temperature < 0:
            raise CalrecError(f"impossible sampling: {self}")


@dataclasses.dataclass(frozen=True)
class Samples:
    """Continuations of B prompts.

    Attributes:
      tokens: [B, N, T] int32, without EOS, padded with 0.
      lengths: [B, N] int32, tokens before EOS.
      log_probs: [B, N] float64, sum of the untempered model's log-probabilities of the tokens and
        of EOS (where it came); never divided by the length.
    """

    tokens: np.ndarray
    lengths: np.ndarray
    log_probs: np.ndarray


@flax.struct.dataclass
class _Loop:
    written: Continuations
    last: jax.Array  # [B, N] the token sampled last
    tokens: jax.Array  # [B, N, T]
    log_probs: jax.Array  # [B, N]
    lengths: jax.Array  # [B, N]
    ended: jax.Array  # [B, N] bool


class Sampler:
    """Draws continuations for lists of prompts. Compiles once per (batch size, prompt bucket).

    Args:
      decoder, params: the model.
      config: see there.
      eos_id, bos_id: of the vocabulary; BOS goes before each prompt as in training.
      max_prompt_tokens: the longest prompt, without BOS.
      mesh, mesh_config: where `params` lie; prompts are split along the data axis.
    """

    def __init__(
        self,
        decoder: Decoder,
        params,
        config: SamplingConfig,
        *,
        eos_id: int,
        bos_id: int,
        max_prompt_tokens: int,
        mesh: Mesh,
        mesh_config: MeshConfig,
    ):
        self._params, self._config, self._bos_id = params, config, bos_id
        self._max_prompt = max_prompt_tokens + 1
        self._mesh, self._mesh_config = mesh, mesh_config
        self._sample = jax.jit(functools.partial(_sample, decoder, config, eos_id))

    def __call__(self, prompts: Sequence[np.ndarray], seeds: Sequence[int]) -> Samples:
        """Samples for each prompt; a prompt's samples depend on its seed, not on its batch.

        Args:
          prompts: int32 tokens without BOS, one array a prompt.
          seeds: one a prompt, in [0, 2**32).

        Raises:
          CalrecError: a prompt is too long.
          ValueError: not one seed a prompt.
        """
        if len(seeds) != len(prompts):
            raise ValueError(f"{len(seeds)} seeds for {len(prompts)} prompts")
        tokens, mask = self._pad(prompts)
        seeds = np.asarray([*seeds, *[0] * (len(tokens) - len(seeds))], np.uint32)
        with partitioning.use_mesh(self._mesh, self._mesh_config):
            inputs = partitioning.to_global((tokens, mask, seeds), self._mesh)
            out = jax.device_get(self._sample(self._params, *inputs))
        n = len(prompts)
        return Samples(out[0][:n], out[1][:n], out[2][:n].astype(np.float64))

    def _pad(self, prompts):
        """Rows of BOS + prompt, as long as the bucket, as many as the data axis divides."""
        longest = 1 + max(len(prompt) for prompt in prompts)
        if longest > self._max_prompt:
            raise CalrecError(
                f"a prompt has {longest - 1} tokens, more than {self._max_prompt - 1}"
            )
        # Buckets of 64 tokens: few programs to compile, little padding.
        width = min(-(-longest // 64) * 64, self._max_prompt)
        data = self._mesh.shape["data"]
        tokens = np.zeros((-(-len(prompts) // data) * data, width), np.int32)
        lengths = np.ones(len(tokens), np.int32)
        tokens[:, 0] = self._bos_id
        for row, prompt in enumerate(prompts):
            tokens[row, 1 : 1 + len(prompt)] = prompt
            lengths[row] = 1 + len(prompt)
        return tokens, np.arange(width)[None, :] < lengths[:, None]


def _sample(decoder: Decoder, config: SamplingConfig, eos_id: int, params, tokens, mask, seeds):
    """(tokens [B,N,T], lengths [B,N], log_probs [B,N]) of continuations of padded prompts."""
    b, n, t = tokens.shape[0], config.num_samples, config.max_new_tokens
    variables = {"params": params}
    keys_B = jax.vmap(jax.random.key)(seeds)

    def draw(hidden, step):
        """The next token of each continuation and its log-probability."""
        logits_BxNxV = decoder.apply(variables, hidden, method="unembed")
        log_probs_BxNxV = jax.nn.log_softmax(logits_BxNxV, axis=-1)
        if config.temperature == 0:
            chosen = jnp.argmax(log_probs_BxNxV, axis=-1)
        else:
            step_keys_B = jax.vmap(lambda key: jax.random.fold_in(key, step))(keys_B)
            noise = jax.vmap(lambda key: jax.random.gumbel(key, log_probs_BxNxV.shape[1:]))
            chosen = jnp.argmax(
                log_probs_BxNxV / config.temperature + noise(step_keys_B), axis=-1
            )
        log_prob = jnp.take_along_axis(log_probs_BxNxV, chosen[..., None], axis=-1)[..., 0]
        return chosen.astype(jnp.int32), log_prob

    def record(loop: _Loop, hidden, step) -> _Loop:
        chosen, log_prob = draw(hidden, step)
        going = ~loop.ended
        kept = going & (chosen != eos_id)
        tokens = jax.lax.dynamic_update_index_in_dim(
            loop.tokens, jnp.where(kept, chosen, 0), step, axis=2
        )
        return loop.replace(
            last=chosen,
            tokens=tokens,
            log_probs=loop.log_probs + jnp.where(going, log_prob, 0.0),
            lengths=loop.lengths + kept.astype(jnp.int32),
            ended=loop.ended | (chosen == eos_id),
        )

    last_hidden_BxD, prefix = decoder.apply(variables, tokens, mask, method="prefill")
    start = _Loop(
        written=Continuations.empty(decoder.config, b, n, t),
        last=jnp.zeros((b, n), jnp.int32),
        tokens=jnp.zeros((b, n, t), jnp.int32),
        log_probs=jnp.zeros((b, n), jnp.float32),
        lengths=jnp.zeros((b, n), jnp.int32),
        ended=jnp.zeros((b, n), bool),
    )
    hidden_BxNxD = jnp.broadcast_to(last_hidden_BxD[:, None], (b, n, last_hidden_BxD.shape[-1]))
    start = record(start, hidden_BxNxD, jnp.zeros((), jnp.int32))

    def unfinished(loop: _Loop):
        return (loop.written.length < t - 1) & ~jnp.all(loop.ended)

    def advance(loop: _Loop) -> _Loop:
        hidden, written = decoder.apply(variables, loop.last, prefix, loop.written, method="decode")
        return record(loop.replace(written=written), hidden, written.length)

    end = jax.lax.while_loop(unfinished, advance, start)
    return end.tokens, end.lengths, end.log_probs
