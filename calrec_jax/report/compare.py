"""Runs beside each other, on the users that all of them were measured on."""

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

_NO_MATTER = ("name", "users_per_batch", "baselines", "bootstrap_samples")  # to what is compared


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """What is compared of one run.

    Attributes:
      folder: MODEL_DIR/eval/NAME.
      metrics: of metrics.json.
      targets: the item each user bought.
      ranks: (low, high) of the target.
      slices: {slicing: slice} of each user.
    """

    folder: pathlib.Path
    metrics: Mapping[str, Any]
    targets: Mapping[UserKey, str]
    ranks: Mapping[UserKey, tuple[int, int]]
    slices: Mapping[UserKey, Mapping[str, str]]


@dataclasses.dataclass(frozen=True)
class Comparison:
    """Runs by their names, in the order given; differences are to the first of them.

    Attributes:
      folders: {run: MODEL_DIR/eval/NAME}.
      users: {run: users it was measured on}.
      common: users that all runs were measured on; all figures but `beyond_accuracy` are of these.
      items: of the catalogue.
      settings: {setting: {run: value}} of those that differ.
      metrics: {run: {metric: {"value", "low", "high", "tie_low", "tie_high"}}}.
      paired: {run: {metric: {"delta", "low", "high"}}}, the run minus the first, without the first.
      slices: {slicing: {slice: {"n", "paired"}}} of the slicings with several slices; those of the
        first run.
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
      evaluation: the evaluation of those that are a MODEL_DIR.

    Raises:
      CalrecError: one is no run, or not evaluated to its end; a file is damaged; one is given
        twice; or they have no common users, other targets of one, or catalogues of other sizes.
    """
    folders = [_folder(pathlib.Path(run), evaluation) for run in runs]
    named = dict(zip(names(folders), map(read_evaluation, folders), strict=True))
    keys = _common(named)
    first, *others = named
    bounds = {name: _bounds(one, keys) for name, one in named.items()}
    config = named[first].metrics["config"]
    bootstrap = {"bootstrap_samples": config["bootstrap_samples"], "seed": config["seed"]}
    theirs = {name: bounds[name] for name in others}
    return Comparison(
        folders={name: one.folder for name, one in named.items()},
        users={name: len(one.ranks) for name, one in named.items()},
        common=len(keys),
        items=named[first].metrics["items"],
        settings=_different({name: one.metrics for name, one in named.items()}),
        metrics=metrics.summarise(bounds, **bootstrap),
        paired=_differences(bounds[first], theirs, bootstrap),
        slices={
            slicing: {
                name: {
                    "n": len(places),
                    "paired": _of_some(places, bounds[first], theirs, bootstrap),
                }
                for name, places in slices.items()
            }
            for slicing, slices in _places(named[first], keys).items()
            if len(slices) > 1
        },
        beyond_accuracy={
            name: one.metrics["beyond_accuracy"][one.metrics["model"]]
            for name, one in named.items()
        },
    )


def _folder(run: pathlib.Path, evaluation: str) -> pathlib.Path:
    """The folder of the evaluation that is meant."""
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
        there = [other.name for other in model_dir.evaluations() if other.predictions.exists()]
        told = f"it has {', '.join(there)}: give --evaluation" if there else "run `calrec eval`"
        raise CalrecError(f"{run} has no evaluation {evaluation!r}; {told}")
    return folder.path


def names(folders: Sequence[pathlib.Path]) -> list[str]:
    """For each evaluation the shortest end of its path that no other has.

    Where all have the same name, that is of their MODEL_DIRs' paths; else the name follows these.

    Raises:
      CalrecError: a folder is given twice.
    """
    paths = [folder.resolve() for folder in folders]
    same = len({path.name for path in paths}) == 1
    parts = [(*path.parts[:-2], *(() if same else (path.name,))) for path in paths]
    ends = [[p[-n:] for n in range(1, len(p) + 1)] for p in parts]
    found = []
    for i, mine in enumerate(ends):
        others = {end for j, theirs in enumerate(ends) if j != i for end in theirs}
        alone = [end for end in mine if end not in others]
        if not alone:
            raise CalrecError(f"{folders[i]} is given twice")
        found.append("/".join(alone[0]))
    return found


