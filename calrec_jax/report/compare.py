"""Comparison of runs on the users that all of them were measured on."""

from __future__ import annotations

import dataclasses
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from calrec_jax import metrics
from calrec_jax.errors import CalrecError
from calrec_jax.eval.predictions import UserKey, read_predictions
from calrec_jax.model_dir import EvaluationDir, ModelDir
from calrec_jax.report.files import read_metrics, read_slices

# Settings that may differ between runs without a difference in what is compared.
_UNCOMPARED_SETTINGS = ("name", "users_per_batch", "baselines", "bootstrap_samples")

RankBounds = tuple[np.ndarray, np.ndarray]
"""(low, high) ranks of targets, int64 [users] each."""


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """An evaluation of one run, as it is compared.

    Attributes:
      folder: MODEL_DIR/eval/NAME.
      metrics: what metrics.json holds.
      targets: the id of each user's target.
      ranks: (low, high) rank of each user's target.
      slices: {slicing: slice} of each user.
    """

    folder: pathlib.Path
    metrics: Mapping[str, Any]
    targets: Mapping[UserKey, str]
    ranks: Mapping[UserKey, tuple[int, int]]
    slices: Mapping[UserKey, Mapping[str, str]]


@dataclasses.dataclass(frozen=True)
class Comparison:
    """Runs by their names, in the order given, and their differences to the first run.

    Attributes:
      folders: {run: MODEL_DIR/eval/NAME}.
      users: {run: number of users that it was measured on}.
      common: number of users that all runs were measured on; all figures but `beyond_accuracy` are
        of these.
      items: number of items in the catalogue.
      settings: {setting: {run: value}} of the settings that differ.
      metrics: {run: {metric: {"value", "low", "high", "tie_low", "tie_high"}}}.
      paired: {run: {metric: {"delta", "low", "high"}}}, each run but the first minus the first.
      slices: {slicing: {slice: {"n", "paired"}}} of the slicings with several slices; the slices
        are the first run's.
      beyond_accuracy: {run: {measure: value}}, of all users of each run.
    """

    folders: Mapping[str, pathlib.Path]
    users: Mapping[str, int]
    common: int
    items: int
    settings: Mapping[str, Mapping[str, str]]
    metrics: Mapping[str, Mapping[str, Mapping[str, float]]]
    paired: Mapping[str, Mapping[str, Mapping[str, float]]]
    slices: Mapping[str, Mapping[str, Mapping[str, Any]]]
    beyond_accuracy: Mapping[str, Mapping[str, float]]


def compare(runs: Sequence[str | pathlib.Path], evaluation: str = "test") -> Comparison:
    """Compares runs with the first of them.

    Args:
      runs: two or more, each a MODEL_DIR or the folder of one evaluation.
      evaluation: the name of the evaluation where a run is given as its MODEL_DIR.

    Raises:
      CalrecError: one is no run, or not evaluated to its end; a file is damaged; a run is given
        twice; or the runs have no common users, different targets of a user, or catalogues of
        different sizes.
    """
    folders = [_evaluation_folder(pathlib.Path(run), evaluation) for run in runs]
    evaluations = dict(zip(names(folders), map(read_evaluation, folders), strict=True))
    keys = _common_users(evaluations)
    first, *others = evaluations
    bounds = {name: _rank_bounds(one, keys) for name, one in evaluations.items()}
    other_bounds = {name: bounds[name] for name in others}
    config = evaluations[first].metrics["config"]
    bootstrap = {"bootstrap_samples": config["bootstrap_samples"], "seed": config["seed"]}
    return Comparison(
        folders={name: one.folder for name, one in evaluations.items()},
        users={name: len(one.ranks) for name, one in evaluations.items()},
        common=len(keys),
        items=evaluations[first].metrics["items"],
        settings=_settings_that_differ({name: x.metrics for name, x in evaluations.items()}),
        metrics=metrics.summarise(bounds, **bootstrap),
        paired=_differences(bounds[first], other_bounds, bootstrap),
        slices={
            slicing: {
                name: {
                    "n": len(indices),
                    "paired": _slice_differences(indices, bounds[first], other_bounds, bootstrap),
                }
                for name, indices in slices.items()
            }
            for slicing, slices in _slice_indices(evaluations[first], keys).items()
            if len(slices) > 1
        },
        beyond_accuracy={
            name: one.metrics["beyond_accuracy"][one.metrics["model"]]
            for name, one in evaluations.items()
        },
    )


