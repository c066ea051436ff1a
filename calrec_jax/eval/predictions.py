"""predictions.jsonl: an object a user, appended batch by batch, so that a run can go on."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from calrec_jax.errors import CalrecError, unwritable_named
from calrec_jax.eval.outcomes import NUM_BEST
from calrec_jax.eval.retrievers import Ranking, Retriever
from calrec_jax.files import as_json, write_json
from calrec_jax.locks import locked_folder
from calrec_jax.model_dir import EvaluationDir
from calrec_jax.text.generated import Generated
from calrec_jax.text.items import Catalogue, UserSequence

_BLOCK = 2**20  # bytes

UserKey = tuple[str, str]
"""Domain and user id."""


@dataclasses.dataclass(frozen=True)
class PredictionSummary:
    """What metrics need of one user's prediction.

    Attributes:
      target: the item whose rank it has.
      low, high: the bounds of that rank.
      best: ids of the first items of the ranking, `NUM_BEST` at most.
      start: where the prediction's line begins in the file, in bytes.
    """

    target: str
    low: int
    high: int
    best: tuple[str, ...]
    start: int


class PredictionsFile:
    """The file of an evaluation's predictions, to which batches are appended.

    Args:
      directory: the evaluation's, which holds the file with settings.json beside it.
      settings: what the predictions depend on. Predictions of other settings are never mixed in.

    Raises:
      CalrecError: the file was made with other settings, has no settings.json beside it, or the
        directory cannot be written.
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
        """Removes the half line that a killed process may have left at the end."""
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

    def read(self) -> dict[UserKey, PredictionSummary]:
        """The predictions that the file holds. Raises CalrecError as `read_predictions`."""
        return read_predictions(self.path) if self.path.exists() else {}

    def require_same_data(
        self,
        predictions: Mapping[UserKey, PredictionSummary],
        users: Sequence[UserSequence],
        catalogue: Catalogue,
    ) -> None:
        """Raises CalrecError where a user's prediction is of another target or catalogue.

        Args:
          predictions: what `read` returned.
          users: of the domain whose catalogue it is; those without a prediction are passed over.
        """
        for user in users:
            summary = predictions.get((user.domain, user.user_id))
            if summary is not None and not (
                summary.target == user.target
                and summary.high <= len(catalogue)
                and all(item_id in catalogue.index for item_id in summary.best)
            ):
                raise CalrecError(
                    f"{self.path} has a prediction of user {user.user_id!r} of {user.domain} that "
                    f"is of another target or catalogue: remove its line, and the user is "
                    f"predicted again; or {_predict_anew(self.path)}"
                )

    def read_full(self, summaries: Sequence[PredictionSummary]) -> list[dict[str, Any]]:
        """The whole objects of the file that the summaries are of."""
        with self.path.open("rb") as file:
            predictions = []
            for summary in summaries:
                file.seek(summary.start)
                predictions.append(json.loads(file.readline()))
        return predictions

    def append(self, predictions: Sequence[Mapping[str, Any]]) -> None:
        """Appends the predictions of a batch, and hands them to the operating system."""
        with self.path.open("a", encoding="utf-8") as file:
            file.writelines(json.dumps(p, allow_nan=False) + "\n" for p in predictions)


def read_predictions(path: pathlib.Path) -> dict[UserKey, PredictionSummary]:
    """The predictions of all users that a predictions.jsonl holds.

    Raises:
      CalrecError: a line is no prediction.
    """
    predictions, start = {}, 0
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            try:
                key, summary = _parse_line(line, start)
            except (ValueError, KeyError, TypeError, RecursionError) as error:
                raise CalrecError(
                    f"{path} is damaged in line {number}: remove that line, and `calrec eval` "
                    f"predicts its user again; or {_predict_anew(path)}"
                ) from error
            predictions[key] = summary
            start += len(line)
    return predictions


