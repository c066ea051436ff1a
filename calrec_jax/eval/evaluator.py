"""Evaluation of a model on one split of domains, beside the baselines on the same users."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from calrec_jax.errors import CalrecError
from calrec_jax.eval import baselines, hybrid
from calrec_jax.eval.evaluation import EvaluationConfig
from calrec_jax.eval.examples import EXAMPLES, example
from calrec_jax.eval.measure import measure
from calrec_jax.eval.outcomes import BEST, Outcome, outcome
from calrec_jax.eval.predictions import (
    Key,
    Predicted,
    PredictionsFile,
    locked,
    predict_users,
)
from calrec_jax.eval.retrievers import Retriever
from calrec_jax.eval.slices import slice_of
from calrec_jax.eval.users import sample_users, with_shuffled_history
from calrec_jax.files import write_json
from calrec_jax.model_dir import EvaluationDir
from calrec_jax.text.items import Catalogue, UserSequence


@dataclasses.dataclass(frozen=True)
class EvaluatedDomain:
    """A domain, and the model that is measured on it.

    Attributes:
      known: what baselines may learn from.
      users: of the split.
      texts: of all items, in the catalogue's order, as the report shows them.
      retriever: makes the model ready; called when a user has to be asked.
    """

    known: baselines.BaselineData
    users: Sequence[UserSequence]
    texts: Sequence[str]
    retriever: Callable[[], Retriever]

    @property
    def domain(self) -> str:
        """Its name."""
        return self.known.catalogue.domain


def predict_and_measure(
    name: str,
    subjects: Sequence[EvaluatedDomain],
    config: EvaluationConfig,
    directory: EvaluationDir,
    settings: Mapping[str, Any],
    progress: Callable[[int, int], None],
) -> dict[str, Any]:
    """Predicts for users of a split, measures, and writes the files of the evaluation.

    predictions.jsonl (with settings.json, what they depend on), metrics.json, and what the report
    shows: examples.json and slices.json. Users that predictions.jsonl already holds are not asked
    again; those of another sample of users stay there, but are not measured.

    Args:
      name: of the model, in tables.
      subjects: of different domains; `config.max_users` of all their users are measured.
      config: what it says of how the model is asked was obeyed by whoever made the retrievers.
      directory: MODEL_DIR/eval/<config.folder>.
      settings: all that predictions depend on besides the data.
      progress: told (users done, users in all).

    Returns:
      What metrics.json holds.

    Raises:
      CalrecError: the directory holds predictions made with other settings, or is in use; there are
        no users, or their items are not in the catalogue.
    """
    measured = _measured_users(subjects, config)
    data = {subject.domain: _data_hashes(subject) for subject in subjects}
    with locked(directory):
        file = PredictionsFile(directory, {"data": data, **settings})
        # Before the model is asked for hours: what fails here fails at once.
        theirs, choices = _measure_baselines(measured, config)
        done = _ask(file, measured, config, progress)
        for subject in subjects if config.chooses_weight else ():
            if choice := _choice(file, subject):
                choices[subject.domain][name] = dataclasses.asdict(choice)
        facts = {"model": name, "data": data, "choices": choices}
        return _write(file, measured, done, theirs, config, facts)


def _write(
    file: PredictionsFile,
    measured: Sequence[tuple[EvaluatedDomain, Sequence[UserSequence]]],
    done: Mapping[Key, Predicted],
    theirs: Mapping[str, Sequence[Outcome]],
    config: EvaluationConfig,
    facts: Mapping[str, Any],
) -> dict[str, Any]:
    """Measures, and writes all but the predictions; returns what metrics.json holds.

    Args:
      done: what the file holds.
      theirs: {baseline: its outcome of each subject}.
      facts: of metrics.json, the name of the model among them.
    """
    subjects = [subject for subject, _ in measured]
    ours = [_outcome(done, subject.known.catalogue, some) for subject, some in measured]
    users = [user for _, some in measured for user in some]
    trained = {s.domain: {i for user in s.known.train for i in user.item_ids} for s, _ in measured}
    result = {
        **facts,
        "n": len(users),
        "users": sum(len(subject.users) for subject in subjects),
        "items": sum(len(subject.known.catalogue) for subject in subjects),
        "domain": ", ".join(config.domains),
        "split": config.split,
        "config": config.flat(),
        **measure(
            facts["model"],
            _joined(ours, subjects),
            {k: _joined(found, subjects) for k, found in theirs.items()},
            users,
            trained,
            np.concatenate([subject.known.events for subject in subjects]),
            {"bootstrap_samples": config.bootstrap_samples, "seed": config.seed},
        ),
    }
    of_users = {
        subject.domain: {user.user_id: slice_of(user, trained) for user in some}
        for subject, some in measured
    }
    directory = file.directory
    write_json(directory.slices, of_users)
    write_json(directory.examples, _examples(file, done, measured, of_users))
    write_json(directory.metrics, result)
    return result


def _measured_users(
    subjects: Sequence[EvaluatedDomain], config: EvaluationConfig
) -> list[tuple[EvaluatedDomain, list[UserSequence]]]:
    """The users of each subject who are measured."""
    everybody = [user for subject in subjects for user in subject.users]
    chosen = sample_users(everybody, config.max_users, config.seed)
    measured = [
        (subject, [user for user in chosen if user.domain == subject.domain])
        for subject in subjects
    ]
    for subject, some in measured:
        catalogue = subject.known.catalogue
        if not subject.users:
            raise CalrecError(f"{catalogue.domain} has no users to measure: the split is empty")
        if len({user.user_id for user in some}) < len(some):
            raise CalrecError(f"{catalogue.domain} has several sequences of one user in a split")
        catalogue.places([item_id for user in some for item_id in user.item_ids])
    return measured


def _measure_baselines(
    measured: Sequence[tuple[EvaluatedDomain, Sequence[UserSequence]]], config: EvaluationConfig
) -> tuple[dict[str, list[Outcome]], dict[str, dict[str, Any]]]:
    """{baseline: its outcome of each subject}, {domain: {hybrid: what validation chose for it}}."""
    found: dict[str, list[Outcome]] = {name: [] for name in config.baselines}
    choices: dict[str, dict[str, Any]] = {}
    for subject, users in measured:
        known, asked = subject.known, _asked(users, config)
        choices[subject.domain] = {}
        for name in config.baselines:
            score = baselines.BASELINES[name](known)
            found[name].append(outcome(score, asked, known.catalogue, known.seen))
            if isinstance(score, baselines.HybridBaseline):
                choices[subject.domain][name] = dataclasses.asdict(score.choice)
    return found, choices


def _ask(
    file: PredictionsFile,
    measured: Sequence[tuple[EvaluatedDomain, Sequence[UserSequence]]],
    config: EvaluationConfig,
    progress: Callable[[int, int], None],
) -> dict[Key, Predicted]:
    """Completes the file; returns what it holds then."""
    done = file.read()
    for subject, users in measured:
        file.require_same_data(done, users, subject.known.catalogue)
    total = sum(len(users) for _, users in measured)
    missing = {
        subject.domain: [user for user in users if (user.domain, user.user_id) not in done]
        for subject, users in measured
    }
    count = total - sum(map(len, missing.values()))
    progress(count, total)
    for subject, users in measured:
        some = missing[subject.domain]
        if some or (users and config.chooses_weight and _choice(file, subject) is None):
            predict_users(
                file,
                _asked(some, config),
                subject.known.catalogue,
                subject.retriever(),
                config.top_k,
                config.users_per_batch,
                lambda n, before=count: progress(before + n, total),
            )
            count += len(some)
    return file.read() if any(missing.values()) else done


def _choice(file: PredictionsFile, subject: EvaluatedDomain) -> hybrid.WeightChoice | None:
    """The weight that was chosen for a domain, where it is still there."""
    return hybrid.read_choice(file.directory.choosing(subject.domain))


def _asked(users: Sequence[UserSequence], config: EvaluationConfig) -> Sequence[UserSequence]:
    """The users as models are told of them."""
    return (
        [with_shuffled_history(user, config.seed) for user in users]
        if config.shuffle_history
        else users
    )


def _data_hashes(subject: EvaluatedDomain) -> dict[str, str]:
    """Other items, users or histories give another hash of sequences, and so do texts of texts.

    The other splits stand for the measured one: of that only a sample may be measured, and another
    one the next time.
    """
    known = subject.known
    users = [(user.user_id, *user.item_ids) for user in [*known.train, *known.validation]]
    return {
        "sequences": _hash([known.catalogue.item_ids, *users]),
        "texts": _hash([subject.texts]),
    }


def _hash(rows: Iterable[Sequence[str]]) -> str:
    digest = hashlib.blake2b(digest_size=8)
    for row in rows:
        digest.update(("\x1f".join(row) + "\x1e").encode(errors="surrogatepass"))
    return digest.hexdigest()


def _outcome(
    done: Mapping[Key, Predicted], catalogue: Catalogue, users: Sequence[UserSequence]
) -> Outcome:
    """The model's, of users of one domain."""
    found = [done[user.domain, user.user_id] for user in users]
    best = np.full((len(found), BEST), -1)
    for row, predicted in zip(best, found, strict=True):
        row[: len(predicted.best)] = catalogue.places(predicted.best)
    return Outcome(
        np.array([predicted.low for predicted in found], np.int64),
        np.array([predicted.high for predicted in found], np.int64),
        best,
    )


