"""Evaluation of a model on one split of domains, beside the baselines on the same users."""

from __future__ import annotations

import dataclasses
import hashlib
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from calrec_jax.errors import CalrecError
from calrec_jax.eval import baselines, config_checks, hybrid
from calrec_jax.eval.examples import EXAMPLES, example
from calrec_jax.eval.measure import measure
from calrec_jax.eval.outcomes import BEST, Outcome, outcome
from calrec_jax.eval.predictions import (
    Key,
    Predicted,
    PredictionsFile,
    as_json,
    complete,
    write_json,
)
from calrec_jax.eval.retrievers import Retriever
from calrec_jax.eval.slices import slice_of
from calrec_jax.eval.users import sample, shuffled
from calrec_jax.text.items import Catalogue, UserSequence

# Predictions of users do not depend on these.
_NOT_ASKED = {"name", "domain", "users_per_batch", "bootstrap_samples", "max_users", "baselines"}


@dataclasses.dataclass(frozen=True)
class EvaluationConfig:
    """What is measured, and how the model is asked.

    Attributes:
      domain: the registered domain; or several, which are measured together.
      split: "test" or "validation".
      name: of the folder under MODEL_DIR/eval; None = the split's. Another name keeps what was
        measured with other settings.
      checkpoint: as `Stage.init_from`, "stage2:best".
      num_samples, temperature, max_new_tokens, decoding, sampling_top_k, sampling_top_p: see
        `SamplingConfig`, where the last three are method, top_k and top_p; whoever makes `generate`
        reads them.
      retrieval: how items are found: "bm25", which looks free texts up; "trie": texts are of items
        alone, and those that were reached rank by log-probability before all others; "dense": by
        the cosine of the towers' vectors, without texts; "hybrid": "bm25" and "dense" together.
      dense_weight: of "dense" in "hybrid", see `retrievers.Hybrid`; None = chosen on validation.
      choosing_users: of the validation split, at most, by whom it is chosen: the model writes for
        each of them, too.
      seen: whether items of a history may be recommended again, by the model and by baselines, see
        `fusion.seen_places`: "allow", "exclude" or "exclude_last".
      shuffle_history: a control: histories are told in random order.
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

    domain: str | Sequence[str]
    split: str = "test"
    name: str | None = None
    checkpoint: str = "stage2:best"
    num_samples: int = 32  # unverified
    temperature: float = 0.5  # unverified
    max_new_tokens: int = 80  # unverified: 50 to 80
    decoding: str = "sample"
    sampling_top_k: int | None = None
    sampling_top_p: float = 1.0
    retrieval: str = "bm25"
    dense_weight: float | None = None
    choosing_users: int = 1000
    seen: str = "allow"
    shuffle_history: bool = False
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
        if isinstance(self.baselines, list):
            object.__setattr__(self, "baselines", tuple(self.baselines))
        config_checks.check(self)

    @property
    def domains(self) -> tuple[str, ...]:
        """The names of the domains."""
        return (self.domain,) if isinstance(self.domain, str) else tuple(self.domain)

    @property
    def chooses_weight(self) -> bool:
        """Whether validation chooses the weight of "dense"."""
        return self.retrieval == "hybrid" and self.dense_weight is None

    @property
    def folder(self) -> str:
        """Of the results, under MODEL_DIR/eval."""
        return self.name or self.split

    def asked(self) -> dict[str, Any]:
        """What of it a prediction of a model that writes texts depends on.

        What only "hybrid" reads, or only the choice of its weight, is as preset elsewhere.
        """
        values = dataclasses.asdict(self)
        if self.retrieval != "hybrid":
            values["dense_weight"] = EvaluationConfig.dense_weight
        if not self.chooses_weight:
            values["choosing_users"] = EvaluationConfig.choosing_users
        return {k: v for k, v in values.items() if k not in _NOT_ASKED}


@dataclasses.dataclass(frozen=True)
class Subject:
    """A domain, and the model that is measured on it.

    Attributes:
      known: what baselines may learn from.
      users: of the split.
      texts: of all items, in the catalogue's order, as the report shows them.
      retriever: makes the model ready; called when a user has to be asked.
    """

    known: baselines.Known
    users: Sequence[UserSequence]
    texts: Sequence[str]
    retriever: Callable[[], Retriever]

    @property
    def domain(self) -> str:
        """Its name."""
        return self.known.catalogue.domain


def evaluate(
    name: str,
    subjects: Sequence[Subject],
    config: EvaluationConfig,
    directory: pathlib.Path,
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
      CalrecError: the directory holds predictions made with other settings, there are no users, or
        their items are not in the catalogue.
    """
    measured = _measured_users(subjects, config)
    data = {subject.domain: _data_hash(subject) for subject in subjects}
    file = PredictionsFile(directory, {"data": data, **settings})
    # Before the model is asked for hours: what fails here fails at once.
    theirs, choices = _measure_baselines(measured, config)
    done = _ask(file, measured, config, progress)
    for subject in subjects if config.chooses_weight else ():
        if choice := _choice(file, subject):
            choices[subject.domain][name] = dataclasses.asdict(choice)

    ours = [_outcome(done, subject.known.catalogue, some) for subject, some in measured]
    users = [user for _, some in measured for user in some]
    trained = {s.domain: {i for user in s.known.train for i in user.item_ids} for s, _ in measured}
    result = {
        "model": name,
        "n": len(users),
        "users": sum(len(subject.users) for subject in subjects),
        "items": sum(len(subject.known.catalogue) for subject in subjects),
        "domain": ", ".join(config.domains),
        "split": config.split,
        "config": as_json(dataclasses.asdict(config)),
        **measure(
            name,
            _joined(ours, subjects),
            {k: _joined(found, subjects) for k, found in theirs.items()},
            users,
            trained,
            np.concatenate([subject.known.events for subject in subjects]),
            {"bootstrap_samples": config.bootstrap_samples, "seed": config.seed},
        ),
        "choices": choices,
    }
    of_users = {
        subject.domain: {user.user_id: slice_of(user, trained) for user in some}
        for subject, some in measured
    }
    write_json(directory / "slices.json", of_users)
    write_json(directory / "examples.json", _examples(file, done, measured, of_users))
    write_json(directory / "metrics.json", result)
    return result


