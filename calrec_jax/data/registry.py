"""Domains and mixtures as SeqIO tasks, registered by this package and by any other.

A package of another team registers its domains in a module of its own:

    from calrec_jax.data.registry import register_domain, register_mixture
    register_domain("books")
    register_mixture("books_and_games", ["books", "games"], rate="equal")

and a run finds them through MIXTURE_OR_TASK_MODULE = "their.module". Registration reads nothing:
where the store is and which vocabulary is used are the run's affair (`DataConfig`), unless a domain
says so.
"""

from __future__ import annotations

import dataclasses
import difflib
import importlib
from collections.abc import Mapping, Sequence

from calrec_jax.data import preprocessors, store, vocabularies
from calrec_jax.data.quiet_tensorflow import seqio, tf
from calrec_jax.errors import CalrecError
from calrec_jax.text.prompts import TokenizedCatalogue
from calrec_jax.text.templates import Template


@dataclasses.dataclass(frozen=True)
class DataConfig:
    """What a run decides about data and domains leave open.

    Attributes:
      data_dir: the store.
      vocabulary: the model's.
      template: how items and histories are written.
    """

    data_dir: str
    vocabulary: seqio.Vocabulary
    template: Template = Template()


@dataclasses.dataclass(frozen=True)
class Domain:
    """A registered domain. None = the run decides.

    Attributes:
      name: of the task.
      dataset: its name in the store.
    """

    name: str
    dataset: str
    data_dir: str | None = None
    template: Template | None = None
    vocabulary: seqio.Vocabulary | None = None

    def resolved(self) -> Domain:
        """This domain with what the run decides filled in.

        Raises:
          CalrecError: the run's DataConfig is needed and `use` was not called.
        """
        if None not in (self.data_dir, self.template, self.vocabulary):
            return self
        run = _run_config()
        return dataclasses.replace(
            self,
            data_dir=self.data_dir or run.data_dir,
            template=self.template or run.template,
            vocabulary=self.vocabulary or run.vocabulary,
        )

    def tokens(self, lengths: Mapping[str, int]) -> TokenizedCatalogue:
        """The catalogue in tokens, for TASK_FEATURE_LENGTHS `lengths`; made once a process."""
        domain = self.resolved()
        key = (
            domain.data_dir,
            domain.dataset,
            domain.template,
            vocabularies.fingerprint(domain.vocabulary),
            lengths["inputs"],
            lengths["targets"],
        )
        if key not in _tokens:
            _tokens[key] = preprocessors.tokenized_catalogue(
                domain.data_dir, domain.dataset, domain.template, domain.vocabulary, lengths
            )
        return _tokens[key]


_domains: dict[str, Domain] = {}
_mixtures: dict[str, dict[str, float | str]] = {}
_tokens: dict[tuple, TokenizedCatalogue] = {}
_run: list[DataConfig] = []


def use(config: DataConfig) -> None:
    """Makes `config` what all domains resolve to from now on."""
    _run[:] = [config]
    _tokens.clear()  # the store may have been written anew


def _run_config() -> DataConfig:
    if not _run:
        raise CalrecError("no DataConfig is in use: call calrec_jax.data.registry.use(...) first")
    return _run[0]


class _StoreSource(seqio.DataSource):
    """Splits of a domain's dataset; shuffles all of a split anew in each epoch."""

    def __init__(self, domain: Domain):
        super().__init__(splits=store.SPLITS, performs_internal_shuffling=True)
        self._domain = domain

    @property
    def supports_arbitrary_sharding(self) -> bool:
        return False

    def list_shards(self, split: str) -> Sequence[str]:
        return [split]

    def num_input_examples(self, split: str) -> int:
        domain = self._domain.resolved()
        return store.num_examples(domain.data_dir, domain.dataset, split)

    def get_dataset(
        self, split="train", shuffle=True, seed=None, shard_info=None, **_
    ) -> tf.data.Dataset:
        domain = self._domain.resolved()
        dataset = store.load(domain.data_dir, domain.dataset, "sequences", split)
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


