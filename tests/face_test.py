"""The package's face: its names, where they come from, and what importing it costs."""

from __future__ import annotations

import pathlib
import re
import subprocess
import sys

import pytest

import calrec_jax

DOCS = pathlib.Path(__file__).resolve().parents[1] / "docs"


@pytest.mark.parametrize("name", [name for name in calrec_jax.__all__ if name != "__version__"])
def test_every_name_is_there_and_is_described(name):
    assert getattr(calrec_jax, name).__doc__
    assert re.search(rf"^\| `{name}[`(]", (DOCS / "python.md").read_text(), re.MULTILINE)


def test_there_is_no_other_name():
    with pytest.raises(AttributeError, match="no attribute 'Trainer'"):
        _ = calrec_jax.Trainer
    assert set(calrec_jax.__all__) <= set(dir(calrec_jax))


def test_importing_it_costs_nothing():
    code = "import sys, calrec_jax; calrec_jax.CalrecError; "
    code += "assert not {'jax', 'flax', 'tensorflow', 'seqio', 'gin', 'numpy'} & sys.modules.keys()"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_names_that_are_modules_elsewhere_stay_functions():
    import calrec_jax.runs.evaluate
    import calrec_jax.runs.train

    assert callable(calrec_jax.train) and callable(calrec_jax.evaluate)
