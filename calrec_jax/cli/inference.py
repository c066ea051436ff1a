"""A run's trained model, ready to rank catalogues: checkpoint, samplers, vectors and indexes."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import pathlib
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from calrec_jax.checkpoints.manager import Checkpoints
from calrec_jax.data import domains, vocabularies
from calrec_jax.data.domains import Domain
from calrec_jax.decode import vectors
from calrec_jax.decode.dense import DenseIndex
from calrec_jax.decode.sample import Sampler, SamplingConfig
from calrec_jax.decode.texts import TextGenerator
from calrec_jax.decode.trie import TokenTrie
from calrec_jax.decode.vectors import Towers
from calrec_jax.errors import CalrecError
from calrec_jax.eval import baselines, evaluator, hybrid
from calrec_jax.eval.evaluator import EvaluatedDomain
from calrec_jax.eval.predictions import require_made_with
from calrec_jax.eval.retrievers import (
    BM25Lookup,
    DenseRetriever,
    HybridRetriever,
    Retriever,
    TextRetriever,
    TrieLookup,
)
from calrec_jax.eval.users import sample
from calrec_jax.models.decoder import Decoder
from calrec_jax.parallel.mesh import make_mesh
from calrec_jax.retrieval.bm25 import BM25Index
from calrec_jax.training import state as train_state
from calrec_jax.training import weights

if TYPE_CHECKING:
    from calrec_jax.cli.run import Run

# Told (users done, users in all), and a verb where they are not those that are evaluated.
Progress = Callable[..., None]


class TrainedModel:
    """One checkpoint of a run, read when it is first needed.

    Args:
      run: whose evaluation says how the model is asked.
      checkpoint: instead of the one that the evaluation names.
      batch_size: see `Sampler`.

    Raises:
      CalrecError: there is no such checkpoint.
    """

    def __init__(self, run: Run, checkpoint: str | None = None, batch_size: int | None = None):
        self._run, self._batch_size = run, batch_size
        source = checkpoint or run.evaluation.checkpoint
        # "best" may come to mean another step, while this one is asked.
        self._stage_dir, self.step = weights.find_checkpoint(run.model_dir, source)
        self._mesh = make_mesh(run.mesh)
        self._lengths = run.stages[-1].task_feature_lengths

    @functools.cached_property
    def fingerprint(self) -> str:
        """Of the checkpoint."""
        folder = self._stage_dir / "checkpoints"
        with contextlib.closing(Checkpoints(folder, read_only=True)) as checkpoints:
            return checkpoints.fingerprint(self.step)

    def settings(self) -> dict[str, Any]:
        """What its answers depend on, besides the data and how it is asked."""
        return {
            "vocabulary": vocabularies.fingerprint(self._run.data.vocabulary),
            "step": self.step,
            "saved": self.fingerprint,
            "dtype": self._run.model.dtype,
            "task_feature_lengths": dict(self._lengths),
        }

    def retriever(
        self, name: str, choose_weight: Callable[[TextRetriever, DenseRetriever], float]
    ) -> Retriever:
        """The model as `run.evaluation.retrieval` has it, on a registered domain.

        Args:
          choose_weight: of the towers in "hybrid", where the evaluation has none.
        """
        config, domain = self._run.evaluation, domain_of(self._run, name)
        if config.retrieval == "dense":
            return self._dense(domain)
        texts = self._texts(domain)
        if config.retrieval != "hybrid":
            return texts
        dense, weight = self._dense(domain), config.dense_weight
        if weight is None:
            weight = choose_weight(texts, dense)
        return HybridRetriever(texts, dense, domain.catalogue(), weight)

    def _texts(self, domain: Domain) -> TextRetriever:
        config, catalogue = self._run.evaluation, domain.catalogue()
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
        c, folder = self._run.evaluation, pathlib.Path(self._run.model_dir) / "index"
        return BM25Index.cached(folder, domain.dataset, item_texts(domain), c.k1, c.b)

    @functools.cached_property
    def _free_sampler(self) -> Sampler:
        """Of any text; that of all domains."""
        return self._sampler(None)

    def _sampler(self, trie: TokenTrie | None) -> Sampler:
        c, vocabulary = self._run.evaluation, self._run.data.vocabulary
        decoder, params = self._model
        return Sampler(
            decoder,
            params,
            SamplingConfig(
                c.num_samples,
                c.temperature,
                c.max_new_tokens,
                c.decoding,
                c.sampling_top_k,
                c.sampling_top_p,
            ),
            eos_id=vocabulary.eos_id,
            bos_id=vocabularies.bos_id(vocabulary),
            max_prompt_tokens=self._lengths["inputs"],
            mesh=self._mesh,
            mesh_config=self._run.mesh,
            batch_size=self._batch_size,
            trie=trie,
        )

    def _dense(self, domain: Domain) -> DenseRetriever:
        tokens, catalogue = domain.tokens(self._lengths), domain.catalogue()
        item_vectors = vectors.cached(
            self._stage_dir / "vectors",
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
    def _model(self) -> tuple[Decoder, Any]:
        """The decoder and its parameters."""
        run = self._run
        # Adapters are not merged: rounded to the weights' type, the smallest of updates would be
        # lost.
        lora = weights.lora_of(self._stage_dir)
        config = dataclasses.replace(run.decoder_config, lora=lora)
        decoder = Decoder(config)
        params = weights.load_params(
            run.model_dir,
            f"{self._stage_dir}:{self.step}",
            train_state.param_shapes(decoder, self._mesh, run.mesh),
            {
                "vocabulary": vocabularies.fingerprint(run.data.vocabulary),
                "model": config.meaning(),
                "data": {"template": dataclasses.asdict(run.data.template)},
            },
        )
        return decoder, params


def domain_of(run: Run, name: str) -> Domain:
    """The domain, resolved. Raises CalrecError where its tokens are not the run's model's."""
    domain = domains.get_domain(name).resolved()
    theirs, ours = (vocabularies.fingerprint(v) for v in (domain.vocabulary, run.data.vocabulary))
    if theirs != ours:
        raise CalrecError(
            f"domain {name!r} is registered with vocabulary {theirs}, and the run's model has "
            f"{ours}: register it without one, or bind VOCABULARY to the same"
        )
    return domain


def item_texts(domain: Domain) -> list[str]:
    """Of all items, as the domain's template writes them, in the catalogue's order."""
    return [domain.template.render_item(fields) for fields in domain.catalogue().fields]


def evaluate(run: Run, progress: Progress) -> dict[str, Any]:
    """Measures the run's model as `run.evaluation` says; returns what metrics.json holds.

    Args:
      progress: told (users done, users in all, verb of the line).

    Raises:
      CalrecError: as `evaluator.evaluate`, or there is no such checkpoint, or no evaluation.
    """
    config = run.require_evaluation()
    directory = pathlib.Path(run.model_dir) / "eval" / config.folder
    found = {name: domain_of(run, name) for name in config.domains}
    _check_datasets(found)
    users = sum(domain.num_sequences(config.split) for domain in found.values())
    # The last batch is smaller, and filled up.
    batch_size = max(1, min(config.users_per_batch, config.max_users or users, users))
    model = TrainedModel(run, batch_size=batch_size)
    settings = {
        **config.asked(),
        **model.settings(),
        "templates": {n: dataclasses.asdict(domain.template) for n, domain in found.items()},
    }
    subjects = [
        _subject(run, model, name, directory, settings, batch_size, progress) for name in found
    ]
    return evaluator.evaluate("calrec", subjects, config, directory, settings, progress)


def _check_datasets(found: Mapping[str, Domain]) -> None:
    """Raises CalrecError for two domains of one dataset, whose users would be one another's."""
    names: dict[str, str] = {}
    for name, domain in found.items():
        other = names.setdefault(domain.dataset, name)
        if other != name:
            raise CalrecError(
                f"EvaluationConfig.domain names {other!r} and {name!r}, which are both of dataset "
                f"{domain.dataset!r}: evaluate them one by one, with EvaluationConfig.name"
            )


