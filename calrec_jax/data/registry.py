"""Domains and mixtures as SeqIO tasks, registered by this package and by any other.

A package of another team registers its domains in a module of its own:

    from calrec_jax.data.registry import register_domain, register_mixture
    register_domain("books")
    register_mixture("books_and_games", ["books", "games"], rate="equal")

and a run finds them through MIXTURE_OR_TASK_MODULE = "their.module". Registration reads nothing:
where the store is and which vocabulary is used are the run's affair (`domains.DataConfig`), unless
a domain says so.

The tasks are for those who read them through SeqIO, as T5X does. Our own `loader` reads the same
domains without it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from calrec_jax.data import domains
from calrec_jax.data.domains import Domain, Rate
from calrec_jax.data.seqio_tasks import preprocessors
from calrec_jax.data.seqio_tasks.seqio_vocabularies import RunVocabulary
from calrec_jax.data.store import datasets
from calrec_jax.data.store.quiet_tensorflow import seqio, tf
from calrec_jax.errors import CalrecError
from calrec_jax.text.templates import Template


def register_domain(
    name: str,
    *,
    dataset: str | None = None,
    data_dir: str | None = None,
    template: Template | None = None,
    vocabulary: Any | None = None,
) -> None:
    """Adds the SeqIO task `name`, with splits train, validation and test.

    Args:
      dataset: its name in the store, if not `name`.
      data_dir, template, vocabulary: the domain's own, if it is not the run's.

    Raises:
      CalrecError: the name is taken by something else, or cannot be a dataset's.
    """
    domain = Domain(name, dataset or name, data_dir, template, vocabulary)
    datasets.check_name(domain.dataset)
    _require_ours(name)
    if not domains.add_domain(domain) or name in seqio.TaskRegistry.names():
        return

    def features(dataset: tf.data.Dataset, sequence_length: Mapping[str, int]):
        eos_id = domain.resolved().vocabulary.eos_id
        return preprocessors.joint_sequences(dataset, domain.tokens(sequence_length), eos_id)

    tokens = RunVocabulary(lambda: domain.resolved().vocabulary)
    ids = seqio.Feature(seqio.PassThroughVocabulary(2**31 - 1), add_eos=False, rank=0)
    seqio.TaskRegistry.add(
        name,
        task_cls=_Task,
        source=_StoreSource(domain),
        preprocessors=[features],
        output_features={
            "inputs": seqio.Feature(tokens, add_eos=False),
            "targets": seqio.Feature(tokens, add_eos=True),
            "target_item_ids": ids,
            "domain_ids": ids,
        },
        shuffle_buffer_size=None,  # the source shuffles
    )


def register_mixture(
    name: str,
    names: Sequence[str],
    rate: Rate = "proportional",
    temperature: float = 1.0,
) -> None:
    """Adds a SeqIO mixture of registered domains.

    Args:
      names: of the domains.
      rate: "proportional" to the training examples, "equal", or {domain: rate}.
      temperature: rates are taken to the power of 1 / temperature; 1 leaves them as they are, more
        makes them more equal.

    Raises:
      CalrecError: as `domains.add_mixture`, or the name is taken by a task that is none of ours.
    """
    _require_ours(name)
    mixture = domains.add_mixture(name, names, rate, temperature)
    if mixture is None or name in seqio.MixtureRegistry.names():
        return

    def rate_of(task: seqio.Task) -> float:
        sizes = [t.num_sequences("train") for t in map(domains.get_domain, mixture.domains)]
        return float(mixture.weights(sizes)[mixture.domains.index(task.name)])

    seqio.MixtureRegistry.add(name, [(domain, rate_of) for domain in mixture.domains])


def _require_ours(name: str) -> None:
    """Raises CalrecError where SeqIO knows `name` and we do not."""
    taken = name in seqio.TaskRegistry.names() or name in seqio.MixtureRegistry.names()
    if taken and not domains.is_known(name):
        raise CalrecError(f"{name!r} is registered already, as something else: choose another name")


class _StoreSource(seqio.DataSource):
    """Splits of a domain's dataset; shuffles all of a split anew in each epoch."""

    def __init__(self, domain: Domain):
        super().__init__(splits=datasets.SPLITS, performs_internal_shuffling=True)
        self._domain = domain

    @property
    def supports_arbitrary_sharding(self) -> bool:
        return False

    def list_shards(self, split: str) -> Sequence[str]:
        return [split]

    def num_input_examples(self, split: str) -> int:
        return self._domain.num_sequences(split)

    def get_dataset(
        self, split="train", shuffle=True, seed=None, shard_info=None, **_
    ) -> tf.data.Dataset:
        domain = self._domain.resolved()
        dataset = datasets.load(domain.data_dir, domain.dataset, "sequences", split)
        if not shuffle:
            return dataset
        examples = self.num_input_examples(split)
        return dataset.shuffle(examples, seed=seed, reshuffle_each_iteration=True)


class _Task(seqio.Task):
    """A Task without SeqIO's cache in memory.

    That cache would keep the first epoch, as the source shuffled it, and every epoch would then
    have its order, for T5X too, which cannot ask SeqIO not to cache.
    """

    def get_dataset(self, *args, try_in_mem_cache=False, **kwargs) -> tf.data.Dataset:
        return super().get_dataset(*args, try_in_mem_cache=False, **kwargs)
