"""A training step compiled for simulated devices, and the arrays that a device holds of it.

As a script, on as many devices as XLA_FLAGS says: {"data x model": bytes of temporaries} as JSON,
for steps without negatives.
"""

from __future__ import annotations

import json
import re
import sys

import jax

from calrec_jax.batch import BatchSpec
from calrec_jax.losses import LossConfig
from calrec_jax.models import lora
from calrec_jax.models.config import DecoderConfig
from calrec_jax.models.decoder import Decoder
from calrec_jax.parallel import partitioning
from calrec_jax.parallel.mesh import MeshConfig, make_mesh
from calrec_jax.training import state as train_state
from calrec_jax.training.optimizer import OptimizerConfig, make_optimizer, make_schedule
from calrec_jax.training.step import make_train_step

# All axes have different sizes, so that the shape of an array identifies its axes.
MODEL = DecoderConfig(
    vocab_size=448, d_model=64, num_layers=3, num_heads=4, num_kv_heads=2, head_dim=22, d_ff=112,
    remat="full",
)  # fmt: skip
ROWS, SEGMENTS = 7, 5  # of a device (of those along `model` together), of a row


def spec(mesh_config: MeshConfig) -> BatchSpec:
    """A batch with the same number of rows per device on any mesh."""
    lengths = {"inputs": 27, "targets": 9}
    return BatchSpec.create(ROWS * mesh_config.data, lengths, max_segments=SEGMENTS)


def compiled_step(
    mesh_config: MeshConfig, losses: LossConfig = LossConfig(), model: DecoderConfig = MODEL
) -> jax.stages.Compiled:
    """The training step as a stage compiles it, on the first devices."""
    devices = jax.devices()[: mesh_config.data * mesh_config.model]
    mesh, decoder, optimizer = make_mesh(mesh_config, devices), Decoder(model), OptimizerConfig()
    schedule = make_schedule(optimizer, 100)
    tx = make_optimizer(optimizer, schedule)
    batch_spec, rows = spec(mesh_config), partitioning.batch_sharding(mesh)
    with partitioning.use_mesh(mesh, mesh_config):
        state = train_state.state_shapes(decoder, tx, mesh, mesh_config)
        frozen = lora.split(train_state.param_shapes(decoder, mesh, mesh_config))[1]
        batch = {
            name: jax.ShapeDtypeStruct(shape, dtype, sharding=rows)
            for name, (shape, dtype) in batch_spec.shapes().items()
        }
        one = make_train_step(decoder, tx, schedule, losses, batch_spec.max_loss_tokens)
        out = (jax.tree.map(lambda leaf: leaf.sharding, state), None)
        step = jax.jit(one, donate_argnums=0, out_shardings=out)
        return step.lower(state, frozen, batch).compile()


def arrays(compiled: jax.stages.Compiled) -> set[tuple[int, ...]]:
    """The shapes of all arrays in a device's program."""
    found = re.findall(r"\b(?:bf16|f32|s32|u32|pred|s8|u8)\[([0-9,]+)\]", compiled.as_text())
    return {tuple(map(int, shape.split(","))) for shape in found}


def main() -> None:
    temporaries = {}
    for sizes in sys.argv[1:]:
        mesh_config = MeshConfig(*map(int, sizes.split("x")), shard_params_over_data=True)
        memory = compiled_step(mesh_config, LossConfig(alpha=0.0, beta=0.0)).memory_analysis()
        temporaries[sizes] = memory.temp_size_in_bytes
    print(json.dumps(temporaries))


if __name__ == "__main__":
    main()