def locked(directory: EvaluationDir) -> contextlib.AbstractContextManager[None]:
    """A context in which no other process evaluates into `directory`.

    Raises:
      CalrecError: another process does, or the directory cannot be written.
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


def _parse_line(line: bytes, start: int) -> tuple[UserKey, PredictionSummary]:
    """The prediction of a line, and its user.

    Raises:
      ValueError, KeyError, TypeError, RecursionError: the line is no prediction.
    """
    prediction = json.loads(line)
    key = prediction["domain"], prediction["user_id"]
    rank, target = prediction["rank"], prediction["target"]
    best = tuple(item["item_id"] for item in prediction["ranked"][:NUM_BEST])
    texts, log_probs = [], []
    for generated in prediction["generated"]:
        texts.append(generated["text"])
        log_probs.append(generated["logprob"])
    if not all(isinstance(text, str) for text in (*key, target, *best, *texts)):
        raise TypeError("a name or a text is no string")
    if not all(isinstance(log_prob, (int, float)) for log_prob in log_probs):
        raise TypeError("a log-probability is no number")
    low, high = rank["low"], rank["high"]
    if not (isinstance(low, int) and isinstance(high, int) and 1 <= low <= high):
        raise ValueError("these are no bounds of a rank")
    return key, PredictionSummary(target, low, high, best, start)


def predict_users(
    file: PredictionsFile,
    users: Sequence[UserSequence],
    catalogue: Catalogue,
    retriever: Retriever,
    top_k: int,
    batch_size: int,
    on_batch: Callable[[int], None],
) -> None:
    """Ranks the catalogue for users, and appends the predictions to the file, batch by batch.

    Args:
      users: of one domain, and not in the file yet.
      top_k: items of `ranked`.
      batch_size: users whose histories the retriever is given together.
      on_batch: called after each batch, with the number of users who are done.

    Raises:
      CalrecError: as `Retriever`.
    """
    for start in range(0, len(users), batch_size):
        batch = users[start : start + batch_size]
        rankings = retriever(
            [user.history for user in batch],
            [user.user_id for user in batch],
            [user.target for user in batch],
            top_k,
        )
        pairs = zip(batch, rankings, strict=True)
        file.append([_prediction(user, ranking, catalogue) for user, ranking in pairs])
        on_batch(start + len(batch))


def _prediction(user: UserSequence, ranking: Ranking, catalogue: Catalogue) -> dict[str, Any]:
    """The object of a line of predictions.jsonl."""
    low, high = ranking.bounds
    return {
        "user_id": user.user_id,
        "domain": user.domain,
        "target": user.target,
        "generated": [_generated_text(text, catalogue) for text in ranking.generated],
        "ranked": [
            {"item_id": catalogue.item_ids[place], "score": float(score)}
            for place, score in zip(ranking.places, ranking.scores, strict=True)
        ],
        "rank": {"low": low, "high": high},
    }


def _generated_text(generated: Generated, catalogue: Catalogue) -> dict[str, Any]:
    """A generated text, with its items where a trie knows them: texts of long items are cut."""
    items = [catalogue.item_ids[place] for place in generated.items]
    named = {"items": items} if items else {}
    return {"text": generated.text, "logprob": generated.log_prob, **named}


def require_made_with(directory: EvaluationDir, settings: Mapping[str, Any]) -> None:
    """Raises CalrecError where the predictions in `directory` were made with other settings.

    Args:
      settings: those that are compared; predictions may have been made with more.
    """
    saved = _read_settings(directory)
    compared = {name: saved.get(name) for name in settings}
    _require_same(directory.predictions, compared, as_json(settings))


def _read_settings(directory: EvaluationDir) -> dict[str, Any]:
    path = directory.settings
    try:
        settings = json.loads(path.read_text("utf-8"))
        if not isinstance(settings, dict):
            raise TypeError("settings are an object")
    except (OSError, ValueError, TypeError, RecursionError) as error:
        raise CalrecError(
            f"{directory.predictions} does not say what made it, since {path.name} is missing or "
            f"damaged: {_predict_anew(path)}"
        ) from error
    return settings


def _require_same(path: pathlib.Path, saved: Any, current: Any, name: str = "") -> None:
    """Raises CalrecError for the first setting that differs, in the order of the current ones.

    Args:
      path: the file of the predictions, for the error.
      name: of the setting that `saved` and `current` are values of; "" = they are all settings.
    """
    if isinstance(saved, dict) and isinstance(current, dict):
        for key in [*current, *sorted(saved.keys() - current.keys())]:
            inner = f"{name}.{key}" if name else key
            _require_same(path, saved.get(key), current.get(key), inner)
    elif saved != current:
        raise CalrecError(
            f"{path} was made with {name} = {saved!r}, this evaluation has {current!r}: "
            f"{_predict_anew(path)}, or give the old settings"
        )


def _predict_anew(path: pathlib.Path) -> str:
    return f"move {path.parent} away to predict anew"
