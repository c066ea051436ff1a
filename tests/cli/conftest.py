"""What tests of commands share: one trained run."""

from __future__ import annotations

import contextlib
import pathlib
import shutil
from collections.abc import Iterator

import jax
import pytest
import trained_run
from jax.experimental.compilation_cache import compilation_cache

from calrec_jax.parallel.mesh import MeshConfig, make_mesh
from calrec_jax.training import stages


@contextlib.contextmanager
def _kept_programs(folder: pathlib.Path) -> Iterator[None]:
    """Each model jits functions of its own; the cache on disk knows the program again."""
    settings = {
        "jax_compilation_cache_dir": str(folder),
        "jax_persistent_cache_min_compile_time_secs": 0.0,
        "jax_persistent_cache_min_entry_size_bytes": -1,
        "jax_disable_most_optimizations": True,  # these programs run for a moment
    }
    before = {name: jax.config.values[name] for name in settings}
    for name, value in settings.items():
        jax.config.update(name, value)
    compilation_cache.reset_cache()
    try:
        yield
    finally:
        for name, value in before.items():
            jax.config.update(name, value)
        compilation_cache.reset_cache()


@pytest.fixture(scope="session")
def programs(tmp_path_factory) -> pathlib.Path:
    """Where compiled programs are kept."""
    return tmp_path_factory.mktemp("compiled")


@pytest.fixture(scope="session")
def trained_once(small_store, programs, tmp_path_factory) -> pathlib.Path:
    """MODEL_DIR of a run of two stages."""
    path = tmp_path_factory.mktemp("trained") / "model"
    with _kept_programs(programs), pytest.MonkeyPatch.context() as patched:
        # The fastest to compile for.
        one_device = make_mesh(MeshConfig(), jax.devices()[:1])
        patched.setattr(stages, "make_mesh", lambda config: one_device)
        trained_run.train(small_store, path)
    return path


@pytest.fixture(scope="module")
def model_dir(trained_once, programs, tmp_path_factory) -> Iterator[pathlib.Path]:
    """The run, for the tests of a file to do with as they like."""
    with _kept_programs(programs):
        yield shutil.copytree(trained_once, tmp_path_factory.mktemp("run") / "model")
