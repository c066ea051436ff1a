"""The training state and how it comes to life already sharded."""

from __future__ import annotations

from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import optax
from flax.traverse_util import flatten_dict, unflatten_dict
from jax.sharding import Mesh

from calrec_jax.models import lora
from calrec_jax.models.decoder import Decoder, boxed_params, unboxed
from calrec_jax.parallel import partitioning
from calrec_jax.parallel.mesh import MeshConfig


@flax.struct.dataclass
class TrainState:
    """What training changes: saved and restored as one.

    Attributes:
      step: [] int32, finished updates of this stage.
      params: the parameters that are trained, plain arrays: those of the adapters where the decoder
        has some (see `lora.split`), else all.
      opt_state: the optimizer's.
    """

    step: jax.Array
    params: Any
    opt_state: Any


def param_shapes(decoder: Decoder, mesh: Mesh, config: MeshConfig):
    """The decoder's parameters as ShapeDtypeStructs that carry their shardings."""
    boxed = jax.eval_shape(lambda: boxed_params(decoder, jax.random.key(0)))
    shardings = partitioning.param_shardings(boxed, mesh, config)
    return jax.tree.map(_with_sharding, unboxed(boxed), shardings)


def state_shapes(
    decoder: Decoder, tx: optax.GradientTransformation, mesh: Mesh, config: MeshConfig
) -> TrainState:
    """The TrainState as ShapeDtypeStructs that carry their shardings; nothing is materialised."""
    params, _ = lora.split(param_shapes(decoder, mesh, config))
    step = jax.ShapeDtypeStruct((), jnp.int32)
    shapes = TrainState(step=step, params=params, opt_state=jax.eval_shape(tx.init, params))
    shardings = partitioning.state_shardings(
        shapes, jax.tree.map(lambda leaf: leaf.sharding, params), mesh
    )
    return jax.tree.map(_with_sharding, shapes, shardings)


def _with_sharding(shape, sharding):
    return jax.ShapeDtypeStruct(shape.shape, shape.dtype, sharding=sharding)


def init_params(decoder: Decoder, seed: int, shapes):
    """Fresh parameters, created in the shardings of `shapes` (see `param_shapes`).

    Where `shapes` are those of its adapters alone, no more than these are made.
    """
    wanted = flatten_dict(shapes)

    def init():
        fresh = flatten_dict(unboxed(boxed_params(decoder, jax.random.key(seed))))
        return {path: fresh[path].astype(leaf.dtype) for path, leaf in wanted.items()}

    out = {path: leaf.sharding for path, leaf in wanted.items()}
    return unflatten_dict(jax.jit(init, out_shardings=out)())


def fresh_state(params, tx: optax.GradientTransformation, shapes: TrainState) -> TrainState:
    """Step 0 with a fresh optimizer around `params`, in the shardings of `shapes`."""
    out = jax.tree.map(lambda leaf: leaf.sharding, shapes.opt_state)
    opt_state = jax.jit(tx.init, out_shardings=out)(params)
    step = jax.device_put(jnp.zeros((), jnp.int32), shapes.step.sharding)
    return TrainState(step=step, params=params, opt_state=opt_state)