def chosen_weight(run: Run, model: TrainedModel, name: str) -> float:
    """The weight of retrieval "hybrid" that the run's last evaluation chose for a domain.

    Raises:
      CalrecError: it has chosen none, or one for another checkpoint.
    """
    directory = pathlib.Path(run.model_dir) / "eval" / run.evaluation.folder
    folder = evaluator.choosing_folder(directory, domain_of(run, name).dataset)
    choice = hybrid.read_choice(folder)
    if choice is None:
        raise CalrecError(
            f"no weight has been chosen for retrieval 'hybrid' in {folder}: run `calrec eval` with "
            f"it, or bind EvaluationConfig.name to that of an evaluation that chose one, or "
            f"EvaluationConfig.dense_weight"
        )
    require_made_with(folder, model.settings())
    return choice.weight


def _subject(
    run: Run,
    model: TrainedModel,
    name: str,
    directory: pathlib.Path,
    settings: Mapping[str, Any],
    batch_size: int,
    progress: Progress,
) -> EvaluatedDomain:
    """A domain of the evaluation."""
    config, domain = run.evaluation, domain_of(run, name)
    validation = domain.sequences("validation")

    def choose_weight(texts: TextRetriever, dense: DenseRetriever) -> float:
        return hybrid.choose(
            texts,
            dense,
            sample(validation, config.choosing_users, config.seed),
            domain.catalogue(),
            evaluator.choosing_folder(directory, domain.dataset),
            settings,
            batch_size=batch_size,
            progress=functools.partial(progress, verb="choosing the weight of the towers:"),
        ).weight

    return EvaluatedDomain(
        baselines.BaselineData(
            domain.sequences("train"),
            domain.catalogue(),
            validation,
            config.k1,
            config.b,
            config.seen,
        ),
        domain.sequences(config.split),
        item_texts(domain),
        lambda: model.retriever(name, choose_weight),
    )
