"""The training step and the sampler compile in bfloat16 for a TPU, which need not be there.

The compiled programs are checked too: there are no logits of whole rows and no copies of the
prompts' keys and values, and the new state reuses the old state's memory.
"""

from __future__ import annotations

import dataclasses
import functools
import importlib.util
import math

import jax
import jax.numpy as jnp
import pytest
from jax.experimental import topologies
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P
from multidevice.compiled import arrays

from calrec_jax.batch import BatchSpec
from calrec_jax.decode.generate import generate
from calrec_jax.decode.sampling import SamplingConfig
from calrec_jax.decode.trie import TrieArrays
from calrec_jax.losses import LossConfig
from calrec_jax.models import presets
from calrec_jax.models.config import DecoderConfig
from calrec_jax.models.decoder import Decoder
from calrec_jax.parallel import partitioning
from calrec_jax.parallel.mesh import MeshConfig, make_mesh
from calrec_jax.training import state as train_state
from calrec_jax.training.optimizer import OptimizerConfig, make_optimizer, make_schedule
from calrec_jax.training.step import make_train_step

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        importlib.util.find_spec("libtpu") is None,
        reason="no libtpu, the TPU compiler: pip install -c constraints.txt 'calrec_jax[tpu]'",
    ),
]

DATA, MODEL = 2, 2
MESH = MeshConfig(DATA, MODEL)
VOCABULARY, WIDTH, HEAD_DIM = 4096, 128, 64
SPEC = BatchSpec.create(4, {"inputs": 224, "targets": 16}, row_length=256, max_segments=2)
PROMPTS, PROMPT_LENGTH, SAMPLES = 4, 320, 16


@pytest.fixture(scope="module")
def chips():
    """chips("v5e:2x2"): the devices of a slice, described for the compiler."""
    with pytest.MonkeyPatch.context() as patch:
        # Several processes may compile at once, and no metadata server is queried for a TPU.
        patch.setenv("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")
        patch.setenv("TPU_SKIP_MDS_QUERY", "1")
        yield lambda slice: topologies.get_topology_desc(slice, platform="tpu").devices


@pytest.fixture(scope="module")
def devices(chips):
    """Four chips of a TPU v5e."""
    return chips("v5e:2x2")


def model(**changes) -> DecoderConfig:
    sizes = dict(
        vocab_size=VOCABULARY, d_model=WIDTH, num_layers=2, num_heads=4, num_kv_heads=2,
        head_dim=HEAD_DIM, d_ff=256, dtype="bfloat16", remat="dots",
    )  # fmt: skip
    return DecoderConfig(**(sizes | changes))


def compiled_step(devices, config, optimizer, mesh_config, spec=SPEC, compiler_options=None):
    """(the compiled training step, its state's shapes)."""
    mesh, decoder = make_mesh(mesh_config, devices), Decoder(config)
    schedule = make_schedule(optimizer, 100)
    tx = make_optimizer(optimizer, schedule)
    with partitioning.use_mesh(mesh, mesh_config):
        state = train_state.state_shapes(decoder, tx, mesh, mesh_config)
        rows = partitioning.batch_sharding(mesh)
        batch = {
            name: jax.ShapeDtypeStruct(shape, dtype, sharding=rows)
            for name, (shape, dtype) in spec.shapes().items()
        }
        one = make_train_step(decoder, tx, schedule, LossConfig(), spec.max_loss_tokens)
        out = (jax.tree.map(lambda leaf: leaf.sharding, state), None)
        step = jax.jit(one, donate_argnums=0, out_shardings=out)  # as a stage jits it
        return step.lower(state, {}, batch).compile(compiler_options), state


def largest_buffer(compiled) -> int:
    """Elements of the largest array on one chip that the program names anywhere."""
    shapes = arrays(compiled)
    assert len(shapes) > 50
    return max(map(math.prod, shapes))


