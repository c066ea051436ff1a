"""Files of an evaluation are whole or not there."""

from __future__ import annotations

import math

import pytest

from calrec_jax.eval.predictions import write_json


def test_a_failed_write_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "metrics.json"
    write_json(path, {"n": 1})

    def killed(*args):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr("os.replace", killed)
        write_json(path, {"n": 2})
    with pytest.raises(ValueError):
        write_json(path, {"n": math.nan})
    assert path.read_text() == '{\n  "n": 1\n}\n'
