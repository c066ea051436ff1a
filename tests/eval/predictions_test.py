"""Files of an evaluation are whole or missing, and damage is reported."""

from __future__ import annotations

import json
import os
import pathlib
import socket
from collections.abc import Callable
from typing import Any

import pytest
from evaluation_case import FakeModel, run

from calrec_jax.errors import CalrecError
from calrec_jax.eval import predictions
from calrec_jax.eval.predictions import locked, require_made_with
from calrec_jax.files import write_json
from calrec_jax.model_dir import EvaluationDir


def _first(change: Callable[..., Any]) -> Callable[..., Any]:
    """Makes a text of lines its first line, changed."""
    return lambda text: json.dumps(change(json.loads(text.splitlines()[0]))) + "\n"


@pytest.mark.parametrize(
    "damage",
    [
        _first(lambda line: line | {"rank": {"low": 0, "high": 2}}),
        _first(lambda line: line | {"rank": {"low": 3, "high": 2}}),
        _first(lambda line: line | {"rank": {"low": 1.5, "high": 2}}),
        _first(lambda line: line | {"user_id": 5}),
        _first(lambda line: line | {"ranked": [{"item_id": 5}]}),
        _first(lambda line: line | {"generated": [{"text": "Title: drum"}]}),
        _first(lambda line: line | {"generated": [{"text": "Title: drum", "logprob": None}]}),
        _first(lambda line: {k: v for k, v in line.items() if k != "target"}),
        lambda text: "[" * 100_000 + "\n",
        lambda text: "\n",
    ],
)
def test_a_line_that_is_no_prediction_is_reported_and_its_removal_is_enough(
    tmp_path: pathlib.Path, damage: Callable[..., Any]
) -> None:
    run(tmp_path)
    path = tmp_path / "predictions.jsonl"
    whole = path.read_text()
    path.write_text(damage(whole) + whole.partition("\n")[2])
    before = path.read_bytes()
    with pytest.raises(CalrecError, match="damaged in line 1: remove that line, .*or move .* away"):
        run(tmp_path)
    assert path.read_bytes() == before
    path.write_text(whole.partition("\n")[2])
    model = FakeModel()
    run(tmp_path, model)
    assert model.predicted == ["a"]


@pytest.mark.parametrize(
    "change",
    [
        {"target": "i7"},
        {"rank": {"low": 1, "high": 9}},
        {"ranked": [{"item_id": "i99", "score": 1.0}]},
    ],
)
def test_predictions_of_other_targets_or_items_are_not_measured(
    tmp_path: pathlib.Path, change: dict[str, Any]
) -> None:
    run(tmp_path)
    path = tmp_path / "predictions.jsonl"
    path.write_text(_first(lambda line: line | change)(path.read_text()))
    model = FakeModel()
    with pytest.raises(CalrecError, match="prediction of user 'a' of toys .*remove its line"):
        run(tmp_path, model)
    assert model.predicted == []


def test_settings_that_are_no_object_are_reported(tmp_path: pathlib.Path) -> None:
    for text in ("[]", "3", "null", "[" * 100_000):
        run(tmp_path / text[:4])
        (tmp_path / text[:4] / "settings.json").write_text(text)
        with pytest.raises(CalrecError, match="settings.json is missing or damaged"):
            run(tmp_path / text[:4])


def test_a_folder_that_cannot_be_written_is_reported_before_anything_is_predicted(
    tmp_path: pathlib.Path,
) -> None:
    (tmp_path / "eval").write_text("a file")
    model = FakeModel()
    with pytest.raises(
        CalrecError, match="cannot keep predictions in .*eval/test: Not a directory"
    ):
        run(tmp_path / "eval" / "test", model)
    assert model.predicted == []


def test_two_processes_do_not_evaluate_into_one_folder(tmp_path: pathlib.Path) -> None:
    with locked(EvaluationDir(tmp_path / "a")):
        line = rf"process {os.getpid()} on host {socket.gethostname()} evaluates into .*a: wait"
        with pytest.raises(CalrecError, match=line):
            with locked(EvaluationDir(tmp_path / "a")):
                raise AssertionError("both are in")
        with locked(EvaluationDir(tmp_path / "b")):
            pass
    with locked(EvaluationDir(tmp_path / "a")):
        pass


@pytest.mark.parametrize("whole", ["", '{"line": 1}\n', '{"line": 1}\n{"line": 2}\n'])
@pytest.mark.parametrize("torn", ["", '{"li', '{"line": 3' + " " * 50])
def test_half_a_line_at_the_end_is_dropped_whatever_its_length(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch, whole: str, torn: str
) -> None:
    monkeypatch.setattr(predictions, "_BLOCK", 8)
    path = tmp_path / "predictions.jsonl"
    write_json(tmp_path / "settings.json", {})
    path.write_text(whole + torn)
    predictions.PredictionsFile(EvaluationDir(tmp_path), {})
    assert path.read_text() == whole


def test_some_of_the_settings_are_held_against_those_that_are_there(tmp_path: pathlib.Path) -> None:
    write_json(tmp_path / "settings.json", {"step": 3, "dtype": "float32"})
    require_made_with(EvaluationDir(tmp_path), {"step": 3})
    with pytest.raises(CalrecError, match="made with dtype = 'float32', .* has 'bfloat16'"):
        require_made_with(EvaluationDir(tmp_path), {"step": 3, "dtype": "bfloat16"})
