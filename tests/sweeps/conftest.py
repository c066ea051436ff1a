"""What tests of sweeps share: a sweep of four trials."""

from __future__ import annotations

import pathlib

import pytest
from sweeps.fake_calrec import GRID, write

from calrec_jax.sweeps import sweep_file
from calrec_jax.sweeps.sweep_file import Sweep


@pytest.fixture
def grid(tmp_path: pathlib.Path) -> Sweep:
    """The sweep of GRID."""
    return sweep_file.read(write(tmp_path, GRID))


@pytest.fixture
def ids(grid: Sweep) -> list[str]:
    """The ids of its trials."""
    return [trial.id for trial in grid.trials]
