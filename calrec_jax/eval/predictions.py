"""predictions.jsonl: one object a user, written as they come and kept when a run is interrupted."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from calrec_jax.errors import CalrecError, unwritable_named
from calrec_jax.eval.outcomes import BEST
from calrec_jax.eval.retrievers import Ranking, Retriever
from calrec_jax.files import as_json, write_json
from calrec_jax.locks import locked_folder
from calrec_jax.model_dir import EvaluationDir
from calrec_jax.text.generated import Generated
from calrec_jax.text.items import Catalogue, UserSequence

_BLOCK = 2**20  # bytes

Key = tuple[str, str]
"""Domain and user id."""


@dataclasses.dataclass(frozen=True)
class Predicted:
    """What is measured of one user's prediction.

    Attributes:
      target: the item whose rank is told.
      low, high: its rank, as bounds.
      best: ids of the first items of the ranking, `BEST` at most.
      start: where its line begins in the file, in bytes.
    """

    target: str
    low: int
    high: int
    best: tuple[str, ...]
    start: int


class PredictionsFile:
    """Appends predictions to a file, and knows which users it already holds.

    Args:
      directory: holds the file, and settings.json beside it.
      settings: what the predictions depend on; they are never mixed with those of others.

    Raises:
      CalrecError: the file was made with other settings, none are beside it, or the directory
        cannot be written.
    """

    def __init__(self, directory: EvaluationDir, settings: Mapping[str, Any]):
        self.directory, self.path = directory, directory.predictions
        with unwritable_named(_unwritable(directory)):
            directory.path.mkdir(parents=True, exist_ok=True)
            if self.path.exists():
                _require_same(self.path, _read_settings(directory), as_json(settings))
                self._drop_torn_line()
            else:
                write_json(directory.settings, settings)

    def _drop_torn_line(self) -> None:
        """A kill may have left half a line at the end."""
        with self.path.open("r+b") as file:
            end = file.seek(0, os.SEEK_END)
            while end > 0:
                start = max(0, end - _BLOCK)
                file.seek(start)
                place = file.read(end - start).rfind(b"\n")
                if place >= 0:
                    end = start + place + 1
                    break
                end = start
            file.truncate(end)

    def read(self) -> dict[Key, Predicted]:
        """What is there. Raises as `read_predictions`."""
        return read_predictions(self.path) if self.path.exists() else {}

    def require_same_data(
        self, done: Mapping[Key, Predicted], users: Sequence[UserSequence], catalogue: Catalogue
    ) -> None:
        """Raises CalrecError where what is there of some of the users is not of this data.

        Args:
          done: what `read` found.
          users: of the domain whose catalogue it is.
        """
        for user in users:
            there = done.get((user.domain, user.user_id))
            if there is not None and not (
                there.target == user.target
                and there.high <= len(catalogue)
                and all(item_id in catalogue.index for item_id in there.best)
            ):
                raise CalrecError(
                    f"{self.path} has a prediction of user {user.user_id!r} of {user.domain} that "
                    f"is of another target or catalogue: remove its line, and the user is asked "
                    f"again; or {_anew(self.path)}"
                )

    def read_full(self, predictions: Sequence[Predicted]) -> list[dict[str, Any]]:
        """The objects of some lines."""
        with self.path.open("rb") as file:
            lines = []
            for predicted in predictions:
                file.seek(predicted.start)
                lines.append(json.loads(file.readline()))
        return lines

    def append(self, predictions: Sequence[Mapping[str, Any]]) -> None:
        """Writes one batch through to the operating system."""
        with self.path.open("a", encoding="utf-8") as file:
            file.writelines(json.dumps(p, allow_nan=False) + "\n" for p in predictions)


def read_predictions(path: pathlib.Path) -> dict[Key, Predicted]:
    """What a predictions.jsonl holds, of all users.

    Raises:
      CalrecError: a line is no prediction.
    """
    found, start = {}, 0
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            try:
                key, predicted = _parsed(line, start)
            except (ValueError, KeyError, TypeError, RecursionError) as error:
                raise CalrecError(
                    f"{path} is damaged in line {number}: remove that line, and `calrec eval` asks "
                    f"its user again; or {_anew(path)}"
                ) from error
            found[key] = predicted
            start += len(line)
    return found


def locked(directory: EvaluationDir) -> contextlib.AbstractContextManager[None]:
    """While active, no other process evaluates into `directory`.

    Raises:
      CalrecError: another one does, or the directory cannot be written.
    """
    return locked_folder(
        directory.lock,
        lambda holder: (
            f"{holder} evaluates into {directory}: wait for its end, or bind "
            f"EvaluationConfig.name to another one"
        ),
        _unwritable(directory),
    )


def _unwritable(directory: EvaluationDir) -> str:
    return f"cannot keep predictions in {directory}"


def _parsed(line: bytes, start: int) -> tuple[Key, Predicted]:
    """What a line says. Raises ValueError, KeyError, TypeError or RecursionError if it is none."""
    prediction = json.loads(line)
    key = prediction["domain"], prediction["user_id"]
    rank, target = prediction["rank"], prediction["target"]
    best = tuple(item["item_id"] for item in prediction["ranked"][:BEST])
    texts, log_probs = [], []
    for generated in prediction["generated"]:
        texts.append(generated["text"])
        log_probs.append(generated["logprob"])
    if not all(isinstance(text, str) for text in (*key, target, *best, *texts)):
        raise TypeError("a name or a text is none")
    if not all(isinstance(log_prob, (int, float)) for log_prob in log_probs):
        raise TypeError("a log-probability is no number")
    low, high = rank["low"], rank["high"]
    if not (isinstance(low, int) and isinstance(high, int) and 1 <= low <= high):
        raise ValueError("a rank is none")
    return key, Predicted(target, low, high, best, start)


def predict_users(
    file: PredictionsFile,
    users: Sequence[UserSequence],
    catalogue: Catalogue,
    retriever: Retriever,
    top_k: int,
    batch_size: int,
    told: Callable[[int], None],
) -> None:
    """Asks for users that the file does not hold, and appends what is found, batch by batch.

    Args:
      users: of one domain.
      top_k: items of `ranked`.
      batch_size: users who are asked together.
      told: the number of users who are done, after each batch.

    Raises:
      CalrecError: as `Retriever`.
    """
    for start in range(0, len(users), batch_size):
        batch = users[start : start + batch_size]
        found = retriever(
            [user.history for user in batch],
            [user.user_id for user in batch],
            [user.target for user in batch],
            top_k,
        )
        rows = zip(batch, found, strict=True)
        file.append([_prediction(user, ranking, catalogue) for user, ranking in rows])
        told(start + len(batch))


def _prediction(user: UserSequence, ranking: Ranking, catalogue: Catalogue) -> dict[str, Any]:
    """A line of predictions.jsonl."""
    low, high = ranking.bounds
    return {
        "user_id": user.user_id,
        "domain": user.domain,
        "target": user.target,
        "generated": [_generated(some, catalogue) for some in ranking.generated],
        "ranked": [
            {"item_id": catalogue.item_ids[place], "score": float(score)}
            for place, score in zip(ranking.places, ranking.scores, strict=True)
        ],
        "rank": {"low": low, "high": high},
    }


def _generated(some: Generated, catalogue: Catalogue) -> dict[str, Any]:
    """Items are named where a trie knows them: texts of long ones are cut."""
    items = {"items": [catalogue.item_ids[place] for place in some.items]} if some.items else {}
    return {"text": some.text, "logprob": some.log_prob, **items}


def require_made_with(directory: EvaluationDir, settings: Mapping[str, Any]) -> None:
    """Raises CalrecError where the predictions in `directory` were made with other settings.

    Args:
      settings: some of them.
    """
    there = _read_settings(directory)
    some = {name: there.get(name) for name in settings}
    _require_same(directory.predictions, some, as_json(settings))


def _read_settings(directory: EvaluationDir) -> dict[str, Any]:
    path = directory.settings
    try:
        settings = json.loads(path.read_text("utf-8"))
        if not isinstance(settings, dict):
            raise TypeError("settings are an object")
    except (OSError, ValueError, TypeError, RecursionError) as error:
        raise CalrecError(
            f"{directory.predictions} does not say what made it, since {path.name} is missing or "
            f"damaged: {_anew(path)}"
        ) from error
    return settings


def _require_same(path: pathlib.Path, there: Any, here: Any, name: str = "") -> None:
    if isinstance(there, dict) and isinstance(here, dict):
        for key in [*here, *sorted(there.keys() - here.keys())]:
            inner = f"{name}.{key}" if name else key
            _require_same(path, there.get(key), here.get(key), inner)
    elif there != here:
        raise CalrecError(
            f"{path} was made with {name} = {there!r}, this evaluation has {here!r}: "
            f"{_anew(path)}, or give the old settings"
        )


def _anew(path: pathlib.Path) -> str:
    return f"move {path.parent} away to predict anew"