LOGITS_OF_WHOLE_ROWS = SPEC.batch_size // DATA * SPEC.row_length * VOCABULARY // MODEL
VARIANTS = {
    "adamw": (model(), OptimizerConfig(), MESH),
    "adafactor, split over data too": (
        model(remat="full"), OptimizerConfig(name="adafactor"), MeshConfig(DATA, MODEL, True),
    ),
    "layers in a loop, untied, one key for all heads": (
        model(remat="none", scan_layers=False, tie_embeddings=False, num_kv_heads=1),
        OptimizerConfig(), MESH,
    ),
}  # fmt: skip


@pytest.mark.parametrize("variant", VARIANTS.values(), ids=VARIANTS)
def test_the_training_step_compiles_and_holds_no_logits_of_whole_rows(devices, variant):
    step, state = compiled_step(devices, *variant)
    assert largest_buffer(step) < LOGITS_OF_WHOLE_ROWS
    memory = step.memory_analysis()
    on_a_chip = sum(
        math.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize
        for leaf in jax.tree.leaves(state)
    )
    assert on_a_chip <= memory.alias_size_in_bytes <= memory.argument_size_in_bytes


def test_logits_of_whole_rows_would_be_seen(devices):
    whole_rows = dataclasses.replace(SPEC, max_loss_tokens=SPEC.row_length)
    step, _ = compiled_step(devices, model(), OptimizerConfig(), MESH, whole_rows)
    assert largest_buffer(step) >= LOGITS_OF_WHOLE_ROWS


def test_a_slice_of_64_chips_holds_two_billion_parameters_and_its_rows(chips):
    """Eight rows of 1,024 tokens per chip. With one array of all 512 rows it would not fit."""
    config = presets.preset("gemma_2b", param_dtype="float32", remat="full")
    spec = BatchSpec.create(512, {"inputs": 896, "targets": 128}, 1024, max_segments=6)
    step, _ = compiled_step(
        chips("v5e:8x8"), config, OptimizerConfig(name="adafactor"),
        MeshConfig(64, 1, shard_params_over_data=True), spec,
        {"exec_time_optimization_effort": -1.0},  # a fifth of the seconds
    )  # fmt: skip
    assert step.memory_analysis().peak_memory_in_bytes < 9.5 * 2**30
    assert not [shape for shape in arrays(step) if spec.batch_size in shape]


TRIE = (3, 4096, 8, 1)  # fan-outs
WAYS = {
    "sample": (SamplingConfig(SAMPLES, 0.5, 16), ()),
    "filtered": (SamplingConfig(SAMPLES, 0.5, 16, top_k=40, top_p=0.9), ()),
    "trie": (SamplingConfig(SAMPLES, 0.5, len(TRIE)), TRIE),
    "beams in a trie": (SamplingConfig(SAMPLES, max_new_tokens=len(TRIE), method="beam"), TRIE),
}


@pytest.mark.parametrize("way", WAYS)
def test_generation_compiles_and_copies_no_prompt(devices, way):
    # As `for_generation` makes it.
    config = model(scan_layers=False, remat="none", param_dtype="bfloat16")
    mesh, decoder = make_mesh(MESH, devices), Decoder(config)
    sampling, fan_outs = WAYS[way]
    run = functools.partial(generate, decoder, sampling, 1, fan_outs)
    rows, whole = partitioning.batch_sharding(mesh), NamedSharding(mesh, P())
    trie = None
    if fan_outs:
        trie = TrieArrays(*(jax.ShapeDtypeStruct((n,), jnp.int32, sharding=whole) for n in (9, 8)))
    inputs = [
        jax.ShapeDtypeStruct((PROMPTS, *shape), dtype, sharding=rows)
        for shape, dtype in (
            ((PROMPT_LENGTH,), jnp.int32), ((PROMPT_LENGTH,), jnp.bool_), ((), jnp.uint32),
        )
    ]  # fmt: skip
    with partitioning.use_mesh(mesh, MESH):
        params = train_state.param_shapes(decoder, mesh, MESH)
        compiled = jax.jit(run).lower(params, trie, *inputs).compile()
    keys_once = PROMPTS // DATA * PROMPT_LENGTH * HEAD_DIM
    logits_of_prompts = PROMPTS // DATA * PROMPT_LENGTH * VOCABULARY // MODEL
    assert largest_buffer(compiled) < SAMPLES * keys_once < logits_of_prompts