def _joined(outcomes: Sequence[Outcome], subjects: Sequence[EvaluatedDomain]) -> Outcome:
    """Of all domains, whose catalogues stand one behind the other."""
    sizes = [len(subject.known.catalogue) for subject in subjects]
    starts = np.cumsum([0, *sizes[:-1]])
    best = [np.where(x.best < 0, -1, x.best + a) for x, a in zip(outcomes, starts, strict=True)]
    return Outcome(
        np.concatenate([x.low for x in outcomes]),
        np.concatenate([x.high for x in outcomes]),
        np.concatenate(best),
    )


def _examples(
    file: PredictionsFile,
    done: Mapping[Key, Predicted],
    measured: Sequence[tuple[EvaluatedDomain, Sequence[UserSequence]]],
    of_users: Mapping[str, Mapping[str, Mapping[str, str]]],
) -> list[dict[str, Any]]:
    """What the report shows of some users of each domain."""
    shown = []
    for subject, users in measured:
        some = users[: EXAMPLES // len(measured)]
        predictions = file.read_full([done[user.domain, user.user_id] for user in some])
        for user, prediction in zip(some, predictions, strict=True):
            slices = of_users[user.domain][user.user_id]
            shown.append(example(user, prediction, subject.known.catalogue, subject.texts, slices))
    return shown
