"""A domain that is evaluated, and those of its users who are measured."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
from collections.abc import Callable, Iterable, Sequence

from calrec_jax.errors import CalrecError
from calrec_jax.eval.baselines import BaselineData
from calrec_jax.eval.evaluation import EvaluationConfig
from calrec_jax.eval.retrievers import Retriever
from calrec_jax.eval.users import sample_users
from calrec_jax.text.items import Catalogue, UserSequence


@dataclasses.dataclass(frozen=True)
class EvaluatedDomain:
    """A domain, and the model that is evaluated on it.

    Attributes:
      baseline_data: what baselines may learn from; its catalogue is the one that is ranked.
      users: all users of the evaluated split.
      texts: the texts of all items, in the catalogue's order, as the report shows them.
      retriever: makes the model ready; called when there are predictions to make.
    """

    baseline_data: BaselineData
    users: Sequence[UserSequence]
    texts: Sequence[str]
    retriever: Callable[[], Retriever]

    @property
    def catalogue(self) -> Catalogue:
        """The items that are ranked."""
        return self.baseline_data.catalogue

    @property
    def name(self) -> str:
        """The name of the domain."""
        return self.catalogue.domain

    @functools.cached_property
    def training_item_ids(self) -> set[str]:
        """The ids of the items that occur in training sequences."""
        return {item_id for user in self.baseline_data.train for item_id in user.item_ids}

    def data_hashes(self) -> dict[str, str]:
        """{"sequences": hash of items, users and histories, "texts": hash of the items' texts}.

        The other splits stand for the evaluated one: of that only a sample may be measured, and
        another one the next time.
        """
        users = [*self.baseline_data.train, *self.baseline_data.validation]
        sequences = [(user.user_id, *user.item_ids) for user in users]
        return {
            "sequences": _hash([self.catalogue.item_ids, *sequences]),
            "texts": _hash([self.texts]),
        }


@dataclasses.dataclass(frozen=True)
class MeasuredDomain:
    """An evaluated domain, and those of its users who are measured.

    Attributes:
      domain: the domain.
      users: all users of the evaluated split, or a sample of them.
    """

    domain: EvaluatedDomain
    users: Sequence[UserSequence]


def measured_domains(
    domains: Sequence[EvaluatedDomain], config: EvaluationConfig
) -> list[MeasuredDomain]:
    """The domains with their measured users: `config.max_users` of the users of all domains.

    Raises:
      CalrecError: a domain has no users, has several sequences of one user, or a user's item is not
        in the catalogue.
    """
    all_users = [user for domain in domains for user in domain.users]
    sample = sample_users(all_users, config.max_users, config.seed)
    measured = [
        MeasuredDomain(domain, [user for user in sample if user.domain == domain.name])
        for domain in domains
    ]
    for one in measured:
        _check_users(one)
    return measured


def _check_users(measured: MeasuredDomain) -> None:
    domain, users = measured.domain, measured.users
    if not domain.users:
        raise CalrecError(f"{domain.name} has no users to measure: the split is empty")
    if len({user.user_id for user in users}) < len(users):
        raise CalrecError(f"{domain.name} has several sequences of one user in a split")
    domain.catalogue.places([item_id for user in users for item_id in user.item_ids])


def _hash(rows: Iterable[Sequence[str]]) -> str:
    digest = hashlib.blake2b(digest_size=8)
    for row in rows:
        digest.update(("\x1f".join(row) + "\x1e").encode(errors="surrogatepass"))
    return digest.hexdigest()
