"""SeqIO tasks and mixtures of the registered domains, and the run whose data they read.

SeqIO has one registry for the process, and it knows names alone. So there is also one run
whose data its tasks read: that of the last call of `use`. `calrec` does not read through SeqIO.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from calrec_jax.data import domains, specs
from calrec_jax.data.domains import DataConfig, Domain, Domains
from calrec_jax.data.seqio_tasks import preprocessors
from calrec_jax.data.seqio_tasks.seqio_vocabularies import RunVocabulary
from calrec_jax.data.specs import DomainSpec, MixtureSpec
from calrec_jax.data.store import datasets
from calrec_jax.data.store.quiet_tensorflow import seqio, tf
from calrec_jax.errors import CalrecError
from calrec_jax.text.items import SPLITS

_in_use: list[Domains] = []
_complete: dict[str, Domain] = {}  # domains that leave nothing to a run


def use(config: DataConfig) -> None:
    """Makes all SeqIO tasks read the data of `config` from now on.

    Raises:
      CalrecError: saved arrays are damaged.
    """
    _in_use[:] = [Domains(config)]
    _complete.clear()  # their stores may have been written again


def in_use() -> Domains:
    """The domains that the tasks read. Raises CalrecError before the first `use`."""
    if not _in_use:
        raise CalrecError(
            "no run's DataConfig is in use: call calrec_jax.data.seqio_tasks.tasks.use(...) first"
        )
    return _in_use[0]


def require_free(name: str) -> None:
    """Raises CalrecError if SeqIO has a task or mixture `name` that calrec_jax did not register."""
    taken = name in seqio.TaskRegistry.names() or name in seqio.MixtureRegistry.names()
    if taken and not specs.is_registered(name):
        raise CalrecError(f"{name!r} is registered already, as something else: choose another name")


def add_task(spec: DomainSpec) -> None:
    """Adds the task of a domain, with splits train, validation and test."""
    if spec.name in seqio.TaskRegistry.names():
        return

    def features(dataset: tf.data.Dataset, sequence_length: Mapping[str, int]) -> tf.data.Dataset:
        domain = _resolved(spec)
        tokens = domain.tokens(sequence_length)
        return preprocessors.joint_sequences(dataset, tokens, domain.vocabulary.eos_id)

    tokens = RunVocabulary(lambda: _resolved(spec).vocabulary)
    ids = seqio.Feature(seqio.PassThroughVocabulary(2**31 - 1), add_eos=False, rank=0)
    seqio.TaskRegistry.add(
        spec.name,
        task_cls=_Task,
        source=_StoreSource(spec),
        preprocessors=[features],
        output_features={
            "inputs": seqio.Feature(tokens, add_eos=False),
            "targets": seqio.Feature(tokens, add_eos=True),
            "target_item_ids": ids,
            "domain_ids": ids,
        },
        shuffle_buffer_size=None,  # the source shuffles
    )


def add_mixture(spec: MixtureSpec) -> None:
    """Adds the SeqIO mixture of domains whose tasks are there."""
    if spec.name in seqio.MixtureRegistry.names():
        return

    def rate(task: seqio.Task) -> float:
        sizes = [_resolved(specs.domains[name]).num_sequences("train") for name in spec.domains]
        return float(spec.weights(sizes)[spec.domains.index(task.name)])

    seqio.MixtureRegistry.add(spec.name, [(name, rate) for name in spec.domains])


def _resolved(spec: DomainSpec) -> Domain:
    """The domain as tasks read it. Raises CalrecError if that takes a run, and none is in use."""
    if not spec.is_complete:
        return in_use().domain(spec.name)
    if spec.name not in _complete:
        _complete[spec.name] = domains.resolved(spec)
    return _complete[spec.name]


class _StoreSource(seqio.DataSource):
    """The splits of a domain's dataset. Each epoch shuffles all of a split again."""

    def __init__(self, spec: DomainSpec):
        super().__init__(splits=SPLITS, performs_internal_shuffling=True)
        self._spec = spec

    @property
    def supports_arbitrary_sharding(self) -> bool:
        return False

    def list_shards(self, split: str) -> Sequence[str]:
        return [split]

    def num_input_examples(self, split: str) -> int:
        return _resolved(self._spec).num_sequences(split)

    def get_dataset(
        self,
        split: str = "train",
        shuffle: bool = True,
        seed: int | None = None,
        shard_info: seqio.ShardInfo | None = None,
        **_: Any,
    ) -> tf.data.Dataset:
        domain = _resolved(self._spec)
        dataset = datasets.load(domain.data_dir, domain.dataset, "sequences", split)
        if not shuffle:
            return dataset
        examples = self.num_input_examples(split)
        return dataset.shuffle(examples, seed=seed, reshuffle_each_iteration=True)


class _Task(seqio.Task):
    """A task without SeqIO's cache in memory.

    The cache would keep the order in which the source shuffled the first epoch for all others. T5X
    has no way to turn it off.
    """

    def get_dataset(
        self, *args: Any, try_in_mem_cache: bool = False, **kwargs: Any
    ) -> tf.data.Dataset:
        return super().get_dataset(*args, try_in_mem_cache=False, **kwargs)
