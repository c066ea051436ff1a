"""The compiled programs have the model's constraints, and a device has only its part of arrays.

Without them XLA computes all rows of the batch on every device and adds up: losses and gradients
are right all the same, so that only the programs themselves can tell.
"""

from __future__ import annotations

import dataclasses
import json
import os
import pathlib
import subprocess
import sys

import flax.linen as nn
import jax
import numpy as np
import pytest
import tiny
from decode.vectors_test import TOKENS, towers
from jax.sharding import PartitionSpec as P
from multidevice.compiled import MODEL, ROWS, SEGMENTS, arrays, compiled_step
from multidevice.generation_test import SAMPLED, generated
from training import small_run

from calrec_jax.models.decoder import Decoder
from calrec_jax.models.lora import LoraConfig
from calrec_jax.parallel import partitioning
from calrec_jax.parallel.mesh import MeshConfig, make_mesh

FSDP = MeshConfig(4, 2, shard_params_over_data=True)
MESHES = [MeshConfig(8, 1), MeshConfig(8, 1, True), MeshConfig(4, 2), FSDP]

HIDDEN, HEADS = P("data", None, None), P("data", None, "model", None)
MLP = P("data", None, "model")  # and logits
# Parameters as they are stored, and as they are used, which is without FSDP's split along "embed":
# tables and scales of norms, projections to heads, from them, to the MLP, from it.
HELD = {
    P("model", "data"), P("data"), P("data", "model", None), P("model", None, "data"),
    P("data", "model"),
}  # fmt: skip
GATHERED = {
    P("model", None), P(None), P(None, "model", None), P("model", None, None), P(None, "model"),
}  # fmt: skip
ALL = {HIDDEN, HEADS, MLP} | HELD | GATHERED


@pytest.fixture
def constraints(monkeypatch) -> set[P]:
    """The constraints of arrays in all programs that are traced from now on."""
    found, constrain = set(), jax.lax.with_sharding_constraint

    def record(x, spec):
        found.add(spec)
        return constrain(x, spec)

    monkeypatch.setattr(jax.lax, "with_sharding_constraint", record)
    return found


def test_a_stage_trains_and_validates_constrained(tmp_path, constraints):
    small_run.run(tmp_path, small_run.stage(train_steps=1), mesh=FSDP)
    assert constraints == ALL


def test_validation_generation_and_vectors_are_constrained(constraints):
    generated(FSDP, SAMPLED, constrained=False)
    assert constraints == ALL
    constraints.clear()
    towers(FSDP, 4).items(TOKENS)
    assert constraints == ALL


@pytest.mark.parametrize("axes", ["batch", "length"])
def test_a_constraint_is_in_the_program(axes):
    mesh = make_mesh(FSDP)
    with partitioning.use_mesh(mesh, FSDP):
        program = jax.make_jaxpr(lambda x: partitioning.constrain(x, (axes, None)))(np.ones((8, 2)))
    (equation,) = program.eqns
    assert equation.primitive.name == "sharding_constraint"
    wanted = P("data" if axes == "batch" else None, None)
    assert equation.params["sharding"].spec == wanted


def of_the_whole_batch(mesh_config: MeshConfig, compiled) -> set[tuple[int, ...]]:
    """The arrays with an axis of all rows, or all segments, of the global batch."""
    rows = ROWS * mesh_config.data
    return {shape for shape in arrays(compiled) if {rows, rows * SEGMENTS} & set(shape)}


@pytest.mark.parametrize("adapters", [None, LoraConfig(rank=3, pattern=".*")], ids=["all", "lora"])
@pytest.mark.parametrize("mesh_config", MESHES, ids=str)
def test_no_device_computes_on_the_whole_batch(mesh_config, adapters):
    """Except for the items' vectors, which every user is compared with, and the similarities."""
    everyone, mine = ROWS * SEGMENTS * mesh_config.data, ROWS * SEGMENTS
    model = dataclasses.replace(MODEL, lora=adapters)
    compared = of_the_whole_batch(mesh_config, compiled_step(mesh_config, model=model))
    assert {(everyone, MODEL.d_model), (mine, everyone)} <= compared
    for shape in compared:
        others = sorted(size for size in shape if size > 2)
        assert others in ([everyone], [MODEL.d_model, everyone], [mine, everyone]), shape


@pytest.mark.parametrize("mesh_config", [m for m in MESHES if m.shard_params_over_data], ids=str)
def test_what_no_constraint_would_do_is_seen(mesh_config, monkeypatch):
    monkeypatch.setattr(nn, "get_logical_axis_rules", lambda: ())
    rows = ROWS * mesh_config.data
    found = of_the_whole_batch(mesh_config, compiled_step(mesh_config))
    assert any(shape[0] == rows and len(shape) > 2 for shape in found)


@pytest.mark.parametrize("remat", ["none", "dots", "full"])
def test_gathered_parameters_are_gathered_again_for_gradients(remat):
    """They are not kept for all layers on every device."""
    found = arrays(compiled_step(MESHES[1], model=dataclasses.replace(MODEL, remat=remat)))
    layers, d, f = MODEL.num_layers, MODEL.d_model, MODEL.d_ff
    assert {(d, f), (layers, d // 8, f)} <= found
    assert not {(layers, d, f), (layers, f, d)} & found


@pytest.mark.slow
def test_twice_the_devices_need_no_more_memory_for_as_many_rows_each():
    """Each has a smaller part of the parameters, and the same number of rows."""
    tests = pathlib.Path(__file__).resolve().parents[1]
    done = subprocess.run(
        [sys.executable, tests / "multidevice" / "compiled.py", "8x1", "16x1", "4x2", "8x2"],
        env=os.environ | {"XLA_FLAGS": "--xla_force_host_platform_device_count=16"},
        cwd=tests, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    temporaries = json.loads(done.stdout)
    assert temporaries["16x1"] < temporaries["8x1"]
    assert temporaries["8x2"] < temporaries["4x2"]


def test_a_constraint_without_its_mesh_is_an_error():
    """JAX's older way to enter a mesh sets none, and flax would drop the constraint."""
    mesh, rules = make_mesh(FSDP), partitioning.logical_rules(FSDP)
    tokens = np.zeros((8, 4), np.int32)
    with mesh, nn.logical_axis_rules(rules), pytest.raises(RuntimeError, match="there is no mesh"):
        jax.eval_shape(lambda: Decoder(tiny.CONFIG).init(jax.random.key(0), *[tokens] * 3))


def test_where_no_mesh_is_expected_nothing_is_constrained(constraints):
    tokens = np.zeros((3, 4), np.int32)
    jax.eval_shape(lambda: Decoder(tiny.CONFIG).init(jax.random.key(0), *[tokens] * 3))
    assert not constraints
