"""metrics.jsonl: whole lines, also after a kill."""

import json

import pytest

from calrec_jax.training.metrics_file import MetricsFile


def lines(directory):
    return [json.loads(line) for line in (directory / "metrics.jsonl").read_text().splitlines()]


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
