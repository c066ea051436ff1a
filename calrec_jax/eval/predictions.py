"""predictions.jsonl: one object a user, written as they come and kept when a run is interrupted."""

from __future__ import annotations

import dataclasses
import json
import pathlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from calrec_jax import metrics
from calrec_jax.errors import CalrecError
from calrec_jax.retrieval import round_robin
from calrec_jax.retrieval.bm25 import BM25Index
from calrec_jax.text.items import Catalogue, UserSequence


@dataclasses.dataclass(frozen=True)
class Generated:
    """One sampled continuation: its text, and the sum of its tokens' log-probabilities."""

    text: str
    log_prob: float


Generate = Callable[[Sequence[UserSequence]], list[list[Generated]]]


class Retriever:
    """From generated texts to scores of the whole catalogue (method: Inference 2-3).

    Args:
      texts: of all items, in the catalogue's order; indexed once.
      k1, b: of BM25.
      epsilon: of quasi-round-robin.
    """

    def __init__(self, texts: Sequence[str], k1: float, b: float, epsilon: float):
        self._index = BM25Index(texts, k1, b)
        self._epsilon = epsilon

    def scores(
        self, outputs: Sequence[tuple[list[str], np.ndarray]]
    ) -> Iterator[np.ndarray]:
        """float64 [items] for each user's merged outputs (texts, log-probabilities)."""
        queries = self._index.scores([text for texts, _ in outputs for text in texts])
        start = 0
        for texts, log_probs in outputs:
            rows = queries[start : start + len(texts)]
            start += len(texts)
            yield round_robin.quasi_round_robin(rows, log_probs, self._epsilon)


def predict(
    users: Sequence[UserSequence],
    catalogue: Catalogue,
    generate: Generate,
    retriever: Retriever,
    top_k: int,
) -> Iterator[dict[str, Any]]:
    """Predictions for one batch of users, each in the form of predictions.jsonl.

    A user whose outputs match no item has zeros for all of them: a tie over the whole catalogue.
    """
    merged = [
        round_robin.merge_outputs([g.text for g in outputs], [g.log_prob for g in outputs])
        for outputs in generate(users)
    ]
    for user, (texts, log_probs), scores in zip(
        users, merged, retriever.scores(merged), strict=True
    ):
        (target,) = catalogue.places([user.target])
        low, high = metrics.rank_bounds(scores, target)
        best = round_robin.ranked(scores, top_k)
        yield {
            "user_id": user.user_id,
            "domain": user.domain,
            "target": user.target,
            "generated": [
                {"text": text, "logprob": float(p)} for text, p in zip(texts, log_probs, strict=True)
            ],
            "ranked": [
                {"item_id": catalogue.item_ids[i], "score": float(scores[i])} for i in best
            ],
            "rank": {"low": low, "high": high},
        }


class PredictionsFile:
    """Appends predictions to a file, and knows which users it already holds.

    Args:
      directory: holds predictions.jsonl, and settings.json beside it.
      settings: what the predictions depend on; they are never mixed with those of others.

    Raises:
      CalrecError: the file was made with other settings.
    """

    def __init__(self, directory: pathlib.Path, settings: Mapping[str, Any]):
        self.path = directory / "predictions.jsonl"
        settings = json.loads(json.dumps(dict(settings)))
        settings_path = directory / "settings.json"
        directory.mkdir(parents=True, exist_ok=True)
        if self.path.exists() and settings_path.exists():
            _require_same(json.loads(settings_path.read_text()), settings, self.path)
        else:
            self.path.unlink(missing_ok=True)
            settings_path.write_text(json.dumps(settings, indent=2) + "\n")
        self._drop_torn_line()

    def _drop_torn_line(self) -> None:
        """A kill may have left half a line at the end."""
        if not self.path.exists():
            return
        data = self.path.read_bytes()
        whole = data[: data.rfind(b"\n") + 1]
        if len(whole) < len(data):
            self.path.write_bytes(whole)

    def read(self) -> dict[str, dict[str, Any]]:
        """{user id: prediction} of what is there."""
        if not self.path.exists():
            return {}
        with self.path.open() as lines:
            predictions = [json.loads(line) for line in lines]
        return {prediction["user_id"]: prediction for prediction in predictions}

    def append(self, predictions: Sequence[Mapping[str, Any]]) -> None:
        """Writes one batch through to the operating system."""
        with self.path.open("a") as file:
            file.writelines(json.dumps(prediction) + "\n" for prediction in predictions)


def _require_same(there: dict, here: dict, path: pathlib.Path) -> None:
    for name in sorted(there.keys() | here.keys()):
        if there.get(name) != here.get(name):
            raise CalrecError(
                f"{path} was made with {name} = {there.get(name)!r}, this evaluation has "
                f"{here.get(name)!r}: move the folder away, or give the old settings"
            )
