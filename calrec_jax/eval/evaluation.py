"""What an evaluation measures, and how the model's rankings are made."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Sequence
from typing import Any

from calrec_jax import ranges
from calrec_jax.decode.sampling import SamplingConfig
from calrec_jax.errors import CalrecError
from calrec_jax.eval.baselines import BASELINES
from calrec_jax.retrieval.bm25 import BM25Config
from calrec_jax.retrieval.fusion import SEEN

SPLITS = ("test", "validation")
RETRIEVALS = ("bm25", "trie", "dense", "hybrid")

_FOLDER = re.compile(r"[\w-][\w.-]*")
_LONGEST_NAME = 200  # bytes; file systems take 255

# The settings that predictions depend on, as `EvaluationConfig.flat` names them, in the order of
# settings.json. Those that decide which others are read come first: where predictions were made
# with other settings, the first one that differs is named.
_PREDICTION_SETTINGS = (
    "retrieval",
    "decoding",
    "split",
    "checkpoint",
    "num_samples",
    "temperature",
    "max_new_tokens",
    "sampling_top_k",
    "sampling_top_p",
    "dense_weight",
    "choosing_users",
    "seen",
    "shuffle_history",
    "epsilon",
    "k1",
    "b",
    "top_k",
    "seed",
)


@dataclasses.dataclass(frozen=True)
class EvaluationConfig:
    """What is measured, and how the model's rankings are made.

    Attributes:
      domains: names of registered domains, which are measured together. A single name may be given
        for one; the attribute is always a tuple.
      split: "test" or "validation".
      name: of the folder under MODEL_DIR/eval; None = the split's. An evaluation with other
        settings needs another name, if the first one is to be kept.
      checkpoint: as `Stage.init_from`, "stage2:best".
      retrieval: how items are found: "bm25", which looks free texts up; "trie": texts are of items
        alone, and those that were reached rank by log-probability before all others; "dense": by
        the cosine of the towers' vectors, without texts; "hybrid": "bm25" and "dense" together.
      sampling: how the model's texts are chosen.
      bm25: the parameters of retrieval "bm25" and of the baselines that are made of BM25.
      epsilon: of quasi-round-robin.
      dense_weight: of "dense" in "hybrid", see `retrievers.HybridRetriever`; None = chosen on
        validation.
      choosing_users: the largest number of validation users by whom it is chosen; texts are
        generated for each of them, too.
      seen: whether items of a history may be recommended again, by the model and by baselines, see
        `fusion.seen_places`: "allow", "exclude" or "exclude_last".
      shuffle_history: a control: histories are given in random order.
      users_per_batch: users whose prompts are read together. Their texts are looked up together,
        too: users_per_batch * num_samples * items * 8 bytes.
      max_users: the size of a seeded sample of the users, which a larger one includes; None = all.
      top_k: items of `ranked` in predictions.jsonl.
      baselines: names in `baselines.BASELINES`, measured and shown in this order. Their texts are
        fields of the items, whatever the run's template.
      bootstrap_samples: resamplings for the intervals.
      seed: of sampling, of the sample of users and of the bootstrap.

    Raises:
      CalrecError: a value is out of its range.
    """

    domains: Sequence[str]
    split: str = "test"
    name: str | None = None
    checkpoint: str = "stage2:best"
    retrieval: str = "bm25"
    sampling: SamplingConfig = SamplingConfig()
    bm25: BM25Config = BM25Config()
    epsilon: float = 1 / 5000  # unverified
    dense_weight: float | None = None
    choosing_users: int = 1000
    seen: str = "allow"
    shuffle_history: bool = False
    users_per_batch: int = 32
    max_users: int | None = None
    top_k: int = 100
    baselines: Sequence[str] = tuple(BASELINES)
    bootstrap_samples: int = 1000
    seed: int = 0

    def __post_init__(self) -> None:
        if isinstance(self.domains, str):
            object.__setattr__(self, "domains", (self.domains,))
        for field in ("domains", "baselines"):
            if isinstance(getattr(self, field), list):
                object.__setattr__(self, field, tuple(getattr(self, field)))
        self._check_ranges()
        self._check_name()
        self._check_lists()

    @property
    def chooses_weight(self) -> bool:
        """Whether validation chooses the weight of "dense"."""
        return self.retrieval == "hybrid" and self.dense_weight is None

    @property
    def folder(self) -> str:
        """The name of the folder of the results, under MODEL_DIR/eval."""
        return self.name or self.split

    def flat(self) -> dict[str, Any]:
        """All settings without nesting, under the names that the files of an evaluation have.

        settings.json and "config" in metrics.json have kept these since version 0.1, so that
        evaluations can be compared with those of earlier versions.
        """
        return {
            "domain": self.domains[0] if len(self.domains) == 1 else list(self.domains),
            "split": self.split,
            "name": self.name,
            "checkpoint": self.checkpoint,
            "num_samples": self.sampling.num_samples,
            "temperature": self.sampling.temperature,
            "max_new_tokens": self.sampling.max_new_tokens,
            "decoding": self.sampling.method,
            "sampling_top_k": self.sampling.top_k,
            "sampling_top_p": self.sampling.top_p,
            "retrieval": self.retrieval,
            "dense_weight": self.dense_weight,
            "choosing_users": self.choosing_users,
            "seen": self.seen,
            "shuffle_history": self.shuffle_history,
            "epsilon": self.epsilon,
            "k1": self.bm25.k1,
            "b": self.bm25.b,
            "users_per_batch": self.users_per_batch,
            "max_users": self.max_users,
            "top_k": self.top_k,
            "baselines": list(self.baselines),
            "bootstrap_samples": self.bootstrap_samples,
            "seed": self.seed,
        }

    def prediction_settings(self) -> dict[str, Any]:
        """The settings that predictions depend on, in the form of `flat`.

        Those that the chosen retrieval does not read have their default values.
        """
        flat = self._without_unread().flat()
        return {name: flat[name] for name in _PREDICTION_SETTINGS}

    def _without_unread(self) -> EvaluationConfig:
        """This evaluation, with default values of all that its retrieval does not read."""
        defaults: dict[str, Any] = {}
        if self.sampling.method == "beam":
            temperature = SamplingConfig.temperature
            defaults["sampling"] = dataclasses.replace(self.sampling, temperature=temperature)
        if self.retrieval == "dense":
            defaults |= {"sampling": SamplingConfig(), "epsilon": EvaluationConfig.epsilon}
        if self.retrieval in ("dense", "trie"):
            defaults["bm25"] = BM25Config()
        if self.retrieval != "hybrid":
            defaults["dense_weight"] = None
        if not self.chooses_weight:
            defaults["choosing_users"] = EvaluationConfig.choosing_users
        return dataclasses.replace(self, **defaults)

    def _check_ranges(self) -> None:
        ranges.require_one_of(self, "split", SPLITS)
        ranges.require_one_of(self, "retrieval", RETRIEVALS)
        ranges.require_one_of(self, "seen", SEEN)
        ranges.require_at_least_one(
            self, "users_per_batch", "max_users", "choosing_users", "top_k", "bootstrap_samples"
        )
        ranges.require_not_negative(self, "epsilon", "dense_weight", "seed")

    def _check_name(self) -> None:
        if not isinstance(self.name, str):
            return
        if not _FOLDER.fullmatch(self.name):
            raise CalrecError(
                f"EvaluationConfig.name {self.name!r} is no name of a folder: use letters, digits, "
                f"dots, dashes and underscores"
            )
        size = len(self.name.encode())
        if size > _LONGEST_NAME:
            raise CalrecError(
                f"EvaluationConfig.name {self.name[:20]!r}... has {size} bytes: give one of at "
                f"most {_LONGEST_NAME}"
            )

    def _check_lists(self) -> None:
        """Raises CalrecError for a name that is given twice, no domain or an unknown baseline."""
        for field in ("domains", "baselines"):
            names = getattr(self, field)
            for place, name in enumerate(names if isinstance(names, tuple) else ()):
                if name in names[:place]:
                    raise CalrecError(f"EvaluationConfig.{field} names {name!r} twice")
        if self.domains == ():
            raise CalrecError("EvaluationConfig.domains is empty: name at least one")
        for name in self.baselines if isinstance(self.baselines, tuple) else ():
            if isinstance(name, str) and name not in BASELINES:
                raise CalrecError(
                    f"EvaluationConfig.baselines names {name!r}, which is none of "
                    f"{', '.join(BASELINES)}"
                )
