"""What the tests of training share: one device, and each program compiled once."""

import jax
import pytest
from jax.experimental.compilation_cache import compilation_cache

from calrec_jax.parallel import mesh
from calrec_jax.training import progress_line, stages


@pytest.fixture(scope="session", autouse=True)
def compiled_once(tmp_path_factory):
    """Every stage jits functions of its own; the cache on disk knows the program again."""
    before = {
        name: getattr(jax.config, name)
        for name in (
            "jax_compilation_cache_dir",
            "jax_persistent_cache_min_compile_time_secs",
            "jax_persistent_cache_min_entry_size_bytes",
        )
    }
    jax.config.update("jax_compilation_cache_dir", str(tmp_path_factory.mktemp("compiled")))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)
    compilation_cache.reset_cache()
    yield
    for name, value in before.items():
        jax.config.update(name, value)
    compilation_cache.reset_cache()


@pytest.fixture
def one_device(monkeypatch):
    """Trainers use one device: the fastest to compile for."""
    only = jax.devices()[:1]
    monkeypatch.setattr(stages, "make_mesh", lambda config: mesh.make_mesh(config, only))


class Clock:
    """A clock that a test moves."""

    def __init__(self):
        self.now = 100.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch):
    """The clock of progress lines."""
    clock = Clock()
    monkeypatch.setattr(progress_line, "time", clock)
    return clock
