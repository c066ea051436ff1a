"""Continuations of prompts: a prompt is read once, its N continuations share its cache."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from calrec_jax.decode.generate import generate
from calrec_jax.decode.sampling import SamplingConfig
from calrec_jax.decode.trie import TokenTrie
from calrec_jax.errors import CalrecError
from calrec_jax.models.decoder import Decoder, for_generation
from calrec_jax.parallel import partitioning
from calrec_jax.parallel.mesh import MeshConfig


@dataclasses.dataclass(frozen=True)
class Samples:
    """Continuations of B prompts.

    Attributes:
      tokens: [B, N, T] int32, without EOS, padded with 0.
      lengths: [B, N] int32, tokens before EOS.
      log_probs: [B, N] float64, sum of the untempered model's log-probabilities of the tokens and
        of EOS (where it came), over its whole vocabulary whatever was allowed; never divided by the
        length. -inf where beam search found fewer than N texts.
      leaves: [B, N] int32 of the trie, or None where there is none.
    """

    tokens: np.ndarray
    lengths: np.ndarray
    log_probs: np.ndarray
    leaves: np.ndarray | None


class Sampler:
    """Continues lists of prompts. Compiles once per (rows, prompt bucket).

    Args:
      decoder, params: the model.
      config: see there.
      eos_id, bos_id: of the vocabulary; BOS goes before each prompt as in training.
      max_prompt_tokens: the longest prompt, without BOS.
      mesh, mesh_config: where `params` lie; prompts are split along the data axis.
      batch_size: calls with fewer prompts are filled up to so many rows, so that they do not
        compile again; None = up to a power of two.
      trie: only its texts are continuations; None = all texts are.

    Raises:
      CalrecError: the trie has items of more than `config.max_new_tokens`.
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
        batch_size: int | None = None,
        trie: TokenTrie | None = None,
    ):
        self._bos_id, self._max_prompt = bos_id, max_prompt_tokens + 1
        self._mesh, self._mesh_config = mesh, mesh_config
        self._batch_size = batch_size
        fan_outs, self._trie = (), None
        if trie is not None:
            if trie.depth > config.max_new_tokens:
                raise CalrecError(
                    f"max_new_tokens is {config.max_new_tokens}, but the longest item has "
                    f"{trie.depth} tokens, EOS included: raise it, or not every item can be reached"
                )
            config = dataclasses.replace(config, max_new_tokens=trie.depth)
            fan_outs = trie.fan_outs
            self._trie = jax.device_put(trie.arrays, NamedSharding(mesh, P()))
        decoder, self._params = for_generation(decoder, params)
        self._generate = jax.jit(functools.partial(generate, decoder, config, eos_id, fan_outs))

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
            texts = jax.device_get(self._generate(self._params, self._trie, *inputs))
        texts = jax.tree.map(lambda rows: rows[: len(prompts)], texts)
        log_probs = texts.log_probs.astype(np.float64)
        return Samples(texts.tokens, texts.lengths, log_probs, texts.nodes)

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
        filled = self._batch_size or 1 << (len(prompts) - 1).bit_length()
        rows = -(-max(len(prompts), filled) // data) * data
        tokens = np.zeros((rows, width), np.int32)
        lengths = np.ones(rows, np.int32)
        tokens[:, 0] = self._bos_id
        for row, prompt in enumerate(prompts):
            tokens[row, 1 : 1 + len(prompt)] = prompt
            lengths[row] = 1 + len(prompt)
        return tokens, np.arange(width)[None, :] < lengths[:, None]