def _evaluation_folder(run: pathlib.Path, evaluation: str) -> pathlib.Path:
    """The folder of a run's evaluation; `run` may be that folder itself."""
    if not run.is_dir():
        raise CalrecError(f"{run} is no folder: give a MODEL_DIR, or MODEL_DIR/eval/NAME")
    if EvaluationDir(run).predictions.exists():
        return run
    model_dir = ModelDir(run)
    if not model_dir.manifest.exists():
        raise CalrecError(
            f"{run} is neither a MODEL_DIR, which has a manifest.json, nor the folder of an "
            f"evaluation, which has predictions.jsonl"
        )
    folder = model_dir.evaluation(evaluation)
    if not folder.predictions.exists():
        present = [other.name for other in model_dir.evaluations() if other.predictions.exists()]
        remedy = "run `calrec eval`"
        if present:
            remedy = f"it has {', '.join(present)}: give --evaluation"
        raise CalrecError(f"{run} has no evaluation {evaluation!r}; {remedy}")
    return folder.path


def names(folders: Sequence[pathlib.Path]) -> list[str]:
    """For each evaluation the shortest end of its path that no other evaluation has.

    Where all evaluations have one name, the paths are those of the MODEL_DIRs; otherwise the name
    of the evaluation follows.

    Raises:
      CalrecError: a folder is given twice.
    """
    paths = [folder.resolve() for folder in folders]
    one_name = len({path.name for path in paths}) == 1
    parts = [(*path.parts[:-2], *(() if one_name else (path.name,))) for path in paths]
    ends = [[path[-n:] for n in range(1, len(path) + 1)] for path in parts]
    shortest = []
    for i, own_ends in enumerate(ends):
        other_ends = {end for j, ends_of_j in enumerate(ends) if j != i for end in ends_of_j}
        unique = [end for end in own_ends if end not in other_ends]
        if not unique:
            raise CalrecError(f"{folders[i]} is given twice")
        shortest.append("/".join(unique[0]))
    return shortest


def read_evaluation(folder: pathlib.Path) -> Evaluation:
    """The evaluation in a folder, with the users that its metrics are of.

    Raises:
      CalrecError: it is not finished, was made by an earlier version, or a file is damaged.
    """
    files = EvaluationDir(folder)
    for path in (files.metrics, files.slices):
        if not path.exists():
            raise CalrecError(f"{folder} has no {path.name}: run `calrec eval` to its end")
    result = read_metrics(files.metrics)
    slices = {
        (domain, user): slices_of_user
        for domain, users in read_slices(files.slices, result["slices"]).items()
        for user, slices_of_user in users.items()
    }
    predictions = read_predictions(files.predictions)
    missing = slices.keys() - predictions.keys()
    if missing or len(slices) != result["n"]:
        raise CalrecError(
            f"{folder} is not whole: metrics.json is of {result['n']:,} users, slices.json of "
            f"{len(slices):,}, and predictions.jsonl lacks {len(missing):,}: run `calrec eval` "
            f"again"
        )
    return Evaluation(
        folder,
        result,
        {key: predictions[key].target for key in slices},
        {key: (predictions[key].low, predictions[key].high) for key in slices},
        slices,
    )


