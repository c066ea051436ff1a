"""The memory of a training step on TPUs that are not there, as their compiler reports it.

    python benchmarks/memory.py gemma2_2b --topology=v5e:4x4 --batch_size=16
    python benchmarks/memory.py llama31_8b --topology=v6e:2x4 --batch_size=8 --lora_rank=16 \\
        --param_dtype=bfloat16

Compiles the step that `calrec train` runs for presets (`calrec_jax.models.presets`) on a slice of
TPUs: bfloat16 activations, full recomputation, parameters split over all chips. Prints a line for
each preset, in GiB per chip: arguments (state, frozen weights, batch), temporaries, and the peak,
which is below their sum where not all temporaries exist at once; or what the step needs, where that
is more than a chip has. The new state takes the old one's place.
`--state_only` compiles nothing and prints what no compiler can save: state (with frozen weights)
and gradients. Needs libtpu, and no TPU; a compilation takes half a minute of one core.
"""

from __future__ import annotations

import argparse
import dataclasses
import math
import os
import re
import time
from collections.abc import Sequence
from typing import Any

# Several processes may compile at once, and no metadata server is queried for this machine's TPU.
os.environ |= {"ALLOW_MULTIPLE_LIBTPU_LOAD": "1", "TPU_SKIP_MDS_QUERY": "1"}
os.environ.setdefault("JAX_PLATFORMS", "cpu")

import jax
from jax.experimental import topologies

from calrec_jax.batch import BatchSpec
from calrec_jax.losses import LossConfig
from calrec_jax.models import lora, presets
from calrec_jax.models.config import DecoderConfig
from calrec_jax.models.decoder import Decoder
from calrec_jax.parallel import partitioning
from calrec_jax.parallel.mesh import MeshConfig, make_mesh
from calrec_jax.training import state as train_state
from calrec_jax.training.optimizer import OPTIMIZERS, OptimizerConfig, make_optimizer, make_schedule
from calrec_jax.training.step import make_train_step

GIB = 2**30
# The least effort for the program's speed: compiles in a fifth of the time, and reports the same
# memory (to 0.01 GiB, where both were tried).
_QUICK = {"exec_time_optimization_effort": -1.0}
# The memory that is needed, arguments included, and the memory of a chip.
_FULL = re.compile(r"\(([0-9.]+[KMGT]?)\) exceeds available HBM \(([0-9.]+[KMGT]?)\)")


def main() -> None:
    """Prints a line for each preset."""
    args = _parser().parse_args()
    devices = topologies.get_topology_desc(args.topology, platform="tpu").devices
    mesh = MeshConfig(model=args.model, shard_params_over_data=not args.whole_params)
    lengths = {"inputs": args.row_length - args.targets, "targets": args.targets}
    rows = (args.row_length, args.max_segments, args.max_loss_tokens)
    spec = BatchSpec.create(args.batch_size, lengths, *rows)
    for name in args.presets:
        config = presets.preset(name, param_dtype=args.param_dtype, remat=args.remat)
        if args.lora_rank:
            adapters = lora.LoraConfig(args.lora_rank, 2.0 * args.lora_rank, args.lora_pattern)
            config = dataclasses.replace(config, lora=adapters)
        step = Step(config, OptimizerConfig(name=args.optimizer), mesh, spec, devices)
        print(f"{name}: {step.standing()}", end="")
        print("" if args.state_only else f"; {step.compiled()}", flush=True)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.formatter_class = argparse.RawTextHelpFormatter
    parser.add_argument("presets", nargs="+", metavar="PRESET")
    parser.add_argument("--topology", default="v5e:4x4", help="v5e:4x4, v6e:2x4, v5p:2x2x2, ...")
    parser.add_argument("--model", type=int, default=1, help="chips along MeshConfig.model")
    parser.add_argument("--whole_params", action="store_true", help="not split along data")
    parser.add_argument("--optimizer", choices=OPTIMIZERS, default="adafactor")
    parser.add_argument("--param_dtype", default="float32")
    parser.add_argument("--remat", default="full")
    parser.add_argument("--lora_rank", type=int, default=0, help="0 = all is trained")
    parser.add_argument("--lora_pattern", default=".*", help="projections (default: all)")
    parser.add_argument("--batch_size", type=int, default=16, help="rows over all chips")
    parser.add_argument("--row_length", type=int, default=1024)
    parser.add_argument("--targets", type=int, default=128)
    parser.add_argument("--max_segments", type=int, default=6)
    parser.add_argument("--max_loss_tokens", type=int)
    parser.add_argument("--state_only", action="store_true")
    return parser


class Step:
    """A training step on a slice of TPUs: its shapes, and its memory."""

    def __init__(
        self,
        config: DecoderConfig,
        optimizer: OptimizerConfig,
        mesh_config: MeshConfig,
        spec: BatchSpec,
        devices: Sequence[jax.Device],
    ):
        self.decoder, self.spec, self.mesh_config = Decoder(config), spec, mesh_config
        self.mesh = make_mesh(mesh_config, devices)
        self.schedule = make_schedule(optimizer, 1000)
        self.tx = make_optimizer(optimizer, self.schedule)
        self.state = train_state.state_shapes(self.decoder, self.tx, self.mesh, mesh_config)
        params = train_state.param_shapes(self.decoder, self.mesh, mesh_config)
        self.frozen = lora.split(params)[1]

    def standing(self) -> str:
        """The memory that no compiler can save: state, frozen weights, gradients."""
        kept, gradients = _gib((self.state, self.frozen)), _gib(self.state.params)
        return f"state {kept:.2f}, gradients {gradients:.2f} GiB a chip"

    def compiled(self) -> str:
        """The compiler's figures, or how much memory it says is needed."""
        start = time.perf_counter()
        with partitioning.use_mesh(self.mesh, self.mesh_config):
            lowered = self._jitted().lower(self.state, self.frozen, self._batch())
        try:
            memory = lowered.compile(_QUICK).memory_analysis()
        except jax.errors.JaxRuntimeError as error:
            full = _FULL.search(str(error))
            if full is None:
                raise
            return f"does not fit: {full[1]} of {full[2]}"
        arguments, temporaries, peak = (
            size / GIB
            for size in (
                memory.argument_size_in_bytes,
                memory.temp_size_in_bytes,
                memory.peak_memory_in_bytes,
            )
        )
        seconds = time.perf_counter() - start
        return (
            f"fits: arguments {arguments:.2f}, temporaries {temporaries:.2f}, peak {peak:.2f} "
            f"({seconds:.0f} s)"
        )

    def _jitted(self) -> jax.stages.Wrapped:
        """The step as a stage jits it."""
        step = make_train_step(
            self.decoder, self.tx, self.schedule, LossConfig(), self.spec.max_loss_tokens
        )
        shardings = jax.tree.map(lambda leaf: leaf.sharding, self.state)
        return jax.jit(step, donate_argnums=0, out_shardings=(shardings, None))

    def _batch(self) -> dict[str, jax.ShapeDtypeStruct]:
        rows = partitioning.batch_sharding(self.mesh)
        return {
            name: jax.ShapeDtypeStruct(shape, dtype, sharding=rows)
            for name, (shape, dtype) in self.spec.shapes().items()
        }


def _gib(shapes: Any) -> float:
    """The GiB of a tree of arrays on one chip."""
    leaves = jax.tree.leaves(shapes)
    shards = (math.prod(leaf.sharding.shard_shape(leaf.shape)) for leaf in leaves)
    return sum(n * leaf.dtype.itemsize for n, leaf in zip(shards, leaves, strict=True)) / GIB


if __name__ == "__main__":
    main()
