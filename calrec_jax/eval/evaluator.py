"""Evaluation of a model on one split of a domain, beside the baselines on the same users."""

from __future__ import annotations

import dataclasses
import json
import os
import pathlib
import random
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from calrec_jax import metrics
from calrec_jax.errors import CalrecError
from calrec_jax.eval import baselines
from calrec_jax.eval.predictions import Generate, PredictionsFile, Retriever, predict
from calrec_jax.text.items import Catalogue, UserSequence
from calrec_jax.text.templates import Template


@dataclasses.dataclass(frozen=True)
class EvaluationConfig:
    """What is measured, and how the model is asked.

    Attributes:
      domain: the registered domain.
      split: "test" or "validation".
      checkpoint: as `Stage.init_from`, "stage2:best".
      num_samples, temperature, max_new_tokens: of sampling (unverified).
      epsilon: of quasi-round-robin (unverified).
      k1, b: of BM25 (unverified).
      users_per_batch: prompts that are read together.
      max_users: a seeded sample of the users; None = all.
      top_k: items of `ranked`.
      bootstrap_samples: resamplings for the intervals.
      seed: of sampling, of the sample of users and of the bootstrap.
    """

    domain: str
    split: str = "test"
    checkpoint: str = "stage2:best"
    num_samples: int = 32
    temperature: float = 0.5
    max_new_tokens: int = 64
    epsilon: float = 1 / 5000
    k1: float = 1.5
    b: float = 0.75
    users_per_batch: int = 32
    max_users: int | None = None
    top_k: int = 100
    bootstrap_samples: int = 1000
    seed: int = 0

    def __post_init__(self):
        if self.split not in ("test", "validation"):
            raise CalrecError(f"EvaluationConfig.split {self.split!r} is neither test nor validation")


def choose_users(users: Sequence[UserSequence], config: EvaluationConfig) -> list[UserSequence]:
    """The users to measure: all, or a seeded sample, in their order."""
    if config.max_users is None or config.max_users >= len(users):
        return list(users)
    chosen = random.Random(config.seed).sample(range(len(users)), config.max_users)
    return [users[i] for i in sorted(chosen)]


def evaluate(
    train: Sequence[UserSequence],
    users: Sequence[UserSequence],
    catalogue: Catalogue,
    template: Template,
    generate: Generate,
    config: EvaluationConfig,
    directory: pathlib.Path,
    settings: Mapping[str, Any],
    progress: Callable[[int, int], None],
) -> dict[str, Any]:
    """Predicts for every user, measures, and writes predictions.jsonl and metrics.json.

    Users that predictions.jsonl already holds are not asked again.

    Args:
      train: the domain's training sequences, for the baselines.
      users: whom to measure.
      generate: the model: users -> continuations.
      directory: MODEL_DIR/eval/<split>.
      settings: what predictions depend on besides `config` (the checkpoint).
      progress: told (users done, users in all).

    Returns:
      What metrics.json holds.

    Raises:
      CalrecError: the directory holds predictions made with other settings.
    """
    texts = [template.render_item(fields) for fields in catalogue.fields]
    not_of_predictions = {"users_per_batch", "bootstrap_samples", "max_users"}
    asked = {k: v for k, v in dataclasses.asdict(config).items() if k not in not_of_predictions}
    file = PredictionsFile(directory, asked | settings)
    done = file.read()
    retriever = Retriever(texts, config.k1, config.b, config.epsilon)
    missing = [user for user in users if user.user_id not in done]
    for start in range(0, len(missing), config.users_per_batch):
        progress(len(users) - len(missing) + start, len(users))
        batch = missing[start : start + config.users_per_batch]
        predictions = list(predict(batch, catalogue, generate, retriever, config.top_k))
        file.append(predictions)
        done |= {prediction["user_id"]: prediction for prediction in predictions}
    progress(len(users), len(users))

    ranks = [done[user.user_id]["rank"] for user in users]
    ours = np.array([r["low"] for r in ranks]), np.array([r["high"] for r in ranks])
    result = measure(ours, train, users, catalogue, texts, config)
    temporary = directory / "metrics.json.tmp"
    temporary.write_text(json.dumps(result, indent=2) + "\n")
    os.replace(temporary, directory / "metrics.json")
    return result


def measure(ours, train, users, catalogue, texts, config: EvaluationConfig) -> dict[str, Any]:
    """metrics.json from the model's rank bounds `ours` = (low, high)."""
    bootstrap = {"bootstrap_samples": config.bootstrap_samples, "seed": config.seed}
    result: dict[str, Any] = {
        "n": len(users),
        "items": len(catalogue),
        "domain": config.domain,
        "split": config.split,
        "metrics": metrics.summarise(*ours, **bootstrap),
        "baselines": {},
        "paired": {},
    }
    for name, make in baselines.BASELINES.items():
        theirs = baselines.rank_bounds(make(train, catalogue, texts), users, catalogue)
        result["baselines"][name] = metrics.summarise(*theirs, **bootstrap)
        result["paired"][name] = metrics.paired(ours, theirs, **bootstrap)
    return result
