"""Settings that every test shares."""

import os
import pathlib
import shutil
import signal
from collections.abc import Iterator

# Before jax is imported anywhere: eight simulated devices on the CPU.
os.environ.setdefault("XLA_FLAGS", "--xla_force_host_platform_device_count=8")
os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("JAX_NUMPY_RANK_PROMOTION", "raise")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import hypothesis  # noqa: E402
import pytest  # noqa: E402

# A busy machine is no failure: hypothesis would time each example.
hypothesis.settings.register_profile("calrec", deadline=None)
hypothesis.settings.load_profile("calrec")

# What nohup or a script's "&" has let be ignored would be so in the processes that tests start.
if signal.getsignal(signal.SIGHUP) is signal.SIG_IGN:
    signal.signal(signal.SIGHUP, signal.SIG_DFL)
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

ROOT = pathlib.Path(__file__).resolve().parent.parent


@pytest.fixture(scope="session")
def shared_data() -> pathlib.Path:
    """The folder with real data, or a skip that says where it was looked for."""
    default = ROOT.parent / "shared" / "data"
    path = pathlib.Path(os.environ.get("CALREC_SHARED_DATA", default))
    if not path.is_dir():
        pytest.skip(f"no real data at {path}: set CALREC_SHARED_DATA to run this test")
    return path


@pytest.fixture(scope="session")
def small_store(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    """The embedded store with at most 12 users a domain; its raw files are in ../raw/DOMAIN."""
    from calrec_jax.data.preparation import synthetic
    from calrec_jax.data.preparation.prepare import prepare

    folder = tmp_path_factory.mktemp("small")
    config = synthetic.SyntheticConfig(users=12, target_users=12)
    for name, raw in synthetic.generate(config).items():
        synthetic.write_raw(raw, folder / "raw" / name)
        prepare("jsonl", folder / "raw" / name, folder / "store", name)
    return folder / "store"


@pytest.fixture(scope="session")
def programs(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    """The folder of compiled programs."""
    return tmp_path_factory.mktemp("compiled")


@pytest.fixture(scope="session")
def trained_once(
    small_store: pathlib.Path, programs: pathlib.Path, tmp_path_factory: pytest.TempPathFactory
) -> pathlib.Path:
    """The MODEL_DIR of a run of two stages, see trained_run.py."""
    import trained_run

    path = tmp_path_factory.mktemp("trained") / "model"
    with trained_run.kept_programs(programs):
        trained_run.train(small_store, path)
    return path


@pytest.fixture(scope="module")
def model_dir(
    trained_once: pathlib.Path, programs: pathlib.Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[pathlib.Path]:
    """A copy of the run for the tests of one file, which may change it."""
    import trained_run

    with trained_run.kept_programs(programs):
        yield shutil.copytree(trained_once, tmp_path_factory.mktemp("run") / "model")
