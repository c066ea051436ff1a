"""Parameters written a piece at a time are a checkpoint like any other, restored where they go."""

from __future__ import annotations

import json
import os
import pathlib
import subprocess
import sys

import jax
import ml_dtypes
import numpy as np
import pytest
import tensorstore as ts
from checkpoints import restoring, small_hf
from checkpoints.small_hf import BFLOAT16

from calrec_jax.checkpoints import hf_io, streamed
from calrec_jax.checkpoints.manager import Checkpoints
from calrec_jax.errors import CalrecError
from calrec_jax.models.config import DecoderConfig
from calrec_jax.models.decoder import Decoder
from calrec_jax.parallel.mesh import MeshConfig, make_mesh
from calrec_jax.training.state import param_shapes

ROOT = pathlib.Path(__file__).resolve().parents[2]


def flat(tree) -> dict[str, jax.Array]:
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {jax.tree_util.keystr(path, simple=True, separator="/"): leaf for path, leaf in leaves}


@pytest.fixture(scope="module")
def half(tmp_path_factory):
    """(config, checkpoints' folder, parameters by name) of weights in bfloat16."""
    folder = tmp_path_factory.mktemp("half")
    tensors = small_hf.random(small_hf.GEMMA_2, BFLOAT16)
    weights = hf_io.read(small_hf.write(folder / "hf", tensors, small_hf.GEMMA_2))
    hf_io.import_weights(weights, folder / "checkpoints")
    stores = streamed.open_params(folder / "checkpoints", 0)
    expected = {name: store.read() for name, store in stores.items()}
    return weights.config, folder / "checkpoints", expected


def shapes_on(mesh_config: MeshConfig, config: DecoderConfig, dtype: str):
    decoder = Decoder(restoring.changed(config, param_dtype=dtype))
    return param_shapes(decoder, make_mesh(mesh_config), mesh_config)


@pytest.mark.parametrize("mesh_config", [MeshConfig(8, 1), MeshConfig(4, 2)], ids=str)
@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_it_is_restored_on_any_mesh_and_may_be_widened(half, mesh_config, dtype):
    config, folder, expected = half
    shapes = shapes_on(mesh_config, config, dtype)
    checkpoints = Checkpoints(folder, read_only=True)
    found = flat(checkpoints.restore_params(checkpoints.resolve("latest"), shapes))
    wanted = flat(shapes)
    assert found.keys() == expected.keys() == wanted.keys()
    for name, leaf in found.items():
        assert leaf.dtype == dtype and leaf.sharding == wanted[name].sharding
        # Each bfloat16 is a float32: nothing is rounded.
        assert np.asarray(leaf).tobytes() == expected[name].astype(dtype).tobytes()
    split = [leaf for leaf in found.values() if not leaf.sharding.is_fully_replicated]
    assert split or mesh_config.model == 1


def test_it_is_not_narrowed(half, tmp_path):
    config, folder, _ = half
    with pytest.raises(CalrecError) as error:
        Checkpoints(folder, read_only=True).restore_params(
            0, shapes_on(MeshConfig(8, 1), config, "float16")
        )
    assert str(error.value) == (
        f"checkpoint 0 in {folder} does not fit this run: params embedding is bfloat16[20, 6] "
        f"there and float16[20, 6] here"
    )
    weights = hf_io.read(small_hf.write(tmp_path / "hf", small_hf.random()))
    hf_io.import_weights(weights, tmp_path / "c")
    shapes = shapes_on(MeshConfig(8, 1), weights.config, "bfloat16")
    with pytest.raises(CalrecError, match=r"is float32\[20, 6\] there and bfloat16\[20, 6\] here"):
        Checkpoints(tmp_path / "c", read_only=True).restore_params(0, shapes)


def test_it_looks_like_any_other_checkpoint(half):
    _, folder, expected = half
    checkpoints = Checkpoints(folder, read_only=True)
    assert (checkpoints.latest_step(), checkpoints.best_step()) == (0, None)
    saved = {name: (array.shape, "bfloat16") for name, array in expected.items()}
    assert checkpoints.param_shapes(0) == saved
    assert len(checkpoints.fingerprint(0)) == 16


def test_parts_are_read_without_the_rest(half):
    _, folder, expected = half
    query = streamed.open_params(folder, 0)["layers/attention/query/kernel"]
    where = (1, slice(2, 5), slice(1, 3))
    part = query.read(where)
    assert part.dtype == ml_dtypes.bfloat16
    np.testing.assert_array_equal(part, expected["layers/attention/query/kernel"][where])


def bytes_read() -> int:
    path = "/tensorstore/kvstore/file/bytes_read"
    return ts.experimental_collect_matching_metrics(path)[0]["values"][0]["value"]


def test_a_row_is_read_without_the_whole(tmp_path):
    restoring.write(tmp_path, rows=16_384, width=64)  # 2 MiB of noise in 32 pieces
    store = streamed.open_params(tmp_path / "checkpoints", 0)["embedding"]
    before = bytes_read()
    store.read((slice(100, 101),))
    assert 1 << 15 < bytes_read() - before < 1 << 18


@pytest.mark.slow
def test_no_process_reads_or_holds_more_than_its_own_part(tmp_path):
    """Four processes of two devices each, and a tensor that is split over all eight."""
    whole = restoring.write(tmp_path, rows=1 << 17, width=2048)  # 512 MiB in bfloat16
    launcher = [ROOT / "launch" / "local.sh", "--processes=4", "--devices=2", "--"]
    done = subprocess.run(
        [*map(str, launcher), sys.executable, restoring.__file__, str(tmp_path)],
        env=os.environ | {"PYTHONPATH": f"{ROOT}/tests:{ROOT}"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    reports = [json.loads(path.read_text()) for path in sorted(tmp_path.glob("report_*.json"))]
    assert [process["held"] for process in reports] == [whole // 4] * 4
    for process in reports:
        assert whole * 0.24 < process["read"] < whole * 0.3
        # Its part on its devices, which are memory here, and once more on its way to them.
        assert process["peak"] < whole * 0.8
