"""A small domain and a fake model, for the tests of evaluation."""

from __future__ import annotations

import dataclasses
import json
import pathlib
from typing import Any

from calrec_jax.eval.baselines import BaselineData
from calrec_jax.eval.evaluation import EvaluationConfig
from calrec_jax.eval.evaluator import EvaluatedDomain, predict_and_measure
from calrec_jax.eval.retrievers import (
    BM25Lookup,
    Generate,
    ScoreRetriever,
    TextRetriever,
    TrieLookup,
)
from calrec_jax.model_dir import EvaluationDir
from calrec_jax.retrieval.bm25 import BM25Index
from calrec_jax.text.generated import Generated
from calrec_jax.text.items import Catalogue, UserSequence
from calrec_jax.text.templates import Template

TEMPLATE = Template(fields=("title",))
WORDS = ("anchor", "bottle", "candle", "drum", "easel", "fan", "globe", "hammer")
CATALOGUE = Catalogue.create("toys", {f"i{n}": {"title": word} for n, word in enumerate(WORDS)})
SETTINGS = {"checkpoint": "stage2:300"}


def user(name: str, *places: int, domain: str = "toys") -> UserSequence:
    """A sequence of items of CATALOGUE by their places; the last is the target."""
    return UserSequence(name, domain, tuple(f"i{place}" for place in places))


USERS = [user("a", 0, 1, 2), user("b", 3, 4, 5), user("c", 6, 7, 0), user("d", 1, 2, 3)]
TRAIN = [user("a", 0, 1), user("b", 3, 4), user("c", 6, 7), user("d", 1, 2)]
VALIDATION = [user("a", 1, 0), user("b", 3, 5), user("c", 6, 7), user("d", 1, 2)]


def texts_with(*pairs: tuple[str, float]) -> list[Generated]:
    """The generated texts of one user, from (text, log-probability)."""
    return [Generated(text, log_prob) for text, log_prob in pairs]


class FakeModel:
    """Generates the target's title and `drum` for each user, and records the users.

    Args:
      dies_after: the number of batches after which it is killed, as a machine may be.
    """

    def __init__(self, dies_after: int | None = None) -> None:
        self.batches: list[list[str]] = []
        self._dies_after = dies_after

    @property
    def predicted(self) -> list[str]:
        """The ids of the users that it generated for, in order."""
        return [name for batch in self.batches for name in batch]

    def __call__(self, histories: list[tuple[str, ...]], names: list[str]) -> list[list[Generated]]:
        if len(self.batches) == self._dies_after:
            raise KeyboardInterrupt
        self.batches.append(list(names))
        targets = {user.user_id: user.target for user in USERS}
        return [
            texts_with(
                (f"Title: {WORDS[CATALOGUE.index[targets[name]]]}", -1.5), ("Title: drum", -2.25)
            )
            for name in names
        ]


def config(**changes: Any) -> EvaluationConfig:
    """Small batches and few resamples."""
    small = {"domains": "toys", "users_per_batch": 2, "bootstrap_samples": 50}
    return EvaluationConfig(**small | changes)


def texts_of(catalogue: Catalogue, template: Template = TEMPLATE) -> list[str]:
    """The texts of all items."""
    return [template.render_item(fields) for fields in catalogue.fields]


def writer(
    generate: Generate, c: EvaluationConfig, catalogue: Catalogue, template: Template
) -> TextRetriever:
    """A model that writes texts, as a retriever."""
    index = BM25Index(texts_of(catalogue, template), c.bm25)
    lookup = BM25Lookup(index, catalogue, template, c.epsilon)
    if c.retrieval == "trie":
        lookup = TrieLookup(len(catalogue), c.epsilon)
    return TextRetriever(generate, lookup, catalogue, c.seen)


def run(
    directory: pathlib.Path,
    generate: Generate | None = None,
    retriever: ScoreRetriever | None = None,
    **changes: Any,
) -> dict[str, Any]:
    """`predict_and_measure` on the domain above.

    Args:
      generate: the model, as a writer of texts; or
      retriever: the model, ready.
      changes: of the data, the template, the settings, `progress` or the configuration.
    """
    arguments = {
        "train": TRAIN,
        "validation": VALIDATION,
        "users": USERS,
        "catalogue": CATALOGUE,
        "template": TEMPLATE,
        "settings": SETTINGS,
        "progress": lambda done, total: None,
    }
    given = arguments | {name: changes.pop(name) for name in arguments if name in changes}
    c, catalogue = config(**changes), given["catalogue"]
    template = given["template"]
    domain = EvaluatedDomain(
        BaselineData(given["train"], catalogue, given["validation"], c.bm25, c.seen),
        given["users"],
        texts_of(catalogue, template),
        lambda: retriever or writer(generate or FakeModel(), c, catalogue, template),
    )
    settings = {
        **c.prediction_settings(),
        "template": dataclasses.asdict(template),
        **given["settings"],
    }
    return predict_and_measure(
        "calrec", [domain], c, EvaluationDir(directory), settings, given["progress"]
    )


def lines(directory: pathlib.Path) -> list[dict]:
    """The predictions that an evaluation wrote."""
    return [json.loads(line) for line in (directory / "predictions.jsonl").read_text().splitlines()]