def register_domain(
    name: str,
    *,
    dataset: str | None = None,
    data_dir: str | None = None,
    template: Template | None = None,
    vocabulary: seqio.Vocabulary | None = None,
) -> None:
    """Adds the SeqIO task `name`, with splits train, validation and test.

    Args:
      dataset: its name in the store, if not `name`.
      data_dir, template, vocabulary: the domain's own, if it is not the run's.

    Raises:
      CalrecError: the name is taken by something else, or cannot be a dataset's.
    """
    domain = Domain(name, dataset or name, data_dir, template, vocabulary)
    store.check_name(domain.dataset)
    if _domains.get(name) == domain:
        return
    _require_free(name)
    _domains[name] = domain

    def features(dataset: tf.data.Dataset, sequence_length: Mapping[str, int]):
        eos_id = domain.resolved().vocabulary.eos_id
        return preprocessors.joint_sequences(dataset, domain.tokens(sequence_length), eos_id)

    tokens = vocabularies.RunVocabulary(lambda: domain.resolved().vocabulary)
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


Rate = str | Mapping[str, float]


def register_mixture(name: str, domains: Sequence[str], rate: Rate = "proportional") -> None:
    """Adds a SeqIO mixture of registered domains.

    Args:
      rate: "proportional" to the training examples, "equal", or {domain: rate}.

    Raises:
      CalrecError: a domain is not registered, the rates are not one for each domain, or the name
        is taken by something else.
    """
    for domain in domains:
        get_domain(domain)
    rates = _rates(name, domains, rate)
    if _mixtures.get(name) == rates:
        return
    _require_free(name)
    tasks = [(d, _train_examples if r == "proportional" else r) for d, r in rates.items()]
    seqio.MixtureRegistry.add(name, tasks)
    _mixtures[name] = rates


def _rates(name: str, domains: Sequence[str], rate: Rate) -> dict[str, float | str]:
    """{domain: its rate, or "proportional"}."""
    if rate == "proportional":
        return dict.fromkeys(domains, rate)
    if rate == "equal":
        return dict.fromkeys(domains, 1.0)
    if isinstance(rate, Mapping) and rate.keys() == set(domains) and min(rate.values()) > 0:
        return {domain: float(rate[domain]) for domain in domains}
    raise CalrecError(
        f"rate {rate!r} of mixture {name!r}: give 'proportional', 'equal', or a positive rate for "
        f"each of its domains, {', '.join(domains)}"
    )


def _train_examples(task: seqio.Task) -> int:
    return task.source.num_input_examples("train")


def _require_free(name: str) -> None:
    if name in seqio.TaskRegistry.names() or name in seqio.MixtureRegistry.names():
        raise CalrecError(f"{name!r} is registered already, as something else: choose another name")


def get_domain(name: str) -> Domain:
    """The registered domain `name`.

    Raises:
      CalrecError: there is none; lists those there are.
    """
    if name not in _domains:
        raise CalrecError(_unknown("domain", name, _domains))
    return _domains[name]


def load_mixture(name: str, modules: Sequence[str] = ()) -> seqio.Task | seqio.Mixture:
    """The mixture or task `name`, after importing MIXTURE_OR_TASK_MODULE(s).

    Raises:
      CalrecError: a module cannot be imported, or nothing of that name is registered.
    """
    import_modules(modules)
    if name not in seqio.MixtureRegistry.names() and name not in seqio.TaskRegistry.names():
        raise CalrecError(_unknown("mixture or task", name, [*_mixtures, *_domains]))
    return seqio.get_mixture_or_task(name)


def import_modules(modules: Sequence[str]) -> None:
    """Imports the modules that register domains and mixtures.

    Raises:
      CalrecError: one cannot be imported.
    """
    for module in modules:
        try:
            importlib.import_module(module)
        except CalrecError:
            raise
        except Exception as error:
            raise CalrecError(
                f"MIXTURE_OR_TASK_MODULE {module!r} cannot be imported: "
                f"{type(error).__name__}: {error}"
            ) from error


def _unknown(kind: str, name: str, known) -> str:
    near = difflib.get_close_matches(name, known, n=3)
    others = sorted(set(known) - set(near))
    listed = ", ".join([*near, *others]) or "none; set MIXTURE_OR_TASK_MODULE"
    hint = f" (did you mean {near[0]!r}?)" if near else ""
    return f"no {kind} {name!r}{hint}; registered: {listed}"


def task_names(mixture: seqio.Task | seqio.Mixture) -> list[str]:
    """Names of the tasks of a mixture, or of the task itself."""
    return [task.name for task in seqio.get_subtasks(mixture)]
