"""How many epochs of each domain were seen, in the training lines of metrics.jsonl."""

from __future__ import annotations

import dataclasses

import pytest
from training.small_run import metrics, run, stage

pytestmark = pytest.mark.usefixtures("one_device")

STAGE = stage(train_steps=4, log_period=2, validate_period=4)


def epochs(stage, step):
    """As many as can be told apart by stage and step."""
    return {"books": step / 8, "games": float(10 * len(stage.name) + step)}


def test_training_lines_tell_the_epochs_of_their_step_and_validation_does_not(tmp_path):
    run(tmp_path, STAGE, epochs=epochs)
    found = [
        (line["step"], line["split"], line.get("epochs/books"), line.get("epochs/games"))
        for line in metrics(tmp_path)
    ]
    assert found == [
        (2, "train", 0.25, 62.0),
        (4, "train", 0.5, 64.0),
        (4, "validation", None, None),
    ]


def test_each_stage_tells_its_own(tmp_path):
    asked = []

    def noted(stage, step):
        asked.append((stage.name, step))
        return epochs(stage, step)

    run(tmp_path, STAGE, epochs=noted)
    # The first stage is finished, and is not trained or told again.
    run(tmp_path, STAGE, dataclasses.replace(STAGE, name="second"), epochs=noted)
    assert asked == [("stage1", 2), ("stage1", 4), ("second", 2), ("second", 4)]
    lines = metrics(tmp_path, "second", "train")
    assert [line["epochs/games"] for line in lines] == [62.0, 64.0]


def test_without_epochs_the_lines_have_none(tmp_path):
    run(tmp_path, STAGE)
    assert not [name for line in metrics(tmp_path) for name in line if name.startswith("epochs/")]
