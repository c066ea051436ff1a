"""predictions.jsonl: one object a user, written as they come and kept when a run is interrupted."""

from __future__ import annotations

import json
import os
import pathlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from calrec_jax import metrics
from calrec_jax.errors import CalrecError
from calrec_jax.eval.baselines import Score
from calrec_jax.retrieval import round_robin
from calrec_jax.retrieval.bm25 import BM25Index
from calrec_jax.text.items import Catalogue, UserSequence

if TYPE_CHECKING:  # it would bring JAX along, which measuring does not need
    from calrec_jax.decode.texts import Generated

# The model: users -> continuations of each, with their text and log_prob.
Generate = Callable[[Sequence[UserSequence]], "list[list[Generated]]"]


class Retriever:
    """From generated texts to scores of the whole catalogue (method: Inference 2-3).

    Args:
      texts: of all items, in the catalogue's order; indexed once.
      k1, b: of BM25.
      epsilon: of quasi-round-robin.
    """

    def __init__(self, texts: Sequence[str], k1: float, b: float, epsilon: float):
        self.index = BM25Index(texts, k1, b)
        self._epsilon = epsilon

    def scores(self, outputs: Sequence[Sequence[Generated]]) -> Iterator[np.ndarray]:
        """float64 [items] for each user's outputs.

        All texts are looked up together, which takes float64 [texts, items] of memory.
        """
        merged = [merge(some) for some in outputs]
        queries = self.index.scores([text for texts, _ in merged for text in texts])
        start = 0
        for texts, log_probs in merged:
            rows = queries[start : start + len(texts)]
            start += len(texts)
            yield round_robin.quasi_round_robin(rows, log_probs, self._epsilon)


class TrieRetriever:
    """From texts of items to scores of the whole catalogue: nothing needs to be looked up.

    Args:
      items: of the catalogue.
      epsilon: as in quasi-round-robin, where each output would find its own items and no others.
    """

    def __init__(self, items: int, epsilon: float):
        self._items, self._epsilon = items, epsilon

    def scores(self, outputs: Sequence[Sequence[Generated]]) -> Iterator[np.ndarray]:
        """float64 [items] for each user's outputs: exp(epsilon * log-probability), 0 for items that
        no output names. Items with the same text tie.

        Raises:
          CalrecError: a log-probability is NaN.
        """
        for some in outputs:
            if np.isnan([generated.log_prob for generated in some]).any():
                raise CalrecError(round_robin.NOT_A_NUMBER)
            scores = np.zeros(self._items)
            for generated in some:
                places = list(generated.items)
                score = np.exp(self._epsilon * generated.log_prob)
                scores[places] = np.maximum(scores[places], score)
            yield scores


def merge(outputs: Sequence[Generated]) -> tuple[list[str], np.ndarray]:
    """The distinct texts of one user and their log-probabilities, the likeliest first."""
    return round_robin.merge_outputs([g.text for g in outputs], [g.log_prob for g in outputs])


def predict(
    users: Sequence[UserSequence],
    catalogue: Catalogue,
    generate: Generate,
    retriever: Retriever | TrieRetriever,
    top_k: int,
) -> Iterator[dict[str, Any]]:
    """Predictions for one batch of users, each in the form of predictions.jsonl.

    A user whose outputs match no item has zeros for all of them: a tie over the whole catalogue.
    """
    outputs = generate(users)
    for user, some, scores in zip(users, outputs, retriever.scores(outputs), strict=True):
        generated = [
            {"text": text, "logprob": float(log_prob)}
            for text, log_prob in zip(*merge(some), strict=True)
        ]
        yield _prediction(user, catalogue, generated, scores, top_k)


def predict_scores(
    users: Sequence[UserSequence], catalogue: Catalogue, score: Score, top_k: int
) -> Iterator[dict[str, Any]]:
    """As `predict`, for a model that scores the items itself: nothing is generated."""
    for user, scores in zip(users, score(users), strict=True):
        yield _prediction(user, catalogue, [], scores, top_k)


