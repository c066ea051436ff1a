"""What an evaluation measures, and how the model is asked."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

from calrec_jax.eval import baselines, config_checks

# Predictions of users do not depend on these.
_NOT_ASKED = {"name", "domain", "users_per_batch", "bootstrap_samples", "max_users", "baselines"}
_OF_TEXTS = {
    "num_samples",
    "temperature",
    "max_new_tokens",
    "decoding",
    "sampling_top_k",
    "sampling_top_p",
    "epsilon",
}


@dataclasses.dataclass(frozen=True)
class EvaluationConfig:
    """What is measured, and how the model is asked.

    Attributes:
      domain: the registered domain; or several, which are measured together.
      split: "test" or "validation".
      name: of the folder under MODEL_DIR/eval; None = the split's. Another name keeps what was
        measured with other settings.
      checkpoint: as `Stage.init_from`, "stage2:best".
      num_samples, temperature, max_new_tokens, decoding, sampling_top_k, sampling_top_p: see
        `SamplingConfig`, where the last three are method, top_k and top_p; whoever makes `generate`
        reads them.
      retrieval: how items are found: "bm25", which looks free texts up; "trie": texts are of items
        alone, and those that were reached rank by log-probability before all others; "dense": by
        the cosine of the towers' vectors, without texts; "hybrid": "bm25" and "dense" together.
      dense_weight: of "dense" in "hybrid", see `retrievers.HybridRetriever`; None = chosen on
        validation.
      choosing_users: of the validation split, at most, by whom it is chosen: the model writes for
        each of them, too.
      seen: whether items of a history may be recommended again, by the model and by baselines, see
        `fusion.seen_places`: "allow", "exclude" or "exclude_last".
      shuffle_history: a control: histories are told in random order.
      epsilon: of quasi-round-robin.
      k1, b: of BM25.
      users_per_batch: whose prompts are read together. Their texts are looked up together too:
        users_per_batch * num_samples * items * 8 bytes.
      max_users: a seeded sample of the users, which a larger one includes; None = all.
      top_k: items of `ranked`.
      baselines: names of `baselines.BASELINES`, measured and shown in this order. Their texts are
        fields of the items, whatever the run's template; `k1` and `b` are theirs, too.
      bootstrap_samples: resamplings for the intervals.
      seed: of sampling, of the sample of users and of the bootstrap.

    Raises:
      CalrecError: a value is out of its range.
    """

    domain: str | Sequence[str]
    split: str = "test"
    name: str | None = None
    checkpoint: str = "stage2:best"
    num_samples: int = 32  # unverified
    temperature: float = 0.5  # unverified
    max_new_tokens: int = 80  # unverified: 50 to 80
    decoding: str = "sample"
    sampling_top_k: int | None = None
    sampling_top_p: float = 1.0
    retrieval: str = "bm25"
    dense_weight: float | None = None
    choosing_users: int = 1000
    seen: str = "allow"
    shuffle_history: bool = False
    epsilon: float = 1 / 5000  # unverified
    k1: float = 1.5  # unverified
    b: float = 0.75  # unverified
    users_per_batch: int = 32
    max_users: int | None = None
    top_k: int = 100
    baselines: Sequence[str] = tuple(baselines.BASELINES)
    bootstrap_samples: int = 1000
    seed: int = 0

    def __post_init__(self):
        if isinstance(self.baselines, list):
            object.__setattr__(self, "baselines", tuple(self.baselines))
        config_checks.check(self)

    @property
    def domains(self) -> tuple[str, ...]:
        """The names of the domains."""
        return (self.domain,) if isinstance(self.domain, str) else tuple(self.domain)

    @property
    def chooses_weight(self) -> bool:
        """Whether validation chooses the weight of "dense"."""
        return self.retrieval == "hybrid" and self.dense_weight is None

    @property
    def folder(self) -> str:
        """Of the results, under MODEL_DIR/eval."""
        return self.name or self.split

    def asked(self) -> dict[str, Any]:
        """What of it a prediction of a trained run depends on; what nothing reads is as preset."""
        values = dataclasses.asdict(self) | {k: getattr(EvaluationConfig, k) for k in self._unread}
        # Those by which others are read come first: they are what a difference is told of.
        first = {name: values.pop(name) for name in ("retrieval", "decoding")}
        return first | {k: v for k, v in values.items() if k not in _NOT_ASKED}

    @property
    def _unread(self) -> set[str]:
        """Fields that say nothing to the retriever."""
        unread = set()
        if self.retrieval == "dense":
            unread |= _OF_TEXTS
        if self.retrieval in ("dense", "trie"):
            unread |= {"k1", "b"}
        if self.retrieval != "hybrid":
            unread |= {"dense_weight"}
        if self.decoding == "beam":
            unread |= {"temperature"}
        return unread if self.chooses_weight else unread | {"choosing_users"}
