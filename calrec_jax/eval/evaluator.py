"""Evaluation of a model on one split of a domain, beside the baselines on the same users."""

from __future__ import annotations

import dataclasses
import hashlib
import pathlib
import random
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from calrec_jax import metrics
from calrec_jax.errors import CalrecError
from calrec_jax.eval import baselines
from calrec_jax.eval.predictions import (
    Generate,
    PredictionsFile,
    Retriever,
    TrieRetriever,
    as_json,
    predict,
    predict_scores,
    write_json,
)
from calrec_jax.text.items import Catalogue, UserSequence
from calrec_jax.text.templates import Template

EXAMPLES = 20  # users that the report shows
_COUNTS = (
    "num_samples",
    "max_new_tokens",
    "users_per_batch",
    "max_users",
    "top_k",
    "sampling_top_k",
    "bootstrap_samples",
)
_CHOICES = {
    "split": ("test", "validation"),
    "decoding": ("sample", "beam"),
    "retrieval": ("bm25", "trie"),
}


@dataclasses.dataclass(frozen=True)
class EvaluationConfig:
    """What is measured, and how the model is asked.

    Attributes:
      domain: the registered domain.
      split: "test" or "validation".
      checkpoint: as `Stage.init_from`, "stage2:best".
      num_samples, temperature, max_new_tokens, decoding, sampling_top_k, sampling_top_p: see
        `SamplingConfig`, where the last three are method, top_k and top_p; whoever makes `generate`
        reads them.
      retrieval: how texts become items: "bm25", which looks free texts up, or "trie": texts are of
        items alone, and those that were reached rank by log-probability before all others.
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

    domain: str
    split: str = "test"
    checkpoint: str = "stage2:best"
    num_samples: int = 32  # unverified
    temperature: float = 0.5  # unverified
    max_new_tokens: int = 80  # unverified: 50 to 80
    decoding: str = "sample"
    sampling_top_k: int | None = None
    sampling_top_p: float = 1.0
    retrieval: str = "bm25"
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
        object.__setattr__(self, "baselines", tuple(self.baselines))
        for name in self.baselines:
            if name not in baselines.BASELINES:
                raise CalrecError(
                    f"EvaluationConfig.baselines names {name!r}, which is none of "
                    f"{', '.join(baselines.BASELINES)}"
                )
        for name, known in _CHOICES.items():
            value = getattr(self, name)
            if value not in known:
                raise CalrecError(f"EvaluationConfig.{name} {value!r} is none of {known}")
        if not 0 < self.sampling_top_p <= 1:
            value = self.sampling_top_p
            raise CalrecError(f"EvaluationConfig.sampling_top_p is {value}: give one in (0, 1]")
        for name in _COUNTS:
            value = getattr(self, name)
            if value is not None and value < 1:
                raise CalrecError(f"EvaluationConfig.{name} is {value}: it must be at least 1")
        for name in ("epsilon", "k1", "b"):
            value = getattr(self, name)
            if not 0 <= value < float("inf"):
                raise CalrecError(f"EvaluationConfig.{name} is {value}: it must not be negative")


def choose_users(users: Sequence[UserSequence], config: EvaluationConfig) -> list[UserSequence]:
    """The users to measure, in their order: all, or a sample that a larger one includes."""
    shuffled = random.Random(config.seed).sample(range(len(users)), len(users))
    return [users[i] for i in sorted(shuffled[: config.max_users])]


def evaluate(
    train: Sequence[UserSequence],
    validation: Sequence[UserSequence],
    users: Sequence[UserSequence],
    catalogue: Catalogue,
    template: Template,
    generate: Generate,
    config: EvaluationConfig,
    directory: pathlib.Path,
    settings: Mapping[str, Any],
    progress: Callable[[int, int], None],
) -> dict[str, Any]:
    """Predicts for users of a split, measures, and writes the files of the evaluation.

    predictions.jsonl (with settings.json, what they depend on), metrics.json, and examples.json for
    the report. Users that predictions.jsonl already holds are not asked again; those of another
    sample of users stay there, but are not measured.

    Args:
      train: the domain's training sequences, for the baselines.
      validation: users of the validation split, on whom the hybrid baseline is chosen.
      users: of the split; `config.max_users` of them are measured.
      generate: the model: users -> continuations.
      directory: MODEL_DIR/eval/<split>.
      settings: what predictions depend on besides `config` and the data: the checkpoint's step and
        the vocabulary.
      progress: told (users done, users in all).

    Returns:
      What metrics.json holds.

    Raises:
      CalrecError: the directory holds predictions made with other settings, there are no users, or
        their items are not in the catalogue.
    """
    texts = [template.render_item(fields) for fields in catalogue.fields]
    if config.retrieval == "trie":
        retriever = TrieRetriever(len(texts), config.epsilon)
    else:
        retriever = Retriever(texts, config.k1, config.b, config.epsilon)
    return _evaluate(
        "calrec",
        baselines.Known(train, catalogue, validation, config.k1, config.b),
        users,
        texts,
        lambda batch: predict(batch, catalogue, generate, retriever, config.top_k),
        config,
        directory,
        _asked(config) | {"template": dataclasses.asdict(template), **settings},
        progress,
    )


def evaluate_scores(
    name: str,
    known: baselines.Known,
    users: Sequence[UserSequence],
    score: baselines.Score,
    config: EvaluationConfig,
    directory: pathlib.Path,
    settings: Mapping[str, Any],
    progress: Callable[[int, int], None],
) -> dict[str, Any]:
    """As `evaluate`, for a model that scores the items itself and writes no texts.

    Args:
      name: of the model, in tables.
      known: the data of the baselines.
      score: the model.
      config: what it says of texts and of how they are looked up is not used.
      settings: all that the scores depend on besides the data.
    """
    catalogue = known.catalogue
    return _evaluate(
        name,
        known,
        users,
        [Template().render_item(fields) for fields in catalogue.fields],
        lambda batch: predict_scores(batch, catalogue, score, config.top_k),
        config,
        directory,
        {"split": config.split, "top_k": config.top_k, **settings},
        progress,
    )


def _evaluate(
    name: str,
    known: baselines.Known,
    users: Sequence[UserSequence],
    texts: Sequence[str],
    predict_batch: Callable[[Sequence[UserSequence]], Iterable[dict[str, Any]]],
    config: EvaluationConfig,
    directory: pathlib.Path,
    settings: Mapping[str, Any],
    progress: Callable[[int, int], None],
) -> dict[str, Any]:
    """What all kinds of models have in common."""
    catalogue = known.catalogue
    chosen = choose_users(users, config)
    _check_users(chosen, catalogue)
    data = _data_hash(known.train, catalogue, texts)
    file = PredictionsFile(directory, {"data": data, **settings})
    # Before the model is asked for hours: what fails here fails at once.
    theirs, choices = measure_baselines(known, chosen, config.baselines)
    done = file.read()
    missing = [user for user in chosen if user.user_id not in done]
    for start in range(0, len(missing), config.users_per_batch):
        progress(len(chosen) - len(missing) + start, len(chosen))
        batch = missing[start : start + config.users_per_batch]
        predictions = list(predict_batch(batch))
        file.append(predictions)
        done |= {prediction["user_id"]: prediction for prediction in predictions}
    progress(len(chosen), len(chosen))

    ranks = [done[user.user_id]["rank"] for user in chosen]
    result = {
        "model": name,
        "n": len(chosen),
        "users": len(users),
        "items": len(catalogue),
        "domain": config.domain,
        "split": config.split,
        "config": as_json(dataclasses.asdict(config)),
        **_measure(ranks, theirs, config),
        "choices": choices,
    }
    shown = [_example(user, done[user.user_id], catalogue, texts) for user in chosen[:EXAMPLES]]
    write_json(directory / "examples.json", shown)
    write_json(directory / "metrics.json", result)
    return result


def measure_baselines(
    known: baselines.Known, users: Sequence[UserSequence], names: Sequence[str]
) -> tuple[dict[str, tuple[np.ndarray, np.ndarray]], dict[str, dict[str, Any]]]:
    """{baseline: rank bounds of the users' targets}, {hybrid: what validation chose for it}."""
    bounds, choices = {}, {}
    for name in names:
        score = baselines.BASELINES[name](known)
        bounds[name] = baselines.rank_bounds(score, users, known.catalogue)
        if isinstance(score, baselines.Hybrid):
            choices[name] = dataclasses.asdict(score.choice)
    return bounds, choices


def _check_users(users: Sequence[UserSequence], catalogue: Catalogue) -> None:
    if not users:
        raise CalrecError(f"{catalogue.domain} has no users to measure: the split is empty")
    if len({user.user_id for user in users}) < len(users):
        raise CalrecError(f"{catalogue.domain} has several sequences of one user in a split")
    catalogue.places([item_id for user in users for item_id in user.item_ids])


def _asked(config: EvaluationConfig) -> dict[str, Any]:
    """What of the configuration a user's prediction depends on."""
    others = ("users_per_batch", "bootstrap_samples", "max_users", "baselines")
    return {k: v for k, v in dataclasses.asdict(config).items() if k not in others}


def _data_hash(train: Sequence[UserSequence], catalogue: Catalogue, texts: Sequence[str]) -> str:
    """Other items, texts, users or histories give another hash.

    The training sequences stand for the split's histories, which are longer by one or two items:
    of the split itself only a sample may be measured, and another one the next time.
    """
    digest = hashlib.blake2b(digest_size=8)
    rows = [*zip(catalogue.item_ids, texts, strict=True)]
    rows += [(user.user_id, *user.item_ids) for user in train]
    for row in rows:
        digest.update(("\x1f".join(row) + "\x1e").encode(errors="surrogatepass"))
    return digest.hexdigest()


def _measure(
    ranks: Sequence[Mapping[str, int]],
    theirs: Mapping[str, tuple[np.ndarray, np.ndarray]],
    config: EvaluationConfig,
) -> dict[str, Any]:
    """The model's metrics, those of the baselines, and the differences."""
    bootstrap = {"bootstrap_samples": config.bootstrap_samples, "seed": config.seed}
    ours = np.array([r["low"] for r in ranks]), np.array([r["high"] for r in ranks])
    return {
        "metrics": metrics.summarise(*ours, **bootstrap),
        "baselines": {k: metrics.summarise(*bounds, **bootstrap) for k, bounds in theirs.items()},
        "paired": {k: metrics.paired(ours, bounds, **bootstrap) for k, bounds in theirs.items()},
    }


def _example(
    user: UserSequence, prediction: Mapping[str, Any], catalogue: Catalogue, texts: Sequence[str]
) -> dict[str, Any]:
    """A prediction with the user's history and the texts of all items in it, for the report."""
    ranked = prediction["ranked"][:10]
    ids = [*user.item_ids, *(item["item_id"] for item in ranked)]
    return {
        **prediction,
        "ranked": ranked,
        "history": list(user.history),
        "texts": {item_id: texts[catalogue.index[item_id]] for item_id in ids},
    }