def _prediction(
    user: UserSequence,
    catalogue: Catalogue,
    generated: list[dict[str, Any]],
    scores: np.ndarray,
    top_k: int,
) -> dict[str, Any]:
    (target,) = catalogue.places([user.target])
    low, high = metrics.rank_bounds(scores, target)
    best = round_robin.ranked(scores, top_k)
    return {
        "user_id": user.user_id,
        "domain": user.domain,
        "target": user.target,
        "generated": generated,
        "ranked": [{"item_id": catalogue.item_ids[i], "score": float(scores[i])} for i in best],
        "rank": {"low": low, "high": high},
    }


class PredictionsFile:
    """Appends predictions to a file, and knows which users it already holds.

    Args:
      directory: holds predictions.jsonl, and settings.json beside it.
      settings: what the predictions depend on; they are never mixed with those of others.

    Raises:
      CalrecError: the file was made with other settings, or none are beside it.
    """

    def __init__(self, directory: pathlib.Path, settings: Mapping[str, Any]):
        self.path = directory / "predictions.jsonl"
        directory.mkdir(parents=True, exist_ok=True)
        settings_path = directory / "settings.json"
        if self.path.exists():
            _require_same(self.path, _read_settings(settings_path), as_json(settings))
            self._drop_torn_line()
        else:
            write_json(settings_path, settings)

    def _drop_torn_line(self) -> None:
        """A kill may have left half a line at the end."""
        data = self.path.read_bytes()
        os.truncate(self.path, data.rfind(b"\n") + 1)

    def read(self) -> dict[str, dict[str, Any]]:
        """{user id: prediction} of what is there.

        Raises:
          CalrecError: a line is no prediction.
        """
        if not self.path.exists():
            return {}
        predictions = {}
        for number, line in enumerate(self.path.read_text("utf-8").splitlines(), start=1):
            try:
                prediction = json.loads(line)
                predictions[prediction["user_id"]] = prediction
            except (ValueError, KeyError, TypeError) as error:
                raise CalrecError(
                    f"{self.path} is damaged in line {number}: {_anew(self.path)}"
                ) from error
        return predictions

    def append(self, predictions: Sequence[Mapping[str, Any]]) -> None:
        """Writes one batch through to the operating system."""
        with self.path.open("a", encoding="utf-8") as file:
            file.writelines(json.dumps(p, allow_nan=False) + "\n" for p in predictions)


def as_json(value: Any) -> Any:
    """`value` as it is read back from JSON: lists for tuples."""
    return json.loads(json.dumps(value))


def write_json(path: pathlib.Path, value: Any) -> None:
    """Writes the whole file or, when killed, none of it. NaN is no JSON: ValueError."""
    temporary = path.with_name(path.name + ".tmp")
    temporary.write_text(json.dumps(value, indent=2, allow_nan=False) + "\n", "utf-8")
    os.replace(temporary, path)


def _read_settings(path: pathlib.Path) -> dict[str, Any]:
    try:
        return json.loads(path.read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise CalrecError(
            f"{path.parent / 'predictions.jsonl'} does not say what made it, since {path.name} is "
            f"missing or damaged: {_anew(path)}"
        ) from error


def _require_same(path: pathlib.Path, there: Any, here: Any, name: str = "") -> None:
    if isinstance(there, dict) and isinstance(here, dict):
        for key in sorted(there.keys() | here.keys()):
            inner = f"{name}.{key}" if name else key
            _require_same(path, there.get(key), here.get(key), inner)
    elif there != here:
        raise CalrecError(
            f"{path} was made with {name} = {there!r}, this evaluation has {here!r}: "
            f"{_anew(path)}, or give the old settings"
        )


def _anew(path: pathlib.Path) -> str:
    return f"move {path.parent} away to predict anew"
