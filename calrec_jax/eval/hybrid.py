"""The weight of the towers in retrieval "hybrid", chosen on the validation split."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from calrec_jax.errors import CalrecError
from calrec_jax.eval.predictions import PredictionsFile, predict_users
from calrec_jax.eval.retrievers import DenseRetriever, HybridRetriever, TextRetriever
from calrec_jax.files import write_json
from calrec_jax.model_dir import EvaluationDir
from calrec_jax.retrieval import fusion
from calrec_jax.text.generated import Generated
from calrec_jax.text.items import Catalogue, UserSequence

# Quasi-round-robin tells the first places apart by thousandths: small weights order what ties.
WEIGHTS = (0.0, 0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0)
"""The weights of the towers of which validation chooses one."""


@dataclasses.dataclass(frozen=True)
class WeightChoice:
    """The weight that validation chose.

    Attributes:
      weight: of the towers, see `retrievers.HybridRetriever`.
      ndcg: NDCG@10 with that weight on validation.
      users: the number of validation users by whom it was chosen.
    """

    weight: float
    ndcg: float
    users: int


def choose_dense_weight(
    texts: TextRetriever,
    dense: DenseRetriever,
    users: Sequence[UserSequence],
    catalogue: Catalogue,
    directory: EvaluationDir,
    settings: Mapping[str, Any],
    *,
    batch_size: int,
    progress: Callable[[int, int], None],
) -> WeightChoice:
    """The weight with the best NDCG@10 over these users; of equally good weights the smallest.

    The texts that were generated for the users are kept in `directory`, in the form of an
    evaluation, so that an interrupted choice goes on. The choice is kept there, too.

    Args:
      users: of the validation split.
      settings: all that the model's texts depend on.
      batch_size: users whose texts are generated together.
      progress: called after each batch, with (users done, users in all).

    Raises:
      CalrecError: there are no users, the directory holds texts of other settings, or the model has
        diverged.
    """
    if not users:
        raise CalrecError(
            f"the weight of retrieval 'hybrid' is chosen on the validation split, and that of "
            f"{catalogue.domain} is empty: bind EvaluationConfig.dense_weight"
        )
    file = PredictionsFile(directory, settings)
    predictions = file.read()
    file.require_same_data(predictions, users, catalogue)
    missing = [user for user in users if (user.domain, user.user_id) not in predictions]
    before = len(users) - len(missing)
    predict_users(
        file, missing, catalogue, texts, 1, batch_size, lambda n: progress(before + n, len(users))
    )
    blocks = _scores(file, texts, dense, users, catalogue, batch_size)
    choice = WeightChoice(*fusion.choose_weight(blocks, WEIGHTS, HybridRetriever.SCALE), len(users))
    write_json(directory.choice, dataclasses.asdict(choice))
    return choice


def _scores(
    file: PredictionsFile,
    texts: TextRetriever,
    dense: DenseRetriever,
    users: Sequence[UserSequence],
    catalogue: Catalogue,
    batch_size: int,
) -> Iterator[tuple[np.ndarray, np.ndarray, list[int]]]:
    """(scores of the texts, scores of the towers, targets' places) of each batch of users."""
    predictions = file.read()
    for start in range(0, len(users), batch_size):
        batch = users[start : start + batch_size]
        histories = [user.history for user in batch]
        lines = file.read_full([predictions[user.domain, user.user_id] for user in batch])
        outputs = [
            [Generated(text["text"], text["logprob"]) for text in line["generated"]]
            for line in lines
        ]
        targets = catalogue.places([user.target for user in batch])
        yield texts.scores(outputs, histories), dense.scores(histories), targets


def read_choice(directory: EvaluationDir) -> WeightChoice | None:
    """The choice that a directory holds, or None. Raises CalrecError where it is damaged."""
    path = directory.choice
    if not path.exists():
        return None
    try:
        choice = WeightChoice(**json.loads(path.read_text("utf-8")))
        if not (0 <= choice.weight < float("inf") and 0 <= choice.ndcg <= 1 and choice.users >= 1):
            raise ValueError("out of range")
    except (OSError, ValueError, TypeError, RecursionError) as error:
        raise CalrecError(f"{path} is damaged: remove it, and run `calrec eval`") from error
    return choice
