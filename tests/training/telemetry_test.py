"""metrics.jsonl, TensorBoard's events and the line of progress."""

import json
import struct

import pytest
from tensorboardX.proto.event_pb2 import Event

from calrec_jax.training import telemetry
from calrec_jax.training.telemetry import MetricsFile, Progress, Telemetry

METRICS = {"loss": 2.5, "nig": 3.0, "examples": 10.0, "tokens": 100.0, "learning_rate": 0.1}


class Clock:
    """A clock that a test moves."""

    def __init__(self):
        self.now = 100.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch):
    clock = Clock()
    monkeypatch.setattr(telemetry, "time", clock)
    return clock


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
    told = Telemetry(tmp_path, "stage1", 0, 5, log_period=2)
    for step in range(1, 6):
        clock.now += 0.5
        told.training(step, METRICS)
    told.validation(5, {"loss": 2.25})
    told.close()
    rates = {"examples_per_second": 20.0, "tokens_per_second": 200.0}
    assert lines(tmp_path) == [
        *[{"step": step, "split": "train", **METRICS, **rates} for step in (2, 4, 5)],
        {"step": 5, "split": "validation", "loss": 2.25},
    ]
    first = (tmp_path / "metrics.jsonl").read_text()
    assert first.startswith('{"step": 2, "split": "train", ')


def test_a_line_is_on_disk_as_soon_as_it_is_written(tmp_path):
    file = MetricsFile(tmp_path / "metrics.jsonl", 0)
    file.write(1, "train", {"loss": 1.0})
    assert lines(tmp_path) == [{"step": 1, "split": "train", "loss": 1.0}]
    file.close()


@pytest.mark.parametrize(
    "torn",
    [b'{"step": 2, "split": "tr', b"3", b"[1]", b'{"step": null}', b"[" * 9999, b'{"step": "\xc3'],
    ids=lambda torn: repr(torn[:9]),
)
def test_going_on_drops_later_lines_and_torn_ones(tmp_path, torn):
    path = tmp_path / "metrics.jsonl"
    file = MetricsFile(path, 0)
    for step in range(1, 6):
        file.write(step, "train", {"loss": float(step)})
        file.write(step, "validation", {"loss": float(step)})
    file.close()
    with path.open("ab") as cut:
        cut.write(torn)
    file = MetricsFile(path, 3)
    file.write(4, "train", {"loss": 40.0})
    file.close()
    found = [(line["step"], line["split"], line["loss"]) for line in lines(tmp_path)]
    kept = [(s, split, float(s)) for s in (1, 2, 3) for split in ("train", "validation")]
    assert found == [*kept, (4, "train", 40.0)]


def test_a_kill_while_lines_are_dropped_loses_none(tmp_path, monkeypatch):
    """The shortened file takes the place of the old one only when it is whole."""
    path = tmp_path / "metrics.jsonl"
    file = MetricsFile(path, 0)
    file.write(1, "train", {"loss": 1.0})
    file.close()
    before = path.read_bytes()

    def killed(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr("os.replace", killed)
    with pytest.raises(KeyboardInterrupt):
        MetricsFile(path, 0)
    assert path.read_bytes() == before


def test_tensorboard_finds_all_scalars(tmp_path, clock):
    told = Telemetry(tmp_path, "stage1", 0, 2, log_period=1)
    for step in (1, 2):
        clock.now += 1.0
        told.training(step, {**METRICS, "loss": float(step)})
    told.validation(2, {"loss": 0.5})
    told.close()
    found = events(tmp_path)
    assert [(s, value) for s, tag, value in found if tag == "train/loss"] == [(1, 1.0), (2, 2.0)]
    assert (2, "validation/loss", 0.5) in found
    tags = {tag for _, tag, _ in found}
    names = [*METRICS, "examples_per_second", "tokens_per_second"]
    assert tags == {f"train/{name}" for name in names} | {"validation/loss"}


@pytest.mark.parametrize("first_step", [0, 3])
def test_tensorboard_is_told_to_forget_what_comes_again(tmp_path, first_step):
    Telemetry(tmp_path, "stage1", first_step, 9, log_period=1).close()
    starts = [event.step for event in raw_events(tmp_path) if event.session_log.status == 1]
    assert starts == [first_step + 1]


def test_the_progress_line_tells_losses_rates_and_the_time_left(tmp_path, clock, capsys):
    told = Telemetry(tmp_path, "stage2", 100, 1000, log_period=10)
    for step in range(101, 111):
        clock.now += 12.0
        told.training(step, {**METRICS, "tokens": 12_345.0 * 12})
    told.close()
    assert capsys.readouterr().err == (
        "stage2 110/1000  loss 2.5000 nig 3.0000  0.8 examples/s  12,345 tokens/s  2:58:00 left\n"
    )


def test_rates_leave_out_validation_and_saving(clock):
    progress = Progress("stage1", 0, 10)
    clock.now += 2.0
    progress.update(1, METRICS)
    clock.now += 50.0  # validation
    progress.restart_clock()
    clock.now += 3.0
    assert progress.update(2, METRICS) == {
        "examples_per_second": 20 / 5.0,
        "tokens_per_second": 200 / 5.0,
    }


def test_the_rates_are_those_of_this_process(clock):
    clock.now += 1000.0  # before it started
    progress = Progress("stage1", 500, 1000)
    clock.now += 1.0
    assert progress.update(501, METRICS)["examples_per_second"] == 10.0


def test_other_processes_write_nothing(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("jax.process_index", lambda: 1)
    told = Telemetry(tmp_path / "stage1", "stage1", 0, 2, log_period=1)
    told.training(1, METRICS)
    told.validation(1, {"loss": 1.0})
    told.close()
    assert not (tmp_path / "stage1").exists() and capsys.readouterr().err == ""