def choosing_folder(directory: pathlib.Path, domain: str) -> pathlib.Path:
    """Where an evaluation keeps how it chose the weight of retrieval "hybrid"."""
    return directory / "choosing" / domain


def _measured_users(
    subjects: Sequence[Subject], config: EvaluationConfig
) -> list[tuple[Subject, list[UserSequence]]]:
    """The users of each subject who are measured."""
    everybody = [user for subject in subjects for user in subject.users]
    chosen = sample(everybody, config.max_users, config.seed)
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
    measured: Sequence[tuple[Subject, Sequence[UserSequence]]], config: EvaluationConfig
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
            if isinstance(score, baselines.Hybrid):
                choices[subject.domain][name] = dataclasses.asdict(score.choice)
    return found, choices


def _ask(
    file: PredictionsFile,
    measured: Sequence[tuple[Subject, Sequence[UserSequence]]],
    config: EvaluationConfig,
    progress: Callable[[int, int], None],
) -> dict[Key, Predicted]:
    """Completes the file; returns what it holds then."""
    done = file.read()
    for subject, users in measured:
        file.require_of(done, users, subject.known.catalogue)
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
            complete(
                file,
                _asked(some, config),
                subject.known.catalogue,
                subject.retriever(),
                config.top_k,
                config.users_per_batch,
                lambda n, before=count: progress(before + n, total),
            )
            count += len(some)
    return file.read()


def _choice(file: PredictionsFile, subject: Subject) -> hybrid.Choice | None:
    """The weight that was chosen for a domain, where it is still there."""
    return hybrid.read_choice(choosing_folder(file.path.parent, subject.domain))


def _asked(users: Sequence[UserSequence], config: EvaluationConfig) -> Sequence[UserSequence]:
    """The users as models are told of them."""
    return [shuffled(user, config.seed) for user in users] if config.shuffle_history else users


def _data_hash(subject: Subject) -> str:
    """Other items, texts, users or histories give another hash.

    The other splits stand for the measured one: of that only a sample may be measured, and another
    one the next time.
    """
    known, digest = subject.known, hashlib.blake2b(digest_size=8)
    rows = [*zip(known.catalogue.item_ids, subject.texts, strict=True)]
    rows += [(user.user_id, *user.item_ids) for user in [*known.train, *known.validation]]
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


def _joined(outcomes: Sequence[Outcome], subjects: Sequence[Subject]) -> Outcome:
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
    measured: Sequence[tuple[Subject, Sequence[UserSequence]]],
    of_users: Mapping[str, Mapping[str, Mapping[str, str]]],
) -> list[dict[str, Any]]:
    """What the report shows of some users of each domain."""
    shown = []
    for subject, users in measured:
        some = users[: EXAMPLES // len(measured)]
        predictions = file.whole([done[user.domain, user.user_id] for user in some])
        for user, prediction in zip(some, predictions, strict=True):
            slices = of_users[user.domain][user.user_id]
            shown.append(example(user, prediction, subject.known.catalogue, subject.texts, slices))
    return shown
