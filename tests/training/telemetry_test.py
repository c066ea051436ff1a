"""What is logged of a stage: metrics.jsonl, TensorBoard's events and the line of progress."""

import json
import struct

import pytest
from tensorboardX.proto.event_pb2 import Event

from calrec_jax.model_dir import StageDir
from calrec_jax.training.telemetry import Telemetry

METRICS = {"loss": 2.5, "nig": 3.0, "examples": 10.0, "tokens": 100.0, "learning_rate": 0.1}


def lines(directory):
    return [json.loads(line) for line in (directory / "metrics.jsonl").read_text().splitlines()]


def events(directory) -> list[tuple[int, str, float]]:
    """(step, tag, value) of all scalars under `directory`, in the order of the files' names."""
    return [
        (event.step, value.tag, value.simple_value)
        for event in raw_events(directory)
        for value in event.summary.value
    ]


def raw_events(directory):
    """TFRecords: length, its checksum, the event, its checksum."""
    for path in sorted(directory.glob("events.out.tfevents.*")):
        data = path.read_bytes()
        while data:
            (length,) = struct.unpack("<Q", data[:8])
            yield Event.FromString(data[12 : 12 + length])
            data = data[16 + length :]


def test_metrics_jsonl_holds_every_log_period_the_last_step_and_validation(tmp_path, clock):
    telemetry = Telemetry(StageDir(tmp_path), "stage1", 0, 5, log_period=2)
    for step in range(1, 6):
        clock.now += 0.5
        telemetry.log_training(step, METRICS)
    telemetry.log_validation(5, {"loss": 2.25})
    telemetry.close()
    rates = {"examples_per_second": 20.0, "tokens_per_second": 200.0}
    assert lines(tmp_path) == [
        *[{"step": step, "split": "train", **METRICS, **rates} for step in (2, 4, 5)],
        {"step": 5, "split": "validation", "loss": 2.25},
    ]
    first = (tmp_path / "metrics.jsonl").read_text()
    assert first.startswith('{"step": 2, "split": "train", ')


def test_tensorboard_finds_all_scalars(tmp_path, clock):
    telemetry = Telemetry(StageDir(tmp_path), "stage1", 0, 2, log_period=1)
    for step in (1, 2):
        clock.now += 1.0
        telemetry.log_training(step, {**METRICS, "loss": float(step)})
    telemetry.log_validation(2, {"loss": 0.5})
    telemetry.close()
    found = events(tmp_path)
    assert [(s, value) for s, tag, value in found if tag == "train/loss"] == [(1, 1.0), (2, 2.0)]
    assert (2, "validation/loss", 0.5) in found
    tags = {tag for _, tag, _ in found}
    names = [*METRICS, "examples_per_second", "tokens_per_second"]
    assert tags == {f"train/{name}" for name in names} | {"validation/loss"}


@pytest.mark.parametrize("first_step", [0, 3])
def test_tensorboard_drops_the_events_that_will_come_again(tmp_path, first_step):
    Telemetry(StageDir(tmp_path), "stage1", first_step, 9, log_period=1).close()
    starts = [event.step for event in raw_events(tmp_path) if event.session_log.status == 1]
    assert starts == [first_step + 1]


def test_the_progress_line_shows_losses_rates_and_the_time_left(tmp_path, clock, capsys):
    telemetry = Telemetry(StageDir(tmp_path), "stage2", 100, 1000, log_period=10)
    for step in range(101, 111):
        clock.now += 12.0
        telemetry.log_training(step, {**METRICS, "tokens": 12_345.0 * 12})
    telemetry.close()
    assert capsys.readouterr().err == (
        "stage2 110/1000  loss 2.5000 nig 3.0000  0.8 examples/s  12,345 tokens/s  2:58:00 left\n"
    )


def test_other_processes_write_nothing(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("jax.process_index", lambda: 1)
    telemetry = Telemetry(StageDir(tmp_path / "stage1"), "stage1", 0, 2, log_period=1)
    telemetry.log_training(1, METRICS)
    telemetry.log_validation(1, {"loss": 1.0})
    telemetry.close()
    assert not (tmp_path / "stage1").exists() and capsys.readouterr().err == ""
