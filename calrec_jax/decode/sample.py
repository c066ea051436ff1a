"""The sampler: texts that continue prompts, from lists of tokens to arrays on the host."""

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
from calrec_jax.models.params import Params
from calrec_jax.parallel import partitioning
from calrec_jax.parallel.mesh import MeshConfig


@dataclasses.dataclass(frozen=True)
class Samples:
    """N continuations of each of B prompts.

    Attributes:
      tokens: [B, N, T] int32, without EOS, padded with 0.
      lengths: [B, N] int32, tokens before EOS.
      log_probs: [B, N] float64, sums of the untempered model's log-probabilities of the tokens and
        of EOS (where it came). They are over its whole vocabulary, whatever filters or trie allow,
        and not divided by the length. -inf where beam search found fewer than N texts.
      leaves: [B, N] int32, the leaves of the trie; None without a trie.
    """

    tokens: np.ndarray
    lengths: np.ndarray
    log_probs: np.ndarray
    leaves: np.ndarray | None


class Sampler:
    """Continues lists of prompts. Compiles once per (rows, prompt bucket).

    Args:
      decoder, params: the model.
      config: how tokens are chosen.
      eos_id, bos_id: the vocabulary's; BOS goes before each prompt as in training.
      max_prompt_tokens: tokens of the longest prompt, without BOS.
      mesh, mesh_config: where `params` lie; prompts are split along the data axis.
      batch_size: calls with fewer prompts are padded to this many rows, so that they need no other
        program; None = to a power of two.
      trie: the texts that can be generated; None = any text.

    Raises:
      CalrecError: the trie has items of more than `config.max_new_tokens`.
    """

    def __init__(
        self,
        decoder: Decoder,
        params: Params,
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
          seeds: one for each prompt, in [0, 2**32).

        Raises:
          CalrecError: a prompt is too long.
          ValueError: there is not one seed for each prompt.
        """
        if len(seeds) != len(prompts):
            raise ValueError(f"{len(seeds)} seeds for {len(prompts)} prompts")
        tokens_BxP, mask_BxP = self._pad(prompts)
        seeds_B = np.asarray([*seeds, *[0] * (len(tokens_BxP) - len(seeds))], np.uint32)
        with partitioning.use_mesh(self._mesh, self._mesh_config):
            inputs = partitioning.to_global((tokens_BxP, mask_BxP, seeds_B), self._mesh)
            generated = jax.device_get(self._generate(self._params, self._trie, *inputs))
        generated = jax.tree.map(lambda rows: rows[: len(prompts)], generated)
        log_probs = generated.log_probs.astype(np.float64)
        return Samples(generated.tokens, generated.lengths, log_probs, generated.nodes)

    def _pad(self, prompts: Sequence[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
        """BOS + prompt in each row, int32 [B, P], and bool [B, P], False on padding.

        P is the bucket's length, and B divides over the data axis.
        """
        longest = 1 + max(len(prompt) for prompt in prompts)
        if longest > self._max_prompt:
            raise CalrecError(
                f"a prompt has {longest - 1} tokens, more than {self._max_prompt - 1}"
            )
        # Buckets of 64 tokens: few programs to compile, little padding.
        width = min(-(-longest // 64) * 64, self._max_prompt)
        data = self._mesh.shape["data"]
        fewest = self._batch_size or 1 << (len(prompts) - 1).bit_length()
        rows = -(-max(len(prompts), fewest) // data) * data
        tokens_BxP = np.zeros((rows, width), np.int32)
        lengths_B = np.ones(rows, np.int32)
        tokens_BxP[:, 0] = self._bos_id
        for row, prompt in enumerate(prompts):
            tokens_BxP[row, 1 : 1 + len(prompt)] = prompt
            lengths_B[row] = 1 + len(prompt)
        return tokens_BxP, np.arange(width)[None, :] < lengths_B[:, None]