def read_evaluation(folder: pathlib.Path) -> Evaluation:
    """What is compared of the evaluation in `folder`: of the users that its metrics are of.

    Raises:
      CalrecError: it is not finished, was made by an earlier version, or a file is damaged.
    """
    files = EvaluationDir(folder)
    for path in (files.metrics, files.slices):
        if not path.exists():
            raise CalrecError(f"{folder} has no {path.name}: run `calrec eval` to its end")
    result = read_metrics(files.metrics)
    slices = {
        (domain, user): of
        for domain, users in read_slices(files.slices, result["slices"]).items()
        for user, of in users.items()
    }
    found = read_predictions(files.predictions)
    lacking = slices.keys() - found.keys()
    if lacking or len(slices) != result["n"]:
        raise CalrecError(
            f"{folder} is not whole: metrics.json is of {result['n']:,} users, slices.json of "
            f"{len(slices):,}, and predictions.jsonl lacks {len(lacking):,}: run `calrec eval` "
            f"again"
        )
    return Evaluation(
        folder,
        result,
        {key: found[key].target for key in slices},
        {key: (found[key].low, found[key].high) for key in slices},
        slices,
    )


def _common(named: Mapping[str, Evaluation]) -> list[UserKey]:
    """The users that all have, in the first's order, once they are sure to be of the same data."""
    (first, mine), *others = named.items()
    for name, theirs in others:
        if theirs.metrics["items"] != mine.metrics["items"]:
            raise CalrecError(
                f"{first} and {name} cannot be compared: their catalogues have "
                f"{mine.metrics['items']:,} and {theirs.metrics['items']:,} items"
            )
        data = [one.metrics["data"] for one in (mine, theirs)]
        for domain in data[0].keys() & data[1].keys():
            if data[0][domain]["sequences"] != data[1][domain]["sequences"]:
                raise CalrecError(
                    f"{first} and {name} cannot be compared: the users, histories or items of "
                    f"{domain} are others"
                )
        for key in mine.targets.keys() & theirs.targets.keys():
            if mine.targets[key] != theirs.targets[key]:
                raise CalrecError(
                    f"{first} and {name} cannot be compared: the target of user {key[1]!r} of "
                    f"{key[0]} is {mine.targets[key]} in the one and {theirs.targets[key]} in the "
                    f"other; they are of other splits or data"
                )
    keys = [key for key in mine.ranks if all(key in one.ranks for one in named.values())]
    if not keys:
        raise CalrecError(f"{', '.join(named)} have no users in common: nothing can be compared")
    return keys


def _bounds(one: Evaluation, keys: Sequence[UserKey]) -> tuple[np.ndarray, np.ndarray]:
    low, high = np.array([one.ranks[key] for key in keys], np.int64).T
    return low, high


def _differences(first, theirs, bootstrap) -> dict[str, dict[str, dict[str, float]]]:
    """Theirs minus the first's; `metrics.paired` has it the other way."""
    return {
        name: {
            metric: {"delta": 0 - d["delta"], "low": 0 - d["high"], "high": 0 - d["low"]}
            for metric, d in of.items()
        }
        for name, of in metrics.paired(first, theirs, **bootstrap).items()
    }


def _of_some(places: np.ndarray, first, theirs, bootstrap):
    some = {name: (low[places], high[places]) for name, (low, high) in theirs.items()}
    return _differences((first[0][places], first[1][places]), some, bootstrap)


def _places(first: Evaluation, keys: Sequence[UserKey]) -> dict[str, dict[str, np.ndarray]]:
    """{slicing: {slice: where its users are in `keys`}}, slices in the order of metrics.json."""
    found = {}
    for slicing, slices in first.metrics["slices"].items():
        theirs = np.array([first.slices[key][slicing] for key in keys])
        places = {name: np.flatnonzero(theirs == name) for name in slices}
        found[slicing] = {name: of for name, of in places.items() if len(of)}
    return found


def _different(results: Mapping[str, Mapping[str, Any]]) -> dict[str, dict[str, str]]:
    """The settings that are not the same in all metrics.json."""
    told = {
        name: {"model": result["model"]} | result["config"] | {"domain": result["domain"]}
        for name, result in results.items()
    }
    settings = dict.fromkeys(setting for of in told.values() for setting in of)
    values = {
        setting: {name: str(of.get(setting, "-")) for name, of in told.items()}
        for setting in settings
        if setting not in _NO_MATTER
    }
    return {setting: of for setting, of in values.items() if len(set(of.values())) > 1}
