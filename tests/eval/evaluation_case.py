"""A small domain and a fake model, for the tests of evaluation."""

from __future__ import annotations

import pathlib
from types import SimpleNamespace

from calrec_jax.eval.evaluator import EvaluationConfig, evaluate
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
VALIDATION = TRAIN


def said(*pairs: tuple[str, float]) -> list[SimpleNamespace]:
    """A user's continuations, from (text, log-probability)."""
    return [SimpleNamespace(text=text, log_prob=log_prob) for text, log_prob in pairs]


class FakeModel:
    """Says the target's title to everyone, then `drum`; remembers whom it was asked about.

    Args:
      dies_after: batches; then it is killed, as a machine may be.
    """

    def __init__(self, dies_after: int | None = None):
        self.batches: list[list[str]] = []
        self._dies_after = dies_after

    @property
    def asked(self) -> list[str]:
        """User ids, in order."""
        return [name for batch in self.batches for name in batch]

    def __call__(self, users):
        if len(self.batches) == self._dies_after:
            raise KeyboardInterrupt
        self.batches.append([user.user_id for user in users])
        return [
            said((f"Title: {WORDS[CATALOGUE.index[user.target]]}", -1.5), ("Title: drum", -2.25))
            for user in users
        ]


def config(**changes) -> EvaluationConfig:
    """Small batches and few resamples."""
    small = {"domain": "toys", "users_per_batch": 2, "bootstrap_samples": 50}
    return EvaluationConfig(**small | changes)


def run(directory: pathlib.Path, generate=None, **changes):
    """`evaluate` on the domain above; `changes` are arguments of it or of the configuration."""
    arguments = {
        "train": TRAIN,
        "validation": VALIDATION,
        "users": USERS,
        "catalogue": CATALOGUE,
        "template": TEMPLATE,
        "settings": SETTINGS,
        "progress": lambda done, total: None,
    }
    given = {name: changes.pop(name) for name in arguments if name in changes}
    return evaluate(
        **arguments | given,
        generate=generate or FakeModel(),
        config=config(**changes),
        directory=directory,
    )
