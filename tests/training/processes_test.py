"""The processes of a run: what the environment must say of them. multidevice/ runs two."""

from __future__ import annotations

import pytest

from calrec_jax.errors import CalrecError
from calrec_jax.training import processes


def test_coordinates_of_processes(monkeypatch):
    monkeypatch.delenv("CALREC_MULTIHOST", raising=False)
    monkeypatch.delenv("CALREC_COORDINATOR", raising=False)
    assert processes.join_processes() is False
    monkeypatch.setenv("CALREC_COORDINATOR", "127.0.0.1:1")
    with pytest.raises(CalrecError, match="CALREC_NUM_PROCESSES is '': give a number"):
        processes.join_processes()
