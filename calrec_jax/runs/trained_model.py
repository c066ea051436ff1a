"""A run's trained model, ready to rank catalogues: checkpoint, samplers, vectors and indexes."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
from collections.abc import Callable
from typing import Any

from calrec_jax.checkpoints.manager import Checkpoints
from calrec_jax.data import vocabularies
from calrec_jax.data.domains import Domain
from calrec_jax.decode import vectors
from calrec_jax.decode.dense import DenseIndex
from calrec_jax.decode.sample import Sampler
from calrec_jax.decode.texts import TextGenerator
from calrec_jax.decode.trie import TokenTrie
from calrec_jax.decode.vectors import Towers
from calrec_jax.eval.retrievers import (
    BM25Lookup,
    DenseRetriever,
    HybridRetriever,
    Retriever,
    TextRetriever,
    TrieLookup,
)
from calrec_jax.model_dir import ModelDir
from calrec_jax.models.decoder import Decoder
from calrec_jax.models.params import Params
from calrec_jax.parallel.mesh import make_mesh
from calrec_jax.retrieval.bm25 import BM25Index
from calrec_jax.runs.run import Run
from calrec_jax.training import state as train_state
from calrec_jax.training import weights


class TrainedModel:
    """One checkpoint of a run, read when it is first needed.

    Args:
      run: its evaluation says how the model is queried.
      checkpoint: instead of the one that the evaluation names.
      batch_size: see `Sampler`.

    Raises:
      CalrecError: there is no such checkpoint.
    """

    def __init__(self, run: Run, checkpoint: str | None = None, batch_size: int | None = None):
        self._run, self._batch_size = run, batch_size
        source = checkpoint or run.evaluation.checkpoint
        # "best" may come to mean another step, while this one is in use.
        self._stage_dir, self.step = weights.find_checkpoint(run.model_dir, source)
        self._mesh = make_mesh(run.mesh)
        # Prompts have the last stage's lengths, whichever stage the checkpoint is of.
        self._lengths = run.stages[-1].task_feature_lengths

    @functools.cached_property
    def fingerprint(self) -> str:
        """The fingerprint of the checkpoint."""
        folder = self._stage_dir.checkpoints
        with contextlib.closing(Checkpoints(folder, read_only=True)) as checkpoints:
            return checkpoints.fingerprint(self.step)

    def settings(self) -> dict[str, Any]:
        """What its answers depend on, besides the data and how it is queried."""
        return {
            "vocabulary": self._run.vocabulary_fingerprint,
            "step": self.step,
            "saved": self.fingerprint,
            "dtype": self._run.model.dtype,
            "task_feature_lengths": dict(self._lengths),
        }

    def retriever(
        self, domain: Domain, choose_weight: Callable[[TextRetriever, DenseRetriever], float]
    ) -> Retriever:
        """The model as a retriever of the domain's items, by `run.evaluation.retrieval`.

        Args:
          choose_weight: gives the weight of the towers in "hybrid", where the evaluation has none.
        """
        config = self._run.evaluation
        if config.retrieval == "dense":
            return self._dense(domain)
        texts = self._texts(domain)
        if config.retrieval != "hybrid":
            return texts
        dense, weight = self._dense(domain), config.dense_weight
        if weight is None:
            weight = choose_weight(texts, dense)
        return HybridRetriever(texts, dense, domain.catalogue, weight)

    def _texts(self, domain: Domain) -> TextRetriever:
        config, catalogue = self._run.evaluation, domain.catalogue
        tokens, vocabulary = domain.tokens(self._lengths), self._run.data.vocabulary
        if config.retrieval == "trie":
            trie = TokenTrie.build(tokens, vocabulary.eos_id)
            lookup, sampler = TrieLookup(len(catalogue), config.epsilon), self._sampler(trie)
        else:
            trie, sampler = None, self._free_sampler
            index = self._index(domain)
            lookup = BM25Lookup(index, catalogue, domain.template, config.epsilon)
        generate = TextGenerator(sampler, tokens, vocabulary.decode, config.seed, trie)
        return TextRetriever(generate, lookup, catalogue, config.seen)

    def _index(self, domain: Domain) -> BM25Index:
        config, folder = self._run.evaluation, ModelDir(self._run.model_dir).index
        return BM25Index.cached(folder, domain.dataset, domain.item_texts(), config.bm25)

    @functools.cached_property
    def _free_sampler(self) -> Sampler:
        """The sampler of free texts, which all domains share."""
        return self._sampler(None)

    def _sampler(self, trie: TokenTrie | None) -> Sampler:
        vocabulary = self._run.data.vocabulary
        decoder, params = self._model
        return Sampler(
            decoder,
            params,
            self._run.evaluation.sampling,
            eos_id=vocabulary.eos_id,
            bos_id=vocabularies.bos_id(vocabulary),
            max_prompt_tokens=self._lengths["inputs"],
            mesh=self._mesh,
            mesh_config=self._run.mesh,
            batch_size=self._batch_size,
            trie=trie,
        )

    def _dense(self, domain: Domain) -> DenseRetriever:
        tokens, catalogue = domain.tokens(self._lengths), domain.catalogue
        item_vectors = vectors.cached(
            self._stage_dir.vectors,
            domain.dataset,
            {**self.settings(), "items": tokens.text.item_fingerprint},
            lambda: self._towers.items(tokens),
        )
        return DenseRetriever(
            lambda histories: self._towers.users(tokens, histories),
            DenseIndex(item_vectors),
            catalogue,
            self._run.evaluation.seen,
        )

    @functools.cached_property
    def _towers(self) -> Towers:
        decoder, params = self._model
        return Towers(
            decoder,
            params,
            bos_id=vocabularies.bos_id(self._run.data.vocabulary),
            mesh=self._mesh,
            mesh_config=self._run.mesh,
        )

    @functools.cached_property
    def _model(self) -> tuple[Decoder, Params]:
        """The decoder and its parameters."""
        run = self._run
        # Adapters are not merged: rounded to the weights' type, the smallest of updates would be
        # lost.
        lora = weights.lora_of(self._stage_dir)
        decoder = Decoder(dataclasses.replace(run.decoder_config, lora=lora))
        params = weights.load_params(
            run.model_dir,
            f"{self._stage_dir}:{self.step}",
            train_state.param_shapes(decoder, self._mesh, run.mesh),
            run.identity.required_to_query(),
        )
        return decoder, params