def _common_users(evaluations: Mapping[str, Evaluation]) -> list[UserKey]:
    """The users that all evaluations have, in the first one's order.

    Raises:
      CalrecError: there are none, or the evaluations are of different data.
    """
    (first_name, first), *others = evaluations.items()
    for name, other in others:
        _require_same_data(first_name, first, name, other)
    keys = [key for key in first.ranks if all(key in one.ranks for one in evaluations.values())]
    if not keys:
        raise CalrecError(
            f"{', '.join(evaluations)} have no users in common: nothing can be compared"
        )
    return keys


def _require_same_data(first_name: str, first: Evaluation, name: str, other: Evaluation) -> None:
    """Raises CalrecError where two evaluations differ in items, histories or targets."""
    refusal = f"{first_name} and {name} cannot be compared"
    if other.metrics["items"] != first.metrics["items"]:
        raise CalrecError(
            f"{refusal}: their catalogues have {first.metrics['items']:,} and "
            f"{other.metrics['items']:,} items"
        )
    first_data, other_data = first.metrics["data"], other.metrics["data"]
    for domain in first_data.keys() & other_data.keys():
        if first_data[domain]["sequences"] != other_data[domain]["sequences"]:
            raise CalrecError(f"{refusal}: the users, histories or items of {domain} differ")
    for key in first.targets.keys() & other.targets.keys():
        if first.targets[key] != other.targets[key]:
            raise CalrecError(
                f"{refusal}: the target of user {key[1]!r} of {key[0]} is {first.targets[key]} in "
                f"the one and {other.targets[key]} in the other; they are of other splits or data"
            )


def _rank_bounds(evaluation: Evaluation, keys: Sequence[UserKey]) -> RankBounds:
    low, high = np.array([evaluation.ranks[key] for key in keys], np.int64).T
    return low, high


def _differences(
    first: RankBounds, others: Mapping[str, RankBounds], bootstrap: Mapping[str, int]
) -> dict[str, dict[str, dict[str, float]]]:
    """The others minus the first, on the same users; `metrics.paired` has the opposite sign."""
    return {
        name: {
            metric: {"delta": 0 - d["delta"], "low": 0 - d["high"], "high": 0 - d["low"]}
            for metric, d in deltas.items()
        }
        for name, deltas in metrics.paired(first, others, **bootstrap).items()
    }


def _slice_differences(
    indices: np.ndarray,
    first: RankBounds,
    others: Mapping[str, RankBounds],
    bootstrap: Mapping[str, int],
) -> dict[str, dict[str, dict[str, float]]]:
    """`_differences` on the users of a slice, whose indices among all users are given."""
    sliced = {name: (low[indices], high[indices]) for name, (low, high) in others.items()}
    return _differences((first[0][indices], first[1][indices]), sliced, bootstrap)


def _slice_indices(
    evaluation: Evaluation, keys: Sequence[UserKey]
) -> dict[str, dict[str, np.ndarray]]:
    """{slicing: {slice: indices of its users in `keys`}}, slices in the order of metrics.json."""
    found = {}
    for slicing, slices in evaluation.metrics["slices"].items():
        slice_of_user = np.array([evaluation.slices[key][slicing] for key in keys])
        indices = {name: np.flatnonzero(slice_of_user == name) for name in slices}
        found[slicing] = {name: users for name, users in indices.items() if len(users)}
    return found


def _settings_that_differ(
    results: Mapping[str, Mapping[str, Any]],
) -> dict[str, dict[str, str]]:
    """{setting: {run: value}} of the settings that are not the same in all metrics.json."""
    settings_of_runs = {
        name: {"model": result["model"]} | result["config"] | {"domain": result["domain"]}
        for name, result in results.items()
    }
    all_settings = dict.fromkeys(name for one in settings_of_runs.values() for name in one)
    values = {
        setting: {run: str(one.get(setting, "-")) for run, one in settings_of_runs.items()}
        for setting in all_settings
        if setting not in _UNCOMPARED_SETTINGS
    }
    return {setting: by_run for setting, by_run in values.items() if len(set(by_run.values())) > 1}
