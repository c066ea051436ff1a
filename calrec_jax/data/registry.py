"""Registration of domains and mixtures, by this package and by any other.

A package of another team registers its domains in a module of its own:

    from calrec_jax import register_domain, register_mixture
    register_domain("books")
    register_mixture("books_and_games", ["books", "games"], rate="equal")

and a run finds them through MIXTURE_OR_TASK_MODULE = "their.module". Registration reads
nothing: the run (`domains.DataConfig`) says where the store is and which vocabulary is used, unless
the domain has its own.

Each also becomes a SeqIO task or mixture, for code that reads through SeqIO, as T5X does. Our own
`loader` reads the same domains without SeqIO.
"""

from __future__ import annotations

from collections.abc import Sequence

from calrec_jax.data import specs
from calrec_jax.data.seqio_tasks import tasks
from calrec_jax.data.specs import DomainSpec, Rate
from calrec_jax.data.store import datasets
from calrec_jax.data.vocabularies import VocabularyLike
from calrec_jax.text.templates import Template


def register_domain(
    name: str,
    *,
    dataset: str | None = None,
    data_dir: str | None = None,
    template: Template | None = None,
    vocabulary: VocabularyLike | None = None,
) -> None:
    """Registers a domain, and adds the SeqIO task `name`, with splits train, validation and test.

    Args:
      dataset: its name in the store; None = `name`.
      data_dir, template, vocabulary: the domain's own; None = those of the run.

    Raises:
      CalrecError: the name is taken by something else, or cannot be a dataset's.
    """
    spec = DomainSpec(name, dataset or name, data_dir, template, vocabulary)
    datasets.check_name(spec.dataset)
    tasks.require_free(name)
    if specs.add_domain(spec):
        tasks.add_task(spec)


def register_mixture(
    name: str,
    names: Sequence[str],
    rate: Rate = "proportional",
    temperature: float = 1.0,
) -> None:
    """Registers a mixture of registered domains, and adds the SeqIO mixture of that name.

    Args:
      names: the domains.
      rate: "proportional" to the training examples, "equal", or {domain: rate}.
      temperature: rates are taken to the power of 1 / temperature; 1 leaves them as they are, more
        makes them more equal.

    Raises:
      CalrecError: as `specs.add_mixture`, or the name is taken by a task of other code.
    """
    tasks.require_free(name)
    spec = specs.add_mixture(name, names, rate, temperature)
    if spec is not None:
        tasks.add_mixture(spec)
